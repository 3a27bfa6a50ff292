//! Relations of the extension: found by name, verified, opened and locked.
//!
//! Functions return [`Error::Untrusted`], [`Error::MissingRelation`] or [`Error::TableLocked`].

use std::cell::RefCell;
use std::ffi::CStr;
use std::fmt;

use pgrx::pg_sys;

use super::syscache;
use crate::model::EXTENSION;
use crate::model::error::Error;

/// Members that are remembered, at most.
const REMEMBERED: usize = 16;

thread_local! {
    /// Members of the extension that this session has found. Only DROP and a superuser's ALTER
    /// EXTENSION end a membership.
    static MEMBERS: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// The name of a relation of the extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    schema: &'static CStr,
    name: &'static CStr,
}

impl Name {
    pub const fn new(schema: &'static CStr, name: &'static CStr) -> Self {
        Self { schema, name }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema.to_string_lossy(), self.name.to_string_lossy())
    }
}

/// The OID of a table or sequence of the extension; `None` if there is no such relation.
///
/// Any role may own the schema `loader`, and create relations in it. So a relation is the
/// extension's only if it is a member, and functions with a superuser's rights write it only if a
/// superuser owns it.
pub fn trusted(name: Name) -> Result<Option<pg_sys::Oid>, Error> {
    let Some(oid) = named(name) else { return Ok(None) };
    let is_member = is_member(oid);
    if is_member && belongs_to_superuser(oid, &[pg_sys::RELKIND_RELATION, pg_sys::RELKIND_SEQUENCE])
    {
        return Ok(Some(oid));
    }
    let owner = is_member.then(|| class_of(oid)).flatten().map(|class| role_name(class.relowner));
    Err(Error::Untrusted { relation: name.to_string(), owner })
}

/// The OID of the relation of that name, whether or not it is a member.
fn named(name: Name) -> Option<pg_sys::Oid> {
    // SAFETY: catalog lookups by C strings, in a transaction.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(name.schema.as_ptr(), true);
        pg_sys::get_relname_relid(name.name.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

fn is_member(oid: pg_sys::Oid) -> bool {
    if MEMBERS.with_borrow(|members| members.contains(&oid)) {
        return true;
    }
    // SAFETY: catalog lookups, in a transaction.
    let is_member = unsafe {
        let of = pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, oid);
        of != pg_sys::InvalidOid && of == pg_sys::get_extension_oid(EXTENSION.as_ptr(), true)
    };
    if is_member {
        MEMBERS.with_borrow_mut(|members| {
            members.truncate(REMEMBERED - 1);
            members.insert(0, oid);
        });
    }
    is_member
}

fn class_of(oid: pg_sys::Oid) -> Option<pg_sys::FormData_pg_class> {
    // SAFETY: in a transaction; the cache is that of pg_class, by OID.
    unsafe { syscache::row(pg_sys::SysCacheIdentifier::RELOID, oid) }
}

/// Whether `oid` is a relation of one of `kinds` that a superuser owns.
fn belongs_to_superuser(oid: pg_sys::Oid, kinds: &[u8]) -> bool {
    class_of(oid).is_some_and(|class| {
        // SAFETY: a catalog lookup, in a transaction.
        kinds.contains(&(class.relkind as u8)) && unsafe { pg_sys::superuser_arg(class.relowner) }
    })
}

/// A trigger's name.
fn name_of(trigger: &pg_sys::Trigger) -> &CStr {
    // SAFETY: it is a C string, which lives as long as the trigger.
    unsafe { CStr::from_ptr(trigger.tgname) }
}

/// A role's name.
fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: a catalog lookup, in a transaction; it returns a C string, or NULL.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        let name = (!name.is_null()).then(|| CStr::from_ptr(name));
        name.map_or_else(|| role.to_u32().to_string(), |name| name.to_string_lossy().into_owned())
    }
}

/// Opens and locks a table or sequence of the extension; `None` if there is no such relation.
///
/// While it is locked it can be neither dropped nor moved, and an event trigger keeps its schema
/// from being renamed: its name refers to it until the transaction ends.
pub fn open(name: Name, lock: u32) -> Result<Option<OpenRelation>, Error> {
    loop {
        let Some(oid) = trusted(name)? else { return Ok(None) };
        // SAFETY: in a transaction; an OID can be locked whether or not its relation is still
        // there.
        unsafe { pg_sys::LockRelationOid(oid, lock.cast_signed()) };
        if trusted(name)? == Some(oid) {
            return Ok(Some(OpenRelation::table(oid, pg_sys::NoLock)));
        }
        // SAFETY: the lock that was just taken.
        unsafe { pg_sys::UnlockRelationOid(oid, lock.cast_signed()) };
    }
}

/// As [`open`], for a relation that must exist.
pub fn require(name: Name, lock: u32) -> Result<OpenRelation, Error> {
    open(name, lock)?.ok_or_else(|| Error::MissingRelation(name.to_string()))
}

/// Locks a table of the extension, if it exists and no other session locks it.
pub fn try_lock(name: Name, lock: u32) -> Result<(), Error> {
    let Some(oid) = trusted(name)? else { return Ok(()) };
    // SAFETY: in a transaction, at whose end the lock is released.
    let locked = unsafe { pg_sys::ConditionalLockRelationOid(oid, lock.cast_signed()) };
    if locked && trusted(name)? == Some(oid) { Ok(()) } else { Err(Error::TableLocked) }
}

/// A relation, open until this is dropped. Its lock is kept until the transaction ends.
pub struct OpenRelation(pg_sys::Relation);

impl OpenRelation {
    pub fn table(oid: pg_sys::Oid, lock: u32) -> Self {
        // SAFETY: in a transaction; raises PostgreSQL's own error if there is no such relation.
        Self(unsafe { pg_sys::table_open(oid, lock.cast_signed()) })
    }

    /// Whether the current transaction has created it.
    pub fn is_new(&self) -> bool {
        // SAFETY: the relation is open. 0 is InvalidSubTransactionId.
        unsafe { (*self.0).rd_createSubid != 0 }
    }

    pub fn owner(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open, and so has its row of pg_class.
        unsafe { (*(*self.0).rd_rel).relowner }
    }

    /// Its triggers, those of constraints included.
    fn triggers(&self) -> &[pg_sys::Trigger] {
        // SAFETY: the relation is open; trigdesc has numtriggers triggers, at least one. It is
        // freed when PostgreSQL processes an invalidation message, as catalog lookups and locks do:
        // callers do neither before they have read what they need.
        unsafe {
            let triggers = (*self.0).trigdesc;
            if triggers.is_null() {
                return &[];
            }
            let count = usize::try_from((*triggers).numtriggers).unwrap_or_default();
            std::slice::from_raw_parts((*triggers).triggers, count)
        }
    }

    /// Whether it has a trigger that is neither `known` nor internal, or one that is deferrable.
    pub fn has_other_triggers(&self, known: &[&CStr]) -> bool {
        self.triggers().iter().any(|trigger| {
            trigger.tgdeferrable || !trigger.tgisinternal && !known.contains(&name_of(trigger))
        })
    }

    /// The trigger of that name, if it does not fire while session_replication_role is replica.
    pub fn trigger_skipped_in_replica_role(&self, name: &CStr) -> Option<pg_sys::Oid> {
        self.triggers()
            .iter()
            .find(|trigger| name_of(trigger) == name)
            .filter(|trigger| {
                let fires = [pg_sys::TRIGGER_FIRES_ALWAYS, pg_sys::TRIGGER_FIRES_ON_REPLICA];
                !fires.contains(&trigger.tgenabled.cast_unsigned())
            })
            .map(|trigger| trigger.tgoid)
    }

    /// Its triggers that deleting fires, those of foreign keys that reference it included.
    fn triggers_on_delete(&self) -> impl Iterator<Item = &pg_sys::Trigger> {
        let delete = |trigger: &&pg_sys::Trigger| {
            u32::from(trigger.tgtype.cast_unsigned()) & pg_sys::TRIGGER_TYPE_DELETE != 0
        };
        self.triggers().iter().filter(delete)
    }

    /// Whether deleting from it fires a trigger.
    pub fn fires_on_delete(&self) -> bool {
        self.triggers_on_delete().next().is_some()
    }

    /// A table that references this one and does not belong to a superuser: a delete here runs its
    /// owner's code.
    pub fn untrusted_referencing_table(&self) -> Option<String> {
        self.untrusted_referencing_table_by(|_| true)
    }

    /// The same if a delete here changes that table, or its foreign key is deferrable: its triggers
    /// then run with the rights of the role that deletes.
    pub fn untrusted_cascading_table(&self) -> Option<String> {
        let actions = [
            pg_sys::F_RI_FKEY_CASCADE_DEL,
            pg_sys::F_RI_FKEY_SETNULL_DEL,
            pg_sys::F_RI_FKEY_SETDEFAULT_DEL,
        ];
        self.untrusted_referencing_table_by(|trigger| {
            trigger.tgdeferrable || actions.contains(&trigger.tgfoid.to_u32())
        })
    }

    fn untrusted_referencing_table_by(
        &self,
        counts: impl Fn(&pg_sys::Trigger) -> bool,
    ) -> Option<String> {
        let kinds = [pg_sys::RELKIND_RELATION, pg_sys::RELKIND_PARTITIONED_TABLE];
        // Copied before anything is looked up: that may rebuild the relation's cache entry.
        let referencing: Vec<_> =
            self.triggers_on_delete().filter(|t| counts(t)).map(|t| t.tgconstrrelid).collect();
        let untrusted = referencing
            .into_iter()
            .find(|&oid| oid != pg_sys::InvalidOid && !belongs_to_superuser(oid, &kinds))?;
        // SAFETY: catalog lookups; what they return are C strings, or NULL if the table was
        // dropped.
        unsafe {
            let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(untrusted));
            let name = pg_sys::get_rel_name(untrusted);
            if schema.is_null() || name.is_null() {
                return None;
            }
            let name = pg_sys::quote_qualified_identifier(schema, name);
            Some(CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    /// The relation's cache entry, valid while this is.
    pub const fn as_ptr(&self) -> pg_sys::Relation {
        self.0
    }
}

impl Drop for OpenRelation {
    fn drop(&mut self) {
        // While an error unwinds, PostgreSQL closes it itself, and the resource owner may have been
        // released.
        if !std::thread::panicking() {
            // SAFETY: opened by table().
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock.cast_signed()) };
        }
    }
}
