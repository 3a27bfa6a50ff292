//! Promise: reads stay flat. The feed, a page and one loader's summary read a bounded number of
//! pages whatever the history holds; the failed counts a bounded number a loader.
//!
//! Pages are counted, not time: by EXPLAIN (BUFFERS), at ten thousand executions and at a million.

use std::collections::BTreeMap;

use pg_test::{Client, cluster_with_extension};
use serde_json::Value;

/// Loaders with history, each with as many executions.
const LOADERS: i64 = 200;

/// What is read, and how many pages it may read.
const READS: [(&str, &str, i64); 12] = [
    ("feed", "SELECT * FROM loader.activity_feed ORDER BY event_time DESC LIMIT 50", 150),
    (
        "feed, before a time",
        "SELECT * FROM loader.activity_feed WHERE event_time < now() - interval '1 hour' \
         ORDER BY event_time DESC, execution_id DESC LIMIT 50",
        150,
    ),
    (
        "feed, with the application's table",
        "SELECT f.*, l.loader_code FROM loader.activity_feed AS f JOIN loader.loader AS l ON l.id = f.loader_id \
         ORDER BY f.event_time DESC LIMIT 50",
        350,
    ),
    (
        "page",
        "SELECT * FROM loader.execution_details ORDER BY execution_start DESC, id DESC LIMIT 50",
        120,
    ),
    (
        "page of a loader",
        "SELECT * FROM loader.execution_details WHERE loader_id = 7 ORDER BY execution_start DESC, id DESC LIMIT 50",
        120,
    ),
    (
        "page of a loader, by its code",
        "SELECT d.* FROM loader.execution_details AS d JOIN loader.loader AS l ON l.id = d.loader_id \
         WHERE l.loader_code = 'LOADER_7' ORDER BY d.execution_start DESC LIMIT 50",
        // The application's own table has no index on the code here. A step backward looks at a page twice.
        200,
    ),
    (
        "page of a loader's failures",
        "SELECT * FROM loader.execution_details WHERE loader_id = 7 AND status = 'FAILED' \
         ORDER BY execution_start DESC, id DESC LIMIT 50",
        120,
    ),
    (
        "page of failures",
        "SELECT * FROM loader.execution_details WHERE status = 'FAILED' ORDER BY execution_start DESC, id DESC LIMIT 50",
        120,
    ),
    (
        "page of what runs",
        "SELECT * FROM loader.execution_details WHERE status = 'RUNNING' ORDER BY execution_start DESC, id DESC LIMIT 50",
        120,
    ),
    ("an execution", "SELECT * FROM loader.execution_details WHERE id = 4711", 12),
    ("summary of a loader", "SELECT * FROM loader.loader_summary WHERE loader_id = 7", 60),
    ("failed counts", "SELECT * FROM loader.failed_loader_counts", 20 * LOADERS),
];

/// A history of `executions`, recorded oldest first, of which one in fifty failed and a few run.
fn fill(client: &mut Client, executions: i64) {
    client
        .batch_execute(&format!(
            "TRUNCATE loader.execution_history;
             INSERT INTO loader.execution_history
                    (loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds)
             SELECT n % {LOADERS} + 1, start, start + interval '3 s',
                    CASE WHEN n / {LOADERS} % 50 = 0 THEN 'FAILED' ELSE 'SUCCESS' END, n % 1000,
                    CASE WHEN n / {LOADERS} % 50 = 0 THEN 'no such table' END, 3
               FROM (SELECT n, now() - n * interval '90 days' / {executions} AS start
                       FROM generate_series({executions}, 1, -1) AS n) AS s;
             INSERT INTO loader.execution_history (loader_id, execution_start, status)
             SELECT n, now(), 'RUNNING' FROM generate_series(1, 5) AS n;"
        ))
        .unwrap();
    client.batch_execute("VACUUM ANALYZE loader.execution_history").unwrap();
    client.batch_execute("VACUUM ANALYZE loader_history.recorded_loader").unwrap();
}

/// Pages that executing `query` touches.
fn pages(client: &mut Client, query: &str) -> i64 {
    let plan: Value = client
        .query_one(&format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}"), &[])
        .unwrap()
        .get(0);
    let count = |key: &str| plan[0]["Plan"][key].as_i64().expect("a count of buffers");
    count("Shared Hit Blocks") + count("Shared Read Blocks")
}

/// Pages that a call of `get_execution_history` touches: what runs inside it does not show in its own plan.
fn pages_of_call(client: &mut Client, call: &str) -> i64 {
    pages(client, &format!("SELECT loader.get_execution_history({call})"))
}

fn all(client: &mut Client) -> BTreeMap<String, i64> {
    let mut counted: BTreeMap<String, i64> =
        READS.iter().map(|(name, query, _)| ((*name).to_owned(), pages(client, query))).collect();
    let cursor: String = client
        .query_one(
            "SELECT (extract(epoch FROM execution_start - '2000-01-01 00:00+00') * 1000000)::bigint || '_' || id \
             FROM loader.execution_history ORDER BY execution_start, id OFFSET 5000 LIMIT 1",
            &[],
        )
        .unwrap()
        .get(0);
    for call in [
        "7".to_owned(),
        "7, status => 'SUCCESS'".to_owned(),
        "7, status => 'FAILED'".to_owned(),
        "status => 'FAILED'".to_owned(),
        "status => 'SUCCESS'".to_owned(),
        "status => 'RUNNING'".to_owned(),
        format!("\"cursor\" => '{cursor}'"),
        format!("7, \"cursor\" => '{cursor}'"),
        format!("7, status => 'SUCCESS', \"cursor\" => '{cursor}'"),
        format!("7, status => 'FAILED', \"cursor\" => '{cursor}'"),
        format!("status => 'FAILED', \"cursor\" => '{cursor}'"),
        "started_from => now() - interval '60 days', started_before => now() - interval '40 days'"
            .to_owned(),
        String::new(),
    ] {
        let name = format!("get_execution_history({})", call.replace(&cursor, "…"));
        // Once before, so that the catalog's pages and the plan are not counted.
        pages_of_call(client, &call);
        counted.insert(name, pages_of_call(client, &call));
    }
    counted
}

#[test]
fn reads_touch_as_many_pages_at_a_million_executions_as_at_ten_thousand() {
    let cluster = pg_test::Cluster::start_with("shared_buffers = '512MB'");
    let mut client = cluster.connect();
    client.batch_execute(pg_test::APPLICATION_SQL).unwrap();
    client
        .batch_execute(&format!(
            "INSERT INTO loader.loader SELECT n, 'LOADER_' || n FROM generate_series(11, {LOADERS}) AS n;
             CREATE EXTENSION loader_history;"
        ))
        .unwrap();
    client.batch_execute("VACUUM ANALYZE loader.loader").unwrap();

    fill(&mut client, 10_000);
    let few = all(&mut client);
    fill(&mut client, 1_000_000);
    let many = all(&mut client);

    for (name, at_a_million) in &many {
        let at_ten_thousand = few[name];
        println!("{name}: {at_ten_thousand} pages, {at_a_million} at a million");
    }
    for (name, at_a_million) in &many {
        let bound = READS.iter().find(|read| read.0 == name).map_or(400, |read| read.2);
        assert!(*at_a_million <= bound, "{name} reads {at_a_million} pages, more than {bound}");
        // An index is a page or two deeper, and rows lie further apart.
        let flat = few[name] * 2 + 80;
        assert!(
            *at_a_million <= flat,
            "{name} reads {at_a_million} pages, and {} before",
            few[name]
        );
    }
}

#[test]
fn a_loader_that_never_succeeds_costs_no_more() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, error_message)
             SELECT 7, now() - make_interval(days => 3, secs => n), now() - make_interval(days => 3, secs => n), 'FAILED', 'x'
               FROM generate_series(1, 200000) AS n",
        )
        .unwrap();
    client.batch_execute("VACUUM ANALYZE loader.execution_history").unwrap();
    let summary = pages(&mut client, "SELECT * FROM loader.loader_summary WHERE loader_id = 7");
    assert!(summary < 100, "{summary}");
    let counts = pages(&mut client, "SELECT * FROM loader.failed_loader_counts");
    assert!(counts < 100, "{counts}");
}

#[test]
fn outcomes_of_a_loader_are_found_behind_very_many_of_the_other_kind() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT loader, t, t + make_interval(mins => n % 30),
                    CASE WHEN (n <= 1000) = (loader = 7) THEN 'SUCCESS' ELSE 'FAILED' END
               FROM generate_series(1, 100000) AS n, LATERAL (SELECT now() - make_interval(mins => 400000 - n) AS t) AS s,
                    generate_series(7, 8) AS loader",
        )
        .unwrap();
    // Statistics of a time when all succeeded, or none at all, bring no other plan.
    let amid: String = client
        .query_one(
            "SELECT (extract(epoch FROM execution_start - '2000-01-01 00:00+00') * 1000000)::bigint || '_' || id
               FROM loader.execution_history WHERE loader_id = 7 ORDER BY execution_start OFFSET 500 LIMIT 1",
            &[],
        )
        .unwrap()
        .get(0);
    for analyzed in [false, true] {
        if analyzed {
            client.batch_execute("VACUUM ANALYZE loader.execution_history").unwrap();
        }
        for outcome in ["7, status => 'SUCCESS'", "8, status => 'FAILED'"] {
            for more in [
                "",
                ", started_from => now() - interval '1 year'",
                ", started_before => now() - interval '1 day'",
                &format!(", \"cursor\" => '{amid}'"),
                &format!(", \"cursor\" => '{amid}', started_from => now() - interval '1 year'"),
            ] {
                let call = format!("{outcome}{more}");
                pages_of_call(&mut client, &call);
                let read = pages_of_call(&mut client, &call);
                assert!(read <= 300, "get_execution_history({call}) reads {read} pages");
            }
        }
    }
    let page: Value = client
        .query_one("SELECT loader.get_execution_history(7, status => 'SUCCESS')", &[])
        .unwrap()
        .get(0);
    assert_eq!(page["executions"].as_array().unwrap().len(), 50);
}

#[test]
fn what_runs_is_found_whatever_has_ended_since() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, status)
             SELECT n % 10 + 1, now() - interval '80 days', 'RUNNING' FROM generate_series(1, 3000) AS n;
             INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT n % 10 + 1, now() - make_interval(secs => n), now() - make_interval(secs => n), 'SUCCESS'
               FROM generate_series(200000, 1, -1) AS n",
        )
        .unwrap();
    client.batch_execute("VACUUM ANALYZE loader.execution_history").unwrap();
    let view = "SELECT * FROM loader.execution_details WHERE is_running";
    let read = pages(&mut client, view);
    assert!(read <= 120, "the view reads {read} pages");
    for call in [
        "status => 'RUNNING'",
        "status => 'RUNNING', started_before => now() - interval '1 day'",
        "7, status => 'RUNNING'",
    ] {
        pages_of_call(&mut client, call);
        let read = pages_of_call(&mut client, call);
        assert!(read <= 120, "get_execution_history({call}) reads {read} pages");
    }
}

#[test]
fn executions_with_the_same_times_cost_no_more() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    // An import that knows no more than the day, its ids the other way round, between newer and older rows.
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (id, loader_id, execution_start, execution_end, status)
             SELECT 1000000 - n, CASE WHEN n % 2 = 0 THEN 7 ELSE n % 10 + 1 END, day, day,
                    CASE WHEN n / 10 % 2 = 0 THEN 'FAILED' ELSE 'SUCCESS' END
               FROM generate_series(1, 200000) AS n,
                    LATERAL (SELECT date_trunc('day', now()) - make_interval(days => 1 + (n < 1000)::integer) AS day) AS d",
        )
        .unwrap();
    client.batch_execute("VACUUM ANALYZE loader.execution_history").unwrap();
    let amid = "(SELECT max(execution_start) FROM loader.execution_history), 900000";
    for (name, query) in [
        (
            "feed",
            "SELECT * FROM loader.activity_feed ORDER BY event_time DESC, execution_id DESC LIMIT 50"
                .to_owned(),
        ),
        (
            "page",
            format!(
                "SELECT * FROM loader.execution_details WHERE (execution_start, id) < ({amid}) \
                 ORDER BY execution_start DESC, id DESC LIMIT 50"
            ),
        ),
        (
            "page of a loader",
            format!(
                "SELECT * FROM loader.execution_details WHERE loader_id = 7 AND (execution_start, id) < ({amid}) \
                 ORDER BY execution_start DESC, id DESC LIMIT 50"
            ),
        ),
        (
            "page of a loader's failures",
            format!(
                "SELECT * FROM loader.execution_details WHERE loader_id = 7 AND status = 'FAILED' \
                 AND (execution_start, id) < ({amid}) ORDER BY execution_start DESC, id DESC LIMIT 50"
            ),
        ),
        ("summary", "SELECT * FROM loader.loader_summary WHERE loader_id = 7".to_owned()),
    ] {
        let read = pages(&mut client, &query);
        assert!(read <= 120, "{name} reads {read} pages");
    }
}

#[test]
fn what_a_start_and_an_end_write_stays_small() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
                 SELECT n % 10 + 1, now() - make_interval(secs => n), now(), 'SUCCESS' FROM generate_series(1, 20000) AS n;
             SET loader_history.notify = off;
             CREATE PROCEDURE record(times integer) LANGUAGE plpgsql AS $$
             DECLARE ran bigint;
             BEGIN
                 FOR n IN 1..times LOOP
                     ran := loader.record_execution_start(n % 10 + 1); COMMIT;
                     PERFORM loader.record_execution_end(ran, 'SUCCESS', n); COMMIT;
                 END LOOP;
             END $$;",
        )
        .unwrap();
    // Full-page images are a matter of checkpoints: none comes, and the pages have had theirs.
    client.batch_execute("ALTER SYSTEM SET full_page_writes = off").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    pg_test::wait_for("full_page_writes to be off", || {
        cluster.connect().query_one("SHOW full_page_writes", &[]).unwrap().get::<_, &str>(0)
            == "off"
    });
    client.batch_execute("CHECKPOINT").unwrap();
    let position = |client: &mut Client| -> i64 {
        client
            .query_one("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint", &[])
            .unwrap()
            .get(0)
    };
    let before = position(&mut client);
    client.batch_execute("CALL record(2000)").unwrap();
    let bytes = (position(&mut client) - before) / 2000;
    println!("{bytes} bytes of WAL a start and end");
    assert!(bytes <= 1180, "{bytes} bytes of WAL a start and end");
}
