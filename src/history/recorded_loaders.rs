//! `loader_history.recorded_loader`: every loader that has history.
//!
//! In Rust for restores: the trigger fires for each row, and must not look up the same few thousand
//! loaders a million times.

use std::cell::RefCell;
use std::collections::HashSet;

use pgrx::pg_sys;

use super::tables::{EXECUTION_HISTORY, RECORDED_LOADER};
use crate::model::error::Error;
use crate::pg::index_scan::{Key, find};
use crate::pg::relation::require;
use crate::pg::security_context::SecurityContext;
use crate::pg::spi::{SavedPlan, execute};
use crate::pg::xact;

/// Loaders known to be in the table, as one subtransaction saw it.
///
/// Valid within that subtransaction only: while it is the current one, what it saw or wrote cannot
/// have been rolled back. And for that trigger only, by its OID: the extension may have been
/// dropped and created again.
#[derive(Default)]
struct Known {
    scope: Option<(pg_sys::Oid, u64, pg_sys::SubTransactionId)>,
    loaders: HashSet<i64>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
    static INSERT_KNOWN: SavedPlan = const { SavedPlan::new(
        c"INSERT INTO loader_history.recorded_loader (loader_id) VALUES ($1)",
    ) };
}

/// Makes sure that the table has `loader_id`, for a row that was written or is about to be. The OID
/// of the trigger tells one extension from another that was created after it.
pub fn insert(trigger: pg_sys::Oid, loader_id: i64) -> Result<(), Error> {
    let scope = Some((trigger, xact::assign_xids().0, xact::current_subtransaction()));
    let known = KNOWN.with_borrow_mut(|known| {
        if known.scope != scope {
            known.scope = scope;
            known.loaders.clear();
        }
        known.loaders.contains(&loader_id)
    });
    if known {
        return Ok(());
    }
    let table = require(RECORDED_LOADER, pg_sys::RowExclusiveLock)?;
    // Without a predicate lock, which would make serializable sessions that start different loaders
    // fail with serialization errors.
    if find(&table, &Key::id(loader_id), |_| ()).is_none() {
        // A role that may write the history may have no privilege on this table. (SECURITY DEFINER
        // with a search_path would take longer than the lookup, at each start.)
        let _rights = SecurityContext::of_owner(&table);
        execute(&INSERT_KNOWN, &[loader_id.into()])?;
    }
    KNOWN.with_borrow_mut(|known| {
        if known.scope == scope {
            known.loaders.insert(loader_id);
        }
    });
    Ok(())
}

/// Does what the trigger does, if the trigger does not fire in the worker, whose
/// session_replication_role is replica: `pg_restore --disable-triggers` leaves all triggers so.
pub fn insert_if_trigger_skipped(mut loaders: impl Iterator<Item = i64>) -> Result<(), Error> {
    let history = require(EXECUTION_HISTORY, pg_sys::RowExclusiveLock)?;
    match history.trigger_skipped_in_replica_role(c"history_inserted") {
        Some(trigger) => loaders.try_for_each(|loader_id| insert(trigger, loader_id)),
        None => Ok(()),
    }
}
