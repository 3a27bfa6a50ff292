//! `loader.record_execution_start` and `loader.record_execution_end`.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::{PgSqlErrorCode, Spi, pg_extern};

use crate::error::{Error, warn_of_saturated_count};
use crate::execution::{Status, duration_seconds};
use crate::statement::{KeptStatement, require_writable};
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
    static SELECT_STATE: KeptStatement = const { KeptStatement::new(
        c"SELECT execution_start, status::pg_catalog.text, execution_end \
          FROM loader.execution_history WHERE id OPERATOR(pg_catalog.=) $1",
        &[BuiltinOid::INT8OID],
    ) };
    static UPDATE_TO_OUTCOME: KeptStatement = const { KeptStatement::new(
        c"UPDATE loader.execution_history \
          SET execution_end = $3, status = $4, record_count = COALESCE($5, record_count), \
              error_message = COALESCE($6, error_message), duration_seconds = $7 \
          WHERE id OPERATOR(pg_catalog.=) $1 AND execution_start OPERATOR(pg_catalog.=) $2 \
            AND execution_end IS NULL \
          RETURNING id",
        &[
            BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID, BuiltinOid::TIMESTAMPTZOID,
            BuiltinOid::TEXTOID, BuiltinOid::INT4OID, BuiltinOid::TEXTOID, BuiltinOid::INT4OID,
        ],
    ) };
}

/// Records that loader `loader_id` starts an execution, and returns the execution's id.
#[pg_extern(sql = false)]
fn record_execution_start(loader_id: Option<i64>) -> Result<i64, ErrorReport> {
    let loader_id = loader_id.ok_or(Error::MissingArgument("loader_id"))?;
    require_writable()?;
    let start = TimestampWithTimeZone::try_from(now()).ok();
    let id = hinting_at_unknown_loaders(|| {
        Spi::connect(|client| {
            let rows = INSERT_RUNNING
                .with(|insert| insert.run(client, &[loader_id.into(), start.into()]))?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_one() }
        })
    })
    .map_err(Error::Spi)?;
    Ok(id.ok_or(Error::Suppressed)?)
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

/// Ends a running execution.
///
/// The row is read, and then updated only if it still is what was read: a session that ends it
/// meanwhile makes the update wait and then match nothing, and the second look says what happened.
fn end_execution(
    execution_id: i64,
    outcome: Status,
    record_count: Option<i32>,
    error_message: Option<&str>,
) -> Result<i32, Error> {
    let mut seen = None;
    loop {
        let (start, status, end) = execution_state(execution_id)?;
        if let Some(end) = end {
            let end = Some(from_postgres(end));
            return Err(Error::AlreadyEnded { execution_id, status, end });
        }
        // Only a trigger leaves a row as it was and yet not updated.
        if seen.replace(start) == Some(start) {
            return Err(Error::Suppressed);
        }
        let end = end_of_execution(start, now());
        let seconds = duration_seconds(from_postgres(start), from_postgres(end));
        let updated = Spi::connect(|client| {
            UPDATE_TO_OUTCOME.with(|update| {
                let arguments = [
                    execution_id.into(),
                    TimestampWithTimeZone::try_from(start).ok().into(),
                    TimestampWithTimeZone::try_from(end).ok().into(),
                    outcome.as_str().into(),
                    record_count.into(),
                    error_message.into(),
                    seconds.into(),
                ];
                update.run(client, &arguments).map(|rows| !rows.is_empty())
            })
        })?;
        if updated {
            return Ok(seconds);
        }
    }
}

/// When an execution started, its status, and when it ended.
fn execution_state(execution_id: i64) -> Result<(i64, String, Option<i64>), Error> {
    Spi::connect(|client| {
        let rows = SELECT_STATE.with(|select| select.run(client, &[execution_id.into()]))?;
        if rows.is_empty() {
            return Err(Error::UnknownExecution(execution_id));
        }
        let (start, status, end) =
            rows.first().get_three::<TimestampWithTimeZone, String, TimestampWithTimeZone>()?;
        match (start, status) {
            (Some(start), Some(status)) => {
                Ok((start.into_inner(), status, end.map(TimestampWithTimeZone::into_inner)))
            }
            _ => Err(Error::UnknownExecution(execution_id)),
        }
    })
}

/// What `clock_timestamp()` returns: `now()` stands still within a transaction.
fn now() -> pg_sys::TimestampTz {
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
        // is where geterrcode() and errhint() may be called.
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
