//! Rows found by their id, as they are committed by now: in every isolation level, and without a
//! predicate lock, by which serializable sessions that record different executions would fail each
//! other.

use std::cell::RefCell;
use std::ffi::CStr;

use pgrx::htup::heap_getattr_raw;
use pgrx::{FromDatum, IntoDatum, pg_sys};

use crate::error::Error;

/// The extension's name.
const EXTENSION: &CStr = c"loader_history";

/// Members that are remembered, at most.
const REMEMBERED: usize = 16;

thread_local! {
    /// Members of the extension that this session has found. None ceases to be one but by DROP, or by a
    /// superuser's ALTER EXTENSION.
    static MEMBERS: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// The schema of a relation of the extension's: applications use the history, all else is internal.
fn schema_of(name: &CStr) -> &'static CStr {
    if name.to_bytes().starts_with(b"execution_history") { c"loader" } else { c"loader_history" }
}

fn qualified(name: &CStr) -> String {
    format!("{}.{}", schema_of(name).to_string_lossy(), name.to_string_lossy())
}

/// The OID of a table or sequence of the extension's; `None` if this version of its SQL has none of the
/// name, or if what has the name cannot be trusted.
pub fn relation(name: &CStr) -> Option<pg_sys::Oid> {
    trusted(name).ok().flatten()
}

/// The OID of a table or sequence of the extension's; `None` if there is none of the name.
///
/// Others may own the schema `loader`, and create what they like where the extension is not. So a
/// relation is the extension's only if it is a member, and functions with a superuser's rights write it
/// only if a superuser owns it.
///
/// # Errors
/// [`Error::Untrusted`].
pub fn trusted(name: &CStr) -> Result<Option<pg_sys::Oid>, Error> {
    let Some(oid) = named(name) else { return Ok(None) };
    let is_member = is_member(oid);
    if is_member && is_a_superusers(oid, &[pg_sys::RELKIND_RELATION, pg_sys::RELKIND_SEQUENCE]) {
        return Ok(Some(oid));
    }
    let owner = is_member.then(|| class_of(oid)).flatten().map(|class| name_of(class.relowner));
    Err(Error::Untrusted { relation: qualified(name), owner })
}

/// The OID of the relation of that name, whosever it is.
fn named(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog lookups by C strings, in a transaction.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(schema_of(name).as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Whether `oid` is a member of the extension.
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

/// The row of `pg_class` of a relation; `None` where there is none.
fn class_of(oid: pg_sys::Oid) -> Option<pg_sys::FormData_pg_class> {
    // SAFETY: a catalog lookup, in a transaction; the fixed part of the tuple is copied before it is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID.cast_signed(),
            pg_sys::Datum::from(oid),
        );
        if tuple.is_null() {
            return None;
        }
        let class = *pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
        pg_sys::ReleaseSysCache(tuple);
        Some(class)
    }
}

/// Whether `oid` is a relation of one of `kinds` that a superuser owns.
fn is_a_superusers(oid: pg_sys::Oid, kinds: &[u8]) -> bool {
    class_of(oid).is_some_and(|class| {
        // SAFETY: a catalog lookup, in a transaction.
        kinds.contains(&(class.relkind as u8)) && unsafe { pg_sys::superuser_arg(class.relowner) }
    })
}

/// A role's name.
fn name_of(role: pg_sys::Oid) -> String {
    // SAFETY: a catalog lookup, in a transaction; it returns a C string, or NULL.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        let name = (!name.is_null()).then(|| CStr::from_ptr(name));
        name.map_or_else(|| role.to_u32().to_string(), |name| name.to_string_lossy().into_owned())
    }
}

/// Opens and locks a table or sequence of the extension's; `None` if there is none of the name.
///
/// While it is locked it can be neither dropped nor moved, and an event trigger keeps its schema from being
/// renamed: SQL that names it means it, until the transaction ends.
///
/// # Errors
/// [`Error::Untrusted`].
pub fn open(name: &CStr, lock: u32) -> Result<Option<OpenRelation>, Error> {
    loop {
        let Some(oid) = trusted(name)? else { return Ok(None) };
        // SAFETY: in a transaction; an OID can be locked whether or not its relation is still there.
        unsafe { pg_sys::LockRelationOid(oid, lock.cast_signed()) };
        if trusted(name)? == Some(oid) {
            return Ok(Some(OpenRelation::table(oid, pg_sys::NoLock)));
        }
        // SAFETY: the lock that was just taken.
        unsafe { pg_sys::UnlockRelationOid(oid, lock.cast_signed()) };
    }
}

/// The same for one that functions cannot do without.
///
/// # Errors
/// [`Error::Untrusted`], or [`Error::MissingRelation`].
pub fn require(name: &CStr, lock: u32) -> Result<OpenRelation, Error> {
    open(name, lock)?.ok_or_else(|| Error::MissingRelation(qualified(name)))
}

/// Locks a table of the extension's, if there is one of the name, and if nobody else has it.
///
/// # Errors
/// [`Error::Untrusted`], or [`Error::TableLocked`].
pub fn try_lock(name: &CStr, lock: u32) -> Result<(), Error> {
    let Some(oid) = trusted(name)? else { return Ok(()) };
    // SAFETY: in a transaction, at whose end the lock goes.
    let locked = unsafe { pg_sys::ConditionalLockRelationOid(oid, lock.cast_signed()) };
    if locked && trusted(name)? == Some(oid) { Ok(()) } else { Err(Error::TableLocked) }
}

/// A relation, open until this is dropped. Its lock is kept until the transaction ends.
pub struct OpenRelation(pg_sys::Relation);

impl OpenRelation {
    /// Opens the table or sequence `oid`.
    pub fn table(oid: pg_sys::Oid, lock: u32) -> Self {
        // SAFETY: in a transaction; raises PostgreSQL's own error where there is no such relation.
        Self(unsafe { pg_sys::table_open(oid, lock.cast_signed()) })
    }

    /// Whether the current transaction has created it.
    pub fn is_new(&self) -> bool {
        // SAFETY: the relation is open. 0 is InvalidSubTransactionId.
        unsafe { (*self.0).rd_createSubid != 0 }
    }

    /// Whose it is.
    pub fn owner(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open, and so has its row of pg_class.
        unsafe { (*(*self.0).rd_rel).relowner }
    }

    /// Its triggers, those of constraints included.
    fn triggers(&self) -> &[pg_sys::Trigger] {
        // SAFETY: the relation is open; where it has a list of triggers it has as many as that says, and at
        // least one. The list goes when PostgreSQL hears that the relation may have changed, which it does
        // where a catalog is looked into or a lock taken: those who call this do neither before they have
        // read what they need.
        unsafe {
            let triggers = (*self.0).trigdesc;
            if triggers.is_null() {
                return &[];
            }
            let count = usize::try_from((*triggers).numtriggers).unwrap_or_default();
            std::slice::from_raw_parts((*triggers).triggers, count)
        }
    }

    /// Whether it has a trigger that is neither `known` nor a constraint's, or one that may wait for the
    /// end of the transaction.
    pub fn has_other_triggers(&self, known: &[&CStr]) -> bool {
        self.triggers().iter().any(|trigger| {
            // SAFETY: a trigger's name is a C string.
            let name = || unsafe { CStr::from_ptr(trigger.tgname) };
            trigger.tgdeferrable || !trigger.tgisinternal && !known.contains(&name())
        })
    }

    /// The trigger of that name where it does not fire for what replication brings.
    pub fn sleeps_in_replication(&self, name: &CStr) -> Option<pg_sys::Oid> {
        self.triggers()
            .iter()
            // SAFETY: a trigger's name is a C string.
            .find(|trigger| unsafe { CStr::from_ptr(trigger.tgname) } == name)
            .filter(|trigger| {
                let fires = [pg_sys::TRIGGER_FIRES_ALWAYS, pg_sys::TRIGGER_FIRES_ON_REPLICA];
                !fires.contains(&trigger.tgenabled.cast_unsigned())
            })
            .map(|trigger| trigger.tgoid)
    }

    /// Its triggers that deleting fires, those of foreign keys that refer to it included.
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

    /// A table whose foreign key refers to this one and that is no superuser's: deleting here runs what
    /// its owner has made of it.
    pub fn foreign_referrer(&self) -> Option<String> {
        self.foreign_referrer_by(|_| true)
    }

    /// The same where deleting here changes that table, or may wait for the end of the transaction: its
    /// triggers then run with the rights of whoever deletes.
    pub fn foreign_actor(&self) -> Option<String> {
        let actions = [
            pg_sys::F_RI_FKEY_CASCADE_DEL,
            pg_sys::F_RI_FKEY_SETNULL_DEL,
            pg_sys::F_RI_FKEY_SETDEFAULT_DEL,
        ];
        self.foreign_referrer_by(|trigger| {
            trigger.tgdeferrable || actions.contains(&trigger.tgfoid.to_u32())
        })
    }

    fn foreign_referrer_by(&self, counts: impl Fn(&pg_sys::Trigger) -> bool) -> Option<String> {
        let kinds = [pg_sys::RELKIND_RELATION, pg_sys::RELKIND_PARTITIONED_TABLE];
        // Copied before anything is looked up: that may rebuild the relation's cache entry.
        let referrers: Vec<_> =
            self.triggers_on_delete().filter(|t| counts(t)).map(|t| t.tgconstrrelid).collect();
        let foreign = referrers
            .into_iter()
            .find(|&oid| oid != pg_sys::InvalidOid && !is_a_superusers(oid, &kinds))?;
        // SAFETY: catalog lookups; what they return are C strings, or NULL where the table is gone.
        unsafe {
            let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(foreign));
            let name = pg_sys::get_rel_name(foreign);
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
        // While an error unwinds, PostgreSQL closes it itself, and the resource owner may be gone.
        if !std::thread::panicking() {
            // SAFETY: opened by table().
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock.cast_signed()) };
        }
    }
}

/// A row that was found.
pub struct Found {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Found {
    /// Where the row is.
    pub fn tid(&self) -> pg_sys::ItemPointerData {
        // SAFETY: the tuple is valid while `self` is: find_once() lends it out, and then ends the scan.
        unsafe { (*self.tuple).t_self }
    }

    /// The transaction that wrote the row as it is.
    pub fn writer(&self) -> pg_sys::TransactionId {
        // SAFETY: as of tid(); a tuple on disk begins with these fields.
        unsafe { (*(*self.tuple).t_data).t_choice.t_heap.t_xmin }
    }

    /// Whether an update wrote it.
    pub fn is_updated(&self) -> bool {
        // SAFETY: as of tid().
        u32::from(unsafe { (*(*self.tuple).t_data).t_infomask }) & pg_sys::HEAP_UPDATED != 0
    }

    /// The value of column number `column`, counted from 1; `None` where it is NULL.
    ///
    /// # Safety
    /// The relation has the column, of a type that `T` reads; and `T` is a copy, which borrows nothing of the
    /// row.
    pub unsafe fn get<T: FromDatum + IntoDatum>(&self, column: usize) -> Option<T> {
        let column = std::num::NonZeroUsize::new(column)?;
        // SAFETY: tuple and descriptor are valid as in tid(); the caller vouches for the column and the type.
        unsafe {
            let datum = heap_getattr_raw(self.tuple, column, self.descriptor)?;
            T::from_datum(datum, false)
        }
    }
}

/// What a column is compared with, and by which of PostgreSQL's own functions.
pub struct Key {
    column: pg_sys::AttrNumber,
    equals: u32,
    value: pg_sys::Datum,
}

impl Key {
    /// The bigint `id` in the first column.
    pub fn id(id: i64) -> Self {
        Self { column: 1, equals: pg_sys::F_INT8EQ, value: id.into() }
    }

    /// The number `id` in a column of type `column_type`; `None` where that is no type of numbers that
    /// a foreign key of bigint can refer to, or has no such number.
    pub fn number(column: pg_sys::AttrNumber, column_type: pg_sys::Oid, id: i64) -> Option<Self> {
        let (equals, value) = match column_type {
            pg_sys::INT8OID => (pg_sys::F_INT8EQ, id.into()),
            pg_sys::INT4OID => (pg_sys::F_INT4EQ, i32::try_from(id).ok()?.into()),
            pg_sys::INT2OID => (pg_sys::F_INT2EQ, i16::try_from(id).ok()?.into()),
            // SAFETY: int8_numeric() takes a bigint.
            pg_sys::NUMERICOID => (pg_sys::F_NUMERIC_EQ, unsafe {
                pgrx::direct_function_call_as_datum(pg_sys::int8_numeric, &[Some(id.into())])?
            }),
            _ => return None,
        };
        Some(Self { column, equals, value })
    }
}

/// Finds the row of `table` that has `key`, and reads it.
///
/// Nothing is planned: planning calls functions that the owner of the table's indexes can define.
pub fn find<R>(table: &OpenRelation, key: &Key, read: impl Fn(&Found) -> R) -> Option<R> {
    // A scan that meets an update just as it commits can miss both versions of a row. It does so once
    // for an update; an execution is updated three times at most, and a loader's row not often.
    let index = index_on(table, key.column);
    (0..4).find_map(|_| find_once(table, index, key, &read))
}

fn find_once<R>(
    table: &OpenRelation,
    index: Option<pg_sys::Oid>,
    key: &Key,
    read: &impl Fn(&Found) -> R,
) -> Option<R> {
    let relation = table.as_ptr();
    // SAFETY: the relation is open; the key compares a column with a value of its type by the built-in
    // function; what is found is read before the scan ends.
    unsafe {
        let mut scan_key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &raw mut scan_key,
            key.column,
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            pg_sys::Oid::from(key.equals),
            key.value,
        );
        let scan = pg_sys::systable_beginscan(
            relation,
            index.unwrap_or(pg_sys::InvalidOid),
            index.is_some(),
            &raw mut pg_sys::SnapshotSelfData,
            1,
            &raw mut scan_key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let result =
            (!tuple.is_null()).then(|| read(&Found { tuple, descriptor: (*relation).rd_att }));
        pg_sys::systable_endscan(scan);
        result
    }
}

/// A valid B-tree on `column` alone: the primary key's, or else another.
fn index_on(table: &OpenRelation, column: pg_sys::AttrNumber) -> Option<pg_sys::Oid> {
    // SAFETY: the relation is open; an index that is open has its row of pg_index in its cache entry,
    // with as many key columns as it says.
    unsafe {
        let list = pg_sys::RelationGetIndexList(table.as_ptr());
        let primary = (*table.as_ptr()).rd_pkindex;
        let count = if list.is_null() { 0 } else { (*list).length };
        let others = (0..count).map(|place| pg_sys::list_nth_oid(list, place));
        let fits = |&oid: &pg_sys::Oid| {
            if oid == pg_sys::InvalidOid {
                return false;
            }
            let index = pg_sys::index_open(oid, pg_sys::AccessShareLock.cast_signed());
            let form = (*index).rd_index;
            let fits = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                && (*form).indisvalid
                && (*form).indnkeyatts == 1
                && *(*form).indkey.values.as_ptr() == column
                && pg_sys::heap_attisnull(
                    (*index).rd_indextuple,
                    pg_sys::Anum_pg_index_indpred.cast_signed(),
                    std::ptr::null_mut(),
                );
            pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
            fits
        };
        let found = std::iter::once(primary).chain(others).find(fits);
        pg_sys::list_free(list);
        found
    }
}

/// What came of locking a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked {
    /// It is locked.
    Yes,
    /// It is locked, but another version of it is there by now: look again.
    Changed,
    /// It is not there any more: look again.
    Gone,
    /// Another session holds it, and was not waited for.
    Busy,
}

/// Locks the row at `tid`, which find() has found since the statement of the caller's began, and waits for others
/// if `wait` says so.
pub fn lock(
    table: &OpenRelation,
    mut tid: pg_sys::ItemPointerData,
    mode: pg_sys::LockTupleMode::Type,
    wait: pg_sys::LockWaitPolicy::Type,
) -> Locked {
    let version =
        |tid: pg_sys::ItemPointerData| (tid.ip_blkid.bi_hi, tid.ip_blkid.bi_lo, tid.ip_posid);
    let wanted = version(tid);
    debug_assert!(
        // SAFETY: reads the state of the current transaction.
        unsafe { pg_sys::ActiveSnapshotSet() },
        "what find() has found may be vacuumed"
    );
    // SAFETY: the relation is open, and the slot is made for it and dropped after use. At the TID is a row: it
    // was found under a snapshot that is active since, which keeps vacuum and pruning from what was
    // there then, and tables shrink only under a lock that excludes the open relation's.
    unsafe {
        // What this transaction has just written is to be seen.
        pg_sys::CommandCounterIncrement();
        let slot = pg_sys::table_slot_create(table.as_ptr(), std::ptr::null_mut());
        let mut failure = pg_sys::TM_FailureData::default();
        let result = pg_sys::table_tuple_lock(
            table.as_ptr(),
            &raw mut tid,
            &raw mut pg_sys::SnapshotSelfData,
            slot,
            pg_sys::GetCurrentCommandId(true),
            mode,
            wait,
            u8::try_from(pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION).unwrap_or_default(),
            &raw mut failure,
        );
        let found = version((*slot).tts_tid);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        match result {
            pg_sys::TM_Result::TM_Ok if found == wanted => Locked::Yes,
            pg_sys::TM_Result::TM_Ok => Locked::Changed,
            pg_sys::TM_Result::TM_WouldBlock => Locked::Busy,
            _ => Locked::Gone,
        }
    }
}
