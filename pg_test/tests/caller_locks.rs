//! Promise: recording waits for no lock that the load holds. A start that the worker can't write is transactional, with
//! one warning.

use pg_test::story::{Scene, Story, load, run_stories, start};
use pg_test::{APPLICATION_SQL, Client, HasError, column, preloaded_cluster};

const ROLLED_BACK: &str =
    "1 FAILED server-derived The transaction that started the execution was rolled back.";
const DIVISION: &str = "1 FAILED server-derived 22012: division by zero";
const SUCCESS: &str = "1 SUCCESS 3";

/// Locks, starts and succeeds; then locks, starts and fails. Both starts are autonomous.
fn autonomous_after(scene: &mut Scene, lock: &str) {
    let mut loader = scene.begin();
    loader.batch_execute(lock).unwrap();
    let id = scene.start(&mut loader, 1);
    scene.succeed_and_commit(&mut loader, id);
    scene.begin_in(&mut loader);
    loader.batch_execute(lock).unwrap();
    scene.start(&mut loader, 1);
    loader.batch_execute("SELECT 1/0").error("22012");
}

const LOCKED_LOADERS: &[Story] = &[
    Story::new(
        "FOR UPDATE of the loader",
        |scene| autonomous_after(scene, "SELECT FROM loader.loader WHERE id = 1 FOR UPDATE"),
        &[SUCCESS, DIVISION],
    ),
    Story::new(
        "FOR NO KEY UPDATE of the loader",
        |scene| autonomous_after(scene, "SELECT FROM loader.loader WHERE id = 1 FOR NO KEY UPDATE"),
        &[SUCCESS, DIVISION],
    ),
    Story::new(
        "FOR SHARE of the loader",
        |scene| autonomous_after(scene, "SELECT FROM loader.loader WHERE id = 1 FOR SHARE"),
        &[SUCCESS, DIVISION],
    ),
    Story::new(
        "FOR UPDATE of the loader in a savepoint that is rolled back",
        |scene| {
            let lock = "SAVEPOINT claim; SELECT FROM loader.loader WHERE id = 1 FOR UPDATE;
                        ROLLBACK TO claim";
            autonomous_after(scene, lock);
        },
        &[SUCCESS, DIVISION],
    ),
    Story::new(
        "ACCESS EXCLUSIVE on loader.loader",
        |scene| autonomous_after(scene, "LOCK loader.loader IN ACCESS EXCLUSIVE MODE"),
        &[SUCCESS, DIVISION],
    ),
    Story::new(
        "loader updated before the start",
        |scene| {
            let update = "UPDATE loader.loader SET loader_code = loader_code WHERE id = 1";
            autonomous_after(scene, update);
        },
        &[SUCCESS, DIVISION],
    ),
    Story::new(
        "loader deleted before the start",
        |scene| {
            let mut client = scene.connect();
            client.batch_execute("INSERT INTO loader.loader VALUES (1000, 'SHORT-LIVED')").unwrap();
            let mut loader = scene.begin();
            loader.batch_execute("DELETE FROM loader.loader WHERE id = 1000").unwrap();
            let call = "SELECT loader.record_execution_start(1000)";
            let error = loader.batch_execute(call).error("23503");
            assert_eq!(error.constraint(), Some("execution_history_loader_id_fkey"));
            drop(loader);
            client.batch_execute("DELETE FROM loader.loader WHERE id = 1000").unwrap();
        },
        &[],
    ),
    Story::new(
        "loader that is not there",
        |scene| {
            let call = "SELECT loader.record_execution_start(1000)";
            scene.begin().batch_execute(call).error("23503");
        },
        &[],
    ),
    Story::new(
        "loader created in the same transaction",
        |scene| {
            let mut loader = scene.begin();
            let new = create_loader(&mut loader);
            let id = scene.start_in_transaction(&mut loader, new);
            scene.succeed_and_commit(&mut loader, id);
        },
        &["new SUCCESS 3"],
    )
    .warns(&["The loader's row is not committed."]),
    Story::new(
        "loader created in the same transaction, which is rolled back",
        |scene| {
            let mut loader = scene.begin();
            let new = create_loader(&mut loader);
            scene.start_in_transaction(&mut loader, new);
            loader.batch_execute("ROLLBACK").unwrap();
        },
        // The loader has never been.
        &[],
    )
    .warns(&["The loader's row is not committed."]),
    Story::new(
        "loader created before the start, which a savepoint undoes",
        |scene| {
            let mut loader = scene.begin();
            let new = create_loader(&mut loader);
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            start(&mut loader, new);
            loader.batch_execute("ROLLBACK TO attempt; COMMIT").unwrap();
        },
        &[],
    )
    .warns(&["The loader's row is not committed."]),
];

/// What the caller does to its loader after an autonomous start.
const CHANGED_LOADERS: &[Story] = &[
    Story::new(
        "loader updated after the start",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            let update = "UPDATE loader.loader SET loader_code = loader_code WHERE id = 1";
            loader.batch_execute(update).unwrap();
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
    Story::new(
        "loader updated after the start, then an error",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            let update = "UPDATE loader.loader SET loader_code = loader_code WHERE id = 1";
            loader.batch_execute(update).unwrap();
            loader.batch_execute("SELECT 1/0").error("22012");
        },
        &[DIVISION],
    ),
    Story::new(
        "loader deleted after the start",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            // The execution is there, and refers to it.
            loader.batch_execute("DELETE FROM loader.loader WHERE id = 1").error("23503");
        },
        &[
            "1 FAILED server-derived 23503: update or delete on table \"loader\" violates foreign key constraint \"execution_history_loader_id_fkey\" on table \"execution_history\"",
        ],
    ),
    Story::new(
        "loader deleted after the start, in a savepoint",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("SAVEPOINT risk").unwrap();
            loader.batch_execute("DELETE FROM loader.loader WHERE id = 1").error("23503");
            loader.batch_execute("ROLLBACK TO risk").unwrap();
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    ),
];

#[test]
fn changed_loaders() {
    run_stories(&preloaded_cluster(), CHANGED_LOADERS);
}

/// Ends an execution, locks it as `lock` says, and then makes two autonomous starts.
fn beside_locked_rows(scene: &mut Scene, lock: &str) {
    let mut loader = scene.connect();
    let first = scene.start(&mut loader, 1);
    pg_test::story::end(&mut loader, first, "FAILED", Some("no such file")).unwrap();
    scene.wait_until_unwatched();
    let lock = format!("SELECT FROM loader.execution_history {lock}");
    autonomous_after(scene, &lock);
}

const LOCKED_ROWS: &[Story] = &[
    Story::new(
        "FOR UPDATE of all rows of the history",
        |scene| beside_locked_rows(scene, "FOR UPDATE"),
        &["1 FAILED no such file", SUCCESS, DIVISION],
    ),
    Story::new(
        "FOR NO KEY UPDATE of all rows of the history",
        |scene| beside_locked_rows(scene, "FOR NO KEY UPDATE"),
        &["1 FAILED no such file", SUCCESS, DIVISION],
    ),
    Story::new(
        "FOR UPDATE of the execution that it has started, commit",
        |scene| {
            let mut loader = scene.connect();
            // With a snapshot of before, the row could not be locked.
            loader.batch_execute("BEGIN").unwrap();
            let id = scene.start(&mut loader, 1);
            let lock = format!("SELECT FROM loader.execution_history WHERE id = {id} FOR UPDATE");
            loader.batch_execute(&lock).unwrap();
            scene.let_the_worker_poll();
            scene.succeed_and_commit(&mut loader, id);
        },
        &[SUCCESS],
    )
    .under(&["READ COMMITTED"]),
    Story::new(
        "FOR UPDATE of the execution by another session, rollback",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            let mut other = scene.begin();
            let lock = format!("SELECT FROM loader.execution_history WHERE id = {id} FOR UPDATE");
            other.batch_execute(&lock).unwrap();
            loader.batch_execute("SELECT 1/0").error("22012");
            // The worker does not wait for it: others are ended meanwhile.
            scene.let_the_worker_poll();
            assert_eq!(scene.status(id).as_deref(), Some("RUNNING"));
            other.batch_execute("COMMIT").unwrap();
        },
        &[DIVISION],
    ),
];

#[test]
fn locked_rows() {
    run_stories(&preloaded_cluster(), LOCKED_ROWS);
}

/// Has another session hold the loader's row, and `tell` the rest while a start of it waits.
fn while_another_holds_the_loader(
    scene: &mut Scene,
    tell: fn(&mut Scene, Client, std::thread::JoinHandle<(Client, i64)>),
) {
    let mut other = scene.begin();
    other.batch_execute("SELECT FROM loader.loader WHERE id = 1 FOR UPDATE").unwrap();
    let mut loader = scene.begin();
    let starting = std::thread::spawn(move || {
        let id = start(&mut loader, 1);
        (loader, id)
    });
    pg_test::wait_for("the start to wait", || {
        let waiting = "SELECT FROM pg_stat_activity
             WHERE wait_event_type = 'Lock' AND query LIKE '%record_execution_start%'";
        !scene.observer.query(waiting, &[]).unwrap().is_empty()
    });
    // It holds nobody else up.
    scene.let_the_worker_poll();
    tell(scene, other, starting);
}

const WAITING_STARTS: &[Story] = &[
    Story::new(
        "start that waits for another session's FOR UPDATE of the loader",
        |scene| {
            while_another_holds_the_loader(scene, |scene, mut other, starting| {
                other.batch_execute("COMMIT").unwrap();
                let (mut loader, id) = starting.join().unwrap();
                assert_eq!(scene.status(id).as_deref(), Some("RUNNING"), "it is autonomous");
                scene.succeed_and_commit(&mut loader, id);
            });
        },
        &[SUCCESS],
    ),
    Story::new(
        "start that waits for another session, which then needs the waiting one's lock",
        |scene| {
            let mut other = scene.begin();
            other.batch_execute("SELECT FROM loader.loader WHERE id = 1 FOR UPDATE").unwrap();
            let mut loader = scene.begin();
            loader.batch_execute("SELECT FROM loader.loader WHERE id = 2 FOR UPDATE").unwrap();
            loader.batch_execute("SET LOCAL deadlock_timeout = '10ms'").unwrap();
            other.batch_execute("SET LOCAL deadlock_timeout = '10min'").unwrap();
            let theirs = std::thread::spawn(move || {
                other
                    .batch_execute("SELECT FROM loader.loader WHERE id = 2 FOR UPDATE; COMMIT")
                    .unwrap();
            });
            pg_test::wait_for("the other session to wait", || {
                let waiting = "SELECT FROM pg_stat_activity
                     WHERE wait_event_type = 'Lock' AND query LIKE '%id = 2 FOR UPDATE%'";
                !scene.observer.query(waiting, &[]).unwrap().is_empty()
            });
            loader.batch_execute("SELECT loader.record_execution_start(1)").error("40P01");
            theirs.join().unwrap();
        },
        &[],
    ),
    Story::new(
        "start that waits for another session, with a lock_timeout",
        |scene| {
            let mut other = scene.begin();
            other.batch_execute("SELECT FROM loader.loader WHERE id = 1 FOR UPDATE").unwrap();
            let mut loader = scene.begin();
            loader.batch_execute("SET LOCAL lock_timeout = '50ms'").unwrap();
            loader.batch_execute("SELECT loader.record_execution_start(1)").error("55P03");
        },
        &[],
    ),
];

#[test]
fn waiting_starts() {
    run_stories(&preloaded_cluster(), WAITING_STARTS);
}

/// Creates a loader of an id that no story has used.
fn create_loader(client: &mut Client) -> i64 {
    let insert = "INSERT INTO loader.loader
        SELECT max(id) + 1, 'NEW' FROM loader.loader HAVING max(id) + 1 > 10 RETURNING id";
    column(client, insert)[0]
}

#[test]
fn locked_loaders() {
    run_stories(&preloaded_cluster(), LOCKED_LOADERS);
}

const TABLE_LOCKED: &str = "A table of the history is locked, by this session or another.";

/// Locks, makes a transactional start with a warning, and succeeds.
fn transactional_after(scene: &mut Scene, lock: &str) {
    let mut loader = scene.begin();
    loader.batch_execute(lock).unwrap();
    // Others can't look at what is locked.
    let id = start(&mut loader, 1);
    load(&mut loader, id);
    pg_test::story::end(&mut loader, id, "SUCCESS", None).unwrap();
    loader.batch_execute("COMMIT").unwrap();
    assert_eq!(scene.status(id).as_deref(), Some("SUCCESS"));
}

/// Has the worker try in vain, and again: that is no error.
fn let_the_worker_try(scene: &mut Scene) {
    let worker = pg_test::worker_of(&mut scene.observer, "postgres");
    let before = pg_test::sleeps(worker);
    pg_test::wait_for("the worker to try", || pg_test::sleeps(worker) > before + 20);
    let error = "SELECT last_error FROM loader.recorder_status()";
    assert_eq!(column::<Option<String>>(&mut scene.observer, error), [None]);
}

const LOCKED_TABLES: &[Story] = &[
    Story::new(
        "ACCESS EXCLUSIVE on the history",
        |scene| {
            transactional_after(scene, "LOCK loader.execution_history IN ACCESS EXCLUSIVE MODE")
        },
        &[SUCCESS],
    )
    .warns(&[TABLE_LOCKED]),
    Story::new(
        "SHARE on the history",
        |scene| transactional_after(scene, "LOCK loader.execution_history IN SHARE MODE"),
        &[SUCCESS],
    )
    .warns(&[TABLE_LOCKED]),
    Story::new(
        "ACCESS EXCLUSIVE on the watched transactions",
        |scene| {
            transactional_after(
                scene,
                "LOCK loader_history.watched_transaction IN ACCESS EXCLUSIVE MODE",
            )
        },
        &[SUCCESS],
    )
    .warns(&[TABLE_LOCKED]),
    Story::new(
        "ACCESS EXCLUSIVE on the history, then rollback",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("LOCK loader.execution_history IN ACCESS EXCLUSIVE MODE").unwrap();
            let id = start(&mut loader, 1);
            loader.batch_execute("SELECT 1/0").error("22012");
            loader.batch_execute("ROLLBACK").unwrap();
            pg_test::story::end(&mut loader, id, "FAILED", None).error("P0002");
        },
        &[],
    )
    .warns(&[TABLE_LOCKED]),
    Story::new(
        "ACCESS EXCLUSIVE on the history after the start",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            loader.batch_execute("LOCK loader.execution_history IN ACCESS EXCLUSIVE MODE").unwrap();
            load(&mut loader, id);
            pg_test::story::end(&mut loader, id, "SUCCESS", None).unwrap();
            loader.batch_execute("COMMIT").unwrap();
        },
        &[SUCCESS],
    ),
    Story::new(
        "rollback while another session locks the history",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            let mut other = scene.begin();
            other.batch_execute("LOCK loader.execution_history IN SHARE MODE").unwrap();
            loader.batch_execute("SELECT 1/0").error("22012");
            let_the_worker_try(scene);
            other.batch_execute("COMMIT").unwrap();
        },
        &[DIVISION],
    ),
    Story::new(
        "rollback while another session locks the server-derived outcomes",
        |scene| {
            let mut loader = scene.begin();
            scene.start(&mut loader, 1);
            let mut other = scene.begin();
            other.batch_execute("LOCK loader_history.server_outcome IN SHARE MODE").unwrap();
            loader.batch_execute("SELECT 1/0").error("22012");
            let_the_worker_try(scene);
            other.batch_execute("COMMIT").unwrap();
        },
        &[DIVISION],
    ),
    Story::new(
        "commit while another session locks the watched transactions",
        |scene| {
            let mut loader = scene.begin();
            let id = scene.start(&mut loader, 1);
            let mut other = scene.begin();
            other.batch_execute("LOCK loader_history.watched_transaction IN SHARE MODE").unwrap();
            scene.succeed_and_commit(&mut loader, id);
            let_the_worker_try(scene);
            other.batch_execute("COMMIT").unwrap();
        },
        &[SUCCESS],
    ),
];

#[test]
fn locked_tables() {
    run_stories(&preloaded_cluster(), LOCKED_TABLES);
}

/// Begins a transaction that creates the extension in a database of its own.
fn begin_with_new_extension(scene: &Scene) -> (String, Client) {
    let database = format!("new_{}", scene.level.to_lowercase().replace(' ', "_"));
    let mut client = scene.connect();
    client.batch_execute(&format!("DROP DATABASE IF EXISTS {database}")).unwrap();
    client.batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    scene.cluster.connect_to(&database, "postgres").batch_execute(APPLICATION_SQL).unwrap();
    let mut loader = scene.connect_in(&database);
    scene.begin_in(&mut loader);
    loader.batch_execute("CREATE EXTENSION loader_history").unwrap();
    (database, loader)
}

const NEW_EXTENSION: &[&str] = &["The extension was created or updated in this transaction."];

const NEW_EXTENSIONS: &[Story] = &[
    Story::new(
        "extension created in the same transaction",
        |scene| {
            let (database, mut loader) = begin_with_new_extension(scene);
            let id = start(&mut loader, 1);
            loader.batch_execute("CREATE TABLE loaded (execution_id bigint)").unwrap();
            load(&mut loader, id);
            pg_test::story::end(&mut loader, id, "SUCCESS", None).unwrap();
            loader.batch_execute("COMMIT").unwrap();
            scene.move_to(&database);
        },
        &[SUCCESS],
    )
    .warns(NEW_EXTENSION),
    Story::new(
        "extension created in the same transaction, and the start undone by a savepoint",
        |scene| {
            let (database, mut loader) = begin_with_new_extension(scene);
            loader.batch_execute("SAVEPOINT attempt").unwrap();
            start(&mut loader, 1);
            loader.batch_execute("ROLLBACK TO attempt; COMMIT").unwrap();
            scene.move_to(&database);
        },
        &[],
    )
    .warns(NEW_EXTENSION),
    Story::new(
        "extension created in a transaction that is rolled back, and again later",
        |scene| {
            let (database, mut loader) = begin_with_new_extension(scene);
            start(&mut loader, 1);
            loader.batch_execute("ROLLBACK").unwrap();
            loader.batch_execute("CREATE EXTENSION loader_history").unwrap();
            scene.move_to(&database);
            scene.let_the_worker_poll();
        },
        // The first extension has never existed.
        &[],
    )
    .warns(NEW_EXTENSION),
];

#[test]
fn new_extensions() {
    run_stories(&preloaded_cluster(), NEW_EXTENSIONS);
}

const SETTINGS: &[Story] = &[
    Story::new(
        "log_min_messages = panic",
        |scene| {
            let mut loader = scene.connect();
            loader.batch_execute("SET log_min_messages = panic").unwrap();
            scene.begin_in(&mut loader);
            let id = scene.start(&mut loader, 1);
            scene.succeed_and_commit(&mut loader, id);
            scene.begin_in(&mut loader);
            scene.start(&mut loader, 1);
            loader.batch_execute("SELECT 1/0").error("22012");
        },
        // The error text comes from the server log's hook.
        &[SUCCESS, ROLLED_BACK],
    ),
    Story::new(
        "autonomous_start = off, by SET",
        |scene| {
            let mut loader = scene.connect();
            loader.batch_execute("SET loader_history.autonomous_start = off").unwrap();
            transactional_success_and_rollback(scene, loader);
        },
        &[SUCCESS],
    ),
    Story::new(
        "autonomous_start = off, by SET LOCAL, and on again",
        |scene| {
            let mut loader = scene.begin();
            loader.batch_execute("SET LOCAL loader_history.autonomous_start = off").unwrap();
            scene.start_in_transaction(&mut loader, 1);
            loader.batch_execute("ROLLBACK").unwrap();
            scene.begin_in(&mut loader);
            scene.start(&mut loader, 1);
            loader.batch_execute("ROLLBACK").unwrap();
        },
        &[ROLLED_BACK],
    ),
    Story::new(
        "autonomous_start = off, by ALTER ROLE",
        |scene| {
            let loader = scene.connect_as("fast_loader");
            transactional_success_and_rollback(scene, loader);
        },
        &[SUCCESS],
    ),
];

fn transactional_success_and_rollback(scene: &mut Scene, mut loader: Client) {
    scene.begin_in(&mut loader);
    let id = scene.start_in_transaction(&mut loader, 1);
    scene.succeed_and_commit(&mut loader, id);
    scene.begin_in(&mut loader);
    scene.start_in_transaction(&mut loader, 1);
    loader.batch_execute("SELECT 1/0").error("22012");
}

#[test]
fn settings() {
    let cluster = preloaded_cluster();
    run_stories(&cluster, &[]);
    cluster
        .connect()
        .batch_execute(
            "CREATE ROLE fast_loader LOGIN;
             ALTER ROLE fast_loader SET loader_history.autonomous_start = off;
             GRANT INSERT ON loaded TO fast_loader;
             SELECT loader_history.grant_recorder('fast_loader')",
        )
        .unwrap();
    run_stories(&cluster, SETTINGS);
}

/// A transaction locks loader.loader and inserts into it: the worker must not take a row that it can't read for committed.
#[test]
fn a_loader_inserted_under_a_table_lock_has_no_history_after_a_rollback() {
    let cluster = preloaded_cluster();
    let mut observer = cluster.connect();
    for lock in ["EXCLUSIVE", "ACCESS EXCLUSIVE"] {
        let mut loader = cluster.connect();
        loader.batch_execute(&format!("BEGIN; LOCK loader.loader IN {lock} MODE")).unwrap();
        loader.batch_execute("INSERT INTO loader.loader VALUES (50, 'NEW')").unwrap();
        loader.query_one("SELECT loader.record_execution_start(50)", &[]).unwrap();
        loader.batch_execute("ROLLBACK").unwrap();
        // A start after it has gone through the same worker.
        observer.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap();
        let orphans: Vec<i64> = column(
            &mut observer,
            "SELECT count(*) FROM loader.execution_history WHERE loader_id NOT IN (SELECT id FROM loader.loader)",
        );
        assert_eq!(orphans, [0], "{lock}");
    }
}
