//! Promise: a dump and a restore, of whatever kind, give back every row, the key, the next id and the
//! grants.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fallible_iterator::FallibleIterator;
use pg_test::{APPLICATION_SQL, Client, Cluster, TIMEOUT, run};

/// Executions of every status, grants, and more rows than one page.
const HISTORY_SQL: &str = "
    INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, record_count, error_message)
        SELECT n % 10 + 1, now() - make_interval(mins => n), now() - make_interval(mins => n), 'SUCCESS', n,
               repeat(E'\\\\ \\t \\n \"€😀', n % 50)
          FROM generate_series(1, 2000) AS n;
    SELECT loader.record_execution_start(3);
    SELECT loader.grant_recorder('recorder');
    SELECT loader.grant_reader('reader');
    GRANT SELECT ON loader.execution_history TO auditor;
";

fn application(cluster: &Cluster) -> Client {
    let mut client = cluster.connect();
    client
        .batch_execute(
            "CREATE ROLE recorder LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE auditor LOGIN",
        )
        .unwrap();
    client.batch_execute(APPLICATION_SQL).unwrap();
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    client.batch_execute(HISTORY_SQL).unwrap();
    client
}

/// Everything that must survive, in words that can be compared.
fn state(client: &mut Client) -> Vec<String> {
    [
        "SELECT md5(string_agg(h::text, '|' ORDER BY id)) || count(*) FROM loader.execution_history AS h",
        "SELECT string_agg(s::text, '|' ORDER BY loader_id) FROM loader.loader_summary AS s",
        "SELECT string_agg(pg_get_constraintdef(oid) || convalidated || obj_description(oid, 'pg_constraint'), '|')
           FROM pg_constraint WHERE contype = 'f' AND conrelid = 'loader.execution_history'::regclass",
        "SELECT string_agg(d.objid || coalesce(p.proacl, c.relacl,
                                  CASE WHEN p.oid IS NOT NULL THEN acldefault('f', 10)
                                                WHEN c.relkind = 'S' THEN acldefault('s', 10)
                                                ELSE acldefault('r', 10) END)::text, '|' ORDER BY coalesce(p.proname, c.relname))
           FROM (SELECT classid, objid AS oid, '' AS objid FROM pg_depend
                  WHERE refobjid = (SELECT oid FROM pg_extension WHERE extname = 'loader_history') AND deptype = 'e') AS d
           LEFT JOIN pg_proc AS p ON p.oid = d.oid AND d.classid = 'pg_proc'::regclass
           LEFT JOIN pg_class AS c ON c.oid = d.oid AND d.classid = 'pg_class'::regclass",
        "SELECT nspacl::text FROM pg_namespace WHERE nspname = 'loader'",
        "SELECT string_agg(format('%s %s', evtname, evtenabled), ', ' ORDER BY evtname) FROM pg_event_trigger",
        "SELECT extversion FROM pg_extension WHERE extname = 'loader_history'",
        "SELECT (foreign_key, detail)::text FROM loader.recorder_status()",
        // Last, since it moves the sequence on.
        "SELECT loader.record_execution_start(4)::text",
    ]
    .iter()
    .map(|query| client.query_one(*query, &[]).unwrap().get::<_, Option<String>>(0).unwrap_or_default())
    .collect()
}

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
    let known: i64 =
        restored.query_one("SELECT count(*) FROM loader.recorded_loader", &[]).unwrap().get(0);
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
fn pg_upgrade() {
    let mut old = Cluster::start();
    let mut client = application(&old);
    let before = state(&mut client);
    drop(client);
    old.stop_server();

    // To the same major: what pg_upgrade does to the extension's objects is the same.
    let mut new = Cluster::start();
    new.stop_server();
    let bindir = pg_test::bindir();
    run(new
        .server_program("pg_upgrade")
        .args(["-U", "postgres", "--socketdir"])
        .arg(new.directory())
        .arg("-b")
        .arg(&bindir)
        .arg("-B")
        .arg(&bindir)
        .arg("-d")
        .arg(old.data())
        .arg("-D")
        .arg(new.data()));
    new.start_server();
    let after = state(&mut new.connect());
    // `state` itself recorded a start in the old cluster.
    let mut client = new.connect();
    assert_eq!(before[2..before.len() - 1], after[2..after.len() - 1]);
    let ids: i64 =
        client.query_one("SELECT count(*) FROM loader.execution_history", &[]).unwrap().get(0);
    assert_eq!(ids, 2003);
    let next: i64 = after.last().unwrap().parse().unwrap();
    assert_eq!(next, before.last().unwrap().parse::<i64>().unwrap() + 1);
    assert!(fs::metadata(new.data()).is_ok());
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
