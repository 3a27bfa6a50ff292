//! `loader_history`: a PostgreSQL extension that records every execution of a data loader.
//!
//! The SQL that users see is in `sql/*.sql`. The layers of this library import downwards only:
//! `session` and `worker`, what runs in client sessions and in background workers; `history`, the
//! statements of both; `shmem`, the memory that they share; `pg`, wrappers of PostgreSQL; and
//! `model`, which depends on none of these.

mod gucs;
mod history;
mod model;
mod pg;
mod schema;
mod session;
mod shmem;
mod worker;

pgrx::pg_module_magic!(name, version);

/// Called by PostgreSQL when it loads the library.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: reads of process state, valid at any time.
    let preloaded = unsafe {
        pgrx::pg_sys::process_shared_preload_libraries_in_progress && !pgrx::pg_sys::IsBinaryUpgrade
    };
    gucs::define(preloaded);
    if preloaded {
        shmem::install();
        session::install();
        worker::launcher::register();
    }
}
