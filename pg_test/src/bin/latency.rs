//! What an autonomous start costs: its latency against a bare INSERT, and the throughput of starts and ends
//! against transactional starts.
//!
//! `make latency` sets `PG_TEST_BINDIR`, the server's programs, built for release, and `TMPDIR`, a
//! directory on a disk. The machine and its disk decide about every figure but the ratios: what is
//! compared takes turns in slices of a second, so that whatever else the machine does meets both. Latency is
//! measured without events and with them, which a session listens to; throughput without, since they could fall
//! back to a NOTIFY in the transaction: `make bench` tells what they cost.
//!
//! `LATENCY_SLICES` and `LATENCY_SLICE_MS` say how many slices each side gets and how long they are. With
//! `LATENCY_SIZE=small`, as `make test` runs it, it makes sure that all that is measured is recorded, and
//! says nothing of speed. What it prints is Markdown, for `pg_test/FIGURES.md`.

use std::env;
use std::slice;
use std::time::{Duration, Instant};

use pg_test::measure::{
    COMMITS_REACH_DISK, Goal, Measured, Turns, Worker, assert_on_disk, markdown_line,
};
use pg_test::{Client, Cluster, Warnings, preloaded_cluster_with, size};
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
    /// Rows that it has inserted and executions that it has ended.
    done: [i64; 2],
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

/// What is measured.
#[derive(Clone, Copy)]
struct Side {
    work: Work,
    autonomous: bool,
    notify: bool,
}

impl Loader {
    fn new(cluster: &Cluster, id: i64, warnings: &Warnings) -> Self {
        let mut client = warnings.connect(cluster);
        let mut prepare = |sql| client.prepare(sql).expect("a statement");
        let (insert, start, end) = (prepare(INSERT), prepare(START), prepare(END));
        Self { client, id, insert, start, end, done: [0; 2] }
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
        self.done[1] += 1;
    }
}

impl Worker for Loader {
    type Work = Side;

    fn prepare(&mut self, Side { autonomous, notify, .. }: Side) {
        let settings = format!(
            "SET loader_history.autonomous_start = {autonomous}; SET loader_history.notify = {notify}"
        );
        self.client.batch_execute(&settings).expect("the settings");
    }

    fn work(&mut self, side: Side) -> Duration {
        let timer = Instant::now();
        match side.work {
            Work::Insert => {
                self.client.query_one(&self.insert, &[&self.id]).expect("an insert");
                self.done[0] += 1;
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
    /// Whether figures say anything.
    judged: bool,
}

impl Bench {
    /// Has `clients` sessions do each of two kinds of work, taking turns.
    fn compare(&mut self, clients: usize, sides: [Side; 2]) -> [Measured; 2] {
        let loaders = &mut self.loaders[..clients];
        let measured = self.turns.compare(slice::from_mut(&mut self.admin), loaders, &sides);
        measured.try_into().expect("as many as there are sides")
    }

    /// A row of the table of latencies.
    fn latency(&mut self, clients: usize, notify: bool, goal: Option<Goal>) -> Vec<String> {
        let sides = [Work::Insert, Work::Start].map(|work| Side { work, autonomous: true, notify });
        let [mut insert, mut start] = self.compare(clients, sides);
        let (median, p99) = (0.5, 0.99);
        let ratio = start.quantile(median) / insert.quantile(median);
        vec![
            format!("clients: {clients}{}", if notify { ", with events" } else { "" }),
            milliseconds(insert.quantile(median)),
            milliseconds(start.quantile(median)),
            format!("{ratio:.2}"),
            goal.map_or_else(String::new, |goal| self.verdict(goal, ratio)),
            milliseconds(insert.quantile(p99)),
            milliseconds(start.quantile(p99)),
            format!("{:.2}", start.quantile(p99) / insert.quantile(p99)),
        ]
    }

    /// A row of the table of throughput.
    fn throughput(&mut self, clients: usize, what: &str, work: Work, goal: Goal) -> Vec<String> {
        let sides = [false, true].map(|autonomous| Side { work, autonomous, notify: false });
        let [transactional, autonomous] = self.compare(clients, sides);
        let ratio = autonomous.ratio_to(&transactional);
        vec![
            format!("{what}, clients: {clients}"),
            format!("{:.0}", transactional.rate()),
            format!("{:.0}", autonomous.rate()),
            format!("{ratio:.2}"),
            self.verdict(goal, ratio),
        ]
    }

    fn verdict(&self, goal: Goal, ratio: f64) -> String {
        if self.judged { format!("{goal}: {}", goal.verdict(ratio)) } else { goal.to_string() }
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3}", seconds * 1_000.0)
}

/// Prints a table in Markdown.
fn print_markdown(header: &[&str], rows: &[Vec<String>]) {
    println!("\n{}\n|{}", markdown_line(header), "---|".repeat(header.len()));
    rows.iter().for_each(|row| println!("{}", markdown_line(row)));
}

/// Rows of the bare table, executions of the history, and those of them that have succeeded.
fn counts(client: &mut Client) -> [i64; 3] {
    let query =
        "SELECT (SELECT count(*) FROM bare), count(*), count(*) FILTER (WHERE status = 'SUCCESS')
                   FROM loader.execution_history";
    let row = client.query_one(query, &[]).expect("counts");
    [row.get(0), row.get(1), row.get(2)]
}

fn main() {
    let small = match env::var("LATENCY_SIZE").as_deref() {
        Ok("small") => true,
        Ok("full") | Err(_) => false,
        Ok(other) => panic!("LATENCY_SIZE is neither full nor small: {other}"),
    };
    let (slices, slice_ms) = if small { (1, 100) } else { (5, 1_000) };
    let cluster = preloaded_cluster_with(COMMITS_REACH_DISK);
    if !small {
        assert_on_disk(&cluster);
    }
    let mut admin = cluster.connect();
    admin.batch_execute(TABLES).expect("the tables");
    let before = counts(&mut admin);
    let warnings = Warnings::default();
    let loaders = (1..).take(CLIENTS).map(|id| Loader::new(&cluster, id, &warnings)).collect();
    let turns = Turns {
        slices: size("LATENCY_SLICES", slices),
        slice: Duration::from_millis(size("LATENCY_SLICE_MS", slice_ms)),
    };
    let mut bench = Bench { admin, loaders, turns, judged: !small };

    println!("Latency in ms of an autonomous start, against an INSERT that commits:");
    let mut listener = cluster.connect();
    listener.batch_execute("LISTEN loader_execution").expect("a listener");
    let mut rows = Vec::new();
    for notify in [false, true] {
        rows.push(bench.latency(1, notify, Some(Goal::AtMost(2.0))));
        rows.push(bench.latency(CLIENTS, notify, None));
    }
    let header =
        ["", "INSERT", "start", "ratio", "goal", "INSERT p99", "start p99", "ratio of p99"];
    print_markdown(&header, &rows);

    println!("\nExecutions a second, started and ended, no events on either side:");
    let mut rows = Vec::new();
    for (what, work, goal) in
        [("each a transaction", Work::Separate, 0.8), ("one transaction", Work::Together, 0.45)]
    {
        for clients in [8, CLIENTS] {
            rows.push(bench.throughput(clients, what, work, Goal::AtLeast(goal)));
        }
    }
    print_markdown(&["", "transactional", "autonomous", "ratio", "goal"], &rows);

    let [inserted, ended] =
        [0, 1].map(|kind| bench.loaders.iter().map(|loader| loader.done[kind]).sum::<i64>());
    assert!(inserted > 0 && ended > 0, "nothing was done");
    let expected = [before[0] + inserted, before[1] + ended, before[2] + ended];
    assert_eq!(counts(&mut bench.admin), expected, "what was recorded");

    // They were measured as if they were.
    println!("\nStarts that fell back: {}", warnings.count());
    for (reason, count) in &*warnings.reasons() {
        println!("{count}: {reason}");
    }
}
