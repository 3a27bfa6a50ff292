//! Promise: nothing is called FAILED that is not. An id that was given is not given again, though its start was
//! lost with a server: whoever reports by it would end another's execution.
//!
//! No server here preloads the library, unless a test says so: what is lost had then been committed.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;

use pg_test::{
    Client, Cluster, HasError, PRELOADED, Session, column, install_extension, seed, sqlstate,
    stop_replication, wait_for_equal, wait_for_served,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SEQUENCE: &str = "loader.execution_history_id_seq";

/// A server with the extension, and a standby of it.
fn primary_and_standby() -> (Cluster, Cluster) {
    let primary = Cluster::start();
    install_extension(&primary, "postgres");
    let standby = primary.start_standby();
    (primary, standby)
}

fn start(cluster: &Cluster) -> i64 {
    Session::new(cluster, "postgres").start()
}

/// Starts that no standby hears of, before the server is gone.
fn lose(primary: &mut Cluster, standbys: usize, starts: usize) -> Vec<i64> {
    stop_replication(primary, standbys);
    let mut session = Session::new(primary, "postgres");
    let lost = (0..starts).map(|_| session.start()).collect();
    drop(session);
    primary.kill_server();
    lost
}

fn assert_unknown(client: &mut Client, ids: &[i64]) {
    for id in ids {
        let report = format!("SELECT loader.record_execution_end({id}, 'FAILED')");
        assert_eq!(sqlstate(&client.query(&report, &[])), "P0002", "{report}");
    }
}

#[test]
fn what_died_with_the_primary_is_not_given_again() {
    let mut random = StdRng::seed_from_u64(seed());
    let (mut primary, mut standby) = primary_and_standby();
    for round in 0..2 {
        let lost = lose(&mut primary, 1, random.random_range(1..200));
        standby.promote();
        // Many at once find out; or one in a transaction that stays open, which keeps nobody waiting.
        let mut sessions: Vec<_> = (0..8).map(|_| Session::new(&standby, "postgres")).collect();
        sessions[0].run("BEGIN");
        let mut given: Vec<i64> = Vec::new();
        if round == 0 {
            given.push(sessions[0].start());
        }
        thread::scope(|scope| {
            let threads: Vec<_> = sessions[1..]
                .iter_mut()
                .map(|session| scope.spawn(|| [(); 5].map(|()| session.start())))
                .collect();
            given.extend(threads.into_iter().flat_map(|it| it.join().expect("a session")));
        });
        given.sort_unstable();
        let next: Vec<_> = (given[0]..).take(given.len()).collect();
        assert_eq!(given, next, "they were skipped once");
        assert!(given[0] > lost[lost.len() - 1] + 100_000, "{} after {lost:?}", given[0]);
        assert_unknown(&mut sessions[1].client, &lost);
        sessions[0].run("COMMIT");
        drop(sessions);
        // Nor are they skipped again.
        standby.crash_server();
        standby.start_server();
        let again = start(&standby) - given[given.len() - 1];
        assert!((1..100).contains(&again), "{again}");
        primary = standby;
        standby = primary.start_standby();
    }
}

#[test]
fn nor_is_what_died_with_the_new_primary() {
    let (mut primary, first) = primary_and_standby();
    let second = primary.start_standby();
    let lost = lose(&mut primary, 2, 10);
    first.promote();
    let mut session = Session::new(&first, "postgres");
    let given: Vec<_> = (0..50).map(|_| session.start()).collect();
    // That one is gone before the second has heard of more than that there was one.
    // At once, since the second may look for it any time.
    let history = "pg_wal/00000002.history";
    let copy = second.data().join("copy");
    fs::copy(first.data().join(history), &copy).unwrap();
    let owner = fs::metadata(second.data()).unwrap();
    std::os::unix::fs::chown(&copy, Some(owner.uid()), Some(owner.gid())).unwrap();
    fs::rename(copy, second.data().join(history)).unwrap();
    drop((session, first));
    second.promote();
    let mut session = Session::new(&second, "postgres");
    let timeline: Vec<String> =
        column(&mut session.client, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    assert!(timeline[0].starts_with("00000003"), "{}", timeline[0]);
    let after: HashSet<_> = (0..50).map(|_| session.start()).collect();
    assert!(
        after.is_disjoint(&given.iter().chain(&lost).copied().collect()),
        "{after:?} {given:?}"
    );
    assert_unknown(&mut session.client, &given);
}

/// The file that tells where a timeline begins also holds the name of a restore point, as it was given.
#[test]
fn nor_is_what_was_given_after_a_restore_point_of_any_encoding() {
    let mut primary = Cluster::start_with(
        "archive_mode = on
         archive_command = 'mkdir -p ../archive && cp %p ../archive/%f'",
    );
    install_extension(&primary, "postgres");
    primary
        .connect()
        .batch_execute("CREATE DATABASE latin1 TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        .unwrap();
    let backup = primary.base_backup(&[]);
    start(&primary);
    primary
        .connect_to("latin1", "postgres")
        .batch_execute("SELECT pg_create_restore_point('vor der Übung')")
        .unwrap();
    let lost = [(); 10].map(|()| start(&primary));
    primary.stop_server();
    let mut restored = backup.to_restore(&primary.directory().join("archive"), "");
    let configuration = restored.data().join("postgresql.conf");
    let mut settings = fs::read(&configuration).unwrap();
    settings.extend_from_slice(b"\nrecovery_target_name = 'vor der \xDCbung'\n");
    fs::write(&configuration, settings).unwrap();
    restored.start_server();
    let mut client = restored.connect();
    wait_for_equal("the end of recovery", &vec![false], || {
        column(&mut client, "SELECT pg_is_in_recovery()")
    });
    let history = fs::read(restored.data().join("pg_wal/00000002.history")).unwrap();
    assert!(String::from_utf8(history).is_err(), "the name is there in LATIN1");
    assert_unknown(&mut client, &lost);
    let given = start(&restored);
    assert!(given > lost[lost.len() - 1] + 100_000, "{given} after {lost:?}");
}

#[test]
fn where_nothing_tells_what_was_lost_no_id_is_given() {
    let (mut primary, standby) = primary_and_standby();
    let lost = lose(&mut primary, 1, 10);
    standby.promote();
    let history = standby.data().join("pg_wal/00000002.history");
    let readable = fs::metadata(&history).unwrap().permissions();
    fs::set_permissions(&history, Permissions::from_mode(0o000)).unwrap();
    let mut session = Session::new(&standby, "postgres");
    for _ in 0..2 {
        let refused = session.client.query("SELECT loader.record_execution_start(1)", &[]);
        let error = refused.error("58030");
        assert!(error.message().contains("00000002.history"), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("read that file")), "{error:?}");
    }
    fs::set_permissions(&history, readable).unwrap();
    let given = session.start();
    assert!(given > lost[lost.len() - 1] + 100_000, "{given} after {lost:?}");
}

#[test]
fn a_crash_takes_no_id_back() {
    for durable in [None, Some("off"), Some("on")] {
        let mut cluster = Cluster::start_with(if durable.is_some() { PRELOADED } else { "" });
        install_extension(&cluster, "postgres");
        if durable.is_some() {
            wait_for_served(&mut cluster.connect(), &["postgres"]);
        }
        let mut known = HashSet::new();
        for _ in 0..5 {
            let mut loader = Session::new(&cluster, "postgres");
            let mut session = Session::new(&cluster, "postgres");
            if let Some(durable) = durable {
                loader.run(&format!("SET loader_history.autonomous_start = {durable}"));
            }
            // Nothing of its transaction need be on disk.
            loader.run("BEGIN");
            let id = loader.start();
            // Known to the client, and never committed.
            assert!(known.insert(id), "{id} was given before");
            for _ in 0..40 {
                session.run("BEGIN");
                assert!(known.insert(session.start()));
                session.run("ROLLBACK");
            }
            loader.run("SAVEPOINT another");
            assert!(known.insert(loader.start()));
            cluster.crash_server();
            cluster.start_server();
            if durable.is_some() {
                wait_for_served(&mut cluster.connect(), &["postgres"]);
            }
            assert!(known.insert(start(&cluster)), "an id was given again after the crash");
        }
    }
}

#[test]
fn a_sequence_that_a_dba_has_changed_keeps_its_steps() {
    // (how it counts, whether there is room to skip)
    let kinds = [
        ("INCREMENT 3", 3, true),
        ("INCREMENT -2 MINVALUE -9000000000 START -1 RESTART", -2, true),
        ("MAXVALUE 500000", 1, false),
        ("INCREMENT -2 MINVALUE -500 START -1 RESTART", -2, false),
    ];
    for (kind, step, room) in kinds {
        let (mut primary, standby) = primary_and_standby();
        primary.connect().batch_execute(&format!("ALTER SEQUENCE {SEQUENCE} {kind}")).unwrap();
        let before = start(&primary);
        let there = standby.connect();
        pg_test::catch_up(&mut primary.connect(), &mut { there });
        lose(&mut primary, 1, 10);
        standby.promote();
        let moved = start(&standby) - before;
        assert_eq!(moved % step, 0, "{kind}: {moved}");
        assert_eq!(moved / step > 1_000_000, room, "{kind}: {moved}");
        assert!(moved / step > 0, "{kind}: {moved}");
    }
}

#[test]
fn a_history_that_is_not_logged_skips_nothing() {
    let (mut primary, standby) = primary_and_standby();
    lose(&mut primary, 1, 10);
    standby.promote();
    let mut client = standby.connect();
    client
        .batch_execute(
            "ALTER TABLE loader.execution_history SET UNLOGGED; TRUNCATE loader.execution_history",
        )
        .unwrap();
    let first = start(&standby);
    assert!((1..100).contains(&(start(&standby) - first)), "each session has skipped ids");
}
