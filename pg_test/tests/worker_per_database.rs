//! Promise: as many databases of a cluster as there is room for have a worker each, and no command
//! about databases ever finds a worker in its way.

use std::time::{Duration, Instant};

use pg_test::{
    APPLICATION_SQL, Client, Cluster, HasError, PRELOADED, Session, assert_autonomous,
    assert_autonomous_in, install_extension, launchers, seed, status_of, wait_for,
    wait_for_no_clients, wait_for_served, wait_for_worker, worker_of,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// PostgreSQL itself waits 5 s for others to leave a database, and then fails.
const FAST: Duration = Duration::from_secs(3);

/// A cluster that preloads the library and has the extension in `databases`, each with a worker.
/// Database `postgres`, where tests connect, does not have it.
fn cluster_with(databases: &[&str]) -> (Cluster, Client) {
    let cluster = Cluster::start_with(&format!("{PRELOADED}\nmax_worker_processes = 16\n"));
    let mut client = cluster.connect();
    for database in databases {
        client.batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
        install_extension(&cluster, database);
    }
    wait_for_served(&mut client, databases);
    (cluster, client)
}

/// Runs a command that must be over well before PostgreSQL would give up waiting.
#[track_caller]
fn fast(client: &mut Client, command: &str) {
    let started = Instant::now();
    if let Err(error) = client.batch_execute(command) {
        panic!("{command}: {error:?}");
    }
    let took = started.elapsed();
    assert!(took < FAST, "{command} took {took:?}");
}

#[test]
fn each_database_with_the_extension_has_a_worker_and_no_other() {
    let (mut cluster, mut client) = cluster_with(&["a", "b"]);
    client.batch_execute("CREATE DATABASE without").unwrap();
    assert_autonomous(&cluster, "a");
    assert_autonomous(&cluster, "b");

    // One that gets it later, and one that is made from a template that has it.
    client.batch_execute("CREATE DATABASE c").unwrap();
    install_extension(&cluster, "c");
    wait_for_served(&mut client, &["a", "b", "c"]);
    assert_autonomous(&cluster, "c");

    drop(client);
    for crash in [false, true] {
        if crash {
            cluster.crash_server();
        } else {
            cluster.stop_server();
        }
        cluster.start_server();
        // In a database that nobody has connected to, too.
        let mut client = cluster.connect();
        wait_for_served(&mut client, &["a", "b", "c"]);
        assert_eq!(launchers(&mut client).len(), 1);
    }
    for database in ["a", "b", "c"] {
        assert_autonomous(&cluster, database);
    }
}

#[test]
fn a_start_right_after_the_servers_start_is_autonomous() {
    let (mut cluster, client) = cluster_with(&["a", "b", "c", "d"]);
    drop(client);
    for _ in 0..3 {
        cluster.stop_server();
        cluster.start_server();
        // Without waiting for the worker; the last database is the last to get one.
        assert_autonomous_in(Session::new(&cluster, "d"), Session::new(&cluster, "d"));
    }
}

#[test]
fn templates_and_databases_without_connections_have_none() {
    let (cluster, mut client) = cluster_with(&["a", "b", "c"]);
    fast(&mut client, "ALTER DATABASE a IS_TEMPLATE true");
    wait_for_served(&mut client, &["b", "c"]);
    fast(&mut client, "ALTER DATABASE b ALLOW_CONNECTIONS false");
    wait_for_served(&mut client, &["c"]);

    // In a template starts fall back, and say so, at once.
    let mut session = Session::new(&cluster, "a");
    let started = Instant::now();
    session.run("BEGIN");
    session.start();
    session.run("COMMIT");
    let warnings = session.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("No background worker serves this database"), "{warnings:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let detail: String = session
        .client
        .query_one("SELECT detail FROM loader.recorder_status()", &[])
        .unwrap()
        .get(0);
    assert!(detail.contains("template"), "{detail}");
    drop(session);
    wait_for_no_clients(&cluster, "a");
    wait_for_served(&mut client, &["c"]);

    fast(&mut client, "ALTER DATABASE a IS_TEMPLATE false");
    wait_for_served(&mut client, &["a", "c"]);
    fast(&mut client, "ALTER DATABASE b ALLOW_CONNECTIONS true");
    wait_for_served(&mut client, &["a", "b", "c"]);
    assert_autonomous(&cluster, "a");
    assert_autonomous(&cluster, "b");
}

#[test]
fn a_database_made_from_a_template_with_the_extension_gets_a_worker() {
    let cluster = Cluster::start_with(PRELOADED);
    let mut client = cluster.connect();
    // As a DBA would do it for all databases to come.
    install_extension(&cluster, "template1");
    client.batch_execute("SELECT 1").unwrap();
    wait_for_no_clients(&cluster, "template1");
    for (number, strategy) in ["wal_log", "file_copy"].iter().enumerate() {
        let name = format!("made{number}");
        fast(&mut client, &format!("CREATE DATABASE {name} STRATEGY {strategy}"));
        // The first start does not wait until the worker is seen.
        assert_autonomous(&cluster, &name);
    }
    wait_for_served(&mut client, &["made0", "made1"]);
}

#[test]
fn a_database_with_a_worker_can_be_dropped() {
    let (cluster, mut client) = cluster_with(&["a", "b", "c"]);
    fast(&mut client, "DROP DATABASE a");
    fast(&mut client, "DROP DATABASE b WITH (FORCE)");
    wait_for_served(&mut client, &["c"]);
    fast(&mut client, "DROP DATABASE IF EXISTS a");
    // Over and over, with the worker just coming.
    for round in 0..5 {
        client.batch_execute("CREATE DATABASE a").unwrap();
        install_extension(&cluster, "a");
        if round % 2 == 0 {
            worker_of(&mut client, "a");
        }
        fast(&mut client, "DROP DATABASE a");
    }
    // A database that nobody put the extension into has a worker that only looks: it may be about to
    // start, or just looking.
    let mut random = StdRng::seed_from_u64(seed());
    for _ in 0..30 {
        fast(&mut client, "CREATE DATABASE short_lived");
        std::thread::sleep(Duration::from_micros(random.random_range(0..30_000)));
        fast(&mut client, "DROP DATABASE short_lived");
    }
    wait_for_served(&mut client, &["c"]);
    assert_autonomous(&cluster, "c");
    // 57P03 is what clients hear of a server that is not up yet.
    let log = cluster.log();
    let failures: Vec<_> =
        log.lines().filter(|line| line.contains("FATAL") && !line.contains("57P03")).collect();
    assert!(failures.is_empty(), "no worker fails over it: {failures:#?}");
}

#[test]
fn a_database_can_be_dropped_while_clients_use_it_by_force_alone() {
    let (cluster, mut client) = cluster_with(&["a"]);
    let mut loader = Session::new(&cluster, "a");
    loader.run("BEGIN");
    loader.start();
    client.batch_execute("DROP DATABASE a").error("55006");
    wait_for_served(&mut client, &["a"]);
    // The load goes on, and the worker knows of it.
    loader.run("COMMIT");
    assert_eq!(loader.warnings(), Vec::<String>::new());
    loader.run("BEGIN");
    loader.start();
    assert_eq!(loader.warnings(), Vec::<String>::new());
    fast(&mut client, "DROP DATABASE a WITH (FORCE)");
    wait_for_served(&mut client, &[]);
}

#[test]
fn a_database_with_a_worker_can_be_renamed() {
    let (cluster, mut client) = cluster_with(&["a", "b"]);
    fast(&mut client, "ALTER DATABASE a RENAME TO c");
    wait_for_served(&mut client, &["b", "c"]);
    assert_autonomous(&cluster, "c");

    let failed = client.batch_execute("ALTER DATABASE c RENAME TO b");
    failed.error("42P04");
    wait_for_served(&mut client, &["b", "c"]);
    assert_autonomous(&cluster, "c");

    fast(&mut client, "BEGIN; ALTER DATABASE c RENAME TO d; ROLLBACK");
    wait_for_served(&mut client, &["b", "c"]);
    assert_autonomous(&cluster, "c");

    // Two in one transaction: names swap.
    fast(
        &mut client,
        "BEGIN; ALTER DATABASE b RENAME TO x; ALTER DATABASE c RENAME TO b; ALTER DATABASE x RENAME TO c; COMMIT",
    );
    wait_for_served(&mut client, &["b", "c"]);
    assert_autonomous(&cluster, "b");
    assert_autonomous(&cluster, "c");
}

#[test]
fn a_worker_that_waits_for_its_database_does_not_hold_a_stop_up() {
    let (mut cluster, mut client) = cluster_with(&["a"]);
    client
        .batch_execute("BEGIN; ALTER DATABASE a RENAME TO b; PREPARE TRANSACTION 'rename'")
        .unwrap();
    wait_for("the next worker to wait for the prepared transaction", || {
        let waiting = "SELECT pid FROM pg_locks
             WHERE NOT granted AND locktype = 'object' AND classid = 'pg_database'::regclass";
        !pg_test::column::<i32>(&mut client, waiting).is_empty()
    });
    drop(client);
    cluster.stop_server();
    cluster.start_server();
    let mut client = cluster.connect();
    client.batch_execute("COMMIT PREPARED 'rename'").unwrap();
    wait_for_served(&mut client, &["b"]);
    assert_autonomous(&cluster, "b");
}

#[test]
fn a_failed_command_in_an_open_transaction_lets_the_worker_come_back() {
    let (cluster, mut client) = cluster_with(&["a", "b"]);
    let mut other = cluster.connect();
    client.batch_execute("BEGIN").unwrap();
    client.batch_execute("ALTER DATABASE a RENAME TO b").error("42P04");
    wait_for_served(&mut other, &["a", "b"]);
    assert_autonomous(&cluster, "a");
    client.batch_execute("ROLLBACK; BEGIN").unwrap();
    client.batch_execute("DROP DATABASE a").error("25001");
    wait_for_served(&mut other, &["a", "b"]);
    client.batch_execute("ROLLBACK").unwrap();
    client.batch_execute("DROP DATABASE missing").error("3D000");
    client.batch_execute("ALTER DATABASE missing RENAME TO a").error("3D000");
    client.batch_execute("CREATE DATABASE b TEMPLATE a").error("42P04");
    client.batch_execute("CREATE DATABASE c TEMPLATE missing").error("3D000");
    client.batch_execute("ALTER DATABASE a SET TABLESPACE missing").error("42704");
    wait_for_served(&mut other, &["a", "b"]);
    assert_autonomous(&cluster, "a");
}

#[test]
fn a_cancelled_command_lets_the_worker_come_back() {
    let (cluster, mut client) = cluster_with(&["a"]);
    let held = Session::new(&cluster, "a");
    // PostgreSQL waits for the other session, and the timeout ends it.
    client.batch_execute("SET statement_timeout = '300ms'").unwrap();
    client.batch_execute("DROP DATABASE a").error("57014");
    client.batch_execute("RESET statement_timeout").unwrap();
    drop(held);
    wait_for_served(&mut client, &["a"]);
    assert_autonomous(&cluster, "a");
}

#[test]
fn a_session_killed_while_it_keeps_the_worker_out_lets_it_come_back() {
    let (cluster, mut client) = cluster_with(&["a"]);
    let mut killed = Session::new(&cluster, "postgres");
    let pid: i32 = killed.client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    killed.run("BEGIN; ALTER DATABASE a RENAME TO b");
    wait_for_served(&mut client, &[]);
    client.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    wait_for_served(&mut client, &["a"]);
    assert_autonomous(&cluster, "a");
}

#[test]
fn a_database_with_a_worker_can_be_moved_to_another_tablespace() {
    let (cluster, mut client) = cluster_with(&["a"]);
    client.batch_execute("SET allow_in_place_tablespaces = on").unwrap();
    client.batch_execute("CREATE TABLESPACE other LOCATION ''").unwrap();
    fast(&mut client, "ALTER DATABASE a SET TABLESPACE other");
    wait_for_served(&mut client, &["a"]);
    assert_autonomous(&cluster, "a");
    fast(&mut client, "ALTER DATABASE a SET TABLESPACE pg_default");
    wait_for_served(&mut client, &["a"]);
    assert_autonomous(&cluster, "a");
}

#[test]
fn a_database_with_a_worker_can_be_copied() {
    let (cluster, mut client) = cluster_with(&["a"]);
    let mut loader = Session::new(&cluster, "a");
    loader.run("BEGIN");
    let committed = loader.start();
    loader.run("COMMIT; BEGIN");
    let rolled_back = loader.start();
    loader.run("ROLLBACK");
    drop(loader);
    // At once: watched transactions that nobody has looked at yet are copied with the rest.
    wait_for_no_clients(&cluster, "a");
    fast(&mut client, "CREATE DATABASE copy TEMPLATE a");
    wait_for_served(&mut client, &["a", "copy"]);
    for database in ["a", "copy"] {
        let mut session = Session::new(&cluster, database);
        wait_for("the failure", || {
            status_of(&mut session.client, rolled_back).as_deref() == Some("FAILED")
        });
        assert_eq!(status_of(&mut session.client, committed).as_deref(), Some("RUNNING"));
        drop(session);
        assert_autonomous(&cluster, database);
    }
    wait_for_no_clients(&cluster, "a");
    fast(&mut client, "CREATE DATABASE copy2 STRATEGY file_copy TEMPLATE a");
    assert_autonomous(&cluster, "copy2");
    wait_for_served(&mut client, &["a", "copy", "copy2"]);
}

#[test]
fn only_who_may_do_it_makes_a_worker_leave() {
    let (cluster, mut client) = cluster_with(&["a"]);
    client.batch_execute("CREATE ROLE stranger LOGIN CREATEDB").unwrap();
    let worker = worker_of(&mut client, "a");
    let mut stranger = Session::with_options(&cluster, "postgres", "stranger", "");
    for command in [
        "DROP DATABASE a",
        "DROP DATABASE a WITH (FORCE)",
        "ALTER DATABASE a RENAME TO b",
        "ALTER DATABASE a SET TABLESPACE pg_default",
        "ALTER DATABASE a CONNECTION LIMIT 3",
        "ALTER DATABASE a IS_TEMPLATE true",
        "ALTER DATABASE a ALLOW_CONNECTIONS false",
        "CREATE DATABASE b TEMPLATE a",
    ] {
        stranger.client.batch_execute(command).error("42501");
        assert_eq!(worker_of(&mut client, "a"), worker, "{command} made the worker leave");
    }
    assert_autonomous(&cluster, "a");
    assert_eq!(worker_of(&mut client, "a"), worker);
}

#[test]
fn a_database_s_owner_can_drop_it() {
    let (cluster, mut client) = cluster_with(&["a"]);
    client
        .batch_execute(
            "CREATE ROLE team; CREATE ROLE owner LOGIN CREATEDB; GRANT team TO owner; ALTER DATABASE a OWNER TO team",
        )
        .unwrap();
    wait_for_served(&mut client, &["a"]);
    let mut owner = Session::with_options(&cluster, "postgres", "owner", "");
    fast(&mut owner.client, "ALTER DATABASE a RENAME TO b");
    wait_for_served(&mut client, &["b"]);
    fast(&mut owner.client, "DROP DATABASE b");
    wait_for_served(&mut client, &[]);
}

#[test]
fn a_connection_limit_keeps_no_worker_out() {
    let (cluster, mut client) = cluster_with(&["a"]);
    fast(&mut client, "ALTER DATABASE a CONNECTION LIMIT 0");
    wait_for_served(&mut client, &["a"]);
    assert_autonomous(&cluster, "a");
}

#[test]
fn the_database_of_the_session_itself_can_be_altered() {
    let (cluster, mut client) = cluster_with(&["a"]);
    let mut session = Session::new(&cluster, "a");
    fast(&mut session.client, "ALTER DATABASE a CONNECTION LIMIT 100");
    session.run("ALTER DATABASE a SET work_mem = '8MB'");
    wait_for_served(&mut client, &["a"]);
    assert_autonomous_in(session, Session::new(&cluster, "a"));
}

#[test]
fn the_worker_comes_and_goes_with_the_extension() {
    let (cluster, mut client) = cluster_with(&["a"]);
    let mut session = Session::new(&cluster, "a");
    let again = |session: &mut Session, client: &mut Client, drop: &str| {
        session.run(drop);
        wait_for_served(client, &[]);
        session.run(APPLICATION_SQL);
        session.run("CREATE EXTENSION loader_history");
        // In the same session, and without a wait for the worker.
        session.run("BEGIN");
        session.start();
        assert_eq!(session.warnings(), Vec::<String>::new(), "after {drop}");
        session.run("COMMIT");
        wait_for_served(client, &["a"]);
    };
    again(
        &mut session,
        &mut client,
        "DROP EXTENSION loader_history CASCADE; DROP TABLE loader.loader",
    );
    again(&mut session, &mut client, "DROP SCHEMA loader CASCADE");
    // Dropped and created again at once: the worker is another, or knows that its tables are.
    session.run("DROP EXTENSION loader_history; CREATE EXTENSION loader_history");
    session.run("BEGIN");
    session.start();
    assert_eq!(session.warnings(), Vec::<String>::new());
    session.run("COMMIT; BEGIN; DROP EXTENSION loader_history; CREATE EXTENSION loader_history; COMMIT; BEGIN");
    session.start();
    assert_eq!(session.warnings(), Vec::<String>::new());
    session.run("COMMIT");

    // A rolled back one changes nothing.
    session.run("BEGIN; DROP EXTENSION loader_history; ROLLBACK; BEGIN");
    session.start();
    assert_eq!(session.warnings(), Vec::<String>::new());
    session.run("COMMIT");
    wait_for_served(&mut client, &["a"]);

    // Another superuser's, with all that is theirs.
    session.run("DROP EXTENSION loader_history; CREATE ROLE dba SUPERUSER; SET ROLE dba; CREATE EXTENSION loader_history; RESET ROLE");
    session.run("BEGIN");
    session.start();
    assert_eq!(session.warnings(), Vec::<String>::new());
    session.run("COMMIT");
    again(&mut session, &mut client, "DROP OWNED BY dba CASCADE; DROP TABLE loader.loader");

    // From within a function, as migrations do it.
    again(
        &mut session,
        &mut client,
        "DO $$ BEGIN EXECUTE 'DROP EXTENSION loader_history'; DROP TABLE loader.loader; END $$",
    );
    assert!(!cluster.log().contains("PANIC") && !cluster.log().contains("terminated by signal"));
}

#[test]
fn a_worker_that_looks_while_the_extension_is_created_stays_and_serves() {
    let (cluster, mut client) = cluster_with(&[]);
    client.batch_execute("CREATE DATABASE a").unwrap();
    let mut random = StdRng::seed_from_u64(seed());
    let mut owner = Session::new(&cluster, "a");
    let mut other = Session::new(&cluster, "a");
    owner.run(APPLICATION_SQL);
    for _ in 0..30 {
        wait_for_served(&mut client, &[]);
        owner.run("BEGIN; CREATE EXTENSION loader_history");
        // Brings a worker, which finds no extension before the commit and one after it.
        other.run("ALTER DATABASE a RESET loader_history.notify");
        std::thread::sleep(Duration::from_micros(random.random_range(0..25_000)));
        owner.run("COMMIT");
        wait_for_worker(&mut owner.client);
        owner.run("DROP EXTENSION loader_history");
    }
}

#[test]
fn a_start_in_the_transaction_that_creates_the_extension_falls_back() {
    let (cluster, mut client) = cluster_with(&["a"]);
    let mut session = Session::new(&cluster, "postgres");
    session.run(APPLICATION_SQL);
    session.run("BEGIN; CREATE EXTENSION loader_history");
    session.start();
    let warnings = session.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("The extension was created or updated in this transaction"),
        "{warnings:?}"
    );
    session.run("COMMIT");
    wait_for_served(&mut client, &["a", "postgres"]);
}
