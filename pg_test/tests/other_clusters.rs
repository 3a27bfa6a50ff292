//! Promise: what one cluster knows of its transactions never decides about another's: standbys,
//! subscribers and upgraded clusters tell the truth.

use pg_test::{
    Cluster, HasError, Listener, PRELOADED, Session, Signal, assert_autonomous, column,
    freeze_worker, launchers, preloaded_cluster, preloaded_cluster_with, send_signal, served,
    status_of, wait_for, wait_for_served, wait_for_worker,
};

/// The lines that a server has logged as going wrong.
fn complaints(cluster: &Cluster, since: usize) -> Vec<String> {
    cluster.log()[since..]
        .lines()
        .filter(|line| {
            ["ERROR", "WARNING", "PANIC", "terminated by signal", "loader_history worker"]
                .iter()
                .any(|word| line.contains(word))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_standby_has_no_worker_and_a_promoted_one_does() {
    let mut primary = preloaded_cluster();
    let mut client = primary.connect();
    client.batch_execute("CREATE DATABASE second").unwrap();
    pg_test::install_extension(&primary, "second");
    wait_for_served(&mut client, &["postgres", "second"]);
    let standby = primary.start_standby();
    let mut reader = standby.connect();

    let mut loader = Session::new(&primary, "postgres");
    loader.run("BEGIN");
    let committed = loader.start();
    loader.run("COMMIT; BEGIN");
    let succeeded = loader.start();
    loader.run(&format!("SELECT loader.record_execution_end({succeeded}, 'SUCCESS'); COMMIT"));
    let mut second = Session::new(&primary, "second");
    second.run("BEGIN");
    let second_open = second.start();
    loader.run("BEGIN");
    let open = loader.start();
    let mut subtransaction = Session::new(&primary, "postgres");
    subtransaction.run("BEGIN; SAVEPOINT s");
    let open_below = subtransaction.start();
    subtransaction.run("RELEASE s");
    wait_for("the standby to have them", || {
        status_of(&mut reader, open_below).as_deref() == Some("RUNNING")
            && status_of(&mut reader, open).as_deref() == Some("RUNNING")
    });
    assert!(served(&mut reader).is_empty() && launchers(&mut reader).is_empty());
    let detail: String =
        reader.query_one("SELECT detail FROM loader.recorder_status()", &[]).unwrap().get(0);
    assert!(detail.contains("standby"), "{detail}");
    assert_eq!(complaints(&standby, 0), [] as [&str; 0]);
    reader.query("SELECT loader.record_execution_start(1)", &[]).error("25006");

    // Rows are replicated before the primary dies: all that it has committed.
    let written: String =
        client.query_one("SELECT pg_current_wal_lsn()::text", &[]).unwrap().get(0);
    wait_for("the standby to catch up", || {
        let query = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn");
        reader.query_one(&query, &[]).unwrap().get(0)
    });
    primary.crash_server();
    reader.batch_execute("SELECT pg_promote()").unwrap();
    wait_for_served(&mut reader, &["postgres", "second"]);
    assert_eq!(launchers(&mut reader).len(), 1);
    for id in [open, open_below] {
        wait_for("what was open to be FAILED", || {
            status_of(&mut reader, id).as_deref() == Some("FAILED")
        });
    }
    let message: Vec<String> = column(
        &mut reader,
        &format!("SELECT error_message FROM loader.execution_history WHERE id = {open}"),
    );
    assert!(message[0].contains("The server stopped"), "{message:?}");
    let mut other = standby.connect_to("second", "postgres");
    wait_for("what was open to be FAILED", || {
        status_of(&mut other, second_open).as_deref() == Some("FAILED")
    });
    assert_eq!(status_of(&mut reader, succeeded).as_deref(), Some("SUCCESS"));
    assert_eq!(status_of(&mut reader, committed).as_deref(), Some("RUNNING"));
    assert_autonomous(&standby, "postgres");
    assert_autonomous(&standby, "second");
    assert_eq!(status_of(&mut reader, committed).as_deref(), Some("RUNNING"));
}

#[test]
fn a_backup_restored_beside_its_primary_ends_its_own_executions_alone() {
    let primary = preloaded_cluster();
    let mut loader = Session::new(&primary, "postgres");
    loader.run("BEGIN");
    let open = loader.start();
    let copy = primary.start_standby();
    let mut copied = copy.connect();
    copied.batch_execute("SELECT pg_promote()").unwrap();
    wait_for("the copy to end what nobody runs there", || {
        status_of(&mut copied, open).as_deref() == Some("FAILED")
    });
    assert_eq!(status_of(&mut primary.connect(), open).as_deref(), Some("RUNNING"));
    loader.run(&format!("SELECT loader.record_execution_end({open}, 'SUCCESS'); COMMIT"));
    assert_eq!(status_of(&mut primary.connect(), open).as_deref(), Some("SUCCESS"));
}

/// A subscriber to all tables of `publisher`, with the extension and no rows of its own.
fn subscriber(publisher: &Cluster) -> Cluster {
    let subscriber = Cluster::start_with(PRELOADED);
    let mut client = subscriber.connect();
    client
        .batch_execute(
            "CREATE SCHEMA loader;
             CREATE TABLE loader.loader (id bigint PRIMARY KEY, loader_code varchar(64) NOT NULL);
             CREATE EXTENSION loader_history",
        )
        .unwrap();
    wait_for_worker(&mut client);
    client
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION everything CONNECTION 'host={} user=postgres dbname=postgres'
                 PUBLICATION everything",
            publisher.directory().display()
        ))
        .unwrap();
    subscriber
}

#[test]
fn a_subscriber_takes_no_watched_transactions_and_fails_nothing_by_itself() {
    let publisher = preloaded_cluster_with("wal_level = logical\n");
    let mut loader = Session::new(&publisher, "postgres");
    loader.run("CREATE PUBLICATION everything FOR ALL TABLES");
    // One that is copied together with its watched transaction: the worker is stopped, and does not find out
    // that the transaction is over. (PostgreSQL makes no replication slot while a transaction is open.)
    loader.run("BEGIN");
    let copied = loader.start();
    let worker = freeze_worker(&mut publisher.connect());
    loader.run("COMMIT");
    assert_eq!(
        column::<i64>(
            &mut loader.client,
            "SELECT count(*) FROM loader_history.watched_transaction"
        ),
        [1]
    );
    let subscriber = subscriber(&publisher);
    let mut there = subscriber.connect();
    wait_for("the first copy", || status_of(&mut there, copied).as_deref() == Some("RUNNING"));
    wait_for("all tables to be ready", || {
        column::<bool>(&mut there, "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel")
            == [true]
    });
    assert_eq!(
        column::<i64>(&mut there, "SELECT count(*) FROM loader_history.watched_transaction"),
        [0]
    );
    send_signal(worker, Signal::SIGCONT);

    // The subscriber's transaction ids are far below, so that the publisher's are ids of the future
    // there; and far above, so that they are ids of the past. Neither says anything.
    for burn in [0, 3000] {
        for _ in 0..burn {
            there.batch_execute("SELECT pg_current_xact_id()").unwrap();
        }
        loader.run("BEGIN");
        let open = loader.start();
        wait_for("the start", || status_of(&mut there, open).as_deref() == Some("RUNNING"));
        assert_eq!(
            column::<i64>(&mut there, "SELECT count(*) FROM loader_history.watched_transaction"),
            [0]
        );
        loader.run(&format!("SELECT loader.record_execution_end({open}, 'SUCCESS', 7); COMMIT"));
        wait_for("the end", || status_of(&mut there, open).as_deref() == Some("SUCCESS"));
        loader.run("BEGIN");
        let failing = loader.start();
        loader.run("ROLLBACK");
        wait_for("the failure", || status_of(&mut there, failing).as_deref() == Some("FAILED"));
    }
    assert_eq!(status_of(&mut there, copied).as_deref(), Some("RUNNING"));
    loader.run(&format!("SELECT loader.record_execution_end({copied}, 'SUCCESS')"));
    wait_for("its end", || status_of(&mut there, copied).as_deref() == Some("SUCCESS"));

    // The events of prepared transactions are the publisher's too.
    let (mut heard, mut heard_there) = (Listener::new(&publisher), Listener::new(&subscriber));
    loader.run("BEGIN");
    let prepared = loader.start();
    loader.run(&format!("SELECT loader.record_execution_end({prepared}, 'SUCCESS')"));
    loader.run("PREPARE TRANSACTION 'load'");
    loader.run("COMMIT PREPARED 'load'");
    heard.receive_until("its end", |event| {
        event["execution_id"] == prepared && event["event_type"] == "EXECUTION_SUCCESS"
    });
    assert_eq!(heard.by_execution()[&prepared], ["STARTED", "SUCCESS"]);
    wait_for("its end", || status_of(&mut there, prepared).as_deref() == Some("SUCCESS"));
    assert_eq!(
        column::<i64>(&mut there, "SELECT count(*) FROM loader_history.prepared_change"),
        [0]
    );

    // A worker that comes anew finds nothing either, and the subscriber's own loads are its own.
    there.batch_execute("ALTER SUBSCRIPTION everything DISABLE").unwrap();
    let state: Vec<Option<String>> = column(
        &mut there,
        "SELECT concat_ws(' ', watched_running, detail, last_error) FROM loader.recorder_status()",
    );
    assert_eq!(state, [Some("0".to_owned())]);
    there.batch_execute("SELECT setval('loader.execution_history_id_seq', 1000000)").unwrap();
    assert_autonomous(&subscriber, "postgres");
    heard_there.receive_all(&mut there);
    assert_eq!(
        heard_there.by_execution().len(),
        1,
        "its own loads alone: {:?}",
        heard_there.events
    );
    there
        .batch_execute(
            "ALTER SUBSCRIPTION everything SET (slot_name = NONE); DROP SUBSCRIPTION everything",
        )
        .unwrap();
    assert_eq!(complaints(&subscriber, 0), [] as [&str; 0]);
    assert_eq!(complaints(&publisher, 0), [] as [&str; 0]);
}
