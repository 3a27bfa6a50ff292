//! Promise: a dump and a restore, of whatever kind, give back every row, the key, the next id and the
//! grants.

use std::path::PathBuf;
use std::process::Command;

use fallible_iterator::FallibleIterator;
use pg_test::{Client, Cluster, TIMEOUT, application, column, preloaded_cluster, run, state};

fn dump(cluster: &Cluster, arguments: &[&str]) -> PathBuf {
    let file = cluster.directory().join("dump");
    run(cluster.program("pg_dump").args(arguments).arg("-f").arg(&file));
    file
}

fn database(cluster: &Cluster, name: &str) {
    cluster.connect().batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).unwrap();
}

/// Restores with psql, any error of which is one.
fn psql(cluster: &Cluster, database: &str) -> Command {
    let mut command = cluster.program("psql");
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database]);
    command
}

#[test]
fn pg_dump_into_psql() {
    let cluster = Cluster::start();
    let mut client = application(&cluster);
    let file = dump(&cluster, &[]);
    database(&cluster, "restored");
    run(psql(&cluster, "restored").arg("-f").arg(&file));
    database(&cluster, "at_once");
    run(psql(&cluster, "at_once").arg("--single-transaction").arg("-f").arg(&file));
    let before = state(&mut client);
    assert!(
        before[2].contains("FOREIGN KEY (loader_id) REFERENCES loader.loader(id)true"),
        "{before:?}"
    );
    assert_eq!(before, state(&mut cluster.connect_to("restored", "postgres")));
    assert_eq!(before, state(&mut cluster.connect_to("at_once", "postgres")));
}

#[test]
fn a_second_generation_is_like_the_first() {
    let cluster = Cluster::start();
    let mut client = application(&cluster);
    let mut last = "postgres".to_owned();
    for generation in 0..3 {
        let file = dump(&cluster, &["-d", &last]);
        last = format!("generation{generation}");
        database(&cluster, &last);
        run(psql(&cluster, &last).arg("-f").arg(&file));
    }
    let mut restored = cluster.connect_to(&last, "postgres");
    let known: i64 = restored
        .query_one("SELECT count(*) FROM loader_history.recorded_loader", &[])
        .unwrap()
        .get(0);
    assert!(known <= 20, "what is remembered of a loader does not pile up: {known}");
    assert_eq!(state(&mut client), state(&mut restored));
}

#[test]
fn custom_format_serial_and_parallel() {
    let cluster = Cluster::start();
    let mut client = application(&cluster);
    let file = dump(&cluster, &["-Fc"]);
    let before = state(&mut client);
    for (name, jobs) in [("serial", "1"), ("parallel", "4")] {
        database(&cluster, name);
        run(cluster
            .program("pg_restore")
            .args(["--exit-on-error", "-j", jobs, "-d", name])
            .arg(&file));
        assert_eq!(before, state(&mut cluster.connect_to(name, "postgres")));
    }
}

#[test]
fn a_parallel_restore_attaches_the_key_whichever_job_is_last() {
    let cluster = Cluster::start();
    let mut client = application(&cluster);
    // Now the primary key is quick and the history slow, and the other way round.
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
                 SELECT n % 10 + 1, now(), now(), 'FAILED' FROM generate_series(1, 60000) AS n",
        )
        .unwrap();
    let slow_history = dump(&cluster, &["-Fc"]);
    for round in 0..3 {
        let name = format!("slow_history{round}");
        database(&cluster, &name);
        run(cluster
            .program("pg_restore")
            .args(["--exit-on-error", "-j", "4", "-d", &name])
            .arg(&slow_history));
        let mut restored = cluster.connect_to(&name, "postgres");
        let row = restored
            .query_one("SELECT foreign_key, detail FROM loader.recorder_status()", &[])
            .unwrap();
        assert!(row.get::<_, bool>(0), "{:?}", row.get::<_, Option<String>>(1));
    }
    client
        .batch_execute(
            "DELETE FROM loader.execution_history WHERE status = 'FAILED';
             INSERT INTO loader.loader SELECT n, 'many' FROM generate_series(1000, 400000) AS n",
        )
        .unwrap();
    let slow_loaders = dump(&cluster, &["-Fc"]);
    for round in 0..3 {
        let name = format!("slow_loaders{round}");
        database(&cluster, &name);
        run(cluster
            .program("pg_restore")
            .args(["--exit-on-error", "-j", "4", "-d", &name])
            .arg(&slow_loaders));
        let mut restored = cluster.connect_to(&name, "postgres");
        let row = restored
            .query_one("SELECT foreign_key, detail FROM loader.recorder_status()", &[])
            .unwrap();
        assert!(row.get::<_, bool>(0), "{:?}", row.get::<_, Option<String>>(1));
    }
}

#[test]
fn a_data_only_restore_with_triggers_disabled() {
    let cluster = Cluster::start();
    let mut client = application(&cluster);
    let file = dump(&cluster, &["--data-only", "--disable-triggers"]);
    let before = state(&mut client);
    database(&cluster, "restored");
    let mut restored = cluster.connect_to("restored", "postgres");
    restored
        .batch_execute(
            "CREATE SCHEMA loader; CREATE TABLE loader.loader (id bigint PRIMARY KEY, loader_code varchar(64) NOT NULL);
             CREATE EXTENSION loader_history;",
        )
        .unwrap();
    run(psql(&cluster, "restored").arg("-f").arg(&file));
    let after = state(&mut restored);
    // The rows and the summary; grants are not data.
    assert_eq!(before[..2], after[..2]);
    assert_eq!(before.last(), after.last());
}

#[test]
fn loaders_that_start_after_a_data_only_restore_are_in_the_summary() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    // As a data-only restore with --disable-triggers ends: no trigger fires for what replication brings, which
    // the worker says that it does.
    client
        .batch_execute(
            "ALTER TABLE loader.execution_history DISABLE TRIGGER ALL;
             ALTER TABLE loader.execution_history ENABLE TRIGGER ALL;",
        )
        .unwrap();
    let start = |loader: &mut Client, id: i64| -> i64 {
        loader.query_one("SELECT loader.record_execution_start($1)", &[&id]).unwrap().get(0)
    };
    start(&mut cluster.connect(), 1);
    // One that comes with the WARNING.
    client.batch_execute("BEGIN; LOCK loader_history.watched_transaction IN SHARE MODE").unwrap();
    start(&mut cluster.connect(), 2);
    client.batch_execute("COMMIT").unwrap();
    let known = "SELECT loader_id FROM loader.loader_summary ORDER BY loader_id";
    assert_eq!(column::<i64>(&mut client, known), [1, 2]);
}

#[test]
fn a_million_ended_rows_are_restored_without_a_notify() {
    let cluster = Cluster::start();
    let mut client = application(&cluster);
    client
        .batch_execute(
            "DELETE FROM loader.execution_history;
             INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
                 SELECT n % 10 + 1, now() - make_interval(secs => n), now(), 'SUCCESS' FROM generate_series(1, 1000000) AS n;
             SELECT loader.record_execution_start(1);",
        )
        .unwrap();
    let file = dump(&cluster, &["-Fc"]);
    database(&cluster, "restored");
    let mut listener = cluster.connect_to("restored", "postgres");
    listener.batch_execute("LISTEN loader_execution").unwrap();
    run(cluster.program("pg_restore").args(["--exit-on-error", "-d", "restored"]).arg(&file));
    let mut restored = cluster.connect_to("restored", "postgres");
    restored.batch_execute("NOTIFY loader_execution, 'sentinel'").unwrap();
    let mut notifications = listener.notifications();
    let mut arriving = notifications.timeout_iter(TIMEOUT);
    let first = arriving.next().unwrap().unwrap().payload().to_owned();
    assert!(first.contains("EXECUTION_STARTED"), "the one that runs: {first}");
    assert_eq!(arriving.next().unwrap().unwrap().payload(), "sentinel");
    let rows: i64 =
        restored.query_one("SELECT count(*) FROM loader.execution_history", &[]).unwrap().get(0);
    assert_eq!(rows, 1_000_001);
}

#[test]
fn history_with_orphans_comes_back_with_them() {
    let cluster = Cluster::start();
    let mut client = application(&cluster);
    client
        .batch_execute(
            "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;
             DELETE FROM loader.loader WHERE id = 5;",
        )
        .unwrap();
    let file = dump(&cluster, &[]);
    database(&cluster, "restored");
    let messages = psql(&cluster, "restored").arg("-f").arg(&file).output().unwrap();
    assert!(messages.status.success());
    assert!(String::from_utf8_lossy(&messages.stderr).contains("WARNING:  foreign key"));
    let mut restored = cluster.connect_to("restored", "postgres");
    let row = restored
        .query_one(
            "SELECT (SELECT count(*) FROM loader.execution_history), foreign_key, detail FROM loader.recorder_status()",
            &[],
        )
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 2001);
    assert!(!row.get::<_, bool>(1));
    assert!(row.get::<_, String>(2).contains("NOT VALID"));
}

#[test]
fn the_application_keeps_its_rights_to_a_schema_that_was_its_own() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client.batch_execute("CREATE ROLE application LOGIN; CREATE ROLE backend").unwrap();
    client.batch_execute("CREATE SCHEMA loader AUTHORIZATION application").unwrap();
    let mut application = cluster.connect_to("postgres", "application");
    application.batch_execute("CREATE TABLE loader.loader (id bigint PRIMARY KEY)").unwrap();
    application.batch_execute("GRANT USAGE ON SCHEMA loader TO backend").unwrap();
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    let file = dump(&cluster, &[]);
    database(&cluster, "restored");
    run(psql(&cluster, "restored").arg("-f").arg(&file));
    let rights =
        "SELECT nspowner::regrole || nspacl::text FROM pg_namespace WHERE nspname = 'loader'";
    let mut restored = cluster.connect_to("restored", "postgres");
    let before: String = client.query_one(rights, &[]).unwrap().get(0);
    assert_eq!(before, restored.query_one(rights, &[]).unwrap().get::<_, String>(0));
    cluster
        .connect_to("restored", "application")
        .batch_execute("CREATE TABLE loader.more (id bigint REFERENCES loader.loader)")
        .unwrap();
}
