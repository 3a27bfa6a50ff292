//! Promise: every example of the README works, and prints what the README says it prints.
//!
//! What a fenced block's info string means:
//! - `sql`: run by psql. It succeeds, and prints the `text` block after it; without one, no NOTICE.
//! - `sql error`: likewise, but meant to fail: its `text` block shows the error.
//! - `sh`: run by sh, with the server's programs at hand.
//! - `conf`: added to postgresql.conf; the server is restarted.
//! - `python`, `java`: their SQL statements are run by a client, as such a loader would.
//! - `console`: not run.

use std::env;
use std::fmt::Write as _;
use std::fs;

use pg_test::{Cluster, bindir, cluster_with_extension, column, wait_for_worker};

const README: &str = include_str!("../../README.md");

/// The database that the README's examples are run in.
const DATABASE: &str = "app";

/// A fenced block of the README.
struct Block {
    line: usize,
    info: &'static str,
    body: String,
    /// The `text` block that follows.
    output: Option<String>,
}

/// Every fenced block, each with its output.
///
/// # Panics
/// When a block is of no known kind, is not closed, or is the output of nothing.
fn blocks() -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = README.lines().enumerate();
    // Whether a `text` block that begins here is the output of the block before.
    let mut adjacent = false;
    while let Some((number, line)) = lines.next() {
        let fence = line.trim_start();
        let Some(info) = fence.strip_prefix("```") else {
            adjacent &= fence.is_empty();
            continue;
        };
        let line_number = number + 1;
        let indent = line.len() - fence.len();
        let mut body = String::new();
        loop {
            let (_, line) = lines.next().unwrap_or_else(|| panic!("{line_number}: not closed"));
            if line.trim() == "```" {
                break;
            }
            body.push_str(line.get(indent..).unwrap_or_default());
            body.push('\n');
        }
        match info {
            "text" => {
                assert!(adjacent, "{line_number}: the output of no example");
                blocks.last_mut().expect("a block before").output = Some(body);
            }
            "sql" | "sql error" | "sh" | "conf" | "python" | "java" | "console" => {
                blocks.push(Block { line: line_number, info, body, output: None });
            }
            _ => panic!("{line_number}: unknown kind of block {info:?}"),
        }
        adjacent = matches!(info, "sql" | "sql error" | "sh");
    }
    blocks
}

/// Runs a block, and returns whether it succeeded and all that it printed.
fn run_block(cluster: &Cluster, block: &Block) -> (bool, String) {
    let directory = cluster.directory().join("examples");
    fs::create_dir_all(&directory).expect("a directory");
    let script = if block.info == "sh" {
        block.body.as_str()
    } else {
        fs::write(directory.join("block.sql"), &block.body).expect("a file");
        "psql -X -q -v ON_ERROR_STOP=1 < block.sql"
    };
    let path = env::var("PATH").expect("PATH");
    // An absolute path is run as it is, with the variables that lead to the cluster.
    let output = cluster
        .program("/bin/sh")
        // One stream for both, so that errors stand where a user sees them.
        .args(["-euc", &format!("exec 2>&1\n{script}")])
        .current_dir(&directory)
        .env("PATH", format!("{}:{path}", bindir().display()))
        .env("PGDATABASE", DATABASE)
        .env("PGTZ", "UTC")
        .output()
        .expect("sh runs");
    (output.status.success(), String::from_utf8(output.stdout).expect("UTF-8"))
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

/// `output` without what differs from run to run: times, durations, process ids, cursors, and the
/// widths of columns that hold them.
fn masked(output: &str) -> String {
    output.trim_end().lines().map(masked_line).collect::<Vec<_>>().join("\n")
}

fn masked_line(line: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || ".:+-_".contains(c);
    let mut masked = String::new();
    let mut rest = line.trim_end();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if end > 0 {
            let after_pid = masked.ends_with("PID ");
            masked.push_str(&masked_word(&rest[..end], after_pid));
            rest = &rest[end..];
        } else {
            let end = rest.find(is_word).unwrap_or(rest.len());
            for c in rest[..end].chars() {
                if c != ' ' || !masked.ends_with(' ') {
                    masked.push(c);
                }
            }
            rest = &rest[end..];
        }
    }
    masked.trim().to_owned()
}

fn masked_word(word: &str, after_pid: bool) -> String {
    let bare = word.trim_end_matches('.');
    // The word with every digit as 9, so that shapes can be compared.
    let shape: String = bare.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    let mask = if word.chars().all(|c| c == '-' || c == '+') {
        // The rule under a table's header.
        let columns: Vec<_> =
            word.split('+').map(|column| &column[..column.len().min(1)]).collect();
        return columns.join("+");
    } else if shape.contains("99:99:99") {
        "<time>"
    } else if shape == "9999-99-99" {
        "<date>"
    } else if shape.starts_with("999999999999") && shape.contains("9_9") {
        "<cursor>"
    } else if after_pid {
        "<pid>"
    } else {
        bare
    };
    format!("{mask}{}", &word[bare.len()..])
}

/// What is wrong with what a block did, if anything.
fn problem(block: &Block, succeeded: bool, printed: &str) -> Option<&'static str> {
    let meant_to_fail = block.info == "sql error";
    if meant_to_fail != printed.lines().any(|line| line.starts_with("ERROR:")) {
        return Some("an error that is not meant, or none that is");
    }
    // Psql may go on after an error, and says then that all is well.
    if !succeeded && !meant_to_fail {
        return Some("it failed");
    }
    match &block.output {
        Some(output) if masked(output) != masked(printed) => Some("the output differs"),
        None if meant_to_fail => Some("no text block shows the error"),
        None if printed.contains("NOTICE:") || printed.contains("WARNING:") => {
            Some("no text block shows the notice")
        }
        _ => None,
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
        let (succeeded, printed) = run_block(&cluster, block);
        if let Some(problem) = problem(block, succeeded, &printed) {
            let Block { line, body, .. } = block;
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
             SELECT loader.grant_recorder('etl');
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
