//! The worker of a database: commits starts, and finds out what became of the transactions that made
//! them.
//!
//! It never waits for what a caller may hold: tables it locks only where nobody else has them, rows
//! only where nobody else does, and `lock_timeout` ends what is left. What it can't do at once it
//! declines, for the caller to do, or does later. It plans nothing about tables of others, and runs
//! nothing of theirs. Whatever else there is to do, it does in small portions, since starts wait
//! meanwhile.

use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

use super::EXTENSION;
use super::background::{
    Trouble, check_for_interrupts, end_by_sigterm, is_to_stop, listen_to_signals, log,
    reload_settings, report_activity, set, set_local, sleep, transaction,
};
use super::binding::{Outcome, outcome};
use super::emitter::Emitter;
use super::ledger::{self, Closed};
use super::loader_row::LoaderRow;
use super::retention::Retention;
use super::shared::{Database, News, Request, Serving, Shared, Start, shared};
use super::start::Reason;
use crate::error::Error;
use crate::lookup::relation;
use crate::lost_ids::skip_lost_ids;

/// How often the worker looks what became of the open transactions, beside whenever it is told that one
/// was rolled back. Commits are not told: their bindings go together, at the next look.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a rolled back transaction's execution waits for the error's text, which comes a moment
/// after the rollback can be seen.
const TEXT_DELAY: Duration = Duration::from_millis(200);

/// How often the worker looks whether the extension is still there, beside whenever a command drops it.
const EXTENSION_INTERVAL: Duration = Duration::from_secs(60);

/// When it looks again after an error.
const EXTENSION_RETRY: Duration = Duration::from_secs(1);

/// How often an error of the same text is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Executions ended in one transaction. Starts wait for its end.
const CLOSED_AT_ONCE: usize = 32;

/// Bindings deleted in one transaction. Starts wait for its end.
const FORGOTTEN_AT_ONCE: usize = 500;

/// How long starts are tried again where a table is locked, and the pause between.
const LOCK_PATIENCE: Duration = Duration::from_millis(20);
const LOCK_PAUSE: Duration = Duration::from_millis(4);

/// How long those who wait do so for a worker that another session's lock keeps from reading the bindings:
/// whoever creates the extension has its locks for a moment after the commit.
const UNKNOWN_BINDINGS_PATIENCE: Duration = Duration::from_millis(250);

/// When the worker tries again what another session's lock kept it from.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Settings that the worker relies on, whatever the configuration, the database or the role say.
/// In role "replica" foreign keys are not checked: the caller's lock stands for the loader's key.
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
    /// What the entry of the database says once this process has ended.
    static AT_EXIT: Cell<Serving> = const { Cell::new(Serving::Ended) };
    /// Whether another is to come at once.
    static COMES_BACK: Cell<bool> = const { Cell::new(false) };
    /// Whether this process is a worker.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this process is a worker: nobody else writes bindings.
pub fn is_worker() -> bool {
    IS_WORKER.get()
}

/// A worker's entry point, called by PostgreSQL with the OID of its database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn loader_history_worker_main(argument: pg_sys::Datum) {
    end_by_sigterm();
    let oid = pg_sys::Oid::from(u32::try_from(argument.value()).unwrap_or_default());
    let Some(shared) = shared() else { return };
    let Some(database) = shared.database(oid) else { return };
    if !database.enter() {
        return;
    }
    // SAFETY: the callback is static and takes the OID by value; connecting is the first thing that a
    // background process does.
    unsafe {
        pg_sys::before_shmem_exit(Some(at_exit), argument);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, 0);
    }
    listen_to_signals();
    for (name, value) in SETTINGS {
        set(name, value);
    }
    IS_WORKER.set(true);
    let left = Worker::come_up(shared, database, oid)
        .and_then(|worker| worker.map_or(Ok(Leaving::ForNow), Worker::run));
    AT_EXIT.set(match left {
        Ok(Leaving::ForGood) => Serving::Left,
        Ok(Leaving::ForNow) => {
            COMES_BACK.set(true);
            Serving::Ended
        }
        Err(trouble) => {
            log(&format!("loader_history worker: {trouble}"));
            database.remember_error(&trouble.message);
            Serving::Ended
        }
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, argument: pg_sys::Datum) {
    let oid = pg_sys::Oid::from(u32::try_from(argument.value()).unwrap_or_default());
    if let Some(shared) = shared()
        && let Some(database) = shared.database(oid)
    {
        database.exit(AT_EXIT.get());
        if COMES_BACK.get() {
            shared.announce(oid);
        }
        shared.launcher().wake();
    }
}

/// Why a worker ends.
enum Leaving {
    /// There is nothing for it to do in this database.
    ForGood,
    /// It was told to, and another is to come.
    ForNow,
}

/// What is known of a transaction that has started an execution.
struct Binding {
    xid: u64,
    /// The subtransaction; 0 where it was in none.
    subxid: u64,
    /// Whether the session that started it wants events.
    notify: bool,
    /// Whether the transaction was open in this run of the server.
    was_open: bool,
    /// When the rollback was first seen.
    rolled_back: Option<Instant>,
    /// Whether it waits in `closing` or `over`: its outcome is known.
    is_settled: bool,
}

struct Worker {
    shared: Shared,
    database: &'static Database,
    oid: pg_sys::Oid,
    extension: pg_sys::Oid,
    /// The rows of loader_history.watched_transaction, which only this process writes.
    bindings: HashMap<i64, Binding>,
    /// Errors that rolled transactions and subtransactions back.
    texts: HashMap<(u64, u64), String>,
    /// Executions to end.
    closing: VecDeque<Closing>,
    /// How many of them at once: fewer while a lock keeps it from some of them.
    closed_at_once: usize,
    /// Executions whose bindings say nothing any more.
    over: VecDeque<i64>,
    /// Executions that were recorded when nobody may have held the loader's row any more.
    unattended: VecDeque<Unattended>,
    emitter: Emitter,
    retention: Retention,
    next_look: Instant,
    next_settling: Instant,
    next_closing: Instant,
    next_forgetting: Instant,
    next_extension_check: Instant,
    logged: Option<(String, Instant)>,
}

/// An execution whose loader may have been deleted while it was recorded.
struct Unattended {
    execution_id: i64,
    loader_id: i64,
    /// Whether its binding stays until that is known, for another worker to find it.
    is_certain: bool,
}

/// An execution whose start was rolled back.
struct Closing {
    execution_id: i64,
    message: String,
    notify: bool,
}

impl Worker {
    /// A worker that knows the bindings; `None` where it is to leave before. Where another session's lock
    /// keeps it from reading them for long, as a migration's does, it answers those who wait.
    fn come_up(
        shared: Shared,
        database: &'static Database,
        oid: pg_sys::Oid,
    ) -> Result<Option<Self>, Trouble> {
        let patience_ends = Instant::now() + UNKNOWN_BINDINGS_PATIENCE;
        loop {
            match Self::new(shared, database, oid) {
                Err(trouble) if trouble.is_lock() => {}
                result => return result.map(Some),
            }
            if is_to_stop() || shared.is_barred(oid) {
                return Ok(None);
            }
            if Instant::now() < patience_ends {
                sleep(Some(LOCK_PAUSE));
                continue;
            }
            // Not as starting: the launcher waits for those before it starts others.
            database.set_serving(Serving::Running);
            database.late.store(false, Relaxed);
            shared.launcher().wake();
            for request in shared.requests_of(oid).filter(|request| request.take(oid)) {
                request.decline(Reason::TableLocked.code());
            }
            sleep(Some(LOCK_RETRY));
        }
    }

    fn new(shared: Shared, database: &'static Database, oid: pg_sys::Oid) -> Result<Self, Trouble> {
        let now = Instant::now();
        let mut worker = Self {
            shared,
            database,
            oid,
            extension: extension()?,
            bindings: HashMap::new(),
            texts: HashMap::new(),
            closing: VecDeque::new(),
            closed_at_once: CLOSED_AT_ONCE,
            over: VecDeque::new(),
            unattended: VecDeque::new(),
            emitter: Emitter::new(shared, database, oid),
            retention: Retention::new(oid)?,
            next_look: now,
            next_settling: now,
            next_closing: now,
            next_forgetting: now,
            next_extension_check: now + EXTENSION_INTERVAL,
            logged: None,
        };
        if worker.extension != pg_sys::InvalidOid {
            worker.load_bindings()?;
            worker.serve()?;
        }
        Ok(worker)
    }

    /// Takes up the work, in a database that has the extension.
    fn serve(&mut self) -> Result<(), Trouble> {
        self.skip_lost_ids();
        self.take_over()?;
        self.database.set_serving(Serving::Running);
        self.shared.launcher().wake();
        Ok(())
    }

    /// Sessions that insert rows by themselves take ids, too.
    fn skip_lost_ids(&mut self) {
        if let Err(trouble) = transaction(skip_lost_ids) {
            self.report_unless_locked(&trouble);
            self.next_extension_check = Instant::now() + EXTENSION_RETRY;
        }
    }

    fn load_bindings(&mut self) -> Result<(), Trouble> {
        let read = || transaction(ledger::bindings);
        let deadline = Instant::now() + LOCK_RETRY;
        let mut result = read();
        while result.as_ref().is_err_and(Trouble::is_lock) && Instant::now() < deadline {
            std::thread::sleep(LOCK_PAUSE);
            result = read();
        }
        let bindings = result?;
        self.closing.clear();
        self.over.clear();
        self.bindings.clear();
        for ledger::Bound { execution_id, loader_id, xid, subxid, notify } in bindings {
            self.bindings.insert(execution_id, Binding::new(xid, subxid, notify, false));
            // A worker before this one may have left it so.
            self.unattended.push_back(Unattended { execution_id, loader_id, is_certain: false });
        }
        Ok(())
    }

    /// Answers the requests that a worker before this one had taken and not answered.
    fn take_over(&mut self) -> Result<(), Trouble> {
        let taken: Vec<_> =
            self.shared.requests_of(self.oid).filter(|request| request.is_taken()).collect();
        if taken.is_empty() {
            return Ok(());
        }
        // Where that one's commits end is not known, but that this one comes after them.
        transaction(|| {
            // SAFETY: in a transaction that may write: it gets an id, and so a record of its commit.
            unsafe { pg_sys::GetTopTransactionId() };
            Ok(())
        })?;
        // One that another worker had taken by mistake may be another's by now.
        let is_ours = |request: &&Request| request.is_taken() && request.database() == self.oid;
        for request in taken.into_iter().filter(is_ours) {
            let Start { execution_id, loader_id, .. } = request.start();
            if !self.bindings.contains_key(&execution_id) {
                request.decline(Reason::Late.code());
            } else if !request.answer(last_commit()) {
                self.unattended.push_back(Unattended { execution_id, loader_id, is_certain: true });
            }
        }
        Ok(())
    }

    fn run(mut self) -> Result<Leaving, Trouble> {
        loop {
            if is_to_stop() || self.shared.is_barred(self.oid) {
                self.flush_events();
                return Ok(Leaving::ForNow);
            }
            reload_settings();
            if self.database.take_check() || self.next_extension_check <= Instant::now() {
                self.check_extension();
            }
            if self.extension == pg_sys::InvalidOid {
                self.shared.drop_messages(self.oid);
                self.flush_events();
                return Ok(Leaving::ForGood);
            }
            if self.retention.is_outdated() && self.has_nothing_to_hand_over() {
                self.flush_events();
                return Ok(Leaving::ForNow);
            }
            self.database.late.store(false, Relaxed);
            // Starts go first, and the rest is bounded: somebody waits for each start. A wait for a lock
            // may swallow a wake-up, so there is no sleep before nothing was found to do.
            let busy = [
                self.record_starts(),
                self.settle_unattended(),
                self.read_messages(),
                self.look(),
                self.close_some(),
                self.forget_some(),
                self.emit_events(),
                self.purge(),
            ];
            check_for_interrupts();
            if busy.contains(&true) || self.shared.is_worker_wanted(self.oid) {
                continue;
            }
            // Autovacuum learns of the rows by this.
            // SAFETY: called outside of a transaction, in a process that is connected to a database.
            unsafe { pg_sys::pgstat_report_stat(self.bindings.is_empty()) };
            report_activity(None);
            sleep(Some(self.next_duty().saturating_duration_since(Instant::now())));
        }
    }

    /// When there is something to do that nobody wakes the worker for.
    fn next_duty(&self) -> Instant {
        let due = |is_due: bool, when: Instant| is_due.then_some(when);
        [
            due(!self.bindings.is_empty(), self.next_look),
            due(!self.unattended.is_empty(), self.next_settling),
            due(!self.closing.is_empty(), self.next_closing),
            due(!self.over.is_empty(), self.next_forgetting),
            self.emitter.next_duty(),
            self.retention.next(),
        ]
        .into_iter()
        .flatten()
        .fold(self.next_extension_check, Instant::min)
    }

    /// Finds out whether the extension is there, and is the one that the worker knows.
    fn check_extension(&mut self) {
        self.next_extension_check = Instant::now() + EXTENSION_INTERVAL;
        let found = extension().and_then(|extension| {
            if extension != self.extension && extension != pg_sys::InvalidOid {
                self.load_bindings()?;
                self.next_look = Instant::now();
            }
            Ok(extension)
        });
        let extension = match found {
            Ok(extension) => extension,
            Err(trouble) => {
                self.report_unless_locked(&trouble);
                self.next_extension_check = Instant::now() + EXTENSION_RETRY;
                if self.extension == pg_sys::InvalidOid {
                    // This worker leaves: another is to look.
                    self.database.ask_to_check();
                }
                return;
            }
        };
        self.extension = extension;
        if extension != pg_sys::InvalidOid {
            // It was created since this worker looked first.
            if self.database.serving() != Serving::Running
                && let Err(trouble) = self.serve()
            {
                self.report(&trouble);
                self.next_extension_check = Instant::now() + EXTENSION_RETRY;
                return;
            }
            self.skip_lost_ids();
        }
        if let Err(trouble) = self.retention.check_setting(self.oid) {
            self.report(&trouble);
        }
    }

    /// Whether another worker would know all that matters: an error's text may be lost.
    fn has_nothing_to_hand_over(&self) -> bool {
        self.closing.is_empty() && !self.unattended.iter().any(|one| one.is_certain)
    }

    /// Purges a few of the executions that are older than the settings say; whether it did anything.
    fn purge(&mut self) -> bool {
        self.retention.work().unwrap_or_else(|trouble| {
            self.report(&trouble);
            true
        })
    }

    /// Keeps an error where a DBA finds it, and logs it, though not over and over.
    fn report(&mut self, trouble: &Trouble) {
        self.database.remember_error(&trouble.message);
        let now = Instant::now();
        let known = self.logged.as_ref().is_some_and(|(text, at)| {
            *text == trouble.message && now.duration_since(*at) < LOG_INTERVAL
        });
        if !known {
            log(&format!("loader_history worker: {trouble}"));
            self.logged = Some((trouble.message.clone(), now));
        }
    }

    /// The same, but for what another session's lock keeps the worker from: nothing is wrong, and it is tried
    /// again.
    fn report_unless_locked(&mut self, trouble: &Trouble) {
        if !trouble.is_lock() {
            self.report(trouble);
        }
    }

    /// Commits the starts that wait; whether there were any.
    fn record_starts(&mut self) -> bool {
        let mut taken: Vec<_> = self
            .shared
            .requests_of(self.oid)
            .filter(|request| request.take(self.oid))
            .map(|request| (request, request.start()))
            .collect();
        if taken.is_empty() {
            return false;
        }
        report_activity(Some("recording starts"));
        let deadline = Instant::now() + LOCK_PATIENCE;
        let mut result = self.record(&taken);
        // Vacuum locks a table against all others for a moment, to give back its last pages.
        while let Err(trouble) = &result
            && (trouble.is_lock() && Instant::now() < deadline || trouble.is_abandoned())
        {
            if trouble.is_lock() {
                std::thread::sleep(LOCK_PAUSE);
            }
            taken.retain(|(request, _)| !request.forget_abandoned());
            result = self.record(&taken);
        }
        let Err(mut trouble) = result else { return true };
        if let [(request, _)] = taken[..] {
            self.decline(request, &trouble);
            return true;
        }
        // Something in it is bad: what, shows when each is alone. What is locked is locked for all.
        for one in &taken {
            if trouble.is_lock() {
                self.decline(one.0, &trouble);
            } else if let Err(alone) = self.record(std::slice::from_ref(one))
                && !one.0.forget_abandoned()
            {
                self.decline(one.0, &alone);
                trouble = alone;
            }
        }
        true
    }

    fn decline(&mut self, request: &Request, trouble: &Trouble) {
        self.report_unless_locked(trouble);
        request.decline(if trouble.is_lock() { Reason::TableLocked.code() } else { 0 });
    }

    /// Records starts in one transaction, and answers those who wait.
    fn record(&mut self, taken: &[(&'static Request, Start)]) -> Result<(), Trouble> {
        let (declined, first_ticket) = transaction(|| {
            // Callers wait for the disk, and share that; more starts come meanwhile.
            set_local(c"synchronous_commit", c"off");
            ledger::lock_tables()?;
            let mut declined = HashMap::new();
            for (_, start) in taken.iter().filter(|(_, start)| start.check_loader) {
                // The caller holds the row, which is no obstacle to locking it for its key, and wrote it.
                match ledger::lock_loader(start.loader_id) {
                    LoaderRow::Missing | LoaderRow::Unsupported => {
                        declined.insert(start.execution_id, Reason::LoaderUncommitted);
                    }
                    LoaderRow::TableBusy => {
                        declined.insert(start.execution_id, Reason::TableLocked);
                    }
                    LoaderRow::Committed
                    | LoaderRow::Own
                    | LoaderRow::Busy
                    | LoaderRow::Unchecked => {}
                }
            }
            let starts: Vec<_> = taken
                .iter()
                .map(|(_, start)| start)
                .filter(|start| !declined.contains_key(&start.execution_id))
                .collect();
            ledger::insert(&starts)?;
            let first_ticket = self.draw_tickets(taken.len());
            // From here on no caller gives up: what it would record by itself would be there twice.
            if taken.iter().all(|(request, _)| request.begin_commit()) {
                Ok((declined, first_ticket))
            } else {
                Err(Error::Abandoned)
            }
        })
        .inspect_err(|_| taken.iter().for_each(|(request, _)| request.undo_commit()))?;
        for (ticket, (request, start)) in (first_ticket..).zip(taken) {
            let Start { execution_id, loader_id, xid, subxid, notify, .. } = *start;
            if let Some(reason) = declined.get(&execution_id) {
                request.decline(reason.code());
                continue;
            }
            self.bindings.insert(execution_id, Binding::new(xid, subxid, notify, true));
            if !request.answer(last_commit()) {
                self.unattended.push_back(Unattended { execution_id, loader_id, is_certain: true });
            }
            if notify && let Ok(event) = ledger::start_event(execution_id, loader_id, start.start) {
                self.queue_event(ticket, event);
            }
        }
        self.next_look = self.next_look.min(Instant::now() + LOOK_INTERVAL);
        Ok(())
    }

    /// Makes sure that the loader is there of a start whose caller was gone, or had gone on, when it was
    /// committed: the caller's lock may have been gone too. Whether it did anything.
    ///
    /// Whether a caller that an earlier worker has answered was told that its start is durable, nobody knows.
    /// Where the key is valid, it was not: the row was there as long as its lock, and since then the execution
    /// keeps it. One that is NOT VALID came after starts of loaders that have never been: those stay.
    fn settle_unattended(&mut self) -> bool {
        if self.unattended.is_empty() || Instant::now() < self.next_settling {
            return false;
        }
        let count = self.unattended.len().min(CLOSED_AT_ONCE);
        let some: Vec<_> = self.unattended.drain(..count).collect();
        for one in some {
            let settled = transaction(|| {
                let row = ledger::lock_loader(one.loader_id);
                let remove =
                    row == LoaderRow::Missing && (one.is_certain || ledger::is_key_valid());
                if remove {
                    ledger::lock_to_close()?;
                    ledger::remove(&[one.execution_id])?;
                }
                Ok((row, remove))
            });
            match settled {
                Ok((_, true)) => {
                    self.bindings.remove(&one.execution_id);
                }
                Ok((LoaderRow::Busy | LoaderRow::TableBusy, _)) => {
                    self.next_settling = Instant::now() + LOCK_RETRY;
                    self.unattended.push_back(one);
                }
                Ok(_) => {}
                Err(trouble) => {
                    self.report_unless_locked(&trouble);
                    self.next_settling = Instant::now() + LOCK_RETRY;
                    self.unattended.push_back(one);
                }
            }
        }
        true
    }

    /// Takes what backends tell; whether there was anything.
    fn read_messages(&mut self) -> bool {
        let messages = self.shared.take_messages(self.oid);
        let any = !messages.is_empty();
        for News { xid, subxid, text } in messages {
            self.texts.insert((xid, subxid), text);
            if subxid == 0 {
                self.next_look = Instant::now();
            }
        }
        any
    }

    /// Finds out what became of the open transactions, where that is due; whether it did.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        if now < self.next_look {
            return false;
        }
        self.next_look = now + LOOK_INTERVAL;
        if self.bindings.is_empty() {
            self.texts.clear();
            return false;
        }
        report_activity(Some("looking at transactions"));
        let open = |binding: &&Binding| !binding.is_settled;
        let xids: HashSet<_> = self.bindings.values().filter(open).map(|b| b.xid).collect();
        let subxids: HashSet<_> =
            self.bindings.values().filter(open).map(|b| (b.xid, b.subxid)).collect();
        let outcomes = transaction(|| {
            let whole: HashMap<_, _> = xids.iter().map(|&xid| (xid, outcome(xid))).collect();
            let parts: HashMap<_, _> = subxids
                .iter()
                .filter(|(xid, subxid)| *subxid != 0 && whole.get(xid) == Some(&Outcome::Committed))
                .map(|&(_, subxid)| (subxid, outcome(subxid)))
                .collect();
            Ok((whole, parts))
        });
        let (whole, parts) = match outcomes {
            Ok(outcomes) => outcomes,
            Err(trouble) => {
                self.report(&trouble);
                return true;
            }
        };
        let mut over = Vec::new();
        let mut unknown = Vec::new();
        for (&execution_id, binding) in self.bindings.iter_mut().filter(|(_, b)| !b.is_settled) {
            let whole = whole.get(&binding.xid).copied().unwrap_or(Outcome::InProgress);
            let part = parts.get(&binding.subxid).copied().unwrap_or(whole);
            match (whole, part) {
                (Outcome::InProgress, _) => binding.was_open = true,
                (_, Outcome::Aborted) => {
                    let died = self.shared.died_with_the_server(binding.xid);
                    if let Some(message) = binding.failure(whole, &self.texts, died, now) {
                        binding.is_settled = true;
                        let notify = binding.notify;
                        self.closing.push_back(Closing { execution_id, message, notify });
                    }
                }
                (Outcome::Committed, Outcome::Committed) => {
                    binding.is_settled = true;
                    over.push(execution_id);
                }
                _ => {
                    binding.is_settled = true;
                    unknown.push(execution_id);
                }
            }
        }
        for execution_id in &unknown {
            self.report(&Trouble {
                sqlstate: PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                message: format!(
                    "what became of the transaction that started execution {execution_id} is not known any more; it stays RUNNING"
                ),
            });
        }
        self.over.extend(over.into_iter().chain(unknown));
        let open: HashSet<_> = self.bindings.values().map(|binding| binding.xid).collect();
        self.texts.retain(|(xid, _), _| open.contains(xid));
        true
    }

    /// Deletes some of the bindings of executions that they say nothing about any more; whether it tried.
    fn forget_some(&mut self) -> bool {
        if self.over.is_empty() || Instant::now() < self.next_forgetting {
            return false;
        }
        report_activity(Some("forgetting transactions"));
        let count = self.over.len().min(FORGOTTEN_AT_ONCE);
        let some: Vec<_> = self.over.iter().take(count).copied().collect();
        let deleted = transaction(|| {
            // Where a crash undoes it, it is found out again.
            set_local(c"synchronous_commit", c"off");
            ledger::lock_to_close()?;
            ledger::forget(&some)
        });
        match deleted {
            Ok(()) => self.over.drain(..count).for_each(|id| {
                self.bindings.remove(&id);
            }),
            Err(trouble) => {
                self.report_unless_locked(&trouble);
                self.next_forgetting = Instant::now() + LOCK_RETRY;
            }
        }
        true
    }

    /// Ends some of the executions whose start was rolled back; whether it did.
    fn close_some(&mut self) -> bool {
        if self.closing.is_empty() || Instant::now() < self.next_closing {
            return false;
        }
        report_activity(Some("ending executions"));
        let count = self.closing.len().min(self.closed_at_once);
        let some: Vec<_> = self.closing.drain(..count).collect();
        let (mut waited, closed_at_once) = (false, self.closed_at_once);
        self.closed_at_once = CLOSED_AT_ONCE;
        let busy = match self.close(&some) {
            Ok(busy) => busy,
            // Something in it is bad: what, shows when each is alone. A lock may be of one of them too, and
            // each wait for it holds starts up.
            Err(trouble) if some.len() == 1 || trouble.is_lock() => {
                self.report_unless_locked(&trouble);
                waited = trouble.is_lock();
                if waited && closed_at_once > 1 {
                    self.closed_at_once = 1;
                }
                some.iter().map(|closing| closing.execution_id).collect()
            }
            Err(_) => some
                .iter()
                .flat_map(|one| {
                    self.close(std::slice::from_ref(one)).unwrap_or_else(|trouble| {
                        self.report(&trouble);
                        HashSet::from([one.execution_id])
                    })
                })
                .collect(),
        };
        if !busy.is_empty() {
            self.next_closing = Instant::now() + LOCK_RETRY;
        }
        // A wait for a lock may have swallowed a wake-up.
        let any = waited || busy.len() < some.len();
        self.closing.extend(some.into_iter().filter(|one| busy.contains(&one.execution_id)));
        any
    }

    /// Ends executions whose start was rolled back, and returns those whose rows others lock.
    fn close(&mut self, closing: &[Closing]) -> Result<HashSet<i64>, Trouble> {
        let (closed, busy, first_ticket, events) = transaction(|| {
            // Where a crash undoes it, it is found out again.
            set_local(c"synchronous_commit", c"off");
            ledger::lock_to_close()?;
            ledger::fire_triggers();
            let (mut closed, mut busy, mut events) = (Vec::new(), HashSet::new(), Vec::new());
            for Closing { execution_id, message, notify } in closing {
                let is_unsettled =
                    |one: &Unattended| one.is_certain && one.execution_id == *execution_id;
                if self.unattended.iter().any(is_unsettled) {
                    busy.insert(*execution_id);
                    continue;
                }
                match ledger::close(*execution_id, message)? {
                    Closed::Busy => {
                        busy.insert(*execution_id);
                        continue;
                    }
                    Closed::Failed(event) if *notify => events.push(event),
                    Closed::Failed(_) | Closed::Over => {}
                }
                closed.push(*execution_id);
            }
            let silent = ledger::without_triggers();
            ledger::forget(&closed)?;
            drop(silent);
            Ok((closed, busy, self.draw_tickets(events.len()), events))
        })?;
        for id in closed {
            self.bindings.remove(&id);
        }
        self.queue_events(first_ticket, events);
        Ok(busy)
    }

    /// Draws tickets for events of the current transaction: before it commits, so that whoever sees that and
    /// changes the same execution comes later.
    fn draw_tickets(&self, count: usize) -> u64 {
        self.shared.events().draw_tickets(u64::try_from(count).unwrap_or_default())
    }

    fn queue_events(&mut self, first_ticket: u64, events: Vec<String>) {
        for (ticket, event) in (first_ticket..).zip(events) {
            self.queue_event(ticket, event);
        }
    }

    fn queue_event(&mut self, ticket: u64, event: String) {
        if !self.emitter.add(ticket, event) {
            self.report(&Trouble {
                sqlstate: PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                message: "events are dropped: other sessions keep the lock that NOTIFY needs"
                    .to_owned(),
            });
        }
    }

    /// Emits what there is, before the worker ends.
    fn flush_events(&mut self) {
        let lost = self.emitter.flush();
        if lost > 0 {
            self.report(&Trouble {
                sqlstate: PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                message: format!("{lost} events are dropped with the worker's end"),
            });
        }
    }

    /// Emits events in a transaction of its own: its commit takes a lock that others may hold for as
    /// long as they wait for a standby. Whether it did.
    fn emit_events(&mut self) -> bool {
        self.emitter.emit().unwrap_or_else(|trouble| {
            self.report(&trouble);
            // A wait for a lock may have come before.
            true
        })
    }
}

/// Where the last commit of this process ends in the log.
fn last_commit() -> u64 {
    // SAFETY: a variable of the process's own.
    unsafe { pg_sys::XactLastCommitEnd }
}

/// What the history says of a start that was rolled back without an error.
const ROLLED_BACK: &str = "The transaction that started the execution was rolled back.";

impl Binding {
    const fn new(xid: u64, subxid: u64, notify: bool, was_open: bool) -> Self {
        Self { xid, subxid, notify, was_open, rolled_back: None, is_settled: false }
    }

    /// What the history is to say of the rolled back start; `None` while the error's text may still
    /// come.
    fn failure(
        &mut self,
        whole: Outcome,
        texts: &HashMap<(u64, u64), String>,
        died_with_the_server: bool,
        now: Instant,
    ) -> Option<String> {
        let text = |subxid| texts.get(&(self.xid, subxid)).filter(|text| !text.is_empty());
        let savepoint = (self.subxid != 0).then(|| text(self.subxid)).flatten();
        if whole == Outcome::Committed {
            return Some(savepoint.map_or_else(
                || "The savepoint that the execution started in was rolled back.".to_owned(),
                String::clone,
            ));
        }
        if let Some(error) = text(0).or(savepoint) {
            return Some(error.clone());
        }
        if !self.was_open && died_with_the_server {
            return Some(
                "The server stopped before the transaction that started the execution had committed."
                    .to_owned(),
            );
        }
        let first_seen = *self.rolled_back.get_or_insert(now);
        // The rollback was told, without an error; or nobody is left to tell.
        (texts.contains_key(&(self.xid, 0)) || now.duration_since(first_seen) >= TEXT_DELAY)
            .then(|| ROLLED_BACK.to_owned())
    }
}

/// The OID of the extension, where its SQL is of a version that has bindings; else the invalid one.
fn extension() -> Result<pg_sys::Oid, Trouble> {
    transaction(|| {
        // SAFETY: a catalog lookup, in a transaction. Whoever says that the extension has changed says so
        // before the message comes that cached entries are no longer true.
        let oid = unsafe {
            pg_sys::InvalidateSystemCaches();
            pg_sys::get_extension_oid(EXTENSION.as_ptr(), true)
        };
        Ok(relation(c"watched_transaction").map_or(pg_sys::InvalidOid, |_| oid))
    })
}
