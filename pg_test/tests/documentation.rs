//! Promise: every example of README.md and of the pages in docs/ works and prints what the page shows;
//! every public object has an example; links lead somewhere.
//!
//! Each page has a server and a database `app` of its own. What it needs it creates in its first block, in an
//! HTML comment. `pg_test::Example` says what `sql`, `sql error` and `sh` blocks mean. Besides:
//! - `conf`: added to postgresql.conf; the server is restarted.
//! - `python`, `java`: their SQL statements are run by a client, as such a loader would.
//! - `console`, `js`, `mermaid` and blocks without a word: not run.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use pg_test::{
    Cluster, Example, PRELOADED, cluster_with_extension, column, examples, install_extension,
    masked, wait_for, wait_for_worker,
};

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The database that a page's examples are run in.
const DATABASE: &str = "app";

const KINDS: [&str; 10] =
    ["sql", "sql error", "sh", "conf", "python", "java", "console", "js", "mermaid", ""];

const RECORDING: &str = include_str!("../../docs/recording.md");

/// The pages whose examples are run here.
const PAGES: [(&str, &str); 14] = [
    ("README.md", include_str!("../../README.md")),
    ("CONTRIBUTING.md", include_str!("../../CONTRIBUTING.md")),
    ("SECURITY.md", include_str!("../../SECURITY.md")),
    ("docs/architecture.md", include_str!("../../docs/architecture.md")),
    ("docs/background-worker.md", include_str!("../../docs/background-worker.md")),
    ("docs/configuration.md", include_str!("../../docs/configuration.md")),
    ("docs/console.md", include_str!("../../docs/console.md")),
    ("docs/events.md", include_str!("../../docs/events.md")),
    ("docs/install.md", include_str!("../../docs/install.md")),
    ("docs/operations.md", include_str!("../../docs/operations.md")),
    ("docs/reading.md", include_str!("../../docs/reading.md")),
    ("docs/recording.md", RECORDING),
    ("docs/security.md", include_str!("../../docs/security.md")),
    ("docs/troubleshooting.md", include_str!("../../docs/troubleshooting.md")),
];

/// The pages whose examples other tests run, or that have none.
const OTHERS: [(&str, &str); 5] = [
    ("CHANGELOG.md", include_str!("../../CHANGELOG.md")),
    ("docs/bench.md", include_str!("../../docs/bench.md")),
    ("docs/loaders.md", include_str!("../../docs/loaders.md")),
    ("docs/performance.md", include_str!("../../docs/performance.md")),
    ("docs/replication.md", include_str!("../../docs/replication.md")),
];

/// What stands in the place of `sleep 1`: the server's finding may take longer on a busy machine.
const UNTIL_ENDED: &str = r#"for i in $(seq 300); do [ "$(psql -XAtc 'SELECT status FROM loader.execution_details ORDER BY id DESC LIMIT 1')" = RUNNING ] || break; sleep 0.1; done"#;

/// Every fenced block of a page.
fn blocks(page: &'static str) -> Vec<Example> {
    let mut blocks = examples(page, &KINDS);
    for block in &mut blocks {
        block.body = block.body.replace("\\! sleep 1\n", &format!("\\! {UNTIL_ENDED}\n"));
    }
    blocks
}

/// Adds settings to postgresql.conf, and restarts the server with its workers.
fn configure(cluster: &mut Cluster, settings: &str) {
    cluster.configure(settings);
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

/// Runs the examples of a page.
fn run_page(name: &str) {
    let (_, page) = PAGES.into_iter().find(|(page, _)| *page == name).expect("a page");
    let mut cluster = Cluster::start_with("max_prepared_transactions = 5");
    cluster.connect().batch_execute(&format!("CREATE DATABASE {DATABASE}")).unwrap();
    let mut problems = String::new();
    for block in blocks(page) {
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
            .contains("ALTER DATABASE app SET loader_history.retention")
            .then(|| cluster.connect_to(DATABASE, "postgres"));
        let worker = restarted.as_mut().map(wait_for_worker);
        let (succeeded, printed) = block.run(&cluster, DATABASE);
        if let Some(client) = &mut restarted {
            wait_for("another worker", || Some(wait_for_worker(client)) != worker);
        }
        if let Some(problem) = block.problem(succeeded, &printed) {
            let Example { line, body, .. } = &block;
            writeln!(problems, "{name}:{line}: {problem}\n{body}\nprinted:\n{printed}").unwrap();
        }
    }
    assert!(problems.is_empty(), "{problems}");
}

#[test]
fn readme() {
    run_page("README.md");
}

#[test]
fn background_worker() {
    run_page("docs/background-worker.md");
}

#[test]
fn configuration() {
    run_page("docs/configuration.md");
}

#[test]
fn console() {
    run_page("docs/console.md");
}

#[test]
fn events() {
    run_page("docs/events.md");
}

#[test]
fn install() {
    run_page("docs/install.md");
}

#[test]
fn operations() {
    run_page("docs/operations.md");
}

#[test]
fn reading() {
    run_page("docs/reading.md");
}

#[test]
fn recording() {
    run_page("docs/recording.md");
}

#[test]
fn security() {
    run_page("docs/security.md");
}

#[test]
fn troubleshooting() {
    run_page("docs/troubleshooting.md");
}

#[test]
fn every_page_is_tested() {
    let run = [
        "README.md",
        "docs/background-worker.md",
        "docs/configuration.md",
        "docs/console.md",
        "docs/events.md",
        "docs/install.md",
        "docs/operations.md",
        "docs/reading.md",
        "docs/recording.md",
        "docs/security.md",
        "docs/troubleshooting.md",
    ];
    for (name, page) in PAGES {
        let has_examples =
            blocks(page).iter().any(|block| ["sql", "sql error", "sh"].contains(&block.info));
        assert_eq!(has_examples, run.contains(&name), "{name}");
    }
    let known: BTreeSet<_> = PAGES.iter().chain(&OTHERS).map(|(name, _)| *name).collect();
    for folder in ["", "docs/"] {
        for entry in fs::read_dir(Path::new(PROJECT).join(folder)).unwrap() {
            let file = format!("{folder}{}", entry.unwrap().file_name().to_str().unwrap());
            assert!(!file.ends_with(".md") || known.contains(file.as_str()), "{file} is untested");
        }
    }
}

#[test]
fn every_public_object_has_an_example() {
    let shown: String =
        PAGES.into_iter().flat_map(|(_, page)| blocks(page)).map(|block| block.body).collect();
    let cluster = Cluster::start_with(PRELOADED);
    cluster.connect().batch_execute(&format!("CREATE DATABASE {DATABASE}")).unwrap();
    install_extension(&cluster, DATABASE);
    let mut client = cluster.connect_to(DATABASE, "postgres");
    let objects: Vec<String> = column(
        &mut client,
        "SELECT format('%s.%s', n.nspname, coalesce(p.proname, c.relname))
           FROM pg_depend AS d
           JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
           LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
           LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
           JOIN pg_namespace AS n ON n.oid = coalesce(p.pronamespace, c.relnamespace)
          WHERE e.extname = 'loader_history' AND d.deptype = 'e'
            AND (p.oid IS NOT NULL OR c.relkind = 'v')
            AND obj_description(d.objid, d.classid::regclass::name) NOT LIKE 'Internal:%'",
    );
    let settings: Vec<String> =
        column(&mut client, "SELECT name FROM pg_settings WHERE name LIKE 'loader_history.%'");
    assert!(objects.len() >= 12 && settings.len() >= 6, "{objects:?} {settings:?}");
    let undocumented: Vec<_> =
        objects.iter().chain(&settings).filter(|name| !shown.contains(name.as_str())).collect();
    assert!(undocumented.is_empty(), "no example of {undocumented:?}");

    // Each setting has a section.
    let (_, configuration) =
        PAGES.into_iter().find(|page| page.0 == "docs/configuration.md").unwrap();
    let sections: Vec<_> =
        configuration.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut settings = settings;
    settings.sort();
    assert_eq!(sections, settings);
}

/// The lines of a page outside of fenced blocks and comments.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(page.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        !fenced && !is_fence
    })
}

/// What GitHub makes of a page's headings, to link to.
fn anchors(page: &str) -> BTreeSet<String> {
    prose(page)
        .filter_map(|(_, line)| line.strip_prefix('#'))
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
            heading.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let pages: Vec<_> = PAGES.into_iter().chain(OTHERS).collect();
    let mut broken = Vec::new();
    for (name, page) in &pages {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (number, line) in prose(page) {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            let images = line.split("src=\"").skip(1).filter_map(|rest| rest.split_once('"'));
            for (target, _) in targets.chain(images) {
                if target.contains("://") {
                    continue;
                }
                let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
                let path = match file {
                    "" => (*name).to_owned(),
                    _ => match (folder, file.strip_prefix("../")) {
                        (_, Some(file)) => file.to_owned(),
                        ("", None) => file.to_owned(),
                        (folder, None) => format!("{folder}/{file}"),
                    },
                };
                let known = pages.iter().find(|(page, _)| *page == path);
                let leads = Path::new(PROJECT).join(&path).exists()
                    && (anchor.is_empty()
                        || known.is_some_and(|(_, page)| anchors(page).contains(anchor)));
                if !leads {
                    broken.push(format!("{name}:{number}: {target}"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Files of the sources that a page names are there.
#[test]
fn named_files_exist() {
    let mut missing = Vec::new();
    for (name, page) in PAGES {
        for word in page.split('`').skip(1).step_by(2) {
            let is_path = ["src/", "sql/", "pg_test/", "scripts/", "docs/", "console/"]
                .iter()
                .any(|folder| word.starts_with(folder))
                && !word.contains([' ', '*', '{']);
            if is_path && !Path::new(PROJECT).join(word).exists() {
                missing.push(format!("{name}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn lines_have_at_most_100_characters() {
    let mut long = Vec::new();
    for (name, page) in PAGES.into_iter().chain(OTHERS) {
        // The benchmark writes its page; 1.5.0's part of the changelog is as it was.
        if ["docs/bench.md", "CHANGELOG.md"].contains(&name) {
            continue;
        }
        for (number, line) in prose(page) {
            let free = line.starts_with('|') || line.starts_with('<');
            if !free && line.chars().count() > 100 {
                long.push(format!("{name}:{number}"));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
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
    let programs: Vec<_> =
        blocks(RECORDING).into_iter().filter(|block| block.info == info).collect();
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
