//! The rights with which code runs that other roles can define.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::guc_scope::{GucScope, Setting};
use super::relation::OpenRelation;
use crate::model::error::Error;

/// A role and a security context, until this is dropped.
pub struct SecurityContext {
    // Dropped in this order, as PostgreSQL does it: settings are reset while the context still
    // holds.
    _settings: GucScope,
    _user: PreviousUser,
}

/// The session's role and security context, which are restored when this is dropped.
struct PreviousUser {
    user: pg_sys::Oid,
    context: i32,
}

/// The search path of the extension's functions.
const SEARCH_PATH: Setting = (c"search_path", c"pg_catalog, pg_temp");

/// Disables ordinary triggers, those of foreign keys included.
const REPLICA: Setting = (c"session_replication_role", c"replica");

/// The triggers of the extension on the history, and those of version 1.5.0.
const TRIGGERS: [&CStr; 7] = [
    c"history_inserted",
    c"history_updated",
    c"request_foreign_key",
    c"notify_on_start",
    c"notify_on_outcome",
    c"remember_loader_on_insert",
    c"remember_loader_on_update",
];

impl SecurityContext {
    /// A restricted operation of the session's role, for writing into the history; `None` if a
    /// DBA's own triggers, or deferred checks, need its full rights.
    ///
    /// Planning the check of the foreign key calls functions of the owner of `loader.loader`: those
    /// of its indexes and constraints. Restricted, they can leave neither a deferred trigger
    /// behind, which would run later with the session's own rights, nor a setting.
    pub fn restricted_for_writing(history: &OpenRelation) -> Option<Self> {
        (!history.has_other_triggers(&TRIGGERS)).then(Self::restricted)
    }

    /// A restricted operation of a superuser's session, for deleting from `tables`, if a foreign
    /// key of a table that does not belong to a superuser references one: planning its check calls
    /// functions of that table's owner.
    ///
    /// # Errors
    /// [`Error::UntrustedCascade`] if the delete would fire that table's triggers too.
    pub fn restricted_for_deleting(tables: &[&OpenRelation]) -> Result<Option<Self>, Error> {
        // SAFETY: asks who the current user is, in a transaction.
        if !unsafe { pg_sys::superuser() } {
            return Ok(None);
        }
        if let Some(table) = tables.iter().find_map(|table| table.untrusted_cascading_table()) {
            return Err(Error::UntrustedCascade(table));
        }
        let is_referenced =
            tables.iter().any(|table| table.untrusted_referencing_table().is_some());
        Ok(is_referenced.then(Self::restricted))
    }

    /// The rights of the owner of `table`, which PostgreSQL takes to check a foreign key.
    pub fn of_owner(table: &OpenRelation) -> Self {
        let user = PreviousUser::leave(Some(table.owner()), pg_sys::SECURITY_LOCAL_USERID_CHANGE);
        // For triggers that a superuser has created there.
        Self { _settings: GucScope::set(&[SEARCH_PATH]), _user: user }
    }

    fn restricted() -> Self {
        let user = PreviousUser::leave(None, pg_sys::SECURITY_RESTRICTED_OPERATION);
        Self { _settings: GucScope::set(&[]), _user: user }
    }
}

/// Disables triggers for deleting from an internal table of the extension: the foreign keys of
/// other roles' tables, whose triggers would run with the rights of the function that deletes.
/// `None` if there are none, since a change of session_replication_role makes PostgreSQL replan
/// every saved plan.
pub fn without_triggers(table: &OpenRelation) -> Option<GucScope> {
    table.fires_on_delete().then(|| GucScope::set_as_superuser(&[REPLICA]))
}

impl PreviousUser {
    /// Changes the current user, if one is given, and adds a restriction.
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
