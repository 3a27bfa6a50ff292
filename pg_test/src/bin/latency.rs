//! What a durable start costs: its latency against a bare INSERT, and the throughput of starts and ends
//! against starts that are not durable.
//!
//! `make latency` sets `PG_TEST_BINDIR`, the server's programs, built for release, and `TMPDIR`, a
//! directory on a disk. The machine and its disk decide about every figure but the ratios: what is
//! compared takes turns in slices of a second, so that whatever else the machine does meets both.
//!
//! `LATENCY_SLICES` and `LATENCY_SLICE_MS` say how many slices each side gets and how long they are;
//! `LATENCY_NOTIFY=off` sets `loader_history.notify`.

use std::env;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use pg_test::{Client, Cluster, Warnings, preloaded_cluster_with, print_table, size};
use postgres::Statement;

/// As a server with real data runs. The harness switches fsync off, but later lines win.
const SETTINGS: &str = "
fsync = on
synchronous_commit = on
";

/// The most clients that a measurement has.
const CLIENTS: usize = 32;

/// The columns and the primary key of the history, alone; and a loader for each client, since loads of
/// one loader at the same time are rare.
const TABLES: &str = "
    INSERT INTO loader.loader SELECT n, 'LOADER_' || n FROM generate_series(11, 100) AS n;
    CREATE TABLE bare (
        id               bigserial   PRIMARY KEY,
        loader_id        bigint      NOT NULL,
        execution_start  timestamptz NOT NULL,
        execution_end    timestamptz,
        status           varchar(50) NOT NULL,
        record_count     integer     DEFAULT 0,
        error_message    text,
        duration_seconds integer
    );
";

const INSERT: &str = "INSERT INTO bare (loader_id, execution_start, status)
                      VALUES ($1, clock_timestamp(), 'RUNNING') RETURNING id";
const START: &str = "SELECT loader.record_execution_start($1)";
const END: &str = "SELECT loader.record_execution_end($1, 'SUCCESS', 1)";

/// A session that loads.
struct Loader {
    client: Client,
    id: i64,
    insert: Statement,
    start: Statement,
    end: Statement,
}

/// What a session does over and over.
#[derive(Clone, Copy)]
enum Work {
    /// Timed: an INSERT that commits.
    Insert,
    /// Timed: a start in an open transaction. Then the end and the commit.
    Start,
    /// A start and an end, each in a transaction of its own.
    Separate,
    /// A start and an end in one transaction.
    Together,
}

impl Loader {
    fn new(cluster: &Cluster, id: i64, notify: &str, warnings: &Warnings) -> Self {
        let mut client = warnings.connect(cluster);
        client
            .batch_execute(&format!("SET loader_history.notify = {notify}"))
            .expect("LATENCY_NOTIFY is on or off");
        let mut prepare = |sql| client.prepare(sql).expect("a statement");
        let (insert, start, end) = (prepare(INSERT), prepare(START), prepare(END));
        Self { client, id, insert, start, end }
    }

    fn set_durable(&mut self, durable: bool) {
        let setting = format!("SET loader_history.durable = {durable}");
        self.client.batch_execute(&setting).expect("a setting");
    }

    fn begin(&mut self) {
        self.client.batch_execute("BEGIN").expect("a transaction");
    }

    fn commit(&mut self) {
        self.client.batch_execute("COMMIT").expect("a commit");
    }

    fn start(&mut self) -> i64 {
        self.client.query_one(&self.start, &[&self.id]).expect("a start").get(0)
    }

    fn end(&mut self, execution_id: i64) {
        self.client.execute(&self.end, &[&execution_id]).expect("an end");
    }

    /// Works once, and says how long what is timed has taken.
    fn work(&mut self, work: Work) -> Duration {
        let timer = Instant::now();
        match work {
            Work::Insert => {
                self.client.query_one(&self.insert, &[&self.id]).expect("an insert");
            }
            Work::Start => {
                self.begin();
                let timer = Instant::now();
                let execution_id = self.start();
                let taken = timer.elapsed();
                self.end(execution_id);
                self.commit();
                return taken;
            }
            Work::Separate => {
                let execution_id = self.start();
                self.end(execution_id);
            }
            Work::Together => {
                self.begin();
                let execution_id = self.start();
                self.end(execution_id);
                self.commit();
            }
        }
        timer.elapsed()
    }
}

/// How the measurements are taken.
struct Bench {
    loaders: Vec<Loader>,
    slices: u64,
    slice: Duration,
}

/// What one side of a comparison came to.
#[derive(Default)]
struct Measured {
    latencies: Vec<Duration>,
    /// How often a second all sessions together did the work, for each slice.
    rates: Vec<f64>,
}

impl Measured {
    /// The latency that `part` of all stay below.
    fn quantile(&mut self, part: f64) -> f64 {
        self.latencies.sort_unstable();
        let place = (self.latencies.len() as f64 * part) as usize;
        self.latencies[place.min(self.latencies.len() - 1)].as_secs_f64()
    }

    fn rate(&mut self) -> f64 {
        self.rates.sort_unstable_by(f64::total_cmp);
        let middle = self.rates.len() / 2;
        match self.rates.len() % 2 {
            0 => f64::midpoint(self.rates[middle - 1], self.rates[middle]),
            _ => self.rates[middle],
        }
    }
}

impl Bench {
    /// Has `clients` sessions do each of two kinds of work, taking turns.
    fn compare(&mut self, clients: usize, sides: [(Work, bool); 2]) -> [Measured; 2] {
        let mut measured = [Measured::default(), Measured::default()];
        // The first turn warms up: plans, caches, files that grow for the first time.
        for turn in 0..=self.slices {
            for ((work, durable), side) in sides.into_iter().zip(&mut measured) {
                let (latencies, rate) = self.slice(clients, work, durable);
                if turn > 0 {
                    side.latencies.extend(latencies);
                    side.rates.push(rate);
                }
            }
        }
        measured
    }

    fn slice(&mut self, clients: usize, work: Work, durable: bool) -> (Vec<Duration>, f64) {
        let (barrier, length) = (&Barrier::new(clients), self.slice);
        let begun = Instant::now();
        let latencies: Vec<_> = thread::scope(|scope| {
            let sessions: Vec<_> = self.loaders[..clients]
                .iter_mut()
                .map(|loader| {
                    scope.spawn(move || {
                        loader.set_durable(durable);
                        barrier.wait();
                        let begun = Instant::now();
                        let mut latencies = Vec::new();
                        while begun.elapsed() < length {
                            latencies.push(loader.work(work));
                        }
                        latencies
                    })
                })
                .collect();
            sessions.into_iter().flat_map(|session| session.join().expect("a session")).collect()
        });
        let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
        (latencies, rate)
    }

    /// A row of the table of latencies.
    fn latency(&mut self, clients: usize, goal: Option<f64>) -> Vec<String> {
        let sides = [(Work::Insert, true), (Work::Start, true)];
        let [mut insert, mut start] = self.compare(clients, sides);
        let (median, p99) = (0.5, 0.99);
        let ratio = start.quantile(median) / insert.quantile(median);
        vec![
            format!("clients: {clients}"),
            milliseconds(insert.quantile(median)),
            milliseconds(start.quantile(median)),
            format!("{ratio:.2}"),
            goal.map_or_else(String::new, |goal| verdict("at most", goal, ratio <= goal)),
            milliseconds(insert.quantile(p99)),
            milliseconds(start.quantile(p99)),
            format!("{:.2}", start.quantile(p99) / insert.quantile(p99)),
        ]
    }

    /// A row of the table of throughput.
    fn throughput(&mut self, clients: usize, what: &str, work: Work, goal: f64) -> Vec<String> {
        let [mut plain, mut durable] = self.compare(clients, [(work, false), (work, true)]);
        let ratio = durable.rate() / plain.rate();
        vec![
            format!("{what}, clients: {clients}"),
            format!("{:.0}", plain.rate()),
            format!("{:.0}", durable.rate()),
            format!("{ratio:.2}"),
            verdict("at least", goal, ratio >= goal),
        ]
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3}", seconds * 1_000.0)
}

fn verdict(bound: &str, goal: f64, met: bool) -> String {
    format!("{bound} {goal}: {}", if met { "met" } else { "MISSED" })
}

fn main() {
    let notify = env::var("LATENCY_NOTIFY").unwrap_or_else(|_| "on".to_owned());
    let cluster = preloaded_cluster_with(SETTINGS);
    let kind = statfs(cluster.directory()).expect("its file system").filesystem_type();
    assert!(kind != TMPFS_MAGIC, "a commit costs nothing here: set TMPDIR to a folder on a disk");
    cluster.connect().batch_execute(TABLES).expect("the tables");
    let warnings = Warnings::default();
    let loaders = (1..).take(CLIENTS);
    let loaders = loaders.map(|id| Loader::new(&cluster, id, &notify, &warnings)).collect();
    let mut bench = Bench {
        loaders,
        slices: size("LATENCY_SLICES", 5),
        slice: Duration::from_millis(size("LATENCY_SLICE_MS", 1_000)),
    };

    println!("Latency in ms of a durable start, against an INSERT that commits (notify {notify}):");
    let rows = [bench.latency(1, Some(2.0)), bench.latency(CLIENTS, None)];
    let header =
        ["", "INSERT", "start", "ratio", "goal", "INSERT p99", "start p99", "ratio of p99"];
    print_table(&header, &rows);

    println!("\nExecutions a second, started and ended (notify {notify}):");
    let mut rows = Vec::new();
    for (what, work, goal) in
        [("each a transaction", Work::Separate, 0.8), ("one transaction", Work::Together, 0.45)]
    {
        for clients in [8, CLIENTS] {
            rows.push(bench.throughput(clients, what, work, goal));
        }
    }
    print_table(&["", "not durable", "durable", "ratio", "goal"], &rows);

    // They were measured as if they were.
    println!("\nStarts that were to be durable and were not: {}", warnings.count());
    for (reason, count) in &*warnings.reasons() {
        println!("{count}: {reason}");
    }
}
