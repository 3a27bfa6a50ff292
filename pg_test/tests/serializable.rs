//! Promise: recording adds no serialization failure between SERIALIZABLE loads.
//!
//! What loads get without recording is measured first: a failure of theirs would prove nothing.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use pg_test::{Client, Cluster, preloaded_cluster_with, sqlstate};

const SESSIONS: usize = 32;
const LOADS: usize = 8;
/// Of the loads of a session, those that all sessions do at the same time: each has begun before any
/// has written, and each has written before any commits.
const TOGETHER: usize = 5;

/// The worker must not be late on a slow machine: only the start that it is kept from falls back.
const SETTINGS: &str = "loader_history.worker_timeout = '60s'";

/// Where the executions of a load start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recording {
    /// There are none.
    Nowhere,
    /// In the load: autonomous.
    Within,
    /// In the load: transactional, by the setting.
    Transactional,
    /// In the load: transactional with the WARNING, since the worker can't write.
    Fallback,
    /// In another connection, whose transaction has ended before the load begins.
    Elsewhere,
}

/// How often each SQLSTATE came out of the loads of all sessions.
fn loads(cluster: &Cluster, recording: Recording) -> BTreeMap<String, usize> {
    let barrier = Barrier::new(SESSIONS);
    let outcomes: Vec<String> = thread::scope(|scope| {
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|session| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut client = cluster.connect();
                    let mut other = cluster.connect();
                    if recording == Recording::Transactional {
                        client.batch_execute("SET loader_history.autonomous_start = off").unwrap();
                    }
                    (0..LOADS)
                        .map(|number| {
                            let mut started = Vec::new();
                            if recording == Recording::Elsewhere {
                                started = (0..executions(number))
                                    .map(|_| start(&mut other, session).expect("a start"))
                                    .collect();
                            }
                            let together = (number < TOGETHER).then_some(barrier);
                            load(&mut client, session, number, recording, &started, together)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        sessions.into_iter().flat_map(|session| session.join().unwrap()).collect()
    });
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        *counts.entry(outcome).or_insert(0) += 1;
    }
    counts
}

/// How many executions a session's load has.
const fn executions(number: usize) -> usize {
    if number % 3 == 2 { 3 } else { 1 }
}

fn start(client: &mut Client, session: usize) -> Result<i64, postgres::Error> {
    let loader = i64::try_from(session % 10 + 1).unwrap();
    client.query_one("SELECT loader.record_execution_start($1)", &[&loader]).map(|row| row.get(0))
}

/// One load; its SQLSTATE. Whatever happens, it meets the others at `together`.
fn load(
    client: &mut Client,
    session: usize,
    number: usize,
    recording: Recording,
    started: &[i64],
    together: Option<&Barrier>,
) -> String {
    let meet = || {
        together.map(Barrier::wait);
    };
    let begun = client.batch_execute(
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM source WHERE part < 3",
    );
    meet();
    let worked = begun.and_then(|()| {
        for execution in 0..executions(number) {
            let in_savepoint = number % 3 == 1;
            if in_savepoint {
                client.batch_execute("SAVEPOINT part")?;
            }
            let id = match recording {
                Recording::Nowhere => None,
                Recording::Within | Recording::Transactional | Recording::Fallback => {
                    Some(start(client, session)?)
                }
                Recording::Elsewhere => started.get(execution).copied(),
            };
            let row = i64::try_from((session * LOADS + number) * 10 + execution).unwrap();
            client.execute("INSERT INTO loaded VALUES ($1)", &[&row])?;
            if let Some(id) = id {
                client.query("SELECT loader.record_execution_end($1, 'SUCCESS', 1)", &[&id])?;
            }
            if in_savepoint {
                client.batch_execute("RELEASE part")?;
            }
        }
        Ok(())
    });
    meet();
    let ended = worked.and_then(|()| client.batch_execute("COMMIT"));
    if ended.is_err() {
        client.batch_execute("ROLLBACK").expect("a rollback");
    }
    sqlstate(&ended)
}

fn no_serialization_failure(history: &str) {
    let cluster = preloaded_cluster_with(SETTINGS);
    let mut client = cluster.connect();
    client
        .batch_execute(&format!(
            "CREATE TABLE source (part integer);
             INSERT INTO source SELECT n FROM generate_series(1, 10) AS n;
             CREATE TABLE loaded (row_id bigint PRIMARY KEY);
             {history}"
        ))
        .unwrap();
    let mut count = |query: &str| client.query_one(query, &[]).unwrap().get::<_, i64>(0);
    let before = count("SELECT count(*) FROM loader.execution_history");
    let all_succeed = BTreeMap::from([("00000".to_owned(), SESSIONS * LOADS)]);
    for recording in [Recording::Nowhere, Recording::Within, Recording::Elsewhere] {
        assert_eq!(loads(&cluster, recording), all_succeed, "starts {recording:?}");
        count("WITH gone AS (DELETE FROM loaded RETURNING 1) SELECT count(*) FROM gone");
    }
    assert_no_warnings(&cluster);
    for recording in [Recording::Transactional, Recording::Fallback] {
        let mut locker = cluster.connect();
        if recording == Recording::Fallback {
            locker
                .batch_execute("BEGIN; LOCK loader_history.watched_transaction IN SHARE MODE")
                .unwrap();
        }
        assert_eq!(loads(&cluster, recording), all_succeed, "starts {recording:?}");
        count("WITH gone AS (DELETE FROM loaded RETURNING 1) SELECT count(*) FROM gone");
    }
    let executions = 4 * SESSIONS * (0..LOADS).map(executions).sum::<usize>();
    assert_eq!(
        count("SELECT count(*) FROM loader.execution_history WHERE status = 'SUCCESS'") - before,
        i64::try_from(executions).unwrap()
    );
}

fn assert_no_warnings(cluster: &Cluster) {
    let warnings: Vec<_> =
        cluster.log().lines().filter(|line| line.contains("WARNING")).map(str::to_owned).collect();
    assert!(warnings.is_empty(), "starts that the worker did not record: {warnings:#?}");
}

#[test]
fn loads_do_not_fail_each_other_in_a_history_that_was_empty() {
    no_serialization_failure("");
}

#[test]
fn loads_do_not_fail_each_other_in_a_large_history() {
    no_serialization_failure(
        "INSERT INTO loader.execution_history
                (loader_id, execution_start, execution_end, status, duration_seconds)
         SELECT 1 + n % 10, now() - n * interval '1 minute', now() - n * interval '1 minute',
                'SUCCESS', 0
         FROM generate_series(1, 200000) AS n;
         ANALYZE;",
    );
}
