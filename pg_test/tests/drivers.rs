//! Promise: loaders in Python, JavaScript, Java and Rust, as their authors write them, record what
//! happens to their loads, each through its own driver and a login that has only what it needs.
//!
//! `clients/` holds them. Of each, `load` brings real data into a table in one transaction, `listen`
//! waits for events, and `calls` makes every call with every type and in every way that the driver has;
//! `calls.txt` says what must come of those.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use pg_test::ClientProgram::{Jdbc, NodePostgres, Psycopg, TokioPostgres};
use pg_test::{
    ClientProgram, Process, Signal, Site, column, examples, wait_for, wait_for_worker, write_half,
};

/// Rust's programs, which cargo has built beside this test.
fn tokio_postgres() -> ClientProgram {
    let load = Path::new(env!("CARGO_BIN_EXE_tokio_postgres_load"));
    TokioPostgres(load.parent().and_then(Path::to_str).unwrap())
}

/// How soon a failure must be found out on a busy machine. The contract says: within a second.
const IN_TIME: Duration = Duration::from_secs(10);

const PLANES: i64 = 3322;

/// Loads half the data, and returns the loader, which waits for the rest.
fn load_half(site: &mut Site, program: ClientProgram) -> (Process, fs::File, Vec<u8>) {
    let pipe = site.pipe();
    let mut loader = program.load(site.cluster.port(), &pipe);
    let mut file = loader.open(&pipe);
    let rest = write_half(&mut file, &Site::data("planes.csv"));
    assert_eq!(site.newest(), "RUNNING", "others see the start while the load is open");
    (loader, file, rest)
}

/// Waits until the newest execution is no longer RUNNING, and returns what it is.
fn outcome(site: &mut Site) -> String {
    let started = Instant::now();
    wait_for("the outcome", || site.newest() != "RUNNING");
    assert!(started.elapsed() < IN_TIME, "found after {:?}", started.elapsed());
    site.newest()
}

/// Runs loads that succeed, fail, are killed, and lose their connection. The own text of a failed one
/// begins with `text`, and its driver's errors hold `errors`.
fn loads(program: ClientProgram, text: &str, errors: &str) {
    let mut site = Site::start();

    let (loader, mut file, rest) = load_half(&mut site, program);
    assert_eq!(site.planes(), 0, "the data is not committed");
    file.write_all(&rest).unwrap();
    drop(file);
    loader.succeed();
    assert_eq!((site.newest(), site.planes()), (format!("SUCCESS {PLANES}"), PLANES));

    // The same planes once more.
    let printed = program.load(site.cluster.port(), &Site::data("planes.csv")).fail();
    assert!(printed.contains(errors), "{printed}");
    let failed = site.newest();
    println!("{program:?}: {failed}");
    assert!(failed.starts_with(&format!("FAILED {text}")), "the loader's own text: {failed}");
    let outcomes = "SELECT count(*) FROM loader_history.server_outcome";
    assert_eq!(column::<i64>(&mut site.observer, outcomes), [0], "the loader reported it");
    assert_eq!(site.planes(), PLANES);

    site.observer.batch_execute("TRUNCATE planes").unwrap();
    let (loader, file, _) = load_half(&mut site, program);
    loader.signal(Signal::SIGKILL);
    assert_eq!(
        outcome(&mut site),
        "FAILED 08006: unexpected EOF on client connection with an open transaction"
    );
    loader.fail();
    drop(file);

    let (loader, file, _) = load_half(&mut site, program);
    // The one before may still be on its way out.
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'etl'
                      ORDER BY backend_start DESC LIMIT 1";
    site.observer.query_one(terminate, &[]).unwrap();
    let terminated = "FAILED 57P01: terminating connection due to administrator command";
    assert_eq!(outcome(&mut site), terminated);
    // The loader finds out when it goes on, and its catch block can report nothing any more.
    drop(file);
    loader.fail();
    assert_eq!((site.newest().as_str(), site.planes()), (terminated, 0));
}

#[test]
fn loads_by_psycopg() {
    loads(Psycopg, "duplicate key value", "psycopg.errors.UniqueViolation");
}

#[test]
fn loads_by_node_postgres() {
    loads(NodePostgres, "error: duplicate key value", "code: '23505'");
}

#[test]
fn loads_by_jdbc() {
    loads(Jdbc, "org.postgresql.util.PSQLException: ERROR: duplicate key value", "PSQLException");
}

#[test]
fn loads_by_tokio_postgres() {
    loads(tokio_postgres(), "ERROR: duplicate key value", "E23505");
}

/// Two events reach a listener, the second one with what happened.
fn listens(program: ClientProgram) {
    let mut site = Site::start();
    let mut command = program.command("listen");
    let dsn = program.dsn(site.cluster.port(), "dashboard");
    let mut listener = Process::start(command.arg(dsn));
    assert_eq!(listener.line(), "listening");
    let mut loader = site.cluster.connect_to("postgres", "etl");
    wait_for_worker(&mut site.observer);
    loader.batch_execute("BEGIN; SELECT loader.record_execution_start(4)").unwrap();
    let started = listener.line();
    assert!(started.contains("EXECUTION_STARTED") && started.contains("RUNNING"), "{started}");
    drop(loader);
    let printed = listener.succeed();
    assert!(printed.contains("EXECUTION_FAILED") && printed.contains("FAILED"), "{printed}");
}

#[test]
fn psycopg_listens() {
    listens(Psycopg);
}

#[test]
fn node_postgres_listens() {
    listens(NodePostgres);
}

#[test]
fn jdbc_listens() {
    listens(Jdbc);
}

#[test]
fn tokio_postgres_listens() {
    listens(tokio_postgres());
}

/// Every call comes out as `calls.txt` says.
fn calls(program: ClientProgram) {
    let site = Site::start();
    let mut command = program.command("calls");
    for user in ["etl", "dashboard"] {
        command.arg(program.dsn(site.cluster.port(), user));
    }
    let printed = Process::start(&mut command).succeed();
    let expected = fs::read_to_string(program.folder().join("calls.txt")).unwrap_or_default();
    assert!(printed == expected, "it printed:\n{printed}\nand not:\n{expected}");
}

#[test]
fn calls_by_psycopg() {
    calls(Psycopg);
}

#[test]
fn calls_by_node_postgres() {
    calls(NodePostgres);
}

#[test]
fn calls_by_jdbc() {
    calls(Jdbc);
}

#[test]
fn calls_by_tokio_postgres() {
    calls(tokio_postgres());
}

/// A text without what sets its lines in.
fn lines(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_page_for_loaders_shows_what_is_run() {
    let page = include_str!("../../docs/loaders.md");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources: Vec<_> = [
        "clients/psycopg/load.py",
        "clients/node-postgres/load.js",
        "clients/jdbc/Load.java",
        "clients/tokio-postgres/load.rs",
        "clients/pgloader/load.sh",
        "clients/dlt/load.py",
        "tests/pg_cron.rs",
    ]
    .map(|name| (name, lines(&fs::read_to_string(tests.join(name)).unwrap())))
    .into();
    let blocks = examples(page, &["python", "js", "java", "rust", "sh", "sql"]);
    let mut shown = Vec::new();
    for block in &blocks {
        let body = lines(&block.body);
        let source = sources.iter().find(|(_, text)| text.contains(&body));
        shown.push(source.unwrap_or_else(|| panic!("docs/loaders.md:{}: not so", block.line)).0);
    }
    assert!(sources.iter().all(|(name, _)| shown.contains(name)), "{shown:?}");
}
