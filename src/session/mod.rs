//! What runs in client sessions.

mod autonomous_start;
mod error_capture;
mod get_history;
mod pending_notify;
mod record_end;
mod record_start;
mod status;
mod triggers;
mod utility_hook;
mod xact_callbacks;

/// Installs the hooks and callbacks. Called once, by the postmaster: all other processes inherit
/// them.
pub fn install() {
    error_capture::install();
    xact_callbacks::install();
    utility_hook::install();
}
