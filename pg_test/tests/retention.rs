//! Promise: under `loader_history.retention` what is old goes by itself, and nothing that a reader still
//! needs; loaders do not notice, and nothing stops it for good.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pg_test::{
    Client, Cluster, Session, Signal, Warnings, column, preloaded_cluster, preloaded_cluster_with,
    run, send_signal, wait_for, wait_for_equal, wait_for_served, wait_for_worker, worker_of,
};
use serde_json::Value;

/// Sets `loader_history.retention` for the whole server.
fn retain(client: &mut Client, age: &str) {
    client.batch_execute(&format!("ALTER SYSTEM SET loader_history.retention = '{age}'")).unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
}

/// Executions of loaders 1 to 10, one an hour, of which one in three failed: `count` of them, the last
/// `newest` days ago, and half an hour, so that none comes to be full days old while a test runs; and one that has just
/// started, which shows that the clock is right.
fn fill(client: &mut Client, count: i64, newest: i32) {
    client
        .batch_execute(&format!(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT n % 10 + 1, t, t + interval '3 s', CASE WHEN n % 3 = 0 THEN 'FAILED' ELSE 'SUCCESS' END
               FROM (SELECT n, now() - interval '{newest} days' - make_interval(hours => {count} - n, mins => 30) AS t
                       FROM generate_series(1, {count}) AS n) AS s;
             INSERT INTO loader.execution_history (loader_id, execution_start, status) VALUES (10, now(), 'RUNNING')"
        ))
        .unwrap();
}

fn count(client: &mut Client, condition: &str) -> i64 {
    let query = format!("SELECT count(*) FROM loader.execution_history WHERE {condition}");
    column(client, &query)[0]
}

fn last_error(client: &mut Client) -> Option<String> {
    column(client, "SELECT last_error FROM loader.recorder_status()").pop().unwrap()
}

/// Waits until of the executions that ended more than 30 days ago those alone are left that must stay,
/// and returns how many these are.
#[track_caller]
fn wait_for_the_rest(client: &mut Client) -> i64 {
    let stay = "SELECT count(*) FROM loader.execution_history AS h
                 WHERE id IN ((SELECT DISTINCT ON (loader_id) id FROM loader.execution_history
                                ORDER BY loader_id, execution_start DESC, id DESC)
                              UNION (SELECT DISTINCT ON (loader_id, status) id FROM loader.execution_history
                                      WHERE status <> 'RUNNING'
                                      ORDER BY loader_id, status, execution_start DESC, id DESC))
                   AND execution_end < now() - interval '30 days'";
    let stay = column::<i64>(client, stay)[0];
    wait_for_equal("what is left", &stay, || count(client, OLD));
    stay
}

/// What ended more than 30 days ago.
const OLD: &str = "execution_end < now() - interval '30 days'";

/// What the views say, but for what a purge may change.
fn summaries(client: &mut Client) -> Vec<String> {
    let mut found = column(
        client,
        "SELECT (loader_id, last_execution_id, last_status, last_execution_start, last_execution_end,
                 last_success_at, last_failure_at, last_error_message, is_failed, running_executions)::text
           FROM loader.loader_summary ORDER BY loader_id",
    );
    found.extend(column::<String>(client, "SELECT c::text FROM loader.failed_loader_counts AS c"));
    found
}

#[test]
fn what_is_old_goes_by_itself_and_the_summaries_stay() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    fill(&mut client, 3_000, 20);
    client
        .batch_execute(
            "INSERT INTO loader.loader SELECT n, 'LOADER_' || n FROM generate_series(11, 14) AS n;
             INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT loader, now() - make_interval(days => started), now() - make_interval(days => ended), status
               FROM (VALUES (11, 400, NULL, 'RUNNING'), (11, 390, 389, 'FAILED'), (11, 380, 379, 'FAILED'),
                            (12, 390, 389, 'SUCCESS'), (12, 380, 379, 'FAILED'), (12, 370, 369, 'FAILED'),
                            (13, 390, 100, 'SUCCESS'), (13, 380, 370, 'SUCCESS'),
                            (14, 390, 389, 'SUCCESS'), (14, 380, NULL, 'RUNNING')) AS v (loader, started, ended, status);
             INSERT INTO loader_history.server_outcome SELECT id, execution_end FROM loader.execution_history
                 WHERE status = 'FAILED' AND loader_id IN (3, 12)",
        )
        .unwrap();
    let before = summaries(&mut client);
    let young = count(&mut client, "execution_end >= now() - interval '29 days'");
    retain(&mut client, "30d");
    wait_for_the_rest(&mut client);
    assert_eq!(summaries(&mut client), before);
    assert_eq!(count(&mut client, "execution_end >= now() - interval '29 days'"), young);
    let left: Vec<String> = column(
        &mut client,
        "SELECT concat_ws(' ', loader_id, round(extract(epoch FROM execution_end - now()) / 86400), status)
           FROM loader.execution_history WHERE loader_id > 10 ORDER BY id",
    );
    assert_eq!(
        left,
        [
            "11 RUNNING",
            "11 -379 FAILED",
            "12 -389 SUCCESS",
            "12 -369 FAILED",
            "13 -370 SUCCESS",
            "14 -389 SUCCESS",
            "14 RUNNING"
        ]
    );
    let dangling = "SELECT count(*) FROM loader_history.server_outcome AS d
                     WHERE NOT EXISTS (SELECT FROM loader.execution_history AS h WHERE h.id = d.execution_id)";
    assert_eq!(column::<i64>(&mut client, dangling), [0], "notes of executions that are gone");
    assert_eq!(last_error(&mut client), None);
    assert!(!cluster.log().contains("ERROR"), "{}", cluster.log());
}

/// What a transaction has written to the log.
#[derive(Default)]
struct Written {
    deleted_rows: usize,
    bytes: u64,
}

/// What each transaction has written between two places of the log.
fn written(cluster: &Cluster, from: &str, to: &str) -> BTreeMap<u32, Written> {
    let mut waldump = cluster.server_program("pg_waldump");
    waldump.args(["--start", from, "--end", to, "--path"]).arg(cluster.data().join("pg_wal"));
    let mut written = BTreeMap::<u32, Written>::new();
    // rmgr: Heap len (rec/tot): 54/ 54, tx: 740, lsn: 0/01A2F3C8, prev 0/01A2F388, desc: DELETE ...
    // Where the first record begins behind `from`, after a page's header, a line says so.
    for line in run(&mut waldump).lines().filter(|line| line.starts_with("rmgr: ")) {
        let behind = |name: &str| line.split_once(name).unwrap().1.trim_start();
        let number = |text: &str| text.split(',').next().unwrap().trim().parse::<u64>().unwrap();
        let total = behind("(rec/tot):").split_once('/').unwrap().1;
        let transaction = written.entry(number(behind("tx:")).try_into().unwrap()).or_default();
        transaction.bytes += number(total);
        let is_delete = line.starts_with("rmgr: Heap ") && behind("desc:").starts_with("DELETE");
        transaction.deleted_rows += usize::from(is_delete);
    }
    written
}

#[test]
fn what_goes_at_once_and_what_it_locks_is_little_however_much_there_is() {
    let cluster = preloaded_cluster_with("full_page_writes = off");
    let mut client = cluster.connect();
    fill(&mut client, 10_000, 40);
    let mut place =
        || column::<String>(&mut client, "SELECT pg_current_wal_flush_lsn()::text").remove(0);
    let from = place();
    let mut client = cluster.connect();
    retain(&mut client, "30d");
    let worker = worker_of(&mut client, "postgres");
    let locks = format!(
        "SELECT count(*), count(*) FILTER (WHERE locktype = 'relation'
                                      AND mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock'))
           FROM pg_locks WHERE pid = {worker}"
    );
    let (mut most, mut strong) = (0_i64, 0_i64);
    wait_for("nearly all to go", || {
        let held = client.query_one(&locks, &[]).unwrap();
        (most, strong) = (most.max(held.get::<_, i64>(0)), strong.max(held.get::<_, i64>(1)));
        count(&mut client, OLD) <= 20
    });
    client.batch_execute("SELECT pg_switch_wal()").unwrap();
    let written = written(&cluster, &from, &place());
    let deleting = || written.values().filter(|written| written.deleted_rows > 0);
    assert!(deleting().map(|written| written.deleted_rows).sum::<usize>() >= 9_980);
    assert!(deleting().all(|written| written.deleted_rows <= 200), "rows a transaction");
    assert!(deleting().all(|written| written.bytes <= 200 * 250), "bytes of log a transaction");
    // Of tables and indexes, none of rows: few enough that its transactions never look large.
    assert!((1..=40).contains(&most), "{most} locks");
    assert_eq!(strong, 0, "locks that a loader could meet");
}

#[test]
fn nothing_goes_unless_it_is_set() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    fill(&mut client, 300, 400);
    let worker = worker_of(&mut client, "postgres");
    let set: String = column(&mut client, "SHOW loader_history.retention").remove(0);
    assert_eq!(set, "0");
    // A start and its end are more than the worker's next few looks.
    pg_test::assert_autonomous(&cluster, "postgres");
    retain(&mut client, "1000d");
    pg_test::assert_autonomous(&cluster, "postgres");
    assert_eq!(count(&mut client, OLD), 300);
    retain(&mut client, "0");
    retain(&mut client, "30d");
    wait_for_the_rest(&mut client);
    assert_eq!(worker_of(&mut client, "postgres"), worker, "a reload is enough");
}

#[test]
fn the_setting_is_a_superusers_and_a_session_cannot_set_it_wrong() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    client.batch_execute("CREATE ROLE owner LOGIN").unwrap();
    client.batch_execute("CREATE DATABASE other OWNER owner").unwrap();
    let mut owner = cluster.connect_to("other", "owner");
    for statement in [
        "SET loader_history.retention = '1d'",
        "ALTER DATABASE other SET loader_history.retention = '1d'",
        "ALTER ROLE owner SET loader_history.retention = '1d'",
    ] {
        let error = owner.batch_execute(statement).unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{statement}");
    }
    for value in ["-1", "'a while'", "'5000000000d'"] {
        let statement = format!("ALTER SYSTEM SET loader_history.retention = {value}");
        let error = client.batch_execute(&statement).unwrap_err();
        assert_eq!(error.code().unwrap().code(), "22023", "{value}");
    }
    // A session's own value is nobody else's, the greatest one as good as any.
    fill(&mut client, 30, 400);
    client.batch_execute("SET loader_history.retention = '1d'").unwrap();
    pg_test::assert_autonomous(&cluster, "postgres");
    retain(&mut client, "1491308d");
    pg_test::assert_autonomous(&cluster, "postgres");
    assert_eq!(count(&mut client, OLD), 30);
    assert_eq!(last_error(&mut client), None);
}

#[test]
fn a_database_can_have_a_retention_of_its_own() {
    let cluster = preloaded_cluster_with("loader_history.retention = '1000d'");
    let mut client = cluster.connect();
    fill(&mut client, 300, 400);
    client.batch_execute("ALTER DATABASE postgres SET loader_history.retention = '30d'").unwrap();
    let stay = wait_for_the_rest(&mut client);
    // Set back, it is the server's again.
    let worker = wait_for_worker(&mut client);
    client.batch_execute("ALTER DATABASE postgres RESET loader_history.retention").unwrap();
    wait_for("another worker", || worker_of(&mut client, "postgres") != worker);
    wait_for_served(&mut client, &["postgres"]);
    fill(&mut client, 300, 400);
    pg_test::assert_autonomous(&cluster, "postgres");
    assert_eq!(count(&mut client, OLD), 300 + stay);
    assert_eq!(last_error(&mut client), None);
}

#[test]
fn starts_stay_autonomous_while_very_much_goes() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    fill(&mut client, 6_000, 40);
    let over = AtomicBool::new(false);
    let warnings = Warnings::default();
    let starts: i64 = thread::scope(|scope| {
        let loaders: Vec<_> = (1..=4_i64)
            .map(|loader| {
                let (cluster, warnings, over) = (&cluster, &warnings, &over);
                scope.spawn(move || {
                    let mut session = warnings.connect(cluster);
                    let mut starts = 0;
                    while !over.load(Ordering::Relaxed) {
                        session
                            .query(
                                "SELECT loader.record_execution_end(loader.record_execution_start($1), 'SUCCESS')",
                                &[&loader],
                            )
                            .unwrap();
                        starts += 1;
                    }
                    starts
                })
            })
            .collect();
        retain(&mut client, "30d");
        let mut watch = cluster.connect();
        let done = thread::spawn(move || {
            wait_for("most to go", || count(&mut watch, OLD) <= 20);
        })
        .join();
        over.store(true, Ordering::Relaxed);
        let starts = loaders.into_iter().map(|loader| loader.join().unwrap()).sum();
        done.unwrap();
        starts
    });
    println!("{starts} starts");
    assert_eq!(warnings.count(), 0, "{:?}", *warnings.reasons());
    assert_eq!(count(&mut client, "execution_end > now() - interval '1 day'"), starts);
    assert_eq!(last_error(&mut client), None);
}

#[test]
fn what_somebody_locks_stays_until_later_and_nobody_waits() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    fill(&mut client, 300, 40);
    let mut holder = cluster.connect();
    let mut holding = holder.transaction().unwrap();
    holding
        .batch_execute("SELECT FROM loader.execution_history WHERE id IN (1, 50) FOR KEY SHARE")
        .unwrap();
    retain(&mut client, "30d");
    wait_for("the others to go", || count(&mut client, "id < 200 AND id NOT IN (1, 50)") == 0);
    assert_eq!(count(&mut client, "id IN (1, 50)"), 2);
    pg_test::assert_autonomous(&cluster, "postgres");
    holding.rollback().unwrap();
    // The next walk would find them; a new setting begins one at once.
    retain(&mut client, "31d");
    wait_for("the two to go", || count(&mut client, "id IN (1, 50)") == 0);

    // A table that is locked is waited for without a lock that starts would wait for.
    fill(&mut client, 300, 40);
    let mut holding = holder.transaction().unwrap();
    holding.batch_execute("LOCK TABLE loader_history.server_outcome IN SHARE MODE").unwrap();
    retain(&mut client, "30d");
    let mut session = Session::new(&cluster, "postgres");
    for _ in 0..20 {
        session.start();
    }
    assert_eq!(session.warnings(), Vec::<String>::new());
    assert!(count(&mut client, OLD) >= 300);
    holding.rollback().unwrap();
    wait_for_the_rest(&mut client);
    assert_eq!(last_error(&mut client), None, "others' locks are nothing to report");
}

#[test]
fn what_another_table_refers_to_stays_and_the_others_go() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    fill(&mut client, 1_000, 40);
    client
        .batch_execute(
            "CREATE TABLE kept (execution_id bigint REFERENCES loader.execution_history (id));
             INSERT INTO kept VALUES (1), (77), (400), (401);
             CREATE TABLE gone (execution_id bigint REFERENCES loader.execution_history (id) ON DELETE CASCADE);
             INSERT INTO gone SELECT n FROM generate_series(1, 1000) AS n;
             CREATE TABLE late (execution_id bigint REFERENCES loader.execution_history (id) DEFERRABLE INITIALLY DEFERRED);
             INSERT INTO late VALUES (500)",
        )
        .unwrap();
    let stay =
        "SELECT string_agg(id::text, ' ' ORDER BY id) FROM loader.execution_history WHERE id < 900";
    retain(&mut client, "30d");
    wait_for_equal("what stays", &vec!["1 77 400 401 500".to_owned()], || {
        column::<String>(&mut client, stay)
    });
    wait_for("the end", || count(&mut client, OLD) == 25);
    let dangling = "SELECT count(*) FROM gone WHERE execution_id NOT IN (SELECT id FROM loader.execution_history)";
    assert_eq!(column::<i64>(&mut client, dangling), [0]);
    let error = last_error(&mut client).expect("an error");
    assert!(
        error.contains("an execution is not purged")
            && error.contains("violates foreign key constraint"),
        "{error}"
    );
    let logged = cluster.log().matches("an execution is not purged").count();
    assert!(logged <= 3, "{logged} lines in the log:\n{}", cluster.log());
    // Not referred to any more, they go too.
    client.batch_execute("DROP TABLE kept, late").unwrap();
    retain(&mut client, "31d");
    wait_for_the_rest(&mut client);
    pg_test::assert_autonomous(&cluster, "postgres");
}

#[test]
fn a_slow_trigger_of_the_dbas_own_does_not_keep_starts_waiting() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    fill(&mut client, 300, 40);
    client
        .batch_execute(
            "CREATE FUNCTION doze() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF OLD.id = 5 THEN PERFORM pg_sleep(100); END IF;
                 RETURN OLD;
             END $$;
             CREATE TRIGGER doze BEFORE DELETE ON loader.execution_history FOR EACH ROW EXECUTE FUNCTION doze()",
        )
        .unwrap();
    retain(&mut client, "30d");
    let mut session = Session::new(&cluster, "postgres");
    wait_for("all others to go", || {
        session.start();
        count(&mut client, OLD) == 21
    });
    assert_eq!(count(&mut client, "id = 5"), 1);
    assert_eq!(session.warnings(), Vec::<String>::new());
    let error = last_error(&mut client).expect("an error");
    assert!(error.contains("statement timeout"), "{error}");
}

#[test]
fn nothing_of_another_role_runs_with_the_workers_rights() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    fill(&mut client, 300, 40);
    client
        .batch_execute(
            "CREATE ROLE app LOGIN; CREATE SCHEMA app AUTHORIZATION app;
             GRANT USAGE ON SCHEMA loader TO app; GRANT REFERENCES ON loader.execution_history TO app;
             CREATE TABLE public.ran (by text); GRANT INSERT ON public.ran TO PUBLIC",
        )
        .unwrap();
    let mut app = cluster.connect_to("postgres", "app");
    app.batch_execute(
        "CREATE TABLE app.note (execution_id bigint REFERENCES loader.execution_history (id) ON DELETE CASCADE);
         CREATE FUNCTION app.spring() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.ran VALUES (current_user); RETURN NULL; END $$;
         CREATE TRIGGER spring AFTER DELETE ON app.note FOR EACH ROW EXECUTE FUNCTION app.spring()",
    )
    .unwrap();
    client
        .batch_execute("INSERT INTO app.note SELECT n FROM generate_series(1, 300) AS n")
        .unwrap();
    retain(&mut client, "30d");
    wait_for("the worker to say so", || {
        last_error(&mut client).is_some_and(|error| error.contains("app.note"))
    });
    assert_eq!(count(&mut client, OLD), 300);
    assert_eq!(column::<String>(&mut client, "SELECT by FROM ran"), Vec::<String>::new());
    // Once the table is a superuser's, it goes on; what it runs is that one's.
    client.batch_execute("DROP TABLE app.note").unwrap();
    retain(&mut client, "31d");
    wait_for_the_rest(&mut client);
}

#[test]
fn it_goes_on_after_a_crash_and_after_a_killed_worker() {
    let mut cluster = preloaded_cluster();
    let mut client = cluster.connect();
    // So many that some are left after a crash, however late the test comes to look.
    fill(&mut client, 20_000, 40);
    retain(&mut client, "30d");
    wait_for("some to go", || count(&mut client, OLD) < 19_800);
    send_signal(worker_of(&mut client, "postgres"), Signal::SIGKILL);
    wait_for("the server to notice", || client.batch_execute("SELECT 1").is_err());
    wait_for("the server", || {
        cluster.config("postgres", "postgres").connect(postgres::NoTls).is_ok()
    });
    let mut client = cluster.connect();
    // The position is where the purge has come to: what is left before it stays.
    let passed =
        "(execution_end, id) <= (SELECT execution_end, id FROM loader_history.purge_position)";
    assert!((1..=20).contains(&count(&mut client, passed)) || count(&mut client, passed) == 0);
    let left = count(&mut client, OLD);
    assert!(left > 20, "{left}");
    wait_for("some more to go", || count(&mut client, OLD) < left - 200);
    drop(client);
    cluster.crash_server();
    cluster.start_server();
    let mut client = cluster.connect();
    wait_for_the_rest(&mut client);
    let loaders = "SELECT count(*) FROM loader.loader_summary WHERE last_success_at IS NOT NULL AND last_failure_at IS NOT NULL";
    assert_eq!(column::<i64>(&mut client, loaders), [10]);
}

#[test]
fn a_standby_purges_nothing_until_it_is_promoted() {
    let primary = preloaded_cluster();
    let mut client = primary.connect();
    fill(&mut client, 300, 40);
    let standby = primary.start_standby();
    let mut reader = standby.connect();
    retain(&mut reader, "30d");
    wait_for("the standby to follow", || count(&mut reader, OLD) == 300);
    client.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    wait_for("the standby to follow", || count(&mut reader, "status = 'RUNNING'") == 2);
    assert_eq!(count(&mut reader, OLD), 300);
    reader.batch_execute("SELECT pg_promote()").unwrap();
    wait_for_worker(&mut reader);
    wait_for_the_rest(&mut reader);
    assert_eq!(count(&mut client, OLD), 300, "the other server keeps what it has");
    assert!(!standby.log().contains("ERROR"), "{}", standby.log());
}

/// Pages that a call touches.
fn pages(client: &mut Client, call: &str) -> i64 {
    let plan: Value = client
        .query_one(&format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT {call}"), &[])
        .unwrap()
        .get(0);
    let count = |key: &str| plan[0]["Plan"][key].as_i64().unwrap();
    count("Shared Hit Blocks") + count("Shared Read Blocks")
}

#[test]
fn a_purge_reads_a_bounded_number_of_pages_an_execution() {
    let cluster = Cluster::start_with("shared_buffers = '512MB'");
    let mut client = cluster.connect();
    client.batch_execute(pg_test::APPLICATION_SQL).unwrap();
    client
        .batch_execute(
            "INSERT INTO loader.loader SELECT n, n FROM generate_series(11, 10000) AS n;
             CREATE EXTENSION loader_history",
        )
        .unwrap();
    // Loaders that stopped long ago: all of theirs stays. Before any statistics are there.
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT n, t, t, 'SUCCESS'
               FROM (SELECT n, now() - make_interval(days => 1000, secs => n) AS t FROM generate_series(1001, 10000) AS n) AS s",
        )
        .unwrap();
    fill(&mut client, 20_000, 40);
    pages(&mut client, "loader_history.purge_execution_history('900 days', 1)");
    let kept = pages(&mut client, "loader_history.purge_execution_history('900 days', 1000)");
    println!("{kept} pages for 9000 executions that stay");
    assert!(kept < 9_000 * 10);
    let mut most = 0;
    for _ in 0..10 {
        let call = "loader_history.purge_execution_history('30 days', 1000)";
        most = most.max(pages(&mut client, call) - kept);
    }
    println!("{most} pages for 1000 executions that go");
    assert!(most < 1_000 * 20);
}

#[test]
fn the_table_does_not_grow_under_a_steady_load() {
    let cluster = preloaded_cluster_with("loader_history.retention = '30d'");
    let mut client = cluster.connect();
    let mut sizes = Vec::new();
    // What is recorded is as old as what goes, or it would not go in time.
    for _ in 0..8 {
        fill(&mut client, 2_000, 40);
        retain(&mut client, if sizes.len() % 2 == 0 { "31d" } else { "30d" });
        wait_for("the old to go", || count(&mut client, OLD) <= 20);
        client
            .batch_execute("VACUUM loader.execution_history, loader_history.server_outcome")
            .unwrap();
        let size = "SELECT pg_total_relation_size('loader.execution_history')";
        sizes.push(column::<i64>(&mut client, size)[0]);
    }
    println!("{sizes:?}");
    assert!(sizes[7] <= sizes[1] * 5 / 4, "{sizes:?}");
}

#[test]
fn a_clock_far_ahead_of_the_newest_start_purges_no_more_than_a_day_of_it_would() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    // For a clock that is right this is a server that has recorded nothing for 100 days.
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT 1, t, t + interval '3 s', 'SUCCESS'
               FROM (SELECT now() - make_interval(days => 201 - n, mins => 30) AS t
                       FROM generate_series(1, 101) AS n) AS s",
        )
        .unwrap();
    retain(&mut client, "30d");
    let past = "execution_end < now() - interval '130 days'";
    wait_for("what is older than the newest start by then", || count(&mut client, past) == 0);
    pg_test::assert_autonomous(&cluster, "postgres");
    assert_eq!(count(&mut client, OLD), 30);
    // That start proves the clock; the newest SUCCESS stays.
    retain(&mut client, "31d");
    wait_for("the others to go", || count(&mut client, OLD) == 1);
    assert_eq!(last_error(&mut client), None);
}
