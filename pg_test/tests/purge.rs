//! Promise: purge_execution_history deletes what is old and nothing that a reader still needs.

use std::thread;

use pg_test::{Client, cluster_with_extension, column};

fn purge(client: &mut Client, arguments: &str) -> i64 {
    client
        .query_one(&format!("SELECT loader_history.purge_execution_history({arguments})"), &[])
        .unwrap()
        .get(0)
}

/// "id status" of what is left.
fn left(client: &mut Client) -> Vec<String> {
    column(client, "SELECT id || ' ' || status FROM loader.execution_history ORDER BY id")
}

/// Executions given as "loader, days since start, days since end or NULL, status".
fn insert(client: &mut Client, executions: &[(i64, i32, Option<i32>, &str)]) {
    for (loader, started, ended, status) in executions {
        client
            .execute(
                "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status) \
                 VALUES ($1, now() - make_interval(days => $2), now() - make_interval(days => $3), $4)",
                &[loader, started, ended, status],
            )
            .unwrap();
    }
}

#[test]
fn age_is_counted_from_the_end() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    insert(
        &mut client,
        &[
            (1, 100, Some(99), "SUCCESS"),
            (1, 100, Some(5), "SUCCESS"),
            (1, 3, Some(2), "SUCCESS"),
            (1, 1, Some(1), "FAILED"),
        ],
    );
    assert_eq!(purge(&mut client, "'100 days'"), 0);
    assert_eq!(purge(&mut client, "'50 days'"), 1);
    assert_eq!(left(&mut client), ["2 SUCCESS", "3 SUCCESS", "4 FAILED"]);
}

#[test]
fn what_runs_and_a_loaders_newest_are_kept_however_old() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    insert(
        &mut client,
        &[
            (1, 100, None, "RUNNING"),
            (1, 90, Some(89), "FAILED"),
            (1, 88, Some(87), "FAILED"),
            (1, 86, Some(85), "SUCCESS"),
            (1, 84, Some(83), "SUCCESS"),
            (2, 99, Some(98), "FAILED"),
            // Started before the newest success, and ended after it.
            (3, 90, Some(50), "SUCCESS"),
            (3, 80, Some(70), "SUCCESS"),
            (4, 90, Some(60), "SUCCESS"),
            (4, 80, Some(70), "FAILED"),
        ],
    );
    let before: Vec<String> = summary(&mut client);
    assert_eq!(purge(&mut client, "'1 day'"), 3);
    assert_eq!(
        left(&mut client),
        ["1 RUNNING", "3 FAILED", "5 SUCCESS", "6 FAILED", "8 SUCCESS", "9 SUCCESS", "10 FAILED"]
    );
    assert_eq!(summary(&mut client), before);
    assert_eq!(purge(&mut client, "'0'"), 0);
}

/// All of the summary that a purge must not change.
fn summary(client: &mut Client) -> Vec<String> {
    client
        .query(
            "SELECT (loader_id, last_execution_id, last_status, last_success_at, last_failure_at, is_failed, \
                     running_executions)::text FROM loader.loader_summary ORDER BY loader_id",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[test]
fn no_more_than_max_rows_and_the_oldest_first() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT n % 10 + 1, t, t, CASE WHEN n % 3 = 0 THEN 'FAILED' ELSE 'SUCCESS' END
               FROM (SELECT n, now() - make_interval(hours => n) AS t FROM generate_series(1, 2000) AS n) AS s",
        )
        .unwrap();
    assert_eq!(purge(&mut client, "'0', 0"), 0);
    assert_eq!(purge(&mut client, "'0', 7"), 7);
    let oldest: i64 =
        client.query_one("SELECT max(id) FROM loader.execution_history", &[]).unwrap().get(0);
    assert_eq!(oldest, 1993);
    assert_eq!(purge(&mut client, "'0'"), 1993 - 20);
    assert_eq!(left(&mut client).len(), 20, "each loader's newest success and newest failure");
}

#[test]
fn strange_ages_are_ages() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    insert(&mut client, &[(1, 9, Some(9), "SUCCESS"), (1, 8, Some(8), "SUCCESS")]);
    for age in ["'178000000 years'", "'7000 years'", "'2147483647 days'", "'300 years'"] {
        assert_eq!(purge(&mut client, age), 0, "{age}");
    }
    assert_eq!(purge(&mut client, "'1 month -29 days', 9223372036854775807"), 1);
}

#[test]
fn purges_and_recording_sessions_do_not_wait_for_each_other() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT n % 10 + 1, now() - make_interval(hours => n), now() - make_interval(hours => n), 'SUCCESS'
               FROM generate_series(1, 3000) AS n",
        )
        .unwrap();
    // A row that somebody holds is left for another time.
    let mut holder = cluster.connect();
    let mut holding = holder.transaction().unwrap();
    holding
        .batch_execute("SELECT FROM loader.execution_history WHERE id = 3000 FOR UPDATE")
        .unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut purger = cluster.connect();
                purger.batch_execute("SET lock_timeout = '10s'").unwrap();
                while purge(&mut purger, "'1 hour', 100") > 0 {}
            });
        }
        for loader in 1..=3_i64 {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut recorder = cluster.connect();
                for _ in 0..50 {
                    recorder
                        .query("SELECT loader.record_execution_end(loader.record_execution_start($1), 'SUCCESS')", &[&loader])
                        .unwrap();
                }
            });
        }
    });
    holding.rollback().unwrap();
    let old: i64 = client
        .query_one("SELECT count(*) FROM loader.execution_history WHERE id BETWEEN 1 AND 2999", &[])
        .unwrap()
        .get(0);
    assert!((7..=10).contains(&old), "each loader's newest execution is there: {old}");
    let held: i64 = client
        .query_one("SELECT count(*) FROM loader.execution_history WHERE id = 3000", &[])
        .unwrap()
        .get(0);
    assert_eq!(held, 1);
    let loaders: i64 = client
        .query_one(
            "SELECT count(*) FROM loader.loader_summary WHERE last_success_at IS NOT NULL",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(loaders, 10);
}

#[test]
fn a_table_that_inherits_from_the_history_keeps_its_rows() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    insert(&mut client, &[(1, 50, Some(49), "SUCCESS"), (1, 3, Some(2), "SUCCESS")]);
    // Its rows are at the same places of their table.
    client
        .batch_execute(
            "CREATE TABLE archive () INHERITS (loader.execution_history);
             INSERT INTO archive TABLE ONLY loader.execution_history",
        )
        .unwrap();
    assert_eq!(purge(&mut client, "'10 days'"), 1);
    let kept: Vec<i64> = column(&mut client, "SELECT count(*) FROM archive");
    assert_eq!(kept, [2]);
}
