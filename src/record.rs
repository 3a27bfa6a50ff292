//! `loader.record_execution_start` and `loader.record_execution_end`.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::{PgSqlErrorCode, Spi, pg_extern};

use crate::error::{Error, warn_of_plain_start, warn_of_saturated_count};
use crate::execution::{Status, column, duration_seconds};
use crate::lookup::{self, Key, Locked, OpenRelation, find, require};
use crate::lost_ids::{keep_given_ids, skip_lost_ids};
use crate::recorder::{self, Started, binding};
use crate::rights::{Restricted, without_triggers};
use crate::statement::{KeptStatement, Sight, require_writable};
use crate::time::{end_of_execution, from_postgres};

/// The longest error message, in bytes, that fits into a row: PostgreSQL allocates no tuple beyond
/// 1 GB (`MaxAllocSize` in its `memutils.h`), and the other columns need some of that.
pub const MAX_ERROR_MESSAGE_BYTES: usize = 0x3fff_ffff - 1024;

thread_local! {
    static INSERT_RUNNING: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader.execution_history (loader_id, execution_start, status) \
          VALUES ($1, $2, 'RUNNING') RETURNING id",
        &[BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID],
    ) };
    static UPDATE_TO_OUTCOME: KeptStatement = const { KeptStatement::new(
        c"UPDATE loader.execution_history \
          SET execution_end = $4, status = $5, record_count = COALESCE($6, record_count), \
              error_message = CASE WHEN $5 OPERATOR(pg_catalog.=) 'SUCCESS' AND $3 IS NOT NULL THEN $7 \
                                   ELSE COALESCE($7, error_message) END, \
              duration_seconds = $8 \
          WHERE ctid OPERATOR(pg_catalog.=) $1 AND id OPERATOR(pg_catalog.=) $2 \
            AND execution_end IS NOT DISTINCT FROM $3",
        &[
            BuiltinOid::TIDOID, BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID,
            BuiltinOid::TIMESTAMPTZOID, BuiltinOid::TEXTOID, BuiltinOid::INT4OID,
            BuiltinOid::TEXTOID, BuiltinOid::INT4OID,
        ],
    ) };
    static DELETE_DERIVED: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader_history.server_outcome \
          WHERE ctid OPERATOR(pg_catalog.=) $1 AND execution_id OPERATOR(pg_catalog.=) $2",
        &[BuiltinOid::TIDOID, BuiltinOid::INT8OID],
    ) };
}

/// Records that loader `loader_id` starts an execution, and returns the execution's id.
#[pg_extern(sql = false)]
fn record_execution_start(loader_id: Option<i64>) -> Result<i64, ErrorReport> {
    let loader_id = loader_id.ok_or(Error::MissingArgument("loader_id"))?;
    require_writable()?;
    skip_lost_ids()?;
    let start = now();
    let declined = match recorder::start(loader_id, start) {
        Started::Durably(id) => return Ok(id),
        Started::Plainly => None,
        Started::Declined(reason) => Some(reason),
    };
    let id = insert_running(loader_id, start)?;
    // The worker's commit sees to that, too.
    keep_given_ids();
    if let Some(reason) = declined {
        warn_of_plain_start(id, &reason);
    }
    Ok(id)
}

/// Records a start in the current transaction.
fn insert_running(loader_id: i64, start: i64) -> Result<i64, Error> {
    let start = TimestampWithTimeZone::try_from(start).ok();
    // The foreign key's check plans a query of loader.loader.
    let history = require(c"execution_history", pg_sys::RowExclusiveLock)?;
    let _restricted = Restricted::for_writing(&history);
    let id = hinting_at_unknown_loaders(|| {
        Spi::connect(|client| {
            INSERT_RUNNING
                .with(|insert| insert.run(client, Sight::Usual, &[loader_id.into(), start.into()]))
                .map(|rows| rows.get(0, 1))
        })
    })?;
    id.ok_or(Error::Suppressed)
}

/// Records how the execution `execution_id` ended, and returns its duration in whole seconds.
#[pg_extern(sql = false)]
fn record_execution_end(
    execution_id: Option<i64>,
    status: Option<&str>,
    record_count: Option<i64>,
    error_message: Option<&str>,
) -> Result<i32, ErrorReport> {
    let execution_id = execution_id.ok_or(Error::MissingArgument("execution_id"))?;
    let status = status.ok_or(Error::MissingArgument("status"))?;
    let outcome = Status::parse(status, &Status::OUTCOMES)
        .ok_or_else(|| Error::NoOutcome(status.to_owned()))?;
    if let Some(count) = record_count.filter(|&count| count < 0) {
        return Err(Error::NegativeRecordCount(count).into());
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
/// The row is read, and then updated only if it still is what was read: a session that ends it
/// meanwhile makes the update wait and then match nothing, and the second look says what happened.
fn end_execution(
    execution_id: i64,
    outcome: Status,
    record_count: Option<i32>,
    error_message: Option<&str>,
) -> Result<i32, Error> {
    let history = require(c"execution_history", pg_sys::RowExclusiveLock)?;
    let mut seen = None;
    loop {
        let state = execution_state(&history, execution_id)?;
        // When the server ended it, and where it has noted that, if the loader may still correct it.
        let derived = match state.end {
            // What this transaction itself has inserted, no other has started.
            None if outcome == Status::Success
                && !(state.own && state.inserted)
                && binding::is_open_elsewhere(execution_id) =>
            {
                return Err(Error::StillOpen(execution_id));
            }
            None => None,
            Some(end) => match binding::server_outcome(execution_id)? {
                Some((derived_end, noted_at)) if derived_end == end => Some(noted_at),
                _ => {
                    let end = Some(from_postgres(end));
                    return Err(Error::AlreadyEnded { execution_id, status: state.status, end });
                }
            },
        };
        // Only a trigger leaves a row as it was and yet not updated.
        let version = (state.tid.ip_posid, state.tid.ip_blkid.bi_hi, state.tid.ip_blkid.bi_lo);
        if seen.replace(version) == Some(version) {
            return Err(Error::Suppressed);
        }
        // Under these isolation levels an update that meets another session's would fail.
        if is_isolated() {
            let mode = pg_sys::LockTupleMode::LockTupleNoKeyExclusive;
            let wait = pg_sys::LockWaitPolicy::LockWaitBlock;
            if lookup::lock(&history, state.tid, mode, wait) != Locked::Yes {
                seen = None;
                continue;
            }
        }
        let end = end_of_execution(state.start, now());
        let seconds = duration_seconds(from_postgres(state.start), from_postgres(end));
        // The foreign key is checked again for a row that this transaction has inserted.
        let restricted = state.own.then(|| Restricted::for_writing(&history)).flatten();
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
            let updated = UPDATE_TO_OUTCOME
                .with(|update| update.run(client, Sight::Latest, &arguments))?
                .len();
            if let Some(noted_at) = derived.filter(|_| updated > 0) {
                let notes = require(c"server_outcome", pg_sys::RowExclusiveLock)?;
                let _silent = without_triggers(&notes);
                let arguments = [noted_at.into(), execution_id.into()];
                DELETE_DERIVED.with(|delete| delete.run(client, Sight::Latest, &arguments))?;
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
    let look = || {
        // SAFETY: by the contract the times are timestamptz, which are passed by value as a bigint is,
        // and the status is a varchar.
        find(history, &Key::id(execution_id), |row| unsafe {
            Some(State {
                tid: row.tid(),
                own: pg_sys::TransactionIdIsCurrentTransactionId(row.writer()),
                inserted: !row.is_updated(),
                start: row.get(column::EXECUTION_START.get())?,
                end: row.get(column::EXECUTION_END.get()),
                status: row.get(column::STATUS.get())?,
            })
        })
        .flatten()
    };
    look().ok_or(Error::UnknownExecution(execution_id))
}

/// Whether the transaction keeps one snapshot: REPEATABLE READ or SERIALIZABLE.
fn is_isolated() -> bool {
    // SAFETY: reads the state of the current transaction.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ.cast_signed() }
}

/// What `clock_timestamp()` returns: `now()` stands still within a transaction.
fn now() -> i64 {
    // SAFETY: reads the clock; no precondition.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Runs `statement` so that a foreign key violation in it carries a hint, and is otherwise as
/// PostgreSQL raised it, with the constraint's name.
fn hinting_at_unknown_loaders<R>(statement: impl FnOnce() -> R) -> R {
    unsafe extern "C-unwind" {
        // PostgreSQL's elog.h; pgrx binds it for its own use only.
        fn errhint(format: *const c_char, ...) -> c_int;
    }

    unsafe extern "C-unwind" fn add_hint(_argument: *mut c_void) {
        // SAFETY: PostgreSQL calls this from errfinish(), while an error is being reported, which
        // is where geterrcode() and errhint() may be called; the hint has no place for arguments.
        unsafe {
            if pg_sys::geterrcode() == PgSqlErrorCode::ERRCODE_FOREIGN_KEY_VIOLATION as i32 {
                errhint(
                    c"Pass the id of a row of loader.loader that is committed or that this transaction inserted."
                        .as_ptr(),
                );
            }
        }
    }

    /// Takes the callback off the stack, however the statement ends.
    struct Restore(*mut pg_sys::ErrorContextCallback);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the entry that was on top before ours belongs to a caller still running.
            unsafe { pg_sys::error_context_stack = self.0 };
        }
    }

    // SAFETY: a read of a pointer that PostgreSQL keeps valid on the backend's main thread.
    let previous = unsafe { pg_sys::error_context_stack };
    let mut callback =
        pg_sys::ErrorContextCallback { previous, callback: Some(add_hint), arg: ptr::null_mut() };
    let _restore = Restore(previous);
    // SAFETY: `callback` outlives its place on the stack: `_restore`, declared after it, is dropped
    // before it, on return and on unwinding alike.
    unsafe { pg_sys::error_context_stack = &raw mut callback };
    statement()
}
