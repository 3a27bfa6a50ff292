//! Promise: a start whose caller stops waiting is recorded by the caller or by the worker, and never by both, although the
//! worker is slow or ends.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use pg_test::{
    Client, Cluster, HasError, Session, Signal, column, freeze_worker, preloaded_cluster, seed,
    send_signal, sqlstate, status_of, wait_for, wait_for_equal, wait_for_worker, worker_of,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The statuses of the executions of loaders other than 10, from the id `from` on.
fn statuses(client: &mut Client, from: i64) -> Vec<String> {
    let query = format!(
        "SELECT status FROM loader.execution_history WHERE id >= {from} AND loader_id <> 10 ORDER BY id"
    );
    column(client, &query)
}

/// Waits until the worker has polled the status of all transactions: it has, when it has ended what was rolled back just
/// now.
fn let_the_worker_poll(cluster: &Cluster) {
    let (mut probe, mut observer) = (cluster.connect(), cluster.connect());
    wait_for_worker(&mut observer);
    probe.batch_execute("BEGIN").unwrap();
    let id: i64 = column(&mut probe, "SELECT loader.record_execution_start(10)")[0];
    probe.batch_execute("ROLLBACK").unwrap();
    wait_for("the worker to poll", || status_of(&mut observer, id).as_deref() == Some("FAILED"));
}

/// Ends the worker as a DBA would, and waits for the next.
fn replace_worker(client: &mut Client) {
    let pid = wait_for_worker(client);
    client.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    wait_for("another worker", || worker_of(client, "postgres") != pid);
}

/// Makes the worker slow to insert executions of loader 1, slow to commit those of loaders from 100 on, and a little slow
/// to do both for those from 1000 on. A sequence, which no rollback takes back, counts its inserts.
const SLOW_WORKER: &str = "
    CREATE SEQUENCE public.begun;
    CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF pg_catalog.current_setting('session_replication_role') = 'replica' THEN
            IF TG_WHEN = 'BEFORE' AND NEW.loader_id <> 10 THEN
                PERFORM pg_catalog.nextval('public.begun');
            END IF;
            PERFORM pg_catalog.pg_sleep(CASE
                WHEN NEW.loader_id >= 1000 THEN random() / 200
                WHEN NEW.loader_id >= 100 AND TG_WHEN = 'AFTER' THEN 2
                WHEN NEW.loader_id = 1 AND TG_WHEN = 'BEFORE' THEN 2
                ELSE 0 END);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER slow_insert BEFORE INSERT ON loader.execution_history
        FOR EACH ROW EXECUTE FUNCTION slow_down();
    CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON loader.execution_history
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow_down();
    ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER slow_insert, ENABLE ALWAYS TRIGGER slow_commit;
";

/// How many starts the worker has inserted.
const BEGUN: &str = "SELECT last_value - 1 + is_called::integer FROM public.begun";

fn cluster_with_slow_worker() -> Cluster {
    let cluster = preloaded_cluster();
    cluster.connect().batch_execute(SLOW_WORKER).unwrap();
    cluster
}

/// What happens while the worker still inserts the start that its caller has abandoned.
#[derive(Debug, Clone, Copy)]
enum Meanwhile {
    Nothing,
    WorkerEnds,
    ServerStops,
}

#[test]
fn an_abandoned_start_is_recorded_by_its_caller_alone() {
    let mut cluster = cluster_with_slow_worker();
    for meanwhile in [Meanwhile::Nothing, Meanwhile::WorkerEnds, Meanwhile::ServerStops] {
        for (ending, expected) in [
            ("COMMIT", vec!["RUNNING".to_owned()]),
            ("ROLLBACK", vec![]),
            ("ROLLBACK TO attempt; COMMIT", vec![]),
        ] {
            println!("{ending}, meanwhile {meanwhile:?}");
            let mut loader = Session::new(&cluster, "postgres");
            let begun = column::<i64>(&mut loader.client, BEGUN);
            let before = "SELECT coalesce(max(id), 0) + 1 FROM loader.execution_history";
            let before = column(&mut loader.client, before)[0];
            loader.run("SET loader_history.worker_timeout = '1s'; BEGIN; SAVEPOINT attempt");
            loader.start();
            let warnings = loader.warnings();
            assert!(warnings.len() == 1 && warnings[0].contains("in time"), "{warnings:?}");
            assert_ne!(column::<i64>(&mut loader.client, BEGUN), begun, "the worker had taken it");
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
            assert_eq!(statuses(&mut observer, before), expected);
            let_the_worker_poll(&cluster);
            assert_eq!(statuses(&mut observer, before), expected, "a poll later");
            wait_for_equal("watched transactions", &vec![0_i64], || {
                column(&mut observer, "SELECT count(*) FROM loader_history.watched_transaction")
            });
        }
    }
}

/// Each caller waits about as long as the worker takes: it abandons some starts, and not others.
#[test]
fn starts_abandoned_at_any_time_are_recorded_once() {
    const TIMES: usize = 150;
    let cluster = cluster_with_slow_worker();
    let insert =
        "INSERT INTO loader.loader SELECT 1000 + n, 'SLOW' FROM generate_series(1, 4) AS n";
    cluster.connect().batch_execute(insert).unwrap();
    let seed = seed();
    let expected: Vec<_> = thread::scope(|scope| {
        let sessions: Vec<_> = (1..=4_u64)
            .map(|number| {
                let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
                let mut session = Session::new(&cluster, "postgres");
                scope.spawn(move || {
                    let mut expected = Vec::new();
                    for _ in 0..TIMES {
                        let timeout = random.random_range(1..40);
                        session
                            .run(&format!("SET loader_history.worker_timeout = {timeout}; BEGIN"));
                        let call =
                            format!("SELECT loader.record_execution_start({})", 1000 + number);
                        let id: i64 = column(&mut session.client, &call)[0];
                        let falls_back = !session.warnings().is_empty();
                        let commits = random.random();
                        session.run(if commits { "COMMIT" } else { "ROLLBACK" });
                        expected.push((id, falls_back, commits));
                    }
                    expected
                })
            })
            .collect();
        sessions.into_iter().flat_map(|session| session.join().unwrap()).collect()
    });
    let fallbacks = expected.iter().filter(|(_, falls_back, _)| *falls_back).count();
    println!("{fallbacks} of {} starts abandoned or not taken", expected.len());
    let_the_worker_poll(&cluster);
    let expected: BTreeSet<_> = expected
        .into_iter()
        .filter(|(_, falls_back, commits)| *commits || !falls_back)
        .map(|(id, _, commits)| format!("{id} {}", if commits { "RUNNING" } else { "FAILED" }))
        .collect();
    let mut observer = cluster.connect();
    let query =
        "SELECT concat_ws(' ', id, status) FROM loader.execution_history WHERE loader_id > 1000";
    wait_for_equal("the executions", &expected, || {
        column(&mut observer, query).into_iter().collect()
    });
}

/// Executions of loaders that do not exist.
fn without_loader(client: &mut Client) -> Vec<i64> {
    column(
        client,
        "SELECT history.id FROM loader.execution_history AS history
           LEFT JOIN loader.loader ON loader.id = history.loader_id
          WHERE loader.id IS NULL ORDER BY 1",
    )
}

/// Inserts a loader of id `loader` and cancels its start while the worker commits it.
fn cancel_start(cluster: &Cluster, loader: i64) {
    let mut session = cluster.connect();
    session
        .batch_execute(&format!("INSERT INTO loader.loader VALUES ({loader}, 'SHORT-LIVED')"))
        .unwrap();
    session
        .batch_execute("SET loader_history.worker_timeout = '1min'; SET statement_timeout = '1s'")
        .unwrap();
    let before = column::<i64>(&mut session, BEGUN);
    session
        .batch_execute(&format!("SELECT loader.record_execution_start({loader})"))
        .error("57014");
    assert_ne!(column::<i64>(&mut session, BEGUN), before, "the worker had taken it");
    assert_eq!(
        column::<i64>(
            &mut session,
            &format!("SELECT count(*) FROM loader.execution_history WHERE loader_id = {loader}")
        ),
        [0],
        "and is still at work"
    );
}

/// Deletes the loader in a transaction, and waits until the worker has committed its execution.
fn delete_and_wait(cluster: &Cluster, observer: &mut Client, loader: i64) -> Session {
    let mut other = Session::new(cluster, "postgres");
    other.run(&format!("BEGIN; DELETE FROM loader.loader WHERE id = {loader}"));
    let query = format!("SELECT FROM loader.execution_history WHERE loader_id = {loader}");
    wait_for("the worker to commit", || !observer.query(&query, &[]).unwrap().is_empty());
    other
}

#[test]
fn a_canceled_start_leaves_no_execution_of_a_loader_that_is_deleted() {
    let cluster = cluster_with_slow_worker();
    let mut observer = cluster.connect();

    println!("deleted before the worker has committed the start");
    cancel_start(&cluster, 100);
    observer.batch_execute("DELETE FROM loader.loader WHERE id = 100").unwrap();
    let_the_worker_poll(&cluster);
    wait_for_equal("executions without a loader", &Vec::new(), || without_loader(&mut observer));

    println!("the delete rolled back after the worker has committed the start");
    cancel_start(&cluster, 101);
    delete_and_wait(&cluster, &mut observer, 101).run("ROLLBACK");
    wait_for_equal("its failure", &vec!["FAILED".to_owned()], || {
        column(&mut observer, "SELECT status FROM loader.execution_history WHERE loader_id = 101")
    });

    println!("the delete committed after the worker has committed the start");
    cancel_start(&cluster, 102);
    delete_and_wait(&cluster, &mut observer, 102).run("COMMIT");
    wait_for_equal("executions without a loader", &Vec::new(), || without_loader(&mut observer));
}

#[test]
fn a_canceled_start_leaves_no_execution_of_a_deleted_loader_although_the_worker_ends() {
    let cluster = cluster_with_slow_worker();
    let mut observer = cluster.connect();
    cancel_start(&cluster, 100);
    let mut other = delete_and_wait(&cluster, &mut observer, 100);
    replace_worker(&mut observer);
    wait_for_worker(&mut observer);
    other.run("COMMIT");
    let_the_worker_poll(&cluster);
    wait_for_equal("executions without a loader", &Vec::new(), || without_loader(&mut observer));
}

#[test]
fn an_autonomous_start_of_a_loader_that_never_existed_stays_when_the_worker_ends() {
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
    assert_eq!(loader.warnings(), Vec::<String>::new(), "it is autonomous");
    // The key is attached NOT VALID, since the history references a missing loader.
    observer.batch_execute(pg_test::APPLICATION_SQL).unwrap();
    let validated = "SELECT convalidated FROM pg_constraint
                      WHERE conrelid = 'loader.execution_history'::regclass AND contype = 'f'";
    assert_eq!(column::<bool>(&mut observer, validated), [false]);
    let before = worker_of(&mut observer, "postgres");
    observer.execute("SELECT pg_terminate_backend($1)", &[&before]).unwrap();
    wait_for("another worker", || {
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
    wait_for("the worker to poll", || status_of(&mut observer, other).as_deref() == Some("FAILED"));
    assert_eq!(status_of(&mut observer, id).as_deref(), Some("RUNNING"), "the autonomous start");
    loader.client.batch_execute("SELECT 1/0").error("22012");
    wait_for("the failure", || status_of(&mut observer, id).as_deref() == Some("FAILED"));
}

#[test]
fn starts_canceled_at_any_time_leave_no_execution_of_a_deleted_loader() {
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
                        // The former timeout holds for this statement too.
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
    let_the_worker_poll(&cluster);
    let mut observer = cluster.connect();
    wait_for_equal("executions without a loader", &Vec::new(), || without_loader(&mut observer));
}

#[test]
fn a_short_worker_timeout_of_one_session_does_not_make_the_starts_of_others_transactional() {
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
    assert_eq!(patient.warnings(), Vec::<String>::new(), "the patient start is autonomous");
    assert_eq!(status_of(&mut observer, id).as_deref(), Some("RUNNING"));
}
