//! Whose rights code runs with that others can define.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::guc_scope::{GucScope, Setting};
use super::relation::OpenRelation;
use crate::model::error::Error;

/// The rights of the current session, restricted until this is dropped.
///
/// Planning the check of the foreign key calls functions of the owner of `loader.loader`: those of its
/// indexes and constraints. Restricted, they cannot leave anything behind, neither a deferred trigger
/// that runs after them with the session's own rights, nor a setting.
pub struct Restricted {
    // Dropped in this order, as PostgreSQL does it: settings go back with the rights still restricted.
    _settings: GucScope,
    _user: PreviousUser,
}

/// The rights of a table's owner, until this is dropped: what PostgreSQL takes to check a foreign key.
pub struct OwnersRights {
    // Dropped in this order.
    _settings: GucScope,
    _user: PreviousUser,
}

/// Who the session was, and under which restrictions; it is again when this is dropped.
struct PreviousUser {
    user: pg_sys::Oid,
    context: i32,
}

/// What functions of the extension see names by.
const SEARCH_PATH: Setting = (c"search_path", c"pg_catalog, pg_temp");

/// The role in which ordinary triggers, those of foreign keys included, do not fire.
const REPLICA: Setting = (c"session_replication_role", c"replica");

/// The extension's own triggers on the history, and those of version 1.5.0.
const TRIGGERS: [&CStr; 7] = [
    c"history_inserted",
    c"history_updated",
    c"request_foreign_key",
    c"notify_on_start",
    c"notify_on_outcome",
    c"remember_loader_on_insert",
    c"remember_loader_on_update",
];

impl Restricted {
    /// Restricts the rights of the current session for writing into the history; `None` where a DBA's
    /// own triggers, or checks put off to the end of the transaction, need them all.
    pub fn for_writing(history: &OpenRelation) -> Option<Self> {
        (!history.has_other_triggers(&TRIGGERS)).then(Self::new)
    }

    /// Restricts the rights of a superuser's session for deleting from `tables`, where a foreign key of a
    /// table that is no superuser's refers to one: planning its check calls functions of that table's owner.
    ///
    /// # Errors
    /// [`Error::UntrustedCascade`], where it would fire that table's triggers too.
    pub fn for_deleting(tables: &[&OpenRelation]) -> Result<Option<Self>, Error> {
        // SAFETY: asks who the current user is, in a transaction.
        if !unsafe { pg_sys::superuser() } {
            return Ok(None);
        }
        if let Some(table) = tables.iter().find_map(|table| table.untrusted_cascading_table()) {
            return Err(Error::UntrustedCascade(table));
        }
        let is_referred_to =
            tables.iter().any(|table| table.untrusted_referencing_table().is_some());
        Ok(is_referred_to.then(Self::new))
    }

    fn new() -> Self {
        let user = PreviousUser::leave(None, pg_sys::SECURITY_RESTRICTED_OPERATION);
        Self { _settings: GucScope::set(&[]), _user: user }
    }
}

impl OwnersRights {
    pub fn of(table: &OpenRelation) -> Self {
        let restriction = pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        let user = PreviousUser::leave(Some(table.owner()), restriction);
        // For triggers that a superuser has put there.
        Self { _settings: GucScope::set(&[SEARCH_PATH]), _user: user }
    }
}

/// What deleting from a table beside the history, which nobody refers to with good reason, is not to run: the
/// foreign keys of others, whose triggers would run with the rights of the function that deletes. `None` where
/// there are none; a change of the role makes every kept plan one to be planned again.
pub fn without_triggers(table: &OpenRelation) -> Option<GucScope> {
    table.fires_on_delete().then(|| GucScope::set_as_superuser(&[REPLICA]))
}

impl PreviousUser {
    /// Makes the session that of `user`, or leaves it that of the same one, under a `restriction` more.
    fn leave(user: Option<pg_sys::Oid>, restriction: u32) -> Self {
        let mut previous = Self { user: pg_sys::InvalidOid, context: 0 };
        // SAFETY: reads and sets the state of the current session; an abort sets it back too.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut previous.user, &raw mut previous.context);
            pg_sys::SetUserIdAndSecContext(
                user.unwrap_or(previous.user),
                previous.context | restriction.cast_signed(),
            );
        }
        previous
    }
}

impl Drop for PreviousUser {
    fn drop(&mut self) {
        // While an error unwinds, the abort that follows sets it back.
        if !std::thread::panicking() {
            // SAFETY: what leave() saved, in the same (sub)transaction.
            unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
        }
    }
}
