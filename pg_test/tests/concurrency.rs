//! Promise: however many sessions race, one outcome is recorded; starts and ends of different
//! executions never wait for each other; and all of it behaves as plain SQL in every isolation level.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use pg_test::{Client, Cluster, HasError, cluster_with_extension, sqlstate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];

fn start(client: &mut Client) -> i64 {
    client.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0)
}

/// Outcomes by SQLSTATE of `sessions` sessions that end execution `id` in transactions of `level`.
fn race(
    cluster: &Cluster,
    id: i64,
    level: &str,
    sessions: u64,
    seed: u64,
) -> BTreeMap<String, u32> {
    let barrier = Barrier::new(usize::try_from(sessions).unwrap());
    let outcomes: Vec<String> = thread::scope(|scope| {
        let racers: Vec<_> = (0..sessions)
            .map(|number| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
                    let mut client = cluster.connect();
                    client
                        .batch_execute(&format!(
                            "BEGIN ISOLATION LEVEL {level}; SELECT 1 FROM loader.loader"
                        ))
                        .unwrap();
                    barrier.wait();
                    let pause = Duration::from_micros(random.random_range(0..3_000));
                    thread::park_timeout(pause);
                    let outcome = if random.random() { "SUCCESS" } else { "FAILED" };
                    let ended = client.query(
                        "SELECT loader.record_execution_end($1, $2, $3)",
                        &[&id, &outcome, &i64::try_from(number).unwrap()],
                    );
                    thread::park_timeout(pause);
                    let committed = client.batch_execute("COMMIT");
                    let ended = sqlstate(&ended);
                    if ended == "00000" { sqlstate(&committed) } else { ended }
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        *counts.entry(outcome).or_insert(0) += 1;
    }
    counts
}

#[test]
fn one_of_many_sessions_ends_an_execution() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let seed = pg_test::seed();
    for level in LEVELS {
        for round in 0..8 {
            let id = start(&mut client);
            let counts = race(&cluster, id, level, 12, seed.wrapping_add(round * 100));
            assert_eq!(counts.get("00000"), Some(&1), "{level}: {counts:?}");
            assert!(
                counts.keys().all(|code| ["00000", "55000"].contains(&code.as_str())),
                "{level}: {counts:?}"
            );
            let ended: i64 = client
                .query_one(
                    "SELECT count(*) FROM loader.execution_history WHERE id = $1 AND status <> 'RUNNING'",
                    &[&id],
                )
                .unwrap()
                .get(0);
            assert_eq!(ended, 1);
        }
    }
}

#[test]
fn a_waiting_session_may_end_what_the_first_one_rolled_back() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let id = start(&mut client);
    let mut first = client.transaction().unwrap();
    first.query("SELECT loader.record_execution_end($1, 'SUCCESS')", &[&id]).unwrap();
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            let mut second = cluster.connect();
            second.query("SELECT loader.record_execution_end($1, 'FAILED')", &[&id]).map(|_| ())
        });
        pg_test::wait_for("the second session to wait for the first", || {
            let waiting: i64 = cluster
                .connect()
                .query_one(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
                    &[],
                )
                .unwrap()
                .get(0);
            waiting == 1
        });
        first.rollback().unwrap();
        second.join().unwrap().unwrap();
    });
    let status: String =
        client.query_one("SELECT status FROM loader.execution_history", &[]).unwrap().get(0);
    assert_eq!(status, "FAILED");
}

#[test]
fn starts_and_ends_never_wait_for_each_other() {
    let cluster = cluster_with_extension();
    // Every session keeps its transaction open over all the others' starts and ends, of the same
    // loaders, new ones included: a wait for another session would be a wait for ever.
    let mut sessions: Vec<Client> = (0..20).map(|_| cluster.connect()).collect();
    for session in &mut sessions {
        session.batch_execute("SET lock_timeout = '10ms'; BEGIN").unwrap();
    }
    for _ in 0..3 {
        let ids: Vec<(usize, i64)> = sessions
            .iter_mut()
            .enumerate()
            .flat_map(|(number, session)| {
                (1..=10_i64)
                    .map(|loader| {
                        let id = session
                            .query_one("SELECT loader.record_execution_start($1)", &[&loader])
                            .unwrap()
                            .get(0);
                        (number, id)
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        for (number, id) in ids {
            sessions[number]
                .query("SELECT loader.record_execution_end($1, 'SUCCESS')", &[&id])
                .unwrap();
        }
    }
    for session in &mut sessions {
        session.batch_execute("COMMIT").unwrap();
    }
    let mut client = cluster.connect();
    let counts = client
        .query_one(
            "SELECT (SELECT count(*) FROM loader.execution_history WHERE status = 'SUCCESS'), \
                    (SELECT count(*) FROM loader.loader_summary)",
            &[],
        )
        .unwrap();
    assert_eq!(counts.get::<_, i64>(0), 600);
    assert_eq!(
        counts.get::<_, i64>(1),
        10,
        "a loader is listed once, however many sessions were first"
    );
}

#[test]
fn savepoints_and_exception_blocks_undo_what_they_undo() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    for level in LEVELS {
        let id = start(&mut client);
        client
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL {level};
                 SAVEPOINT a;
                 SELECT loader.record_execution_end({id}, 'FAILED');
                 ROLLBACK TO a;
                 SELECT loader.record_execution_end({id}, 'SUCCESS', 3);
                 COMMIT;"
            ))
            .unwrap();
        client
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL {level};
                 DO $$
                 DECLARE ran bigint;
                 BEGIN
                     BEGIN
                         ran := loader.record_execution_start(2);
                         PERFORM loader.record_execution_end({id}, 'FAILED');
                     EXCEPTION WHEN object_not_in_prerequisite_state THEN
                         ran := loader.record_execution_start(3);
                     END;
                     PERFORM loader.record_execution_end(ran, 'SUCCESS');
                 END
                 $$;
                 COMMIT;"
            ))
            .unwrap();
    }
    let recorded: String = client
        .query_one(
            "SELECT string_agg(loader_id || status, ',' ORDER BY id) FROM loader.execution_history",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(recorded, ["1SUCCESS,3SUCCESS"; 3].join(","));
    let loaders: Vec<i64> =
        pg_test::column(&mut client, "SELECT loader_id FROM loader.loader_summary ORDER BY 1");
    assert_eq!(loaders, [1, 3], "a start that was rolled back leaves no loader behind");
}

#[test]
fn a_rolled_back_start_does_not_hide_a_later_one() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "BEGIN;
             SAVEPOINT a;
             SELECT loader.record_execution_start(1);
             ROLLBACK TO a;
             SELECT loader.record_execution_start(1);
             SAVEPOINT b;
             SELECT loader.record_execution_start(2);
             RELEASE b;
             SELECT loader.record_execution_start(2);
             COMMIT;",
        )
        .unwrap();
    let loaders: i64 =
        client.query_one("SELECT count(*) FROM loader.loader_summary", &[]).unwrap().get(0);
    assert_eq!(loaders, 2);
}

#[test]
fn an_old_snapshot_does_not_hide_how_an_execution_ended() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let mut other = cluster.connect();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let id = start(&mut client);
        let mut old = other.build_transaction().start().unwrap();
        old.batch_execute(&format!(
            "SET TRANSACTION ISOLATION LEVEL {level}; SELECT 1 FROM loader.loader"
        ))
        .unwrap();
        client.query("SELECT loader.record_execution_end($1, 'SUCCESS')", &[&id]).unwrap();
        old.query("SELECT loader.record_execution_end($1, 'FAILED')", &[&id]).error("55000");
        drop(old);
        // Nor that it is there at all.
        let mut old = other.build_transaction().start().unwrap();
        old.batch_execute(&format!(
            "SET TRANSACTION ISOLATION LEVEL {level}; SELECT 1 FROM loader.loader"
        ))
        .unwrap();
        let id = start(&mut client);
        old.query("SELECT loader.record_execution_end($1, 'SUCCESS')", &[&id]).unwrap();
        old.commit().unwrap();
    }
}

#[test]
fn sessions_that_grant_at_the_same_time_wait_for_each_other() {
    let cluster = cluster_with_extension();
    cluster.connect().batch_execute("CREATE ROLE backend").unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = cluster.connect();
                for _ in 0..20 {
                    client
                        .batch_execute("SELECT loader_history.grant_recorder('backend')")
                        .unwrap();
                    client.batch_execute("SELECT loader_history.grant_reader('backend')").unwrap();
                }
            });
        }
    });
}
