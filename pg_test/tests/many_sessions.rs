//! Promise: beside many sessions or one large load, all other starts stay autonomous, and failures are known in
//! time, with the error's text.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pg_test::{
    Client, Cluster, HasError, Session, column, preloaded_cluster, preloaded_cluster_with,
    status_of, wait_for, wait_for_equal,
};

/// How soon a failure must be known on a busy machine. The contract says: within a second.
const IN_TIME: Duration = Duration::from_secs(10);

/// Runs `body` while `sessions` others do `work` again and again; returns their warnings, and how often
/// they did it.
fn meanwhile(
    cluster: &Cluster,
    sessions: usize,
    work: impl Fn(&mut Session) + Sync,
    body: impl FnOnce(),
) -> (Vec<String>, usize) {
    /// Lets the others end, however `body` ends.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let warnings = thread::scope(|scope| {
        let others: Vec<_> = (0..sessions)
            .map(|_| {
                scope.spawn(|| {
                    let mut session = Session::new(cluster, "postgres");
                    while !over.load(Ordering::Relaxed) {
                        work(&mut session);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    session.warnings()
                })
            })
            .collect();
        let end = Over(&over);
        wait_for("all to be at work", || count.load(Ordering::Relaxed) > sessions);
        body();
        drop(end);
        others.into_iter().flat_map(|other| other.join().unwrap()).collect()
    });
    (warnings, count.into_inner())
}

fn start_another(session: &mut Session) {
    session.run("SELECT loader.record_execution_start(2)");
}

#[test]
fn failures_are_known_in_time_while_many_sessions_start_without_pause() {
    let cluster = preloaded_cluster();
    let mut observer = cluster.connect();
    let mut longest = Duration::ZERO;
    let (warnings, count) = meanwhile(&cluster, 40, start_another, || {
        let mut loader = Session::new(&cluster, "postgres");
        for _ in 0..8 {
            loader.run("BEGIN");
            let id = loader.start();
            loader.client.batch_execute("SELECT 1/0").error("22012");
            let failed = Instant::now();
            loader.run("ROLLBACK");
            wait_for("the failure", || status_of(&mut observer, id).as_deref() == Some("FAILED"));
            longest = longest.max(failed.elapsed());
        }
        assert_eq!(loader.warnings(), Vec::<String>::new());
    });
    println!("{count} starts; the longest time until FAILED: {longest:?}");
    assert!(longest < IN_TIME, "a failure was known after {longest:?}, beside {count} starts");
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn failures_are_known_within_a_second() {
    let cluster = preloaded_cluster();
    let mut observer = cluster.connect();
    let mut loader = Session::new(&cluster, "postgres");
    let mut times: Vec<_> = (0..60)
        .map(|time| {
            loader.run("BEGIN");
            let id = loader.start();
            // Reported with an error's text, without, and again without.
            match time % 3 {
                0 => drop(loader.client.batch_execute("SELECT 1/0").error("22012")),
                1 => {}
                _ => loader = Session::new(&cluster, "postgres"),
            }
            let failed = Instant::now();
            loader.run("ROLLBACK");
            wait_for("the failure", || status_of(&mut observer, id).as_deref() == Some("FAILED"));
            failed.elapsed()
        })
        .collect();
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("FAILED after {median:?} in the middle, and {longest:?} at most");
    assert!(median < Duration::from_secs(1), "half of the failures were known after {median:?}");
    assert!(longest < IN_TIME, "a failure was known after {longest:?}");
}

/// The number of executions of loader 1 of each status.
fn statuses(client: &mut Client) -> Vec<String> {
    let query = "SELECT status || ' ' || count(*) FROM loader.execution_history
                  WHERE loader_id = 1 GROUP BY status ORDER BY status";
    column(client, query)
}

#[test]
fn rolling_back_a_load_of_very_many_starts_leaves_the_starts_of_others_autonomous() {
    const STARTS: usize = 20_000;
    let cluster = preloaded_cluster();
    let (mut loader, mut observer) = (Session::new(&cluster, "postgres"), cluster.connect());
    loader.run("BEGIN");
    let began = Instant::now();
    loader.run(&format!(
        "SELECT count(loader.record_execution_start(1)) FROM generate_series(1, {STARTS})"
    ));
    println!("started after {:?}", began.elapsed());
    assert_eq!(loader.warnings(), Vec::<String>::new(), "all of them are autonomous");
    assert_eq!(statuses(&mut observer), [format!("RUNNING {STARTS}")]);
    let (warnings, count) = meanwhile(&cluster, 1, start_another, || {
        let rolled_back = Instant::now();
        loader.run("ROLLBACK");
        wait_for_equal("the executions", &vec![format!("FAILED {STARTS}")], || {
            statuses(&mut observer)
        });
        println!("FAILED after {:?}", rolled_back.elapsed());
    });
    assert_eq!(warnings, Vec::<String>::new(), "of {count} starts of others");
}

/// Notes how many watched transactions each statement deletes.
const COUNT_DELETIONS: &str = "
    CREATE TABLE public.deleted (number bigint);
    CREATE FUNCTION public.count_deletions() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.deleted SELECT pg_catalog.count(*) FROM gone;
        RETURN NULL;
    END $$;
    CREATE TRIGGER count_deletions AFTER DELETE ON loader_history.watched_transaction
        REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION public.count_deletions();
    ALTER TABLE loader_history.watched_transaction ENABLE ALWAYS TRIGGER count_deletions";

#[test]
fn committing_a_load_of_very_many_starts_leaves_the_starts_of_others_autonomous() {
    const STARTS: usize = 20_000;
    let cluster = preloaded_cluster();
    let (mut loader, mut observer) = (Session::new(&cluster, "postgres"), cluster.connect());
    observer.batch_execute(COUNT_DELETIONS).unwrap();
    loader.run("BEGIN");
    loader.run(&format!(
        "SELECT count(loader.record_execution_start(1)) FROM generate_series(1, {STARTS})"
    ));
    assert_eq!(loader.warnings(), Vec::<String>::new(), "all of them are autonomous");
    let (warnings, count) = meanwhile(&cluster, 1, start_another, || {
        loader.run("COMMIT");
        // Those of the others come and go.
        wait_for("no transaction to be watched", || {
            let query = "SELECT count(*) FROM loader_history.watched_transaction AS w
                           JOIN loader.execution_history AS h ON h.id = w.execution_id AND loader_id = 1";
            column::<i64>(&mut observer, query) == [0]
        });
    });
    assert_eq!(warnings, Vec::<String>::new(), "of {count} starts of others");
    assert_eq!(statuses(&mut observer), [format!("RUNNING {STARTS}")]);
    let most: i64 = column(&mut observer, "SELECT max(number) FROM public.deleted")[0];
    assert!(most <= 1_000, "{most} were deleted in one go, and starts waited meanwhile");
}

#[test]
fn with_more_reports_than_places_error_texts_are_lost_and_no_outcome() {
    const PLACES: usize = 16;
    let settings = format!("loader_history.queue_size = {PLACES}\n");
    let cluster = preloaded_cluster_with(&settings);
    let mut observer = cluster.connect();
    let mut loads: Vec<_> = (0..3 * PLACES)
        .map(|_| {
            let mut session = Session::new(&cluster, "postgres");
            session.run("BEGIN");
            let id = session.start();
            assert_eq!(session.warnings(), Vec::<String>::new());
            (session, id)
        })
        .collect();
    let worker = pg_test::freeze_worker(&mut observer);
    for (session, _) in &mut loads {
        session.client.batch_execute("SELECT 1/0").error("22012");
        session.run("ROLLBACK");
    }
    pg_test::send_signal(worker, pg_test::Signal::SIGCONT);
    for (_, id) in &loads {
        wait_for(&format!("the failure of {id}"), || {
            status_of(&mut observer, *id).as_deref() == Some("FAILED")
        });
    }
    let texts = "SELECT DISTINCT error_message FROM loader.execution_history ORDER BY 1";
    let texts: Vec<String> = column(&mut observer, texts);
    let known =
        ["22012: division by zero", "The transaction that started the execution was rolled back."];
    assert!(texts.iter().all(|text| known.contains(&text.as_str())), "{texts:?}");
}

#[test]
fn starts_of_a_loader_whose_row_others_keep_updating_stay_autonomous() {
    const STARTS: usize = 3_000;
    let cluster = preloaded_cluster();
    let update = |session: &mut Session| {
        session.run("UPDATE loader.loader SET loader_code = loader_code || ''")
    };
    let mut loader = Session::new(&cluster, "postgres");
    let (_, count) = meanwhile(&cluster, 1, update, || {
        for _ in 0..STARTS {
            loader.start();
        }
    });
    println!("{count} updates meanwhile");
    assert_eq!(loader.warnings(), Vec::<String>::new());
    let mut observer = cluster.connect();
    assert_eq!(statuses(&mut observer), [format!("RUNNING {STARTS}")]);
}
