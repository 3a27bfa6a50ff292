//! `loader.record_execution_end`.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, Spi, function_name, pg_extern};

use crate::history::tables::{EXECUTION_HISTORY, SERVER_OUTCOME};
use crate::history::{outcomes, watched_transactions};
use crate::model::error::{EXECUTION_ID_HINT, Error, shown};
use crate::model::execution::{MAX_ERROR_MESSAGE_BYTES, Status, column, duration_seconds, listed};
use crate::model::timestamp::{end_of_execution, from_postgres};
use crate::pg::index_scan::{Key, find};
use crate::pg::relation::{OpenRelation, require};
use crate::pg::security_context::{SecurityContext, without_triggers};
use crate::pg::spi::SavedPlan;
use crate::pg::tuple_lock::{self, Locked};
use crate::pg::xact::{self, clock_timestamp, require_writable};

thread_local! {
    // The loader's report replaces the server's outcome; FAILED keeps its message as the last line.
    static UPDATE_TO_OUTCOME: SavedPlan = const { SavedPlan::self_latest(
        c"UPDATE loader.execution_history \
          SET execution_end = $4, status = $5, record_count = COALESCE($6, record_count), \
              error_message = CASE WHEN $3 IS NULL THEN COALESCE($7, error_message) \
                                   WHEN $5 OPERATOR(pg_catalog.=) 'SUCCESS' THEN $7 \
                                   ELSE pg_catalog.concat_ws(E'\\n', $7, pg_catalog.concat('server: ', error_message)) END, \
              duration_seconds = $8 \
          WHERE ctid OPERATOR(pg_catalog.=) $1 AND id OPERATOR(pg_catalog.=) $2 \
            AND execution_end IS NOT DISTINCT FROM $3",
    ) };
    static DELETE_SERVER_OUTCOME: SavedPlan = const { SavedPlan::self_latest(
        c"DELETE FROM loader_history.server_outcome \
          WHERE ctid OPERATOR(pg_catalog.=) $1 AND execution_id OPERATOR(pg_catalog.=) $2",
    ) };
}

/// Records how the execution `execution_id` ended, and returns its duration in whole seconds.
#[pg_extern(sql = false)]
fn record_execution_end(
    execution_id: Option<i64>,
    status: Option<&str>,
    record_count: Option<i64>,
    error_message: Option<&str>,
) -> Result<i32, ErrorReport> {
    let execution_id =
        execution_id.ok_or(Error::MissingArgument("execution_id", EXECUTION_ID_HINT))?;
    let status = status.ok_or(Error::MissingArgument("status", "Pass SUCCESS or FAILED."))?;
    let outcome =
        Status::parse(status, &Status::OUTCOMES).ok_or_else(|| Error::InvalidArgument {
            message: format!("an execution cannot end in status \"{}\"", shown(status)),
            hint: format!("Pass {}.", listed(&Status::OUTCOMES)),
        })?;
    if let Some(count) = record_count.filter(|&count| count < 0) {
        return Err(Error::InvalidArgument {
            message: format!("record_count {count} is negative"),
            hint: "Pass the number of records loaded, or NULL if it is not known.".to_owned(),
        }
        .into());
    }
    if let Some(message) = error_message.filter(|message| message.len() > MAX_ERROR_MESSAGE_BYTES) {
        return Err(Error::MessageTooLong(message.len()).into());
    }
    require_writable()?;
    let stored_count = record_count.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    let seconds = end_execution(execution_id, outcome, stored_count, error_message)?;
    if let (Some(given), Some(stored)) = (record_count, stored_count)
        && given != i64::from(stored)
    {
        warn_of_saturated_count(given, stored);
    }
    Ok(seconds)
}

/// Ends an execution.
///
/// The row is read, and then updated only if it has not changed: if another session ends the
/// execution meanwhile, the update waits, matches nothing, and the row is read again.
fn end_execution(
    execution_id: i64,
    outcome: Status,
    record_count: Option<i32>,
    error_message: Option<&str>,
) -> Result<i32, Error> {
    let history = require(EXECUTION_HISTORY, pg_sys::RowExclusiveLock)?;
    let mut seen = None;
    loop {
        let state = execution_state(&history, execution_id)?;
        // The row that records that the server ended it, which the loader's report replaces.
        let server_outcome = match state.end {
            // An execution that this transaction has inserted was not started by another.
            None if outcome == Status::Success
                && !(state.own && state.inserted)
                && watched_transactions::is_open_elsewhere(execution_id)? =>
            {
                return Err(Error::StillOpen(execution_id));
            }
            None => None,
            Some(end) => match outcomes::server_outcome(execution_id)? {
                Some((server_end, noted_at)) if server_end == end => Some(noted_at),
                _ => {
                    let end = Some(from_postgres(end));
                    return Err(Error::AlreadyEnded { execution_id, status: state.status, end });
                }
            },
        };
        // Only a trigger can keep an unchanged row from being updated.
        let version = (state.tid.ip_posid, state.tid.ip_blkid.bi_hi, state.tid.ip_blkid.bi_lo);
        if seen.replace(version) == Some(version) {
            return Err(Error::Suppressed);
        }
        // Under these isolation levels an update of a row that another session has updated would
        // fail.
        if xact::is_isolated() {
            let mode = pg_sys::LockTupleMode::LockTupleNoKeyExclusive;
            let wait = pg_sys::LockWaitPolicy::LockWaitBlock;
            if tuple_lock::lock(&history, state.tid, mode, wait) != Locked::Yes {
                seen = None;
                continue;
            }
        }
        let end = end_of_execution(state.start, clock_timestamp());
        let seconds = duration_seconds(from_postgres(state.start), from_postgres(end));
        // The foreign key is checked again for a row that this transaction has inserted.
        let restricted =
            state.own.then(|| SecurityContext::restricted_for_writing(&history)).flatten();
        let updated = Spi::connect(|client| {
            let time = |micros| TimestampWithTimeZone::try_from(micros).ok();
            let arguments = [
                state.tid.into(),
                execution_id.into(),
                state.end.and_then(time).into(),
                time(end).into(),
                outcome.as_str().into(),
                record_count.into(),
                error_message.into(),
                seconds.into(),
            ];
            let updated = UPDATE_TO_OUTCOME.with(|update| update.run(client, &arguments))?.len();
            if let Some(noted_at) = server_outcome.filter(|_| updated > 0) {
                let table = require(SERVER_OUTCOME, pg_sys::RowExclusiveLock)?;
                let _silent = without_triggers(&table);
                let arguments = [noted_at.into(), execution_id.into()];
                DELETE_SERVER_OUTCOME.with(|delete| delete.run(client, &arguments))?;
            }
            Ok::<_, Error>(updated > 0)
        })?;
        drop(restricted);
        if updated {
            return Ok(seconds);
        }
    }
}

/// An execution as it is now.
struct State {
    tid: pg_sys::ItemPointerData,
    /// Whether this transaction has written the row.
    own: bool,
    /// Whether the row is as it was inserted.
    inserted: bool,
    start: i64,
    end: Option<i64>,
    status: String,
}

/// The state of an execution, as committed by now or written by this transaction.
fn execution_state(history: &OpenRelation, execution_id: i64) -> Result<State, Error> {
    let find_state = || {
        // SAFETY: by the contract the times are timestamptz, which are passed by value as a bigint
        // is, and the status is a varchar.
        find(history, &Key::id(execution_id), |row| unsafe {
            Some(State {
                tid: row.tid,
                own: xact::is_current(row.writer),
                inserted: !row.is_updated,
                start: row.get(column::EXECUTION_START.get())?,
                end: row.get(column::EXECUTION_END.get()),
                status: row.get(column::STATUS.get())?,
            })
        })
        .flatten()
    };
    find_state().ok_or(Error::UnknownExecution(execution_id))
}

/// Warns the caller that `given` records were stored as `stored`. Not an error: a count that is too
/// large must not fail a load.
fn warn_of_saturated_count(given: i64, stored: i32) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
        format!("record_count {given} was stored as {stored}"),
        function_name!(),
    )
    .set_hint("The column is an integer; count in larger units if that is too small.")
    .report(PgLogLevel::WARNING);
}
