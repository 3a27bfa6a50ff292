//! Promise: get_execution_history pages through the history, newest first, without a gap or a double.

use std::collections::HashSet;

use pg_test::{Client, cluster_with_extension, column};
use serde_json::{Value, json};

fn page(client: &mut Client, arguments: &str) -> Value {
    client
        .query_one(&format!("SELECT loader.get_execution_history({arguments})"), &[])
        .unwrap()
        .get(0)
}

/// Ids of all pages, from the first to the last.
fn walk(client: &mut Client, arguments: &str) -> Vec<i64> {
    let mut ids = Vec::new();
    let mut cursor = "NULL".to_owned();
    loop {
        let page = page(client, &format!("{arguments}, \"cursor\" => {cursor}"));
        let executions = page["executions"].as_array().unwrap();
        ids.extend(executions.iter().map(|execution| execution["id"].as_i64().unwrap()));
        match &page["next_cursor"] {
            Value::Null => return ids,
            next => cursor = format!("'{}'", next.as_str().unwrap()),
        }
        assert!(!executions.is_empty(), "a cursor leads to something");
    }
}

fn ids(client: &mut Client, condition: &str) -> Vec<i64> {
    column(
        client,
        &format!(
            "SELECT id FROM loader.execution_history WHERE {condition} ORDER BY execution_start DESC, id DESC"
        ),
    )
}

#[test]
fn every_filter_pages_through_all_of_it_in_order() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    // Many executions share their start, ids do not follow time, and ends do not follow starts.
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT n % 3 + 1, t, CASE WHEN n % 7 > 0 THEN t + make_interval(mins => n * 53 % 61) END,
                    CASE n % 7 WHEN 0 THEN 'RUNNING' WHEN 1 THEN 'FAILED' ELSE 'SUCCESS' END
               FROM (SELECT n, now() - make_interval(mins => n * 37 % 50) AS t FROM generate_series(1, 500) AS n) AS s",
        )
        .unwrap();
    let filters: [&[(&str, &str)]; 4] = [
        &[("", "true"), ("loader_id => 2, ", "loader_id = 2"), ("loader_id => 99, ", "false")],
        &[
            ("", "true"),
            ("status => 'RUNNING', ", "status = 'RUNNING'"),
            ("status => 'SUCCESS', ", "status = 'SUCCESS'"),
            ("status => 'FAILED', ", "status = 'FAILED'"),
        ],
        &[
            ("", "true"),
            ("started_from => '-infinity', ", "true"),
            (
                "started_from => now() - interval '40 min', ",
                "execution_start >= now() - interval '40 min'",
            ),
        ],
        &[
            ("", "true"),
            ("started_before => 'infinity', ", "true"),
            (
                "started_before => now() - interval '20 min', ",
                "execution_start < now() - interval '20 min'",
            ),
        ],
    ];
    for loader in filters[0] {
        for status in filters[1] {
            for from in filters[2] {
                for before in filters[3] {
                    let all = [loader, status, from, before];
                    let arguments: String = all.iter().map(|(argument, _)| *argument).collect();
                    let condition = all.map(|(_, condition)| *condition).join(" AND ");
                    // In one transaction, so that now() is one time.
                    client.batch_execute("BEGIN").unwrap();
                    let expected = ids(&mut client, &condition);
                    for size in [7, 50, 499, 500, 501, 1000] {
                        let walked = walk(&mut client, &format!("{arguments}page_size => {size}"));
                        assert_eq!(walked, expected, "{arguments} {size}");
                    }
                    client.batch_execute("COMMIT").unwrap();
                }
            }
        }
    }
}

#[test]
fn a_cursor_and_a_latest_start_both_limit() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT 1, t, t, 'SUCCESS'
               FROM (SELECT '2026-01-01'::timestamptz + make_interval(mins => n / 3) AS t
                       FROM generate_series(1, 30) AS n) AS s",
        )
        .unwrap();
    // The cursor behind the tenth newest, whose start two others share.
    let first = page(&mut client, "page_size => 10");
    let cursor = first["next_cursor"].as_str().unwrap();
    let last = &first["executions"][9];
    let position = format!("('{}', {})", last["execution_start"].as_str().unwrap(), last["id"]);
    for limit in ["00:05", "00:06", "00:07", "00:08"] {
        let limit = format!("'2026-01-01 {limit}'");
        assert_eq!(
            walk(&mut client, &format!("page_size => 3, started_before => {limit}")),
            ids(&mut client, &format!("execution_start < {limit}")),
        );
        let page = page(
            &mut client,
            &format!("page_size => 1000, started_before => {limit}, \"cursor\" => '{cursor}'"),
        );
        let found: Vec<_> =
            page["executions"].as_array().unwrap().iter().map(|row| row["id"].as_i64()).collect();
        let expected = ids(
            &mut client,
            &format!("execution_start < {limit} AND (execution_start, id) < {position}"),
        );
        assert_eq!(found, expected.into_iter().map(Some).collect::<Vec<_>>(), "{limit}");
    }
}

#[test]
fn executions_that_start_meanwhile_shift_nothing() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute("SELECT loader.record_execution_start(1) FROM generate_series(1, 30)")
        .unwrap();
    let mut seen = HashSet::new();
    let mut cursor = "NULL".to_owned();
    while cursor != "'end'" {
        let page = page(&mut client, &format!("1, 7, {cursor}"));
        for execution in page["executions"].as_array().unwrap() {
            assert!(seen.insert(execution["id"].as_i64().unwrap()), "shown twice");
        }
        client
            .batch_execute("SELECT loader.record_execution_start(1) FROM generate_series(1, 5)")
            .unwrap();
        cursor = format!("'{}'", page["next_cursor"].as_str().unwrap_or("end"));
    }
    assert!((1..=30).all(|id| seen.contains(&id)));
}

#[test]
fn a_page_shows_an_execution_as_it_is() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "SET timezone = 'America/New_York';
             INSERT INTO loader.execution_history
                 (loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds)
             VALUES (4, '2026-01-02 03:04:05.678901+00', '2026-01-02 03:04:07+00', 'FAILED', NULL, E'quote \" and \\\\', 1)",
        )
        .unwrap();
    assert_eq!(
        page(&mut client, "4"),
        json!({"next_cursor": null, "executions": [{
            "id": 1, "loader_id": 4, "execution_start": "2026-01-02T03:04:05.678901Z",
            "execution_end": "2026-01-02T03:04:07Z", "status": "FAILED", "record_count": null,
            "error_message": "quote \" and \\", "error_truncated": false, "duration_seconds": 1,
            "duration_ms": 1_321.099
        }]})
    );
    assert_eq!(page(&mut client, "5"), json!({"executions": [], "next_cursor": null}));
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             VALUES (6, '2026-01-01', '2026-01-01 00:00:03', 'SUCCESS'), (6, '2026-01-02', NULL, 'RUNNING')",
        )
        .unwrap();
    let page = page(&mut client, "6");
    assert_eq!(page["executions"][0]["duration_ms"], Value::Null);
    assert_eq!(page["executions"][1]["duration_ms"].to_string(), "3000");
}

#[test]
fn error_texts_are_cut_between_characters_and_say_so() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    for (characters, cut) in [(8_191, false), (8_192, false), (8_193, true), (300_000, true)] {
        for part in ["x", "€", "😀"] {
            client
                .execute(
                    "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, error_message)
                     VALUES (1, clock_timestamp(), clock_timestamp(), 'FAILED', repeat($1, $2))",
                    &[&part, &characters],
                )
                .unwrap();
            let page = page(&mut client, "1, 1");
            let execution = &page["executions"][0];
            let kept = execution["error_message"].as_str().unwrap();
            assert_eq!(kept, part.repeat(usize::try_from(characters.min(8_192)).unwrap()));
            assert_eq!(execution["error_truncated"], json!(cut));
        }
    }
}

#[test]
fn the_largest_page_of_the_longest_errors_works() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, error_message)
             SELECT 1, now(), now(), 'FAILED', repeat(E'\\x01', 10000) FROM generate_series(1, 1001)",
        )
        .unwrap();
    let (count, next) = {
        let page = page(&mut client, "page_size => 1000");
        (page["executions"].as_array().unwrap().len(), page["next_cursor"].is_string())
    };
    assert_eq!((count, next), (1000, true));
}
