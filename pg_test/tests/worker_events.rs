//! Promise 7: preloaded, events cost the loader nothing. The worker emits them just after the commit,
//! once each and in the order of an execution's changes; what is rolled back emits none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;
use nix::sys::signal::Signal::SIGCONT;
use pg_test::{
    Client, Cluster, HasError, Listener, Session, Warnings, column, freeze_worker,
    preloaded_cluster, preloaded_cluster_with, seed, send_signal, served, status_of,
    version::has_small_notify_queues, wait_for, wait_for_worker,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// A standby that never comes: commits of sessions with `synchronous_commit = on` wait for it.
const DEAD_STANDBY: &str = "
synchronous_standby_names = 'nobody'
synchronous_commit = local
";

fn start(client: &mut Client) -> i64 {
    client.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0)
}

fn end(client: &mut Client, id: i64) {
    client.batch_execute(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS')")).unwrap();
}

/// Runs `statement`, whose commit waits for a standby that never comes, and returns once it waits. The
/// statement is over when the returned process is canceled.
fn hang_at_commit(cluster: &Cluster, statement: &str) -> (i32, thread::JoinHandle<()>) {
    let mut client = cluster.connect();
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let statement = format!("SET synchronous_commit = on; {statement}");
    let session = thread::spawn(move || client.batch_execute(&statement).unwrap());
    let mut observer = cluster.connect();
    wait_for("a commit that waits for a standby", || {
        !column::<i32>(
            &mut observer,
            &format!(
                "SELECT pid FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'"
            ),
        )
        .is_empty()
    });
    (pid, session)
}

fn cancel(client: &mut Client, (pid, session): (i32, thread::JoinHandle<()>)) {
    client.batch_execute(&format!("SELECT pg_cancel_backend({pid})")).unwrap();
    session.join().unwrap();
}

#[test]
fn a_commit_with_events_does_not_wait_for_others_that_notify() {
    let cluster = preloaded_cluster_with(DEAD_STANDBY);
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    // PostgreSQL holds the lock on NOTIFY until the commit is over.
    let notifying = hang_at_commit(&cluster, "CREATE TABLE written (); NOTIFY something_else");
    let mut ids = Vec::new();
    for autonomous in ["on", "off"] {
        client
            .batch_execute(&format!(
                "SET loader_history.autonomous_start = {autonomous}; SET statement_timeout = '20s'"
            ))
            .unwrap();
        let id = start(&mut client);
        end(&mut client, id);
        ids.push(id);
    }
    cancel(&mut client, notifying);
    listener.receive_all(&mut client);
    let each = ["STARTED", "SUCCESS"].map(str::to_owned).to_vec();
    assert_eq!(
        listener.by_execution(),
        ids.into_iter().map(|id| (id, each.clone())).collect::<BTreeMap<_, _>>()
    );
}

#[test]
fn a_commit_that_waits_for_a_standby_keeps_nobody_elses_events_back() {
    let cluster = preloaded_cluster_with(DEAD_STANDBY);
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    let slow = start(&mut client);
    let ending =
        hang_at_commit(&cluster, &format!("SELECT loader.record_execution_end({slow}, 'SUCCESS')"));
    let quick = start(&mut client);
    end(&mut client, quick);
    listener.receive_all(&mut client);
    let kinds = listener.by_execution();
    assert_eq!(kinds[&quick], ["STARTED", "SUCCESS"]);
    assert_eq!(kinds[&slow], ["STARTED"], "not before it is seen");
    assert_eq!(status_of(&mut client, slow).as_deref(), Some("RUNNING"));
    cancel(&mut client, ending);
    listener.receive_all(&mut client);
    assert_eq!(listener.by_execution()[&slow], ["STARTED", "SUCCESS"]);
}

/// Changes executions at random, with savepoints and rollbacks, some of others' sessions.
fn load(client: &mut Client, random: &mut StdRng, rounds: u32) {
    for _ in 0..rounds {
        let autonomous = *["on", "off"].choose(random).unwrap();
        client
            .batch_execute(&format!("SET loader_history.autonomous_start = {autonomous}"))
            .unwrap();
        let in_transaction = random.random_bool(0.7);
        if in_transaction {
            client.batch_execute("BEGIN").unwrap();
        }
        let mut ids = Vec::new();
        for _ in 0..random.random_range(1..4) {
            let savepoint = in_transaction && random.random_bool(0.4);
            if savepoint {
                client.batch_execute("SAVEPOINT s").unwrap();
            }
            let id = start(client);
            ids.push(id);
            if random.random_bool(0.7) {
                // Another session may have ended it.
                client
                    .batch_execute(&format!(
                        "DO $$ BEGIN
                             PERFORM loader.record_execution_end({id}, 'SUCCESS');
                         EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL;
                         END $$"
                    ))
                    .unwrap();
            }
            if savepoint {
                let how = if random.random_bool(0.5) { "ROLLBACK TO" } else { "RELEASE" };
                client.batch_execute(&format!("{how} SAVEPOINT s")).unwrap();
            }
        }
        if in_transaction {
            let commits = random.random_bool(0.6);
            client.batch_execute(if commits { "COMMIT" } else { "ROLLBACK" }).unwrap();
            if !commits && random.random_bool(0.7) {
                // Before the server finds them failed, or after.
                thread::sleep(Duration::from_millis(random.random_range(0..40)));
                for id in ids {
                    client
                        .batch_execute(&format!(
                            "DO $$ BEGIN
                                 PERFORM loader.record_execution_end({id}, 'SUCCESS');
                             EXCEPTION WHEN object_not_in_prerequisite_state OR no_data_found THEN NULL;
                             END $$"
                        ))
                        .unwrap();
                }
            }
        }
        // Whatever runs and is committed, whoever started it. Others do the same at the same time.
        if random.random_bool(0.5) {
            client
                .batch_execute(
                    "DO $$ DECLARE id bigint; BEGIN
                         FOR id IN SELECT h.id FROM loader.execution_history AS h
                                    WHERE status = 'RUNNING' ORDER BY random() LIMIT 1 LOOP
                             PERFORM loader.record_execution_end(id, 'FAILED', 1, 'found running');
                         END LOOP;
                     EXCEPTION WHEN object_not_in_prerequisite_state OR no_data_found THEN NULL;
                     END $$",
                )
                .unwrap();
        }
    }
}

/// Has every committed change of the history noted in the transaction that makes it, whoever it is.
const CHANGES: &str = "
    CREATE TABLE change (number bigserial, execution_id bigint, loader_id bigint, kind text);
    CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.change (execution_id, loader_id, kind)
        VALUES (NEW.id, NEW.loader_id, CASE NEW.status WHEN 'RUNNING' THEN 'STARTED' ELSE NEW.status END);
        RETURN NULL;
    END
    $$;
    CREATE TRIGGER note_row AFTER INSERT ON loader.execution_history
        FOR EACH ROW EXECUTE FUNCTION note_change();
    CREATE TRIGGER note_outcome AFTER UPDATE ON loader.execution_history
        FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION note_change();
    -- The worker's too.
    ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER note_row;
    ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER note_outcome;
";

/// The changes that [`CHANGES`] has noted, of each execution in their order.
fn changes(client: &mut Client) -> BTreeMap<i64, Vec<String>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    let query = "SELECT execution_id, kind FROM change WHERE loader_id <> 10 ORDER BY number";
    for row in client.query(query, &[]).unwrap() {
        found.entry(row.get(0)).or_default().push(row.get(1));
    }
    found
}

/// Waits until the worker has settled what became of every transaction.
fn wait_until_settled(client: &mut Client) {
    wait_for("the transactions to be settled", || {
        column::<i64>(client, "SELECT watched_running FROM loader.recorder_status()") == [0]
    });
}

/// Two sessions listen while several load; both hear every change once. `disturb` runs meanwhile.
fn hear_everything(
    cluster: &Cluster,
    in_order: bool,
    rounds: u32,
    mut disturb: impl FnMut(&mut Client, &mut StdRng) + Send,
) {
    let seed = seed();
    cluster.connect().batch_execute(CHANGES).unwrap();
    let mut listeners = [Listener::new(cluster), Listener::new(cluster)];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let loaders: Vec<_> = (0..6)
            .map(|number| {
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
                    load(&mut cluster.connect(), &mut random, rounds);
                })
            })
            .collect();
        scope.spawn(|| {
            let mut random = StdRng::seed_from_u64(seed);
            let mut client = cluster.connect();
            while !done.load(Ordering::Relaxed) {
                disturb(&mut client, &mut random);
            }
        });
        let loaded: Vec<_> = loaders.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        loaded.into_iter().for_each(Result::unwrap);
    });
    let mut client = cluster.connect();
    wait_for_worker(&mut client);
    wait_until_settled(&mut client);
    // Each ends with an execution of its own, which the other hears too.
    for listener in &mut listeners {
        listener.receive_all(&mut client);
    }
    let mut expected = changes(&mut client);
    assert!(expected.len() > 20);
    assert!(
        expected.values().any(|kinds| kinds.len() > 2),
        "failures that the server found, replaced"
    );
    for listener in &mut listeners {
        listener.events.retain(|event| event["loader_id"] != 10);
        let mut heard = listener.by_execution();
        if !in_order {
            heard.values_mut().chain(expected.values_mut()).for_each(|kinds| kinds.sort());
        }
        for (id, kinds) in &expected {
            assert_eq!(heard.get(id), Some(kinds), "execution {id}, seed {seed}");
        }
        assert_eq!(heard.len(), expected.len(), "no more than was committed, seed {seed}");
    }
}

#[test]
fn everybody_hears_every_committed_change_once_and_in_order() {
    hear_everything(&preloaded_cluster(), true, 60, |_, _| thread::sleep(Duration::from_millis(5)));
}

#[test]
fn a_full_queue_and_a_dying_worker_lose_and_double_nothing() {
    let cluster = preloaded_cluster_with("loader_history.queue_size = 16\n");
    hear_everything(&cluster, false, 40, |client, random| {
        thread::sleep(Duration::from_millis(random.random_range(0..60)));
        client
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE backend_type = 'loader_history worker'",
            )
            .unwrap();
    });
}

#[test]
fn with_a_full_queue_the_transaction_notifies_by_itself() {
    let cluster = preloaded_cluster_with("loader_history.queue_size = 16\n");
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    client
        .batch_execute("SET loader_history.autonomous_start = off; SET statement_timeout = '60s'")
        .unwrap();
    let worker = freeze_worker(&mut cluster.connect());
    let ids: Vec<_> = (0..100).map(|_| start(&mut client)).collect();
    let last = ids[ids.len() - 1];
    listener.receive_until("an event without the worker", |event| event["execution_id"] == last);
    assert!(listener.events.len() < ids.len(), "some wait for the worker");
    send_signal(worker, SIGCONT);
    while listener.by_execution().len() < ids.len() {
        listener.receive_until("the events that waited", |_| true);
    }
    let each: BTreeMap<_, _> = ids.iter().map(|&id| (id, vec!["STARTED".to_owned()])).collect();
    assert_eq!(listener.by_execution(), each);
    // And there is room again: nobody notifies where the worker does.
    assert_eq!(freeze_worker(&mut cluster.connect()), worker);
    let id = start(&mut client);
    client.batch_execute("NOTIFY loader_execution, '{\"sentinel\": true}'").unwrap();
    listener.receive_until("a sentinel", |event| event["sentinel"] == true);
    assert!(!listener.by_execution().contains_key(&id));
    send_signal(worker, SIGCONT);
    listener.receive_until("the event", |event| event["execution_id"] == id);
}

#[test]
fn a_commit_that_fails_emits_nothing_and_keeps_no_room() {
    let cluster = preloaded_cluster_with("loader_history.queue_size = 16\n");
    let mut sessions = [cluster.connect(), cluster.connect()];
    let mut listener = Listener::new(&cluster);
    sessions[0]
        .batch_execute("CREATE TABLE read (session int); INSERT INTO read VALUES (0)")
        .unwrap();
    let mut committed = Vec::new();
    for _ in 0..60 {
        let mut ids = Vec::new();
        // Each reads what the other writes, so one of the two must fail; PostgreSQL finds out at its
        // commit.
        for session in &mut sessions {
            session
                .batch_execute(
                    "SET loader_history.autonomous_start = off; BEGIN ISOLATION LEVEL SERIALIZABLE;
                     SELECT count(*) FROM read",
                )
                .unwrap();
        }
        for session in &mut sessions {
            session.batch_execute("INSERT INTO read VALUES (1)").unwrap();
            ids.push(start(session));
        }
        sessions[0].batch_execute("COMMIT").unwrap();
        sessions[1].batch_execute("COMMIT").error("40001");
        committed.push(ids[0]);
    }
    // There is room for events as before.
    let worker = freeze_worker(&mut cluster.connect());
    sessions[0].batch_execute("SET statement_timeout = '60s'").unwrap();
    let id = start(&mut sessions[0]);
    sessions[0].batch_execute("NOTIFY loader_execution, '{\"sentinel\": true}'").unwrap();
    listener.receive_until("a sentinel", |event| event["sentinel"] == true);
    assert!(!listener.by_execution().contains_key(&id));
    send_signal(worker, SIGCONT);
    committed.push(id);
    listener.receive_until("the event", |event| event["execution_id"] == id);
    listener.receive_all(&mut sessions[0]);
    listener.events.retain(|event| event["sentinel"].is_null());
    assert_eq!(listener.by_execution().into_keys().collect::<Vec<_>>(), committed);
}

#[test]
fn a_transaction_with_more_events_than_the_queue_holds_is_heard_whole() {
    let cluster = preloaded_cluster_with("loader_history.queue_size = 16\n");
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, status)
                 SELECT 1, now(), 'RUNNING' FROM generate_series(1, 500);
             UPDATE loader.execution_history
                SET status = 'FAILED', execution_end = now(), error_message = repeat('x', 9000)
              WHERE id <= 3",
        )
        .unwrap();
    listener.receive_all(&mut client);
    let heard = listener.by_execution();
    assert_eq!(heard.len(), 500);
    assert_eq!(heard[&3], ["STARTED", "FAILED"]);
    assert_eq!(heard[&4], ["STARTED"]);
}

#[test]
fn a_slow_listener_keeps_nobody_waiting() {
    let cluster = preloaded_cluster();
    let mut slow = Session::new(&cluster, "postgres");
    // In an open transaction a session is told of nothing.
    slow.run("LISTEN loader_execution");
    slow.run("BEGIN; SELECT 1");
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    let ids: Vec<_> = (0..50)
        .map(|_| {
            let id = start(&mut client);
            end(&mut client, id);
            id
        })
        .collect();
    listener.receive_all(&mut client);
    assert_eq!(listener.by_execution().keys().copied().collect::<Vec<_>>(), ids);
    slow.run("COMMIT");
    let mut late = 0;
    wait_for("the slow listener to hear all", || {
        slow.run("SELECT 1");
        late += slow.client.notifications().iter().count().unwrap();
        late == 2 * (ids.len() + 1)
    });
}

#[test]
fn a_listener_that_reads_nothing_keeps_nobody_waiting() {
    let cluster = preloaded_cluster();
    let mut slow = Session::new(&cluster, "postgres");
    slow.run("LISTEN loader_execution");
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    // This client reads nothing on its own: when its socket is full, its server process waits for it.
    let stuck = format!(
        "SELECT wait_event IS NOT DISTINCT FROM 'ClientWrite' FROM pg_stat_activity WHERE pid = {}",
        column::<i32>(&mut slow.client, "SELECT pg_backend_pid()")[0]
    );
    let mut ids = Vec::new();
    wait_for("the listener's socket to be full", || {
        for _ in 0..50 {
            let id = start(&mut client);
            let end = "SELECT loader.record_execution_end($1, 'FAILED', NULL, repeat('x', 7500))";
            client.execute(end, &[&id]).unwrap();
            ids.push(id);
        }
        column::<bool>(&mut client, &stuck) == [true]
    });
    for _ in 0..50 {
        let id = start(&mut client);
        end(&mut client, id);
        ids.push(id);
    }
    listener.receive_all(&mut client);
    assert_eq!(listener.by_execution().into_keys().collect::<Vec<_>>(), ids);
    assert_eq!(column::<bool>(&mut client, &stuck), [true], "it still waits");
    // It has missed nothing.
    let mut heard = 0;
    wait_for("the slow listener to hear all", || {
        slow.run("SELECT 1");
        heard += slow.client.notifications().iter().count().unwrap();
        heard == 2 * (ids.len() + 1)
    });
}

#[test]
fn two_phase_loads_are_heard_after_the_second_phase() {
    let mut cluster = preloaded_cluster();
    for autonomous in ["on", "off"] {
        let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
        client
            .batch_execute(&format!("SET loader_history.autonomous_start = {autonomous}; BEGIN"))
            .unwrap();
        let id = start(&mut client);
        let cut = client.batch_execute("SAVEPOINT s").map(|()| start(&mut client)).unwrap();
        client.batch_execute("ROLLBACK TO SAVEPOINT s").unwrap();
        end(&mut client, id);
        client.batch_execute("PREPARE TRANSACTION 'load'").unwrap();
        // A crash between the phases changes nothing.
        drop((client, listener));
        cluster.crash_server();
        cluster.start_server();
        let mut client = cluster.connect();
        wait_for_worker(&mut client);
        listener = Listener::new(&cluster);
        listener.receive_all(&mut client);
        assert_eq!(listener.by_execution().get(&id), None, "autonomous_start = {autonomous}");
        client.batch_execute("COMMIT PREPARED 'load'").unwrap();
        assert_eq!(status_of(&mut client, id).as_deref(), Some("SUCCESS"));
        listener.receive_until("the end", |event| {
            event["execution_id"] == id && event["event_type"] == "EXECUTION_SUCCESS"
        });
        listener.receive_all(&mut client);
        let mut heard = listener.by_execution();
        let kinds = heard.remove(&id).unwrap();
        match autonomous {
            // The start was heard before the crash.
            "on" => assert_eq!(kinds, ["SUCCESS"]),
            _ => assert_eq!(kinds, ["STARTED", "SUCCESS"]),
        }
        // The start that was rolled back with the savepoint fails where it was autonomous.
        heard.remove(&cut);
        assert_eq!(heard, BTreeMap::new());
        assert_eq!(
            column::<i64>(&mut client, "SELECT count(*) FROM loader_history.prepared_change"),
            [0]
        );

        // Rolled back, its end is never heard of.
        client
            .batch_execute(&format!("SET loader_history.autonomous_start = {autonomous}; BEGIN"))
            .unwrap();
        let id = start(&mut client);
        end(&mut client, id);
        client.batch_execute("PREPARE TRANSACTION 'load'").unwrap();
        client.batch_execute("ROLLBACK PREPARED 'load'").unwrap();
        wait_until_settled(&mut client);
        listener.receive_all(&mut client);
        match autonomous {
            "on" => assert_eq!(listener.by_execution()[&id], ["STARTED", "FAILED"]),
            _ => assert_eq!(listener.by_execution().get(&id), None),
        }
    }
}

#[test]
fn an_execution_begun_in_one_prepared_transaction_and_ended_after_it_is_heard_in_order() {
    let cluster = preloaded_cluster();
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    client.batch_execute("SET loader_history.autonomous_start = off").unwrap();
    let mut ids = Vec::new();
    for _ in 0..20 {
        client.batch_execute("BEGIN").unwrap();
        let id = start(&mut client);
        client.batch_execute("PREPARE TRANSACTION 'start'").unwrap();
        client.batch_execute("COMMIT PREPARED 'start'").unwrap();
        client.batch_execute("BEGIN").unwrap();
        end(&mut client, id);
        // Every other end is prepared too.
        if id % 2 == 0 {
            client.batch_execute("COMMIT").unwrap();
        } else {
            client.batch_execute("PREPARE TRANSACTION 'end'").unwrap();
            client.batch_execute("COMMIT PREPARED 'end'").unwrap();
        }
        ids.push(id);
    }
    let last = ids[ids.len() - 1];
    listener.receive_until("the last end", |event| {
        event["execution_id"] == last && event["event_type"] == "EXECUTION_SUCCESS"
    });
    listener.receive_all(&mut client);
    let heard = listener.by_execution();
    for id in ids {
        assert_eq!(heard[&id], ["STARTED", "SUCCESS"]);
    }
}

#[test]
fn a_prepared_load_is_heard_after_its_start_however_long_that_waits() {
    let cluster = preloaded_cluster_with(DEAD_STANDBY);
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    let notifying = hang_at_commit(&cluster, "CREATE TABLE written (); NOTIFY something_else");
    client.batch_execute("BEGIN").unwrap();
    let id = start(&mut client);
    end(&mut client, id);
    client.batch_execute("PREPARE TRANSACTION 'load'").unwrap();
    client.batch_execute("COMMIT PREPARED 'load'").unwrap();
    cancel(&mut client, notifying);
    listener.receive_until("the end", |event| event["event_type"] == "EXECUTION_SUCCESS");
    assert_eq!(listener.by_execution()[&id], ["STARTED", "SUCCESS"]);
}

#[test]
fn what_is_committed_while_a_command_keeps_the_worker_out_is_heard_afterwards() {
    let cluster = preloaded_cluster_with(DEAD_STANDBY);
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    let id = start(&mut client);
    let ending =
        hang_at_commit(&cluster, &format!("SELECT loader.record_execution_end({id}, 'SUCCESS')"));
    let mut elsewhere = cluster.connect_to("template1", "postgres");
    // It waits for the sessions to leave, and then gives up.
    let renaming = thread::spawn(move || {
        elsewhere.batch_execute("ALTER DATABASE postgres RENAME TO renamed").error("55006");
    });
    wait_for("the worker to leave", || served(&mut client).is_empty());
    cancel(&mut client, ending);
    renaming.join().unwrap();
    listener.receive_until("the end", |event| event["event_type"] == "EXECUTION_SUCCESS");
    assert_eq!(listener.by_execution()[&id], ["STARTED", "SUCCESS"]);
}

#[test]
fn an_end_waits_for_the_prepared_start_that_cannot_be_read() {
    let cluster = preloaded_cluster();
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    let (mut holder, mut other) = (cluster.connect(), cluster.connect());
    client.batch_execute("SET loader_history.autonomous_start = off").unwrap();
    for _ in 0..5 {
        client.batch_execute("BEGIN").unwrap();
        let id = start(&mut client);
        client.batch_execute("PREPARE TRANSACTION 'start'").unwrap();
        let worker = freeze_worker(&mut cluster.connect());
        client.batch_execute("COMMIT PREPARED 'start'").unwrap();
        let mut holding = holder.transaction().unwrap();
        // Not while the prepared transaction has the table.
        holding
            .batch_execute("LOCK TABLE loader_history.prepared_change IN EXCLUSIVE MODE")
            .unwrap();
        end(&mut client, id);
        send_signal(worker, SIGCONT);
        // The worker has had its turn to emit each time that it has recorded one.
        for _ in 0..10 {
            start(&mut other);
        }
        holding.rollback().unwrap();
        listener.receive_until("the end", |event| {
            event["execution_id"] == id && event["event_type"] == "EXECUTION_SUCCESS"
        });
        assert_eq!(listener.by_execution()[&id], ["STARTED", "SUCCESS"]);
    }
}

#[test]
fn prepared_starts_are_heard_before_the_ends_that_follow_them_at_once() {
    let cluster = preloaded_cluster();
    let mut listener = Listener::new(&cluster);
    thread::scope(|scope| {
        for number in 0..4 {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut client = cluster.connect();
                client.batch_execute("SET loader_history.autonomous_start = off").unwrap();
                for _ in 0..100 {
                    client.batch_execute("BEGIN").unwrap();
                    let id = start(&mut client);
                    client.batch_execute(&format!("PREPARE TRANSACTION 'start {number}'")).unwrap();
                    client.batch_execute(&format!("COMMIT PREPARED 'start {number}'")).unwrap();
                    end(&mut client, id);
                }
            });
        }
    });
    let mut client = cluster.connect();
    listener.receive_all(&mut client);
    let heard = listener.by_execution();
    assert_eq!(heard.len(), 400);
    for (id, kinds) in heard {
        assert_eq!(kinds, ["STARTED", "SUCCESS"], "execution {id}");
    }
}

#[test]
fn a_prepared_transaction_of_very_many_events_is_heard_whole_and_in_order() {
    let cluster = preloaded_cluster();
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    client
        .batch_execute(
            "SET loader_history.autonomous_start = off; BEGIN;
             INSERT INTO loader.execution_history (loader_id, execution_start, status)
                 SELECT 1, now(), 'RUNNING' FROM generate_series(1, 25000);
             PREPARE TRANSACTION 'many'",
        )
        .unwrap();
    client.batch_execute("COMMIT PREPARED 'many'").unwrap();
    client
        .batch_execute(
            // So many find room in the queue: more would be a NOTIFY of their own transaction.
            "UPDATE loader.execution_history SET status = 'FAILED', execution_end = now() WHERE id <= 500",
        )
        .unwrap();
    listener.receive_all(&mut client);
    let heard = listener.by_execution();
    assert_eq!(heard.len(), 25_000);
    for (id, kinds) in heard {
        let expected: &[&str] = if id <= 500 { &["STARTED", "FAILED"] } else { &["STARTED"] };
        assert_eq!(kinds, expected, "execution {id}");
    }
    assert_eq!(
        column::<i64>(&mut client, "SELECT count(*) FROM loader_history.prepared_change"),
        [0]
    );
}

#[test]
fn a_start_does_not_wait_for_a_pause_between_two_waits_for_the_lock_on_notify() {
    let cluster = preloaded_cluster_with(DEAD_STANDBY);
    let (mut client, mut observer) = (cluster.connect(), cluster.connect());
    let worker = wait_for_worker(&mut observer);
    let notifying = hang_at_commit(&cluster, "CREATE TABLE written (); NOTIFY something_else");
    start(&mut client);
    let mut took = Vec::new();
    let waits = format!(
        "SELECT pid FROM pg_stat_activity WHERE pid = {worker} AND wait_event_type = 'Lock'"
    );
    // The first waits are short, and so are the pauses behind them.
    for _ in 0..25 {
        wait_for("the worker to wait for the lock", || {
            !column::<i32>(&mut observer, &waits).is_empty()
        });
        let begin = Instant::now();
        start(&mut client);
        took.push(begin.elapsed());
    }
    cancel(&mut observer, notifying);
    took.drain(..5);
    // Each comes during a wait of 400 ms, the rest of which it waits; but not the pause behind it, which is
    // as long.
    took.sort_unstable();
    assert!(took[took.len() / 2] < Duration::from_millis(650), "{took:?}");
}

#[test]
fn a_worker_that_ends_leaves_its_own_events_to_the_next() {
    let cluster = preloaded_cluster_with(DEAD_STANDBY);
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    let notifying = hang_at_commit(&cluster, "CREATE TABLE written (); NOTIFY something_else");
    let mut expected = BTreeMap::new();
    let events = |kinds: &[&str]| kinds.iter().map(|&kind| kind.to_owned()).collect::<Vec<_>>();
    for round in 0..3 {
        let id = start(&mut client);
        end(&mut client, id);
        expected.insert(id, events(&["STARTED", "SUCCESS"]));
        expected.insert(start(&mut client), events(&["STARTED"]));
        client.batch_execute("BEGIN").unwrap();
        let failed = start(&mut client);
        client.batch_execute("ROLLBACK").unwrap();
        wait_until_settled(&mut client);
        expected.insert(failed, events(&["STARTED", "FAILED"]));
        let worker = wait_for_worker(&mut client);
        match round {
            0 => client.batch_execute(&format!("SELECT pg_terminate_backend({worker})")).unwrap(),
            1 => client
                .batch_execute("ALTER DATABASE postgres SET loader_history.retention = '9000d'")
                .unwrap(),
            _ => {
                // It waits for the sessions to leave, and then gives up.
                let mut elsewhere = cluster.connect_to("template1", "postgres");
                elsewhere.batch_execute("ALTER DATABASE postgres RENAME TO renamed").error("55006");
            }
        }
        wait_for("another worker", || {
            let served = served(&mut client);
            !served.is_empty() && wait_for_worker(&mut client) != worker
        });
    }
    cancel(&mut client, notifying);
    listener.receive_all(&mut client);
    assert_eq!(listener.by_execution(), expected);
    assert!(!cluster.log().contains("events are dropped"), "{}", cluster.log());
}

#[test]
fn thousands_of_events_that_wait_for_the_lock_on_notify_are_heard_in_order() {
    let cluster = preloaded_cluster_with(DEAD_STANDBY);
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    let notifying = hang_at_commit(&cluster, "CREATE TABLE written (); NOTIFY something_else");
    client
        .batch_execute(
            "DO $$ BEGIN
                 FOR n IN 1..2500 LOOP PERFORM loader.record_execution_start(1); END LOOP;
                 RAISE EXCEPTION 'none of it';
             END $$",
        )
        .error("P0001");
    wait_until_settled(&mut client);
    cancel(&mut client, notifying);
    listener.receive_all(&mut client);
    let heard = listener.by_execution();
    assert_eq!(heard.len(), 2500);
    assert!(heard.values().all(|kinds| *kinds == ["STARTED", "FAILED"]));
}

#[test]
fn a_full_queue_of_postgresql_fails_no_load() {
    // Before version 17 it holds 8 GB, and nothing makes it smaller.
    if !has_small_notify_queues() {
        return;
    }
    let cluster =
        preloaded_cluster_with("max_notify_queue_pages = 64\nloader_history.queue_size = 16\n");
    let warnings = Warnings::default();
    let (mut client, mut filling) = (warnings.connect(&cluster), cluster.connect());
    let mut idle = Session::new(&cluster, "postgres");
    idle.run("LISTEN loader_execution");
    idle.run("BEGIN; SELECT 1");
    let mut listener = Listener::new(&cluster);
    while filling
        .batch_execute("SELECT pg_notify('something_else', repeat('x', 7000) || n) FROM generate_series(1, 5) AS n")
        .is_ok()
    {}
    while filling
        .batch_execute("SELECT pg_notify('something_else', repeat('x', 7000) || random())")
        .is_ok()
    {}
    let mut ids = Vec::new();
    for autonomous in ["on", "off"] {
        client
            .batch_execute(&format!("SET loader_history.autonomous_start = {autonomous}"))
            .unwrap();
        for _ in 0..100 {
            let id = start(&mut client);
            end(&mut client, id);
            ids.push(id);
        }
    }
    assert!(warnings.count() > 0);
    for reason in warnings.reasons().keys() {
        assert!(reason.contains("notification queue is full"), "{reason}");
    }
    let error: Option<String> =
        column(&mut client, "SELECT last_error FROM loader.recorder_status()").remove(0);
    assert!(error.as_ref().is_some_and(|error| error.contains("NOTIFY queue")), "{error:?}");
    for id in &ids {
        assert_eq!(status_of(&mut client, *id).as_deref(), Some("SUCCESS"));
    }
    // With room again, what was kept is heard in order, and so is what is new.
    idle.run("COMMIT");
    let mut hear = |id: i64| {
        listener.receive_until("an end", |event| {
            event["execution_id"] == id && event["event_type"] == "EXECUTION_SUCCESS"
        });
        assert_eq!(listener.by_execution()[&id], ["STARTED", "SUCCESS"]);
    };
    hear(ids[0]);
    let before = warnings.count();
    client.batch_execute("SET loader_history.autonomous_start = on").unwrap();
    let id = start(&mut client);
    end(&mut client, id);
    hear(id);
    assert_eq!(warnings.count(), before);
}

#[test]
fn events_can_be_turned_off() {
    let cluster = preloaded_cluster();
    let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
    for autonomous in ["on", "off"] {
        client
            .batch_execute(&format!(
                "SET loader_history.autonomous_start = {autonomous}; SET loader_history.notify = off"
            ))
            .unwrap();
        let id = start(&mut client);
        end(&mut client, id);
        client.batch_execute("RESET loader_history.notify").unwrap();
        listener.receive_all(&mut client);
        assert_eq!(listener.by_execution(), BTreeMap::new());
    }
}

#[test]
fn failures_that_the_server_finds_have_events_where_the_session_that_started_wanted_them() {
    // The worker has a setting too, which says nothing.
    for (of_the_worker, of_the_loader) in [("on", "off"), ("off", "on")] {
        let cluster = preloaded_cluster_with("max_prepared_transactions = 5\n");
        let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
        let mut observer = cluster.connect();
        let mut replace_worker = || {
            let worker = wait_for_worker(&mut observer);
            observer.execute("SELECT pg_terminate_backend($1)", &[&worker]).unwrap();
            wait_for("another worker", || wait_for_worker(&mut observer) != worker);
        };
        let setting =
            format!("ALTER DATABASE postgres SET loader_history.notify = {of_the_worker}");
        client.batch_execute(&setting).unwrap();
        replace_worker();
        let begin = || {
            let mut loader = Session::new(&cluster, "postgres");
            loader.run(&format!("SET loader_history.notify = {of_the_loader}; BEGIN"));
            loader
        };
        // A later worker finds out that they failed.
        let (mut rolled_back, mut prepared) = (begin(), begin());
        let ids = vec![rolled_back.start(), prepared.start()];
        prepared.run("PREPARE TRANSACTION 'prepared'");
        replace_worker();
        rolled_back.run("ROLLBACK");
        prepared.run("ROLLBACK PREPARED 'prepared'");
        for id in &ids {
            wait_for("the failure", || status_of(&mut client, *id).as_deref() == Some("FAILED"));
        }
        listener.receive_all(&mut client);
        let heard: Vec<i64> = listener.by_execution().into_keys().collect();
        let expected = if of_the_loader == "on" { ids } else { Vec::new() };
        assert_eq!(heard, expected, "the loader's setting is {of_the_loader}");
    }
}

#[test]
fn events_have_an_error_text_only_if_they_are_to() {
    for with_errors in [false, true] {
        let setting = format!("loader_history.notify_error_message = {with_errors}\n");
        let cluster = preloaded_cluster_with(&setting);
        let (mut client, mut listener) = (cluster.connect(), Listener::new(&cluster));
        let fail = |id: i64, text: &str| {
            format!("SELECT loader.record_execution_end({id}, 'FAILED', NULL, '{text}')")
        };
        let reported = start(&mut client);
        client.batch_execute(&fail(reported, "no such file")).unwrap();
        client.batch_execute("BEGIN").unwrap();
        let found = start(&mut client);
        client.batch_execute("SELECT 1 / 0").error("22012");
        client.batch_execute("ROLLBACK; BEGIN").unwrap();
        let prepared = start(&mut client);
        client.batch_execute(&fail(prepared, "no such table")).unwrap();
        client.batch_execute("PREPARE TRANSACTION 'load'").unwrap();
        client.batch_execute("COMMIT PREPARED 'load'").unwrap();
        for (id, text) in [
            (reported, "no such file"),
            (found, "22012: division by zero"),
            (prepared, "no such table"),
        ] {
            let is_it = |event: &serde_json::Value| {
                event["execution_id"] == id && event["event_type"] == "EXECUTION_FAILED"
            };
            if !listener.events.iter().any(is_it) {
                listener.receive_until(text, is_it);
            }
            let event = listener.events.iter().find(|event| is_it(event)).unwrap();
            let message = event["message"].as_str().unwrap();
            assert_eq!(event["error_message"].as_str(), with_errors.then_some(text));
            assert_eq!(message.ends_with(text), with_errors, "{message}");
        }
    }
}
