//! The launcher: finds the databases that have the extension, and keeps a worker in each.
//!
//! Only a process in a database can see whether it has the extension. So the launcher starts a
//! worker in every database, a few at a time, and the worker exits if there is nothing for it to
//! do.

use std::collections::HashMap;
use std::mem::take;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{
    BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime, DynamicBackgroundWorker,
};
use pgrx::{pg_guard, pg_sys};

use super::drop_queued;
use crate::model::fallback::Reason;
use crate::pg::bgworker::{self, report_activity, transaction};
use crate::pg::latch::wait_in_worker;
use crate::pg::xact::my_pid;
use crate::shmem::workers::{self, WorkerState};
use crate::shmem::{start_queue, xact_reports};

/// Workers that are started at the same time.
const STARTING_AT_ONCE: usize = 2;

/// When the launcher retries if the server had no slot for another worker.
const SLOT_RETRY: Duration = Duration::from_secs(5);

/// The longest time until a worker that failed is started again.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Registers the launcher. Called once, by the postmaster.
pub fn register() {
    builder("loader_history launcher", "loader_history_launcher_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

fn builder(name: &str, function: &str) -> BackgroundWorkerBuilder {
    BackgroundWorkerBuilder::new(name)
        .enable_spi_access()
        .set_library("loader_history")
        .set_function(function)
}

/// The launcher's entry point, called by PostgreSQL.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn loader_history_launcher_main(_argument: pg_sys::Datum) {
    bgworker::install_signal_handlers();
    // SAFETY: the first thing that a background worker does; without a database it can read the
    // shared catalogs.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    workers::first_xid();
    workers::enter_launcher();
    report_activity(None);
    if let Some(pending) = databases() {
        Launcher { pending, started: HashMap::new(), failures: HashMap::new(), slot_retry: None }
            .run();
    }
    workers::exit_launcher();
    // SAFETY: ends the process. One that ends with 0 would not be started again.
    unsafe { pg_sys::proc_exit(1) };
}

struct Launcher {
    /// Databases to start a worker in.
    pending: Vec<pg_sys::Oid>,
    /// The workers that this launcher has started.
    started: HashMap<pg_sys::Oid, DynamicBackgroundWorker>,
    /// Databases whose worker failed.
    failures: HashMap<pg_sys::Oid, Failure>,
    /// When there may be a slot for another worker.
    slot_retry: Option<Instant>,
}

/// The failure of a worker.
#[derive(Default)]
struct Failure {
    /// How often in a row.
    count: u32,
    /// When to start another one.
    retry: Option<Instant>,
}

impl Launcher {
    fn run(mut self) {
        while !bgworker::is_stop_requested() {
            bgworker::reload_settings();
            let announced = self.take_announced();
            self.check_workers();
            self.start_workers();
            self.decline_unserved();
            // A wait for a lock may have consumed a wake-up.
            if !announced {
                wait_in_worker(self.time_to_wait());
            }
        }
    }

    fn add_pending(&mut self, database: pg_sys::Oid) {
        if !self.pending.contains(&database) {
            self.pending.push(database);
        }
    }

    /// Notes databases that may need a worker; whether there were any.
    fn take_announced(&mut self) -> bool {
        let announced = workers::take_announced();
        if announced.is_empty() {
            return false;
        }
        if let Some(existing) = databases() {
            xact_reports::with(|reports| reports.take(|database| !existing.contains(&database)));
        }
        announced.into_iter().for_each(|database| self.add_pending(database));
        true
    }

    /// Notes which workers run, have exited or have failed.
    fn check_workers(&mut self) {
        for (database, state, has_process) in workers::all() {
            let is_stopped = self
                .started
                .get(&database)
                .is_some_and(|worker| matches!(worker.pid(), Err(BackgroundWorkerStatus::Stopped)));
            match state {
                WorkerState::Starting | WorkerState::Running if is_stopped && !has_process => {
                    self.restart(database);
                }
                WorkerState::Running => {
                    self.failures.remove(&database);
                }
                WorkerState::Exited => {
                    self.started.remove(&database);
                    self.failures.remove(&database);
                    // The extension may have been created just when the worker exited.
                    if workers::block(database, |worker| take(&mut worker.check_extension)) {
                        self.add_pending(database);
                    }
                    drop_queued(database);
                }
                WorkerState::Crashed => self.restart(database),
                _ => {}
            }
        }
    }

    /// Starts a worker again that has ended, later each time.
    fn restart(&mut self, database: pg_sys::Oid) {
        if self.pending.contains(&database) {
            return;
        }
        workers::block(database, |worker| worker.state = WorkerState::Crashed);
        self.started.remove(&database);
        let now = Instant::now();
        let failure = self.failures.entry(database).or_default();
        let retry = *failure.retry.get_or_insert_with(|| {
            let seconds = (1_u64 << failure.count.min(6)) - 1;
            failure.count += 1;
            now + Duration::from_secs(seconds).min(LONGEST_RETRY)
        });
        if retry <= now {
            failure.retry = None;
            self.pending.push(database);
        }
    }

    fn start_workers(&mut self) {
        let now = Instant::now();
        if self.pending.is_empty() || self.slot_retry.is_some_and(|retry| now < retry) {
            return;
        }
        self.slot_retry = None;
        let candidates = self.take_candidates(now);
        // Read after the states were set: a command that drops a database now either finds a worker
        // starting, and waits for it to leave, or has closed the database, or dropped it.
        let existing = databases();
        if let Some(existing) = &existing {
            self.pending.retain(|database| existing.contains(database));
        }
        for database in candidates {
            if existing.as_ref().is_some_and(|existing| !existing.contains(&database)) {
                self.failures.remove(&database);
                drop_queued(database);
            } else if workers::is_closed(database) || existing.is_none() {
                // The command that closed it announces it again. Its events remain in the queue.
                workers::block(database, |worker| worker.state = WorkerState::Crashed);
            } else if self.slot_retry.is_some() {
                workers::block(database, |worker| worker.state = WorkerState::NoSlot);
                self.pending.push(database);
            } else {
                self.start_worker(database, now);
            }
        }
    }

    /// Takes some of the pending databases, and sets the state of their workers.
    fn take_candidates(&mut self, now: Instant) -> Vec<pg_sys::Oid> {
        let mut candidates = Vec::new();
        for database in take(&mut self.pending) {
            if workers::block(database, |worker| worker.is_served()) {
                continue;
            }
            if starting() >= STARTING_AT_ONCE {
                self.pending.push(database);
            } else if workers::start(database) {
                candidates.push(database);
            } else {
                self.slot_retry = Some(now + SLOT_RETRY);
                self.pending.push(database);
            }
        }
        candidates
    }

    fn start_worker(&mut self, database: pg_sys::Oid, now: Instant) {
        let worker = builder("loader_history worker", "loader_history_worker_main")
            .set_argument(Some(pg_sys::Datum::from(database)))
            .set_notify_pid(my_pid())
            .load_dynamic();
        if let Ok(worker) = worker {
            self.started.insert(database, worker);
            return;
        }
        if workers::status(database).is_none_or(|status| status.last_error_at == 0) {
            bgworker::log(&format!(
                "loader_history: no slot for a background worker in database {}; raise max_worker_processes",
                database.to_u32()
            ));
        }
        workers::set_last_error(
            database,
            "no slot for another background worker: raise max_worker_processes",
        );
        workers::block(database, |worker| worker.state = WorkerState::NoSlot);
        self.slot_retry = Some(now + SLOT_RETRY);
        self.pending.push(database);
    }

    /// Declines starts in databases that get no worker, so that no session waits for one.
    fn decline_unserved(&self) {
        for database in start_queue::with(|queue| queue.waiting_databases()) {
            let is_pending = self.pending.contains(&database);
            let reason = match workers::status(database).map(|status| status.state) {
                Some(WorkerState::Starting | WorkerState::Running) => continue,
                Some(WorkerState::NoSlot) => Reason::NoSlot,
                _ if is_pending && self.slot_retry.is_none() => continue,
                _ if is_pending => Reason::NoSlot,
                _ => Reason::NotServed,
            };
            start_queue::decline_queued(database, reason);
        }
    }

    fn time_to_wait(&self) -> Option<Duration> {
        let now = Instant::now();
        let retries =
            self.failures.values().filter_map(|failure| failure.retry).chain(self.slot_retry);
        let next = retries.map(|due| due.saturating_duration_since(now)).min();
        match next {
            Some(next) => Some(next.max(Duration::from_millis(10))),
            None if starting() > 0 || !self.pending.is_empty() => Some(Duration::from_secs(1)),
            None => None,
        }
    }
}

fn starting() -> usize {
    workers::all().iter().filter(|(_, state, _)| *state == WorkerState::Starting).count()
}

/// The databases that a worker may serve: no templates, which CREATE DATABASE copies, and none that
/// does not allow connections. `None` if the catalog cannot be read now.
fn databases() -> Option<Vec<pg_sys::Oid>> {
    let found = transaction(|| {
        let mut found = Vec::new();
        // SAFETY: in a transaction; the catalog is one that all databases share, and can be read
        // without a database. Each tuple is read before the next is fetched.
        unsafe {
            let catalog = pg_sys::table_open(
                pg_sys::DatabaseRelationId,
                pg_sys::AccessShareLock.cast_signed(),
            );
            let scan = pg_sys::systable_beginscan(
                catalog,
                pg_sys::InvalidOid,
                false,
                std::ptr::null_mut(),
                0,
                std::ptr::null_mut(),
            );
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
                // A limit of -2 marks a database whose DROP was interrupted.
                if (*form).datallowconn && !(*form).datistemplate && (*form).datconnlimit > -2 {
                    found.push((*form).oid);
                }
            }
            pg_sys::systable_endscan(scan);
            pg_sys::table_close(catalog, pg_sys::AccessShareLock.cast_signed());
        }
        Ok(found)
    });
    found.inspect_err(|error| bgworker::log(&format!("loader_history launcher: {error}"))).ok()
}
