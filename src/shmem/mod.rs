//! The shared memory through which backends, workers and the launcher communicate. Each file is one
//! structure with one LWLock. README.md draws the state machines.

pub mod event_queue;
pub mod start_queue;
mod text;
pub mod workers;
pub mod xact_reports;

pub use text::Text;

use pgrx::{pg_guard, pg_sys};

use crate::gucs;

static mut NEXT_REQUEST_HOOK: pg_sys::shmem_request_hook_type = None;
static mut NEXT_STARTUP_HOOK: pg_sys::shmem_startup_hook_type = None;

/// Has the postmaster request and initialize the memory. Called once, while it preloads libraries.
pub fn install() {
    // SAFETY: runs in the postmaster, which has one thread, while it preloads libraries.
    unsafe {
        NEXT_REQUEST_HOOK = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        NEXT_STARTUP_HOOK = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(initialize);
    }
}

/// How many databases can have a worker: the server has no more background workers.
fn databases() -> usize {
    // SAFETY: a read of a setting that is fixed once the libraries are preloaded.
    usize::try_from(unsafe { pg_sys::max_worker_processes }).unwrap_or_default()
}

#[pg_guard]
extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster when memory may be requested; the hook was set before by
    // another library.
    unsafe {
        if let Some(next) = NEXT_REQUEST_HOOK {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| next());
        }
    }
    workers::request(databases());
    start_queue::request(gucs::queue_size());
    xact_reports::request(gucs::queue_size());
    event_queue::request(gucs::queue_size());
}

#[pg_guard]
extern "C-unwind" fn initialize() {
    // SAFETY: called by the postmaster when shared memory is new; the hook was set before by
    // another library.
    unsafe {
        if let Some(next) = NEXT_STARTUP_HOOK {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| next());
        }
    }
    workers::initialize(databases());
    start_queue::initialize(gucs::queue_size());
    xact_reports::initialize(gucs::queue_size());
    event_queue::initialize(gucs::queue_size());
}
