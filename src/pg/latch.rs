//! Latches: how processes wait, and how they wake each other.

use std::ffi::c_long;
use std::time::Duration;

use pgrx::pg_sys;

/// The latch of a process, which any process can set.
#[derive(Clone, Copy)]
pub struct ProcLatch(*mut pg_sys::Latch);

impl ProcLatch {
    /// The latch of the current process; `None` in one without an entry in the array of processes.
    pub fn mine() -> Option<Self> {
        // SAFETY: a read of the process's own global, and the address of a field of shared memory.
        unsafe {
            let process = pg_sys::MyProc;
            (!process.is_null()).then(|| Self(&raw mut (*process).procLatch))
        }
    }

    pub fn set(self) {
        // SAFETY: the latch is a field of the array of processes, which lives as long as shared
        // memory. If the entry belongs to another process by now, that one wakes up spuriously,
        // which PostgreSQL allows for.
        unsafe { pg_sys::SetLatch(self.0) };
    }
}

/// Sleeps until another process sets this one's latch, or for `time` if there is one. The process
/// ends if the postmaster has died.
fn wait_for_latch(time: Option<Duration>) {
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
}

/// Sleeps, in a client session; an interrupt ends it with its error.
pub fn wait_in_session(time: Duration) {
    wait_for_latch(Some(time.min(Duration::from_secs(1))));
    pgrx::check_for_interrupts!();
}

/// Sleeps, in a background worker that is outside of a transaction.
pub fn wait_in_worker(time: Option<Duration>) {
    wait_for_latch(time);
    check_for_interrupts();
}

/// Processes interrupts in a background worker that is outside of a transaction: there is no query
/// to cancel.
pub fn check_for_interrupts() {
    // SAFETY: a flag of the process's own, which a signal sets.
    unsafe { pg_sys::QueryCancelPending = 0 };
    pgrx::check_for_interrupts!();
}
