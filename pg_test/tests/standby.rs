//! Promise: a standby serves every read, as the primary does, and says of every write what to do instead.

use pg_test::{
    Client, Cluster, HISTORY, HasError, Session, assert_same_reads, catch_up,
    cluster_with_extension, column, preloaded_cluster, rows, wait_for_equal,
};
use serde_json::Value;

const ISOLATION_LEVELS: [&str; 2] = ["READ COMMITTED", "REPEATABLE READ"];

/// Who reads and who writes.
const ROLES: &str = "
    CREATE ROLE etl LOGIN;
    CREATE ROLE dashboard LOGIN;
    SELECT loader_history.grant_recorder('etl'), loader_history.grant_reader('dashboard');
";

/// Every function that writes, and who may call it.
const WRITES: [(&str, &str); 10] = [
    ("etl", "loader.record_execution_start(4)"),
    ("etl", "loader.record_execution_start(4711)"),
    ("etl", "loader.record_execution_end(302, 'SUCCESS')"),
    ("etl", "loader.record_execution_end(302, 'FAILED', 7, 'x')"),
    ("etl", "loader.record_execution_end(1, 'SUCCESS', error_message => 'it has ended')"),
    ("postgres", "loader_history.purge_execution_history('1 day')"),
    ("postgres", "loader_history.purge_execution_history('1000000 years', 0)"),
    ("postgres", "loader_history.attach_foreign_key()"),
    ("postgres", "loader_history.grant_recorder('dashboard')"),
    ("postgres", "loader_history.grant_reader('etl')"),
];

/// The ids on all pages of `arguments`, from the first to the last, seven a page.
fn walk(client: &mut Client, arguments: &str) -> Vec<i64> {
    let mut ids = Vec::new();
    let mut cursor = "NULL".to_owned();
    loop {
        let call = format!("page_size => 7, \"cursor\" => {cursor} {arguments}");
        let query = format!("SELECT loader.get_execution_history({call})");
        let page: Value = client.query_one(&query, &[]).unwrap().get(0);
        let executions = page["executions"].as_array().unwrap();
        ids.extend(executions.iter().map(|execution| execution["id"].as_i64().unwrap()));
        match page["next_cursor"].as_str() {
            None => return ids,
            Some(next) => cursor = format!("'{next}'"),
        }
    }
}

/// A standby with a `shared_preload_libraries` of its own.
fn standby_with(primary: &Cluster, libraries: &str) -> Cluster {
    let mut standby = primary.start_standby();
    standby.stop_server();
    standby.configure(&format!("shared_preload_libraries = '{libraries}'"));
    standby.start_server();
    standby
}

/// What a standby promises, whatever it or its primary preloads.
fn assert_reads_and_refuses_writes(primary: &Cluster, standby: &Cluster) {
    catch_up(&mut primary.connect(), &mut standby.connect());
    let mut there = primary.connect_to("postgres", "dashboard");
    let mut here = standby.connect_to("postgres", "dashboard");
    for level in ISOLATION_LEVELS {
        let begin = format!("BEGIN ISOLATION LEVEL {level}");
        for client in [&mut there, &mut here] {
            client.batch_execute(&begin).unwrap();
        }
        assert_same_reads(&mut there, &mut here);
        let status =
            "SELECT watched_running, unwatched_running, foreign_key FROM loader.recorder_status()";
        assert_eq!(rows(&mut here, status), rows(&mut there, status), "{level}");
        for (arguments, condition) in [
            ("", "true"),
            (", loader_id => 7", "loader_id = 7"),
            (", status => 'FAILED'", "status = 'FAILED'"),
            (", loader_id => 5, status => 'FAILED'", "loader_id = 5 AND status = 'FAILED'"),
            (", status => 'RUNNING'", "status = 'RUNNING'"),
        ] {
            let query = format!(
                "SELECT id FROM loader.execution_details WHERE {condition}
                  ORDER BY execution_start DESC, id DESC"
            );
            let ids = walk(&mut here, arguments);
            assert_eq!(ids, column::<i64>(&mut there, &query), "{level}{arguments}");
            assert!(ids.len() > 7, "{arguments} is one page");
        }
        for client in [&mut there, &mut here] {
            client.batch_execute("COMMIT").unwrap();
        }
        for (role, call) in WRITES {
            let mut writer = standby.connect_to("postgres", role);
            for begin in [begin.clone(), format!("{begin} READ ONLY")] {
                writer.batch_execute(&begin).unwrap();
                let error = writer.query(&format!("SELECT {call}"), &[]).error("25006");
                assert_eq!(error.hint(), Some("Connect to the primary server."), "{call}");
                writer.batch_execute("ROLLBACK").unwrap();
            }
        }
    }
    // PostgreSQL's own limits.
    here.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT").error("0A000");
    here.batch_execute("ROLLBACK").unwrap();
    here.batch_execute("LISTEN loader_execution").error("25006");
    for sql in [
        "SELECT loader.get_execution_history(page_size => 0)",
        "SELECT loader.get_execution_history(\"cursor\" => 'x')",
        "SELECT loader.get_execution_history(status => 'DONE')",
    ] {
        assert!(here.query(sql, &[]).error("22023").hint().is_some(), "{sql}");
    }
}

#[test]
fn a_standby_reads_and_points_writers_to_the_primary() {
    let primary = cluster_with_extension();
    primary.connect().batch_execute(&format!("{ROLES} {HISTORY}")).unwrap();
    let standby = primary.start_standby();
    assert_reads_and_refuses_writes(&primary, &standby);
    let preloaded = standby_with(&primary, "loader_history");
    assert_reads_and_refuses_writes(&primary, &preloaded);
}

#[test]
fn so_do_those_of_a_primary_that_preloads_the_library() {
    let primary = preloaded_cluster();
    primary.connect().batch_execute(&format!("{ROLES} {HISTORY}")).unwrap();
    // RUNNING on the standby too, though the transaction is open, and watched.
    let mut loader = Session::new(&primary, "postgres");
    loader.run("BEGIN");
    let open = loader.start();
    // The worker is done with the others.
    let mut there = primary.connect();
    wait_for_equal("one watched transaction", &vec![1], || {
        column::<i64>(&mut there, "SELECT watched_running FROM loader.recorder_status()")
    });
    for libraries in ["loader_history", ""] {
        let standby = standby_with(&primary, libraries);
        assert_reads_and_refuses_writes(&primary, &standby);
        let mut reader = standby.connect_to("postgres", "dashboard");
        assert_eq!(
            column::<String>(
                &mut reader,
                &format!("SELECT status::text FROM loader.execution_details WHERE id = {open}")
            ),
            ["RUNNING"]
        );
        let row = reader
            .query_one(
                "SELECT preloaded, worker_pid, watched_running, detail FROM loader.recorder_status()",
                &[],
            )
            .unwrap();
        assert_eq!(row.get::<_, bool>(0), !libraries.is_empty());
        assert_eq!(row.get::<_, Option<i32>>(1), None);
        assert_eq!(row.get::<_, i64>(2), 1);
        let detail: Option<String> = row.get(3);
        assert_eq!(detail.is_some_and(|text| text.contains("standby")), !libraries.is_empty());
    }
    assert!(loader.warnings().is_empty(), "the start is autonomous");
}

#[test]
fn a_standby_that_reads_in_one_transaction_sees_one_history() {
    let primary = cluster_with_extension();
    let mut loader = primary.connect();
    let standby = primary.start_standby();
    let mut reader = standby.connect();
    let count = "SELECT count(*) FROM loader.activity_feed";
    catch_up(&mut loader, &mut reader);
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
    assert_eq!(column::<i64>(&mut reader, count), [0]);
    loader
        .batch_execute(
            "SELECT loader.record_execution_end(loader.record_execution_start(1), 'SUCCESS')",
        )
        .unwrap();
    catch_up(&mut loader, &mut reader);
    assert_eq!(column::<i64>(&mut reader, count), [0]);
    let page = "SELECT jsonb_array_length(loader.get_execution_history() -> 'executions')";
    assert_eq!(column::<i32>(&mut reader, page), [0]);
    reader.batch_execute("COMMIT").unwrap();
    assert_eq!(column::<i64>(&mut reader, count), [2]);
    assert_eq!(column::<i32>(&mut reader, page), [1]);
}
