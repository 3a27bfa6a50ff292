//! Promise: record_execution_start and record_execution_end record what a loader did, by the server's
//! clock, and never break a load over a number.

use chrono::{DateTime, Utc};
use pg_test::{Client, HasError, Row, cluster_with_extension, wait_for};

fn start(client: &mut Client, loader: i64) -> i64 {
    client.query_one("SELECT loader.record_execution_start($1)", &[&loader]).unwrap().get(0)
}

fn end(client: &mut Client, id: i64, status: &str, count: Option<i64>, error: Option<&str>) -> i32 {
    client
        .query_one(
            "SELECT loader.record_execution_end($1, $2, $3, $4)",
            &[&id, &status, &count, &error],
        )
        .unwrap()
        .get(0)
}

fn execution(client: &mut Client, id: i64) -> Row {
    client.query_one("SELECT * FROM loader.execution_history WHERE id = $1", &[&id]).unwrap()
}

#[test]
fn a_load_is_recorded_from_start_to_end() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();

    let id = start(&mut client, 4);
    let running = execution(&mut client, id);
    assert_eq!(running.get::<_, i64>("loader_id"), 4);
    assert_eq!(running.get::<_, &str>("status"), "RUNNING");
    assert_eq!(running.get::<_, Option<i32>>("record_count"), Some(0));
    assert_eq!(running.get::<_, Option<DateTime<Utc>>>("execution_end"), None);
    assert_eq!(running.get::<_, Option<i32>>("duration_seconds"), None);

    assert_eq!(end(&mut client, id, "SUCCESS", Some(1245), None), 0);
    let ended = execution(&mut client, id);
    assert_eq!(ended.get::<_, &str>("status"), "SUCCESS");
    assert_eq!(ended.get::<_, i32>("record_count"), 1245);
    assert_eq!(ended.get::<_, Option<&str>>("error_message"), None);
    assert_eq!(ended.get::<_, Option<i32>>("duration_seconds"), Some(0));
    let (start, end): (DateTime<Utc>, DateTime<Utc>) =
        (ended.get("execution_start"), ended.get("execution_end"));
    assert!(end > start);

    let id = crate::start(&mut client, 4);
    crate::end(&mut client, id, "FAILED", None, Some("relation \"x\" does not exist"));
    let failed = execution(&mut client, id);
    assert_eq!(failed.get::<_, &str>("status"), "FAILED");
    assert_eq!(failed.get::<_, &str>("error_message"), "relation \"x\" does not exist");
    assert_eq!(failed.get::<_, i32>("record_count"), 0);
}

#[test]
fn times_are_of_the_clock_and_not_of_the_transaction() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let mut transaction = client.transaction().unwrap();
    let id: i64 =
        transaction.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0);
    wait_for("the clock to move on by a second", || {
        transaction
            .query_one(
                "SELECT clock_timestamp() - execution_start >= '1 second' \
                 FROM loader.execution_history WHERE id = $1",
                &[&id],
            )
            .unwrap()
            .get(0)
    });
    let seconds: i32 = transaction
        .query_one("SELECT loader.record_execution_end($1, 'SUCCESS')", &[&id])
        .unwrap()
        .get(0);
    assert!(seconds >= 1);
    let times = transaction
        .query_one(
            "SELECT now() <= execution_start, execution_end <= clock_timestamp(), duration_seconds \
             FROM loader.execution_history WHERE id = $1",
            &[&id],
        )
        .unwrap();
    assert!(times.get::<_, bool>(0) && times.get::<_, bool>(1));
    assert_eq!(times.get::<_, i32>(2), seconds);
}

#[test]
fn durations_are_whole_seconds_rounded_down() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    for (started, expected) in [("2.9 seconds", 2), ("1 hour", 3600), ("200 years", i32::MAX)] {
        let id = start(&mut client, 1);
        client
            .execute(
                "UPDATE loader.execution_history SET execution_start = clock_timestamp() - $2::text::interval \
                 WHERE id = $1",
                &[&id, &started],
            )
            .unwrap();
        let seconds = end(&mut client, id, "SUCCESS", None, None);
        assert!(
            (expected..=expected.saturating_add(20)).contains(&seconds),
            "{started}: {seconds}"
        );
    }
}

#[test]
fn a_clock_that_steps_back_gives_no_negative_duration() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    for future in ["1 hour", "280000 years"] {
        let id = start(&mut client, 1);
        client
            .execute(
                "UPDATE loader.execution_history SET execution_start = clock_timestamp() + $2::text::interval \
                 WHERE id = $1",
                &[&id, &future],
            )
            .unwrap();
        assert_eq!(end(&mut client, id, "FAILED", None, None), 0);
        let order: bool = client
            .query_one(
                "SELECT execution_end > execution_start AND duration_seconds = 0 \
                 FROM loader.execution_history WHERE id = $1",
                &[&id],
            )
            .unwrap()
            .get(0);
        assert!(order, "the end stands behind the start, also where events are ordered by time");
    }
}

#[test]
fn a_count_that_is_not_told_keeps_what_is_stored() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let id = start(&mut client, 1);
    client
        .execute("UPDATE loader.execution_history SET record_count = 77 WHERE id = $1", &[&id])
        .unwrap();
    end(&mut client, id, "FAILED", None, None);
    assert_eq!(execution(&mut client, id).get::<_, i32>("record_count"), 77);
}

#[test]
fn a_count_past_an_integer_is_saturated_with_a_warning() {
    let cluster = cluster_with_extension();
    let (sender, warnings) = std::sync::mpsc::channel();
    let mut client = cluster
        .config("postgres", "postgres")
        .notice_callback(move |notice| sender.send(notice).unwrap())
        .connect(postgres::NoTls)
        .unwrap();
    let id = start(&mut client, 1);
    end(&mut client, id, "SUCCESS", Some(i64::from(i32::MAX)), None);
    assert!(warnings.try_recv().is_err(), "the largest integer fits");

    let id = start(&mut client, 1);
    end(&mut client, id, "SUCCESS", Some(i64::MAX), None);
    assert_eq!(execution(&mut client, id).get::<_, i32>("record_count"), i32::MAX);
    let warning = warnings.try_recv().unwrap();
    assert_eq!(warning.severity(), "WARNING");
    assert!(warning.hint().is_some());
}

#[test]
fn an_error_message_is_stored_whole() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let message = "€ 😀 \"quoted\" \\ \u{1}\n".repeat(500_000);
    let id = start(&mut client, 1);
    end(&mut client, id, "FAILED", None, Some(&message));
    assert_eq!(execution(&mut client, id).get::<_, &str>("error_message"), message);
}

#[test]
fn constraints_hold_for_every_writer() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    for (values, constraint) in [
        ("1, now(), now(), 'STOPPED', 0", "execution_history_status_check"),
        ("1, now(), now(), 'RUNNING', 0", "execution_history_running_check"),
        ("1, now(), NULL, 'SUCCESS', 0", "execution_history_running_check"),
        ("1, '-infinity', now(), 'SUCCESS', 0", "execution_history_finite_check"),
        ("1, now(), 'infinity', 'SUCCESS', 0", "execution_history_finite_check"),
        ("1, now(), now() - interval '1 s', 'FAILED', 0", "execution_history_order_check"),
        ("1, now(), NULL, 'RUNNING', -1", "execution_history_record_count_check"),
    ] {
        let error = client
            .execute(
                &format!(
                    "INSERT INTO loader.execution_history \
                     (loader_id, execution_start, execution_end, status, record_count) VALUES ({values})"
                ),
                &[],
            )
            .error("23514");
        assert_eq!(error.constraint(), Some(constraint), "{values}");
    }
    client
        .execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, status) \
             VALUES (11, now(), 'RUNNING')",
            &[],
        )
        .error("23503");
}
