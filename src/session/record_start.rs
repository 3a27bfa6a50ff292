//! `loader.record_execution_start`.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use pgrx::pg_sys::{self, panic::ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode, function_name, pg_extern};

use super::autonomous_start::{self, Started};
use crate::history::starts;
use crate::history::tables::EXECUTION_HISTORY;
use crate::model::error::Error;
use crate::model::fallback::Fallback;
use crate::pg::relation::require;
use crate::pg::security_context::SecurityContext;
use crate::pg::xact::{clock_timestamp, require_writable};

/// Records that loader `loader_id` starts an execution, and returns the execution's id.
#[pg_extern(sql = false)]
fn record_execution_start(loader_id: Option<i64>) -> Result<i64, ErrorReport> {
    let loader_id = loader_id
        .ok_or(Error::MissingArgument("loader_id", "Pass the id of a row of loader.loader."))?;
    require_writable()?;
    let time = clock_timestamp();
    let fallback = match autonomous_start::start(loader_id, time)? {
        Started::Autonomous(id) => return Ok(id),
        Started::Transactional => None,
        Started::Fallback(fallback) => Some(fallback),
    };
    let id = start_in_transaction(loader_id, time)?;
    if let Some(fallback) = fallback {
        warn_of_fallback(id, &fallback);
    }
    Ok(id)
}

fn start_in_transaction(loader_id: i64, time: i64) -> Result<i64, Error> {
    // The foreign key's check plans a query of loader.loader.
    let history = require(EXECUTION_HISTORY, pg_sys::RowExclusiveLock)?;
    let _restricted = SecurityContext::restricted_for_writing(&history);
    let id = starts::next_id(true)?;
    with_hint_for_unknown_loaders(|| starts::insert_one(id, loader_id, time))?;
    Ok(id)
}

/// Warns the caller that the start of an execution is in its own transaction, and why.
fn warn_of_fallback(execution_id: i64, fallback: &Fallback) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        format!("the start of execution {execution_id} was recorded in this transaction"),
        function_name!(),
    )
    .set_detail(format!(
        "{fallback} Other sessions see it when this transaction commits, and a rollback removes it."
    ))
    .set_hint("SELECT * FROM loader.recorder_status() shows the state of the background worker.")
    .report(PgLogLevel::WARNING);
}

/// Runs `statement` so that a foreign key violation in it carries a hint, and is otherwise as
/// PostgreSQL raised it, with the constraint's name.
fn with_hint_for_unknown_loaders<R>(statement: impl FnOnce() -> R) -> R {
    unsafe extern "C-unwind" {
        // PostgreSQL's elog.h; pgrx binds it for its own use only.
        fn errhint(format: *const c_char, ...) -> c_int;
    }

    extern "C-unwind" fn add_hint(_argument: *mut c_void) {
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

    let mut callback = pg_sys::ErrorContextCallback {
        previous: ptr::null_mut(),
        callback: Some(add_hint),
        arg: ptr::null_mut(),
    };
    // SAFETY: `callback` outlives its place on the stack: `_restore`, declared after it, is dropped
    // before it, on return and on unwinding alike.
    unsafe {
        callback.previous = pg_sys::error_context_stack;
        pg_sys::error_context_stack = &raw mut callback;
    }
    let _restore = Restore(callback.previous);
    statement()
}
