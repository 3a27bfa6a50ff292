//! Promise: what the standby has is what the new primary says. No SUCCESS is without its data and no data without
//! its SUCCESS, what was open on the old primary is FAILED, and what was not is not. The same after
//! `pg_rewind` and after a restore to a point in time.
//!
//! Loads of many sessions leave rows of their own in the transactions that they record in; what is there of
//! these rows on the new primary says what its history must say. `FAILOVER_ROUNDS`, `FAILOVER_CLIENTS` and
//! `PG_TEST_SEED` make it larger and repeat it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pg_test::traces::{DATABASES, assert_none, cluster_for_traces};
use pg_test::{
    Client, Cluster, HISTORY, Listener, Session, Signal, assert_autonomous_in, assert_same_reads,
    catch_up, column, launchers, send_signal, size, sqlstate, status_of, stop_replication,
    wait_for_equal, wait_for_served,
};
use postgres::NoTls;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

/// `pg_rewind` needs the hints in the log, and the log since the two servers went different ways.
const SETTINGS: &str = "
max_prepared_transactions = 1000
wal_log_hints = on
wal_keep_size = '1GB'
";

/// How many executions [`HISTORY`] has.
const HISTORY_LENGTH: i64 = 302;

/// Starts in transactions of their own that leave no row in `opened`. Their loader has no others.
const BARE_LOADER: i64 = 9;

const SERVER_STOPPED: &str =
    "The server stopped before the transaction that started the execution had committed.";

/// What the history may say of a start that was rolled back.
const FAILURES: [&str; 4] = [
    SERVER_STOPPED,
    "The transaction that started the execution was rolled back.",
    "The savepoint that the execution started in was rolled back.",
    "22012: division by zero",
];

/// A primary with both databases, in which all is recorded.
fn primary_with(settings: &str) -> Cluster {
    let primary = cluster_for_traces(&format!("{SETTINGS}{settings}"));
    primary.connect().batch_execute(HISTORY).unwrap();
    wait_until_settled(&primary);
    primary
}

// The loads

/// What a client was told of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Nothing: it was open.
    Open,
    /// It had asked for the end, and got no answer.
    Asked,
    Committed,
    RolledBack,
    Prepared,
}

/// What an execution's starting transaction leaves of its own, where it commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trace {
    /// A row in `opened`.
    Row,
    /// None: it did nothing else.
    Bare,
    /// None: the start was rolled back with a savepoint.
    Undone,
}

/// What a client knows of an execution whose start returned.
#[derive(Debug)]
struct Known {
    database: usize,
    id: i64,
    /// Whether the start came with a WARNING.
    warned: bool,
    trace: Trace,
    /// The name that its load prepares transactions under.
    gid: String,
    /// Of the transaction that started it.
    start: Told,
    /// Of the transaction that reported SUCCESS, where that was another.
    end: Option<Told>,
}

type Outcome<T = ()> = Result<T, postgres::Error>;

/// A client that runs loads until its server is gone.
struct Loader {
    name: String,
    random: StdRng,
    database: usize,
    client: Client,
    warnings: Arc<AtomicUsize>,
    known: Vec<Known>,
    /// The executions that the current transaction has started, and those that it ends, by their places.
    started: Vec<usize>,
    ended: Vec<usize>,
    loads: usize,
}

impl Loader {
    fn new(primary: &Cluster, database: usize, name: String, seed: u64) -> Self {
        let warnings = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&warnings);
        let mut config = primary.config(DATABASES[database], "postgres");
        config.notice_callback(move |notice| {
            count.fetch_add(usize::from(notice.severity() == "WARNING"), Ordering::Relaxed);
        });
        Self {
            name,
            random: StdRng::seed_from_u64(seed),
            database,
            client: config.connect(NoTls).expect("a connection"),
            warnings,
            known: Vec::new(),
            started: Vec::new(),
            ended: Vec::new(),
            loads: 0,
        }
    }

    /// Runs loads until the server is gone or `stop` says so; what this client then knows.
    fn run(mut self, stop: &AtomicBool) -> Vec<Known> {
        while !stop.load(Ordering::Relaxed) {
            self.loads += 1;
            self.started.clear();
            self.ended.clear();
            if let Err(error) = self.load() {
                assert!(error.as_db_error().is_none(), "a load failed: {error:?}");
                break;
            }
        }
        self.known
    }

    fn load(&mut self) -> Outcome {
        match self.random.random_range(0..12) {
            0..3 => self.transaction(|loader| {
                let place = loader.start(false)?;
                loader.succeed(place)
            }),
            3..5 => {
                let bare = self.random.random();
                let place = self.start(bare)?;
                self.tell(Told::Committed);
                self.started.clear();
                self.transaction(|loader| {
                    loader.ended.push(place);
                    loader.succeed(place)
                })
            }
            5 | 6 => self.transaction(|loader| {
                loader.execute("SAVEPOINT start")?;
                let place = loader.start(false)?;
                if loader.random.random() {
                    loader.execute("ROLLBACK TO start")?;
                    loader.known[place].trace = Trace::Undone;
                } else {
                    loader.execute("RELEASE start")?;
                }
                if loader.random.random() { loader.succeed(place) } else { Ok(()) }
            }),
            7 => {
                let bare = self.random.random();
                self.start(bare)?;
                self.tell(Told::Committed);
                Ok(())
            }
            8 => self.transaction(|loader| {
                let place = loader.start(false)?;
                let id = loader.known[place].id;
                loader.execute(&format!("INSERT INTO reported VALUES ({id})"))?;
                loader.end(id, "FAILED")
            }),
            9 => self.transaction(|loader| {
                for _ in 0..3 {
                    let place = loader.start(false)?;
                    loader.succeed(place)?;
                }
                Ok(())
            }),
            // A long one.
            _ => self.transaction(|loader| {
                let place = loader.start(false)?;
                loader.succeed(place)?;
                thread::sleep(Duration::from_millis(loader.random.random_range(20..300)));
                Ok(())
            }),
        }
    }

    fn gid(&self) -> String {
        format!("{}.{}", self.name, self.loads)
    }

    fn execute(&mut self, sql: &str) -> Outcome {
        self.client.batch_execute(sql)
    }

    /// Notes what the client is told of the transaction that it is in.
    fn tell(&mut self, told: Told) {
        for &place in &self.started {
            self.known[place].start = told;
        }
        for &place in &self.ended {
            self.known[place].end = Some(told);
        }
    }

    /// Runs a transaction, and ends it in one way or another.
    fn transaction(&mut self, body: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        self.execute("BEGIN")?;
        body(self)?;
        if !self.ended.is_empty() {
            self.tell(Told::Open);
        }
        let name = self.gid();
        match self.random.random_range(0..100) {
            0..10 => self.finish("ROLLBACK", Told::RolledBack),
            10..20 => {
                self.tell(Told::Asked);
                if let Err(error) = self.execute("SELECT 1 / 0")
                    && error.as_db_error().is_none()
                {
                    return Err(error);
                }
                self.finish("ROLLBACK", Told::RolledBack)
            }
            20..40 => {
                self.finish(&format!("PREPARE TRANSACTION '{name}'"), Told::Prepared)?;
                match self.random.random_range(0..10) {
                    0 => Ok(()),
                    1..6 => self.finish(&format!("COMMIT PREPARED '{name}'"), Told::Committed),
                    _ => self.finish(&format!("ROLLBACK PREPARED '{name}'"), Told::RolledBack),
                }
            }
            _ => self.finish("COMMIT", Told::Committed),
        }
    }

    fn finish(&mut self, sql: &str, told: Told) -> Outcome {
        self.tell(Told::Asked);
        self.execute(sql)?;
        self.tell(told);
        Ok(())
    }

    /// Starts an execution, which then has the returned place among those known.
    fn start(&mut self, bare: bool) -> Outcome<usize> {
        let loader_id = if bare { BARE_LOADER } else { self.random.random_range(1..BARE_LOADER) };
        let sql = if bare {
            "SELECT loader.record_execution_start($1)"
        } else {
            "WITH started AS MATERIALIZED (SELECT loader.record_execution_start($1) AS id) \
             INSERT INTO opened SELECT id FROM started RETURNING execution_id"
        };
        let warnings = self.warnings.load(Ordering::Relaxed);
        let id = self.client.query_one(sql, &[&loader_id])?.get(0);
        let warned = self.warnings.load(Ordering::Relaxed) != warnings;
        let database = self.database;
        let (gid, start) = (self.gid(), Told::Open);
        self.started.push(self.known.len());
        let trace = if bare { Trace::Bare } else { Trace::Row };
        self.known.push(Known { database, id, warned, trace, gid, start, end: None });
        Ok(self.known.len() - 1)
    }

    fn end(&mut self, id: i64, status: &str) -> Outcome {
        self.execute(&format!("SELECT loader.record_execution_end({id}, '{status}', 1)"))
    }

    fn succeed(&mut self, place: usize) -> Outcome {
        let id = self.known[place].id;
        self.execute(&format!("INSERT INTO loaded VALUES ({id})"))?;
        self.end(id, "SUCCESS")
    }
}

/// Has the clients stop, also where a panic drops it: the scope would wait for them for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs loads of many clients while `meanwhile` runs, which may take the server away; what the clients know.
fn run_loads(
    primary: &mut Cluster,
    round: u64,
    clients: u64,
    random: &mut StdRng,
    meanwhile: impl FnOnce(&mut Cluster, &mut StdRng),
) -> Vec<Known> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let loaders: Vec<_> = (0..clients)
            .map(|number| {
                let database = usize::from(number % 3 == 2);
                let name = format!("{round}.{number}");
                let loader = Loader::new(primary, database, name, random.random());
                let stop = &stop;
                scope.spawn(move || loader.run(stop))
            })
            .collect();
        let stops = Stop(&stop);
        meanwhile(primary, random);
        drop(stops);
        loaders.into_iter().flat_map(|loader| loader.join().expect("a client")).collect()
    })
}

// What must hold

/// That all is recorded within a second of the end of recovery. Where the machine has much else to do, one of
/// them may take longer.
fn assert_within_a_second(mut times: Vec<Duration>) {
    times.sort_unstable();
    assert!(times[times.len() / 2] < Duration::from_secs(1), "{times:?}");
}

/// Waits until the workers are there and have recorded what became of all that has ended; when that was.
fn wait_until_settled(cluster: &Cluster) -> Instant {
    for database in DATABASES {
        let mut client = cluster.connect_to(database, "postgres");
        let unsettled = "
            SELECT concat_ws('; ', obstacle, worker_pid, queue_depth || ' starts wait', last_error,
                       (SELECT string_agg(b::text, '; ') FROM loader_history.watched_transaction AS b))
              FROM loader_history.recorder_state()
             WHERE obstacle IS NOT NULL OR worker_pid IS NULL OR queue_depth > 0
                OR EXISTS (SELECT FROM loader_history.watched_transaction
                            WHERE pg_xact_status(xid) IS DISTINCT FROM 'in progress')";
        wait_for_equal(&format!("{database} settles"), &Vec::<String>::new(), || {
            column(&mut client, unsettled)
        });
    }
    Instant::now()
}

/// What a database has.
struct Database {
    name: &'static str,
    history: HashMap<i64, (i64, String, Option<String>)>,
    opened: HashSet<i64>,
    loaded: HashSet<i64>,
    reported: HashSet<i64>,
    prepared: HashSet<String>,
    /// The last id of executions that the sequence has set aside.
    last_id: i64,
}

impl Database {
    /// Reads it all in one snapshot, but for what was there before the loads.
    fn read(cluster: &Cluster, name: &'static str) -> Self {
        let mut client = cluster.connect_to(name, "postgres");
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
        let before = if name == DATABASES[0] { HISTORY_LENGTH } else { 0 };
        let query = "SELECT id, loader_id, status, error_message FROM loader.execution_history WHERE id > $1";
        let history = client
            .query(query, &[&before])
            .unwrap()
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3))))
            .collect();
        let mut executions_in = |table: &str| -> HashSet<i64> {
            let rows = column::<i64>(&mut client, &format!("SELECT * FROM {table}"));
            let count = rows.len();
            let ids = HashSet::from_iter(rows);
            assert_eq!(ids.len(), count, "{name}: an execution has done its work twice");
            ids
        };
        let (opened, loaded, reported) =
            (executions_in("opened"), executions_in("loaded"), executions_in("reported"));
        let query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
        let prepared = column::<String>(&mut client, query).into_iter().collect();
        let query = "SELECT last_value FROM loader.execution_history_id_seq";
        let last_id = column(&mut client, query)[0];
        Self { name, history, opened, loaded, reported, prepared, last_id }
    }

    fn running(&self) -> HashSet<i64> {
        let running = self.history.iter().filter(|(_, row)| row.1 == "RUNNING");
        running.map(|(&id, _)| id).collect()
    }

    /// What the history says that its own rows of data do not, or the other way round.
    fn contradictions(&self, known: &HashMap<i64, &Known>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (id, (loader_id, status, error)) in &self.history {
            let known = known.get(id);
            let expected: &[&str] = if self.loaded.contains(id) {
                &["SUCCESS"]
            } else if self.reported.contains(id) {
                &["FAILED"]
            } else if self.opened.contains(id)
                || known.is_some_and(|it| self.prepared.contains(&it.gid))
            {
                &["RUNNING"]
            } else if *loader_id == BARE_LOADER {
                // No row says whether its start has committed.
                &["RUNNING", "FAILED"]
            } else {
                &["FAILED"]
            };
            let is_told = status != "FAILED"
                || self.reported.contains(id)
                || error.as_deref().is_some_and(|text| FAILURES.contains(&text));
            let is_told_why = known.is_none_or(|known| {
                known.warned
                    || known.start != Told::Open
                    || error.as_deref() == Some(SERVER_STOPPED)
            });
            if !expected.contains(&status.as_str()) || !is_told || !is_told_why {
                wrong.push(format!(
                    "{}: execution {id} of loader {loader_id} is {status} ({error:?}), not {expected:?}; {known:?}",
                    self.name
                ));
            }
        }
        let rows = [&self.opened, &self.loaded, &self.reported];
        let rows: HashSet<_> = rows.into_iter().flatten().collect();
        wrong.extend(
            rows.into_iter()
                .filter(|id| !self.history.contains_key(id))
                .map(|id| format!("{}: there is data of execution {id}, which is not", self.name)),
        );
        wrong
    }
}

/// How much was lost of what clients were told.
#[derive(Debug, Default)]
struct Figures {
    failovers: usize,
    starts: usize,
    warned: usize,
    lost_starts: usize,
    confirmed: usize,
    lost_confirmed: usize,
    /// Of these, the names of what was prepared and neither committed nor rolled back.
    lost_prepared: BTreeMap<String, usize>,
    longest: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} failovers: {} starts returned ({} with a WARNING), {} of them lost; {} commits of a start or an \
             end confirmed, {} of them lost; all settled at most {} ms after the end of recovery",
            self.failovers,
            self.starts,
            self.warned,
            self.lost_starts,
            self.confirmed,
            self.lost_confirmed,
            self.longest.as_millis()
        )
    }
}

/// Judges a promoted server, and says what was lost.
fn judge(cluster: &Cluster, all: &[Known], figures: &mut Figures) -> Vec<String> {
    let mut wrong = Vec::new();
    for (place, name) in DATABASES.into_iter().enumerate() {
        let found = Database::read(cluster, name);
        let known: HashMap<_, _> =
            all.iter().filter(|it| it.database == place).map(|it| (it.id, it)).collect();
        for it in known.values() {
            let row = found.history.get(&it.id);
            figures.starts += 1;
            figures.warned += usize::from(it.warned);
            figures.lost_starts += usize::from(row.is_none() && !it.warned);
            if it.id > found.last_id {
                wrong.push(format!("{name}: its id is yet to come, for another: {it:?}"));
            }
            let may_be = if it.warned { None } else { Some("FAILED") };
            if it.start == Told::RolledBack
                && row.is_some_and(|row| may_be != Some(&row.1))
                // Its ROLLBACK PREPARED may be lost.
                && !found.prepared.contains(&it.gid)
            {
                wrong.push(format!("{name}: {row:?}, and was rolled back: {it:?}"));
            }
            let start = match (it.start, it.trace) {
                (Told::Committed, Trace::Row) => Some(found.opened.contains(&it.id)),
                (Told::Committed, Trace::Bare) => Some(row.is_some_and(|row| row.1 != "FAILED")),
                (Told::Committed, Trace::Undone) => Some(row.is_some()),
                (Told::Prepared, _) => Some(found.prepared.contains(&it.gid)),
                _ => None,
            };
            let end = match it.end {
                Some(Told::Committed) => Some(found.loaded.contains(&it.id)),
                Some(Told::Prepared) => Some(found.prepared.contains(&it.gid)),
                _ => None,
            };
            let told = [Some(it.start), it.end];
            for (arrived, told) in [start, end].into_iter().zip(told) {
                let Some(arrived) = arrived else { continue };
                figures.confirmed += 1;
                figures.lost_confirmed += usize::from(!arrived);
                if !arrived && told == Some(Told::Prepared) {
                    *figures.lost_prepared.entry(it.gid.clone()).or_default() += 1;
                }
            }
        }
        wrong.extend(found.contradictions(&known));
    }
    wrong
}

/// Commits or rolls back what is still prepared, and what was told of it.
fn end_prepared(cluster: &Cluster, random: &mut StdRng, all: &mut [Known]) {
    for (place, name) in DATABASES.into_iter().enumerate() {
        let mut client = cluster.connect_to(name, "postgres");
        let names =
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1";
        for gid in column::<String>(&mut client, names) {
            let commit = random.random();
            let what = if commit { "COMMIT" } else { "ROLLBACK" };
            client.batch_execute(&format!("{what} PREPARED '{gid}'")).unwrap();
            let told = if commit { Told::Committed } else { Told::RolledBack };
            for it in all.iter_mut().filter(|it| it.database == place && it.gid == gid) {
                for part in [Some(&mut it.start), it.end.as_mut()].into_iter().flatten() {
                    if matches!(*part, Told::Asked | Told::Prepared | Told::RolledBack) {
                        *part = told;
                    }
                }
            }
        }
    }
}

/// That a server records, with an id of its own and events.
fn assert_records(cluster: &Cluster) {
    for database in DATABASES {
        let mut session = Session::new(cluster, database);
        let highest: Vec<i64> = column(
            &mut session.client,
            "SELECT coalesce(max(id), 0) FROM loader.execution_history",
        );
        session.run("BEGIN");
        let id = session.start();
        assert!(id > highest[0], "{database}: {id} after {}", highest[0]);
        assert_eq!(session.warnings(), Vec::<String>::new());
        session.run(&format!(
            "INSERT INTO opened VALUES ({id}); INSERT INTO loaded VALUES ({id});
             SELECT loader.record_execution_end({id}, 'SUCCESS'); COMMIT"
        ));
    }
    let mut client = cluster.connect();
    let mut listener = Listener::new(cluster);
    let id: i64 = client.query_one("SELECT loader.record_execution_start(2)", &[]).unwrap().get(0);
    client
        .batch_execute(&format!(
            "BEGIN; INSERT INTO opened VALUES ({id}); INSERT INTO reported VALUES ({id});
             SELECT loader.record_execution_end({id}, 'FAILED'); COMMIT"
        ))
        .unwrap();
    let mut kinds = Vec::new();
    for expected in ["EXECUTION_STARTED", "EXECUTION_FAILED"] {
        listener.receive_until(expected, |event| event["execution_id"] == id);
        kinds.extend(listener.events.last().map(|event| event["event_type"].clone()));
    }
    assert_eq!(kinds, ["EXECUTION_STARTED", "EXECUTION_FAILED"]);
}

/// That nothing of the extension's runs on a standby, and that it has complained of nothing since its log
/// was `from` bytes long.
fn assert_quiet(standby: &Cluster, from: usize) {
    let processes = "SELECT backend_type FROM pg_stat_activity WHERE backend_type LIKE 'loader%'";
    assert_eq!(column::<String>(&mut standby.connect(), processes), Vec::<String>::new());
    let log = standby.log();
    let complaints: Vec<_> = log[from..]
        .lines()
        // Who connects before it is up is told so. Recovery after pg_rewind finds files of transactions that were
        // prepared after its begin, or on the other timeline.
        .filter(|line| ![" 57P03 ", "two-phase", "pg_twophase"].iter().any(|it| line.contains(it)))
        .filter(|line| {
            ["loader_history ", "loader_history:", "WARNING", "ERROR", "FATAL", "PANIC", "panicked"]
                .iter()
                .any(|word| line.contains(word))
        })
        .collect();
    assert_eq!(complaints, Vec::<&str>::new());
}

// Failing over

/// How the standby follows in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Mode {
    /// The value of synchronous_commit; `None` where no standby is waited for.
    synchronous: Option<&'static str>,
    /// Whether the last moments before the end do not reach the standby.
    stalled: bool,
}

const MODES: [Mode; 6] = [
    Mode { synchronous: None, stalled: false },
    Mode { synchronous: Some("on"), stalled: true },
    Mode { synchronous: None, stalled: true },
    Mode { synchronous: Some("remote_apply"), stalled: false },
    Mode { synchronous: Some("on"), stalled: false },
    Mode { synchronous: Some("remote_apply"), stalled: true },
];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.synchronous {
            None => f.write_str("asynchronous")?,
            Some(level) => write!(f, "synchronous, {level}")?,
        }
        f.write_str(if self.stalled { ", the network gone before" } else { "" })
    }
}

impl Mode {
    /// Has new sessions of the primary wait for its standby, or not.
    fn set(self, primary: &Cluster) {
        let Some(level) = self.synchronous else { return };
        let mut client = primary.connect();
        for setting in
            ["synchronous_standby_names = '*'".to_owned(), format!("synchronous_commit = {level}")]
        {
            client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).unwrap();
        }
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
        wait_for_equal("the standby is synchronous", &vec!["sync".to_owned()], || {
            column(&mut client, "SELECT sync_state FROM pg_stat_replication")
        });
        // The checkpointer has commits wait, and reads its settings before it makes a checkpoint.
        client.batch_execute("CHECKPOINT").unwrap();
    }
}

#[test]
fn the_new_primary_says_what_it_has() {
    // Each mode once.
    let rounds = size("FAILOVER_ROUNDS", 6);
    let clients = size("FAILOVER_CLIENTS", 9);
    let mut random = StdRng::seed_from_u64(pg_test::seed());
    let mut primary = primary_with("");
    let mut standby = primary.start_standby();
    let (mut log_start, mut events) = (0, 0);
    let mut times = Vec::new();
    let mut figures = BTreeMap::<Mode, Figures>::new();
    for round in 1..=rounds {
        let mode = MODES[usize::try_from(round - 1).unwrap() % MODES.len()];
        mode.set(&primary);
        let mut known = run_loads(&mut primary, round, clients, &mut random, |primary, random| {
            thread::sleep(Duration::from_millis(random.random_range(300..1_500)));
            assert_quiet(&standby, log_start);
            if mode.stalled {
                stop_replication(primary, 1);
                thread::sleep(Duration::from_millis(random.random_range(1..400)));
            }
            primary.kill_server();
        });
        let recovered = standby.promote();
        let settled = wait_until_settled(&standby).duration_since(recovered);
        times.push(settled);
        let figures = figures.entry(mode).or_default();
        figures.failovers += 1;
        figures.longest = figures.longest.max(settled);
        let lost_before = figures.lost_confirmed;
        let when = format!("round {round}, {mode}");
        assert_none(&judge(&standby, &known, figures), &when);
        let lost = figures.lost_confirmed - lost_before;
        assert!(mode.synchronous.is_none() || lost == 0, "{when}: {lost} confirmed commits lost");
        let mut listener = Listener::new(&standby);
        let before = Database::read(&standby, DATABASES[0]).running();
        end_prepared(&standby, &mut random, &mut known);
        wait_until_settled(&standby);
        assert_none(&judge(&standby, &known, &mut Figures::default()), &when);
        // What the old primary had prepared has its events on the new one.
        let after = Database::read(&standby, DATABASES[0]);
        for id in before.difference(&after.running()) {
            let kind = format!("EXECUTION_{}", after.history[id].1);
            let is_it = |event: &Value| event["execution_id"] == *id && event["event_type"] == kind;
            if !listener.events.iter().any(is_it) {
                listener.receive_until(&format!("{kind} of {id}"), is_it);
            }
            events += 1;
        }
        assert_records(&standby);
        for bad in ["PANIC", "panicked", "loader_history worker:", "loader_history launcher:"] {
            assert!(!standby.log().contains(bad), "{bad}");
        }
        // The old primary comes back as the standby of the new one, one way or the other.
        std::mem::swap(&mut primary, &mut standby);
        if random.random() {
            log_start = standby.log().len();
            primary.connect().batch_execute("CHECKPOINT").unwrap();
            standby.rewind_to(&primary);
            catch_up(&mut primary.connect(), &mut standby.connect());
            assert_same_reads(&mut primary.connect(), &mut standby.connect());
        } else {
            log_start = 0;
            standby = primary.start_standby();
        }
    }
    assert_within_a_second(times);
    println!("events of what was prepared on an old primary: {events}");
    for (mode, figures) in figures {
        println!("{mode}: {figures}");
    }
}

#[test]
fn a_start_alone_in_its_transaction_waits_for_a_synchronous_standby() {
    let primary = primary_with("");
    let standby = primary.start_standby();
    MODES[4].set(&primary);
    for database in DATABASES {
        let mut session = Session::new(&primary, database);
        // The sequence writes to the log now and then.
        session.start();
        let pid: Vec<i32> = column(&mut session.client, "SELECT pg_backend_pid()");
        let senders = stop_replication(&primary, 1);
        let start = thread::spawn(move || session.start());
        let mut client = primary.connect();
        let wait = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {}", pid[0]);
        wait_for_equal(
            &format!("{database}: the start waits"),
            &(false, vec![Some("SyncRep".to_owned())]),
            || (start.is_finished(), column::<Option<String>>(&mut client, &wait)),
        );
        senders.iter().for_each(|&pid| send_signal(pid, Signal::SIGCONT));
        let id = start.join().unwrap();
        let mut there = standby.connect_to(database, "postgres");
        wait_for_equal("it is there", &Some("RUNNING".to_owned()), || status_of(&mut there, id));
    }
}

#[test]
fn a_transaction_id_that_died_with_the_primary_is_not_given_again() {
    let mut random = StdRng::seed_from_u64(pg_test::seed());
    for number in 0..3 {
        let mut primary = primary_with("");
        // Others take the place of those that died before a worker can look.
        let mut standby = primary.start_standby();
        standby.stop_server();
        standby.configure("shared_preload_libraries = ''");
        standby.start_server();
        // Of these nothing but the worker's commit is in the log.
        let mut sessions: Vec<_> = (0..6).map(|_| Session::new(&primary, "keyless")).collect();
        let mut ids = Vec::new();
        for (place, session) in sessions.iter_mut().enumerate() {
            session.run("BEGIN");
            if place % 2 == 1 {
                session.run("SAVEPOINT one; SAVEPOINT two");
            }
            if place % 3 == 2 {
                session.run("DO $$ BEGIN PERFORM pg_current_xact_id(); END $$");
            }
            ids.push(session.start());
        }
        if number > 0 {
            thread::sleep(Duration::from_millis(random.random_range(0..20)));
        }
        let written: Vec<String> = column(
            &mut primary.connect_to("postgres", "postgres"),
            "SELECT pg_current_wal_flush_lsn()::text",
        );
        let mut there = standby.connect_to("keyless", "postgres");
        let query = format!("SELECT pg_last_wal_receive_lsn() >= '{}'::pg_lsn", written[0]);
        wait_for_equal("the starts arrive", &vec![true], || column(&mut there, &query));
        primary.kill_server();
        standby.promote();
        let mut client = standby.connect_to("keyless", "postgres");
        let watched: Vec<i64> = column(
            &mut client,
            "SELECT greatest(xid::text::bigint, subxid::text::bigint) FROM loader_history.watched_transaction",
        );
        assert_eq!(watched.len(), ids.len());
        let given: Vec<i64> = (0..100)
            .flat_map(|_| column::<i64>(&mut client, "SELECT pg_current_xact_id()::text::bigint"))
            .collect();
        assert!(given.iter().min() > watched.iter().max(), "{given:?} {watched:?}");
        drop((client, there));
        standby.stop_server();
        standby.configure("shared_preload_libraries = 'loader_history'");
        standby.start_server();
        wait_until_settled(&standby);
        let mut client = standby.connect_to("keyless", "postgres");
        let failed = "SELECT id FROM loader.execution_history WHERE status = 'FAILED' ORDER BY id";
        assert_eq!(column::<i64>(&mut client, failed), ids);
    }
}

#[test]
fn nothing_writes_or_complains_on_a_standby_and_promotion_is_enough() {
    let mut primary = primary_with("");
    let mut standby = primary.start_standby();
    // Long enough for whatever is tried again after some seconds to be tried.
    let known = run_loads(&mut primary, 1, 3, &mut StdRng::seed_from_u64(1), |primary, _| {
        let begun = Instant::now();
        let (mut rounds, mut from) = (0, 0);
        while rounds < 50 || begun.elapsed() < Duration::from_secs(6) {
            rounds += 1;
            let mut client = primary.connect();
            let mut there = standby.connect();
            catch_up(&mut client, &mut there);
            column::<String>(&mut there, "SELECT loader.recorder_status()::text");
            assert_quiet(&standby, from);
            // The library is loaded anew, in the middle of recovery.
            if rounds % 20 == 0 {
                drop((client, there));
                if rounds == 20 {
                    standby.stop_server()
                } else {
                    standby.crash_server()
                }
                from = standby.log().len();
                standby.start_server();
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(!known.is_empty());
    // Without the old primary's end: a switchover. It waits for a standby that is connected.
    catch_up(&mut primary.connect(), &mut standby.connect());
    primary.stop_server();
    let log = standby.log().len();
    // Sessions of a pool that outlive the promotion.
    let [mut session, observer] = [0, 1].map(|_| Session::new(&standby, "postgres"));
    let refused = session.client.query("SELECT loader.record_execution_start(1)", &[]);
    assert_eq!(sqlstate(&refused), "25006");
    standby.promote();
    wait_until_settled(&standby);
    assert_autonomous_in(session, observer);
    assert_eq!(launchers(&mut standby.connect()).len(), 1);
    wait_for_served(&mut standby.connect(), &["keyless", "postgres"]);
    assert_records(&standby);
    let complaints: Vec<_> = standby.log()[log..]
        .lines()
        .filter(|line| ["WARNING", "ERROR", "PANIC"].iter().any(|word| line.contains(word)))
        .filter(|line| !line.contains(" 25006 "))
        .map(str::to_owned)
        .collect();
    assert_eq!(complaints, Vec::<String>::new());
    let mut figures = Figures::default();
    assert_none(&judge(&standby, &known, &mut figures), "after a switchover");
    assert_eq!((figures.lost_starts, figures.lost_confirmed), (0, 0), "{figures}");
}

/// The transaction that a line of the log of PostgreSQL 17 or 18 says is given up, though it is prepared: it looks for
/// a file named with the epoch before the first.
fn given_up(line: &str) -> Option<i64> {
    let (_, name) = line.split_once("could not remove file \"pg_twophase/FFFFFFFF")?;
    i64::from_str_radix(name.get(..8)?, 16).ok()
}

#[test]
fn the_old_primary_follows_after_pg_rewind_and_takes_over_again() {
    let mut random = StdRng::seed_from_u64(pg_test::seed());
    let mut first = primary_with("");
    let mut second = first.start_standby();
    // The network is gone, and both record.
    stop_replication(&first, 1);
    second.promote();
    wait_until_settled(&second);
    let pause =
        |random: &mut StdRng| thread::sleep(Duration::from_millis(random.random_range(300..600)));
    run_loads(&mut first, 1, 3, &mut random, |first, random| {
        pause(random);
        first.kill_server();
    });
    let mut known = run_loads(&mut second, 2, 6, &mut random, |second, random| {
        pause(random);
        second.connect().batch_execute("CHECKPOINT").unwrap();
        let log = first.log().len();
        first.rewind_to(second);
        pause(random);
        assert_quiet(&first, log);
    });
    wait_until_settled(&second);
    for database in DATABASES {
        let (mut there, mut here) =
            (second.connect_to(database, "postgres"), first.connect_to(database, "postgres"));
        catch_up(&mut there, &mut here);
        for table in [
            "loader.execution_history",
            "loader_history.watched_transaction",
            "opened",
            "loaded",
            "reported",
        ] {
            let query = format!("SELECT t::text FROM {table} AS t ORDER BY 1");
            assert_eq!(column::<String>(&mut there, &query), column::<String>(&mut here, &query));
        }
    }
    assert_same_reads(&mut second.connect(), &mut first.connect());
    // And back, in good order.
    let prepared: HashMap<String, i64> = second
        .connect()
        .query("SELECT gid, transaction::text::bigint FROM pg_prepared_xacts", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    second.stop_server();
    first.promote();
    wait_until_settled(&first);
    let mut figures = Figures::default();
    assert_none(&judge(&first, &known, &mut figures), "after the switchover");
    // PostgreSQL 18.6 gives up what is prepared when it recovers after pg_rewind, and names it. The history then says
    // FAILED of it, and there is no data. Nothing else is lost, nor anything where the log does not name it.
    let log = first.log();
    let given_up: HashSet<_> = log.lines().filter_map(given_up).collect();
    for (gid, confirmed) in &figures.lost_prepared {
        assert!(given_up.contains(&prepared[gid]), "{gid}: {prepared:?}, {given_up:?}");
        figures.lost_confirmed -= confirmed;
    }
    assert_eq!((figures.lost_starts, figures.lost_confirmed), (0, 0), "{figures}");
    end_prepared(&first, &mut random, &mut known);
    wait_until_settled(&first);
    assert_none(&judge(&first, &known, &mut Figures::default()), "after the switchover");
    assert_records(&first);
}

#[test]
fn a_restore_to_a_point_in_time_says_what_it_restores() {
    let mut random = StdRng::seed_from_u64(pg_test::seed());
    let mut primary = primary_with(
        "archive_mode = on
         archive_command = 'mkdir -p ../archive && cp %p ../archive/%f'",
    );
    let backup = primary.base_backup(&[]);
    let mut targets = Vec::new();
    let mut open = Vec::new();
    let mut exact = (0, 0);
    let mut times = Vec::new();
    let known = run_loads(&mut primary, 1, 6, &mut random, |primary, random| {
        let mut pause = || thread::sleep(Duration::from_millis(random.random_range(100..400)));
        let mut client = primary.connect();
        for number in 0..2 {
            let mut loader = Session::new(primary, "postgres");
            loader.run("BEGIN");
            let id = loader.start();
            open.push(id);
            pause();
            if number == 0 {
                client.batch_execute("SELECT pg_create_restore_point('amid the loads')").unwrap();
                targets.push("recovery_target_name = 'amid the loads'".to_owned());
            } else {
                let now: Vec<String> = column(&mut client, "SELECT clock_timestamp()::text");
                targets.push(format!("recovery_target_time = '{}'", now[0]));
            }
            pause();
            loader.run(&format!("INSERT INTO opened VALUES ({id}); COMMIT"));
        }
        let mut loader = Session::new(primary, "postgres");
        loader.run("BEGIN");
        let id = loader.start();
        loader.run(&format!(
            "INSERT INTO opened VALUES ({id}); INSERT INTO loaded VALUES ({id});
             SELECT loader.record_execution_end({id}, 'SUCCESS')"
        ));
        let xid: Vec<String> = column(&mut loader.client, "SELECT pg_current_xact_id()::xid::text");
        pause();
        loader.run("COMMIT");
        for inclusive in [false, true] {
            targets.push(format!(
                "recovery_target_xid = '{}'\nrecovery_target_inclusive = {inclusive}",
                xid[0]
            ));
        }
        exact = (id, targets.len() - 1);
        pause();
    });
    let mut client = primary.connect();
    let last: Vec<String> = column(&mut client, "SELECT pg_walfile_name(pg_switch_wal())");
    let archived = format!("SELECT last_archived_wal >= '{}' FROM pg_stat_archiver", last[0]);
    wait_for_equal("the log is archived", &vec![Some(true)], || column(&mut client, &archived));
    // What clients know is later than the targets, but for the names of what was prepared.
    let known: Vec<_> =
        known.into_iter().map(|it| Known { start: Told::Asked, end: None, ..it }).collect();
    let archive = primary.directory().join("archive");
    for (place, target) in targets.iter().enumerate() {
        let mut restored = backup.to_restore(&archive, target);
        restored.start_server();
        let mut client = restored.connect();
        wait_for_equal("the end of recovery", &vec![false], || {
            column(&mut client, "SELECT pg_is_in_recovery()")
        });
        let recovered = Instant::now();
        times.push(wait_until_settled(&restored).duration_since(recovered));
        let mut wrong = judge(&restored, &known, &mut Figures::default());
        let mut said = |id: i64| -> (String, Option<String>) {
            let query = "SELECT status, error_message FROM loader.execution_history WHERE id = $1";
            let row = client.query_one(query, &[&id]).unwrap();
            (row.get(0), row.get(1))
        };
        let id = open.get(place).copied().unwrap_or(exact.0);
        let expected = if place == exact.1 {
            ("SUCCESS".to_owned(), None)
        } else {
            ("FAILED".to_owned(), Some(SERVER_STOPPED.to_owned()))
        };
        if said(id) != expected {
            wrong.push(format!("execution {id} is {:?}", said(id)));
        }
        assert_none(&wrong, target);
        let mut known: Vec<_> = Vec::new();
        end_prepared(&restored, &mut random, &mut known);
        wait_until_settled(&restored);
        assert_records(&restored);
        assert_none(&judge(&restored, &known, &mut Figures::default()), target);
    }
    assert_within_a_second(times);
}
