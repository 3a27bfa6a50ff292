//! Hundreds of thousands of starts and ends: nothing may grow with them but the history itself.
//!
//! `make soak` sets `PG_TEST_BINDIR`, the server's programs. `SOAK_ROUNDS` and `SOAK_SESSIONS` say how
//! much there is to do: 1000000 and 10000 for the whole test.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use pg_test::{
    Client, Cluster, HasError, Signal, TIMEOUT, Warnings, freeze_worker, preloaded_cluster_with,
    print_table, send_signal, size, wait_for, wait_for_worker,
};
use postgres::Statement;
use postgres::fallible_iterator::FallibleIterator;

/// A queue so small that every place in it is used over and over; vacuum as users have it, though
/// looking for work more often than once a minute, so that a short run sees it too; and no start that
/// is late only since the machine is busy.
const QUEUE_SIZE: usize = 32;
const SETTINGS: &str = "
loader_history.queue_size = 32
loader_history.worker_timeout = '30s'
autovacuum = on
autovacuum_naptime = '5s'
deadlock_timeout = '100ms'
log_min_error_statement = panic
";

/// Samples after the warm-up, which is as long as the time between two of them.
const SAMPLES: u64 = 10;

/// What a process may have more at the end than after the warm-up: the allocator's slack.
const MEMORY_BOUND_KB: i64 = 2_048;

/// What the server's own account of a process's memory, which knows no slack, may have more.
const CONTEXTS_BOUND_KB: i64 = 128;

/// How large the tables that only the recorder needs may be at the end, indexes included. What is
/// written between two visits of vacuum stays in the files, but is used again.
const TABLES_BOUND_KB: i64 = 16_384;

/// Sessions at the same time in the second part: more would only wait for the machine.
const SESSIONS_AT_ONCE: u64 = 4;

const START: &str = "SELECT loader.record_execution_start($1)";
const END: &str = "SELECT loader.record_execution_end($1, $2, 1)";

fn main() -> ExitCode {
    let rounds = size("SOAK_ROUNDS", 16_000);
    let sessions = size("SOAK_SESSIONS", 1_000);
    let cluster = preloaded_cluster_with(SETTINGS);
    let mut soak = Soak::new(&cluster);

    let begun = Instant::now();
    soak.one_session(rounds);
    println!("{:.0} s\n", begun.elapsed().as_secs_f64());

    let begun = Instant::now();
    soak.many_sessions(sessions);
    println!("{:.0} s\n", begun.elapsed().as_secs_f64());

    soak.check_outcomes();
    soak.check_queue();
    soak.check_status();
    soak.check_tables();
    soak.check_event_places();
    let problems = soak.problems;
    problems.iter().for_each(|problem| println!("FAILED: {problem}"));
    if !problems.is_empty() {
        return ExitCode::FAILURE;
    }
    println!("Nothing has grown that must not.");
    ExitCode::SUCCESS
}

/// What a process has of memory, in kB.
#[derive(Clone, Copy, Default)]
struct Memory {
    /// `RssAnon`: all that is not backed by a file, nor shared.
    anonymous: i64,
    /// Pages of private mappings that it has written and shares with nobody: without those that it
    /// still has in common with the postmaster. `smaps_rollup` would count shared memory as private where
    /// only this process has touched it, and so grow while it goes through the buffers.
    private: i64,
    /// What its memory contexts use, which a leak in PostgreSQL's own allocator grows by the byte.
    contexts: i64,
}

impl Memory {
    fn of(pid: i32, contexts: i64) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let anonymous = status.lines().find_map(|line| kilobytes(line, "RssAnon:"));
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its mappings");
        let (mut private, mut counts) = (0, false);
        for line in maps.lines() {
            if let Some(dirty) = kilobytes(line, "Private_Dirty:") {
                private += if counts { dirty } else { 0 };
            } else if line.starts_with(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c)) {
                // "7f0e…-7f0f… rw-p …": the last of the flags says whether it is private.
                counts = line.split_whitespace().nth(1).is_some_and(|flags| flags.ends_with('p'));
            }
        }
        Self { anonymous: anonymous.expect("RssAnon"), private, contexts }
    }

    fn cells(self) -> [String; 3] {
        [self.anonymous, self.private, self.contexts].map(|kb| kb.to_string())
    }

    /// What it has grown by beyond the bounds since `before`.
    fn excess(self, who: &str, before: Self) -> Vec<String> {
        [
            ("anonymous memory", self.anonymous - before.anonymous, MEMORY_BOUND_KB),
            ("private memory", self.private - before.private, MEMORY_BOUND_KB),
            ("memory contexts", self.contexts - before.contexts, CONTEXTS_BOUND_KB),
        ]
        .iter()
        .filter(|(_, growth, bound)| growth > bound)
        .map(|(what, growth, bound)| format!("{who}: {what} grew by {growth} kB (bound {bound})"))
        .collect()
    }
}

/// The number in a line such as "RssAnon:    1234 kB".
fn kilobytes(line: &str, name: &str) -> Option<i64> {
    line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
}

struct Soak<'a> {
    cluster: &'a Cluster,
    admin: Client,
    worker: i32,
    launcher: i32,
    /// Executions that must be there in the end, by how they ended.
    success: u64,
    failed: u64,
    /// Events that the queue had room for in the beginning.
    event_places: usize,
    problems: Vec<String>,
}

impl<'a> Soak<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let mut admin = cluster.connect();
        let worker = wait_for_worker(&mut admin);
        let query = "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '%launcher' \
                     AND backend_type LIKE 'loader_history%'";
        let launcher = admin.query_one(query, &[]).expect("the launcher").get(0);
        let event_places = event_places(cluster, &mut admin);
        let (success, failed, problems) = (0, 0, Vec::new());
        Self { cluster, admin, worker, launcher, success, failed, event_places, problems }
    }

    /// The first part: one session that starts and ends, in every way there is.
    fn one_session(&mut self, rounds: u64) {
        let mut session = Session::new(self.cluster);
        println!("One session, {rounds} starts; memory in kB after so many of them:");
        let interval = (rounds / (SAMPLES + 1)).max(1);
        let mut rows = Vec::new();
        let mut samples = Vec::new();
        for round in 1..=rounds {
            let (success, failed) = session.round(round);
            self.success += success;
            self.failed += failed;
            if round % interval == 0 {
                let backend = session.memory();
                let worker = self.worker_memory();
                samples.push((round, backend, worker));
                let mut row = vec![round.to_string()];
                row.extend(backend.cells());
                row.extend(worker.cells());
                row.extend(self.table_sizes().iter().map(|(_, kb)| kb.to_string()));
                rows.push(row);
                eprintln!("{round} of {rounds} starts");
            }
        }
        self.print_samples(
            &[
                "starts",
                "session RssAnon",
                "private",
                "contexts",
                "worker RssAnon",
                "private",
                "contexts",
            ],
            &rows,
        );
        if let (Some(first), Some(last)) = (samples.first(), samples.last()) {
            let (backend, worker) =
                (last.1.excess("session", first.1), last.2.excess("worker", first.2));
            self.problems.extend(backend.into_iter().chain(worker));
        }
        let slope = |of: fn(&(u64, Memory, Memory)) -> i64| {
            let points: Vec<_> =
                samples.iter().map(|sample| (sample.0 as f64, of(sample) as f64)).collect();
            slope_per_million(&points)
        };
        println!(
            "RssAnon, straight line through the samples: session {:.0} kB, worker {:.0} kB per million starts",
            slope(|sample| sample.1.anonymous),
            slope(|sample| sample.2.anonymous),
        );
        let (warnings, expected) = (session.warnings.count(), session.expected_warnings);
        if warnings != expected {
            let reasons = session.warnings.reasons();
            let problem =
                format!("one session: {warnings} warnings, {expected} expected: {reasons:?}");
            self.problems.push(problem);
        }
    }

    /// The second part: sessions that start once each, and end, roll back or vanish.
    fn many_sessions(&mut self, sessions: u64) {
        println!("{sessions} sessions, a start each; memory in kB after so many of them:");
        let interval = (sessions / (SAMPLES + 1)).max(SESSIONS_AT_ONCE);
        let (mut rows, mut samples) = (Vec::new(), Vec::new());
        let mut done = 0;
        while done < sessions {
            let some = interval.min(sessions - done);
            let cluster = self.cluster;
            thread::scope(|scope| {
                for first in 0..SESSIONS_AT_ONCE {
                    let numbers = (done + first..done + some).step_by(SESSIONS_AT_ONCE as usize);
                    scope.spawn(move || numbers.for_each(|number| visit(cluster, number)));
                }
            });
            for number in done..done + some {
                let success = End::of(number) == End::Reported;
                *(if success { &mut self.success } else { &mut self.failed }) += 1;
            }
            done += some;
            let worker = self.worker_memory();
            let launcher = Memory::of(self.launcher, self.contexts_of(self.launcher));
            samples.push((worker, launcher));
            let mut row = vec![done.to_string()];
            row.extend(worker.cells());
            row.extend(launcher.cells());
            row.extend(self.table_sizes().iter().map(|(_, kb)| kb.to_string()));
            rows.push(row);
            eprintln!("{done} of {sessions} sessions");
        }
        self.print_samples(
            &[
                "sessions",
                "worker RssAnon",
                "private",
                "contexts",
                "launcher RssAnon",
                "private",
                "contexts",
            ],
            &rows,
        );
        if let (Some(first), Some(last)) = (samples.first(), samples.last()) {
            let (worker, launcher) =
                (last.0.excess("worker", first.0), last.1.excess("launcher", first.1));
            self.problems.extend(worker.into_iter().chain(launcher));
        }
    }

    /// The table of samples; the sizes of the recorder's tables follow the columns of `header`.
    fn print_samples(&mut self, header: &[&str], rows: &[Vec<String>]) {
        let sizes = self.table_sizes();
        let mut header = header.to_vec();
        header.extend(sizes.iter().map(|(name, _)| name.as_str()));
        print_table(&header, rows);
    }

    fn worker_memory(&mut self) -> Memory {
        // With transactions open or just over it holds them in memory, more or fewer.
        self.wait_until_idle();
        Memory::of(self.worker, self.contexts_of(self.worker))
    }

    /// What the memory contexts of another process use, in kB, which it says in the log only.
    fn contexts_of(&mut self, pid: i32) -> i64 {
        let path = self.cluster.directory().join("log");
        let from = fs::metadata(&path).expect("the log").len();
        self.admin
            .execute("SELECT pg_log_backend_memory_contexts($1)", &[&pid])
            .expect("a request");
        let mut used = None;
        wait_for("the memory contexts", || {
            let mut log = fs::File::open(&path).expect("the log");
            log.seek(SeekFrom::Start(from)).expect("its end");
            let mut text = Vec::new();
            log.read_to_end(&mut text).expect("its text");
            let text = String::from_utf8_lossy(&text);
            // "Grand total: 1 bytes in 2 blocks; 3 free (4 chunks); 5 used"
            used = text
                .lines()
                .filter(|line| line.contains(&format!("[{pid}]")))
                .find_map(|line| line.split_once("Grand total: ")?.1.strip_suffix(" used"))
                .and_then(|line| line.rsplit(' ').next()?.parse::<i64>().ok());
            used.is_some()
        });
        used.expect("a number") / 1024
    }

    fn wait_until_idle(&mut self) {
        wait_for("the worker to have nothing left to do", || {
            let query =
                "SELECT watched_running = 0 AND queue_depth = 0 FROM loader.recorder_status()";
            self.admin.query_one(query, &[]).expect("the status").get(0)
        });
    }

    /// The tables that the recorder needs for itself, and their sizes in kB with their indexes.
    fn table_sizes(&mut self) -> Vec<(String, i64)> {
        let query = "SELECT name, pg_total_relation_size(('loader_history.' || name)::regclass) / 1024 \
                     FROM unnest('{watched_transaction,recorded_loader,server_outcome}'::text[]) AS name";
        let rows = self.admin.query(query, &[]).expect("the sizes");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Every start is there, and says what became of it.
    fn check_outcomes(&mut self) {
        self.wait_until_idle();
        let query = "SELECT count(*) FILTER (WHERE status = 'RUNNING'), \
                            count(*) FILTER (WHERE status = 'SUCCESS'), \
                            count(*) FILTER (WHERE status = 'FAILED') FROM loader.execution_history";
        let mut counts = (0, 0, 0);
        let expected = (0, self.success, self.failed);
        // A session that has vanished is rolled back a moment later.
        let begun = Instant::now();
        while counts != expected && begun.elapsed() < TIMEOUT {
            let row = self.admin.query_one(query, &[]).expect("the counts");
            let count = |column| row.get::<_, i64>(column).cast_unsigned();
            counts = (count(0), count(1), count(2));
        }
        println!("Executions RUNNING, SUCCESS, FAILED: {counts:?}, expected {expected:?}");
        if counts != expected {
            self.problems.push(format!("executions: {counts:?}, expected {expected:?}"));
        }
    }

    /// While the worker stands still, as many starts as the queue has places wait for it, one more falls back, and
    /// none of the former does when it goes on. And as many errors as there are places for reports reach it.
    fn check_queue(&mut self) {
        let mut sessions: Vec<_> = (0..QUEUE_SIZE).map(|_| Session::new(self.cluster)).collect();
        let mut one_more = Session::new(self.cluster);
        for session in sessions.iter_mut().chain([&mut one_more]) {
            session.begin();
        }
        freeze_worker(&mut self.admin);
        let depth = thread::scope(|scope| {
            for session in &mut sessions {
                scope.spawn(|| session.start());
            }
            let query = "SELECT queue_depth FROM loader.recorder_status()";
            let mut depth = 0;
            let begun = Instant::now();
            while depth < QUEUE_SIZE && begun.elapsed() < Duration::from_secs(10) {
                let now: i32 = self.admin.query_one(query, &[]).expect("the depth").get(0);
                depth = usize::try_from(now).expect("a depth");
            }
            one_more.start();
            send_signal(self.worker, Signal::SIGCONT);
            depth
        });
        let warnings: u64 = sessions.iter().map(|session| session.warnings.count()).sum();
        let refused = one_more.warnings.count();
        println!(
            "Places in the queue: {depth} of {QUEUE_SIZE} taken; fallbacks of these: {warnings}"
        );
        if depth != QUEUE_SIZE || warnings != 0 || refused != 1 {
            self.problems.push(format!(
                "queue: {depth} of {QUEUE_SIZE} places, {warnings} fallbacks, one more got {refused} warnings"
            ));
        }
        one_more.roll_back();

        freeze_worker(&mut self.admin);
        for session in &mut sessions {
            session.client.batch_execute("DO $$ BEGIN RAISE 'full'; END $$").error("P0001");
            session.roll_back();
        }
        send_signal(self.worker, Signal::SIGCONT);
        self.wait_until_idle();
        let query =
            "SELECT count(*) FROM loader.execution_history WHERE error_message = 'P0001: full'";
        let told: i64 = self.admin.query_one(query, &[]).expect("the count").get(0);
        // The last quarter is for other databases.
        let places = QUEUE_SIZE / 4 * 3;
        println!("Places for reports: {told} of {places} taken");
        if usize::try_from(told) != Ok(places) {
            self.problems.push(format!("reports: {told} of {places} arrived"));
        }
    }

    fn check_status(&mut self) {
        self.wait_until_idle();
        let query = "SELECT worker_pid, unwatched_running, last_error, detail FROM loader.recorder_status()";
        let row = self.admin.query_one(query, &[]).expect("the status");
        let (worker, unwatched): (Option<i32>, i64) = (row.get(0), row.get(1));
        let (error, detail): (Option<String>, Option<String>) = (row.get(2), row.get(3));
        if worker != Some(self.worker) || unwatched != 0 || error.is_some() || detail.is_some() {
            self.problems.push(format!(
                "recorder_status: worker {worker:?}, was {}; {unwatched} unwatched; {error:?}; {detail:?}",
                self.worker
            ));
        }
    }

    fn check_tables(&mut self) {
        for (name, kb) in self.table_sizes() {
            println!("loader_history.{name}: {kb} kB with its index");
            // Failures that no loader has reported on are part of the history.
            if name != "server_outcome" && kb > TABLES_BOUND_KB {
                self.problems.push(format!("loader_history.{name} has {kb} kB"));
            }
        }
    }

    /// Whatever has become of the transactions that had events, their places are free.
    fn check_event_places(&mut self) {
        self.wait_until_idle();
        let (before, now) = (self.event_places, event_places(self.cluster, &mut self.admin));
        println!("Places for events: {now}, in the beginning {before}");
        if now != before {
            self.problems.push(format!("events: {now} places, in the beginning {before}"));
        }
    }
}

/// How many events the queue takes while the worker stands still, until a transaction notifies by itself.
fn event_places(cluster: &Cluster, admin: &mut Client) -> usize {
    // The worker may have emitted some of before, and not have freed their places yet.
    (0..3).map(|_| count_event_places(cluster, admin)).max().unwrap_or_default()
}

fn count_event_places(cluster: &Cluster, admin: &mut Client) -> usize {
    let mut listener = cluster.connect();
    listener.batch_execute("LISTEN loader_execution").expect("LISTEN");
    let mut loader = cluster.connect();
    loader.batch_execute("SET loader_history.autonomous_start = off").expect("the setting");
    let me: i32 = loader.query_one("SELECT pg_backend_pid()", &[]).expect("its id").get(0);
    let mut start = || {
        loader.query_one("SELECT loader.record_execution_start(9)", &[]).expect("a start");
    };
    let mut senders = || -> Vec<i32> {
        listener.batch_execute("SELECT").expect("what has come");
        let mut notifications = listener.notifications();
        let come = notifications.iter().map(|notification| Ok(notification.process_id()));
        come.collect().expect("a connection")
    };
    // Events come in their order: with this one, all of before are through.
    start();
    wait_for("the events of before", || !senders().is_empty());
    let worker = freeze_worker(admin);
    let mut places = 0;
    while !senders().contains(&me) && places < 100 * QUEUE_SIZE {
        start();
        places += 1;
    }
    send_signal(worker, Signal::SIGCONT);
    let delete = "DELETE FROM loader.execution_history WHERE loader_id = 9";
    admin.execute(delete, &[]).expect("they go");
    // The last one found no room.
    places - 1
}

/// The slope of the straight line nearest to all points, for a million of what they count.
fn slope_per_million(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    covariance / variance * 1e6
}

/// A client that counts the warnings it gets.
struct Session {
    client: Client,
    start: Statement,
    end: Statement,
    pid: i32,
    warnings: Warnings,
    expected_warnings: u64,
}

impl Session {
    fn new(cluster: &Cluster) -> Self {
        let warnings = Warnings::default();
        let mut client = warnings.connect(cluster);
        let start = client.prepare(START).expect("a statement");
        let end = client.prepare(END).expect("a statement");
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).expect("its id").get(0);
        Self { client, start, end, pid, warnings, expected_warnings: 0 }
    }

    fn run(&mut self, sql: &str) {
        self.client.batch_execute(sql).expect("a command that succeeds");
    }

    fn begin(&mut self) {
        self.run("BEGIN");
    }

    fn commit(&mut self) {
        self.run("COMMIT");
    }

    fn roll_back(&mut self) {
        self.run("ROLLBACK");
    }

    fn start_of(&mut self, loader: i64) -> i64 {
        self.client.query_one(&self.start, &[&loader]).expect("a start").get(0)
    }

    fn start(&mut self) -> i64 {
        self.start_of(1)
    }

    fn end(&mut self, execution: i64, status: &str) {
        self.client.execute(&self.end, &[&execution, &status]).expect("an end");
    }

    fn memory(&mut self) -> Memory {
        let query = "SELECT sum(used_bytes)::bigint / 1024 FROM pg_backend_memory_contexts";
        let contexts = self.client.query_one(query, &[]).expect("its memory").get(0);
        Memory::of(self.pid, contexts)
    }

    /// A start and what may become of it. Returns how many executions are recorded by it in the end, as
    /// SUCCESS and as FAILED.
    fn round(&mut self, round: u64) -> (u64, u64) {
        // Loads of rare kinds first; all others take turns.
        match round {
            _ if round % 1_000 == 500 => self.round_without_table(),
            _ if round % 100 == 50 => self.round_of_new_loader(),
            _ => match round % 8 {
                0 => {
                    let id = self.start();
                    self.end(id, "SUCCESS");
                    (1, 0)
                }
                1 => {
                    self.begin();
                    let id = self.start();
                    self.end(id, "SUCCESS");
                    self.commit();
                    (1, 0)
                }
                2 => {
                    self.begin();
                    self.start();
                    self.roll_back();
                    (0, 1)
                }
                // The usual catch block.
                3 => {
                    self.begin();
                    let id = self.start();
                    self.client.batch_execute("SELECT 1 / 0").error("22012");
                    self.roll_back();
                    self.end(id, "FAILED");
                    (0, 1)
                }
                // The start goes with its savepoint.
                4 => {
                    self.run("BEGIN; SAVEPOINT a");
                    self.start();
                    self.run("ROLLBACK TO a; COMMIT");
                    (0, 1)
                }
                // The same by an error, below a savepoint that stays.
                5 => {
                    self.run("BEGIN; SAVEPOINT a; SAVEPOINT b");
                    self.start();
                    self.client.batch_execute("SELECT 1 / 0").error("22012");
                    self.run("ROLLBACK TO b; RELEASE a; COMMIT");
                    (0, 1)
                }
                // The end goes with a savepoint, and is reported again.
                6 => {
                    self.begin();
                    let id = self.start();
                    self.run("SAVEPOINT a");
                    self.end(id, "FAILED");
                    self.run("ROLLBACK TO a");
                    self.end(id, "SUCCESS");
                    self.commit();
                    (1, 0)
                }
                // Calls that are errors, and one that isn't.
                _ => {
                    self.client.query(&self.start, &[&None::<i64>]).error("22004");
                    self.client.query(&self.start, &[&-1_i64]).error("23503");
                    self.client.query(&self.end, &[&-1_i64, &"FAILED"]).error("P0002");
                    let id = self.start();
                    self.client.query(&self.end, &[&id, &"DONE"]).error("22023");
                    self.end(id, "SUCCESS");
                    self.client.query(&self.end, &[&id, &"FAILED"]).error("55000");
                    (1, 0)
                }
            },
        }
    }

    /// A loader that nobody else sees: its start falls back, and goes with it.
    fn round_of_new_loader(&mut self) -> (u64, u64) {
        self.run("BEGIN; INSERT INTO loader.loader VALUES (1000, 'NEW')");
        self.start_of(1000);
        self.roll_back();
        self.expected_warnings += 1;
        (0, 0)
    }

    /// A start that the worker can't record: it falls back, and a rollback removes it.
    fn round_without_table(&mut self) -> (u64, u64) {
        self.run("BEGIN; LOCK TABLE loader.execution_history IN SHARE ROW EXCLUSIVE MODE");
        let id = self.start();
        self.client.batch_execute("SELECT 1 / 0").error("22012");
        self.roll_back();
        self.client.query(&self.end, &[&id, &"FAILED"]).error("P0002");
        self.expected_warnings += 1;
        (0, 0)
    }
}

/// How a session of the second part ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Reported,
    RolledBack,
    /// The socket is closed in the transaction.
    Vanished,
    /// The same while it starts.
    VanishedEarly,
    /// The server ends it.
    Terminated,
}

impl End {
    const fn of(number: u64) -> Self {
        match number % 8 {
            0 | 1 => Self::Reported,
            2 => Self::RolledBack,
            3..=5 => Self::Vanished,
            6 => Self::VanishedEarly,
            _ => Self::Terminated,
        }
    }
}

/// A session that starts once.
fn visit(cluster: &Cluster, number: u64) {
    const BEGIN: &str = "BEGIN; SELECT loader.record_execution_start(1)";
    let end = End::of(number);
    if matches!(end, End::Reported | End::RolledBack) {
        let mut client = cluster.connect();
        let mut load = client.transaction().expect("a transaction");
        let id: i64 = load.query_one(START, &[&1_i64]).expect("a start").get(0);
        if end == End::Reported {
            load.execute(END, &[&id, &"SUCCESS"]).expect("an end");
            load.commit().expect("a commit");
        }
        return;
    }
    let mut connection = RawConnection::open(cluster);
    connection.send(BEGIN);
    if end != End::VanishedEarly {
        connection.wait_until_ready();
    }
    if end == End::Terminated {
        send_signal(connection.pid, Signal::SIGTERM);
    }
}

/// A connection that can be closed without a word, which a client of the library cannot.
struct RawConnection {
    socket: UnixStream,
    pid: i32,
}

impl RawConnection {
    fn open(cluster: &Cluster) -> Self {
        const PROTOCOL: i32 = 3 << 16;
        const PARAMETERS: &[u8] = b"user\0postgres\0database\0postgres\0\0";
        let path = cluster.directory().join(".s.PGSQL.5432");
        let socket = UnixStream::connect(path).expect("a connection");
        let mut connection = Self { socket, pid: 0 };
        connection.write(&[&PROTOCOL.to_be_bytes(), PARAMETERS].concat());
        connection.wait_until_ready();
        connection
    }

    /// Sends a message's length, which counts itself, and its content.
    fn write(&mut self, content: &[u8]) {
        let length = i32::try_from(content.len() + 4).expect("a length").to_be_bytes();
        self.socket.write_all(&[&length, content].concat()).expect("the server listens");
    }

    /// Sends a query, and does not wait for what it returns.
    fn send(&mut self, sql: &str) {
        self.socket.write_all(b"Q").expect("the server listens");
        self.write(&[sql.as_bytes(), b"\0"].concat());
    }

    fn wait_until_ready(&mut self) {
        loop {
            let mut head = [0; 5];
            self.socket.read_exact(&mut head).expect("a message");
            let length = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut content = vec![0; usize::try_from(length - 4).expect("a length")];
            self.socket.read_exact(&mut content).expect("a message");
            match head[0] {
                b'Z' => return,
                // The process's id, and the key to cancel it.
                b'K' => self.pid = i32::from_be_bytes(content[..4].try_into().expect("an id")),
                b'E' | b'N' => panic!("{}", String::from_utf8_lossy(&content)),
                _ => {}
            }
        }
    }
}
