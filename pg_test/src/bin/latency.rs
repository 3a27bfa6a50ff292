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
use std::time::{Duration, Instant};

use pg_test::measure::{COMMITS_REACH_DISK, Goal, Measured, Turns, Worker, assert_on_disk};
use pg_test::{Client, Cluster, Warnings, preloaded_cluster_with, print_table, size};
use postgres::Statement;

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
}

impl Worker for Loader {
    /// What to do, and whether starts are durable.
    type Work = (Work, bool);

    fn prepare(&mut self, (_, durable): (Work, bool)) {
        let setting = format!("SET loader_history.durable = {durable}");
        self.client.batch_execute(&setting).expect("a setting");
    }

    fn work(&mut self, (work, _): (Work, bool)) -> Duration {
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
    admin: Client,
    loaders: Vec<Loader>,
    turns: Turns,
}

impl Bench {
    /// Has `clients` sessions do each of two kinds of work, taking turns.
    fn compare(&mut self, clients: usize, sides: [(Work, bool); 2]) -> [Measured; 2] {
        let loaders = &mut self.loaders[..clients];
        let measured = self.turns.compare(&mut self.admin, loaders, &sides);
        measured.try_into().expect("as many as there are sides")
    }

    /// A row of the table of latencies.
    fn latency(&mut self, clients: usize, goal: Option<Goal>) -> Vec<String> {
        let sides = [(Work::Insert, true), (Work::Start, true)];
        let [mut insert, mut start] = self.compare(clients, sides);
        let (median, p99) = (0.5, 0.99);
        let ratio = start.quantile(median) / insert.quantile(median);
        vec![
            format!("clients: {clients}"),
            milliseconds(insert.quantile(median)),
            milliseconds(start.quantile(median)),
            format!("{ratio:.2}"),
            goal.map_or_else(String::new, |goal| verdict(goal, ratio)),
            milliseconds(insert.quantile(p99)),
            milliseconds(start.quantile(p99)),
            format!("{:.2}", start.quantile(p99) / insert.quantile(p99)),
        ]
    }

    /// A row of the table of throughput.
    fn throughput(&mut self, clients: usize, what: &str, work: Work, goal: Goal) -> Vec<String> {
        let [mut plain, mut durable] = self.compare(clients, [(work, false), (work, true)]);
        let ratio = durable.rate() / plain.rate();
        vec![
            format!("{what}, clients: {clients}"),
            format!("{:.0}", plain.rate()),
            format!("{:.0}", durable.rate()),
            format!("{ratio:.2}"),
            verdict(goal, ratio),
        ]
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3}", seconds * 1_000.0)
}

fn verdict(goal: Goal, ratio: f64) -> String {
    format!("{goal}: {}", goal.verdict(ratio))
}

fn main() {
    let notify = env::var("LATENCY_NOTIFY").unwrap_or_else(|_| "on".to_owned());
    let cluster = preloaded_cluster_with(COMMITS_REACH_DISK);
    assert_on_disk(&cluster);
    cluster.connect().batch_execute(TABLES).expect("the tables");
    let warnings = Warnings::default();
    let loaders = (1..).take(CLIENTS);
    let loaders = loaders.map(|id| Loader::new(&cluster, id, &notify, &warnings)).collect();
    let slices = size("LATENCY_SLICES", 5);
    let slice = Duration::from_millis(size("LATENCY_SLICE_MS", 1_000));
    let mut bench = Bench { admin: cluster.connect(), loaders, turns: Turns { slices, slice } };

    println!("Latency in ms of a durable start, against an INSERT that commits (notify {notify}):");
    let rows = [bench.latency(1, Some(Goal::AtMost(2.0))), bench.latency(CLIENTS, None)];
    let header =
        ["", "INSERT", "start", "ratio", "goal", "INSERT p99", "start p99", "ratio of p99"];
    print_table(&header, &rows);

    println!("\nExecutions a second, started and ended (notify {notify}):");
    let mut rows = Vec::new();
    for (what, work, goal) in
        [("each a transaction", Work::Separate, 0.8), ("one transaction", Work::Together, 0.45)]
    {
        for clients in [8, CLIENTS] {
            rows.push(bench.throughput(clients, what, work, Goal::AtLeast(goal)));
        }
    }
    print_table(&["", "not durable", "durable", "ratio", "goal"], &rows);

    // They were measured as if they were.
    println!("\nStarts that were to be durable and were not: {}", warnings.count());
    for (reason, count) in &*warnings.reasons() {
        println!("{count}: {reason}");
    }
}
