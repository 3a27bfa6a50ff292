//! Promise: a start that its caller gives up, or that is recorded plainly and rolled back, is in the
//! history once, as what it was, though the worker is slow, ends, or is kept from writing.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use pg_test::{
    Client, Cluster, HasError, Session, Signal, column, freeze_worker, preloaded_cluster, seed,
    send_signal, sleeps, sqlstate, status_of, wait_for, wait_for_equal, wait_for_worker, worker_of,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DIVISION: &str = "FAILED 22012: division by zero";

/// What the history says of executions of loaders other than 10, from the id `from` on.
fn history(client: &mut Client, from: i64) -> Vec<String> {
    let query = format!(
        "SELECT concat_ws(' ', status, error_message) FROM loader.execution_history
          WHERE id >= {from} AND loader_id <> 10 ORDER BY id"
    );
    column(client, &query)
}

/// Has the worker look at everything: it has, when it has ended what was rolled back just now.
fn let_the_worker_look(cluster: &Cluster) {
    let (mut probe, mut observer) = (cluster.connect(), cluster.connect());
    wait_for_worker(&mut observer);
    probe.batch_execute("BEGIN").unwrap();
    let id: i64 = column(&mut probe, "SELECT loader.record_execution_start(10)")[0];
    probe.batch_execute("ROLLBACK").unwrap();
    wait_for("the worker to look", || status_of(&mut observer, id).as_deref() == Some("FAILED"));
}

/// Ends the worker as a DBA would, and waits for the next.
fn replace_worker(client: &mut Client) {
    let pid = wait_for_worker(client);
    client.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    wait_for("another worker", || worker_of(client, "postgres") != pid);
}

// Starts recorded plainly, and lost

/// Has the worker decline starts, for as long as the transaction lasts.
const LOCK: &str = "LOCK TABLE loader.execution_history IN SHARE MODE";

/// Starts three executions plainly and rolls them back while another session locks `table`, so that
/// the worker cannot record them, whatever `disturb` does to it.
fn lose_starts(cluster: &Cluster, table: &str, disturb: fn(&mut Client, i32)) {
    println!("{table} locked");
    let (mut observer, mut loader) = (cluster.connect(), Session::new(cluster, "postgres"));
    let worker = wait_for_worker(&mut observer);
    loader.run("BEGIN");
    loader.run(LOCK);
    let ids = [loader.start(), loader.start(), loader.start()];
    assert_eq!(loader.warnings().len(), 3, "the starts are plain");
    let mut other = Session::new(cluster, "postgres");
    let locking = format!("BEGIN; LOCK TABLE {table} IN SHARE MODE");
    let locked = thread::spawn(move || {
        other.run(&locking);
        other
    });
    // Where it waits for the loader, it has the lock as soon as the loader's is gone.
    let query = format!(
        "SELECT mode FROM pg_locks WHERE relation = '{table}'::regclass AND mode = 'ShareLock'"
    );
    let sessions = if table == "loader.execution_history" { 2 } else { 1 };
    wait_for("the other session", || column::<String>(&mut observer, &query).len() == sessions);
    let before = sleeps(worker);
    loader.client.batch_execute("SELECT 1/0").error("22012");
    loader.run("ROLLBACK");
    let mut other = locked.join().unwrap();
    wait_for("the worker to try, and to try again", || sleeps(worker) > before + 4);
    disturb(&mut observer, worker);
    assert_eq!(history(&mut observer, ids[0]), Vec::<String>::new(), "while {table} is locked");
    other.run("COMMIT");
    wait_for_equal("the lost starts", &vec![DIVISION.to_owned(); 3], || {
        history(&mut observer, ids[0])
    });
    // Neither another time nor never: they are noted as the server's word.
    let_the_worker_look(cluster);
    assert_eq!(history(&mut observer, ids[0]).len(), 3);
    pg_test::story::end(&mut loader.client, ids[0], "FAILED", Some("no such file")).unwrap();
}

#[test]
fn a_lost_start_outlives_the_worker() {
    let cluster = preloaded_cluster();
    for table in ["loader_history.server_outcome", "loader.execution_history"] {
        lose_starts(&cluster, table, |client, _| {
            replace_worker(client);
            wait_for_worker(client);
        });
        lose_starts(&cluster, table, |client, worker| {
            for _ in 0..10 {
                let before = sleeps(worker);
                client.execute("SELECT pg_cancel_backend($1)", &[&worker]).unwrap();
                wait_for("the worker to go on", || sleeps(worker) > before + 1);
            }
            assert_eq!(worker_of(client, "postgres"), worker, "a cancel does not end it");
        });
    }
}

/// Starts plainly, rolls back and reports the failure at once, again and again: the history has the
/// loader's words.
fn roll_back_and_report(settings: &str) {
    const TIMES: usize = 150;
    let cluster = preloaded_cluster();
    let mut loader = Session::new(&cluster, "postgres");
    loader.run(settings);
    let (mut texts, mut refused) = (Vec::new(), Vec::new());
    for time in 0..TIMES {
        loader.run("BEGIN");
        loader.run(LOCK);
        let id = loader.start();
        if time % 2 == 0 {
            loader.client.batch_execute("SELECT 1/0").error("22012");
        }
        loader.run("ROLLBACK");
        let text = format!("no such file: {time}");
        let said = pg_test::story::end(&mut loader.client, id, "FAILED", Some(&text));
        if said.is_err() {
            refused.push(format!("{time}: {}", sqlstate(&said)));
        }
        texts.push(format!("FAILED {text}"));
    }
    assert_eq!(loader.warnings().len(), TIMES, "the starts are plain");
    assert!(refused.is_empty(), "{} of {TIMES} words refused: {refused:?}", refused.len());
    let_the_worker_look(&cluster);
    assert_eq!(history(&mut loader.client, 0), texts, "the loader's words stay");
    let notes: Vec<i64> = column(
        &mut loader.client,
        "SELECT execution_id FROM loader_history.server_outcome AS derived
           JOIN loader.execution_history AS history ON id = execution_id AND loader_id = 1",
    );
    assert_eq!(notes, Vec::<i64>::new(), "the server's notes of failures that the loader reported");
}

#[test]
fn a_catch_block_after_a_plain_start_always_finds_the_execution() {
    roll_back_and_report("");
}

#[test]
fn so_does_one_of_a_session_that_gives_the_worker_no_time() {
    roll_back_and_report("SET loader_history.worker_timeout = 1");
}

// Starts given up when the worker had taken them

/// Makes the worker slow where it records loader 1 and those that tests add, and fairly slow where it
/// records those from 1000 on. A sequence, which no rollback takes back, counts.
const SLOW_WORKER: &str = "
    CREATE SEQUENCE public.begun;
    CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.loader_id NOT BETWEEN 2 AND 10 AND pg_catalog.current_setting('session_replication_role') = 'replica' THEN
            PERFORM pg_catalog.nextval('public.begun');
            PERFORM pg_catalog.pg_sleep(CASE WHEN NEW.loader_id < 1000 THEN 2 ELSE random() / 100 END);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER slow_down BEFORE INSERT ON loader.execution_history
        FOR EACH ROW EXECUTE FUNCTION slow_down();
    ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER slow_down;
";

fn cluster_with_slow_worker() -> Cluster {
    let cluster = preloaded_cluster();
    cluster.connect().batch_execute(SLOW_WORKER).unwrap();
    cluster
}

/// What happens while the worker still records what its caller has given up.
#[derive(Debug, Clone, Copy)]
enum Meanwhile {
    Nothing,
    WorkerEnds,
    ServerStops,
}

#[test]
fn a_start_given_up_when_the_worker_had_taken_it_is_recorded_once() {
    let mut cluster = cluster_with_slow_worker();
    for meanwhile in [Meanwhile::Nothing, Meanwhile::WorkerEnds, Meanwhile::ServerStops] {
        for (ending, status) in [
            ("COMMIT", "RUNNING"),
            ("ROLLBACK", "FAILED"),
            ("ROLLBACK TO attempt; COMMIT", "FAILED"),
        ] {
            println!("{ending}, meanwhile {meanwhile:?}");
            let mut loader = Session::new(&cluster, "postgres");
            loader.run("SET loader_history.worker_timeout = '1s'; BEGIN; SAVEPOINT attempt");
            let id = loader.start();
            let warnings = loader.warnings();
            assert!(warnings.len() == 1 && warnings[0].contains("in time"), "{warnings:?}");
            let given_up = "SELECT execution_id FROM loader_history.abandoned_start";
            assert_eq!(column::<i64>(&mut loader.client, given_up), [id - 1], "it was taken");
            loader.run(ending);
            drop(loader);
            match meanwhile {
                Meanwhile::Nothing => {}
                Meanwhile::WorkerEnds => replace_worker(&mut cluster.connect()),
                Meanwhile::ServerStops => {
                    cluster.stop_server();
                    cluster.start_server();
                }
            }
            let mut observer = cluster.connect();
            let found = || {
                let rows = history(&mut observer, id - 1);
                let statuses: Vec<_> = rows
                    .iter()
                    .filter_map(|row| row.split(' ').next())
                    .map(str::to_owned)
                    .collect();
                let left = "SELECT (SELECT count(*) FROM loader_history.watched_transaction) + (SELECT count(*) FROM loader_history.abandoned_start)";
                (statuses, column::<i64>(&mut observer, left)[0])
            };
            let expected = (vec![status.to_owned()], 0);
            wait_for_equal("the execution, and bindings and abandoned starts", &expected, found);
            let_the_worker_look(&cluster);
            let rows = history(&mut observer, id - 1);
            assert!(rows.len() == 1 && rows[0].starts_with(status), "a look later: {rows:?}");
        }
    }
}

/// Executions of loaders that are not there.
fn orphans(client: &mut Client) -> Vec<i64> {
    column(
        client,
        "SELECT history.id FROM loader.execution_history AS history
           LEFT JOIN loader.loader ON loader.id = history.loader_id
          WHERE loader.id IS NULL ORDER BY 1",
    )
}

/// Adds a loader of id `loader` and has its start cancelled when the worker has taken it.
fn cancel_start(cluster: &Cluster, loader: i64) {
    let mut session = cluster.connect();
    session
        .batch_execute(&format!("INSERT INTO loader.loader VALUES ({loader}, 'SHORT-LIVED')"))
        .unwrap();
    session
        .batch_execute("SET loader_history.worker_timeout = '1min'; SET statement_timeout = '1s'")
        .unwrap();
    let begun = "SELECT last_value + is_called::integer FROM public.begun";
    let before: Vec<i64> = column(&mut session, begun);
    session
        .batch_execute(&format!("SELECT loader.record_execution_start({loader})"))
        .error("57014");
    assert_ne!(column::<i64>(&mut session, begun), before, "the worker had taken it");
    assert_eq!(
        column::<i64>(
            &mut session,
            &format!("SELECT count(*) FROM loader.execution_history WHERE loader_id = {loader}")
        ),
        [0],
        "and is still at work"
    );
}

/// Deletes the loader in a transaction, and waits until the worker has recorded its execution.
fn delete_and_wait(cluster: &Cluster, observer: &mut Client, loader: i64) -> Session {
    let mut other = Session::new(cluster, "postgres");
    other.run(&format!("BEGIN; DELETE FROM loader.loader WHERE id = {loader}"));
    let query = format!("SELECT FROM loader.execution_history WHERE loader_id = {loader}");
    wait_for("the worker to record", || !observer.query(&query, &[]).unwrap().is_empty());
    other
}

#[test]
fn a_cancelled_start_leaves_no_execution_of_a_loader_that_is_deleted() {
    let cluster = cluster_with_slow_worker();
    let mut observer = cluster.connect();

    println!("deleted before the worker has recorded it");
    cancel_start(&cluster, 100);
    observer.batch_execute("DELETE FROM loader.loader WHERE id = 100").unwrap();
    let_the_worker_look(&cluster);
    wait_for_equal("executions without a loader", &Vec::new(), || orphans(&mut observer));

    println!("the delete rolled back after the worker has recorded it");
    cancel_start(&cluster, 101);
    delete_and_wait(&cluster, &mut observer, 101).run("ROLLBACK");
    wait_for_equal("its failure", &vec!["FAILED".to_owned()], || {
        column(&mut observer, "SELECT status FROM loader.execution_history WHERE loader_id = 101")
    });

    println!("the delete committed after the worker has recorded it");
    cancel_start(&cluster, 102);
    delete_and_wait(&cluster, &mut observer, 102).run("COMMIT");
    wait_for_equal("executions without a loader", &Vec::new(), || orphans(&mut observer));

    println!("the start recorded plainly after it was given up, and rolled back");
    observer.batch_execute("INSERT INTO loader.loader VALUES (103, 'SHORT-LIVED')").unwrap();
    let mut loader = Session::new(&cluster, "postgres");
    loader.run("SET loader_history.worker_timeout = '1s'; BEGIN");
    loader.run("SELECT loader.record_execution_start(103)");
    loader.run("ROLLBACK");
    observer.batch_execute("DELETE FROM loader.loader WHERE id = 103").unwrap();
    let_the_worker_look(&cluster);
    wait_for_equal("executions without a loader", &Vec::new(), || orphans(&mut observer));
}

#[test]
fn a_cancelled_start_leaves_no_execution_of_a_loader_though_the_worker_ends() {
    let cluster = cluster_with_slow_worker();
    let mut observer = cluster.connect();
    cancel_start(&cluster, 100);
    let mut other = delete_and_wait(&cluster, &mut observer, 100);
    replace_worker(&mut observer);
    wait_for_worker(&mut observer);
    other.run("COMMIT");
    let_the_worker_look(&cluster);
    wait_for_equal("executions without a loader", &Vec::new(), || orphans(&mut observer));
}

#[test]
fn a_durable_start_of_a_loader_that_never_was_outlives_the_worker() {
    let cluster = Cluster::start_with(pg_test::PRELOADED);
    let mut observer = cluster.connect();
    observer.batch_execute("CREATE EXTENSION loader_history").unwrap();
    let mut loader = Session::new(&cluster, "postgres");
    wait_for("a worker", || {
        let serving =
            "SELECT worker_pid FROM loader_history.recorder_state() WHERE obstacle IS NULL";
        column::<Option<i32>>(&mut observer, serving).iter().any(Option::is_some)
    });
    loader.run("BEGIN");
    let id: i64 = column(&mut loader.client, "SELECT loader.record_execution_start(77)")[0];
    assert_eq!(loader.warnings(), Vec::<String>::new(), "it is durable");
    // The key comes NOT VALID, since the history names a loader that is not there.
    observer.batch_execute(pg_test::APPLICATION_SQL).unwrap();
    let validated = "SELECT convalidated FROM pg_constraint
                      WHERE conrelid = 'loader.execution_history'::regclass AND contype = 'f'";
    assert_eq!(column::<bool>(&mut observer, validated), [false]);
    let before = worker_of(&mut observer, "postgres");
    observer.execute("SELECT pg_terminate_backend($1)", &[&before]).unwrap();
    wait_for("another worker that serves", || {
        let serving = format!(
            "SELECT worker_pid FROM loader_history.recorder_state()
              WHERE obstacle IS NULL AND worker_pid <> {before}"
        );
        !column::<Option<i32>>(&mut observer, &serving).is_empty()
    });
    let mut probe = cluster.connect();
    probe.batch_execute("BEGIN").unwrap();
    let other: i64 = column(&mut probe, "SELECT loader.record_execution_start(10)")[0];
    probe.batch_execute("ROLLBACK").unwrap();
    wait_for("the worker to look", || status_of(&mut observer, other).as_deref() == Some("FAILED"));
    assert_eq!(status_of(&mut observer, id).as_deref(), Some("RUNNING"), "the durable start");
    loader.client.batch_execute("SELECT 1/0").error("22012");
    wait_for("the failure", || status_of(&mut observer, id).as_deref() == Some("FAILED"));
}

#[test]
fn starts_cancelled_at_any_time_leave_no_execution_of_a_deleted_loader() {
    const TIMES: i64 = 150;
    let cluster = cluster_with_slow_worker();
    let seed = seed();
    let outcomes: BTreeSet<_> = thread::scope(|scope| {
        let pairs: Vec<_> = (1..=3_u64)
            .map(|pair| {
                let mut random = StdRng::seed_from_u64(seed.wrapping_add(pair));
                let (mut loader, mut other) = (cluster.connect(), cluster.connect());
                scope.spawn(move || {
                    let mut outcomes = BTreeSet::new();
                    for time in 0..TIMES {
                        let id = 10_000 * i64::try_from(pair).unwrap() + time;
                        let insert = format!("INSERT INTO loader.loader VALUES ({id}, 'BRIEF')");
                        other.batch_execute(&insert).unwrap();
                        let timeout = random.random_range(1..12);
                        let set = format!("SET statement_timeout = {timeout}");
                        // The timeout of before holds for this statement too.
                        while loader.batch_execute(&set).is_err() {}
                        let pause = Duration::from_micros(random.random_range(0..12_000));
                        thread::scope(|scope| {
                            let started = scope.spawn(|| {
                                let call = format!("SELECT loader.record_execution_start({id})");
                                sqlstate(&loader.batch_execute(&call))
                            });
                            thread::sleep(pause);
                            let delete = format!("DELETE FROM loader.loader WHERE id = {id}");
                            let deleted = sqlstate(&other.batch_execute(&delete));
                            outcomes.insert((started.join().unwrap(), deleted));
                        });
                    }
                    outcomes
                })
            })
            .collect();
        pairs.into_iter().flat_map(|pair| pair.join().unwrap()).collect()
    });
    println!("starts and deletes ended with {outcomes:?}");
    // The key, the timeout, or success: nothing else.
    assert!(
        outcomes.iter().all(|(start, delete)| {
            ["00000", "23503", "57014"].contains(&start.as_str())
                && ["00000", "23503"].contains(&delete.as_str())
        }),
        "{outcomes:?}"
    );
    let_the_worker_look(&cluster);
    let mut observer = cluster.connect();
    wait_for_equal("executions without a loader", &Vec::new(), || orphans(&mut observer));
}

#[test]
fn a_session_without_patience_does_not_make_the_starts_of_others_plain() {
    let cluster = preloaded_cluster();
    let mut observer = cluster.connect();
    let (mut hasty, mut patient) =
        (Session::new(&cluster, "postgres"), Session::new(&cluster, "postgres"));
    hasty.run("SET loader_history.worker_timeout = 1");
    patient.run("SET loader_history.worker_timeout = '1min'");
    let worker = freeze_worker(&mut observer);
    for _ in 0..3 {
        hasty.start();
    }
    let hasty_warnings = hasty.warnings();
    let waiting = thread::spawn(move || {
        patient.run("BEGIN");
        let id = patient.start();
        (patient, id)
    });
    let query = "SELECT queue_depth FROM loader_history.recorder_state()";
    wait_for("the patient start to wait", || {
        waiting.is_finished() || column::<i32>(&mut observer, query) == [1]
    });
    send_signal(worker, Signal::SIGCONT);
    let (patient, id) = waiting.join().unwrap();
    assert_eq!(hasty_warnings.len(), 3, "{hasty_warnings:?}");
    assert_eq!(patient.warnings(), Vec::<String>::new(), "the patient start is durable");
    assert_eq!(status_of(&mut observer, id).as_deref(), Some("RUNNING"));
}
