//! Inserts the starts of executions into the history.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::{self, LockWaitPolicy};

use super::loader_fk::{self, LoaderRow};
use super::recorded_loaders;
use super::tables::{
    self, EXECUTION_HISTORY, EXECUTION_HISTORY_ID_SEQ, RECORDED_LOADER, WATCHED_TRANSACTION,
};
use super::watched_transactions;
use crate::model::error::Error;
use crate::model::event::Event;
use crate::model::execution::Status;
use crate::pg::relation::{require, trusted};
use crate::pg::spi::{SavedPlan, execute};
use crate::pg::xact;
use crate::shmem::start_queue::Start;

thread_local! {
    static INSERT_ONE: SavedPlan = const { SavedPlan::new(
        c"INSERT INTO loader.execution_history (id, loader_id, execution_start, status) \
          VALUES ($1, $2, $3, 'RUNNING')",
    ) };
    static INSERT_ALL: SavedPlan = const { SavedPlan::new(
        c"INSERT INTO loader.execution_history (id, loader_id, execution_start, status) \
          SELECT s.id, s.loader_id, s.execution_start, 'RUNNING' \
          FROM ROWS FROM (unnest($1), unnest($2), unnest($3)) AS s (id, loader_id, execution_start)",
    ) };
}

/// Locks the tables that an autonomous start is written into, if no other session locks them.
pub fn lock_tables() -> Result<(), Error> {
    let tables =
        [EXECUTION_HISTORY, EXECUTION_HISTORY_ID_SEQ, WATCHED_TRANSACTION, RECORDED_LOADER];
    tables::try_lock_all(&tables, pg_sys::RowExclusiveLock)
}

/// Locks the loader's row if no other session's lock conflicts.
pub fn lock_loader(loader_id: i64) -> Result<LoaderRow, Error> {
    let history = require(EXECUTION_HISTORY, pg_sys::AccessShareLock)?;
    Ok(loader_fk::lock(&history, loader_id, LockWaitPolicy::LockWaitSkip))
}

/// Takes the id of an execution. A caller that does not flush the WAL later anyway asks for `flush`.
pub fn next_id(flush: bool) -> Result<i64, Error> {
    let sequence = trusted(EXECUTION_HISTORY_ID_SEQ)?;
    let missing = || Error::MissingRelation(EXECUTION_HISTORY_ID_SEQ.to_string());
    sequence.map(|sequence| xact::next_value(sequence, flush)).ok_or_else(missing)
}

pub fn insert_one(execution_id: i64, loader_id: i64, time: i64) -> Result<(), Error> {
    let time = TimestampWithTimeZone::try_from(time).ok();
    let inserted = execute(&INSERT_ONE, &[execution_id.into(), loader_id.into(), time.into()])?;
    tables::require_written(inserted, 1)
}

/// Inserts RUNNING executions with these ids, and the transactions that started them.
pub fn insert(starts: &[(i64, Start)]) -> Result<(), Error> {
    if starts.is_empty() {
        return Ok(());
    }
    recorded_loaders::insert_if_trigger_skipped(starts.iter().map(|(_, start)| start.loader_id))?;
    match starts {
        [(id, start)] => insert_one(*id, start.loader_id, start.time)?,
        _ => insert_all(starts)?,
    }
    watched_transactions::insert(starts)
}

fn insert_all(starts: &[(i64, Start)]) -> Result<(), Error> {
    let time = |start: &Start| TimestampWithTimeZone::try_from(start.time).ok();
    let ids: Vec<_> = starts.iter().map(|(id, _)| *id).collect();
    let loaders: Vec<_> = starts.iter().map(|(_, start)| start.loader_id).collect();
    let times: Vec<_> = starts.iter().map(|(_, start)| time(start)).collect();
    let inserted = execute(&INSERT_ALL, &[ids.into(), loaders.into(), times.into()])?;
    tables::require_written(inserted, starts.len())
}

/// The payload of the event that an execution has started.
pub fn event(execution_id: i64, start: &Start) -> Result<String, Error> {
    Ok(Event::new(execution_id, start.loader_id, Status::Running, start.time).payload()?)
}
