//! Promises: a start without a WARNING is never lost, one with a WARNING is in the history exactly if its transaction
//! has committed, SUCCESS commits with the data, a failure is never lost, and none is false, whatever is killed,
//! stopped, cut off or full meanwhile.
//!
//! Loads of many sessions run while a chaos loop kills what it finds. Each load leaves rows of its own
//! in the transactions that it records in, and what is there in the end says what the history must say.
//! `CHAOS_ROUNDS`, `CHAOS_LOADS` (a round) and `CHAOS_CLIENTS` make it larger.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use pg_test::traces::{DATABASES, assert_none, cluster_for_traces};
use pg_test::{Client, Cluster, Signal, TIMEOUT, column, size, wait_for};
use postgres::error::Severity;
use postgres::{Config, NoTls};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// How many places [`SETTINGS`] gives the queue.
const QUEUE_SIZE: usize = 16;

/// Few places in the queue, so that it is full when the worker stands still, little patience, and room
/// for the transactions that a round leaves prepared.
const SETTINGS: &str = "
loader_history.queue_size = 16
loader_history.worker_timeout = '300ms'
max_prepared_transactions = 1000
";

/// A round lasts until the loop has struck so often, and longer where there are many loads.
const DISTURBANCES: u64 = 12;

/// From so many rounds on, the queue must have been full.
const MANY_ROUNDS: u64 = 10;

/// Starts in transactions of their own that leave no row in `opened`. Their loader has no others.
const BARE_LOADER: i64 = 10;

#[test]
fn the_history_says_what_became_of_every_load() {
    let rounds = size("CHAOS_ROUNDS", 3);
    let loads = size("CHAOS_LOADS", 200);
    let clients = size("CHAOS_CLIENTS", 20);
    let seed = pg_test::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = cluster_for_traces(SETTINGS);
    wait_until_settled(&cluster, &mut random);
    let relay = Relay::start(&cluster);
    let tally = Mutex::new(Tally::default());
    let mut chaos = Counts::new();
    let mut settling = Duration::ZERO;
    for round in 1..=rounds {
        let (started, disturbed) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            let loaders: Vec<_> = (0..clients)
                .map(|number| {
                    let mut loader = Loader::new(&cluster, &relay, &tally, random.random());
                    loader.name = format!("{round}.{number}");
                    let (started, disturbed) = (&started, &disturbed);
                    scope.spawn(move || {
                        while started.fetch_add(1, Ordering::Relaxed) < loads
                            || disturbed.load(Ordering::Relaxed) < DISTURBANCES
                        {
                            loader.load();
                        }
                    })
                })
                .collect();
            let _let_loaders_end = LetLoadersEnd(&disturbed);
            while !loaders.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(Duration::from_millis(random.random_range(10..400)));
                disturb(&mut cluster, &relay, &tally, &mut random, &mut chaos);
                disturbed.fetch_add(1, Ordering::Relaxed);
            }
        });
        settling = settling.max(wait_until_settled(&cluster, &mut random));
        let wrong = lock(&tally).violations(&cluster);
        assert_none(&wrong, &format!("round {round} of seed {seed}"));
        println!("round {round} of {rounds}: {}", Tally::outcomes(&cluster));
    }
    let restarts = check_log(&cluster.log(), &chaos);
    let tally = lock(&tally);
    println!("rounds: {rounds}, clients: {clients}, seed: {seed}");
    println!("{tally}");
    let full = FULL.load(Ordering::Relaxed);
    println!("starts that found the queue full: {full}");
    assert!(full > 0 || rounds < MANY_ROUNDS, "no start found the queue full");
    println!("history: {}", Tally::outcomes(&cluster));
    println!("restarts of the server after a kill -9: {restarts}");
    println!("longest time until all was recorded, after a round: {} ms", settling.as_millis());
    for (what, count) in chaos {
        println!("{what}: {count}");
    }
}

/// Has the loaders end where the chaos loop panics: the scope would wait for them for ever.
struct LetLoadersEnd<'a>(&'a AtomicU64);

impl Drop for LetLoadersEnd<'_> {
    fn drop(&mut self) {
        self.0.store(DISTURBANCES, Ordering::Relaxed);
    }
}

/// What is told is still right where a thread has panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A connection, as soon as the server gives one.
fn connect(config: &Config) -> Client {
    let mut client = None;
    wait_for("a connection", || {
        client = config.connect(NoTls).ok();
        client.is_some()
    });
    client.expect("a connection")
}

// The loads

/// A start whose call returned.
struct Returned {
    loader_id: i64,
    /// Whether it came with a WARNING: it is in the transaction.
    warned: bool,
    /// What [`CRASHES`] said before: a crash may give the id of a start that is lost to another.
    crashes: u64,
}

/// Counts how often the server is taken down, before it is and after.
static CRASHES: AtomicU64 = AtomicU64::new(0);

/// What the WARNING of a start says that finds no place.
const QUEUE_IS_FULL: &str = "The queue to the background workers is full.";

/// Counts the starts that found the queue full.
static FULL: AtomicU64 = AtomicU64::new(0);

/// Takes the server down.
fn crash<R>(how: impl FnOnce() -> R) -> R {
    CRASHES.fetch_add(1, Ordering::SeqCst);
    let result = how();
    CRASHES.fetch_add(1, Ordering::SeqCst);
    result
}

/// What the clients know.
#[derive(Default)]
struct Tally {
    loads: usize,
    starts: usize,
    warned: usize,
    /// By database and execution.
    returned: HashMap<(usize, i64), Returned>,
    /// Bare starts whose transaction is known to have committed.
    bare: HashSet<(usize, i64)>,
    /// How many bare starts got no answer.
    unanswered: [usize; 2],
    /// What only a client can see.
    wrong: Vec<String>,
    errors: BTreeMap<String, usize>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "loads: {}", self.loads)?;
        writeln!(f, "errors that clients got: {:?}", self.errors)?;
        write!(f, "starts that returned: {}, with a WARNING: {}", self.starts, self.warned)
    }
}

/// A client that runs loads.
struct Loader<'a> {
    tally: &'a Mutex<Tally>,
    name: String,
    random: StdRng,
    /// How to connect: at once, or through the relay.
    configs: [Config; 2],
    warnings: Arc<AtomicU64>,
    client: Option<Client>,
    /// The database that the client is connected to, by its place among all.
    database: usize,
    /// Executions of the current load that a rollback would make fail.
    ids: Vec<i64>,
    /// Whether a start of the current load came with a WARNING.
    warned: bool,
    /// Whether the load is to be prepared.
    two_phase: bool,
    /// How far the end of the current load's transaction has come.
    ending: Ending,
    loads: usize,
}

/// How far the end of a transaction has come.
#[derive(PartialEq, Eq)]
enum Ending {
    /// It was not asked for: a lost connection means a rollback.
    Not,
    /// It was asked for, and may have come about unless the server says otherwise.
    Asked,
    /// It is prepared, so that even an error leaves it open.
    Prepared,
}

type Outcome = Result<(), postgres::Error>;

impl<'a> Loader<'a> {
    fn new(cluster: &Cluster, relay: &Relay, tally: &'a Mutex<Tally>, seed: u64) -> Self {
        let warnings = Arc::new(AtomicU64::new(0));
        let mut configs = [cluster.config("postgres", "postgres"), Config::new()];
        configs[1].host_path(&relay.directory).user("postgres");
        for config in &mut configs {
            let warnings = Arc::clone(&warnings);
            config.application_name("load").notice_callback(move |notice| {
                if notice.message().ends_with("was recorded in this transaction") {
                    warnings.fetch_add(1, Ordering::Relaxed);
                }
                if notice.detail().is_some_and(|detail| detail.starts_with(QUEUE_IS_FULL)) {
                    FULL.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self {
            tally,
            name: String::new(),
            random: StdRng::seed_from_u64(seed),
            configs,
            warnings,
            client: None,
            database: 1,
            ids: Vec::new(),
            warned: false,
            two_phase: false,
            ending: Ending::Not,
            loads: 0,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    /// The connection: the one that there is, or a new one.
    fn client(&mut self) -> &mut Client {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            self.connect();
        }
        self.client.as_mut().expect("a connection")
    }

    fn connect(&mut self) {
        let config = &mut self.configs[usize::from(self.random.random_ratio(1, 3))];
        self.client = Some(connect(config.dbname(DATABASES[self.database])));
    }

    fn run(&mut self, sql: &str) -> Outcome {
        if self.chance(40) {
            thread::sleep(Duration::from_millis(self.random.random_range(0..40)));
        }
        // A connection that was lost must not be replaced in the middle of a load.
        self.client.as_mut().expect("a connection").batch_execute(sql)
    }

    /// Runs one load, and whatever its loader does when it fails.
    fn load(&mut self) {
        lock(self.tally).loads += 1;
        self.loads += 1;
        if self.chance(10) {
            self.client = None;
            self.database = self.random.random_range(0..DATABASES.len());
        }
        self.client();
        self.ids.clear();
        self.warned = false;
        self.ending = Ending::Not;
        self.two_phase = false;
        let result = match self.random.random_range(0..8) {
            0 | 1 => self.at_once(),
            2 | 3 => self.apart(),
            4 => self.several(),
            5 => self.in_a_savepoint(),
            6 => self.in_one_statement(),
            _ => self.without_an_end(),
        };
        self.note(result);
    }

    /// Notes what a load met.
    fn note(&self, result: Outcome) {
        let Err(error) = result else { return };
        let code = error.code().map(|code| code.code().to_owned());
        let mut tally = lock(self.tally);
        // What the loads and the chaos bring about. Recording itself makes no load fail, but for a
        // start that came with a WARNING, was rolled back with a savepoint, and is gone.
        let expected = match code.as_deref() {
            Some("P0002") => self.warned,
            Some(code) => ["22012", "57014", "57P01", "57P02", "57P03"].contains(&code),
            None => true,
        };
        if !expected {
            tally.wrong.push(format!("{}: a load failed: {error:?}", DATABASES[self.database]));
        }
        let code = code.unwrap_or_else(|| "connection lost".to_owned());
        *tally.errors.entry(code).or_default() += 1;
    }

    /// Runs a load's transaction. Where it is known to have failed, the loader may say so, or try
    /// again.
    fn transaction(&mut self, body: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        let level = *["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
            .choose(&mut self.random)
            .expect("a level");
        self.two_phase = self.chance(12);
        let result = self
            .run(&format!("BEGIN ISOLATION LEVEL {level}"))
            .and_then(|()| body(self))
            .and_then(|()| self.finish());
        if let Err(error) = &result {
            let refused = error
                .as_db_error()
                .is_some_and(|error| error.parsed_severity() == Some(Severity::Error));
            let rolled_back = self.client.as_mut().is_some_and(|client| {
                !client.is_closed() && client.batch_execute("ROLLBACK").is_ok()
            });
            if !rolled_back {
                self.client = None;
            }
            if self.ending == Ending::Not || (self.ending == Ending::Asked && refused) {
                self.after_a_failure();
            }
        }
        result
    }

    /// Ends the transaction of a load that has done its work, in one way or another.
    fn finish(&mut self) -> Outcome {
        match self.random.random_range(0..100) {
            0..8 => {
                self.run("ROLLBACK")?;
                self.after_a_failure();
                Ok(())
            }
            8..14 => self.run("SELECT 1 / 0"),
            // Says goodbye within the transaction.
            14..18 => {
                self.client = None;
                self.after_a_failure();
                Ok(())
            }
            _ if self.two_phase => {
                let name = format!("{}.{}", self.name, self.loads);
                self.ending = Ending::Asked;
                self.run(&format!("PREPARE TRANSACTION '{name}'"))?;
                self.ending = Ending::Prepared;
                match self.random.random_range(0..10) {
                    0..6 => self.run(&format!("COMMIT PREPARED '{name}'")),
                    6..8 => {
                        self.run(&format!("ROLLBACK PREPARED '{name}'"))?;
                        self.after_a_failure();
                        Ok(())
                    }
                    // Left to whoever settles the round.
                    _ => Ok(()),
                }
            }
            _ => {
                self.ending = Ending::Asked;
                self.run("COMMIT")
            }
        }
    }

    /// What a loader does that knows that its load has failed: nothing, report it, or do it again.
    fn after_a_failure(&mut self) {
        let tally = lock(self.tally);
        let database = self.database;
        // An id that came with a WARNING is gone with the transaction.
        let ids: Vec<_> = std::mem::take(&mut self.ids)
            .into_iter()
            .filter(|&id| tally.returned.get(&(database, id)).is_some_and(|it| !it.warned))
            .collect();
        drop(tally);
        for id in ids {
            let sql = match self.random.random_range(0..3) {
                0 => format!("{}; {}", report(id), end(id, "FAILED")),
                1 => format!("BEGIN; {}; {}; COMMIT", mark(id), end(id, "SUCCESS")),
                _ => continue,
            };
            // It may fail as everything may; rows tell what came of it.
            self.client();
            if self.run(&sql).is_err() && self.run("ROLLBACK").is_err() {
                self.client = None;
            }
        }
    }

    /// Starts an execution; in a transaction of its own where `bare` says so, without a trace there.
    fn start(&mut self, bare: bool) -> Result<i64, postgres::Error> {
        let loader_id = if bare { BARE_LOADER } else { self.random.random_range(1..BARE_LOADER) };
        let sql = if bare {
            "SELECT loader.record_execution_start($1)"
        } else {
            "WITH started AS MATERIALIZED (SELECT loader.record_execution_start($1) AS id) \
             INSERT INTO opened SELECT id FROM started RETURNING execution_id"
        };
        let warnings = self.warnings.load(Ordering::Relaxed);
        let crashes = CRASHES.load(Ordering::SeqCst);
        let answer = self.client.as_mut().expect("a connection").query_one(sql, &[&loader_id]);
        let warned = self.warnings.load(Ordering::Relaxed) != warnings;
        let mut tally = lock(self.tally);
        let id = match answer {
            Ok(row) => row.get(0),
            Err(error) => {
                tally.unanswered[self.database] += usize::from(bare);
                return Err(error);
            }
        };
        tally.starts += 1;
        tally.warned += usize::from(warned);
        self.warned |= warned;
        let key = (self.database, id);
        if bare {
            tally.bare.insert(key);
        }
        if let Some(before) = tally.returned.insert(key, Returned { loader_id, warned, crashes })
            && !before.warned
        {
            tally.wrong.push(format!("{}: execution {id} was returned twice", DATABASES[key.0]));
        }
        Ok(id)
    }

    /// Does an execution's work, and reports it.
    fn work(&mut self, id: i64) -> Outcome {
        if self.chance(15) {
            self.run("SAVEPOINT part")?;
            let _ = self.run(&format!("{}; SELECT 1 / 0", mark(id)));
            self.run("ROLLBACK TO part")?;
        }
        if self.chance(15) {
            self.run(
                "DO $$ BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END $$",
            )?;
        }
        if self.chance(10) {
            self.run(&report(id))?;
            return self.run(&end(id, "FAILED"));
        }
        if self.chance(15) {
            self.run("SAVEPOINT part")?;
            self.run(&end(id, "FAILED"))?;
            self.run("ROLLBACK TO part")?;
        }
        self.run(&mark(id))?;
        self.run(&end(id, "SUCCESS"))
    }

    /// Start, work and end in one transaction.
    fn at_once(&mut self) -> Outcome {
        self.transaction(|loader| {
            let id = loader.start(false)?;
            loader.ids.push(id);
            loader.work(id)
        })
    }

    /// The start in a transaction of its own, work and end in another; or never.
    fn apart(&mut self) -> Outcome {
        let bare = self.chance(50);
        let id = self.start(bare)?;
        match self.random.random_range(0..10) {
            0 => {
                self.client = None;
                return Ok(());
            }
            1 => self.connect(),
            _ => {}
        }
        // A rollback of this transaction says nothing of the execution, so there is no word of the
        // server's to correct; the loader may still report.
        self.ids.push(id);
        self.transaction(|loader| loader.work(id))
    }

    /// Several executions in one transaction.
    fn several(&mut self) -> Outcome {
        self.transaction(|loader| {
            for _ in 0..loader.random.random_range(2..5) {
                let id = loader.start(false)?;
                loader.ids.push(id);
                loader.work(id)?;
            }
            Ok(())
        })
    }

    /// A start that may be rolled back with a savepoint, and perhaps ended nevertheless.
    fn in_a_savepoint(&mut self) -> Outcome {
        self.transaction(|loader| {
            loader.run("SAVEPOINT start")?;
            let id = loader.start(false)?;
            loader.ids.push(id);
            match loader.random.random_range(0..3) {
                0 => loader.run("RELEASE start")?,
                1 => {
                    let _ = loader.run("SELECT 1 / 0");
                    loader.run("ROLLBACK TO start")?;
                }
                _ => loader.run("ROLLBACK TO start")?,
            }
            if loader.chance(50) { loader.work(id) } else { Ok(()) }
        })
    }

    /// A load in PL/pgSQL whose client never learns the execution's id.
    fn in_one_statement(&mut self) -> Outcome {
        let loader_id = self.random.random_range(1..BARE_LOADER);
        let last = *["NULL", "NULL", "NULL", "PERFORM 1 / 0", "PERFORM pg_sleep(0.02)"]
            .choose(&mut self.random)
            .expect("an end");
        self.run(&format!(
            "DO $$
             DECLARE
                 id bigint;
             BEGIN
                 id := loader.record_execution_start({loader_id});
                 INSERT INTO opened VALUES (id);
                 BEGIN
                     INSERT INTO loaded VALUES (id);
                     PERFORM 1 / (random() * 2)::integer;
                 EXCEPTION WHEN division_by_zero THEN
                     INSERT INTO loaded VALUES (id);
                 END;
                 PERFORM loader.record_execution_end(id, 'SUCCESS', 1);
                 {last};
             END
             $$"
        ))
    }

    /// A load that commits its start and never ends.
    fn without_an_end(&mut self) -> Outcome {
        self.transaction(|loader| {
            let id = loader.start(false)?;
            loader.ids.push(id);
            Ok(())
        })
    }
}

fn mark(id: i64) -> String {
    format!("INSERT INTO loaded VALUES ({id})")
}

fn report(id: i64) -> String {
    format!("INSERT INTO reported VALUES ({id})")
}

fn end(id: i64, status: &str) -> String {
    format!("SELECT loader.record_execution_end({id}, '{status}', 1)")
}

// The chaos

/// How often something was done.
type Counts = BTreeMap<&'static str, usize>;

const KILLED_BACKEND: &str = "kill -9 of a backend";
const KILLED_WORKER: &str = "kill -9 of a worker";
const KILLED_LAUNCHER: &str = "kill -9 of the launcher";

/// Does something bad, and counts it; `None` where there was nobody to do it to.
fn disturb(
    cluster: &mut Cluster,
    relay: &Relay,
    tally: &Mutex<Tally>,
    random: &mut StdRng,
    counts: &mut Counts,
) -> Option<()> {
    const LOADER: &str = "backend_type = 'client backend' AND application_name = 'load'";
    const WORKER: &str = "backend_type = 'loader_history worker'";
    const LAUNCHER: &str = "backend_type = 'loader_history launcher'";
    let mut admin = connect(&cluster.config("postgres", "postgres"));
    let mut pick = |who: &str| -> Option<Pid> {
        let query =
            format!("SELECT pid FROM pg_stat_activity WHERE {who} ORDER BY random() LIMIT 1");
        admin.query_opt(&query, &[]).ok()?.map(|row| Pid::from_raw(row.get(0)))
    };
    let mut done = |what| *counts.entry(what).or_insert(0) += 1;
    match random.random_range(0..18) {
        0 | 1 => kill_9(pick(LOADER)?).then(|| done(KILLED_BACKEND)),
        2 => kill_9(pick(WORKER)?).then(|| done(KILLED_WORKER)),
        3 => kill_9(pick(LAUNCHER)?).then(|| done(KILLED_LAUNCHER)),
        4 => {
            drop(admin);
            crash(|| cluster.crash_server());
            cluster.start_server();
            done("immediate stop of the server");
            Some(())
        }
        // As pg_terminate_backend() and pg_cancel_backend() do.
        5..=7 => kill(pick(LOADER)?, Signal::SIGTERM).ok().map(|()| done("backend terminated")),
        8 => kill(pick(WORKER)?, Signal::SIGTERM).ok().map(|()| done("worker terminated")),
        9 => kill(pick(LAUNCHER)?, Signal::SIGTERM).ok().map(|()| done("launcher terminated")),
        10 | 11 => kill(pick(LOADER)?, Signal::SIGINT).ok().map(|()| done("statement cancelled")),
        12..=14 => {
            let worker = pick(WORKER)?;
            // Stopped with one of PostgreSQL's own locks the worker holds up every process, and whoever asks.
            let backend = random.random_ratio(1, 4).then(|| pick(LOADER)).flatten();
            kill(worker, Signal::SIGSTOP).ok()?;
            done("worker stopped for a moment");
            thread::sleep(Duration::from_millis(random.random_range(50..2_500)));
            // Sometimes the server goes down before the worker goes on.
            if let Some(backend) = backend
                && kill_9(backend)
            {
                done(KILLED_BACKEND);
            }
            kill(worker, Signal::SIGCONT).ok()
        }
        15 => {
            let database = random.random_range(0..DATABASES.len());
            let worker = pick(&format!("{WORKER} AND datname = '{}'", DATABASES[database]))?;
            let mut loaders: Vec<_> = (0..QUEUE_SIZE * 2)
                .map(|_| Loader::new(cluster, relay, tally, random.random()))
                .collect();
            for loader in &mut loaders {
                loader.database = database;
                loader.connect();
            }
            kill(worker, Signal::SIGSTOP).ok()?;
            done("more starts at once than the queue has places");
            thread::scope(|scope| {
                for mut loader in loaders {
                    scope.spawn(move || {
                        let result = loader.start(true).map(|_| ());
                        loader.note(result);
                    });
                }
                // Before they have ended: the worker may have been stopped with a lock that they wait for.
                thread::sleep(Duration::from_millis(random.random_range(100..600)));
                kill(worker, Signal::SIGCONT).ok()
            })
        }
        _ => relay.cut(random).then(|| done("connections cut")),
    }
}

/// Kills a process, and waits until the postmaster has noticed: whoever connects afterwards finds the
/// server as it is after the crash.
fn kill_9(pid: Pid) -> bool {
    crash(|| {
        let killed = kill(pid, Signal::SIGKILL).is_ok();
        wait_for("the killed process to be gone", || kill(pid, None).is_err());
        killed
    })
}

/// Checks that the server went down only where it was made to; how often it did over a kill -9.
fn check_log(log: &str, counts: &Counts) -> usize {
    let lines = |what: &str| log.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
    for bad in ["PANIC", "TRAP", "stuck spinlock", "ssertion", "panicked"] {
        let found = lines(bad);
        assert!(found.is_empty(), "{found:#?}");
    }
    let killed = lines("was terminated by signal");
    assert!(killed.iter().all(|line| line.contains("by signal 9:")), "{killed:#?}");
    let kills: usize = [KILLED_BACKEND, KILLED_WORKER, KILLED_LAUNCHER]
        .iter()
        .filter_map(|what| counts.get(what))
        .sum();
    // Who was ending anyway, or killed when the server was already going down, leaves no line.
    assert!(killed.len() <= kills, "{kills} kills, and {killed:#?}");
    let restarts = lines("terminating any other active server processes");
    assert!(restarts.len() <= killed.len(), "{killed:#?} {restarts:#?}");
    restarts.len()
}

/// Passes connections on to the server, and can cut them without a word.
struct Relay {
    directory: PathBuf,
    open: Arc<Mutex<Vec<Weak<UnixStream>>>>,
}

impl Relay {
    fn start(cluster: &Cluster) -> Self {
        const SOCKET: &str = ".s.PGSQL.5432";
        let directory = cluster.directory().join("relay");
        fs::create_dir(&directory).expect("a directory");
        let listener = UnixListener::bind(directory.join(SOCKET)).expect("a socket");
        let server = cluster.directory().join(SOCKET);
        let open = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::clone(&open);
        // Ends with the process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Where the server is down, the client sees its connection closed.
                let Ok(server) = UnixStream::connect(&server) else { continue };
                let (client, server) = (Arc::new(client), Arc::new(server));
                lock(&connections).push(Arc::downgrade(&client));
                for (from, to) in [(client.clone(), server.clone()), (server, client)] {
                    thread::spawn(move || {
                        let _ = io::copy(&mut &*from, &mut &*to);
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { directory, open }
    }

    /// Cuts some connections; whether there were any.
    fn cut(&self, random: &mut StdRng) -> bool {
        let mut open = lock(&self.open);
        open.retain(|client| client.strong_count() > 0);
        let (cut, keep) = open.drain(..).partition(|_| random.random());
        *open = keep;
        let cut: Vec<_> = cut;
        cut.iter()
            .filter_map(Weak::upgrade)
            .filter(|client| client.shutdown(Shutdown::Both).is_ok())
            .count()
            > 0
    }
}

// The calm

/// Decides what is left prepared, and waits until the workers have recorded everything; how long they
/// took once nothing happened any more.
fn wait_until_settled(cluster: &Cluster, random: &mut StdRng) -> Duration {
    let mut clients = DATABASES.map(|database| connect(&cluster.config(database, "postgres")));
    wait_for("the sessions to end", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'load'";
        column::<i64>(&mut clients[0], query) == [0]
    });
    let names = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1";
    for client in &mut clients {
        for name in column::<String>(client, names) {
            let what = if random.random() { "COMMIT" } else { "ROLLBACK" };
            client.batch_execute(&format!("{what} PREPARED '{name}'")).unwrap();
        }
    }
    let calm = Instant::now();
    for (client, database) in clients.iter_mut().zip(DATABASES) {
        let mut unsettled = || {
            let query = "
                SELECT concat_ws('; ', obstacle, queue_depth || ' starts wait', last_error,
                           (SELECT string_agg(format('execution %s, transaction %s: %s',
                                       execution_id, xid, pg_xact_status(xid)), '; ')
                            FROM loader_history.watched_transaction))
                FROM loader_history.recorder_state()
                WHERE obstacle IS NOT NULL OR queue_depth > 0
                   OR EXISTS (SELECT FROM loader_history.watched_transaction)
                   OR EXISTS (SELECT FROM loader_history.prepared_change)";
            column::<String>(client, query).pop()
        };
        while let Some(state) = unsettled() {
            assert!(calm.elapsed() < TIMEOUT, "database {database} does not settle: {state}");
            thread::sleep(Duration::from_millis(5));
        }
    }
    calm.elapsed()
}

impl Tally {
    /// What the history says that is not so, or does not say.
    fn violations(&self, cluster: &Cluster) -> Vec<String> {
        let mut wrong = self.wrong.clone();
        let crashes = CRASHES.load(Ordering::SeqCst);
        for (place, database) in DATABASES.iter().enumerate() {
            let mut client = connect(&cluster.config(database, "postgres"));
            let query = "SELECT id, loader_id, status, error_message FROM loader.execution_history";
            let history: HashMap<i64, _> = client
                .query(query, &[])
                .unwrap()
                .iter()
                .map(|row| {
                    let row: (i64, i64, String, Option<String>) =
                        (row.get(0), row.get(1), row.get(2), row.get(3));
                    (row.0, row)
                })
                .collect();
            let mut executions_in = |table: &str| {
                let rows = column::<i64>(&mut client, &format!("SELECT * FROM {table}"));
                let ids: HashSet<i64> = rows.iter().copied().collect();
                if ids.len() < rows.len() {
                    wrong.push(format!("{database}: an execution has done its work twice"));
                }
                ids
            };
            let (opened, loaded, reported) =
                (executions_in("opened"), executions_in("loaded"), executions_in("reported"));
            let returned = |id: i64| {
                let start = self.returned.get(&(place, id));
                start.filter(|start| !start.warned || start.crashes == crashes)
            };
            let mut open_bare = 0;
            for (&id, (_, loader_id, status, error)) in &history {
                let has_committed = opened.contains(&id) || self.bare.contains(&(place, id));
                if !has_committed && returned(id).is_some_and(|start| start.warned) {
                    wrong.push(format!(
                        "{database}: execution {id} is {status} ({error:?}): its start came with a WARNING, and \
                         was rolled back"
                    ));
                }
                let expected = if loaded.contains(&id) {
                    "SUCCESS"
                } else if reported.contains(&id) {
                    "FAILED"
                } else if has_committed {
                    "RUNNING"
                } else if *loader_id == BARE_LOADER && returned(id).is_none() {
                    // Nobody knows whether its start has committed.
                    open_bare += usize::from(status == "RUNNING");
                    continue;
                } else {
                    "FAILED"
                };
                let other_loader = returned(id).is_some_and(|start| start.loader_id != *loader_id);
                if status != expected || other_loader {
                    wrong.push(format!(
                        "{database}: execution {id} of loader {loader_id} is {status} ({error:?}), \
                         not {expected}: its start {}, its work {}, its report {}; {}",
                        committed(has_committed),
                        committed(loaded.contains(&id)),
                        committed(reported.contains(&id)),
                        match returned(id) {
                            None => "its client has not seen it".to_owned(),
                            Some(Returned { loader_id, warned, .. }) => format!(
                                "returned to loader {loader_id} {} a WARNING",
                                if *warned { "with" } else { "without" }
                            ),
                        },
                    ));
                }
            }
            if open_bare > self.unanswered[place] {
                wrong.push(format!(
                    "{database}: {open_bare} executions of loader {BARE_LOADER} are RUNNING, and {} \
                     starts got no answer",
                    self.unanswered[place]
                ));
            }
            let autonomous = self
                .returned
                .iter()
                .filter(|((at, id), start)| {
                    *at == place && (!start.warned || self.bare.contains(&(place, *id)))
                })
                .map(|(&(_, id), _)| (id, "returned"));
            let rows = [(&opened, "in opened"), (&loaded, "in loaded"), (&reported, "in reported")];
            let rows = rows.iter().flat_map(|&(ids, how)| ids.iter().map(move |&id| (id, how)));
            for (id, how) in autonomous.chain(rows).filter(|(id, _)| !history.contains_key(id)) {
                wrong.push(format!("{database}: execution {id}, {how}, is not in the history"));
            }
        }
        wrong
    }

    /// How the executions ended, for a reader.
    fn outcomes(cluster: &Cluster) -> String {
        let mut counts = BTreeMap::new();
        for database in DATABASES {
            let mut client = connect(&cluster.config(database, "postgres"));
            for status in
                column::<String>(&mut client, "SELECT status FROM loader.execution_history")
            {
                *counts.entry(status).or_insert(0) += 1;
            }
        }
        format!("{counts:?}")
    }
}

const fn committed(committed: bool) -> &'static str {
    if committed { "has committed" } else { "has not" }
}
