//! Every setting of the extension, described.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};

/// `loader_history.notify`: whether changes of the history emit NOTIFY.
pub static NOTIFY: GucSetting<bool> = GucSetting::<bool>::new(true);

/// Defines the settings. Called once, when the library is loaded.
pub fn define() {
    GucRegistry::define_bool_guc(
        c"loader_history.notify",
        c"Emits a NOTIFY on channel loader_execution when an execution starts or ends.",
        c"Turn it off in transactions that use PREPARE TRANSACTION, which PostgreSQL refuses after a NOTIFY.",
        &NOTIFY,
        GucContext::Userset,
        GucFlags::default(),
    );
    // SAFETY: called on the backend's main thread while the library loads; the name is a static C
    // string that PostgreSQL copies.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"loader_history".as_ptr()) };
}
