//! Promise: no execution is FAILED by mistake. An id that was given is not given again, although its start was lost with a
//! server: a loader that reports by it would end another execution.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

use pg_test::{
    Client, Cluster, PRELOADED, Session, column, install_extension, seed, sqlstate,
    stop_replication, wait_for_equal, wait_for_worker,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SEQUENCE: &str = "loader.execution_history_id_seq";

/// A server with the extension and a worker, and a standby of it.
fn primary_and_standby() -> (Cluster, Cluster) {
    let primary = preloaded();
    let standby = primary.start_standby();
    (primary, standby)
}

/// A server with the extension and a worker.
fn preloaded() -> Cluster {
    preloaded_with("")
}

fn preloaded_with(settings: &str) -> Cluster {
    let cluster = Cluster::start_with(&format!("{PRELOADED}{settings}"));
    install_extension(&cluster, "postgres");
    wait_for_worker(&mut cluster.connect());
    cluster
}

fn start(cluster: &Cluster) -> i64 {
    Session::new(cluster, "postgres").start()
}

/// Promotes a standby, and waits for its worker, which skips lost ids.
fn promote(standby: &Cluster) {
    standby.promote();
    wait_for_worker(&mut standby.connect());
}

/// Starts that no standby receives, before the server is gone.
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
fn ids_lost_with_the_primary_are_not_given_again() {
    let mut random = StdRng::seed_from_u64(seed());
    let (mut primary, mut standby) = primary_and_standby();
    for _ in 0..2 {
        let lost = lose(&mut primary, 1, random.random_range(1..200));
        promote(&standby);
        let mut sessions: Vec<_> = (0..8).map(|_| Session::new(&standby, "postgres")).collect();
        let mut given: Vec<i64> = thread::scope(|scope| {
            let threads: Vec<_> = sessions
                .iter_mut()
                .map(|session| scope.spawn(|| [(); 5].map(|()| session.start())))
                .collect();
            threads.into_iter().flat_map(|it| it.join().expect("a session")).collect()
        });
        given.sort_unstable();
        let next: Vec<_> = (given[0]..).take(given.len()).collect();
        assert_eq!(given, next, "they were skipped once");
        assert!(given[0] > lost[lost.len() - 1] + 100_000, "{} after {lost:?}", given[0]);
        assert_unknown(&mut sessions[0].client, &lost);
        drop(sessions);
        // They are not skipped again.
        standby.crash_server();
        standby.start_server();
        wait_for_worker(&mut standby.connect());
        let again = start(&standby) - given[given.len() - 1];
        assert!((1..100).contains(&again), "{again}");
        primary = standby;
        standby = primary.start_standby();
    }
}

#[test]
fn ids_lost_with_the_new_primary_are_not_given_again() {
    let (mut primary, first) = primary_and_standby();
    let second = primary.start_standby();
    let lost = lose(&mut primary, 2, 10);
    promote(&first);
    let mut session = Session::new(&first, "postgres");
    let given: Vec<_> = (0..50).map(|_| session.start()).collect();
    // The new primary is gone before the second standby has received more than its timeline's history file. Into its place
    // at once, since the second standby may look for it any time.
    let history = "pg_wal/00000002.history";
    let copy = second.data().join("copy");
    fs::copy(first.data().join(history), &copy).unwrap();
    let owner = fs::metadata(second.data()).unwrap();
    std::os::unix::fs::chown(&copy, Some(owner.uid()), Some(owner.gid())).unwrap();
    fs::rename(copy, second.data().join(history)).unwrap();
    drop((session, first));
    promote(&second);
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

#[test]
fn ids_given_after_the_target_of_a_recovery_are_not_given_again() {
    let mut primary = preloaded_with(
        "archive_mode = on
         archive_command = 'mkdir -p ../archive && cp %p ../archive/%f'",
    );
    let backup = primary.base_backup(&[]);
    start(&primary);
    primary.connect().batch_execute("SELECT pg_create_restore_point('target')").unwrap();
    let lost = [(); 10].map(|()| start(&primary));
    primary.stop_server();
    let archive = primary.directory().join("archive");
    let mut restored = backup.to_restore(&archive, "recovery_target_name = 'target'");
    restored.start_server();
    let mut client = restored.connect();
    wait_for_equal("the end of recovery", &vec![false], || {
        column(&mut client, "SELECT pg_is_in_recovery()")
    });
    wait_for_worker(&mut client);
    assert_unknown(&mut client, &lost);
    let given = start(&restored);
    assert!(given > lost[lost.len() - 1] + 100_000, "{given} after {lost:?}");
}

#[test]
fn a_crash_takes_no_id_back() {
    for autonomous in [None, Some("off"), Some("on")] {
        let mut cluster = Cluster::start_with(if autonomous.is_some() { PRELOADED } else { "" });
        install_extension(&cluster, "postgres");
        if autonomous.is_some() {
            wait_for_worker(&mut cluster.connect());
        }
        let mut known = HashSet::new();
        for _ in 0..5 {
            let mut loader = Session::new(&cluster, "postgres");
            let mut session = Session::new(&cluster, "postgres");
            if let Some(value) = autonomous {
                loader.run(&format!("SET loader_history.autonomous_start = {value}"));
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
            if autonomous.is_some() {
                wait_for_worker(&mut cluster.connect());
            }
            assert!(known.insert(start(&cluster)), "an id was given again after the crash");
        }
    }
}

#[test]
fn a_sequence_that_a_dba_has_changed_keeps_its_increment() {
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
        pg_test::catch_up(&mut primary.connect(), &mut standby.connect());
        lose(&mut primary, 1, 10);
        promote(&standby);
        let moved = start(&standby) - before;
        assert_eq!(moved % step, 0, "{kind}: {moved}");
        assert_eq!(moved / step > 1_000_000, room, "{kind}: {moved}");
        assert!(moved / step > 0, "{kind}: {moved}");
    }
}
