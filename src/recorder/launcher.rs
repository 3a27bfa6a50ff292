//! The launcher: finds the databases that have the extension, and keeps a worker in each.
//!
//! Which of them have it, only a process in the database can see. So a worker is started in every one,
//! a few at a time, and leaves where there is nothing for it to do.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::fence;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{
    BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime, DynamicBackgroundWorker,
};
use pgrx::{pg_guard, pg_sys};

use super::EXTENSION;
use super::background::{
    is_to_stop, listen_to_signals, log, reload_settings, report_activity, sleep, transaction,
};
use super::shared::{Database, Serving, Shared, shared};
use super::start::Reason;

/// Workers that are started at the same time.
const STARTING_AT_ONCE: usize = 2;

/// When the launcher tries again where the server had no room for another worker.
const ROOM_RETRY: Duration = Duration::from_secs(5);

/// The longest time until a worker that ended with an error is started again.
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
        .set_library(EXTENSION.to_str().unwrap_or_default())
        .set_function(function)
}

/// The launcher's entry point, called by PostgreSQL.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn loader_history_launcher_main(_argument: pg_sys::Datum) {
    listen_to_signals();
    // SAFETY: the first thing that a background process does; without a database it can read the
    // catalogs that all databases share.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    if let Some(shared) = shared() {
        shared.first_xid();
        shared.launcher().set_to_me();
        report_activity(None);
        if let Some(launcher) = Launcher::new(shared) {
            launcher.run();
        }
        shared.launcher().clear();
    }
    // SAFETY: ends the process. One that ends with 0 would not be started again.
    unsafe { pg_sys::proc_exit(1) };
}

struct Launcher {
    shared: Shared,
    /// Databases to look into.
    pending: Vec<pg_sys::Oid>,
    /// The workers that this launcher has started.
    workers: HashMap<pg_sys::Oid, DynamicBackgroundWorker>,
    /// Databases whose worker ended though they need one.
    failures: HashMap<pg_sys::Oid, Failure>,
    room_retry: Option<Instant>,
}

/// That a worker ended though its database needs one.
#[derive(Default)]
struct Failure {
    /// How often in a row.
    count: u32,
    /// When to start another.
    retry: Option<Instant>,
}

impl Launcher {
    fn new(shared: Shared) -> Option<Self> {
        let pending = databases()?;
        // A launcher before this one may have started workers that have not come up yet. They find
        // that none is asked for any more, or their place taken by the worker that this one starts.
        for database in shared.databases() {
            // One that has come up so far says itself how it goes on. Entries stay: events may wait there.
            if database.oid() != pg_sys::InvalidOid
                && database.serving() != Serving::Running
                && database.pid.load(Acquire) == 0
            {
                database.set_serving(Serving::Ended);
            }
        }
        Some(Self {
            shared,
            pending,
            workers: HashMap::new(),
            failures: HashMap::new(),
            room_retry: None,
        })
    }

    fn run(mut self) {
        while !is_to_stop() {
            reload_settings();
            self.shared.set_launcher_late(false);
            let announced = self.take_announced();
            self.look_after_workers();
            self.start_workers();
            self.decline_unserved();
            // A wait for a lock may have swallowed a wake-up.
            if !announced {
                sleep(self.time_to_sleep());
            }
        }
    }

    /// Takes note of databases that may need a worker; whether there were any.
    fn take_announced(&mut self) -> bool {
        let announced: Vec<_> = self.shared.take_announced().collect();
        if announced.is_empty() {
            return false;
        }
        if let Some(existing) = databases() {
            self.shared.drop_messages_except(&existing);
        }
        for oid in announced {
            if !self.pending.contains(&oid) {
                self.pending.push(oid);
            }
        }
        true
    }

    /// Notes which workers have come up, left or failed.
    fn look_after_workers(&mut self) {
        let now = Instant::now();
        for database in self.shared.databases() {
            let oid = database.oid();
            if oid == pg_sys::InvalidOid {
                continue;
            }
            let stopped = self
                .workers
                .get(&oid)
                .is_some_and(|worker| matches!(worker.pid(), Err(BackgroundWorkerStatus::Stopped)));
            let serving = match database.serving() {
                Serving::Starting | Serving::Running
                    if stopped && database.pid.load(Acquire) == 0 =>
                {
                    Serving::Ended
                }
                serving => serving,
            };
            match serving {
                Serving::Running => {
                    self.failures.remove(&oid);
                }
                Serving::Left => {
                    self.workers.remove(&oid);
                    self.failures.remove(&oid);
                    // The extension came back just when it left.
                    if database.take_check() && !self.pending.contains(&oid) {
                        self.pending.push(oid);
                    }
                    self.shared.remove_database(database);
                }
                Serving::Ended if !self.pending.contains(&oid) => {
                    database.set_serving(Serving::Ended);
                    self.workers.remove(&oid);
                    let failure = self.failures.entry(oid).or_default();
                    let retry = *failure.retry.get_or_insert_with(|| {
                        let seconds = (1_u64 << failure.count.min(6)) - 1;
                        failure.count += 1;
                        now + Duration::from_secs(seconds).min(LONGEST_RETRY)
                    });
                    if retry <= now {
                        failure.retry = None;
                        self.pending.push(oid);
                    }
                }
                _ => {}
            }
        }
    }

    fn start_workers(&mut self) {
        let now = Instant::now();
        if self.room_retry.is_some_and(|retry| now < retry) {
            return;
        }
        self.room_retry = None;
        if self.pending.is_empty() {
            return;
        }
        let candidates = self.enter_candidates(now);
        // Looked at after the entries were made: a command that drops a database now either finds one, and
        // waits for the worker to leave, or has barred the database, or dropped it.
        let existing = databases();
        if let Some(existing) = &existing {
            self.pending.retain(|oid| existing.contains(oid));
        }
        for database in candidates {
            let oid = database.oid();
            let is_gone = existing.as_ref().is_some_and(|existing| !existing.contains(&oid));
            if is_gone {
                self.failures.remove(&oid);
                self.shared.remove_database(database);
            } else if self.shared.is_barred(oid) || existing.is_none() {
                // Whoever keeps workers out of it announces it again afterwards. Its events wait.
                database.set_serving(Serving::Ended);
            } else if self.room_retry.is_some() {
                database.set_serving(Serving::NoRoom);
                self.pending.push(oid);
            } else {
                self.start_worker(database, now);
            }
        }
    }

    /// Enters some of the databases that wait for a worker as starting one.
    fn enter_candidates(&mut self, now: Instant) -> Vec<&'static Database> {
        let mut candidates = Vec::new();
        for oid in std::mem::take(&mut self.pending) {
            let entry = self.shared.database(oid);
            let has_worker = entry.is_some_and(|database| {
                matches!(database.serving(), Serving::Starting | Serving::Running)
            });
            if has_worker {
                continue;
            }
            if self.starting() >= STARTING_AT_ONCE {
                self.pending.push(oid);
                continue;
            }
            let Some(database) = entry.or_else(|| self.shared.add_database(oid)) else {
                self.room_retry = Some(now + ROOM_RETRY);
                self.pending.push(oid);
                continue;
            };
            database.set_serving(Serving::Starting);
            candidates.push(database);
        }
        // Orders the entries before the looks at bars; Shared::bar() does the opposite.
        fence(SeqCst);
        candidates
    }

    fn start_worker(&mut self, database: &'static Database, now: Instant) {
        let oid = database.oid();
        let worker = builder("loader_history worker", "loader_history_worker_main")
            .set_argument(Some(pg_sys::Datum::from(oid)))
            // SAFETY: a read of the process's own global.
            .set_notify_pid(unsafe { pg_sys::MyProcPid })
            .load_dynamic();
        match worker {
            Ok(worker) => {
                self.workers.insert(oid, worker);
            }
            Err(_) => {
                if database.last_error_at.load(Relaxed) == 0 {
                    log(&format!(
                        "loader_history: no room for a background worker in database {}; raise max_worker_processes",
                        oid.to_u32()
                    ));
                }
                database.remember_error(
                    "no room for another background worker: raise max_worker_processes",
                );
                database.set_serving(Serving::NoRoom);
                self.room_retry = Some(now + ROOM_RETRY);
                self.pending.push(oid);
            }
        }
    }

    fn starting(&self) -> usize {
        self.shared
            .databases()
            .iter()
            .filter(|database| {
                database.oid() != pg_sys::InvalidOid && database.serving() == Serving::Starting
            })
            .count()
    }

    /// Answers starts in databases that no worker is to come to, so that nobody waits for one.
    fn decline_unserved(&self) {
        for request in self.shared.queued() {
            let oid = request.database();
            let reason = match self.shared.database(oid).map(|database| database.serving()) {
                Some(Serving::Starting | Serving::Running) => continue,
                Some(Serving::NoRoom) => Reason::NoRoom,
                _ if self.pending.contains(&oid) && self.room_retry.is_none() => continue,
                _ if self.pending.contains(&oid) => Reason::NoRoom,
                _ => Reason::NotServed,
            };
            if request.take(oid) {
                request.decline(reason.code());
            }
        }
    }

    fn time_to_sleep(&self) -> Option<Duration> {
        let now = Instant::now();
        let retries =
            self.failures.values().filter_map(|failure| failure.retry).chain(self.room_retry);
        let next = retries.map(|due| due.saturating_duration_since(now)).min();
        let busy = self.starting() > 0 || !self.pending.is_empty();
        match next {
            Some(next) => Some(next.max(Duration::from_millis(10))),
            None if busy => Some(Duration::from_secs(1)),
            None => None,
        }
    }
}

/// The databases that a worker may serve: no templates, which others copy, and none where connections
/// are not allowed. `None` where they can't be read just now.
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
    found.inspect_err(|trouble| log(&format!("loader_history launcher: {trouble}"))).ok()
}
