//! Promise: the API says what the views say.

mod support;

use pg_test::{Client, HISTORY, Session, column, wait_for_equal};
use serde_json::Value;
use support::{Console, cluster, fail, normal, one, rows_as_json, start, succeed, walk_feed};

#[test]
fn the_feed_has_the_keys_that_its_front_end_reads() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 1245);
    fail(&mut session, 2, "no <b>warehouse</b>");
    start(&mut session, 3);
    let mut client = cluster.connect();
    let mut took = |id: i64| {
        let seconds = "SELECT duration_seconds FROM loader.execution_history";
        one(&mut client, &format!("{seconds} WHERE id = {id}"))
    };
    let (success, failure) = (took(1), took(2));
    let items = console.json("/api/v1/activity?limit=10");
    let items: Vec<_> = items
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            [&item["type"], &item["loaderCode"], &item["status"], &item["message"]]
                .map(|value| value.as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(
        items,
        [
            ["EXECUTION_STARTED", "3", "info", "Execution 3 of loader 3 started"],
            [
                "EXECUTION_FAILED",
                "2",
                "error",
                &format!("Execution 2 of loader 2 failed after {failure} s: no <b>warehouse</b>")
            ],
            ["EXECUTION_STARTED", "2", "info", "Execution 2 of loader 2 started"],
            [
                "EXECUTION_SUCCESS",
                "1",
                "success",
                &format!("Execution 1 of loader 1 succeeded: 1,245 records in {success} s")
            ],
            ["EXECUTION_STARTED", "1", "info", "Execution 1 of loader 1 started"],
        ]
        .map(|item| item.map(str::to_owned))
    );
}

/// Columns of an execution, as the API shows them.
const EXECUTION: &str = "id, loader_id, execution_start, execution_end, status, record_count, \
     left(error_message, 8192) AS error_message, coalesce(length(error_message) > 8192, false) AS error_truncated, \
     duration_seconds, trim_scale(extract(epoch FROM execution_end - execution_start) * 1000) AS duration_ms";

/// All executions that the pages of `path` show, from the first to the last.
fn walk(console: &Console, path: &str, limit: usize) -> Vec<Value> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    let separator = if path.contains('?') { '&' } else { '?' };
    loop {
        let page = console.json(&format!("{path}{separator}limit={limit}{cursor}"));
        let executions = page["executions"].as_array().unwrap();
        found.extend(executions.iter().cloned().map(normal));
        match page["next_cursor"].as_str() {
            None => return found,
            Some(next) => cursor = format!("&cursor={next}"),
        }
        assert_eq!(executions.len(), limit, "only the last page is short");
    }
}

fn executions(client: &mut Client, condition: &str) -> Value {
    let order = "ORDER BY execution_start DESC, id DESC";
    let table = "loader.execution_history";
    rows_as_json(client, &format!("SELECT {EXECUTION} FROM {table} WHERE {condition} {order}"))
}

#[test]
fn pages_walked_by_their_cursors_are_the_history_that_the_filter_leaves() {
    let cluster = cluster();
    let mut client = cluster.connect();
    client.batch_execute(HISTORY).unwrap();
    let console = Console::start(&cluster);
    let time = |ago: &str| {
        let format = r#"'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"#;
        one(
            &mut cluster.connect(),
            &format!("to_char((now() - interval '{ago}') AT TIME ZONE 'UTC', {format})"),
        )
    };
    let (from, before) = (time("30 hours"), time("10 hours"));
    for (path, condition) in [
        ("/executions".to_owned(), "true".to_owned()),
        ("/executions?status=FAILED".to_owned(), "status = 'FAILED'".to_owned()),
        ("/executions?status=RUNNING".to_owned(), "status = 'RUNNING'".to_owned()),
        ("/loaders/7/executions".to_owned(), "loader_id = 7".to_owned()),
        (
            "/loaders/7/executions?status=SUCCESS".to_owned(),
            "loader_id = 7 AND status = 'SUCCESS'".to_owned(),
        ),
        (
            format!("/executions?started_from={from}&started_before={before}"),
            format!("execution_start >= '{from}' AND execution_start < '{before}'"),
        ),
        (
            format!("/loaders/5/executions?status=FAILED&started_from={from}"),
            format!("loader_id = 5 AND status = 'FAILED' AND execution_start >= '{from}'"),
        ),
    ] {
        let expected = executions(&mut client, &condition);
        let count = expected.as_array().unwrap().len();
        assert!(count > 7, "{condition} is one page");
        for limit in [7, 50, count, 1000] {
            let found = Value::Array(walk(&console, &format!("/api/v1{path}"), limit));
            assert_eq!(found, expected, "{path}, {limit} a page");
        }
    }
    // Bounds belong to the period at its beginning only, to the microsecond.
    let start = "SELECT to_json(execution_start AT TIME ZONE 'UTC') #>> '{}' || 'Z' \
                 FROM loader.execution_history WHERE loader_id = 7 ORDER BY execution_start LIMIT 1";
    let start = column::<String>(&mut client, start).remove(0);
    for (bound, expected) in [("started_from", true), ("started_before", false)] {
        let found = walk(&console, &format!("/api/v1/loaders/7/executions?{bound}={start}"), 1000);
        let first =
            executions(&mut client, &format!("loader_id = 7 AND execution_start = '{start}'"))[0]
                .clone();
        assert_eq!(found.contains(&first), expected, "{bound}");
    }
    // No limit is 50, and nothing is a page too.
    let page = console.json("/api/v1/executions");
    assert_eq!(page["executions"].as_array().unwrap().len(), 50);
    let nothing = console.json("/api/v1/loaders/4711/executions");
    assert_eq!(nothing, serde_json::json!({ "executions": [], "next_cursor": null }));
}

#[test]
fn loaders_and_counts_are_those_of_the_views() {
    let cluster = cluster();
    let mut client = cluster.connect();
    client.batch_execute(HISTORY).unwrap();
    let console = Console::start(&cluster);
    let summary = "SELECT loader_id, last_execution_id, last_status, last_execution_start, last_execution_end, \
                   last_success_at, last_failure_at, left(last_error_message, 8192) AS last_error_message, \
                   is_failed, consecutive_failures, running_executions FROM loader.loader_summary";
    for (parameter, condition) in
        [("", "true"), ("&is_failed=true", "is_failed"), ("&is_failed=false", "NOT is_failed")]
    {
        let query = format!("{summary} WHERE {condition} ORDER BY loader_id");
        let expected = rows_as_json(&mut client, &query);
        assert!(expected.as_array().unwrap().len() > 1, "{condition}: tests nothing");
        for limit in [1, 2, expected.as_array().unwrap().len(), 50] {
            let mut found = Vec::new();
            let mut after = String::new();
            loop {
                let page =
                    console.json(&format!("/api/v1/loaders?limit={limit}{parameter}{after}"));
                found.extend(page["loaders"].as_array().unwrap().iter().cloned().map(normal));
                match page["next_after"].as_i64() {
                    None => break,
                    Some(next) => after = format!("&after={next}"),
                }
            }
            assert_eq!(Value::Array(found), expected, "{limit} a page{parameter}");
        }
    }
    for row in rows_as_json(&mut client, summary).as_array().unwrap() {
        let found = console.json(&format!("/api/v1/loaders/{}", row["loader_id"]));
        assert_eq!(normal(found), *row);
    }
    let counts = "SELECT *, failed_loaders_24h - failed_loaders_previous_24h AS trend FROM loader.failed_loader_counts";
    let before = rows_as_json(&mut client, counts)[0].clone();
    assert_eq!(console.json("/api/v1/failed-loaders/counts"), before);
    // They move within five seconds, without any event too.
    client
        .batch_execute(
            "SET loader_history.notify = off;
             UPDATE loader.execution_history SET status = 'FAILED', execution_end = now() WHERE status = 'RUNNING'",
        )
        .unwrap();
    let after = rows_as_json(&mut client, counts)[0].clone();
    assert_ne!(after, before);
    wait_for_equal("the counts", &after, || console.json("/api/v1/failed-loaders/counts"));
}

#[test]
fn the_feed_is_the_view_s_newest_first_and_since_a_time_to_the_microsecond() {
    let cluster = cluster();
    let mut client = cluster.connect();
    client.batch_execute(HISTORY).unwrap();
    let console = Console::start(&cluster);
    let feed = "SELECT event_time AS timestamp, event_type AS type, loader_id::text AS \"loaderCode\", message, \
                severity AS status, execution_id AS \"executionId\" FROM loader.activity_feed";
    let order = "ORDER BY event_time DESC, execution_id DESC";
    for limit in [1, 50, 1000] {
        let expected = rows_as_json(&mut client, &format!("{feed} {order} LIMIT {limit}"));
        assert_eq!(normal(console.json(&format!("/api/v1/activity?limit={limit}"))), expected);
    }
    // The client that reads again from the last time it saw.
    let newest = console.json("/api/v1/activity?limit=1000");
    let seen = newest[20]["timestamp"].as_str().unwrap();
    let expected =
        rows_as_json(&mut client, &format!("{feed} WHERE event_time > '{seen}' {order}"));
    assert!(!expected.as_array().unwrap().is_empty());
    let found = console.json(&format!("/api/v1/activity?limit=1000&since={seen}"));
    assert_eq!(normal(found), expected);
    // And the one who has missed more than a page goes back from the oldest that it got.
    let walked = walk_feed(&console, 100, "");
    let whole = rows_as_json(&mut client, &format!("{feed} {order}"));
    assert!(walked.len() > 200);
    assert_eq!(normal(Value::Array(walked.clone())), whole);
    let (since, until) = (&walked[30]["timestamp"], &walked[10]["timestamp"]);
    let (since, until) = (since.as_str().unwrap(), until.as_str().unwrap());
    let between =
        format!("{feed} WHERE event_time > '{since}' AND event_time <= '{until}' {order}");
    let found = console.json(&format!("/api/v1/activity?limit=1000&since={since}&until={until}"));
    assert_eq!(normal(found), rows_as_json(&mut client, &between));
    // The same time with an offset.
    let offset = chrono::DateTime::parse_from_rfc3339(seen).unwrap();
    let offset = offset.with_timezone(&chrono::FixedOffset::east_opt(19_800).unwrap());
    let offset = offset.to_rfc3339().replace('+', "%2B");
    let found = console.json(&format!("/api/v1/activity?limit=1000&since={offset}"));
    assert_eq!(normal(found), expected);
}

#[test]
fn the_feed_goes_on_where_more_than_a_page_happened_at_once() {
    let cluster = cluster();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT 1, t, t, (ARRAY['SUCCESS', 'FAILED'])[n % 2 + 1]
             FROM generate_series(1, 700) AS n, (VALUES (timestamptz '2026-01-01 00:00:00.123456')) AS x (t)",
        )
        .unwrap();
    let console = Console::start(&cluster);
    let feed = "SELECT event_time AS timestamp, event_type AS type, loader_id::text AS \"loaderCode\", message, \
                severity AS status, execution_id AS \"executionId\" FROM loader.activity_feed \
                ORDER BY event_time DESC, execution_id DESC, event_type = 'EXECUTION_STARTED'";
    let expected = rows_as_json(&mut client, feed);
    assert_eq!(expected.as_array().unwrap().len(), 1400);
    for limit in [99, 100, 1000] {
        for query in ["", "&since=2026-01-01T00:00:00.123455Z"] {
            let walked = walk_feed(&console, limit, query);
            assert_eq!(normal(Value::Array(walked)), expected, "{limit} a page {query}");
        }
    }
    for cursor in ["x", "1_2", "1_2_EXPLODED", "1_2_SUCCESS_", "99999999999999999999_1_FAILED"] {
        assert_eq!(
            console.get(&format!("/api/v1/activity?before={cursor}")).status,
            400,
            "{cursor}"
        );
    }
}

#[test]
fn statistics_count_loaders() {
    let cluster = cluster();
    let mut client = cluster.connect();
    client.batch_execute(HISTORY).unwrap();
    let mut session = Session::new(&cluster, "postgres");
    for _ in 0..2 {
        start(&mut session, 3);
    }
    let console = Console::start(&cluster);
    let expected = rows_as_json(
        &mut client,
        "SELECT count(*) AS total, count(*) FILTER (WHERE is_failed) AS failed,
             count(*) FILTER (WHERE running_executions > 0) AS running FROM loader.loader_summary",
    );
    assert!(expected[0]["failed"].as_i64().unwrap() > 0);
    assert_eq!(console.json("/api/v1/statistics"), expected[0]);
}

#[test]
fn health_says_whether_the_database_answers_and_events_arrive() {
    let mut cluster = cluster();
    let console = Console::start(&cluster);
    let health = |live: bool| serde_json::json!({ "database": "ok", "live_events": live });
    wait_for_equal("events", &health(true), || console.json("/api/v1/health"));
    cluster.stop_server();
    wait_for_equal("the outage", &503, || console.get("/api/v1/health").status);
    cluster.start_server();
    wait_for_equal("the database", &200, || console.get("/api/v1/health").status);
    wait_for_equal("events", &health(true), || console.json("/api/v1/health"));
}
