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
    assert!(aborted.elapsed().as_secs_f64() < 1.0);
}
