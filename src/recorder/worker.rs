//! The worker of a database: commits starts, and finds out what became of the transactions that made
//! them.
//!
//! It never waits for what a caller may hold: tables it locks only where nobody else has them, rows
//! only where nobody else does, and `lock_timeout` ends what is left. What it can't do at once it
//! declines, for the caller to do, or does later.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::{PgSqlErrorCode, Spi, pg_guard};

use super::EXTENSION;
use super::background::{
    Trouble, is_to_stop, listen_to_signals, log, reload_settings, report_activity, set, set_local,
    sleep, transaction,
};
use super::binding::{Outcome, outcome};
use super::loader_lock;
use super::shared::{Database, News, Progress, Request, Serving, Shared, Start, shared};
use super::start::Declined;
use crate::error::Error;
use crate::event::Event;
use crate::execution::{Status, duration_seconds};
use crate::lookup::{OpenRelation, relation};
use crate::notify;
use crate::settings;
use crate::statement::{KeptStatement, Sight};
use crate::time::{end_of_execution, from_postgres};

/// How often the worker looks what became of the open transactions, beside whenever it is told that one
/// was rolled back. Commits are not told: their bindings go together, at the next look.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a rolled back transaction's execution waits for the error's text, which comes a moment
/// after the rollback can be seen.
const TEXT_DELAY: Duration = Duration::from_millis(200);

/// How often the worker looks whether the extension is still there, beside whenever a command drops it.
const EXTENSION_INTERVAL: Duration = Duration::from_secs(60);

/// How often an error of the same text is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Executions ended in one transaction, which holds their rows' locks.
const CLOSED_AT_ONCE: usize = 100;

/// Settings that the worker relies on, whatever the configuration, the database or the role say.
/// In role "replica" foreign keys are not checked: the caller's lock stands for the loader's key.
const SETTINGS: [(&CStr, &CStr); 12] = [
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
    (c"jit", c"off"),
];

thread_local! {
    static INSERT_STARTS: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader.execution_history (id, loader_id, execution_start, status) \
          SELECT s.id, s.loader_id, s.execution_start, 'RUNNING' \
          FROM ROWS FROM (unnest($1), unnest($2), unnest($3)) AS s (id, loader_id, execution_start)",
        &[BuiltinOid::INT8ARRAYOID, BuiltinOid::INT8ARRAYOID, BuiltinOid::TIMESTAMPTZARRAYOID],
    ) };
    static INSERT_BINDINGS: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader.binding (execution_id, xid, subxid) \
          SELECT b.id, b.xid::text::xid8, NULLIF(b.subxid, 0)::text::xid8 \
          FROM ROWS FROM (unnest($1), unnest($2), unnest($3)) AS b (id, xid, subxid)",
        &[BuiltinOid::INT8ARRAYOID, BuiltinOid::INT8ARRAYOID, BuiltinOid::INT8ARRAYOID],
    ) };
    static SELECT_BINDINGS: KeptStatement = const { KeptStatement::new(
        c"SELECT execution_id, xid::text::bigint, subxid::text::bigint FROM loader.binding",
        &[],
    ) };
    static DELETE_BINDINGS: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader.binding WHERE execution_id = ANY ($1)",
        &[BuiltinOid::INT8ARRAYOID],
    ) };
    static DELETE_EXECUTIONS: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader.execution_history WHERE id = ANY ($1)",
        &[BuiltinOid::INT8ARRAYOID],
    ) };
    static SELECT_EXECUTION: KeptStatement = const { KeptStatement::new(
        c"SELECT execution_start, execution_end FROM loader.execution_history WHERE id = $1",
        &[BuiltinOid::INT8OID],
    ) };
    static LOCK_RUNNING: KeptStatement = const { KeptStatement::new(
        c"SELECT execution_start FROM loader.execution_history \
          WHERE id = $1 AND status = 'RUNNING' FOR NO KEY UPDATE SKIP LOCKED",
        &[BuiltinOid::INT8OID],
    ) };
    static CLOSE: KeptStatement = const { KeptStatement::new(
        c"UPDATE loader.execution_history \
          SET execution_end = $2, status = 'FAILED', error_message = $3, duration_seconds = $4 \
          WHERE id = $1",
        &[
            BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID, BuiltinOid::TEXTOID, BuiltinOid::INT4OID,
        ],
    ) };
    static INSERT_DERIVED: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader.derived_failure (execution_id, execution_end) VALUES ($1, $2) \
          ON CONFLICT (execution_id) DO UPDATE SET execution_end = EXCLUDED.execution_end",
        &[BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID],
    ) };
    /// What the entry of the database says once this process has ended.
    static AT_EXIT: Cell<Serving> = const { Cell::new(Serving::Ended) };
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
    listen_to_signals();
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
    for (name, value) in SETTINGS {
        set(name, value);
    }
    IS_WORKER.set(true);
    let left = Worker::new(shared, database, oid).and_then(Worker::run);
    AT_EXIT.set(match left {
        Ok(Leaving::ForGood) => Serving::Left,
        Ok(Leaving::ForNow) => Serving::Ended,
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
    /// When the rollback was first seen.
    rolled_back: Option<Instant>,
}

struct Worker {
    shared: Shared,
    database: &'static Database,
    oid: pg_sys::Oid,
    extension: pg_sys::Oid,
    /// The rows of loader.binding, which only this process writes.
    bindings: HashMap<i64, Binding>,
    /// Errors that rolled transactions and subtransactions back.
    texts: HashMap<(u64, u64), String>,
    lost: Vec<LostStart>,
    next_look: Instant,
    next_extension_check: Instant,
    logged: Option<(String, Instant)>,
}

/// A start that was rolled back together with the caller's transaction.
struct LostStart {
    execution_id: i64,
    loader_id: i64,
    start: i64,
    text: String,
}

/// An execution whose start was rolled back.
struct Closing {
    execution_id: i64,
    message: String,
    notify: bool,
}

impl Worker {
    fn new(shared: Shared, database: &'static Database, oid: pg_sys::Oid) -> Result<Self, Trouble> {
        let now = Instant::now();
        let mut worker = Self {
            shared,
            database,
            oid,
            extension: extension()?,
            bindings: HashMap::new(),
            texts: HashMap::new(),
            lost: Vec::new(),
            next_look: now,
            next_extension_check: now + EXTENSION_INTERVAL,
            logged: None,
        };
        if worker.extension != pg_sys::InvalidOid {
            worker.bindings = load_bindings()?;
            worker.take_over();
            database.start_running();
        }
        Ok(worker)
    }

    /// Answers the requests that a worker before this one had taken and not answered.
    fn take_over(&self) {
        for request in self.shared.requests_of(self.oid) {
            if self.bindings.contains_key(&request.start().execution_id) {
                answer(request);
            } else {
                request.decline(Progress::Taken, Declined::Late.code());
                request.advance(Progress::Unattended, Progress::Free);
            }
        }
    }

    fn run(mut self) -> Result<Leaving, Trouble> {
        loop {
            if is_to_stop() || self.shared.is_barred(self.oid) {
                return Ok(Leaving::ForNow);
            }
            reload_settings();
            if self.database.take_check() || self.next_extension_check <= Instant::now() {
                self.check_extension()?;
            }
            if self.extension == pg_sys::InvalidOid {
                return Ok(Leaving::ForGood);
            }
            self.database.late.store(false, Relaxed);
            // Starts go before all else: somebody waits for each. A wait for a lock may swallow a
            // wake-up, so there is no sleep before nothing was found to do.
            let busy = self.record_starts()
                || self.remove_abandoned()
                || self.read_messages()
                || self.record_lost_starts()
                || self.look();
            if busy {
                continue;
            }
            let idle = self.bindings.is_empty() && self.lost.is_empty();
            // SAFETY: outside of a transaction; otherwise autovacuum would not learn of the rows.
            unsafe { pg_sys::pgstat_report_stat(idle) };
            report_activity(None);
            let next = if idle { self.next_extension_check } else { self.next_look };
            sleep(Some(next.saturating_duration_since(Instant::now())));
        }
    }

    /// Finds out whether the extension is there, and is the one that the worker knows.
    fn check_extension(&mut self) -> Result<(), Trouble> {
        self.next_extension_check = Instant::now() + EXTENSION_INTERVAL;
        let extension = extension()?;
        if extension != self.extension && extension != pg_sys::InvalidOid {
            self.bindings = load_bindings()?;
            self.next_look = Instant::now();
        }
        self.extension = extension;
        Ok(())
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

    /// Commits the starts that wait; whether there were any.
    fn record_starts(&mut self) -> bool {
        let taken: Vec<_> = self
            .shared
            .requests_of(self.oid)
            .filter(|request| request.advance(Progress::Queued, Progress::Taken))
            .map(|request| (request, request.start()))
            .collect();
        if taken.is_empty() {
            return false;
        }
        report_activity(Some("recording starts"));
        if let Err(trouble) = self.record(&taken) {
            // Something in it is bad: what, shows when each is alone.
            if taken.len() > 1 {
                for one in &taken {
                    if let Err(trouble) = self.record(std::slice::from_ref(one)) {
                        self.decline(one.0, &trouble);
                    }
                }
            } else {
                taken.iter().for_each(|(request, _)| self.decline(request, &trouble));
            }
        }
        true
    }

    fn decline(&mut self, request: &Request, trouble: &Trouble) {
        let locked = trouble.sqlstate == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE;
        if !locked {
            self.report(trouble);
        }
        request.decline_for_good(if locked { Declined::TableLocked.code() } else { 0 });
    }

    /// Records starts in one transaction, and answers those who wait.
    fn record(&mut self, taken: &[(&'static Request, Start)]) -> Result<(), Trouble> {
        let declined = transaction(|| {
            for table in [c"execution_history", c"binding", c"recorded_loader"] {
                let Some(table) = relation(table) else { continue };
                // SAFETY: in a transaction, at whose end the lock goes.
                let locked = unsafe {
                    pg_sys::ConditionalLockRelationOid(
                        table,
                        pg_sys::RowExclusiveLock.cast_signed(),
                    )
                };
                if !locked {
                    return Err(Error::TableLocked);
                }
            }
            let mut declined = HashSet::new();
            for (_, start) in taken.iter().filter(|(_, start)| start.check_loader) {
                let Some(history) = relation(c"execution_history") else { continue };
                let history = OpenRelation::table(history, pg_sys::RowExclusiveLock);
                if !loader_lock::is_committed(&history, start.loader_id)? {
                    declined.insert(start.execution_id);
                }
            }
            let starts: Vec<_> = taken
                .iter()
                .map(|(_, start)| start)
                .filter(|start| !declined.contains(&start.execution_id))
                .collect();
            insert(&starts)?;
            Ok(declined)
        })?;
        for (request, start) in taken {
            if declined.contains(&start.execution_id) {
                request.decline_for_good(Declined::LoaderUncommitted.code());
            } else {
                let Start { execution_id, xid, subxid, notify, .. } = *start;
                self.bindings
                    .insert(execution_id, Binding { xid, subxid, notify, rolled_back: None });
                answer(request);
            }
        }
        self.next_look = self.next_look.min(Instant::now() + LOOK_INTERVAL);
        Ok(())
    }

    /// Removes what was recorded for callers who had given up on it and recorded it otherwise.
    fn remove_abandoned(&mut self) -> bool {
        let abandoned: Vec<_> = self
            .shared
            .requests_of(self.oid)
            .filter(|request| request.is(Progress::Abandoned))
            .collect();
        if abandoned.is_empty() {
            return false;
        }
        let ids: Vec<_> = abandoned.iter().map(|request| request.start().execution_id).collect();
        let removed = transaction(|| {
            Spi::connect(|client| {
                DELETE_BINDINGS
                    .with(|delete| delete.run(client, Sight::Usual, &[ids.clone().into()]))?;
                DELETE_EXECUTIONS
                    .with(|delete| delete.run(client, Sight::Usual, &[ids.clone().into()]))?;
                Ok(())
            })
        });
        match removed {
            Ok(()) => {
                for request in abandoned {
                    self.bindings.remove(&request.start().execution_id);
                    request.advance(Progress::Abandoned, Progress::Free);
                }
            }
            Err(trouble) => {
                self.report(&trouble);
                return false;
            }
        }
        true
    }

    /// Takes what backends tell; whether there was anything.
    fn read_messages(&mut self) -> bool {
        let messages = self.shared.take_messages(self.oid);
        let any = !messages.is_empty();
        for news in messages {
            match news {
                News::Error { xid, subxid, text } => {
                    self.texts.insert((xid, subxid), text);
                    if subxid == 0 {
                        self.next_look = Instant::now();
                    }
                }
                News::LostStart { execution_id, loader_id, start, text } => {
                    self.lost.push(LostStart { execution_id, loader_id, start, text });
                }
            }
        }
        any
    }

    /// Records the starts that were rolled back with the callers' transactions; whether it did
    /// anything.
    fn record_lost_starts(&mut self) -> bool {
        let lost_starts = std::mem::take(&mut self.lost);
        let before = lost_starts.len();
        for lost in lost_starts {
            let recorded = transaction(|| {
                // Here the foreign key is checked: nobody holds the loader's row for us.
                set_local(c"session_replication_role", c"origin");
                record_lost_start(&lost)
            });
            match recorded {
                Ok(()) => {}
                Err(trouble) if trouble.sqlstate == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE => {
                    self.lost.push(lost);
                }
                // Where the loader itself was rolled back there is nothing to record.
                Err(trouble)
                    if trouble.sqlstate == PgSqlErrorCode::ERRCODE_FOREIGN_KEY_VIOLATION => {}
                Err(trouble) => self.report(&trouble),
            }
        }
        if !self.lost.is_empty() {
            self.next_look = self.next_look.min(Instant::now() + LOOK_INTERVAL);
        }
        self.lost.len() < before
    }

    /// Finds out what became of the open transactions, and acts on it, where that is due; whether it
    /// did anything.
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
        let ids: Vec<_> = self.bindings.iter().map(|(&id, b)| (id, b.xid, b.subxid)).collect();
        let outcomes = transaction(|| {
            Ok(ids
                .iter()
                .map(|&(id, xid, subxid)| {
                    let whole = outcome(xid);
                    let part = if whole == Outcome::Committed && subxid != 0 {
                        outcome(subxid)
                    } else {
                        whole
                    };
                    (id, whole, part)
                })
                .collect::<Vec<_>>())
        });
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(trouble) => {
                self.report(&trouble);
                return true;
            }
        };
        let (mut over, mut closing) = (Vec::new(), Vec::new());
        for (execution_id, whole, part) in outcomes {
            match (whole, part) {
                (Outcome::InProgress, _) => {}
                (_, Outcome::Aborted) => {
                    if let Some(message) = self.failure_message(execution_id, whole, now) {
                        let notify =
                            self.bindings.get(&execution_id).is_some_and(|binding| binding.notify);
                        closing.push(Closing { execution_id, message, notify });
                    }
                }
                (Outcome::Committed, Outcome::Committed) => over.push(execution_id),
                _ => {
                    self.report(&Trouble {
                        sqlstate: PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                        message: format!(
                            "what became of the transaction that started execution {execution_id} is not known any more; it stays RUNNING"
                        ),
                    });
                    over.push(execution_id);
                }
            }
        }
        self.forget(over);
        for some in closing.chunks(CLOSED_AT_ONCE) {
            if let Err(trouble) = self.close(some) {
                if some.len() == 1 {
                    self.report(&trouble);
                }
                for one in some.iter().filter(|_| some.len() > 1) {
                    if let Err(trouble) = self.close(std::slice::from_ref(one)) {
                        self.report(&trouble);
                    }
                }
            }
        }
        let open: HashSet<_> = self.bindings.values().map(|binding| binding.xid).collect();
        self.texts.retain(|(xid, _), _| open.contains(xid));
        true
    }

    /// What the history is to say of a rolled back start; `None` while the error's text may still come.
    fn failure_message(
        &mut self,
        execution_id: i64,
        whole: Outcome,
        now: Instant,
    ) -> Option<String> {
        let binding = self.bindings.get_mut(&execution_id)?;
        let (xid, subxid) = (binding.xid, binding.subxid);
        let text = |key| self.texts.get(&key).filter(|text| !text.is_empty()).cloned();
        let error = if whole == Outcome::Committed {
            text((xid, subxid))
        } else {
            text((xid, 0)).or_else(|| text((xid, subxid)))
        };
        if error.is_some() {
            return error;
        }
        if whole == Outcome::Committed {
            return Some("The savepoint that the execution started in was rolled back.".to_owned());
        }
        if xid < self.shared.first_xid() {
            return Some(
                "The server stopped before the transaction that started the execution had committed."
                    .to_owned(),
            );
        }
        let first_seen = *binding.rolled_back.get_or_insert(now);
        // The rollback was told, without an error; or nobody is left to tell.
        (self.texts.contains_key(&(xid, 0)) || now.duration_since(first_seen) >= TEXT_DELAY)
            .then(|| "The transaction that started the execution was rolled back.".to_owned())
    }

    /// Deletes the bindings of executions that they say nothing about any more.
    fn forget(&mut self, over: Vec<i64>) {
        if over.is_empty() {
            return;
        }
        let deleted = transaction(|| {
            // Where a crash undoes it, it is found out again.
            set_local(c"synchronous_commit", c"off");
            Spi::connect(|client| {
                DELETE_BINDINGS
                    .with(|delete| delete.run(client, Sight::Usual, &[over.clone().into()]))?;
                Ok(())
            })
        });
        match deleted {
            Ok(()) => over.iter().for_each(|id| {
                self.bindings.remove(id);
            }),
            Err(trouble) => self.report(&trouble),
        }
    }

    /// Ends executions whose start was rolled back, but for those whose rows others lock.
    fn close(&mut self, closing: &[Closing]) -> Result<(), Trouble> {
        let closed = transaction(|| {
            // Where a crash undoes it, it is found out again. The triggers fire as for anybody.
            set_local(c"synchronous_commit", c"off");
            set_local(c"session_replication_role", c"origin");
            let mut closed = Vec::new();
            for Closing { execution_id, message, notify } in closing {
                set_local(c"loader_history.notify", if *notify { c"on" } else { c"off" });
                if close_execution(*execution_id, message)? {
                    closed.push(*execution_id);
                }
            }
            Spi::connect(|client| {
                DELETE_BINDINGS
                    .with(|delete| delete.run(client, Sight::Usual, &[closed.clone().into()]))
                    .map(|_| ())
            })?;
            Ok(closed)
        })?;
        for id in closed {
            self.bindings.remove(&id);
        }
        Ok(())
    }
}

/// Answers a request that is recorded.
fn answer(request: &Request) {
    if request.advance(Progress::Taken, Progress::Done) {
        request.waiting.wake();
    } else {
        request.advance(Progress::Unattended, Progress::Free);
    }
}

/// The OID of the extension, where its SQL is of a version that has bindings; else the invalid one.
fn extension() -> Result<pg_sys::Oid, Trouble> {
    transaction(|| {
        // SAFETY: a catalog lookup, in a transaction.
        let oid = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
        Ok(relation(c"binding").map_or(pg_sys::InvalidOid, |_| oid))
    })
}

fn load_bindings() -> Result<HashMap<i64, Binding>, Trouble> {
    transaction(|| {
        Spi::connect(|client| {
            let rows = SELECT_BINDINGS.with(|select| select.run(client, Sight::Usual, &[]))?;
            let number = |row, column| rows.get::<i64>(row, column).unwrap_or_default();
            Ok((0..rows.len())
                .map(|row| {
                    let xid = number(row, 2).cast_unsigned();
                    let subxid = number(row, 3).cast_unsigned();
                    let notify = settings::NOTIFY.get();
                    (number(row, 1), Binding { xid, subxid, notify, rolled_back: None })
                })
                .collect())
        })
    })
}

/// Inserts RUNNING executions and their bindings, and notifies where that is asked for: the trigger
/// does not fire in role "replica".
fn insert(starts: &[&Start]) -> Result<(), Error> {
    let ids: Vec<_> = starts.iter().map(|start| start.execution_id).collect();
    let loaders: Vec<_> = starts.iter().map(|start| start.loader_id).collect();
    let times: Vec<_> =
        starts.iter().map(|start| TimestampWithTimeZone::try_from(start.start).ok()).collect();
    let xids: Vec<_> = starts.iter().map(|start| start.xid.cast_signed()).collect();
    let subxids: Vec<_> = starts.iter().map(|start| start.subxid.cast_signed()).collect();
    Spi::connect(|client| {
        INSERT_STARTS.with(|insert| {
            insert.run(client, Sight::Usual, &[ids.clone().into(), loaders.into(), times.into()])
        })?;
        INSERT_BINDINGS
            .with(|insert| {
                insert.run(client, Sight::Usual, &[ids.into(), xids.into(), subxids.into()])
            })
            .map(|_| ())
    })?;
    for start in starts.iter().filter(|start| start.notify) {
        let time = from_postgres(start.start);
        let mut event = Event::new(start.execution_id, start.loader_id, Status::Running, time);
        event.record_count = Some(0);
        notify::emit(&event)?;
    }
    Ok(())
}

/// Ends an execution as FAILED and notes that the server did; false where its row is locked, so that
/// it is to be tried again.
fn close_execution(execution_id: i64, message: &str) -> Result<bool, Error> {
    Spi::connect(|client| {
        let id = || DatumWithOid::from(execution_id);
        let locked = LOCK_RUNNING.with(|lock| lock.run(client, Sight::Usual, &[id()]))?;
        let Some(start) = locked.get::<TimestampWithTimeZone>(0, 1) else {
            let rows = SELECT_EXECUTION.with(|select| select.run(client, Sight::Usual, &[id()]))?;
            // Gone, or ended by the loader's word.
            return Ok(rows.is_empty() || rows.get::<TimestampWithTimeZone>(0, 2).is_some());
        };
        let start = start.into_inner();
        // SAFETY: reads the clock.
        let end = end_of_execution(start, unsafe { pg_sys::GetCurrentTimestamp() });
        let seconds = duration_seconds(from_postgres(start), from_postgres(end));
        let end = || DatumWithOid::from(TimestampWithTimeZone::try_from(end).ok());
        CLOSE.with(|close| {
            close.run(client, Sight::Usual, &[id(), end(), message.into(), seconds.into()])
        })?;
        INSERT_DERIVED.with(|insert| insert.run(client, Sight::Usual, &[id(), end()]))?;
        Ok(true)
    })
}

/// Records a start that was rolled back: started, and failed.
fn record_lost_start(lost: &LostStart) -> Result<(), Error> {
    let start = TimestampWithTimeZone::try_from(lost.start).ok();
    Spi::connect(|client| {
        INSERT_STARTS.with(|insert| {
            let arguments =
                [vec![lost.execution_id].into(), vec![lost.loader_id].into(), vec![start].into()];
            insert.run(client, Sight::Usual, &arguments).map(|_| ())
        })
    })?;
    let message = if lost.text.is_empty() {
        "The transaction that started the execution was rolled back."
    } else {
        &lost.text
    };
    close_execution(lost.execution_id, message).map(|_| ())
}
