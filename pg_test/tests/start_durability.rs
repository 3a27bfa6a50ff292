//! Promise: a start is never lost. The worker does not wait for the disk, but the call does before it returns: an
//! autonomous start whose call has returned survives a crash of the server.

use std::iter;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use pg_test::{
    Client, Cluster, column, preloaded_cluster_with, seed, status_of, wait_for, wait_for_worker,
};
use postgres::SimpleQueryMessage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A commit that is not waited for is on disk after ten seconds: a crash before loses it.
const LAZY: &str = "wal_writer_delay = '10s'\n";

/// Restarts a crashed server, and waits for the worker.
fn restart(cluster: &mut Cluster) -> Client {
    cluster.start_server();
    let mut client = cluster.connect();
    wait_for_worker(&mut client);
    client
}

/// Starts an execution, alone in its transaction, in one of three ways.
fn start_alone(client: &mut Client, way: usize) -> Result<i64, postgres::Error> {
    match way % 3 {
        0 => Ok(client.query_one("SELECT loader.record_execution_start($1)", &[&1_i64])?.get(0)),
        1 => {
            let query = "SELECT * FROM loader.record_execution_start($1)";
            Ok(client.query_one(query, &[&2_i64])?.get(0))
        }
        _ => {
            let messages = client.simple_query("SELECT loader.record_execution_start(3)")?;
            let id = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            Ok(id.expect("a row").parse().expect("an id"))
        }
    }
}

#[test]
fn starts_that_have_returned_survive_a_crash() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut cluster = preloaded_cluster_with(LAZY);
    for round in 0..6 {
        let settings = ["", "SET synchronous_commit = off", "SET synchronous_commit = local"];
        let (sender, returned) = channel();
        let sessions: Vec<_> = (0..6)
            .map(|number| {
                let (mut client, sender) = (cluster.connect(), sender.clone());
                client.batch_execute(settings[(number + round) % settings.len()]).unwrap();
                thread::spawn(move || {
                    // Until the server is gone.
                    while let Ok(id) = start_alone(&mut client, number) {
                        sender.send(id).unwrap();
                    }
                })
            })
            .collect();
        drop(sender);
        let first = returned.recv().expect("a start");
        thread::sleep(Duration::from_millis(random.random_range(50..600)));
        cluster.crash_server();
        let ids: Vec<i64> = iter::once(first).chain(returned).collect();
        sessions.into_iter().for_each(|session| session.join().unwrap());
        let mut client = restart(&mut cluster);
        println!("{} starts", ids.len());
        let lost: Vec<_> =
            ids.into_iter().filter(|&id| status_of(&mut client, id).is_none()).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
}

/// Statements that start an execution of loader 5 and go on.
const STATEMENTS: [&str; 3] = [
    "DO $$ BEGIN PERFORM loader.record_execution_start(5); PERFORM pg_sleep(600); END $$",
    "SELECT public.load()",
    "BEGIN; SELECT loader.record_execution_start(5)",
];

/// Waits for a RUNNING execution of loader 5, and for its session to go on: others may see it before it is on disk.
/// Crashes the server, and asserts that the execution becomes FAILED.
fn assert_survives(cluster: &mut Cluster, what: &str) {
    let query = "SELECT id FROM loader.execution_history
                  WHERE loader_id = 5 AND status = 'RUNNING'
                    AND EXISTS (SELECT FROM pg_stat_activity
                                 WHERE wait_event = 'PgSleep' OR state = 'idle in transaction')";
    let mut observer = cluster.connect();
    let mut running = Vec::new();
    wait_for("the start", || {
        running = column::<i64>(&mut observer, query);
        !running.is_empty()
    });
    cluster.crash_server();
    let mut client = restart(cluster);
    wait_for("the end of what was open", || {
        let status = status_of(&mut client, running[0]);
        assert!(status.is_some(), "{what}: its start is lost");
        status.as_deref() == Some("FAILED")
    });
}

#[test]
fn starts_whose_transaction_goes_on_survive_a_crash() {
    let mut cluster = preloaded_cluster_with(LAZY);
    let function = "CREATE FUNCTION public.load() RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN PERFORM loader.record_execution_start(5); PERFORM pg_sleep(600); END $$";
    cluster.connect().batch_execute(function).unwrap();
    for statement in STATEMENTS {
        let mut client = cluster.connect();
        // The session of an open block stays as long as the server.
        let session = thread::spawn(move || {
            let _ = client.batch_execute(statement);
            while client.is_valid(Duration::from_secs(1)).is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        assert_survives(&mut cluster, statement);
        session.join().unwrap();
    }
}
