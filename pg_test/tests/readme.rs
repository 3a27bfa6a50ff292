//! Promise: every example of the README works, and prints what the README says it prints.
//!
//! `pg_test::Example` says what `sql`, `sql error` and `sh` blocks mean. Besides:
//! - `conf`: added to postgresql.conf; the server is restarted.
//! - `python`, `java`: their SQL statements are run by a client, as such a loader would.
//! - `console`: not run.

use std::fmt::Write as _;
use std::fs;

use pg_test::{
    Cluster, Example, cluster_with_extension, column, examples, masked, wait_for, wait_for_worker,
};

const README: &str = include_str!("../../README.md");

/// The database that the README's examples are run in.
const DATABASE: &str = "app";

/// Every fenced block of the README.
fn blocks() -> Vec<Example> {
    let kinds = ["sql", "sql error", "sh", "conf", "python", "java", "console", "js"];
    let mut blocks = examples(README, &kinds);
    for block in &mut blocks {
        // What the README's reader waits for may take longer on a busy machine.
        block.body = block.body.replace("\\! sleep 1\n", "\\! sleep 5\n");
    }
    blocks
}

/// Adds settings to postgresql.conf, and restarts the server with its workers.
fn configure(cluster: &mut Cluster, settings: &str) {
    let file = cluster.data().join("postgresql.conf");
    let text = fs::read_to_string(&file).expect("postgresql.conf");
    fs::write(&file, format!("{text}\n{settings}")).expect("postgresql.conf");
    cluster.stop_server();
    cluster.start_server();
    let databases: Vec<String> = column(
        &mut cluster.connect(),
        "SELECT datname::text FROM pg_database
          WHERE NOT datistemplate AND datname <> current_database()",
    );
    for database in databases {
        wait_for_worker(&mut cluster.connect_to(&database, "postgres"));
    }
}

#[test]
fn every_example_prints_what_the_readme_says() {
    let blocks = blocks();
    let count = |info| blocks.iter().filter(|block| block.info == info).count();
    assert!(count("sql") >= 32 && count("sql error") >= 8 && count("sh") >= 5, "examples are gone");
    assert_eq!(count("conf"), 1, "the library is preloaded once");

    let mut cluster = Cluster::start_with("max_prepared_transactions = 5");
    cluster.connect().batch_execute(&format!("CREATE DATABASE {DATABASE}")).unwrap();
    let mut problems = String::new();
    for block in &blocks {
        match block.info {
            "sql" | "sql error" | "sh" => {}
            "conf" => {
                configure(&mut cluster, &block.body);
                continue;
            }
            _ => continue,
        }
        // A setting of the database's brings another worker.
        let mut restarted = block
            .body
            .contains("ALTER DATABASE app SET loader_history")
            .then(|| cluster.connect_to(DATABASE, "postgres"));
        let worker = restarted.as_mut().map(wait_for_worker);
        let (succeeded, printed) = block.run(&cluster, DATABASE);
        if let Some(client) = &mut restarted {
            wait_for("another worker", || Some(wait_for_worker(client)) != worker);
        }
        if let Some(problem) = block.problem(succeeded, &printed) {
            let Example { line, body, .. } = block;
            writeln!(problems, "README.md:{line}: {problem}\n{body}\nprinted:\n{printed}").unwrap();
        }
    }
    assert!(problems.is_empty(), "{problems}");

    let examples: String = blocks.iter().map(|block| block.body.as_str()).collect();
    let undocumented: Vec<String> = cluster
        .connect_to(DATABASE, "postgres")
        .query(
            "SELECT coalesce(p.proname, c.relname)::text
               FROM pg_depend AS d
               JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
               LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
               LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
              WHERE e.extname = 'loader_history' AND d.deptype = 'e'
                AND (p.oid IS NOT NULL OR c.relkind = 'v')
                AND obj_description(d.objid, d.classid::regclass::name) NOT LIKE 'Internal:%'",
            &[],
        )
        .unwrap()
        .into_iter()
        .map(|row| row.get(0))
        .filter(|name: &String| !examples.contains(&format!("loader.{name}")))
        .collect();
    assert!(undocumented.is_empty(), "no example of {undocumented:?}");
}

/// The SQL statements in the string literals of a program, with `$n` for its placeholders.
fn statements(program: &str, placeholder: &str) -> Vec<String> {
    program
        .split('"')
        .skip(1)
        .step_by(2)
        .map(|literal| {
            let mut parts = literal.split(placeholder);
            let first = parts.next().unwrap_or_default().to_owned();
            (1..).zip(parts).fold(first, |sql, (n, part)| format!("{sql}${n}{part}"))
        })
        .collect()
}

/// Runs the statements of a loader in another language as that would: a load that succeeds, and one
/// that fails.
fn run_loader(placeholder: &str, info: &str) {
    let programs: Vec<_> = blocks().into_iter().filter(|block| block.info == info).collect();
    let [program] = programs.as_slice() else { panic!("one block of {info}") };
    let statements = statements(&program.body, placeholder);
    let [start, load, success, failed] = statements.as_slice() else {
        panic!("a start, a load and its two outcomes, not {statements:?}")
    };

    let cluster = cluster_with_extension();
    let mut observer = cluster.connect();
    observer
        .batch_execute(
            "CREATE ROLE etl LOGIN;
             SELECT loader_history.grant_recorder('etl');
             CREATE TABLE incoming (item text, amount numeric);
             CREATE TABLE sale (LIKE incoming);
             INSERT INTO incoming VALUES ('pear', 3), ('plum', 5), ('fig', 8);
             GRANT ALL ON incoming, sale TO etl;",
        )
        .unwrap();
    let mut seen = || -> (String, i32, Option<String>, i64) {
        let row = observer
            .query_one(
                "SELECT status::text, record_count, error_message, (SELECT count(*) FROM sale)
                   FROM loader.execution_details ORDER BY id DESC LIMIT 1",
                &[],
            )
            .unwrap();
        (row.get(0), row.get(1), row.get(2), row.get(3))
    };
    let mut client = cluster.connect_to("postgres", "etl");

    let run: i64 = client.query_one(start, &[&4_i64]).unwrap().get(0);
    let mut transaction = client.transaction().unwrap();
    let rows = i64::try_from(transaction.execute(load, &[]).unwrap()).unwrap();
    transaction.query_one(success, &[&run, &rows]).unwrap();
    assert_eq!(seen(), ("RUNNING".to_owned(), 0, None, 0), "the start alone is committed");
    transaction.commit().unwrap();
    assert_eq!(seen(), ("SUCCESS".to_owned(), 3, None, 3));

    let run: i64 = client.query_one(start, &[&4_i64]).unwrap().get(0);
    let mut transaction = client.transaction().unwrap();
    transaction.execute(load, &[]).unwrap();
    transaction.rollback().unwrap();
    client.query_one(failed, &[&run, &"the disk is full"]).unwrap();
    assert_eq!(seen(), ("FAILED".to_owned(), 0, Some("the disk is full".to_owned()), 3));
}

#[test]
fn the_python_loader_records_its_loads() {
    run_loader("%s", "python");
}

#[test]
fn the_java_loader_records_its_loads() {
    run_loader("?", "java");
}

#[test]
fn masking_hides_what_differs_and_nothing_else() {
    for (one, other) in [
        ("2026-11-23 11:16:26.7+00 | 1", "2027-01-02 00:00:00+00    | 1"),
        ("at 2026-11-23T11:16:26.735855Z.", "at 2026-11-24T01:02:03Z."),
        ("00:00:00.000815", "00:00:07"),
        ("\"848741224296907_9\"", "\"848741999999999_9\""),
        ("process with PID 25387.", "process with PID 3."),
        ("-[ RECORD 1 ]---+--", "-[ RECORD 1 ]-----+------"),
        ("----+--", "-+-----"),
    ] {
        assert_eq!(masked(one), masked(other));
    }
    for (one, other) in [("in 3 s", "in 4 s"), ("| 1 |", "| 2 |"), ("a b", "a c"), ("12_1", "13_1")]
    {
        assert_ne!(masked(one), masked(other));
    }
}
