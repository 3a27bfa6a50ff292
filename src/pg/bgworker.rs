//! What background workers have in common: signals, settings, and transactions that survive errors.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int};
use std::fmt;
use std::panic::AssertUnwindSafe;

use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

use super::compat::set_signal_handler;
use crate::model::error::Error;

thread_local! {
    /// Whether this process is a database's worker.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

pub fn set_is_worker() {
    IS_WORKER.set(true);
}

/// Whether this process is a database's worker.
pub fn is_worker() -> bool {
    IS_WORKER.get()
}

/// The error that rolled a transaction of a background worker back.
#[derive(Debug, Clone)]
pub struct XactError {
    pub sqlstate: PgSqlErrorCode,
    pub message: String,
}

impl XactError {
    pub fn new(sqlstate: PgSqlErrorCode, message: impl Into<String>) -> Self {
        Self { sqlstate, message: message.into() }
    }

    /// Whether another session's lock was the cause.
    pub fn is_lock(&self) -> bool {
        self.sqlstate == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
    }

    /// Whether the caller of a start had abandoned it.
    pub fn is_abandoned(&self) -> bool {
        self.sqlstate == PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK
    }
}

impl fmt::Display for XactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<CaughtError> for XactError {
    fn from(error: CaughtError) -> Self {
        match error {
            CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic { ereport: report, .. } => {
                Self::new(report.sql_error_code(), report.message())
            }
        }
    }
}

/// Has SIGTERM end this process at once while it connects to its database, which may wait for a
/// lock of a prepared transaction.
pub fn install_connect_signal_handlers() {
    unsafe extern "C-unwind" {
        // PostgreSQL's tcopprot.h. pgrx's own is no plain function.
        fn die(signal: c_int);
    }
    // SAFETY: runs first in a background worker, whose signals are blocked; the handler is that of
    // PostgreSQL's own processes, which only sets flags.
    unsafe { set_signal_handler(pg_sys::SIGTERM.cast_signed(), Some(die)) };
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
}

/// Has SIGTERM and SIGHUP wake this process, which then asks [`is_stop_requested`] and reloads its
/// settings.
pub fn install_signal_handlers() {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
}

/// Reloads the settings after SIGHUP.
pub fn reload_settings() {
    if BackgroundWorker::sighup_received() {
        // SAFETY: outside of a transaction of this process, as in PostgreSQL's own main loops.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
}

/// Whether SIGTERM was received since the last call.
pub fn is_stop_requested() -> bool {
    BackgroundWorker::sigterm_received()
}

/// Sets a setting for the whole process, with precedence over the configuration, the database and
/// the role; one that this version of PostgreSQL does not have is skipped.
pub fn set(name: &CStr, value: &CStr) {
    // SAFETY: both are C strings that PostgreSQL copies.
    unsafe {
        if pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() {
            return;
        }
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Runs `body` in a transaction. Any error in it rolls it back, and is returned.
pub fn transaction<R>(body: impl FnOnce() -> Result<R, Error>) -> Result<R, XactError> {
    // SAFETY: called outside of a transaction, which it begins and in every case ends.
    PgTryBuilder::new(AssertUnwindSafe(|| unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        match body() {
            Ok(result) => {
                pg_sys::PopActiveSnapshot();
                pg_sys::CommitTransactionCommand();
                Ok(result)
            }
            Err(error) => {
                let sqlstate = error.sqlstate();
                let message = ErrorReport::from(error).message().to_owned();
                pg_sys::AbortCurrentTransaction();
                Err(XactError { sqlstate, message })
            }
        }
    }))
    .catch_others(|error| {
        // SAFETY: in the transaction that the error interrupted.
        unsafe { pg_sys::AbortCurrentTransaction() };
        Err(XactError::from(error))
    })
    .execute()
}

/// The LSN at which the last commit of this process ends.
pub fn last_commit_lsn() -> u64 {
    // SAFETY: a variable of the process's own.
    unsafe { pg_sys::XactLastCommitEnd }
}

pub fn log(message: &str) {
    pgrx::log!("{message}");
}

/// Shows in pg_stat_activity what this process does; `None` for idle.
pub fn report_activity(what: Option<&str>) {
    use pg_sys::BackendState::{STATE_IDLE, STATE_RUNNING};
    let text = what.and_then(|what| CString::new(what).ok());
    // SAFETY: the text is copied.
    unsafe {
        match text {
            Some(text) => pg_sys::pgstat_report_activity(STATE_RUNNING, text.as_ptr()),
            None => pg_sys::pgstat_report_activity(STATE_IDLE, std::ptr::null()),
        }
    }
}
