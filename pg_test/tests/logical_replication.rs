//! Promise: one server collects what several databases record, by PostgreSQL's own logical replication,
//! and keeps them apart. What docs/replication.md tells a DBA to run is what is run here.
//!
//! Of the blocks there:
//! - `sql source`: run in database `app` of each source.
//! - `sql collector`: run on the collecting server for `north` as it is written, then for `south`.
//! - `sql collector once`: run there once.
//! - `sql overview`: run there when all that the sources have has arrived.
//! - `sql again`: run there in the end.
//! - `sql measure`, `sh measure` of docs/performance.md: run in a database of their own, in a small size.
//!
//! Hosts and the socket's folder are replaced by those of the test's servers.

use std::time::Duration;

use fallible_iterator::FallibleIterator;
use pg_test::{
    Client, Cluster, Example, HISTORY, Session, assert_same_reads, column, examples,
    install_extension, preloaded_cluster_with, rows, run, say_left_out, status_of, version,
    wait_for, wait_for_equal, wait_for_worker,
};

const PAGE: &str = include_str!("../../docs/replication.md");

/// The page whose blocks measure.
const MEASURES: &str = include_str!("../../docs/performance.md");

const KINDS: [&str; 7] = [
    "sql source",
    "sql collector",
    "sql collector once",
    "sql overview",
    "sql again",
    "sql measure",
    "sh measure",
];

const SOURCES: [&str; 2] = ["north", "south"];

/// What a history holds, in short.
const DIGEST: &str =
    "SELECT md5(string_agg(h::text, ',' ORDER BY id)) FROM loader.execution_history AS h";

/// A source whose database `app` has the page's `loader.loader`, the extension and a history.
fn source() -> Cluster {
    let cluster = preloaded_cluster_with("wal_level = logical\n");
    cluster.connect().batch_execute("CREATE DATABASE app").unwrap();
    install_extension(&cluster, "app");
    let mut client = cluster.connect_to("app", "postgres");
    wait_for_worker(&mut client);
    client.batch_execute(HISTORY).unwrap();
    cluster
}

/// The page, and the servers that it is about.
struct Recipe<'a> {
    sources: [(&'a str, &'a Cluster); 2],
    collector: &'a Cluster,
}

impl Recipe<'_> {
    /// Runs the page's examples of some kinds, in their order.
    #[track_caller]
    fn run(&self, kinds: &[&str]) {
        let mut problems = String::new();
        let examples = examples(PAGE, &KINDS);
        for example in examples.iter().filter(|example| kinds.contains(&example.info)) {
            if example.body.contains("overview") && !self.has_overview() {
                say_left_out(&format!(
                    "docs/replication.md:{}, since this server has no postgres_fdw",
                    example.line
                ));
                continue;
            }
            let mut run_as = |cluster, database, name| {
                problems.push_str(&self.run_example(example, cluster, database, name));
            };
            match example.info {
                "sql source" => {
                    self.sources.iter().for_each(|(_, source)| run_as(source, "app", "north"));
                }
                "sql collector" => {
                    let names = self.sources.iter().map(|(name, _)| *name);
                    names.for_each(|name| run_as(self.collector, "postgres", name));
                }
                _ => run_as(self.collector, "postgres", "north"),
            }
        }
        assert!(problems.is_empty(), "{problems}");
    }

    /// Runs an example for the source `name`, and returns what is wrong, if anything.
    fn run_example(
        &self,
        example: &Example,
        cluster: &Cluster,
        database: &str,
        name: &str,
    ) -> String {
        let for_name = |text: &str| match example.info {
            "sql collector" => text.replace("north", name),
            _ => text.to_owned(),
        };
        let mut body = for_name(&example.body);
        for (name, source) in self.sources {
            let socket = format!("host={}", source.directory().display());
            body = body.replace(&format!("host={name}.example"), &socket);
        }
        let socket = self.collector.directory().display().to_string();
        body = body.replace("/var/run/postgresql", &socket);
        let output = example.output.as_deref().map(for_name);
        let example = Example { body, output, ..*example };
        let (succeeded, printed) = example.run(cluster, database);
        example.problem(succeeded, &printed).map_or_else(String::new, |problem| {
            let Example { line, body, .. } = example;
            format!("docs/replication.md:{line}: {problem}\n{body}\nprinted:\n{printed}\n")
        })
    }

    /// Whether a database can show all sources together: not where the server comes without its contrib
    /// modules.
    fn has_overview(&self) -> bool {
        let query = "SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'";
        column::<i64>(&mut self.collector.connect(), query) == [1]
    }

    /// All sources together: as many rows as they have, and the newest first without reading all.
    fn assert_overview(&self, collected: &mut [Client; 2]) {
        if !self.has_overview() {
            return;
        }
        let mut all = self.collector.connect_to("overview", "dashboard");
        for view in ["activity_feed", "execution_details", "loader_summary", "failed_loader_counts"]
        {
            for (name, client) in SOURCES.iter().zip(&mut *collected) {
                let own: Vec<i64> = column(client, &format!("SELECT count(*) FROM loader.{view}"));
                let query = format!("SELECT count(*) FROM {view} WHERE source = '{name}'");
                assert_eq!(column::<i64>(&mut all, &query), own, "{view} of {name}");
            }
        }
        let newest = "SELECT concat_ws(' ', source, event_type) FROM activity_feed
                       ORDER BY event_time DESC, execution_id DESC LIMIT 4";
        assert_eq!(
            column::<String>(&mut all, newest),
            [
                "south EXECUTION_SUCCESS",
                "south EXECUTION_STARTED",
                "north EXECUTION_SUCCESS",
                "north EXECUTION_STARTED"
            ]
        );
        let mut planner = self.collector.connect_to("overview", "postgres");
        let plan: Vec<String> = column(&mut planner, &format!("EXPLAIN {newest}"));
        assert!(plan.iter().any(|line| line.contains("Merge Append")), "{plan:#?}");
        assert!(!plan.iter().any(|line| line.contains("Sort  (")), "{plan:#?}");
    }
}

/// Waits until all that a source has is in a database that collects it.
#[track_caller]
fn arrived(source: &mut Client, collected: &mut Client) {
    for query in
        [DIGEST, "SELECT md5(string_agg(id || loader_code, ',' ORDER BY id)) FROM loader.loader"]
    {
        let expected: Vec<Option<String>> = column(source, query);
        wait_for_equal("what the source has", &expected, || column(collected, query));
    }
}

/// What a server has logged as going wrong.
fn complaints(cluster: &Cluster) -> Vec<String> {
    let log = cluster.log();
    let is_complaint = |line: &&str| {
        [" ERROR: ", "WARNING: ", "PANIC: ", "FATAL: "].iter().any(|word| line.contains(word))
            && !line.contains("the database system is starting up")
    };
    log.lines().filter(is_complaint).map(str::to_owned).collect()
}

/// Settings of the collecting server: room for both sources while they are first copied, and no more in its log than
/// what is wrong.
const COLLECTOR: &str = "
log_min_messages = warning
max_logical_replication_workers = 8
max_worker_processes = 16
";

/// Ends subscriptions, so that servers stop without waiting for each other.
fn unsubscribe(cluster: &Cluster, database: &str) {
    let mut client = cluster.connect_to(database, "postgres");
    client.batch_execute(&format!("DROP SUBSCRIPTION {database}")).unwrap();
}

#[test]
fn the_recipe_of_the_page_keeps_sources_apart() {
    let [north, south] = [source(), source()];
    let collector = Cluster::start_with(COLLECTOR);
    // The same ids mean different things: loaders, executions, and their outcomes.
    let mut loaders = [&north, &south].map(|source| Session::new(source, "app"));
    loaders[1].run(
        "UPDATE loader.loader SET loader_code = 'SOUTHERN_' || id;
         DELETE FROM loader.execution_history WHERE id % 5 = 0;
         UPDATE loader.execution_history SET record_count = record_count + 1000;
         INSERT INTO loader.loader VALUES (11, 'SOUTHERN_11')",
    );
    let recipe = Recipe { sources: [("north", &north), ("south", &south)], collector: &collector };
    recipe.run(&["sql source", "sql collector", "sql collector once"]);

    let mut collected = SOURCES.map(|name| collector.connect_to(name, "postgres"));
    let same = |loaders: &mut [Session; 2], collected: &mut [Client; 2]| {
        for (source, collected) in loaders.iter_mut().zip(collected) {
            arrived(&mut source.client, collected);
            assert_same_reads(&mut source.client, collected);
        }
    };
    // What was there.
    same(&mut loaders, &mut collected);
    let summary = "SELECT count(*) FROM loader.loader_summary WHERE loader_id = 10 AND running_executions = 1";
    assert_eq!(collected.each_mut().map(|client| column::<i64>(client, summary)), [[1], [1]]);
    recipe.run(&["sql overview"]);

    // What comes: a load that runs, one that succeeds, one that fails, in both at once.
    let mut listener = collector.connect_to("north", "postgres");
    listener.batch_execute("LISTEN loader_execution").unwrap();
    let ids = loaders.each_mut().map(|loader| {
        loader.run("BEGIN");
        loader.start()
    });
    assert_eq!(ids[0], ids[1], "the test is about equal ids");
    for client in &mut collected {
        wait_for_equal("the start", &Some("RUNNING".to_owned()), || status_of(client, ids[0]));
    }
    loaders[0]
        .run(&format!("SELECT loader.record_execution_end({}, 'SUCCESS', 5); COMMIT", ids[0]));
    assert!(loaders[1].client.batch_execute("SELECT 1 / 0").is_err());
    loaders[1].run("ROLLBACK");
    for (client, status) in collected.iter_mut().zip(["SUCCESS", "FAILED"]) {
        wait_for_equal("the outcome", &Some(status.to_owned()), || status_of(client, ids[0]));
    }
    let failure =
        format!("SELECT error_message FROM loader.execution_details WHERE id = {}", ids[1]);
    assert_eq!(column::<String>(&mut collected[1], &failure), ["22012: division by zero"]);
    // A loader that has not been there, and a loader's word after the server's finding.
    loaders[1].run(&format!(
        "SELECT loader.record_execution_end({}, 'SUCCESS', 77);
         SELECT loader.record_execution_end(loader.record_execution_start(11), 'FAILED', 0, 'no such file')",
        ids[1]
    ));
    same(&mut loaders, &mut collected);

    // A purge goes along, and so does a loader that the application deletes.
    loaders[0].run(
        "SELECT loader_history.purge_execution_history('0 s', 50);
         DELETE FROM loader.execution_history WHERE loader_id = 5; DELETE FROM loader.loader WHERE id = 5",
    );
    same(&mut loaders, &mut collected);

    // Nobody is to record in a collecting database. If somebody does, nothing gets stuck.
    collected[0]
        .batch_execute(
            "SELECT loader.record_execution_end(loader.record_execution_start(3), 'SUCCESS')",
        )
        .unwrap();
    let stray: Vec<i64> = column(
        &mut collected[0],
        "DELETE FROM loader.execution_history WHERE id >= 9000000000000000000 RETURNING id",
    );
    assert_eq!(stray.len(), 1);
    for loader in &mut loaders {
        loader
            .run("SELECT loader.record_execution_end(loader.record_execution_start(3), 'SUCCESS')");
    }
    same(&mut loaders, &mut collected);

    // Nor are there events but those of the stray load.
    let events: Vec<_> =
        listener.notifications().timeout_iter(Duration::from_millis(50)).collect().unwrap();
    let stray = |event: &postgres::Notification| event.payload().contains("9000000000000000000");
    assert!(events.len() == 2 && events.iter().all(stray), "{events:?}");

    // All well, and after a crash as well.
    let status = "SELECT watched_running, foreign_key FROM loader.recorder_status()";
    for client in &mut collected {
        assert_eq!(rows(client, status), [[Some("0".to_owned()), Some("t".to_owned())]]);
    }
    recipe.assert_overview(&mut collected);
    assert_eq!(complaints(&collector), [] as [&str; 0]);
    drop((listener, collected));
    let mut collector = collector;
    collector.crash_server();
    for loader in &mut loaders {
        loader
            .run("SELECT loader.record_execution_end(loader.record_execution_start(8), 'SUCCESS')");
    }
    collector.start_server();
    let mut collected = SOURCES.map(|name| collector.connect_to(name, "postgres"));
    same(&mut loaders, &mut collected);
    // A source can be collected again.
    let recipe = Recipe { sources: [("north", &north), ("south", &south)], collector: &collector };
    recipe.run(&["sql again"]);
    same(&mut loaders, &mut collected);
    drop(collected);
    SOURCES.iter().for_each(|name| unsubscribe(&collector, name));
}

#[test]
fn a_database_of_the_same_server_is_collected_too_and_keeps_what_is_purged() {
    let cluster = preloaded_cluster_with("wal_level = logical\n");
    let mut source = Session::new(&cluster, "postgres");
    source.run(HISTORY);
    // To make a slot here would wait for the transaction that waits for it: the page says so.
    source.run(
        "CREATE PUBLICATION loader_history FOR TABLE loader.execution_history
             WITH (publish = 'insert, update')",
    );
    source.run("SELECT pg_create_logical_replication_slot('kept', 'pgoutput')");
    cluster.connect().batch_execute("CREATE DATABASE kept").unwrap();
    let mut kept = cluster.connect_to("kept", "postgres");
    // There is no loader.loader here, and so no foreign key.
    kept.batch_execute("CREATE EXTENSION loader_history").unwrap();
    wait_for("the worker", || {
        let query = "SELECT worker_pid FROM loader.recorder_status()";
        column::<Option<i32>>(&mut kept, query)[0].is_some()
    });
    kept.batch_execute(&format!(
        "CREATE SUBSCRIPTION kept CONNECTION 'host={} user=postgres dbname=postgres'
             PUBLICATION loader_history WITH (create_slot = false)",
        cluster.directory().display()
    ))
    .unwrap();
    let all: Vec<Option<String>> = column(&mut source.client, DIGEST);
    wait_for_equal("what was there", &all, || column(&mut kept, DIGEST));
    assert_same_reads(&mut source.client, &mut kept);

    // A purge stays where it is, on either side.
    let purged: Vec<i64> =
        column(&mut source.client, "SELECT loader_history.purge_execution_history('0 s', 50)");
    assert_eq!(purged, [50]);
    let failed = source.client.query_one("SELECT loader.record_execution_start(2)", &[]).unwrap();
    let failed: i64 = failed.get(0);
    source.run(&format!("SELECT loader.record_execution_end({failed}, 'FAILED', 0, 'late')"));
    wait_for_equal("the end", &Some("FAILED".to_owned()), || status_of(&mut kept, failed));
    assert_eq!(column::<i64>(&mut kept, "SELECT count(*) FROM loader.execution_history"), [303]);
    let running: i64 =
        column(&mut source.client, "SELECT min(id) FROM loader.execution_details WHERE is_running")
            [0];
    kept.batch_execute(&format!("DELETE FROM loader.execution_history WHERE id = {running}"))
        .unwrap();
    assert_eq!(
        column::<i64>(&mut kept, "SELECT loader_history.purge_execution_history('0 s', 100)"),
        [100]
    );
    // The end of an execution that is not there any more is no obstacle to what follows.
    source.run(&format!("SELECT loader.record_execution_end({running}, 'SUCCESS')"));
    let last = source.start();
    wait_for_equal("the start", &Some("RUNNING".to_owned()), || status_of(&mut kept, last));
    assert_eq!(status_of(&mut kept, running), None);
    assert_eq!(complaints(&cluster), [] as [&str; 0]);

    kept.batch_execute("ALTER SUBSCRIPTION kept DISABLE; ALTER SUBSCRIPTION kept SET (slot_name = NONE); DROP SUBSCRIPTION kept").unwrap();
}

#[test]
fn a_dump_of_a_source_forgets_what_was_published() {
    let cluster = source();
    let mut client = cluster.connect_to("app", "postgres");
    client.batch_execute("CREATE PUBLICATION loader_history FOR TABLE loader.execution_history, loader.loader (id, loader_code)").unwrap();
    let dump = cluster.directory().join("app.sql");
    run(cluster.program("pg_dump").arg("app").arg("-f").arg(&dump));
    client.batch_execute("CREATE DATABASE restored").unwrap();
    run(cluster
        .program("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "restored", "-f"])
        .arg(&dump));
    let mut restored = cluster.connect_to("restored", "postgres");
    let published =
        "SELECT format('%s.%s', schemaname, tablename) FROM pg_publication_tables ORDER BY 1";
    assert_eq!(
        column::<String>(&mut client, published),
        ["loader.execution_history", "loader.loader"]
    );
    if !version::dumps_publications_of_extension_tables() {
        // The page says what to run.
        assert_eq!(column::<String>(&mut restored, published), ["loader.loader"]);
        restored
            .batch_execute("ALTER PUBLICATION loader_history ADD TABLE loader.execution_history")
            .unwrap();
    }
    assert_eq!(
        column::<String>(&mut restored, published),
        ["loader.execution_history", "loader.loader"]
    );
}

#[test]
fn what_the_page_measures_can_be_measured_again() {
    let cluster = preloaded_cluster_with("");
    cluster.connect().batch_execute("CREATE DATABASE measured").unwrap();
    let measuring: Vec<Example> = examples(MEASURES, &KINDS)
        .into_iter()
        .filter(|example| example.info.ends_with(" measure"))
        .map(|mut example| {
            for (large, small) in [("executions 1000000", "executions 500"), ("-T 60", "-t 5")] {
                example.body = example.body.replace(large, small);
            }
            example
        })
        .collect();
    assert_eq!(measuring.len(), 4);
    for example in &measuring {
        let (succeeded, printed) = example.run(&cluster, "measured");
        assert!(succeeded && !printed.contains("ERROR"), "{}\n{printed}", example.body);
    }
    let recorded = "SELECT count(*) FROM loader.execution_history";
    let mut client = cluster.connect_to("measured", "postgres");
    assert_eq!(column::<i64>(&mut client, recorded), [500 + 8 * 5 + 832]);
}
