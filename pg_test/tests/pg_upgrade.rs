//! Promise: `pg_upgrade` keeps every row, the key, the next id and the grants, and what is known of transactions
//! is true in the new cluster: what they had started is there what became of them.
//!
//! It goes to the server of `PG_TEST_NEW_BINDIR`, or where that is not set to the same major: what it does to
//! the extension's objects is the same.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use pg_test::{
    APPLICATION_SQL, Cluster, PRELOADED, Session, application, assert_autonomous, column,
    current_version, freeze_worker, install_extension, new_bindir, preloaded_cluster,
    released_versions, run, state, status_of, wait_for, wait_for_equal, wait_for_served,
};

/// The option that PostgreSQL gives columns from its minor releases of November 2026 on. A server that is older
/// than these refuses every table of one that is not, loader_history's and anybody's: users upgrade to a server of
/// the newest minor release. The newest that tests can have of some majors is older.
const COLUMN_OPTION: &str = "attoptions::text LIKE '{pg_attver=%}'";

/// Upgrades a cluster with `databases`, whose server is stopped, to a new one with `settings`, and starts that.
fn upgrade(old: &Cluster, databases: &[&str], settings: &str) -> Cluster {
    let mut new = Cluster::start_in(new_bindir(), settings);
    let mut client = new.connect();
    let marked = format!("SELECT EXISTS (SELECT FROM pg_attribute WHERE {COLUMN_OPTION})");
    if column::<bool>(&mut client, &marked) == [false] {
        // A new server that is older than that cannot read any table of an old one that is not.
        for database in databases {
            run_alone(
                old,
                database,
                &format!("UPDATE pg_attribute SET attoptions = NULL WHERE {COLUMN_OPTION}"),
            );
        }
    }
    drop(client);
    new.stop_server();
    if has_checksums(&new) && !has_checksums(old) {
        // A cluster that PostgreSQL 18 makes has them. They must be as in the old one.
        run(new.server_program("pg_checksums").arg("--disable").arg("-D").arg(new.data()));
    }
    let mut upgrade = new.server_program("pg_upgrade");
    upgrade.args(["-U", "postgres", "--socketdir"]).arg(new.directory());
    upgrade.arg("-b").arg(old.bindir()).arg("-B").arg(new.bindir());
    upgrade.arg("-d").arg(old.data()).arg("-D").arg(new.data());
    // What goes wrong is told in files, which are gone with the cluster.
    let output = upgrade.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", logs(&new.data().join("pg_upgrade_output.d")));
    new.start_server();
    new
}

/// Whether the data pages of a cluster whose server is stopped carry checksums.
fn has_checksums(cluster: &Cluster) -> bool {
    let control = run(cluster.server_program("pg_controldata").arg("-D").arg(cluster.data()));
    let (_, version) = control.split_once("Data page checksum version:").unwrap();
    version.split_whitespace().next() != Some("0")
}

/// Runs a statement in a cluster whose server is stopped: without a worker.
fn run_alone(cluster: &Cluster, database: &str, statement: &str) {
    let mut postgres = cluster.server_program("postgres");
    postgres.args(["--single", "-j", "-D"]).arg(cluster.data()).arg(database);
    let postgres = postgres.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = postgres.spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{statement};\n\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !told.contains("ERROR"), "{told}");
}

/// The ends of the files in a folder and those below.
fn logs(folder: &Path) -> String {
    let mut found = String::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            found += &logs(&entry.path());
        } else {
            let text = fs::read(entry.path()).unwrap();
            let lines: Vec<_> = text.split(|&byte| byte == b'\n').collect();
            let end = lines[lines.len().saturating_sub(60)..].join(&b'\n');
            found += &format!("{}:\n{}\n", entry.path().display(), String::from_utf8_lossy(&end));
        }
    }
    found
}

/// What a server has complained of.
fn complaints(cluster: &Cluster) -> Vec<String> {
    let log = cluster.log();
    let words = ["ERROR", "WARNING", "PANIC", "terminated by signal", "loader_history worker"];
    let complaints = log.lines().filter(|line| words.iter().any(|word| line.contains(word)));
    complaints.map(str::to_owned).collect()
}

#[test]
fn rows_key_ids_and_grants_are_kept() {
    let mut old = Cluster::start();
    let mut client = application(&old);
    let rows = "SELECT md5(string_agg(h::text, '|' ORDER BY id)) FROM loader.execution_history AS h
                 WHERE id <= 2001";
    let rows_before: Vec<String> = column(&mut client, rows);
    let before = state(&mut client);
    drop(client);
    old.stop_server();
    let new = upgrade(&old, &["postgres"], "");
    let mut client = new.connect();
    assert_eq!(column::<String>(&mut client, rows), rows_before);
    let after = state(&mut client);
    // Each of the two has recorded a start.
    assert_eq!(before[2..before.len() - 1], after[2..after.len() - 1]);
    assert_eq!(column::<i64>(&mut client, "SELECT count(*) FROM loader.execution_history"), [2003]);
    let next: i64 = after.last().unwrap().parse().unwrap();
    assert_eq!(next, before.last().unwrap().parse::<i64>().unwrap() + 1);
}

#[test]
fn what_ended_with_the_old_server_is_failed_in_the_new() {
    let mut old = preloaded_cluster();
    let mut loader = Session::new(&old, "postgres");
    loader.run("BEGIN");
    let committed = loader.start();
    loader.run("COMMIT; BEGIN");
    let failed = loader.start();
    loader.run("ROLLBACK");
    let mut client = old.connect();
    wait_for("the failure", || status_of(&mut client, failed).as_deref() == Some("FAILED"));
    loader.run("BEGIN");
    let open = loader.start();
    assert_eq!(
        column::<i64>(&mut client, "SELECT count(*) FROM loader_history.server_outcome"),
        [1]
    );
    client.batch_execute("CREATE DATABASE second").unwrap();
    install_extension(&old, "second");
    wait_for_served(&mut client, &["postgres", "second"]);
    // The load is still open when the server stops.
    old.stop_server();
    drop((loader, client));

    let new = upgrade(&old, &["postgres", "second"], PRELOADED);
    let mut client = new.connect();
    wait_for_served(&mut client, &["postgres", "second"]);
    wait_for("what was open to be FAILED", || {
        status_of(&mut client, open).as_deref() == Some("FAILED")
    });
    assert_eq!(status_of(&mut client, committed).as_deref(), Some("RUNNING"));
    assert_eq!(
        column::<i64>(&mut client, "SELECT count(*) FROM loader_history.watched_transaction"),
        [0]
    );
    // The loader's word still outranks what the old server found.
    client
        .batch_execute(&format!("SELECT loader.record_execution_end({failed}, 'SUCCESS', 5)"))
        .unwrap();
    assert_eq!(status_of(&mut client, failed).as_deref(), Some("SUCCESS"));
    client
        .batch_execute(&format!("SELECT loader.record_execution_end({open}, 'FAILED', 0, 'mine')"))
        .unwrap();
    assert_autonomous(&new, "postgres");
    assert_autonomous(&new, "second");
    assert_eq!(complaints(&new), [] as [&str; 0]);
    let detail: Vec<Option<String>> = column(
        &mut client,
        "SELECT concat_ws(' ', detail, last_error) FROM loader.recorder_status()",
    );
    assert_eq!(detail, [Some(String::new())]);
}

#[test]
fn transactions_that_no_worker_has_looked_at_are_judged_in_the_new_cluster() {
    let mut old = preloaded_cluster();
    let mut client = old.connect();
    client.batch_execute("CREATE TABLE loaded (execution_id bigint)").unwrap();
    let mut loaders: Vec<_> = (0..5).map(|_| Session::new(&old, "postgres")).collect();
    let mut ids = Vec::new();
    for (place, loader) in loaders.iter_mut().enumerate() {
        loader.run(if place == 3 { "BEGIN; SAVEPOINT start" } else { "BEGIN" });
        ids.push(loader.start());
        loader.run(&format!("INSERT INTO loaded VALUES ({})", ids[place]));
        assert_eq!(loader.warnings(), Vec::<String>::new());
    }
    // From now on nobody finds out what becomes of them.
    freeze_worker(&mut client);
    loaders[0]
        .run(&format!("SELECT loader.record_execution_end({}, 'SUCCESS', 1); COMMIT", ids[0]));
    loaders[1].run("COMMIT");
    loaders[2].run("ROLLBACK");
    loaders[3].run("ROLLBACK TO start; COMMIT");
    old.kill_server();
    drop((loaders, client));
    old.configure("shared_preload_libraries = ''");
    old.start_server();
    let bound = "SELECT format('%s %s %s', execution_id, xid, subxid) FROM loader_history.watched_transaction ORDER BY 1";
    let watched: Vec<String> = column(&mut old.connect(), bound);
    assert_eq!(watched.len(), ids.len());
    old.stop_server();

    // Not yet preloaded, the new server has what the old one knew.
    let mut new = upgrade(&old, &["postgres"], "");
    let mut client = new.connect();
    assert_eq!(column::<String>(&mut client, bound), watched);
    let outcomes =
        "SELECT pg_xact_status(xid) FROM loader_history.watched_transaction ORDER BY execution_id";
    assert_eq!(
        column::<String>(&mut client, outcomes),
        ["committed", "committed", "aborted", "committed", "aborted"]
    );
    let own: Vec<bool> = column(
        &mut client,
        "SELECT bool_and(pg_current_xact_id() > greatest(xid, subxid)) FROM loader_history.watched_transaction",
    );
    assert_eq!(own, [true], "ids of transactions go on");
    drop(client);
    new.stop_server();
    new.configure(PRELOADED);
    new.start_server();
    let mut client = new.connect();
    let died =
        "The server stopped before the transaction that started the execution had committed.";
    let savepoint = "The savepoint that the execution started in was rolled back.";
    let said =
        "SELECT concat_ws(' ', status, error_message) FROM loader.execution_history ORDER BY id";
    let expected = [
        "SUCCESS".to_owned(),
        "RUNNING".to_owned(),
        format!("FAILED {died}"),
        format!("FAILED {savepoint}"),
        format!("FAILED {died}"),
    ];
    wait_for_equal("the truth", &expected.to_vec(), || column(&mut client, said));
    let none = "SELECT count(*) FROM loader_history.watched_transaction";
    wait_for_equal("nothing is open", &vec![0], || column::<i64>(&mut client, none));
    let data = "SELECT execution_id FROM loaded ORDER BY 1";
    assert_eq!(column::<i64>(&mut client, data), ids[..2]);
    assert_autonomous(&new, "postgres");
    assert_eq!(complaints(&new), [] as [&str; 0]);
}

#[test]
fn a_database_with_the_sql_of_an_old_version_is_upgraded_and_then_updated() {
    for version in released_versions() {
        let mut old = Cluster::start_with(PRELOADED);
        let mut loader = Session::new(&old, "postgres");
        loader.run(APPLICATION_SQL);
        loader.run(&format!("CREATE EXTENSION loader_history VERSION '{version}'"));
        loader.run("CREATE ROLE recorder LOGIN; SELECT loader.grant_recorder('recorder')");
        let committed = loader.start();
        let succeeded = loader.start();
        loader.run(&format!("SELECT loader.record_execution_end({succeeded}, 'SUCCESS', 7)"));
        old.stop_server();
        drop(loader);

        let new = upgrade(&old, &["postgres"], PRELOADED);
        let mut client = new.connect();
        for updated in [false, true] {
            if updated {
                client.batch_execute("ALTER EXTENSION loader_history UPDATE").unwrap();
                wait_for_served(&mut client, &["postgres"]);
                assert_autonomous(&new, "postgres");
            }
            let expected = if updated { current_version() } else { version.clone() };
            let query = "SELECT extversion FROM pg_extension WHERE extname = 'loader_history'";
            assert_eq!(column::<String>(&mut client, query), [expected]);
            for (id, status) in [(committed, "RUNNING"), (succeeded, "SUCCESS")] {
                assert_eq!(status_of(&mut client, id).as_deref(), Some(status), "{version}");
            }
            // An id of its own, and the recorder's privileges.
            let mut recorder = new.connect_to("postgres", "recorder");
            let start = "SELECT loader.record_execution_start(1)";
            assert!(column::<i64>(&mut recorder, start)[0] > succeeded, "{version}");
            let key = "SELECT foreign_key FROM loader.recorder_status()";
            assert_eq!(column::<bool>(&mut client, key), [true], "{version}");
        }
        let report = format!("SELECT loader.record_execution_end({committed}, 'SUCCESS', 5)");
        client.batch_execute(&report).unwrap();
        assert_eq!(status_of(&mut client, committed).as_deref(), Some("SUCCESS"), "{version}");
        let mut complaints = complaints(&new);
        // Until the update.
        complaints.retain(|line| !line.contains("was recorded in this transaction"));
        assert_eq!(complaints, [] as [&str; 0], "{version}");
    }
}
