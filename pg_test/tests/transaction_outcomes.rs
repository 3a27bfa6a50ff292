//! Promise: however a load's transaction ends, its execution has that outcome.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pg_test::story::{
    LEVELS, Scene, Story, end, load, run_stories, run_stories_in_transactions, start,
};
use pg_test::{HasError, column, preloaded_cluster, wait_for};

const ROLLED_BACK: &str =
    "1 FAILED server-derived The transaction that started the execution was rolled back.";
const SAVEPOINT_ROLLED_BACK: &str =
    "1 FAILED server-derived The savepoint that the execution started in was rolled back.";
const DIVISION: &str = "1 FAILED server-derived 22012: division by zero";
const SUCCESS: &str = "1 SUCCESS 3";

/// An error, and then nothing more: the server itself rolls the transaction back.
fn fail(client: &mut pg_test::Client) {
    client.batch_execute("SELECT 1/0").error("22012");
}

/// An error in a savepoint, which leaves the transaction open, and then errors that are only there since the
/// client goes on as if nothing had been.
fn fail_in_a_savepoint(scene: &mut Scene, then: &str) {
    let mut loader = scene.begin();
    scene.start(&mut loader, 1);
    loader.batch_execute("SAVEPOINT risk").unwrap();
    fail(&mut loader);
    loader.batch_execute("SELECT 1").error("25P02");
    loader.batch_execute("SELEC 1").error("42601");
    loader.batch_execute("ROLLBACK TO nowhere").error("3B001");
    loader.batch_execute(then).unwrap();
}

const TRANSACTIONS: &[Story] = &[
    Story::new(
        "commit",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "rollback",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            load(&mut loader, id);
            loader.batch_execute("ROLLBACK").unwrap();
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "rollback after SUCCESS was reported",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            scene.succeed(&mut loader, id);
            loader.batch_execute("ROLLBACK").unwrap();
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "error, and the client does nothing more",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            fail(&mut loader);
            scene.wait_until_failed(id);
        },
        &[DIVISION],
    ),
    Story::new(
        "error, then COMMIT",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            fail(&mut loader);
            // Errors that follow from the first one are not what did it.
            loader.batch_execute("SELECT 1").error("25P02");
            loader.batch_execute("COMMIT").unwrap();
        },
        &[DIVISION],
    ),
    Story::new(
        "error in a savepoint, what follows from it, then rollback",
        |scene| fail_in_a_savepoint(scene, "ROLLBACK"),
        &[DIVISION],
    ),
    Story::new(
        "error in a savepoint, what follows from it, then COMMIT",
        |scene| fail_in_a_savepoint(scene, "COMMIT"),
        &[DIVISION],
    ),
    Story::new(
        "error in a savepoint, what follows from it, and the client is gone",
        |scene| fail_in_a_savepoint(scene, ""),
        &[DIVISION],
    ),
    Story::new(
        "error in a savepoint, what follows from it, and then another after going back to it",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            loader.batch_execute("SAVEPOINT risk; SELECT 'x'::integer").error("22P02");
            loader.batch_execute("SELECT 1").error("25P02");
            loader.batch_execute("ROLLBACK TO risk").unwrap();
            fail(&mut loader);
        },
        &[DIVISION],
    ),
    Story::new(
        "error in the statement that starts",
        |scene| {
            let mut loader = scene.begin();
            let call = "SELECT loader.record_execution_start(1) / 0";
            loader.batch_execute(call).error("22012");
        },
        &[DIVISION],
    ),
    Story::new(
        "error before the start",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT before").unwrap();
            fail(&mut loader);
            loader.batch_execute("ROLLBACK TO before").unwrap();
            scene.start(&mut loader, 1);
            loader.batch_execute("ROLLBACK").unwrap();
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "error caught in a savepoint, then success",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("SAVEPOINT risk").unwrap();
            fail(&mut loader);
            loader.batch_execute("ROLLBACK TO risk").unwrap();
            scene.let_the_worker_poll();
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "error caught in a savepoint, then rollback",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            loader.batch_execute("SAVEPOINT risk").unwrap();
            fail(&mut loader);
            loader.batch_execute("ROLLBACK TO risk; ROLLBACK").unwrap();
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "error caught in a savepoint, then another error",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            loader.batch_execute("SAVEPOINT risk").unwrap();
            loader.batch_execute("SELECT 'x'::integer").error("22P02");
            loader.batch_execute("ROLLBACK TO risk; RELEASE risk").unwrap();
            fail(&mut loader);
        },
        &[DIVISION],
    ),
    Story::new(
        "error caught in PL/pgSQL, then success",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute(CAUGHT).unwrap();
            scene.let_the_worker_poll();
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "error caught in PL/pgSQL, then rollback",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            loader.batch_execute(CAUGHT).unwrap();
            loader.batch_execute("ROLLBACK").unwrap();
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "deferred constraint that fails at COMMIT",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            load(&mut loader, id);
            scene.succeed(&mut loader, id);
            loader.batch_execute("COMMIT").error("23505");
        },
        &[
            "1 FAILED server-derived 23505: duplicate key value violates unique constraint \"loaded_once\"",
        ],
    ),
    Story::new(
        "serialization failure of an update",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            let update = "UPDATE counter SET number = number + 1";
            scene.connect().batch_execute(update).unwrap();
            loader.batch_execute(update).error("40001");
        },
        &["1 FAILED server-derived 40001: could not serialize access due to concurrent update"],
    )
    .under(&["REPEATABLE READ", "SERIALIZABLE"]),
    Story::new(
        "serialization failure at COMMIT",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            let (look, add) = ("SELECT count(*) FROM counter", "INSERT INTO counter VALUES (1)");
            loader.batch_execute(look).unwrap();
            let mut other = scene.begin();
            other.batch_execute(look).unwrap();
            other.batch_execute(add).unwrap();
            loader.batch_execute(add).unwrap();
            scene.succeed(&mut loader, id);
            other.batch_execute("COMMIT").unwrap();
            loader.batch_execute("COMMIT").error("40001");
        },
        &[
            "1 FAILED server-derived 40001: could not serialize access due to read/write dependencies among transactions",
        ],
    )
    .under(&["SERIALIZABLE"]),
    Story::new(
        "several executions in one transaction, committed",
        |scene| {
            let mut loader = scene.begin();
            let first = scene.start(&mut loader, 1);
            let second = scene.start(&mut loader, 1);
            scene.start(&mut loader, 2);
            end(&mut loader, second, "FAILED", Some("no such file")).unwrap();
            scene.succeed_and_commit(&mut loader, first);
        },
        &[SUCCESS, "1 FAILED no such file", "2 RUNNING"],
    ),
    Story::new(
        "several executions in one transaction, one of which breaks it",
        |scene| {
            let mut loader = scene.begin();
            let first = scene.start(&mut loader, 1);
            scene.start(&mut loader, 1);
            scene.succeed(&mut loader, first);
            fail(&mut loader);
        },
        &[DIVISION, DIVISION],
    ),
    Story::new(
        "two loads at the same time",
        |scene| {
            let (mut loader, mut other) = (scene.begin(), scene.begin());
            let id = scene.start(&mut loader, 1);
            let others = scene.start(&mut other, 1);
            scene.succeed(&mut loader, id);
            scene.succeed_and_commit(&mut other, others);
            loader.batch_execute("COMMIT").unwrap();
        },
        &[SUCCESS, SUCCESS],
    ),
];

/// An error that PL/pgSQL catches.
const CAUGHT: &str = "DO $$
    BEGIN
        PERFORM 1/0;
    EXCEPTION WHEN division_by_zero THEN
        NULL;
    END $$";

#[test]
fn transactions() {
    run_stories(&preloaded_cluster(), TRANSACTIONS);
}

#[test]
fn transactions_whose_starts_are_transactional() {
    run_stories_in_transactions(&preloaded_cluster(), TRANSACTIONS);
}

#[test]
fn transactions_without_preloading() {
    run_stories_in_transactions(&pg_test::cluster_with_extension(), TRANSACTIONS);
}

const LOST_SESSIONS: &[Story] = &[
    Story::new(
        "statement_timeout",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            loader.batch_execute("SET LOCAL statement_timeout = '50ms'").unwrap();
            loader.batch_execute("SELECT pg_sleep(60)").error("57014");
        },
        &["1 FAILED server-derived 57014: canceling statement due to statement timeout"],
    ),
    Story::new(
        "idle_in_transaction_session_timeout",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            let setting = "SET LOCAL idle_in_transaction_session_timeout = '50ms'";
            loader.batch_execute(setting).unwrap();
            scene.wait_until_failed(id);
        },
        &[
            "1 FAILED server-derived 25P03: terminating connection due to idle-in-transaction timeout",
        ],
    ),
    Story::new(
        "pg_terminate_backend",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            let pid: i32 = column(&mut loader, "SELECT pg_backend_pid()")[0];
            let terminate = "SELECT pg_terminate_backend($1)";
            scene.observer.query(terminate, &[&pid]).unwrap();
            scene.wait_until_failed(id);
        },
        &["1 FAILED server-derived 57P01: terminating connection due to administrator command"],
    ),
    Story::new(
        "client leaves",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            drop(loader);
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "client is killed between statements",
        |scene| {
            let (mut client, id) = start_in_psql(scene, "");
            scene.assert_running(id);
            client.kill().unwrap();
            client.wait().unwrap();
        },
        &[
            "1 FAILED server-derived 08006: unexpected EOF on client connection with an open transaction",
        ],
    ),
    Story::new(
        "client is killed in a statement",
        |scene| {
            let setting = "SET client_connection_check_interval = '50ms';";
            let (mut client, _) = start_in_psql(scene, setting);
            client.stdin.as_mut().unwrap().write_all(b"SELECT pg_sleep(600);\n").unwrap();
            wait_for("the statement to run", || {
                let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
                column::<i64>(&mut scene.observer, query)[0] == 1
            });
            client.kill().unwrap();
            client.wait().unwrap();
        },
        &["1 FAILED server-derived 08006: connection to client lost"],
    ),
];

/// A client that starts an execution in a transaction and can be killed, and the execution's id.
fn start_in_psql(scene: &Scene, settings: &str) -> (Child, i64) {
    let mut psql = scene.cluster.program("psql");
    psql.args(["-XqAt"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = psql.spawn().unwrap();
    let script = format!(
        "{} {settings} BEGIN ISOLATION LEVEL {}; SELECT loader.record_execution_start(1);\n",
        scene.settings(),
        scene.level
    );
    client.stdin.as_mut().unwrap().write_all(script.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (client, line.trim().parse().unwrap())
}

#[test]
fn lost_sessions() {
    run_stories(&preloaded_cluster(), LOST_SESSIONS);
}

#[test]
fn lost_sessions_whose_starts_are_transactional() {
    run_stories_in_transactions(&preloaded_cluster(), LOST_SESSIONS);
}

#[test]
fn lost_sessions_without_preloading() {
    run_stories_in_transactions(&pg_test::cluster_with_extension(), LOST_SESSIONS);
}

const SAVEPOINTS: &[Story] = &[
    Story::new(
        "start in a savepoint that is rolled back",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("ROLLBACK TO attempt").unwrap();
            scene.let_the_worker_poll();
            // The loader may still end it.
            scene.assert_running(id);
            loader.batch_execute("COMMIT").unwrap();
        },
        &[SAVEPOINT_ROLLED_BACK],
    ),
    Story::new(
        "start in a savepoint that an error rolls back",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            scene.start(&mut loader, 1);
            fail(&mut loader);
            loader.batch_execute("ROLLBACK TO attempt; COMMIT").unwrap();
        },
        &[DIVISION],
    ),
    Story::new(
        "start in a savepoint that an error rolls back, then rollback",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            scene.start(&mut loader, 1);
            fail(&mut loader);
            loader.batch_execute("ROLLBACK TO attempt; ROLLBACK").unwrap();
        },
        // Which of the two did it is not asked: the error tells more.
        &[DIVISION],
    ),
    Story::new(
        "start in a released savepoint of one that is rolled back",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT outer_one; SAVEPOINT inner_one").unwrap();
            scene.start(&mut loader, 1);
            loader.batch_execute("RELEASE inner_one; ROLLBACK TO outer_one; COMMIT").unwrap();
        },
        &[SAVEPOINT_ROLLED_BACK],
    ),
    Story::new(
        "start in a released savepoint",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("RELEASE attempt").unwrap();
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "start in a savepoint that is rolled back, and a start after it",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            scene.start(&mut loader, 1);
            loader.batch_execute("ROLLBACK TO attempt").unwrap();
            let second = scene.start(&mut loader, 1);
            scene.succeed_and_commit(&mut loader, second);
        },
        &[SAVEPOINT_ROLLED_BACK, SUCCESS],
    ),
    Story::new(
        "start in a PL/pgSQL block whose error is caught",
        |scene| {
            let mut loader = scene.begin();
            loader
                .batch_execute(
                    "DO $$
                     BEGIN
                         PERFORM loader.record_execution_start(1);
                         PERFORM 1/0;
                     EXCEPTION WHEN division_by_zero THEN
                         NULL;
                     END $$;
                     COMMIT",
                )
                .unwrap();
        },
        // The server does not log an error that is caught.
        &[SAVEPOINT_ROLLED_BACK],
    ),
    Story::new(
        "report in a savepoint that is rolled back",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            end(&mut loader, id, "FAILED", Some("too early")).unwrap();
            loader.batch_execute("ROLLBACK TO attempt; COMMIT").unwrap();
        },
        &["1 RUNNING"],
    ),
];

#[test]
fn savepoints() {
    run_stories(&preloaded_cluster(), SAVEPOINTS);
}

#[test]
fn savepoints_of_transactions_whose_starts_are_transactional() {
    run_stories_in_transactions(&preloaded_cluster(), SAVEPOINTS);
}

#[test]
fn savepoints_without_preloading() {
    run_stories_in_transactions(&pg_test::cluster_with_extension(), SAVEPOINTS);
}

const REPORTS_AFTER_A_SAVEPOINT: &[Story] = &[
    Story::new(
        "start in a savepoint that is rolled back, then reported as SUCCESS",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            let id = scene.start(&mut loader, 1);
            fail(&mut loader);
            loader.batch_execute("ROLLBACK TO attempt").unwrap();
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "start in a savepoint that is rolled back, then reported as FAILED",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            let id = scene.start(&mut loader, 1);
            fail(&mut loader);
            loader.batch_execute("ROLLBACK TO attempt").unwrap();
            end(&mut loader, id, "FAILED", Some("the first attempt")).unwrap();
            loader.batch_execute("COMMIT").unwrap();
        },
        &["1 FAILED the first attempt"],
    ),
    Story::new(
        "start in a savepoint that is rolled back, reported as FAILED after the commit",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("ROLLBACK TO attempt; COMMIT").unwrap();
            scene.wait_until_failed(id);
            end(&mut loader, id, "FAILED", Some("the first attempt")).unwrap();
        },
        &[
            "1 FAILED the first attempt\nserver: The savepoint that the execution started in was rolled back.",
        ],
    ),
];

#[test]
fn reports_after_a_savepoint() {
    run_stories(&preloaded_cluster(), REPORTS_AFTER_A_SAVEPOINT);
}

/// A transactional start goes with its savepoint.
const TRANSACTIONAL_REPORTS_AFTER_A_SAVEPOINT: &[Story] = &[Story::new(
    "start in a savepoint that is rolled back, then reported, and then a start that is kept",
    |scene| {
        let mut loader = scene.begin();
        for status in ["SUCCESS", "FAILED"] {
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("ROLLBACK TO attempt").unwrap();
            end(&mut loader, id, status, None).error("P0002");
            loader.batch_execute("ROLLBACK TO attempt").unwrap();
        }
        let id = scene.start(&mut loader, 1);
        scene.succeed_and_commit(&mut loader, id);
    },
    &[SUCCESS],
)];

#[test]
fn reports_after_a_savepoint_of_transactional_starts() {
    run_stories_in_transactions(&preloaded_cluster(), TRANSACTIONAL_REPORTS_AFTER_A_SAVEPOINT);
}

#[test]
fn reports_after_a_savepoint_without_preloading() {
    run_stories_in_transactions(
        &pg_test::cluster_with_extension(),
        TRANSACTIONAL_REPORTS_AFTER_A_SAVEPOINT,
    );
}

#[test]
fn success_is_seen_exactly_with_the_data() {
    const LOADS: usize = 40;
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    client.batch_execute("CREATE TABLE loaded (execution_id bigint PRIMARY KEY)").unwrap();
    for level in LEVELS {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut watcher = cluster.connect();
                let mut looks = 0;
                while !over.load(Ordering::Acquire) {
                    let query = "SELECT count(*) FROM loader.execution_history AS history
                         WHERE (history.status = 'SUCCESS') <> EXISTS
                               (SELECT FROM loaded WHERE execution_id = history.id)";
                    assert_eq!(column::<i64>(&mut watcher, query), [0], "under {level}");
                    looks += 1;
                }
                looks
            });
            for _ in 0..LOADS {
                client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).unwrap();
                let id = start(&mut client, 1);
                load(&mut client, id);
                end(&mut client, id, "SUCCESS", None).unwrap();
                client.batch_execute("COMMIT").unwrap();
            }
            over.store(true, Ordering::Release);
            println!("{LOADS} loads under {level}, {} looks", watcher.join().unwrap());
        });
    }
}
