//! Every setting of the extension, described.

use std::num::NonZeroI32;
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};

/// `loader_history.notify`: whether changes of the history emit NOTIFY.
pub static NOTIFY: GucSetting<bool> = GucSetting::<bool>::new(true);

/// `loader_history.notify_error_message`: whether events carry error messages.
pub static NOTIFY_ERROR_MESSAGE: GucSetting<bool> = GucSetting::<bool>::new(false);

/// `loader_history.autonomous_start`: whether starts are recorded through the worker.
pub static AUTONOMOUS_START: GucSetting<bool> = GucSetting::<bool>::new(true);

static WORKER_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static QUEUE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1_024);
static RETENTION: GucSetting<i32> = GucSetting::<i32>::new(0);

/// `loader_history.worker_timeout`: how long a start waits for the worker.
pub fn worker_timeout() -> Duration {
    Duration::from_millis(WORKER_TIMEOUT.get().unsigned_abs().into())
}

/// `loader_history.queue_size`: how many starts, how many messages and about how many events wait
/// for the workers at most.
pub fn queue_size() -> usize {
    usize::try_from(QUEUE_SIZE.get()).unwrap_or_default()
}

/// `loader_history.retention`, in minutes: how long after its end an execution is kept; `None` to
/// keep all.
pub fn retention() -> Option<NonZeroI32> {
    NonZeroI32::new(RETENTION.get())
}

/// Defines the settings. Called once, when the library is loaded; `preloaded` says whether at
/// server start.
pub fn define(preloaded: bool) {
    GucRegistry::define_bool_guc(
        c"loader_history.notify",
        c"Emits a NOTIFY on channel loader_execution when an execution starts or ends.",
        c"Where the library is not preloaded, turn it off in transactions that use PREPARE TRANSACTION, which PostgreSQL refuses after a NOTIFY.",
        &NOTIFY,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"loader_history.notify_error_message",
        c"Includes error messages in the events on channel loader_execution.",
        c"Every role that can connect to the database can LISTEN, and error messages may quote data.",
        &NOTIFY_ERROR_MESSAGE,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"loader_history.autonomous_start",
        c"Records a start in an autonomous transaction: others see it at once, and no rollback undoes it.",
        c"Has an effect only if shared_preload_libraries contains loader_history.",
        &AUTONOMOUS_START,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"loader_history.worker_timeout",
        c"How long a start waits for the background worker before it is recorded in the caller's own transaction.",
        c"",
        &WORKER_TIMEOUT,
        1,
        600_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    // The worker uses the value of its database; a session's own value has no effect.
    GucRegistry::define_int_guc(
        c"loader_history.retention",
        c"How long after its end an execution is kept; 0 keeps everything.",
        c"Set it in postgresql.conf, with ALTER SYSTEM or with ALTER DATABASE. Has an effect only where shared_preload_libraries names loader_history. RUNNING executions stay, and each loader's newest execution, newest SUCCESS and newest FAILED.",
        &RETENTION,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MIN,
    );
    if preloaded {
        GucRegistry::define_int_guc(
            c"loader_history.queue_size",
            c"How many starts, and about how many events, can wait for the background workers at the same time.",
            c"A start that finds no room is recorded in the caller's own transaction, and a transaction that finds none for its events notifies by itself.",
            &QUEUE_SIZE,
            16,
            65_536,
            GucContext::Postmaster,
            GucFlags::default(),
        );
    }
    // SAFETY: called on the backend's main thread while the library loads; the name is a static C
    // string that PostgreSQL copies.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"loader_history".as_ptr()) };
}
