//! A start is never lost: preloaded, it is committed when record_execution_start returns.

use std::time::Instant;

use pg_test::{column, preloaded_cluster, wait_for};

#[test]
fn others_see_a_start_at_once_and_a_rollback_makes_it_a_failure() {
    let cluster = preloaded_cluster();
    let mut loader = cluster.connect();
    let mut other = cluster.connect();
    let mut load = loader.transaction().unwrap();
    let id: i64 = load.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0);
    let seen: Vec<String> = column(&mut other, "SELECT id || status FROM loader.execution_history");
    assert_eq!(seen, [format!("{id}RUNNING")]);
    assert!(load.batch_execute("SELECT 1/0").is_err());
    drop(load);
    let aborted = Instant::now();
    wait_for("the failure", || {
        let rows: Vec<String> = column(
            &mut other,
            "SELECT error_message FROM loader.execution_history WHERE status = 'FAILED'",
        );
        rows == ["22012: division by zero"]
    });
    assert!(aborted.elapsed().as_secs_f64() < 10.0);
}

#[test]
fn errors_of_commands_stay_errors() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    for command in [
        "SET nonsense = 1",
        "SET loader_history.nonsense = 1",
        "DROP TABLE nonsense",
        "DROP DATABASE nonsense",
        "ALTER DATABASE nonsense RENAME TO other",
        "CREATE DATABASE other TEMPLATE nonsense",
        "CREATE EXTENSION loader_history",
        "DO $$ BEGIN EXECUTE 'DROP TABLE nonsense'; END $$",
    ] {
        let error = client.batch_execute(command).expect_err(command);
        assert!(error.as_db_error().is_some(), "{command}: {error}");
    }
    // The session goes on.
    client.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap();
}
