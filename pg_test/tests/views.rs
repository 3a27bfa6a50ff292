//! Promise: the four views say what the history says: checked against the plainest SQL that could be
//! written for each, on random histories.

use pg_test::{Client, cluster_with_extension, column};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Fills the history with random executions: overlapping, running, future, ties and all.
fn fill(client: &mut Client, random: &mut StdRng) {
    client.batch_execute("TRUNCATE loader.execution_history").unwrap();
    let rows = random.random_range(0..300);
    let loaders = random.random_range(1..=10_i64);
    for _ in 0..rows {
        let start = random.random_range(-80..1);
        let length = random.random_range(0..30);
        let status = ["RUNNING", "SUCCESS", "FAILED", "FAILED"][random.random_range(0..4)];
        client
            .execute(
                "INSERT INTO loader.execution_history \
                     (loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds) \
                 SELECT $1, start, CASE WHEN $4 <> 'RUNNING' THEN start + make_interval(hours => $3) END, $4, $3, \
                        CASE WHEN $4 = 'FAILED' THEN 'error ' || $2 || E'\\nsecond line' END, \
                        CASE WHEN $4 <> 'RUNNING' THEN $3 * 3600 END \
                 FROM (SELECT date_trunc('hour', now()) + make_interval(hours => $2) AS start) AS s",
                &[&random.random_range(1..=loaders), &start, &length, &status],
            )
            .unwrap();
    }
}

/// Rows that only one of two queries returns.
fn differences(client: &mut Client, one: &str, other: &str) -> Vec<String> {
    column(
        client,
        &format!(
            "SELECT t::text FROM (({one}) EXCEPT ALL ({other})) AS t \
                 UNION ALL SELECT t::text FROM (({other}) EXCEPT ALL ({one})) AS t"
        ),
    )
}

#[test]
fn summaries_and_counts_equal_the_plainest_sql() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let mut random = StdRng::seed_from_u64(pg_test::seed());
    for _ in 0..25 {
        fill(&mut client, &mut random);
        let ended = "loader.execution_history WHERE execution_end IS NOT NULL";
        let summary = format!(
            "SELECT loader_id,
                    (array_agg(id ORDER BY execution_start DESC, id DESC))[1],
                    (array_agg(status ORDER BY execution_start DESC, id DESC))[1],
                    (array_agg(execution_start ORDER BY execution_start DESC, id DESC))[1],
                    (array_agg(execution_end ORDER BY execution_start DESC, id DESC))[1],
                    (array_agg(execution_end ORDER BY execution_start DESC, id DESC) FILTER (WHERE status = 'SUCCESS'))[1],
                    (array_agg(execution_end ORDER BY execution_start DESC, id DESC) FILTER (WHERE status = 'FAILED'))[1],
                    (array_agg(error_message ORDER BY execution_start DESC, id DESC) FILTER (WHERE status = 'FAILED'))[1],
                    coalesce((array_agg(status ORDER BY execution_start DESC, id DESC)
                              FILTER (WHERE status <> 'RUNNING'))[1] = 'FAILED', false),
                    (SELECT count(*) FROM {ended} AND f.loader_id = loader_id AND status = 'FAILED'
                        AND NOT EXISTS (SELECT FROM loader.execution_history AS s
                                         WHERE s.loader_id = f.loader_id AND s.status = 'SUCCESS'
                                           AND (s.execution_start, s.id) > (execution_history.execution_start, execution_history.id))),
                    count(*) FILTER (WHERE status = 'RUNNING')
               FROM loader.execution_history AS f GROUP BY loader_id"
        );
        let wrong = differences(&mut client, "SELECT * FROM loader.loader_summary", &summary);
        assert!(wrong.is_empty(), "{wrong:#?}");

        let counts = format!(
            "SELECT (SELECT count(*) FROM (SELECT DISTINCT ON (loader_id) status FROM {ended}
                                            ORDER BY loader_id, execution_start DESC, id DESC) AS newest
                      WHERE status = 'FAILED'),
                    count(DISTINCT loader_id) FILTER (WHERE execution_end >= now() - interval '24 hours'),
                    count(DISTINCT loader_id) FILTER (WHERE execution_end >= now() - interval '48 hours'
                                                        AND execution_end < now() - interval '24 hours'),
                    count(*) FILTER (WHERE execution_end >= now() - interval '24 hours')
               FROM {ended} AND status = 'FAILED'"
        );
        let wrong = differences(&mut client, "SELECT * FROM loader.failed_loader_counts", &counts);
        assert!(wrong.is_empty(), "{wrong:#?}");

        let feed = "SELECT execution_start, 'EXECUTION_STARTED', 'info', id, loader_id, 'RUNNING', NULL::integer, NULL::integer, NULL
                      FROM loader.execution_history
                    UNION ALL
                    SELECT execution_end, 'EXECUTION_' || status, CASE status WHEN 'FAILED' THEN 'error' ELSE 'success' END,
                           id, loader_id, status, record_count, duration_seconds, error_message
                      FROM loader.execution_history WHERE execution_end IS NOT NULL";
        let shown = "SELECT event_time, event_type, severity, execution_id, loader_id, status::text, record_count, \
                            duration_seconds, error_message FROM loader.activity_feed";
        let wrong = differences(&mut client, shown, feed);
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn a_running_execution_neither_heals_nor_fails_its_loader() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "SELECT loader.record_execution_start(1), loader.record_execution_start(2);
             SELECT loader.record_execution_end(1, 'FAILED', 0, 'x'), loader.record_execution_end(2, 'SUCCESS');
             SELECT loader.record_execution_start(1), loader.record_execution_start(2);",
        )
        .unwrap();
    let loaders = client
        .query("SELECT is_failed, last_status, running_executions FROM loader.loader_summary ORDER BY loader_id", &[])
        .unwrap();
    let said: Vec<(bool, String, i64)> =
        loaders.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(said, [(true, "RUNNING".to_owned(), 1), (false, "RUNNING".to_owned(), 1)]);
}

#[test]
fn an_old_execution_that_is_found_dead_late_does_not_turn_its_loader_red() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "SELECT loader.record_execution_start(1);
             SELECT loader.record_execution_end(loader.record_execution_start(1), 'SUCCESS');
             SELECT loader.record_execution_end(1, 'FAILED', 0, 'found dead')",
        )
        .unwrap();
    let row = client
        .query_one(
            "SELECT is_failed, consecutive_failures, last_error_message, failed_loaders, failed_loaders_24h
               FROM loader.loader_summary, loader.failed_loader_counts",
            &[],
        )
        .unwrap();
    let said: (bool, i64, String) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(said, (false, 0, "found dead".to_owned()));
    let counts: (i64, i64) = (row.get(3), row.get(4));
    assert_eq!(counts, (0, 1));
}

#[test]
fn the_feed_is_ready_to_show() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history
                 (id, loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds)
             VALUES (17, 4, '2026-01-01 10:00+00', '2026-01-01 10:00:03+00', 'SUCCESS', 1245, NULL, 3),
                    (18, 4, '2026-01-01 11:00+00', '2026-01-01 12:30+00', 'FAILED', 0, E'no such table\\nLINE 1', 5400),
                    (19, 4, '2026-01-01 13:00+00', '2026-01-01 13:00+00', 'SUCCESS', 1, NULL, 0),
                    (20, 4, '2026-01-01 14:00+00', '2026-01-01 14:00:01+00', 'SUCCESS', NULL, NULL, NULL),
                    (21, 4, '2026-01-01 15:00+00', '2026-01-01 15:00:01+00', 'FAILED', NULL, NULL, NULL),
                    (22, 4, '2026-01-01 16:00+00', NULL, 'RUNNING', 0, NULL, NULL)",
        )
        .unwrap();
    let messages: Vec<String> = client
        .query("SELECT message FROM loader.activity_feed ORDER BY execution_id, event_time, event_type DESC", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .filter(|message: &String| !message.ends_with("started"))
        .collect();
    assert_eq!(
        messages,
        [
            "Execution 17 of loader 4 succeeded: 1,245 records in 3 s",
            "Execution 18 of loader 4 failed after 5,400 s: no such table",
            "Execution 19 of loader 4 succeeded: 1 record in 0 s",
            "Execution 20 of loader 4 succeeded",
            "Execution 21 of loader 4 failed",
        ]
    );
}

#[test]
fn the_feed_shows_an_end_before_its_start() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    // Also where the clock had stepped back: these start in the future.
    client
        .batch_execute(
            "SELECT loader.record_execution_start(1) FROM generate_series(1, 200);
             UPDATE loader.execution_history SET execution_start = now() + interval '1 hour' WHERE id % 2 = 0;
             SELECT loader.record_execution_end(id, 'SUCCESS') FROM loader.execution_history;",
        )
        .unwrap();
    let feed = client
        .query("SELECT execution_id, event_type FROM loader.activity_feed ORDER BY event_time DESC, execution_id DESC", &[])
        .unwrap();
    let mut ended = std::collections::HashSet::new();
    for row in &feed {
        let id: i64 = row.get(0);
        match row.get(1) {
            "EXECUTION_STARTED" => {
                assert!(ended.contains(&id), "execution {id} is shown to start before it ends")
            }
            _ => assert!(ended.insert(id)),
        }
    }
    assert_eq!(feed.len(), 400);
}

#[test]
fn details_tell_the_exact_duration_and_that_of_a_running_one_so_far() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, duration_seconds)
             VALUES (1, '2026-01-01 10:00+00', '2026-01-01 10:00:02.345678+00', 'SUCCESS', 2),
                    (1, now() - interval '5 minutes', NULL, 'RUNNING', NULL),
                    (1, now() + interval '5 minutes', NULL, 'RUNNING', NULL)",
        )
        .unwrap();
    let details = client
        .query(
            "SELECT duration = '2.345678 s', duration BETWEEN '5 min' AND '6 min', duration = '0 s', is_running \
             FROM loader.execution_details ORDER BY id",
            &[],
        )
        .unwrap();
    let said: Vec<[bool; 4]> =
        details.iter().map(|row| [row.get(0), row.get(1), row.get(2), row.get(3)]).collect();
    assert_eq!(
        said,
        [[true, false, false, false], [false, true, false, true], [false, false, true, true]]
    );
}

#[test]
fn counts_of_one_loader_stop_at_a_thousand() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
                 SELECT 1, now(), now(), 'FAILED' FROM generate_series(1, 1200);
             INSERT INTO loader.execution_history (loader_id, execution_start, status)
                 SELECT 1, now(), 'RUNNING' FROM generate_series(1, 1200);",
        )
        .unwrap();
    let row = client
        .query_one(
            "SELECT consecutive_failures, running_executions FROM loader.loader_summary",
            &[],
        )
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1000, 1000));
}

#[test]
fn loaders_are_known_however_their_rows_came() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let mut replica = cluster.connect();
    replica
        .batch_execute(
            "SET session_replication_role = replica;
             INSERT INTO loader.execution_history (loader_id, execution_start, status) VALUES (1, now(), 'RUNNING')",
        )
        .unwrap();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, status) VALUES (2, now(), 'RUNNING');
             UPDATE loader.execution_history SET loader_id = 3 WHERE loader_id = 2;
             SELECT loader.record_execution_start(4);
             BEGIN; SELECT loader.record_execution_start(5); ROLLBACK;",
        )
        .unwrap();
    client.batch_execute("SELECT loader.record_execution_start(4)").unwrap();
    let known: Vec<i64> =
        column(&mut client, "SELECT loader_id FROM loader.loader_summary ORDER BY 1");
    // The batch above is one transaction until its BEGIN, whose ROLLBACK undoes it all.
    assert_eq!(known, [1, 4]);
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, status) VALUES (2, now(), 'RUNNING')",
        )
        .unwrap();
    client
        .batch_execute("UPDATE loader.execution_history SET loader_id = 3 WHERE loader_id = 2")
        .unwrap();
    let known: Vec<i64> =
        column(&mut client, "SELECT loader_id FROM loader.loader_summary ORDER BY 1");
    assert_eq!(known, [1, 3, 4]);
}

#[test]
fn a_loader_is_known_to_an_extension_created_anew_in_the_same_transaction() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "BEGIN;
             SELECT loader.record_execution_start(1);
             DROP EXTENSION loader_history;
             CREATE EXTENSION loader_history;
             SELECT loader.record_execution_start(1);
             COMMIT;",
        )
        .unwrap();
    let known: i64 =
        client.query_one("SELECT count(*) FROM loader.loader_summary", &[]).unwrap().get(0);
    assert_eq!(known, 1);
}
