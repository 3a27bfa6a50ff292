//! Promise: a worker that is stopped, slow or gone costs a start a bounded wait and one warning. The start is
//! transactional then, and is recorded once.

use std::time::{Duration, Instant};

use pg_test::story::{Scene, Story, end, run_stories, start};
use pg_test::{
    Client, HasError, Signal, column, freeze_worker, preloaded_cluster, send_signal, wait_for,
    wait_for_worker,
};

const DIVISION: &str = "1 FAILED server-derived 22012: division by zero";
const SUCCESS: &str = "1 SUCCESS 3";
const LATE: &str = "The background worker did not answer in time.";

/// `loader_history.worker_timeout` in these stories.
const WORKER_TIMEOUT: Duration = Duration::from_millis(200);

/// How much longer than that a start may take on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// A worker that does not run while this lives.
struct StoppedWorker(i32);

impl StoppedWorker {
    fn new(scene: &mut Scene) -> Self {
        Self(freeze_worker(&mut scene.observer))
    }
}

impl Drop for StoppedWorker {
    fn drop(&mut self) {
        send_signal(self.0, Signal::SIGCONT);
    }
}

/// Begins a transaction whose starts wait as long as these stories say.
fn begin(scene: &Scene) -> Client {
    let mut loader = scene.begin();
    let setting = format!("SET loader_history.worker_timeout = {}", WORKER_TIMEOUT.as_millis());
    loader.batch_execute(&setting).unwrap();
    loader
}

/// Starts an execution in the transaction, after the worker's time is up.
fn start_late(scene: &mut Scene, loader: &mut Client) -> i64 {
    let begun = Instant::now();
    let id = scene.start_in_transaction(loader, 1);
    let taken = begun.elapsed();
    println!("    the start took {taken:?}");
    assert!(taken >= WORKER_TIMEOUT, "it did not wait for the worker: {taken:?}");
    assert!(taken < WORKER_TIMEOUT + SLACK, "it waited for {taken:?}");
    id
}

const STOPPED: &[Story] = &[
    Story::new(
        "worker stopped, commit",
        |scene| {
            let _stopped = StoppedWorker::new(scene);
            let mut loader = begin(scene);
            let id = start_late(scene, &mut loader);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    )
    .warns(&[LATE]),
    Story::new(
        "worker stopped, rollback, FAILED",
        |scene| {
            let stopped = StoppedWorker::new(scene);
            let mut loader = begin(scene);
            let id = start_late(scene, &mut loader);
            drop(stopped);
            scene.let_the_worker_poll();
            loader.batch_execute("ROLLBACK").unwrap();
            end(&mut loader, id, "FAILED", Some("no such file")).error("P0002");
        },
        &[],
    )
    .warns(&[LATE]),
    Story::new(
        "worker stopped, and the next start does not wait for it again",
        |scene| {
            let _stopped = StoppedWorker::new(scene);
            let mut loader = begin(scene);
            let first = start_late(scene, &mut loader);
            loader.batch_execute("SET loader_history.worker_timeout = '10min'").unwrap();
            let second = scene.start_in_transaction(&mut loader, 1);
            scene.succeed(&mut loader, first);
            scene.succeed_and_commit(&mut loader, second);
        },
        &[SUCCESS, SUCCESS],
    )
    .warns(&[LATE, LATE]),
    Story::new(
        "worker stopped, and the start cancelled while it waits",
        |scene| {
            let _stopped = StoppedWorker::new(scene);
            let mut loader = begin(scene);
            let settings = "SET loader_history.worker_timeout = '10min';
                            SET LOCAL statement_timeout = '100ms'";
            loader.batch_execute(settings).unwrap();
            let call = "SELECT loader.record_execution_start(1)";
            loader.batch_execute(call).error("57014");
        },
        // Nothing has started.
        &[],
    ),
    Story::new(
        "worker stopped after the start, commit",
        |scene| {
            let mut loader = begin(scene);
            let id = scene.start(&mut loader, 1);
            let _stopped = StoppedWorker::new(scene);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "worker stopped after the start, error",
        |scene| {
            let mut loader = begin(scene);
            let id = scene.start(&mut loader, 1);
            let _stopped = StoppedWorker::new(scene);
            loader.batch_execute("SELECT 1/0").error("22012");
            assert_eq!(scene.status(id).as_deref(), Some("RUNNING"), "no worker runs");
        },
        &[DIVISION],
    ),
    Story::new(
        "worker stopped after the start, error, FAILED",
        |scene| {
            let mut loader = begin(scene);
            let id = scene.start(&mut loader, 1);
            let _stopped = StoppedWorker::new(scene);
            loader.batch_execute("SELECT 1/0").error("22012");
            loader.batch_execute("ROLLBACK").unwrap();
            end(&mut loader, id, "FAILED", Some("no such file")).unwrap();
            end(&mut loader, id, "FAILED", Some("again")).error("55000");
        },
        &["1 FAILED no such file"],
    ),
];

#[test]
fn a_worker_that_is_stopped() {
    run_stories(&preloaded_cluster(), STOPPED);
}

/// The worker takes so long to insert that a caller abandons a start that it has taken.
const SLOW_WORKER: &str = "
    CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.loader_id = 1 AND pg_catalog.current_setting('session_replication_role') = 'replica' THEN
            PERFORM pg_catalog.pg_sleep(2);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER slow_down BEFORE INSERT ON loader.execution_history
        FOR EACH ROW EXECUTE FUNCTION slow_down();
    ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER slow_down;
";

/// How long an outcome then takes, on a busy machine.
const AS_SLOW_AS_IT_IS: Duration = Duration::from_secs(12);

const SLOW: &[Story] = &[
    Story::new(
        "worker too slow, commit",
        |scene| {
            let mut loader = begin(scene);
            let id = start_late(scene, &mut loader);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    )
    .warns(&[LATE]),
    Story::new(
        "worker too slow, error",
        |scene| {
            let mut loader = begin(scene);
            start_late(scene, &mut loader);
            loader.batch_execute("SELECT 1/0").error("22012");
        },
        &[],
    )
    .warns(&[LATE]),
    Story::new(
        "worker slow, and the start patient",
        |scene| {
            let mut loader = begin(scene);
            loader.batch_execute("SET loader_history.worker_timeout = '1min'").unwrap();
            let id = scene.start(&mut loader, 1);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "worker slow, and the start canceled while the worker inserts it",
        |scene| {
            let mut loader = begin(scene);
            let settings = "SET loader_history.worker_timeout = '1min';
                            SET LOCAL statement_timeout = '1s'";
            loader.batch_execute(settings).unwrap();
            let call = "SELECT loader.record_execution_start(1)";
            loader.batch_execute(call).error("57014");
        },
        &[],
    ),
];

/// The worker takes as long to commit: a caller can't abandon its start any more.
const SLOW_COMMIT: &str = "
    ALTER TABLE loader.execution_history DISABLE TRIGGER slow_down;
    CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON loader.execution_history
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow_down();
    ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER slow_commit;
";

const SLOW_COMMITS: &[Story] = &[
    Story::new(
        "worker slow to commit, and the caller waits for it",
        |scene| {
            let mut loader = begin(scene);
            let id = scene.start(&mut loader, 1);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "worker slow to commit, and the start canceled meanwhile",
        |scene| {
            let mut loader = begin(scene);
            loader.batch_execute("SET LOCAL statement_timeout = '1s'").unwrap();
            let call = "SELECT loader.record_execution_start(1)";
            loader.batch_execute(call).error("57014");
        },
        // The start is committed, and the transaction that made it is rolled back.
        &["1 FAILED server-derived 57014: canceling statement due to statement timeout"],
    )
    .within(AS_SLOW_AS_IT_IS),
];

#[test]
fn a_worker_that_is_slow() {
    let cluster = preloaded_cluster();
    cluster.connect().batch_execute(SLOW_WORKER).unwrap();
    run_stories(&cluster, SLOW);
    cluster.connect().batch_execute(SLOW_COMMIT).unwrap();
    run_stories(&cluster, SLOW_COMMITS);
}

/// Ends the worker as a DBA would, and waits until it has gone.
fn terminate_worker(scene: &mut Scene) {
    let pid = wait_for_worker(&mut scene.observer);
    scene.observer.query("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    wait_for("the worker to go", || {
        let query = "SELECT worker_pid FROM loader_history.recorder_state()";
        column::<Option<i32>>(&mut scene.observer, query)[0] != Some(pid)
    });
}

/// A worker that was ended is started again after a second; on a busy machine that takes longer.
const UNTIL_IT_IS_BACK: Duration = Duration::from_secs(15);

const TERMINATED: &[Story] = &[
    Story::new(
        "worker terminated before the start",
        |scene| {
            terminate_worker(scene);
            wait_for_worker(&mut scene.observer);
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "worker terminated after the start, commit",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            terminate_worker(scene);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "worker terminated after the start, error before it is back",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            terminate_worker(scene);
            loader.batch_execute("SELECT 1/0").error("22012");
        },
        &[DIVISION],
    )
    .within(UNTIL_IT_IS_BACK),
    Story::new(
        "worker terminated after the start, error after it is back",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            terminate_worker(scene);
            wait_for_worker(&mut scene.observer);
            loader.batch_execute("SELECT 1/0").error("22012");
        },
        &[DIVISION],
    ),
    Story::new(
        "worker stopped and terminated, commit",
        |scene| {
            // It receives the signal when it runs again.
            let stopped = StoppedWorker::new(scene);
            let terminate = "SELECT pg_terminate_backend($1)";
            scene.observer.query(terminate, &[&stopped.0]).unwrap();
            let mut loader = begin(scene);
            let id = start(&mut loader, 1);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    )
    .warns(&[LATE])
    .within(UNTIL_IT_IS_BACK),
];

#[test]
fn a_worker_that_is_terminated() {
    run_stories(&preloaded_cluster(), TERMINATED);
}
