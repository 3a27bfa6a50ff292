//! What preloading adds: starts that no rollback undoes, and outcomes that say what became of the
//! transaction.
//!
//! A start is handed to a background worker ([`worker`], one a database, kept by the [`launcher`])
//! through [`shared`] memory, which commits the RUNNING row together with a binding: the execution's id
//! and the caller's transaction id. Truth is that binding and what PostgreSQL says became of the
//! transaction, nothing else; what backends tell the worker when their transactions end
//! ([`transaction`]) only makes it quick, and carries the error's text ([`last_error`]).

mod background;
pub mod binding;
mod emitter;
mod gathered;
mod last_error;
mod launcher;
mod ledger;
mod loader_row;
mod prepared_event;
mod retention;
mod shared;
mod start;
mod status;
mod transaction;
mod utility;
mod worker;

use std::ffi::CStr;

use pgrx::pg_sys;

pub use start::{Reason, Started, start};
pub use transaction::gather;

/// The extension's name.
const EXTENSION: &CStr = c"loader_history";

/// Whether the library is being loaded at server start, by a server that runs background workers.
pub fn is_preloading() -> bool {
    // SAFETY: reads of process state, valid at any time.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress && !pg_sys::IsBinaryUpgrade }
}

/// Reserves the shared memory and installs hooks, callbacks and the launcher. Called once, by the
/// postmaster, from which all other processes inherit them.
pub fn install() {
    shared::reserve();
    last_error::install();
    transaction::install();
    utility::install();
    launcher::register();
}
