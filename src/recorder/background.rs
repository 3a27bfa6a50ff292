//! What the launcher and the workers have in common: signals, sleep, and transactions that survive
//! errors.

use std::ffi::{CStr, CString, c_int, c_long};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

use crate::error::Error;
use crate::version::set_signal_handler;

/// Why a transaction of a background process was rolled back.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// The error's SQLSTATE.
    pub sqlstate: PgSqlErrorCode,
    /// What it says.
    pub message: String,
}

impl Trouble {
    /// Whether the caller of a start had given it up.
    pub fn is_abandoned(&self) -> bool {
        self.sqlstate == PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK
    }

    /// Whether another session's lock did it.
    pub fn is_lock(&self) -> bool {
        self.sqlstate == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<CaughtError> for Trouble {
    fn from(error: CaughtError) -> Self {
        match error {
            CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic { ereport: report, .. } => {
                Self { sqlstate: report.sql_error_code(), message: report.message().to_owned() }
            }
        }
    }
}

/// Has SIGTERM end this process, and SIGHUP wake it. For while it connects to its database: that may wait
/// for another session's lock, as long as a prepared transaction is open.
pub fn end_by_sigterm() {
    unsafe extern "C-unwind" {
        // PostgreSQL's tcopprot.h. pgrx's own is no plain function.
        fn die(signal: c_int);
    }
    // SAFETY: runs first in a background process, whose signals are blocked; the handler is that of
    // PostgreSQL's own processes, which only sets flags that its waits look at.
    unsafe { set_signal_handler(pg_sys::SIGTERM.cast_signed(), Some(die)) };
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
}

/// Has signals wake this process: SIGTERM to stop it, SIGHUP to have it read the settings again.
pub fn listen_to_signals() {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
}

/// Reads the settings again where a signal asked for it.
pub fn reload_settings() {
    if BackgroundWorker::sighup_received() {
        // SAFETY: outside of a transaction of this process, as in PostgreSQL's own main loops.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
}

/// Whether a signal has asked this process to stop. Says so once.
pub fn is_to_stop() -> bool {
    BackgroundWorker::sigterm_received()
}

/// Sleeps until somebody wakes this process, or for `time`, where there is one. Ends the process when
/// the postmaster has died.
pub fn sleep(time: Option<Duration>) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    let mut milliseconds = -1;
    if let Some(time) = time {
        events |= pg_sys::WL_TIMEOUT;
        milliseconds = c_long::try_from(time.as_millis()).unwrap_or(c_long::MAX).max(1);
    }
    // SAFETY: the latch is this process's own.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events.cast_signed(),
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check_for_interrupts();
}

/// Does what others ask of every process of the server. Called outside of transactions, where there is
/// no query that could be canceled.
pub fn check_for_interrupts() {
    // SAFETY: a flag of the process's own, which a signal sets.
    unsafe { pg_sys::QueryCancelPending = 0 };
    pgrx::check_for_interrupts!();
}

/// Sets a setting, for the whole process, against what the configuration, the database or the role say;
/// one that this version of PostgreSQL does not have is left out.
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

/// Sets a setting until the current transaction ends.
pub fn set_local(name: &CStr, value: &CStr) {
    // SAFETY: as set(); called in a transaction.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// Runs `body` in a transaction. Whatever goes wrong in it rolls it back, and is returned.
///
/// # Errors
/// What went wrong.
pub fn transaction<R>(body: impl FnOnce() -> Result<R, Error>) -> Result<R, Trouble> {
    // SAFETY: called outside of a transaction, which it begins and, whatever happens, ends.
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
                Err(Trouble { sqlstate, message })
            }
        }
    }))
    .catch_others(|error| {
        // SAFETY: in the transaction that the error interrupted.
        unsafe { pg_sys::AbortCurrentTransaction() };
        Err(Trouble::from(error))
    })
    .execute()
}

/// Writes a message into the server's log.
pub fn log(message: &str) {
    pgrx::log!("{message}");
}

/// Tells pg_stat_activity what this process does; nothing says that it is idle.
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
