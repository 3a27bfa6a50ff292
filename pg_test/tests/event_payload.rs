//! Promise: every change of an execution's status is one event, whatever the error text holds.

use std::time::Duration;

use fallible_iterator::FallibleIterator;
use pg_test::{Client, HasError, TIMEOUT, cluster_with_extension};
use serde_json::{Value, json};

/// Everything that `listener` receives up to the notification that `sender` now sends as a sentinel:
/// what was not among it did not come.
fn events(listener: &mut Client, sender: &mut Client) -> Vec<Value> {
    sender.batch_execute("NOTIFY loader_execution, 'sentinel'").unwrap();
    let mut received = Vec::new();
    let mut notifications = listener.notifications();
    let mut arriving = notifications.timeout_iter(TIMEOUT);
    loop {
        let notification = arriving.next().unwrap().expect("the sentinel arrives");
        assert_eq!(notification.channel(), "loader_execution");
        if notification.payload() == "sentinel" {
            return received;
        }
        assert!(notification.payload().len() < 8000 && notification.payload().is_ascii());
        received.push(serde_json::from_str(notification.payload()).expect("valid JSON"));
    }
}

#[test]
fn an_event_is_the_row_of_the_feed_and_has_an_error_text_only_if_it_is_to() {
    let cluster = cluster_with_extension();
    let (mut client, mut listener) = (cluster.connect(), cluster.connect());
    listener.batch_execute("LISTEN loader_execution").unwrap();

    client
        .batch_execute(
            "SET timezone = 'Asia/Kolkata';
             SELECT loader.record_execution_start(4);
             SELECT loader.record_execution_end(1, 'SUCCESS', 1245);
             SELECT loader.record_execution_start(4);
             SELECT loader.record_execution_end(2, 'FAILED', 7, 'no \"such\" table');
             SET loader_history.notify_error_message = on;
             SELECT loader.record_execution_start(5);
             SELECT loader.record_execution_end(3, 'FAILED', 1234567, E'«no» 😀\\nLINE 1');",
        )
        .unwrap();
    let mut received = events(&mut listener, &mut client);
    let feed = client
        .query(
            "SELECT event_type, execution_id, to_char(event_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), \
                    to_jsonb(f) - 'event_time' || '{\"truncated\": false}' \
             FROM loader.activity_feed AS f ORDER BY event_time, execution_id",
            &[],
        )
        .unwrap();
    assert_eq!(received.len(), 6);
    for (event, row) in received.iter_mut().zip(&feed) {
        assert_eq!(event["event_type"], json!(row.get::<_, &str>(0)));
        assert_eq!(event["execution_id"], json!(row.get::<_, i64>(1)));
        // RFC 3339 may leave trailing zeros of the second out.
        let time = event["event_time"].take();
        let time = time.as_str().unwrap().strip_suffix('Z').expect("UTC");
        let expected = row.get::<_, String>(2);
        assert!(
            expected.starts_with(time) && expected[time.len()..].bytes().all(|digit| digit == b'0'),
            "{time} {expected}"
        );
        // All else is the row of the feed, but for the error text that was not asked for.
        let mut expected: Value = row.get(3);
        if expected["execution_id"] == 2 && expected["status"] == "FAILED" {
            expected["error_message"] = Value::Null;
            expected["message"] = json!("Execution 2 of loader 4 failed after 0 s");
        }
        event.as_object_mut().unwrap().remove("event_time");
        assert_eq!(*event, expected);
    }
}

#[test]
fn only_changes_of_the_outcome_are_events() {
    let cluster = cluster_with_extension();
    let (mut client, mut listener) = (cluster.connect(), cluster.connect());
    listener.batch_execute("LISTEN loader_execution").unwrap();

    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
                 SELECT 1, now(), now(), 'SUCCESS' FROM generate_series(1, 100);
             UPDATE loader.execution_history SET record_count = 5, error_message = 'x';
             DELETE FROM loader.execution_history WHERE id > 1;",
        )
        .unwrap();
    client.batch_execute("BEGIN; SELECT loader.record_execution_start(1); ROLLBACK").unwrap();
    client
        .batch_execute(
            "BEGIN; SAVEPOINT a; SELECT loader.record_execution_start(1); ROLLBACK TO a; COMMIT",
        )
        .unwrap();
    assert_eq!(events(&mut listener, &mut client), Vec::<Value>::new());

    client
        .batch_execute(
            "UPDATE loader.execution_history SET status = 'FAILED' WHERE id = 1;
             INSERT INTO loader.execution_history (loader_id, execution_start, status) VALUES (2, now(), 'RUNNING');",
        )
        .unwrap();
    let kinds: Vec<_> = events(&mut listener, &mut client)
        .iter()
        .map(|event| event["event_type"].clone())
        .collect();
    assert_eq!(kinds, ["EXECUTION_FAILED", "EXECUTION_STARTED"]);
}

#[test]
fn whatever_the_error_text_holds_the_payload_is_short_and_valid() {
    let cluster = cluster_with_extension();
    let (mut client, mut listener) = (cluster.connect(), cluster.connect());
    listener.batch_execute("LISTEN loader_execution").unwrap();
    client.batch_execute("SET loader_history.notify_error_message = on").unwrap();

    let texts: Vec<String> =
        ["\"", "\\", "\u{1}", "\n", "\u{7f}", "é", "€", "😀", "x", "\u{2028}</script>'"]
            .iter()
            .flat_map(|part| {
                [
                    part.repeat(100),
                    part.repeat(7_700 / part.len()),
                    part.repeat(10_000_000 / part.len()),
                ]
            })
            // A shift by a byte or three cuts inside characters.
            .flat_map(|text| [format!("a{text}"), format!("abc{text}")])
            .chain([String::new()])
            .collect();
    for text in &texts {
        let id: i64 =
            client.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0);
        client
            .query("SELECT loader.record_execution_end($1, 'FAILED', NULL, $2)", &[&id, text])
            .unwrap();
        let ended = events(&mut listener, &mut client).pop().unwrap();
        let kept = ended["error_message"].as_str().unwrap();
        assert!(text.starts_with(kept));
        assert_eq!(ended["truncated"], json!(kept.len() < text.len()));
        assert!(kept.len() == text.len() || kept.len() > 600, "cut no more than needed");
    }
}

#[test]
fn a_listener_of_any_client_encoding_receives_every_event() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    // The protocol's own messages are ASCII, whatever the driver thinks the encoding is.
    let mut listener = cluster.connect();
    listener.batch_execute("SET client_encoding = 'LATIN1'; LISTEN loader_execution").unwrap();
    client
        .batch_execute(
            "SET loader_history.notify_error_message = on;
             SELECT loader.record_execution_end(loader.record_execution_start(1), 'FAILED', 0, 'Лоадер 😀 é')",
        )
        .unwrap();
    let received = events(&mut listener, &mut client);
    assert_eq!(received[1]["error_message"], "Лоадер 😀 é");
}

#[test]
fn times_that_chrono_cannot_express_fail_no_insert() {
    let cluster = cluster_with_extension();
    let (mut client, mut listener) = (cluster.connect(), cluster.connect());
    listener.batch_execute("LISTEN loader_execution").unwrap();
    for time in
        ["4713-01-01 00:00 BC", "0001-01-01 BC", "20000-01-01", "294276-12-31 23:59:59.999999"]
    {
        client
            .batch_execute(&format!(
                "INSERT INTO loader.execution_history (loader_id, execution_start, status) \
                 VALUES (1, '{time}', 'RUNNING')"
            ))
            .unwrap();
    }
    assert_eq!(events(&mut listener, &mut client).len(), 4);
    let page: Value =
        client.query_one("SELECT loader.get_execution_history()", &[]).unwrap().get(0);
    assert_eq!(page["executions"].as_array().unwrap().len(), 4);
}

#[test]
fn events_can_be_turned_off_for_two_phase_loaders() {
    let cluster = pg_test::Cluster::start_with("max_prepared_transactions = 5");
    let (mut client, mut listener) = (cluster.connect(), cluster.connect());
    client.batch_execute(pg_test::APPLICATION_SQL).unwrap();
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    listener.batch_execute("LISTEN loader_execution").unwrap();

    client.batch_execute("BEGIN; SELECT loader.record_execution_start(1)").unwrap();
    client.batch_execute("PREPARE TRANSACTION 'a'").error("0A000");

    client.batch_execute("SET loader_history.notify = off").unwrap();
    client
        .batch_execute("BEGIN; SELECT loader.record_execution_start(1); PREPARE TRANSACTION 'a'")
        .unwrap();
    client.batch_execute("COMMIT PREPARED 'a'").unwrap();
    assert_eq!(events(&mut listener, &mut client), Vec::<Value>::new());
    let running: i64 =
        client.query_one("SELECT count(*) FROM loader.execution_history", &[]).unwrap().get(0);
    assert_eq!(running, 1);
}

#[test]
fn an_unknown_setting_is_refused_once_the_library_is_loaded() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    client.batch_execute("SET loader_history.notfy = off").error("42602");
    client.batch_execute("SET loader_history.notify = off").unwrap();
    let description: String = client
        .query_one("SELECT short_desc FROM pg_settings WHERE name = 'loader_history.notify'", &[])
        .unwrap()
        .get(0);
    assert!(!description.is_empty());
}

#[test]
fn events_arrive_without_anybody_asking() {
    let cluster = cluster_with_extension();
    let (mut client, mut listener) = (cluster.connect(), cluster.connect());
    listener.batch_execute("LISTEN loader_execution").unwrap();
    client.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    let mut notifications = listener.notifications();
    let mut blocking = notifications.timeout_iter(Duration::from_secs(30));
    assert!(blocking.next().unwrap().is_some());
}
