//! Promise: no execution is FAILED by mistake, and the loader's report outranks the server's finding, which is kept as
//! the last line of its error message. Who may report what, from which session, and when.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use pg_test::story::{LEVELS, Scene, Story, end, load, run_stories, start};
use pg_test::{
    Client, Cluster, HasError, column, preloaded_cluster, status_of, wait_for, wait_for_worker,
};
use postgres::{CancelToken, NoTls};

const ROLLED_BACK: &str =
    "1 FAILED server-derived The transaction that started the execution was rolled back.";
const DIVISION: &str = "1 FAILED server-derived 22012: division by zero";
const SUCCESS: &str = "1 SUCCESS 3";

/// Starts an execution in a transaction of its own.
fn start_and_commit(scene: &mut Scene, loader: &mut Client) -> i64 {
    scene.begin_in(loader);
    let id = scene.start(loader, 1);
    loader.batch_execute("COMMIT").unwrap();
    id
}

/// Starts an execution in a transaction that is rolled back, and waits until the server knows.
fn start_and_fail(scene: &mut Scene, loader: &mut Client) -> i64 {
    scene.begin_in(loader);
    let id = scene.start(loader, 1);
    loader.batch_execute("ROLLBACK").unwrap();
    scene.wait_until_failed(id);
    id
}

const OTHER_SESSIONS: &[Story] = &[
    Story::new(
        "start committed alone, SUCCESS by the same session",
        |scene| {
            let mut loader = scene.connect();
            let id = start_and_commit(scene, &mut loader);
            scene.begin_in(&mut loader);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "start committed alone, later SUCCESS by another session",
        |scene| {
            let id = start_and_commit(scene, &mut scene.connect());
            scene.wait_until_unwatched();
            let mut other = scene.begin();
            scene.succeed_and_commit(&mut other, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "start committed alone, later FAILED by another session",
        |scene| {
            let id = start_and_commit(scene, &mut scene.connect());
            scene.wait_until_unwatched();
            end(&mut scene.connect(), id, "FAILED", Some("no such file")).unwrap();
        },
        &["1 FAILED no such file"],
    ),
    Story::new(
        "start committed alone, and its session is gone",
        |scene| {
            let id = start_and_commit(scene, &mut scene.connect());
            scene.wait_until_unwatched();
            for _ in 0..3 {
                scene.let_the_worker_poll();
                assert_eq!(scene.status(id).as_deref(), Some("RUNNING"));
            }
        },
        &["1 RUNNING"],
    ),
    Story::new(
        "start committed alone, and later the session that goes on with it breaks",
        |scene| {
            let mut loader = scene.connect();
            let id = start_and_commit(scene, &mut loader);
            scene.begin_in(&mut loader);
            scene.succeed(&mut loader, id);
            loader.batch_execute("SELECT 1/0").error("22012");
        },
        // That is not the transaction that started it: the loader may still retry.
        &["1 RUNNING"],
    ),
    Story::new(
        "SUCCESS by another session while the start is open",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            end(&mut scene.begin(), id, "SUCCESS", None).error("55006");
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "FAILED by another session while the start is open, then rollback",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            end(&mut scene.connect(), id, "FAILED", Some("taken off the air")).unwrap();
            assert_eq!(scene.status(id).as_deref(), Some("FAILED"));
            loader.batch_execute("SELECT 1/0").error("22012");
        },
        &["1 FAILED taken off the air"],
    ),
    Story::new(
        "FAILED by another session while the start is open, then SUCCESS",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            end(&mut scene.connect(), id, "FAILED", Some("taken off the air")).unwrap();
            load(&mut loader, id);
            end(&mut loader, id, "SUCCESS", None).error("55000");
        },
        &["1 FAILED taken off the air"],
    ),
    Story::new(
        "FAILED by another session that is rolled back, while the start is open",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            let mut other = scene.begin();
            end(&mut other, id, "FAILED", Some("taken off the air")).unwrap();
            other.batch_execute("ROLLBACK").unwrap();
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "rollback while another session has reported FAILED and not committed",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            let mut other = scene.begin();
            end(&mut other, id, "FAILED", Some("taken off the air")).unwrap();
            loader.batch_execute("ROLLBACK").unwrap();
            // The worker does not wait for the row that the other session has locked.
            scene.let_the_worker_poll();
            other.batch_execute("COMMIT").unwrap();
        },
        &["1 FAILED taken off the air"],
    ),
];

#[test]
fn other_sessions() {
    run_stories(&preloaded_cluster(), OTHER_SESSIONS);
}

const REPORTS_AFTER_A_ROLLBACK: &[Story] = &[
    Story::new(
        "FAILED after the rollback was found out",
        |scene| {
            let mut loader = scene.connect();
            let id = start_and_fail(scene, &mut loader);
            end(&mut loader, id, "FAILED", Some("no such file")).unwrap();
            end(&mut loader, id, "FAILED", Some("again")).error("55000");
            end(&mut loader, id, "SUCCESS", None).error("55000");
        },
        &[
            "1 FAILED no such file\nserver: The transaction that started the execution was rolled back.",
        ],
    ),
    Story::new(
        "FAILED without a text after the rollback was found out",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("SELECT 1/0").error("22012");
            loader.batch_execute("ROLLBACK").unwrap();
            scene.wait_until_failed(id);
            end(&mut loader, id, "FAILED", None).unwrap();
        },
        &["1 FAILED server: 22012: division by zero"],
    ),
    Story::new(
        "FAILED at once after the rollback, and that is rolled back too",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("ROLLBACK").unwrap();
            scene.begin_in(&mut loader);
            end(&mut loader, id, "FAILED", Some("no such file")).unwrap();
            loader.batch_execute("ROLLBACK").unwrap();
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "SUCCESS after a retry",
        |scene| {
            let mut loader = scene.connect();
            let id = start_and_fail(scene, &mut loader);
            scene.begin_in(&mut loader);
            scene.succeed_and_commit(&mut loader, id);
            end(&mut loader, id, "SUCCESS", None).error("55000");
        },
        &[SUCCESS],
    ),
    Story::new(
        "SUCCESS by another session after a retry",
        |scene| {
            let id = start_and_fail(scene, &mut scene.connect());
            let mut other = scene.begin();
            scene.succeed_and_commit(&mut other, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "SUCCESS at once after the rollback",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("ROLLBACK").unwrap();
            scene.begin_in(&mut loader);
            load(&mut loader, id);
            end(&mut loader, id, "SUCCESS", None).unwrap();
            loader.batch_execute("COMMIT").unwrap();
        },
        &[SUCCESS],
    ),
    Story::new(
        "SUCCESS after a retry that is rolled back too",
        |scene| {
            let mut loader = scene.connect();
            let id = start_and_fail(scene, &mut loader);
            scene.begin_in(&mut loader);
            scene.succeed(&mut loader, id);
            loader.batch_execute("ROLLBACK").unwrap();
        },
        &[ROLLED_BACK],
    ),
];

#[test]
fn reports_after_a_rollback() {
    run_stories(&preloaded_cluster(), REPORTS_AFTER_A_ROLLBACK);
}

/// The worker may have ended the execution before the report, or not: the report is its outcome in both cases.
#[test]
fn a_report_at_once_after_a_rollback_is_the_outcome() {
    const TIMES: usize = 100;
    let cluster = preloaded_cluster();
    let mut loader = cluster.connect();
    let mut with_server_line = 0;
    for level in LEVELS {
        for time in 0..TIMES {
            loader.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).unwrap();
            let id = start(&mut loader, 1);
            loader.batch_execute("SELECT 1/0").error("22012");
            loader.batch_execute("ROLLBACK").unwrap();
            // The worker polls a moment after the rollback.
            thread::sleep(Duration::from_micros(time as u64 * 10));
            loader.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).unwrap();
            end(&mut loader, id, "FAILED", Some("no such file")).unwrap();
            loader.batch_execute("COMMIT").unwrap();
            end(&mut loader, id, "FAILED", Some("again")).error("55000");
            let query =
                format!("SELECT error_message FROM loader.execution_history WHERE id = {id}");
            let text = column::<String>(&mut loader, &query).remove(0);
            let with_line = text == "no such file\nserver: 22012: division by zero";
            assert!(with_line || text == "no such file", "{text}");
            with_server_line += usize::from(with_line);
        }
    }
    println!("{with_server_line} of {} after the worker", TIMES * LEVELS.len());
    let noted = "SELECT count(*) FROM loader_history.server_outcome";
    assert_eq!(column::<i64>(&mut loader, noted), [0]);
}

/// Starts an execution in a transaction that is then prepared; the session goes.
fn start_and_prepare(scene: &mut Scene, succeeds: bool) -> i64 {
    let mut loader = scene.connect();
    scene.begin_in(&mut loader);
    let id = scene.start(&mut loader, 1);
    if succeeds {
        scene.succeed(&mut loader, id);
    }
    loader.batch_execute("PREPARE TRANSACTION 'load'").unwrap();
    drop(loader);
    scene.let_the_worker_poll();
    assert_eq!(scene.status(id).as_deref(), Some("RUNNING"), "what others see of a prepared load");
    id
}

/// Starts an execution with the WARNING, since another session keeps the worker from it, in a transaction that is then
/// prepared; the session goes.
fn fall_back_and_prepare(scene: &mut Scene, succeeds: bool) -> i64 {
    let mut other = scene.connect();
    other.batch_execute("BEGIN; LOCK loader_history.watched_transaction IN SHARE MODE").unwrap();
    let mut loader = scene.begin();
    let id = scene.start_in_transaction(&mut loader, 1);
    other.batch_execute("COMMIT").unwrap();
    if succeeds {
        scene.succeed(&mut loader, id);
    }
    loader.batch_execute("PREPARE TRANSACTION 'load'").unwrap();
    drop(loader);
    scene.let_the_worker_poll();
    assert_eq!(scene.status(id), None, "what others see of a prepared load");
    id
}

const TABLE_LOCKED: &str = "A table of the history is locked, by this session or another.";

const TRANSACTIONAL_TWO_PHASES: &[Story] = &[
    Story::new(
        "transactional start, PREPARE TRANSACTION, COMMIT PREPARED",
        |scene| {
            fall_back_and_prepare(scene, false);
            scene.connect().batch_execute("COMMIT PREPARED 'load'").unwrap();
        },
        &["1 RUNNING"],
    )
    .warns(&[TABLE_LOCKED]),
    Story::new(
        "transactional start, SUCCESS, PREPARE TRANSACTION, COMMIT PREPARED",
        |scene| {
            fall_back_and_prepare(scene, true);
            scene.connect().batch_execute("COMMIT PREPARED 'load'").unwrap();
        },
        &[SUCCESS],
    )
    .warns(&[TABLE_LOCKED]),
    Story::new(
        "transactional start, SUCCESS, PREPARE TRANSACTION, ROLLBACK PREPARED",
        |scene| {
            let id = fall_back_and_prepare(scene, true);
            scene.connect().batch_execute("ROLLBACK PREPARED 'load'").unwrap();
            end(&mut scene.connect(), id, "FAILED", None).error("P0002");
        },
        &[],
    )
    .warns(&[TABLE_LOCKED]),
];

#[test]
fn two_phases_of_transactional_starts() {
    run_stories(&preloaded_cluster(), TRANSACTIONAL_TWO_PHASES);
}

const TWO_PHASES: &[Story] = &[
    Story::new(
        "SUCCESS, PREPARE TRANSACTION, COMMIT PREPARED",
        |scene| {
            let id = start_and_prepare(scene, true);
            scene.connect().batch_execute("COMMIT PREPARED 'load'").unwrap();
            assert_eq!(scene.status(id).as_deref(), Some("SUCCESS"));
        },
        &[SUCCESS],
    ),
    Story::new(
        "SUCCESS, PREPARE TRANSACTION, ROLLBACK PREPARED",
        |scene| {
            start_and_prepare(scene, true);
            scene.connect().batch_execute("ROLLBACK PREPARED 'load'").unwrap();
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "PREPARE TRANSACTION, COMMIT PREPARED, SUCCESS",
        |scene| {
            let id = start_and_prepare(scene, false);
            end(&mut scene.connect(), id, "SUCCESS", None).error("55006");
            scene.connect().batch_execute("COMMIT PREPARED 'load'").unwrap();
            let mut other = scene.begin();
            scene.succeed_and_commit(&mut other, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "PREPARE TRANSACTION, FAILED by another session, ROLLBACK PREPARED",
        |scene| {
            let id = start_and_prepare(scene, false);
            end(&mut scene.connect(), id, "FAILED", Some("one of the others broke")).unwrap();
            scene.connect().batch_execute("ROLLBACK PREPARED 'load'").unwrap();
        },
        &["1 FAILED one of the others broke"],
    ),
    Story::new(
        "ROLLBACK PREPARED, then FAILED",
        |scene| {
            let id = start_and_prepare(scene, true);
            scene.connect().batch_execute("ROLLBACK PREPARED 'load'").unwrap();
            scene.wait_until_failed(id);
            end(&mut scene.connect(), id, "FAILED", Some("one of the others broke")).unwrap();
        },
        &[
            "1 FAILED one of the others broke\nserver: The transaction that started the execution was rolled back.",
        ],
    ),
    Story::new(
        "PREPARE TRANSACTION that fails",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("LISTEN nothing").unwrap();
            scene.start(&mut loader, 1);
            loader.batch_execute("PREPARE TRANSACTION 'load'").error("0A000");
        },
        &[
            "1 FAILED server-derived 0A000: cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY",
        ],
    ),
    Story::new(
        "start in a savepoint that is rolled back, then PREPARE TRANSACTION",
        |scene| {
            let mut loader = scene.connect();
            loader.batch_execute("SET loader_history.notify = off").unwrap();
            scene.begin_in(&mut loader);
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            scene.start(&mut loader, 1);
            loader.batch_execute("SELECT 1/0").error("22012");
            loader.batch_execute("ROLLBACK TO attempt; PREPARE TRANSACTION 'load'").unwrap();
            scene.connect().batch_execute("COMMIT PREPARED 'load'").unwrap();
        },
        &["1 FAILED server-derived 22012: division by zero"],
    ),
];

#[test]
fn two_phases() {
    run_stories(&preloaded_cluster(), TWO_PHASES);
}

#[test]
fn a_prepared_load_outlives_the_server_and_is_then_rolled_back() {
    let mut cluster = preloaded_cluster();
    // The worker may not have looked at the transaction in this run of the server, or may have.
    for worker_first in [false, true] {
        for stop in [Cluster::stop_server, Cluster::crash_server] {
            let mut loader = cluster.connect();
            loader.batch_execute("BEGIN").unwrap();
            let id = start(&mut loader, 1);
            loader.batch_execute("PREPARE TRANSACTION 'load'").unwrap();
            drop(loader);
            stop(&mut cluster);
            cluster.start_server();
            let mut client = cluster.connect();
            if worker_first {
                wait_for_worker(&mut client);
                // It has looked when it has ended what was rolled back just now.
                client.batch_execute("BEGIN").unwrap();
                let other = start(&mut client, 2);
                client.batch_execute("ROLLBACK").unwrap();
                wait_for("the worker to look", || {
                    status_of(&mut client, other).as_deref() == Some("FAILED")
                });
                assert_eq!(status_of(&mut client, id).as_deref(), Some("RUNNING"));
            }
            client.batch_execute("ROLLBACK PREPARED 'load'").unwrap();
            wait_for("the failure", || status_of(&mut client, id).as_deref() == Some("FAILED"));
            let text: Vec<String> = column(
                &mut client,
                &format!("SELECT error_message FROM loader.execution_history WHERE id = {id}"),
            );
            assert!(!text[0].contains("server stopped"), "worker first: {worker_first}: {text:?}");
        }
    }
}

/// A COMMIT that waits for a standby until this is dropped: then it has waited enough.
struct WaitingCommit {
    cancel: CancelToken,
    session: Option<JoinHandle<Result<(), postgres::Error>>>,
}

impl WaitingCommit {
    fn new(scene: &mut Scene, mut loader: Client) -> Self {
        let cancel = loader.cancel_token();
        let session = Some(thread::spawn(move || loader.batch_execute("COMMIT")));
        wait_for("the commit to wait", || {
            let query = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            !scene.observer.query(query, &[]).unwrap().is_empty()
        });
        Self { cancel, session }
    }
}

impl Drop for WaitingCommit {
    fn drop(&mut self) {
        self.cancel.cancel_query(NoTls).unwrap();
        let session = self.session.take().unwrap();
        session.join().unwrap().unwrap();
    }
}

const CANCELED: &[&str] = &["canceling wait for synchronous replication"];

const SYNCHRONOUS: &[Story] = &[
    Story::new(
        "commit that waits for a standby",
        |scene| {
            let mut loader = scene.connect();
            // What a NOTIFY in it does to others is the next story.
            loader.batch_execute("SET loader_history.notify = off").unwrap();
            scene.begin_in(&mut loader);
            // Others see it, so it did not wait for the standby.
            let id = scene.start(&mut loader, 1);
            scene.succeed(&mut loader, id);
            let waiting = WaitingCommit::new(scene, loader);
            for _ in 0..3 {
                scene.let_the_worker_poll();
                assert_eq!(scene.status(id).as_deref(), Some("RUNNING"), "before the commit");
            }
            end(&mut scene.connect(), id, "SUCCESS", None).error("55006");
            drop(waiting);
            assert_eq!(scene.status(id).as_deref(), Some("SUCCESS"), "after the commit");
        },
        &[SUCCESS],
    )
    .warns(CANCELED),
    Story::new(
        "load beside a commit that waits for a standby and has a NOTIFY",
        |scene| {
            let mut other = scene.begin();
            other.batch_execute("NOTIFY nothing; INSERT INTO counter VALUES (1)").unwrap();
            // Until it is through, every other commit with a NOTIFY waits for it.
            let _waiting = WaitingCommit::new(scene, other);
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("SELECT 1/0").error("22012");
            scene.wait_until_failed(id);
        },
        &[DIVISION],
    )
    .warns(CANCELED),
    Story::new(
        "error while no commit gets through",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            loader.batch_execute("SELECT 1/0").error("22012");
        },
        &[DIVISION],
    ),
];

#[test]
fn a_synchronous_standby_that_is_dead() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_for("the setting", || {
        let mut client = cluster.connect();
        let row = client.query_one("SHOW synchronous_standby_names", &[]).unwrap();
        row.get::<_, &str>(0) == "nobody"
    });
    // The checkpointer has commits wait, and reads its settings before it makes a checkpoint.
    client.batch_execute("CHECKPOINT").unwrap();
    run_stories(&cluster, SYNCHRONOUS);
}
