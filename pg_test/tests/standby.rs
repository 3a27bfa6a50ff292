//! Promise: a standby serves every read, and says of every write what to do instead.

use pg_test::{HasError, cluster_with_extension, wait_for};
use serde_json::Value;

#[test]
fn a_standby_reads_and_points_writers_to_the_primary() {
    let primary = cluster_with_extension();
    let mut client = primary.connect();
    client.batch_execute("SELECT loader.record_execution_end(loader.record_execution_start(4), 'FAILED', 7, 'x')").unwrap();
    let standby = primary.start_standby();
    let mut reader = standby.connect();
    client.batch_execute("SELECT loader.record_execution_start(5)").unwrap();
    wait_for("the standby to have both executions", || {
        reader.query_one("SELECT count(*) = 2 FROM loader.execution_details", &[]).unwrap().get(0)
    });

    for (call, hint) in [
        ("record_execution_start(4)", "primary"),
        ("record_execution_end(2, 'SUCCESS')", "primary"),
        ("purge_execution_history('1 day')", "primary"),
        ("attach_foreign_key()", "primary"),
        ("grant_reader('postgres')", "primary"),
    ] {
        let error = reader.query(&format!("SELECT loader.{call}"), &[]).error("25006");
        assert!(error.hint().unwrap().contains(hint), "{call}: {error:?}");
    }

    let page: Value =
        reader.query_one("SELECT loader.get_execution_history()", &[]).unwrap().get(0);
    assert_eq!(page["executions"].as_array().unwrap().len(), 2);
    for (view, rows) in [
        ("activity_feed", 3),
        ("execution_details", 2),
        ("loader_summary", 2),
        ("failed_loader_counts", 1),
    ] {
        let found = reader.query(&format!("SELECT * FROM loader.{view}"), &[]).unwrap();
        assert_eq!(found.len(), rows, "{view}");
    }
    let status = reader
        .query_one("SELECT foreign_key, unbound_running FROM loader.recorder_status()", &[])
        .unwrap();
    assert_eq!((status.get::<_, bool>(0), status.get::<_, i64>(1)), (true, 1));
}
