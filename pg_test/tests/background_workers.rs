//! Promise: the background processes cost nothing while there is nothing to do, stop and start with the
//! server, come back where they were lost, and say what is wrong with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pg_test::{
    Client, Cluster, HasError, Listener, PRELOADED, Session, Signal, assert_autonomous,
    assert_autonomous_in, column, fallback_start, install_extension, launchers, preloaded_cluster,
    preloaded_cluster_with, send_signal, sleeps, status_of, wait_for, wait_for_served,
    wait_for_worker, worker_of,
};

/// How long nothing is to happen.
const QUIET: Duration = Duration::from_secs(3);

/// A cluster that preloads the library, with the extension in `databases`, each with a worker.
fn cluster_with(databases: &[&str], settings: &str) -> (Cluster, Client) {
    let cluster = Cluster::start_with(&format!("{PRELOADED}{settings}"));
    let mut client = cluster.connect();
    for database in databases {
        client.batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
        install_extension(&cluster, database);
    }
    (cluster, client)
}

/// `recorder_status()` as text: the words of its detail, and its numbers.
fn status(client: &mut Client, column: &str) -> Option<String> {
    let query = format!("SELECT ({column})::text FROM loader.recorder_status()");
    client.query_one(&query, &[]).unwrap().get(0)
}

/// Connects to a server that may be recovering just now.
fn reconnect(cluster: &Cluster) -> Client {
    let mut client = None;
    wait_for("the server to accept connections again", || {
        client = cluster.config("postgres", "postgres").connect(postgres::NoTls).ok();
        client.is_some()
    });
    client.unwrap()
}

// Slots

#[test]
fn databases_beyond_max_worker_processes_fall_back_and_say_why() {
    // PostgreSQL's own launcher of logical replication takes one, ours another: two are left.
    // The long timeout shows whether somebody waits for it.
    let (mut cluster, mut client) =
        cluster_with(&["a", "b", "c", "d"], "max_worker_processes = 4\n");
    let check = |cluster: &Cluster, client: &mut Client| {
        // Those that look into databases without the extension do not count: they leave.
        let databases = ["a", "b", "c", "d"];
        let mut served = Vec::new();
        wait_for("the two workers that there are slots for", || {
            served = pg_test::served(client);
            served.len() == 2 && served.iter().all(|name| databases.contains(&name.as_str()))
        });
        for database in databases {
            if served.iter().any(|name| name == database) {
                assert_autonomous(cluster, database);
                continue;
            }
            let mut session = Session::new(cluster, database);
            let mut observer = cluster.connect_to(database, "postgres");
            let started = Instant::now();
            for _ in 0..5 {
                let warning = fallback_start(&mut session, &mut observer);
                assert!(warning.contains("No background worker could be started"), "{warning}");
            }
            let took = started.elapsed();
            assert!(took < Duration::from_secs(15), "five starts took {took:?}");
            let detail = status(&mut observer, "detail").unwrap_or_default();
            assert!(detail.contains("max_worker_processes"), "{detail}");
            assert_eq!(status(&mut observer, "worker_pid"), None);
        }
        served
    };
    let served = check(&cluster, &mut client);
    drop(client);

    let began = Instant::now();
    cluster.stop_server();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    cluster.start_server();
    let mut client = cluster.connect();
    check(&cluster, &mut client);
    assert_eq!(served.len(), 2);

    // A slot that becomes free gets a worker.
    let now_served = pg_test::served(&mut client);
    client.batch_execute(&format!("DROP DATABASE {}", now_served[0])).unwrap();
    wait_for("a worker in a database that had none", || {
        let found = pg_test::served(&mut client);
        found.len() == 2 && !found.contains(&now_served[0])
    });
    // It was logged, and not over and over.
    let lines = cluster.log().matches("no slot for a background worker").count();
    assert!((1..=8).contains(&lines), "{lines} lines about no slot");
}

#[test]
fn without_a_slot_even_for_the_launcher_starts_are_transactional_and_quick() {
    for processes in [0, 1] {
        let cluster = Cluster::start_with(&format!(
            "{PRELOADED}max_worker_processes = {processes}\nloader_history.worker_timeout = '5s'\n"
        ));
        install_extension(&cluster, "postgres");
        let mut session = Session::new(&cluster, "postgres");
        let mut observer = cluster.connect();
        let started = Instant::now();
        for _ in 0..4 {
            fallback_start(&mut session, &mut observer);
        }
        let took = started.elapsed();
        assert!(
            took < Duration::from_secs(15),
            "max_worker_processes = {processes}: four starts took {took:?}, so each waited for nobody"
        );
        let detail = status(&mut observer, "detail").unwrap_or_default();
        assert!(detail.contains("max_worker_processes"), "{detail}");
    }
}

// Idle

#[test]
fn idle_processes_sleep_and_log_nothing() {
    let (cluster, mut client) = cluster_with(&["a", "b"], "");
    wait_for_served(&mut client, &["a", "b"]);
    // Busy first: what that leaves behind is to calm down by itself.
    assert_autonomous(&cluster, "a");
    let mut loader = Session::new(&cluster, "b");
    loader.run("BEGIN");
    loader.start();
    loader.run("COMMIT");
    let mut pids = launchers(&mut client);
    assert_eq!(pids.len(), 1);
    pids.push(worker_of(&mut client, "a"));
    pids.push(worker_of(&mut client, "b"));
    let mut before: Vec<u64> = pids.iter().map(|&pid| sleeps(pid)).collect();
    wait_for("the processes to calm down", || {
        thread::sleep(Duration::from_secs(1));
        let now: Vec<u64> = pids.iter().map(|&pid| sleeps(pid)).collect();
        let calm = now == before;
        before = now;
        calm
    });
    let log = cluster.log();
    thread::sleep(QUIET);
    for (pid, before) in pids.iter().zip(&before) {
        let woken = sleeps(*pid) - before;
        assert!(woken <= 1, "of {pids:?} (launcher first), {pid} woke {woken} times in {QUIET:?}");
    }
    assert_eq!(log, cluster.log(), "nothing to log while nothing happens");
}

#[test]
fn the_launcher_sleeps_when_failed_workers_are_wanted_no_more() {
    let (cluster, mut client) = cluster_with(&["a", "b", "c"], "");
    wait_for_served(&mut client, &["a", "b", "c"]);
    let launcher = launchers(&mut client)[0];
    let mut sessions: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|database| {
            // A worker that cannot read the watched transactions ends, and so does the next.
            let worker = worker_of(&mut client, database);
            let mut session = Session::new(&cluster, database);
            session.run(
                "ALTER TABLE loader_history.watched_transaction RENAME COLUMN xid TO transaction",
            );
            client.execute("SELECT pg_terminate_backend($1)", &[&worker]).unwrap();
            session
        })
        .collect();
    wait_for("workers to fail, and the launcher to start others", || {
        cluster.log().matches("loader_history worker: column w.xid").count() >= 6
    });
    sessions[0].run("DROP EXTENSION loader_history");
    client.batch_execute("DROP DATABASE b WITH (FORCE)").unwrap();
    client.batch_execute("ALTER DATABASE c ALLOW_CONNECTIONS false").unwrap();
    wait_for_served(&mut client, &[]);
    let mut before = sleeps(launcher);
    wait_for("the launcher to calm down", || {
        thread::sleep(Duration::from_secs(1));
        let now = sleeps(launcher);
        let calm = now <= before + 1;
        before = now;
        calm
    });
    thread::sleep(QUIET);
    let woken = sleeps(launcher) - before;
    assert!(woken <= 1, "the launcher woke {woken} times in {QUIET:?}");
    assert_eq!(launchers(&mut client), [launcher]);
}

#[test]
fn an_open_load_costs_a_few_looks_a_second_and_logs_nothing() {
    let cluster = preloaded_cluster();
    let mut loader = Session::new(&cluster, "postgres");
    let mut client = cluster.connect();
    loader.run("BEGIN");
    loader.start();
    let worker = worker_of(&mut client, "postgres");
    let begun = Instant::now();
    let (before, log) = (sleeps(worker), cluster.log());
    thread::sleep(QUIET);
    let woken = sleeps(worker) - before;
    // The test may have slept longer.
    let took = begun.elapsed();
    assert!(woken <= 10 * took.as_secs(), "{woken} in {took:?}");
    assert_eq!(log, cluster.log());
}

#[test]
fn starting_and_stopping_logs_a_line_or_two_a_worker() {
    let (mut cluster, mut client) = cluster_with(&["a", "b", "c"], "");
    wait_for_served(&mut client, &["a", "b", "c"]);
    drop(client);
    cluster.stop_server();
    let before = cluster.log().len();
    cluster.start_server();
    wait_for_served(&mut cluster.connect(), &["a", "b", "c"]);
    cluster.stop_server();
    let log = cluster.log()[before..].to_owned();
    let ours: Vec<_> = log
        .lines()
        .filter(|line| line.contains("loader_history") && !line.contains(".s.PGSQL"))
        .collect();
    assert!(ours.len() <= 8, "{ours:#?}");
    for word in ["ERROR", "WARNING", "PANIC", "\"loader_history worker\""] {
        assert!(!log.contains(word), "{word} in\n{log}");
    }
}

// Signals

#[test]
fn a_reload_reaches_worker_and_launcher() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    let worker = worker_of(&mut client, "postgres");
    let launcher = launchers(&mut client)[0];
    let lines_of = |pid: i32| cluster.log().matches(&format!("[{pid}]")).count();
    for (level, talks) in [("debug5", true), ("warning", false)] {
        client.batch_execute(&format!("ALTER SYSTEM SET log_min_messages = {level}")).unwrap();
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
        let mut quiet_worker = 0;
        let mut quiet_launcher = 0;
        wait_for("worker and launcher to log as they are told", || {
            // Something to do for each of them.
            let (worker_before, launcher_before) = (lines_of(worker), lines_of(launcher));
            assert_autonomous(&cluster, "postgres");
            client.batch_execute("CREATE DATABASE brief").unwrap();
            client.batch_execute("DROP DATABASE brief").unwrap();
            quiet_worker = lines_of(worker) - worker_before;
            quiet_launcher = lines_of(launcher) - launcher_before;
            (quiet_worker > 0) == talks && (quiet_launcher > 0) == talks
        });
    }
    assert_eq!(worker_of(&mut client, "postgres"), worker, "the worker stays");
    // What the worker relies on, no reload takes from it.
    for setting in [
        "session_replication_role = origin",
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
        "statement_timeout = '1ms'",
        "search_path = nowhere",
        "loader_history.notify = off",
        "loader_history.autonomous_start = off",
    ] {
        client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).unwrap();
    }
    client.batch_execute("ALTER SYSTEM SET log_min_messages = warning").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    let options = "-c statement_timeout=0 -c default_transaction_read_only=off -c loader_history.autonomous_start=on";
    let session = || Session::with_options(&cluster, "postgres", "postgres", options);
    wait_for("the settings", || {
        let mut other = cluster.config("postgres", "postgres");
        other.options("-c statement_timeout=0");
        let mut other = other.connect(postgres::NoTls).unwrap();
        column::<String>(&mut other, "SHOW search_path") == ["nowhere"]
    });
    assert_autonomous_in(session(), session());
    assert!(!cluster.log().contains("ERROR"), "{}", cluster.log());
}

#[test]
fn a_fast_stop_takes_no_longer_than_without_the_library() {
    const STOPS: usize = 7;
    let databases = ["a", "b", "c", "d"];
    let mut clusters = [false, true].map(|library| {
        let cluster = Cluster::start_with(if library { PRELOADED } else { "" });
        for database in databases {
            cluster.connect().batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
            install_extension(&cluster, database);
        }
        (library, cluster, Vec::new())
    });
    for stop in 0..STOPS {
        for (library, cluster, times) in &mut clusters {
            if *library {
                wait_for_served(&mut cluster.connect(), &databases);
            }
            // With starts under way, and an idle server.
            let loaders: Vec<_> = databases
                .iter()
                .filter(|_| stop % 2 == 0)
                .map(|database| {
                    let mut loader = cluster.connect_to(database, "postgres");
                    thread::spawn(move || {
                        let start = "BEGIN; SELECT loader.record_execution_start(1)";
                        while loader.batch_execute(start).is_ok()
                            && loader.batch_execute("ROLLBACK").is_ok()
                        {}
                    })
                })
                .collect();
            let started = Instant::now();
            cluster.stop_server();
            // The first stop has something to write.
            if stop > 0 {
                times.push(started.elapsed());
            }
            for loader in loaders {
                loader.join().unwrap();
            }
            cluster.start_server();
        }
    }
    let [without, with] = clusters.map(|(.., mut times)| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    // The disk is as busy as others make it.
    let most = without + without / 2 + Duration::from_millis(200);
    assert!(with <= most, "{with:?} with the library, {without:?} without");
}

#[test]
fn the_server_stops_and_comes_back_while_starts_are_recorded() {
    let mut cluster = preloaded_cluster();
    for round in 0..3 {
        let over = Arc::new(AtomicBool::new(false));
        let mut watch = cluster.connect();
        let count = "SELECT count(*) FROM loader.execution_history WHERE loader_id = 2";
        let before = column::<i64>(&mut watch, count)[0];
        let loads: Vec<_> = (0..6)
            .map(|_| {
                let over = Arc::clone(&over);
                let mut client = cluster.connect();
                thread::spawn(move || {
                    let mut started = 0;
                    while !over.load(Ordering::Relaxed)
                        && client
                            .batch_execute("BEGIN; SELECT loader.record_execution_start(2); COMMIT")
                            .is_ok()
                    {
                        started += 1;
                    }
                    started
                })
            })
            .collect();
        wait_for("starts", || column::<i64>(&mut watch, count)[0] > before + 20);
        drop(watch);
        let began = Instant::now();
        cluster.stop_server();
        let took = began.elapsed();
        over.store(true, Ordering::Relaxed);
        let started: i64 = loads.into_iter().map(|load| load.join().unwrap()).sum();
        assert!(took < Duration::from_secs(5), "round {round}: the stop took {took:?}");
        cluster.start_server();
        let mut client = cluster.connect();
        wait_for_worker(&mut client);
        let kept = column::<i64>(&mut client, count)[0] - before;
        // Whoever was interrupted between start and commit was not counted, and may be kept as FAILED.
        assert!(kept >= started, "round {round}: {started} starts committed, {kept} kept");
        let open = "SELECT count(*) FROM loader_history.watched_transaction";
        wait_for("nothing to be open", || column::<i64>(&mut client, open) == [0]);
    }
    assert!(!cluster.log().contains("PANIC") && !cluster.log().contains("terminated by signal"));
}

#[test]
fn after_a_crash_there_is_one_launcher_and_one_worker_a_database() {
    let (cluster, mut client) = cluster_with(&["a", "b"], "");
    wait_for_served(&mut client, &["a", "b"]);
    for victim in ["worker", "launcher", "worker"] {
        let mut loader = Session::new(&cluster, "a");
        loader.run("BEGIN");
        let id = loader.start();
        let pid = match victim {
            "worker" => worker_of(&mut client, "b"),
            _ => launchers(&mut client)[0],
        };
        send_signal(pid, Signal::SIGKILL);
        wait_for("the server to notice", || client.batch_execute("SELECT 1").is_err());
        client = reconnect(&cluster);
        wait_for_served(&mut client, &["a", "b"]);
        wait_for("one launcher", || launchers(&mut client).len() == 1);
        let mut session = cluster.connect_to("a", "postgres");
        wait_for("the failure", || status_of(&mut session, id).as_deref() == Some("FAILED"));
        drop(session);
        assert_autonomous(&cluster, "a");
        assert_autonomous(&cluster, "b");
        assert_eq!(launchers(&mut client).len(), 1);
        wait_for_served(&mut client, &["a", "b"]);
    }
}

#[test]
fn a_terminated_worker_is_replaced() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    let mut loader = Session::new(&cluster, "postgres");
    loader.run("BEGIN");
    let id = loader.start();
    for _ in 0..3 {
        let pid = worker_of(&mut client, "postgres");
        client.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
        wait_for("another worker", || {
            status(&mut client, "worker_pid").is_some_and(|new| new != pid.to_string())
        });
        wait_for_worker(&mut client);
        // The one before may still be on its way out.
        wait_for_served(&mut client, &["postgres"]);
    }
    loader.run("ROLLBACK");
    wait_for("the failure", || status_of(&mut client, id).as_deref() == Some("FAILED"));
    assert_autonomous(&cluster, "postgres");
}

#[test]
fn a_worker_that_comes_while_the_history_is_locked_stays_and_serves_when_it_is_not() {
    let cluster = preloaded_cluster();
    let (mut dba, mut observer) = (Session::new(&cluster, "postgres"), cluster.connect());
    let first = wait_for_worker(&mut observer);
    for table in ["loader.execution_history", "loader_history.watched_transaction"] {
        let log = cluster.log().len();
        // As a migration does that rewrites it.
        dba.run(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
        let before = worker_of(&mut observer, "postgres");
        observer.execute("SELECT pg_terminate_backend($1)", &[&before]).unwrap();
        let mut next = first;
        wait_for("another worker that tries again and again", || {
            let query =
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'loader_history worker'";
            let pids: Vec<i32> = column(&mut observer, query);
            next = pids.first().copied().unwrap_or(before);
            let status = std::fs::read_to_string(format!("/proc/{next}/status"));
            next != before && status.is_ok() && pg_test::sleeps(next) > 40
        });
        dba.run("COMMIT");
        assert_autonomous(&cluster, "postgres");
        assert_eq!(worker_of(&mut observer, "postgres"), next, "{table}: it has stayed");
        assert_eq!(status(&mut observer, "last_error"), None, "{table}: nothing was wrong");
        let log = cluster.log()[log..].to_owned();
        assert!(!log.contains("lock timeout"), "{log}");
    }
}

/// Starts executions of `loaders` at the same time, each in a session of its own, while the worker stands
/// still; the warnings of each.
fn start_together(cluster: &Cluster, observer: &mut Client, loaders: &[i64]) -> Vec<Vec<String>> {
    let worker = pg_test::freeze_worker(observer);
    std::thread::scope(|scope| {
        let starting: Vec<_> = loaders
            .iter()
            .map(|loader| {
                let mut session = Session::new(cluster, "postgres");
                scope.spawn(move || {
                    session.run(&format!("SELECT loader.record_execution_start({loader})"));
                    session.warnings()
                })
            })
            .collect();
        let depth = i32::try_from(loaders.len().min(16)).unwrap();
        wait_for("the starts to wait", || {
            column::<i32>(observer, "SELECT queue_depth FROM loader_history.recorder_state()")
                == [depth]
        });
        // Those that there is no room for do not wait for the worker.
        let refused = loaders.len().saturating_sub(16);
        wait_for("the others to be refused", || {
            starting.iter().filter(|start| start.is_finished()).count() == refused
        });
        send_signal(worker, Signal::SIGCONT);
        starting.into_iter().map(|start| start.join().unwrap()).collect()
    })
}

#[test]
fn a_bad_start_among_many_fails_no_other() {
    let cluster = pg_test::preloaded_cluster_with("loader_history.queue_size = 16\n");
    let mut observer = cluster.connect();
    observer
        .batch_execute(
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.loader_id = 3 AND pg_catalog.current_setting('session_replication_role') = 'replica' THEN
                     RAISE 'not this one';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON loader.execution_history
                 FOR EACH ROW EXECUTE FUNCTION public.refuse();
             ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER refuse",
        )
        .unwrap();
    let loaders = [1, 2, 3, 4, 5];
    let warnings = start_together(&cluster, &mut observer, &loaders);
    for (loader, warnings) in loaders.iter().zip(warnings) {
        if *loader == 3 {
            assert!(
                warnings.len() == 1 && warnings[0].contains("met an error: not this one"),
                "{warnings:?}"
            );
        } else {
            assert_eq!(warnings, Vec::<String>::new(), "loader {loader}");
        }
    }
    let recorded = "SELECT loader_id FROM loader.execution_history ORDER BY 1";
    assert_eq!(column::<i64>(&mut observer, recorded), loaders, "each is there once");
}

#[test]
fn a_trigger_that_swallows_rows_makes_no_start_that_is_nowhere() {
    let cluster = preloaded_cluster();
    let mut observer = cluster.connect();
    observer
        .batch_execute(
            "CREATE FUNCTION public.swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER swallow BEFORE INSERT ON loader.execution_history
                 FOR EACH ROW WHEN (NEW.loader_id = 3) EXECUTE FUNCTION public.swallow();
             CREATE TRIGGER swallow_end BEFORE UPDATE ON loader.execution_history
                 FOR EACH ROW WHEN (NEW.loader_id = 4) EXECUTE FUNCTION public.swallow();
             ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER swallow",
        )
        .unwrap();
    let mut listener = Listener::new(&cluster);
    let mut client = cluster.connect();
    let error = client.batch_execute("SELECT loader.record_execution_start(3)").error("09000");
    assert!(error.hint().is_some(), "{error:?}");
    // One that swallows its end leaves it as it is, and says so.
    client.batch_execute("BEGIN; SELECT loader.record_execution_start(4); ROLLBACK").unwrap();
    wait_for("the worker to say so", || {
        status(&mut observer, "last_error").is_some_and(|error| error.contains("trigger"))
    });
    listener.receive_all(&mut observer);
    assert_eq!(listener.by_execution().into_values().collect::<Vec<_>>(), [["STARTED"]]);
    let watched =
        "SELECT loader_id FROM loader_history.watched_transaction JOIN loader.execution_history ON id = execution_id
                  WHERE loader_id = 4";
    assert_eq!(column::<i64>(&mut observer, watched), [4]);
    observer.batch_execute("DROP TRIGGER swallow_end ON loader.execution_history").unwrap();
    let failed =
        "SELECT count(*) FROM loader.execution_history WHERE loader_id = 4 AND status = 'FAILED'";
    wait_for("the failure", || column::<i64>(&mut observer, failed) == [1]);
}

#[test]
fn a_trigger_that_starts_an_execution_in_the_worker_makes_no_other_wait() {
    let cluster = preloaded_cluster();
    let mut observer = cluster.connect();
    observer
        .batch_execute(
            "CREATE FUNCTION public.fall_back() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 PERFORM loader.record_execution_start(2);
                 RETURN NULL;
             END $$;
             CREATE TRIGGER fall_back AFTER UPDATE ON loader.execution_history
                 FOR EACH ROW WHEN (NEW.status = 'FAILED') EXECUTE FUNCTION public.fall_back()",
        )
        .unwrap();
    let mut session = Session::new(&cluster, "postgres");
    for _ in 0..5 {
        session.run("BEGIN");
        session.start();
        session.run("ROLLBACK");
    }
    let recorded = "SELECT loader_id || ' ' || status || ' ' || count(*)
                      FROM loader.execution_history GROUP BY loader_id, status ORDER BY loader_id";
    wait_for("the failures", || {
        column::<String>(&mut observer, recorded) == ["1 FAILED 5", "2 RUNNING 5"]
    });
    assert_eq!(session.warnings(), Vec::<String>::new());
    assert!(!cluster.log().contains("did not answer in time"), "{}", cluster.log());
}

#[test]
fn starts_that_find_the_queue_full_fall_back_and_say_so() {
    let cluster = pg_test::preloaded_cluster_with("loader_history.queue_size = 16\n");
    let mut observer = cluster.connect();
    let warnings = start_together(&cluster, &mut observer, &[1; 18]);
    let warned: Vec<_> = warnings.into_iter().flatten().collect();
    assert!(
        warned.len() == 2
            && warned
                .iter()
                .all(|text| text.contains("The queue to the background workers is full.")),
        "{warned:?}"
    );
    let count = "SELECT count(*) FROM loader.execution_history";
    assert_eq!(column::<i64>(&mut observer, count), [18]);
    assert_autonomous(&cluster, "postgres");
}

#[test]
fn an_execution_of_a_transaction_that_nobody_knows_stays_running_and_is_named() {
    let cluster = preloaded_cluster();
    let mut observer = cluster.connect();
    // A far future, as after a reset of the log; and another cluster's, which replication brings.
    observer
        .batch_execute(
            "INSERT INTO loader.execution_history (id, loader_id, execution_start, status)
             VALUES (1000, 1, now(), 'RUNNING'), (1001, 1, now(), 'RUNNING');
             INSERT INTO loader_history.watched_transaction VALUES (1000, '4000000000000', NULL, true);
             SET session_replication_role = replica;
             INSERT INTO loader_history.watched_transaction VALUES (1001, '3', NULL, true);
             RESET session_replication_role",
        )
        .unwrap();
    let watched = "SELECT execution_id FROM loader_history.watched_transaction ORDER BY 1";
    assert_eq!(column::<i64>(&mut observer, watched), [1000], "nothing that replication brings");
    let before = worker_of(&mut observer, "postgres");
    observer.execute("SELECT pg_terminate_backend($1)", &[&before]).unwrap();
    wait_for("another worker to look", || column::<i64>(&mut observer, watched).is_empty());
    assert_autonomous(&cluster, "postgres");
    let running = "SELECT id FROM loader.execution_history WHERE status = 'RUNNING' ORDER BY 1";
    assert_eq!(column::<i64>(&mut observer, running), [1000, 1001]);
    let text = "the status of the transaction that started execution 1000 is not known any more; it stays RUNNING";
    assert_eq!(status(&mut observer, "last_error").as_deref(), Some(text));
    let is_new = "last_error_at BETWEEN pg_postmaster_start_time() AND clock_timestamp()";
    assert_eq!(status(&mut observer, is_new).as_deref(), Some("true"));
    assert!(cluster.log().contains(text));
}

#[test]
fn a_terminated_launcher_is_replaced() {
    let (cluster, mut client) = cluster_with(&["a", "b"], "");
    wait_for_served(&mut client, &["a", "b"]);
    let workers = [worker_of(&mut client, "a"), worker_of(&mut client, "b")];
    let pid = launchers(&mut client)[0];
    client.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    wait_for("the launcher to be replaced (databases that come get no worker otherwise)", || {
        launchers(&mut client).first().is_some_and(|&new| new != pid)
    });
    client.batch_execute("CREATE DATABASE c").unwrap();
    install_extension(&cluster, "c");
    wait_for_served(&mut client, &["a", "b", "c"]);
    assert_eq!([worker_of(&mut client, "a"), worker_of(&mut client, "b")], workers);
    // A worker that the launcher before this one had started is looked after too.
    client.execute("SELECT pg_terminate_backend($1)", &[&workers[0]]).unwrap();
    wait_for("another worker", || worker_of(&mut client, "a") != workers[0]);
    wait_for_served(&mut client, &["a", "b", "c"]);
    assert_autonomous(&cluster, "a");
    assert_eq!(launchers(&mut client).len(), 1);
}

#[test]
fn a_session_that_logs_everything_ends_like_any_other() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    // Its last messages are those of a process that is just going away.
    let mut session =
        Session::with_options(&cluster, "postgres", "postgres", "-c log_min_messages=debug5");
    session.run("BEGIN");
    session.start();
    session.run("COMMIT");
    let pid: i32 = session.client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    drop(session);
    let query = format!("SELECT pid FROM pg_stat_activity WHERE pid = {pid}");
    wait_for("the session to end", || {
        let rows = client.query(&query, &[]).expect("a session's end does not stop the server");
        rows.is_empty()
    });
    // Or just after it has gone.
    client.batch_execute("SELECT pg_sleep(0.1)").expect("a session's end does not stop the server");
    assert!(!cluster.log().contains("terminated by signal"));
}

// recorder_status

#[test]
fn recorder_status_shows_a_load() {
    let cluster = preloaded_cluster();
    let mut client = cluster.connect();
    let columns =
        "concat_ws(' ', preloaded, queue_depth, watched_running, unwatched_running, foreign_key)";
    assert_eq!(status(&mut client, columns).as_deref(), Some("t 0 0 0 t"));
    assert_eq!(status(&mut client, "detail"), None);
    assert_eq!(status(&mut client, "last_error"), None);
    let worker = worker_of(&mut client, "postgres");
    assert_eq!(status(&mut client, "worker_pid"), Some(worker.to_string()));

    let mut loader = Session::new(&cluster, "postgres");
    loader.run("BEGIN");
    let id = loader.start();
    assert_eq!(status(&mut client, columns).as_deref(), Some("t 0 1 0 t"));
    loader.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS'); COMMIT"));
    wait_for("the transaction to be settled", || {
        status(&mut client, columns).as_deref() == Some("t 0 0 0 t")
    });

    // Committed, and not ended: no transaction will end it.
    loader.run("BEGIN");
    loader.start();
    loader.run("COMMIT");
    wait_for("the transaction to be settled", || {
        status(&mut client, columns).as_deref() == Some("t 0 0 1 t")
    });

    // As a reader sees it.
    client
        .batch_execute("CREATE ROLE reader LOGIN; SELECT loader_history.grant_reader('reader')")
        .unwrap();
    let mut reader = cluster.connect_to("postgres", "reader");
    assert_eq!(status(&mut reader, "worker_pid"), Some(worker.to_string()));
    assert_eq!(status(&mut reader, "detail"), None);
}

#[test]
fn recorder_status_says_why_starts_fall_back() {
    let cluster = preloaded_cluster_with("loader_history.worker_timeout = '2s'\n");
    let mut client = cluster.connect();
    let mut session = Session::new(&cluster, "postgres");

    let worker = pg_test::freeze_worker(&mut client);
    let started = Instant::now();
    let warning = fallback_start(&mut session, &mut client);
    assert!(warning.contains("did not answer in time"), "{warning}");
    let first = started.elapsed();
    assert!((2_000..15_000).contains(&first.as_millis()), "{first:?}");
    let detail = status(&mut client, "detail").unwrap_or_default();
    assert!(detail.contains("did not answer in time"), "{detail}");
    // Nobody waits again for a worker that does not answer.
    let started = Instant::now();
    for _ in 0..10 {
        fallback_start(&mut session, &mut client);
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    send_signal(worker, Signal::SIGCONT);
    wait_for("the worker to be well", || status(&mut client, "detail").is_none());
    assert_autonomous(&cluster, "postgres");
    assert_eq!(worker_of(&mut client, "postgres"), worker);

    session.run("SET loader_history.autonomous_start = off");
    let detail = status(&mut session.client, "detail").unwrap_or_default();
    assert!(detail.contains("loader_history.autonomous_start is off"), "{detail}");
    session.run("BEGIN");
    let id = session.start();
    assert_eq!(session.warnings(), Vec::<String>::new(), "it is what was asked for");
    assert_eq!(status_of(&mut client, id), None);
    session.run("ROLLBACK; RESET loader_history.autonomous_start");
    assert_eq!(status(&mut session.client, "detail"), None);
}

#[test]
fn a_locked_table_is_named_and_is_no_error_of_the_workers() {
    let cluster = preloaded_cluster();
    let mut session = Session::new(&cluster, "postgres");
    let mut observer = cluster.connect();
    let mut dba = Session::new(&cluster, "postgres");
    let log = cluster.log().len();
    dba.run("BEGIN; LOCK TABLE loader_history.watched_transaction IN SHARE ROW EXCLUSIVE MODE");
    let started = Instant::now();
    let warning = fallback_start(&mut session, &mut observer);
    assert!(warning.contains("A table of the history is locked, by this"), "{warning}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    dba.run("COMMIT");
    assert_eq!(status(&mut observer, "last_error"), None);
    assert_autonomous(&cluster, "postgres");
    let log = cluster.log()[log..].to_owned();
    assert!(!log.contains("loader_history worker"), "{log}");
}

#[test]
fn recorder_status_without_preloading() {
    let cluster = pg_test::cluster_with_extension();
    let mut client = cluster.connect();
    let columns =
        "concat_ws(' ', preloaded, queue_depth, watched_running, unwatched_running, foreign_key)";
    client.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    assert_eq!(status(&mut client, columns).as_deref(), Some("f 0 0 1 t"));
    for empty in ["worker_pid", "last_error", "last_error_at"] {
        assert_eq!(status(&mut client, empty), None, "{empty}");
    }
    let detail = status(&mut client, "detail").unwrap_or_default();
    assert!(
        detail.contains("shared_preload_libraries does not contain loader_history"),
        "{detail}"
    );
    assert!(pg_test::served(&mut client).is_empty() && launchers(&mut client).is_empty());
}
