//! Processes that others wake.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use pgrx::pg_sys;

/// A process that can be woken.
pub struct Process(AtomicU32);

impl Process {
    /// Makes it the current process.
    pub fn set_to_me(&self) {
        self.0.store(my_process(), Release);
    }

    /// Makes it nobody.
    pub fn clear(&self) {
        self.0.store(0, Release);
    }

    /// Wakes the process, if there is one. Cannot fail.
    pub fn wake(&self) {
        let number = self.0.load(Acquire);
        if number > 0 {
            // SAFETY: the number was made by my_process(), so it lies within allProcs, whose entries
            // live as long as shared memory. Where the entry belongs to another process by now, that
            // one wakes for nothing, which PostgreSQL expects of latches.
            unsafe {
                let process = (*pg_sys::ProcGlobal).allProcs.add(number as usize - 1);
                pg_sys::SetLatch(&raw mut (*process).procLatch);
            }
        }
    }
}

/// The database that the current process is connected to.
pub fn my_database() -> pg_sys::Oid {
    // SAFETY: a read of the process's own global.
    unsafe { pg_sys::MyDatabaseId }
}

/// The current process as one more than its place among all, so that 0 is nobody.
fn my_process() -> u32 {
    // SAFETY: MyProc is an entry of allProcs wherever a process has attached to shared memory.
    unsafe {
        if pg_sys::MyProc.is_null() {
            return 0;
        }
        let place = pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs);
        u32::try_from(place + 1).unwrap_or_default()
    }
}
