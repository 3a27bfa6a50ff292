//! The background workers: the launcher, and one worker in each database that has the extension.
//! README.md describes the processes, and what holds if one ends at any point.

mod event_emitter;
pub mod launcher;
mod orphaned_starts;
mod report_reader;
mod retention;
mod start_writer;
mod xact_monitor;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::mem::take;
use std::time::{Duration, Instant};

use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

use self::event_emitter::EventEmitter;
use self::orphaned_starts::{OrphanedStart, OrphanedStarts};
use self::report_reader::ReportReader;
use self::retention::Retention;
use self::start_writer::StartWriter;
use self::xact_monitor::{WatchedTransactions, XactMonitor};
use crate::history::id_sequence;
use crate::history::tables::WATCHED_TRANSACTION;
use crate::model::EXTENSION;
use crate::model::fallback::Reason;
use crate::pg::bgworker::{self, XactError, transaction};
use crate::pg::latch::{check_for_interrupts, wait_in_worker};
use crate::pg::relation::trusted;
use crate::shmem::workers::{self, WorkerBlock, WorkerState};
use crate::shmem::{event_queue, start_queue, xact_reports};

/// How often the worker checks whether the extension exists, besides when a command drops it; and
/// after an error.
const EXTENSION_INTERVAL: Duration = Duration::from_secs(60);
const EXTENSION_RETRY: Duration = Duration::from_secs(1);

/// How often an error with the same message is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// When the worker retries after a lock of another session.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// How long starts wait for a worker that cannot read its tables because of another session's lock:
/// CREATE EXTENSION holds its locks until shortly after its commit.
const STARTUP_TIMEOUT: Duration = Duration::from_millis(250);

/// Settings of the worker, which override the configuration, the database and the role. With
/// session_replication_role = replica foreign keys are not checked: the caller's lock stands for
/// the loader's key.
const SETTINGS: [(&CStr, &CStr); 13] = [
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"session_replication_role", c"replica"),
    (c"synchronous_commit", c"local"),
    (c"lock_timeout", c"50ms"),
    (c"statement_timeout", c"0"),
    (c"transaction_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    (c"row_security", c"off"),
    (c"exit_on_error", c"off"),
    (c"jit", c"off"),
];

thread_local! {
    /// The worker's state once this process has ended.
    static STATE_AT_EXIT: Cell<WorkerState> = const { Cell::new(WorkerState::Crashed) };
    /// Whether the launcher is to start another worker at once.
    static RESTART: Cell<bool> = const { Cell::new(false) };
}

/// A worker's entry point, called by PostgreSQL with the OID of its database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn loader_history_worker_main(argument: pg_sys::Datum) {
    bgworker::install_connect_signal_handlers();
    let database = pg_sys::Oid::from(u32::try_from(argument.value()).unwrap_or_default());
    if !workers::enter(database) {
        return;
    }
    // SAFETY: the callback is static and takes the OID by value; connecting is the first thing that
    // a background worker does.
    unsafe {
        pg_sys::before_shmem_exit(Some(at_exit), argument);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    bgworker::install_signal_handlers();
    for (name, value) in SETTINGS {
        bgworker::set(name, value);
    }
    bgworker::set_is_worker();
    let ended =
        Worker::start_up(database).and_then(|worker| worker.map_or(Ok(Exit::Restart), Worker::run));
    STATE_AT_EXIT.set(match ended {
        Ok(Exit::NoExtension) => WorkerState::Exited,
        Ok(Exit::Restart) => {
            RESTART.set(true);
            WorkerState::Crashed
        }
        Err(error) => {
            bgworker::log(&format!("loader_history worker: {error}"));
            workers::set_last_error(database, &error.message);
            WorkerState::Crashed
        }
    });
}

#[pg_guard]
extern "C-unwind" fn at_exit(_code: i32, argument: pg_sys::Datum) {
    let database = pg_sys::Oid::from(u32::try_from(argument.value()).unwrap_or_default());
    workers::exit(database, STATE_AT_EXIT.get());
    if RESTART.get() {
        workers::announce(database);
    }
}

/// Why a worker ends.
enum Exit {
    /// The database does not have the extension.
    NoExtension,
    /// It was asked to, and the launcher starts another.
    Restart,
}

/// What the parts of the worker share.
struct Context {
    database: pg_sys::Oid,
    /// The rows of `loader_history.watched_transaction`, which only this process writes.
    watched: WatchedTransactions,
    /// Starts that may have been committed after the caller's lock on the loader's row was
    /// released.
    orphans: VecDeque<OrphanedStart>,
    /// The worker's own events, oldest first.
    events: VecDeque<String>,
    logged: Option<(String, Instant)>,
}

/// A part of the worker. Each works in small portions, since starts wait meanwhile.
trait Part {
    /// When there is work for which no process wakes the worker.
    fn due(&self, _context: &Context) -> Option<Instant> {
        None
    }

    /// Does a portion of the work that is due; true if there was any, or if a wait for a lock may
    /// have consumed a wake-up.
    fn run(&mut self, context: &mut Context) -> bool;
}

impl Context {
    /// Keeps an error for `recorder_status`, and logs it at most once a minute.
    fn report(&mut self, error: &XactError) {
        workers::set_last_error(self.database, &error.message);
        let now = Instant::now();
        let known = self.logged.as_ref().is_some_and(|(message, at)| {
            *message == error.message && now.duration_since(*at) < LOG_INTERVAL
        });
        if !known {
            bgworker::log(&format!("loader_history worker: {error}"));
            self.logged = Some((error.message.clone(), now));
        }
    }

    /// The same, unless another session's lock is the cause: the work is then retried.
    fn report_unless_locked(&mut self, error: &XactError) {
        if !error.is_lock() {
            self.report(error);
        }
    }
}

struct Worker {
    context: Context,
    /// The extension; invalid if the database does not have it.
    extension: pg_sys::Oid,
    next_check: Instant,
    starts: StartWriter,
    orphans: OrphanedStarts,
    reports: ReportReader,
    monitor: XactMonitor,
    emitter: EventEmitter,
    retention: Retention,
}

impl Worker {
    /// A worker that has read its tables; `None` if it is to exit before. While another session's
    /// lock prevents that, as a migration's may, it declines starts.
    fn start_up(database: pg_sys::Oid) -> Result<Option<Self>, XactError> {
        let deadline = Instant::now() + STARTUP_TIMEOUT;
        loop {
            match Self::new(database) {
                Err(error) if error.is_lock() => {}
                result => return result.map(Some),
            }
            if bgworker::is_stop_requested() || workers::is_closed(database) {
                return Ok(None);
            }
            if Instant::now() >= deadline {
                // As Running: the launcher limits the number of workers in state Starting.
                workers::set_running(database);
                start_queue::decline_queued(database, Reason::TableLocked);
            }
            wait_in_worker(Some(LOCK_RETRY));
        }
    }

    fn new(database: pg_sys::Oid) -> Result<Self, XactError> {
        let now = Instant::now();
        let mut worker = Self {
            context: Context {
                database,
                watched: WatchedTransactions::default(),
                orphans: VecDeque::new(),
                events: VecDeque::new(),
                logged: None,
            },
            extension: extension()?,
            next_check: now + EXTENSION_INTERVAL,
            starts: StartWriter,
            orphans: OrphanedStarts::new(),
            reports: ReportReader,
            monitor: XactMonitor::new(),
            emitter: EventEmitter::new(database),
            retention: Retention::new(database)?,
        };
        if worker.extension != pg_sys::InvalidOid {
            worker.begin_work()?;
        }
        Ok(worker)
    }

    /// Begins the work, in a database that has the extension.
    fn begin_work(&mut self) -> Result<(), XactError> {
        // Before the first id is taken.
        transaction(id_sequence::skip_lost_ids)?;
        self.monitor.load(&mut self.context)?;
        self.starts.take_over(&mut self.context)?;
        // Some may have been prepared before there was a worker.
        workers::block(self.context.database, |worker| worker.prepared_changes = true);
        workers::set_running(self.context.database);
        Ok(())
    }

    fn parts(&mut self) -> ([&mut dyn Part; 6], &mut Context) {
        // Starts first: a caller waits for each.
        let parts: [&mut dyn Part; 6] = [
            &mut self.starts,
            &mut self.orphans,
            &mut self.reports,
            &mut self.monitor,
            &mut self.emitter,
            &mut self.retention,
        ];
        (parts, &mut self.context)
    }

    fn run(mut self) -> Result<Exit, XactError> {
        let database = self.context.database;
        loop {
            if bgworker::is_stop_requested() || workers::is_closed(database) {
                self.emitter.finish(&mut self.context);
                return Ok(Exit::Restart);
            }
            bgworker::reload_settings();
            if workers::block(database, |worker| take(&mut worker.check_extension))
                || self.next_check <= Instant::now()
            {
                self.check_extension();
            }
            if self.extension == pg_sys::InvalidOid {
                xact_reports::with(|reports| reports.take(|oid| oid == database));
                // Their table does not exist.
                workers::block(database, |worker| worker.prepared_changes = false);
                self.emitter.finish(&mut self.context);
                return Ok(Exit::NoExtension);
            }
            if self.retention.is_outdated && self.can_be_replaced() {
                self.emitter.finish(&mut self.context);
                return Ok(Exit::Restart);
            }
            workers::block(database, |worker| worker.is_late = false);
            let (parts, context) = self.parts();
            let busy = parts.into_iter().fold(false, |busy, part| part.run(context) | busy);
            check_for_interrupts();
            if busy
                || start_queue::with(|queue| queue.is_any(database))
                || xact_reports::with(|reports| reports.is_any(database))
            {
                continue;
            }
            // For autovacuum.
            // SAFETY: called outside of a transaction, in a process that is connected to a database.
            unsafe { pg_sys::pgstat_report_stat(self.context.watched.is_empty()) };
            bgworker::report_activity(None);
            let next_check = self.next_check;
            let (parts, context) = self.parts();
            let due = parts.into_iter().filter_map(|part| part.due(context));
            let next = due.fold(next_check, Instant::min);
            wait_in_worker(Some(next.saturating_duration_since(Instant::now())));
        }
    }

    /// Checks whether the extension exists, and was not created again.
    fn check_extension(&mut self) {
        self.next_check = Instant::now() + EXTENSION_INTERVAL;
        let database = self.context.database;
        let found = extension().and_then(|extension| {
            let is_new = extension != self.extension
                || !workers::block(database, |worker| worker.is_running());
            if is_new && extension != pg_sys::InvalidOid {
                self.begin_work()?;
            }
            Ok(extension)
        });
        match found {
            Ok(extension) => self.extension = extension,
            Err(error) => {
                self.context.report_unless_locked(&error);
                self.next_check = Instant::now() + EXTENSION_RETRY;
                if self.extension == pg_sys::InvalidOid {
                    // This worker exits: another one is to check.
                    workers::extension_changed(database);
                }
                return;
            }
        }
        if let Err(error) = self.retention.check_setting(database) {
            self.context.report(&error);
        }
    }

    /// Whether nothing would be lost if another worker took over; error texts may be.
    fn can_be_replaced(&self) -> bool {
        !self.monitor.has_failures() && !self.context.orphans.iter().any(|one| one.is_unanswered)
    }
}

/// The extension, if its SQL is of a version that this worker serves; else the invalid OID.
fn extension() -> Result<pg_sys::Oid, XactError> {
    transaction(|| {
        // SAFETY: a catalog lookup, in a transaction. The session that changes the extension
        // announces that before it sends the invalidation message.
        let oid = unsafe {
            pg_sys::InvalidateSystemCaches();
            pg_sys::get_extension_oid(EXTENSION.as_ptr(), true)
        };
        // If the extension was dropped, other roles may have created relations of the same names.
        let is_current = oid != pg_sys::InvalidOid && trusted(WATCHED_TRANSACTION)?.is_some();
        Ok(if is_current { oid } else { pg_sys::InvalidOid })
    })
}

/// An error about events that are dropped.
fn events_dropped(message: String) -> XactError {
    XactError::new(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, message)
}

/// Drops the events of a database that has no worker any more.
fn drop_queued(database: pg_sys::Oid) {
    workers::block(database, |worker| *worker = WorkerBlock::UNUSED);
    event_queue::with(|queue| queue.drop_all(database));
}
