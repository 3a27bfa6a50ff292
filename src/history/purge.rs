//! Which executions may be purged, and their deletion: a batch at a time, oldest first.
//!
//! `loader_history.purge_execution_history` and the worker under `loader_history.retention` delete
//! by this one rule: never a RUNNING execution, nor a loader's newest, its newest SUCCESS or its
//! newest FAILED. A purge does not change which ones are newest, so concurrent purges need no
//! coordination.

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{IntoDatum, direct_function_call, pg_extern};

use super::tables::{self, EXECUTION_HISTORY, PURGE_POSITION, SERVER_OUTCOME};
use crate::model::error::Error;
use crate::model::timestamp::FIRST_TIMESTAMP;
use crate::pg::guc_scope::{GucScope, Setting};
use crate::pg::relation::{OpenRelation, require};
use crate::pg::security_context::SecurityContext;
use crate::pg::spi::{Rows, SavedPlan, execute, query, timestamptz};
use crate::pg::xact::{clock_timestamp, require_writable};

/// Executions that a batch of `loader_history.purge_execution_history` examines, at most.
const BATCH_SIZE: i64 = 1_000;

/// HINTs about the arguments.
const AGE_HINT: &str = "Pass an age such as '90 days'.";
const MAX_ROWS_HINT: &str = "Pass the number of rows to delete at most, or nothing for 10000.";

const MICROS_PER_DAY: i128 = 24 * 60 * 60 * 1_000_000;

/// Settings under which the statements are planned. Each has one good plan, a scan of the index by
/// end with one or two index lookups a row; stale or missing statistics must not lead to another.
const PLANNER_SETTINGS: [Setting; 9] = [
    (c"plan_cache_mode", c"force_generic_plan"),
    (c"enable_indexscan", c"on"),
    (c"enable_indexonlyscan", c"on"),
    (c"enable_tidscan", c"on"),
    (c"enable_seqscan", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"enable_sort", c"off"),
    (c"enable_incremental_sort", c"off"),
    (c"jit", c"off"),
];

thread_local! {
    static SELECT_POSITION: SavedPlan = const { SavedPlan::new(
        c"SELECT execution_end, id FROM loader_history.purge_position",
    ) };
    static SET_POSITION: SavedPlan = const { SavedPlan::new(
        c"INSERT INTO loader_history.purge_position (execution_end, id) VALUES ($1, $2) \
          ON CONFLICT (is_only) DO UPDATE SET execution_end = EXCLUDED.execution_end, id = EXCLUDED.id",
    ) };
    static SELECT_NEWEST: SavedPlan = const { SavedPlan::new(
        c"SELECT execution_start FROM ONLY loader.execution_history \
          ORDER BY execution_start DESC, id DESC LIMIT 1",
    ) };
    static SELECT_BATCH_END: SavedPlan = const { SavedPlan::new(
        c"SELECT execution_end, id FROM ONLY loader.execution_history \
          WHERE execution_end < $1 AND (execution_end, id) > ($2, $3) \
          ORDER BY execution_end, id OFFSET $4 - 1 LIMIT 1",
    ) };
    // The newest execution of a loader is found by the index (loader_id, execution_start, id).
    // BETWEEN, and loader_id first in the order, leave that index as the only good one: with one by
    // time alone, a scan for a loader that stopped long ago would read all executions since. A row
    // that has changed meanwhile is evaluated again when it is locked.
    static DELETE: SavedPlan = const { SavedPlan::new(
        c"WITH purged AS ( \
              DELETE FROM ONLY loader.execution_history WHERE ctid = ANY (ARRAY( \
                  SELECT old.ctid FROM ONLY loader.execution_history AS old \
                  WHERE old.execution_end < $1 \
                    AND (old.execution_end, old.id) > ($2, $3) \
                    AND (old.execution_end, old.id) <= ($4, $5) \
                    AND old.id <> ( \
                        SELECT newest.id FROM ONLY loader.execution_history AS newest \
                        WHERE newest.loader_id BETWEEN old.loader_id AND old.loader_id \
                        ORDER BY newest.loader_id DESC, newest.execution_start DESC, newest.id DESC LIMIT 1) \
                    AND CASE old.status \
                        WHEN 'SUCCESS' THEN old.id <> ( \
                            SELECT newest.id FROM ONLY loader.execution_history AS newest \
                            WHERE newest.loader_id = old.loader_id \
                              AND newest.status BETWEEN 'SUCCESS' AND 'SUCCESS' \
                            ORDER BY newest.status DESC, newest.execution_start DESC, newest.id DESC LIMIT 1) \
                        WHEN 'FAILED' THEN old.id <> ( \
                            SELECT newest.id FROM ONLY loader.execution_history AS newest \
                            WHERE newest.loader_id = old.loader_id \
                              AND newest.status BETWEEN 'FAILED' AND 'FAILED' \
                            ORDER BY newest.status DESC, newest.execution_start DESC, newest.id DESC LIMIT 1) \
                        ELSE false END \
                  ORDER BY old.execution_end, old.id \
                  LIMIT $6 FOR UPDATE SKIP LOCKED)) \
              RETURNING id), \
          unmarked AS ( \
              DELETE FROM loader_history.server_outcome \
              WHERE execution_id = ANY (ARRAY(SELECT id FROM purged))) \
          SELECT count(*) FROM purged",
    ) };
}

/// A position in the order in which executions are purged: that of their ends and, if these are
/// equal, of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    end: i64,
    id: i64,
}

impl Position {
    /// Before all executions: -infinity.
    pub const FIRST: Self = Self { end: i64::MIN, id: i64::MIN };
    /// Behind all executions: infinity.
    const LAST: Self = Self { end: i64::MAX, id: i64::MAX };

    /// Before all executions that ended at `end`, in PostgreSQL's microseconds, or later.
    pub const fn before(end: i64) -> Self {
        Self { end, id: i64::MIN }
    }

    fn read(rows: &Rows<'_>) -> Option<Self> {
        rows.time(0, 1).zip(rows.get(0, 2)).map(|(end, id)| Self { end, id })
    }
}

/// Locks the tables that the worker's purge writes, if no other session locks them, and opens those
/// that it deletes from.
pub fn lock_tables() -> Result<[OpenRelation; 2], Error> {
    let tables = [EXECUTION_HISTORY, SERVER_OUTCOME, PURGE_POSITION];
    tables::try_lock_all(&tables, pg_sys::RowExclusiveLock)?;
    let open = |table| require(table, pg_sys::RowExclusiveLock);
    Ok([open(EXECUTION_HISTORY)?, open(SERVER_OUTCOME)?])
}

pub fn position() -> Result<Position, Error> {
    Ok(query(&SELECT_POSITION, &[], Position::read)?.unwrap_or(Position::FIRST))
}

pub fn set_position(position: Position) -> Result<(), Error> {
    execute(&SET_POSITION, &[timestamptz(position.end), position.id.into()])?;
    Ok(())
}

/// The newest start in the history.
pub fn newest_start() -> Result<Option<i64>, Error> {
    let _pinned = GucScope::set(&PLANNER_SETTINGS);
    query(&SELECT_NEWEST, &[], |rows| rows.time(0, 1))
}

/// The position of the last one of the next `count` executions behind `after` that ended before
/// `cutoff`; `None` if there are fewer.
pub fn batch_end(cutoff: i64, after: Position, count: i64) -> Result<Option<Position>, Error> {
    let _pinned = GucScope::set(&PLANNER_SETTINGS);
    let arguments = [timestamptz(cutoff), timestamptz(after.end), after.id.into(), count.into()];
    query(&SELECT_BATCH_END, &arguments, Position::read)
}

/// Deletes the executions behind `after` that ended before `cutoff` and may be purged, up to
/// `last`, or all of them if that is `None`, but no more than `max_rows`, with their server
/// outcomes. Skips rows that other sessions lock. Returns the number of executions deleted.
pub fn delete(
    cutoff: i64,
    after: Position,
    last: Option<Position>,
    max_rows: i64,
) -> Result<i64, Error> {
    let _pinned = GucScope::set(&PLANNER_SETTINGS);
    let last = last.unwrap_or(Position::LAST);
    let arguments = [
        timestamptz(cutoff),
        timestamptz(after.end),
        after.id.into(),
        timestamptz(last.end),
        last.id.into(),
        max_rows.into(),
    ];
    query(&DELETE, &arguments, |rows| rows.get(0, 1).unwrap_or_default())
}

/// Deletes at most `max_rows` executions that ended longer ago than `older_than`, oldest first,
/// with the caller's rights, and returns how many. Executions that it examines and keeps do not
/// count.
#[pg_extern(sql = false)]
fn purge_execution_history(
    older_than: Option<Interval>,
    max_rows: Option<i64>,
) -> Result<i64, ErrorReport> {
    let older_than = older_than.ok_or(Error::MissingArgument("older_than", AGE_HINT))?;
    let max_rows = max_rows.ok_or(Error::MissingArgument("max_rows", MAX_ROWS_HINT))?;
    let invalid = |message: String, hint: &str| {
        Error::InvalidArgument { message, hint: hint.to_owned() }.into()
    };
    if approximate_micros(&older_than) < 0 {
        return Err(invalid("older_than is negative".to_owned(), AGE_HINT));
    } else if max_rows < 0 {
        return Err(invalid(format!("max_rows {max_rows} is negative"), MAX_ROWS_HINT));
    }
    require_writable()?;
    let Some(cutoff) = cutoff(older_than) else { return Ok(0) };
    let history = require(EXECUTION_HISTORY, pg_sys::RowExclusiveLock)?;
    let outcomes = require(SERVER_OUTCOME, pg_sys::RowExclusiveLock)?;
    let _restricted = SecurityContext::restricted_for_deleting(&[&history, &outcomes])?;
    let mut deleted = 0;
    let mut after = Position::FIRST;
    while deleted < max_rows {
        let last = batch_end(cutoff, after, BATCH_SIZE)?;
        deleted += delete(cutoff, after, last, max_rows - deleted)?;
        let Some(last) = last else { break };
        after = last;
        pgrx::check_for_interrupts!();
    }
    Ok(deleted)
}

/// An interval in microseconds, by which PostgreSQL compares intervals: months of 30 days of 24
/// hours.
fn approximate_micros(interval: &Interval) -> i128 {
    let days = i128::from(interval.months()) * 30 + i128::from(interval.days());
    days * MICROS_PER_DAY + i128::from(interval.micros())
}

/// The time before which an execution must have ended to be older than `age`; `None` if PostgreSQL
/// has no such time.
fn cutoff(age: Interval) -> Option<i64> {
    let now = clock_timestamp();
    // A year of slack, since months are not of 30 days.
    let oldest = i128::from(now) - i128::from(FIRST_TIMESTAMP) - 366 * MICROS_PER_DAY;
    // The real months of the longest age are 1.5 % longer. Negative days make no difference:
    // PostgreSQL subtracts months first.
    let months = i128::from(age.months()) * 30 * MICROS_PER_DAY;
    if approximate_micros(&age).max(months) >= oldest / 1_000 * 985 {
        return None;
    }
    // SAFETY: the function takes a timestamptz and an interval; the result is one, since it is in
    // range.
    let cutoff: Option<i64> = unsafe {
        direct_function_call(pg_sys::timestamptz_mi_interval, &[Some(now.into()), age.into_datum()])
    };
    // Days of a negative interval that is positive as a whole may be longer than its months.
    cutoff.map(|cutoff| cutoff.min(now))
}
