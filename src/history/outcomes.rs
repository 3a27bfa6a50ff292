//! Ends executions whose start was rolled back. `loader_history.server_outcome` records that the
//! server ended them, since a later report of the loader takes precedence.

use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::pg_sys::{self, ItemPointerData};

use super::tables::{self, EXECUTION_HISTORY, SERVER_OUTCOME, WATCHED_TRANSACTION};
use crate::gucs;
use crate::model::error::Error;
use crate::model::event::Event;
use crate::model::execution::{Status, duration_seconds};
use crate::model::timestamp::{end_of_execution, from_postgres};
use crate::pg::guc_scope::{GucScope, set_local};
use crate::pg::index_scan::{Key, find};
use crate::pg::relation::require;
use crate::pg::security_context;
use crate::pg::spi::{SavedPlan, execute, query};
use crate::pg::xact::clock_timestamp;

thread_local! {
    static SELECT_END: SavedPlan = const { SavedPlan::new(
        c"SELECT execution_end FROM loader.execution_history WHERE id = $1",
    ) };
    static LOCK_RUNNING: SavedPlan = const { SavedPlan::new(
        c"SELECT execution_start, loader_id, record_count FROM loader.execution_history \
          WHERE id = $1 AND status = 'RUNNING' FOR NO KEY UPDATE SKIP LOCKED",
    ) };
    static UPDATE_FAILED: SavedPlan = const { SavedPlan::new(
        c"UPDATE loader.execution_history \
          SET execution_end = $2, status = 'FAILED', error_message = $3, duration_seconds = $4 \
          WHERE id = $1",
    ) };
    static INSERT_OUTCOME: SavedPlan = const { SavedPlan::new(
        c"INSERT INTO loader_history.server_outcome (execution_id, execution_end) VALUES ($1, $2) \
          ON CONFLICT (execution_id) DO UPDATE SET execution_end = EXCLUDED.execution_end",
    ) };
    static DELETE_WATCHED: SavedPlan = const { SavedPlan::new(
        c"DELETE FROM loader_history.watched_transaction WHERE execution_id = $1",
    ) };
    static DELETE_OUTCOME: SavedPlan = const { SavedPlan::new(
        c"DELETE FROM loader_history.server_outcome WHERE execution_id = $1",
    ) };
    static DELETE_EXECUTION: SavedPlan = const { SavedPlan::new(
        c"DELETE FROM loader.execution_history WHERE id = $1",
    ) };
}

/// The result of ending an execution.
pub enum Ended {
    /// It is FAILED now. The event's payload.
    Failed(String),
    /// It does not exist, or the loader has reported its outcome.
    Already,
    /// Another session locks its row: retry.
    Busy,
}

/// Locks the tables that are written once the end of a transaction is known, if no other session
/// locks them.
pub fn lock_tables() -> Result<(), Error> {
    let tables = [EXECUTION_HISTORY, WATCHED_TRANSACTION, SERVER_OUTCOME];
    tables::try_lock_all(&tables, pg_sys::RowExclusiveLock)
}

/// Has triggers fire as in any session, except that events are emitted later.
pub fn fire_triggers() {
    set_local(c"session_replication_role", c"origin");
    set_local(c"loader_history.notify", c"off");
}

/// Has deletes from the internal tables fire no triggers until this is dropped: foreign keys that
/// reference them would run their owners' code.
pub fn without_triggers() -> Result<Option<GucScope>, Error> {
    for table in [WATCHED_TRANSACTION, SERVER_OUTCOME] {
        let table = require(table, pg_sys::RowExclusiveLock)?;
        if let Some(scope) = security_context::without_triggers(&table) {
            return Ok(Some(scope));
        }
    }
    Ok(None)
}

/// Ends an execution whose start was rolled back as FAILED, and records that the server did.
pub fn fail(execution_id: i64, message: &str) -> Result<Ended, Error> {
    let id = || DatumWithOid::from(execution_id);
    let (start, loader_id, record_count) =
        query(&LOCK_RUNNING, &[id()], |rows| (rows.time(0, 1), rows.get(0, 2), rows.get(0, 3)))?;
    let (Some(start), Some(loader_id)) = (start, loader_id) else {
        let has_ended =
            query(&SELECT_END, &[id()], |rows| rows.len() == 0 || rows.time(0, 1).is_some())?;
        return Ok(if has_ended { Ended::Already } else { Ended::Busy });
    };
    let end = end_of_execution(start, clock_timestamp());
    let seconds = duration_seconds(from_postgres(start), from_postgres(end));
    let stored_end = || DatumWithOid::from(TimestampWithTimeZone::try_from(end).ok());
    let arguments = [id(), stored_end(), message.into(), seconds.into()];
    tables::require_written(execute(&UPDATE_FAILED, &arguments)?, 1)?;
    execute(&INSERT_OUTCOME, &[id(), stored_end()])?;
    let event = Event {
        record_count,
        duration_seconds: Some(seconds),
        error_message: Some(message).filter(|_| gucs::NOTIFY_ERROR_MESSAGE.get()),
        ..Event::new(execution_id, loader_id, Status::Failed, end)
    };
    Ok(Ended::Failed(event.payload()?))
}

/// Removes an execution as if it had never been recorded.
pub fn remove(execution_id: i64) -> Result<(), Error> {
    for statement in [&DELETE_WATCHED, &DELETE_OUTCOME, &DELETE_EXECUTION] {
        execute(statement, &[execution_id.into()])?;
    }
    Ok(())
}

/// When the server ended an execution, in PostgreSQL's microseconds, and the TID of the row that
/// records it; `None` if it did not, or the loader has reported an outcome since.
pub fn server_outcome(execution_id: i64) -> Result<Option<(i64, ItemPointerData)>, Error> {
    let table = require(SERVER_OUTCOME, pg_sys::AccessShareLock)?;
    // SAFETY: column 2 of the table is a timestamptz, which is passed by value as a bigint is.
    Ok(find(&table, &Key::id(execution_id), |row| unsafe {
        row.get::<i64>(2).map(|end| (end, row.tid))
    })
    .flatten())
}
