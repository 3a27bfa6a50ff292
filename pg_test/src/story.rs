//! Stories of loads: what sessions do, and what the history says of it in the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

use crate::{Cluster, column, wait_for, wait_for_worker};

/// The isolation levels that each story is told under.
pub const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];

/// How soon an outcome must be there on a busy machine, where one of many may be late.
const IN_TIME: Duration = Duration::from_secs(10);

/// What the contract says: how soon most of them must be.
const WITHIN_A_SECOND: Duration = Duration::from_secs(1);

/// How long an outcome is waited for, so that one that is late is told from one that never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A loader that no story uses.
const LOADER_OF_THE_PROBE: i64 = 10;

/// The number of records that a load of [`Scene::succeed`] reports.
const RECORDS: i64 = 3;

/// What keeps the tests' own sessions going where loads wait for a standby.
const DO_NOT_WAIT_FOR_STANDBYS: &str = "SET synchronous_commit = local";

/// What the stories need beside the extension. A load writes its execution's id into `loaded`.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS public.loaded
        (execution_id bigint CONSTRAINT loaded_once UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE IF NOT EXISTS public.counter (number integer);
    TRUNCATE public.counter;
    INSERT INTO public.counter VALUES (0);
";

/// The executions that a story adds, in the order of their ids, each as "loader status", where it
/// applies with "server-derived", the count of records, and the error's text.
const RECORDED: &str = "
    SELECT concat_ws(' ',
        CASE WHEN history.loader_id > 10 THEN 'new' ELSE history.loader_id::text END,
        history.status,
        CASE WHEN outcome.execution_id IS NOT NULL THEN 'server-derived' END,
        NULLIF(history.record_count, 0),
        history.error_message,
        CASE WHEN (history.status = 'SUCCESS') <> (loaded.execution_id IS NOT NULL)
             THEN '(and its data say otherwise)' END)
      FROM loader.execution_history AS history
      LEFT JOIN loader_history.server_outcome AS outcome
        ON (outcome.execution_id, outcome.execution_end) = (history.id, history.execution_end)
      LEFT JOIN public.loaded ON loaded.execution_id = history.id
     WHERE history.id > $1
     ORDER BY history.id";

/// A story, and what must come of it.
pub struct Story {
    name: &'static str,
    tell: fn(&mut Scene),
    recorded: &'static [&'static str],
    warnings: &'static [&'static str],
    levels: &'static [&'static str],
    in_time: Duration,
}

impl Story {
    /// A story of which the history must say `recorded`, and nobody gets a warning.
    pub const fn new(
        name: &'static str,
        tell: fn(&mut Scene),
        recorded: &'static [&'static str],
    ) -> Self {
        Self { name, tell, recorded, warnings: &[], levels: &LEVELS, in_time: IN_TIME }
    }

    /// The same where there is one warning for each of `warnings`, which holds that text.
    #[must_use]
    pub const fn warns(mut self, warnings: &'static [&'static str]) -> Self {
        self.warnings = warnings;
        self
    }

    /// The same under these isolation levels only.
    #[must_use]
    pub const fn under(mut self, levels: &'static [&'static str]) -> Self {
        self.levels = levels;
        self
    }

    /// The same where the outcome may take that long.
    #[must_use]
    pub const fn within(mut self, time: Duration) -> Self {
        self.in_time = time;
        self
    }

    /// The same where starts are transactional: server-derived outcomes are missing.
    fn run_in_transactions(&self, scene: &mut Scene) {
        (self.tell)(scene);
        let mut expected = self.recorded.to_vec();
        expected.retain(|row| !row.contains(" server-derived "));
        // A session that is gone may be rolled back a moment later, which changes nothing.
        wait_for("the outcome", || scene.recorded().len() >= expected.len());
        assert_eq!(scene.recorded(), expected, "what the history says");
        let warnings = scene.warnings.lock().expect("no panic meanwhile").clone();
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    /// Tells it; how long the outcome took then.
    fn run(&self, scene: &mut Scene) -> Duration {
        (self.tell)(scene);
        let told = Instant::now();
        wait_for("the outcome", || {
            scene.recorded() == self.recorded || told.elapsed() > PATIENCE.max(self.in_time)
        });
        let taken = told.elapsed();
        assert_eq!(scene.recorded(), self.recorded, "what the history says");
        println!("    as it should be after {taken:?}");
        assert!(taken < self.in_time, "the outcome took {taken:?}");
        scene.wait_until_unwatched();
        // Whatever else the worker may do, it has done by then.
        scene.let_the_worker_poll();
        assert_eq!(scene.recorded(), self.recorded, "what the history says a poll later");
        scene.check_server_outcomes();
        let warnings = scene.warnings.lock().expect("no panic meanwhile").clone();
        assert!(
            warnings.len() == self.warnings.len()
                && warnings.iter().zip(self.warnings).all(|(got, text)| got.contains(text)),
            "warnings {warnings:?}, expected {:?}",
            self.warnings
        );
        taken
    }
}

/// Tells each story under its isolation levels, and says which of them did not end as they should.
///
/// # Panics
/// When there are such.
pub fn run_stories(cluster: &Cluster, stories: &[Story]) {
    tell(cluster, stories, false);
}

/// Tells each story where starts are transactional: by `loader_history.autonomous_start = off`, or since the library is
/// not preloaded.
///
/// # Panics
/// When some do not end as they should.
pub fn run_stories_in_transactions(cluster: &Cluster, stories: &[Story]) {
    tell(cluster, stories, true);
}

fn tell(cluster: &Cluster, stories: &[Story], transactional: bool) {
    let mut client = cluster.connect();
    client.batch_execute(DO_NOT_WAIT_FOR_STANDBYS).expect("the setting");
    client.batch_execute(TABLES).expect("the stories' tables");
    let mut failures = Vec::new();
    let mut times = Vec::new();
    for story in stories {
        for level in story.levels {
            println!("{}, under {level}", story.name);
            let told = catch_unwind(AssertUnwindSafe(|| {
                let mut scene = Scene::new(cluster, level, transactional);
                if transactional {
                    story.run_in_transactions(&mut scene);
                    None
                } else {
                    Some(story.run(&mut scene)).filter(|_| story.in_time == IN_TIME)
                }
            }));
            match told {
                Ok(taken) => times.extend(taken),
                Err(panic) => {
                    let text = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied());
                    let text = text.unwrap_or("?");
                    failures.push(format!("{}, under {level}: {text}", story.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    times.sort_unstable();
    if let Some(median) = times.get(times.len() / 2) {
        assert!(*median < WITHIN_A_SECOND, "half of the outcomes took {median:?} and more");
    }
}

/// Where a story takes place.
pub struct Scene<'a> {
    /// The server.
    pub cluster: &'a Cluster,
    /// The isolation level of its loads.
    pub level: &'a str,
    /// A session that looks on, without a transaction of its own.
    pub observer: Client,
    /// Whether starts are transactional.
    is_transactional: bool,
    database: String,
    newest_before: i64,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a Cluster, level: &'a str, is_transactional: bool) -> Self {
        let mut scene = Self {
            cluster,
            level,
            observer: cluster.connect(),
            is_transactional,
            database: "postgres".to_owned(),
            newest_before: 0,
            warnings: Arc::default(),
        };
        scene.enter();
        let newest = "SELECT COALESCE(max(id), 0) FROM loader.execution_history";
        scene.newest_before = column(&mut scene.observer, newest)[0];
        scene
    }

    fn enter(&mut self) {
        self.observer.batch_execute(DO_NOT_WAIT_FOR_STANDBYS).expect("the setting");
        if self.is_transactional {
            return;
        }
        let worker = "SELECT worker_pid IS NOT NULL FROM loader_history.recorder_state()";
        if column::<bool>(
            &mut self.observer,
            "SELECT to_regclass('loader_history.watched_transaction') IS NOT NULL",
        )[0] && !column::<bool>(&mut self.observer, worker)[0]
        {
            wait_for_worker(&mut self.observer);
        }
    }

    /// Goes on in another database, whose history is empty.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn move_to(&mut self, database: &str) {
        self.observer = self.cluster.connect_to(database, "postgres");
        self.observer.batch_execute(TABLES).expect("the stories' tables");
        database.clone_into(&mut self.database);
        self.newest_before = 0;
        self.enter();
    }

    /// A session whose warnings count.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn connect(&self) -> Client {
        self.connect_as("postgres")
    }

    /// A session of `user` whose warnings count.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn connect_as(&self, user: &str) -> Client {
        self.session(&self.database, user)
    }

    /// A session in `database` whose warnings count.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn connect_in(&self, database: &str) -> Client {
        self.session(database, "postgres")
    }

    fn session(&self, database: &str, user: &str) -> Client {
        let mut config = self.cluster.config(database, user);
        let warnings = Arc::clone(&self.warnings);
        config.notice_callback(move |notice| {
            if notice.severity() == "WARNING"
                && let Ok(mut warnings) = warnings.lock()
            {
                warnings.push(format!("{} {}", notice.message(), notice.detail().unwrap_or("")));
            }
        });
        let mut client = config.connect(NoTls).expect("a connection");
        client.batch_execute(self.settings()).expect("the settings");
        client
    }

    /// What each session of the story's sets first.
    pub const fn settings(&self) -> &'static str {
        if self.is_transactional { "SET loader_history.autonomous_start = off;" } else { "" }
    }

    /// A session whose warnings count, in a transaction of the story's isolation level.
    ///
    /// # Panics
    /// When it can't begin.
    pub fn begin(&self) -> Client {
        let mut client = self.connect();
        self.begin_in(&mut client);
        client
    }

    /// Begins a transaction of the story's isolation level in a session.
    ///
    /// # Panics
    /// When it can't begin.
    pub fn begin_in(&self, client: &mut Client) {
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {}", self.level)).expect("BEGIN");
    }

    /// Starts an execution of `loader`, which others must see at once.
    ///
    /// # Panics
    /// When they don't.
    pub fn start(&mut self, client: &mut Client, loader: i64) -> i64 {
        let id = start(client, loader);
        self.assert_running(id);
        id
    }

    /// Checks that others see a start whose transaction is open; or not yet, where the start is transactional.
    ///
    /// # Panics
    /// When it is not so.
    pub fn assert_running(&mut self, id: i64) {
        let expected = (!self.is_transactional).then_some("RUNNING");
        assert_eq!(self.status(id).as_deref(), expected, "what others see of an open start");
    }

    /// Starts an execution of `loader`, which others must not see yet.
    ///
    /// # Panics
    /// When they do.
    pub fn start_in_transaction(&mut self, client: &mut Client, loader: i64) -> i64 {
        let id = start(client, loader);
        assert_eq!(self.status(id), None, "what others see of a transactional start");
        id
    }

    /// Loads, and reports SUCCESS; others must not see that before the session commits.
    ///
    /// # Panics
    /// When the load or the report fails, or others see it.
    pub fn succeed(&mut self, client: &mut Client, id: i64) {
        let before = self.status(id);
        load(client, id);
        end(client, id, "SUCCESS", None).expect("a report");
        assert_eq!(self.status(id), before, "what others see of a SUCCESS before the commit");
    }

    /// Loads, reports SUCCESS and commits.
    ///
    /// # Panics
    /// When that fails, or others don't see it then.
    pub fn succeed_and_commit(&mut self, client: &mut Client, id: i64) {
        self.succeed(client, id);
        client.batch_execute("COMMIT").expect("COMMIT");
        assert_eq!(self.status(id).as_deref(), Some("SUCCESS"), "what others see after the commit");
    }

    /// What others see of an execution.
    ///
    /// # Panics
    /// When the query fails.
    pub fn status(&mut self, id: i64) -> Option<String> {
        let query = "SELECT status FROM loader.execution_history WHERE id = $1";
        self.observer.query_opt(query, &[&id]).expect("the status").map(|row| row.get(0))
    }

    /// Waits until the server has ended an execution as FAILED.
    pub fn wait_until_failed(&mut self, id: i64) {
        if self.is_transactional {
            return;
        }
        wait_for("the server-derived failure", || self.status(id).as_deref() == Some("FAILED"));
    }

    /// Waits until the worker watches no transaction.
    pub fn wait_until_unwatched(&mut self) {
        if self.is_transactional {
            return;
        }
        wait_for("no transaction to be watched", || {
            column::<i64>(
                &mut self.observer,
                "SELECT count(*) FROM loader_history.watched_transaction",
            )[0] == 0
        });
    }

    /// Waits until the worker has polled the status of all transactions: it has, when it has found out about
    /// one that was rolled back just now.
    ///
    /// # Panics
    /// When the probe's start is not autonomous.
    pub fn let_the_worker_poll(&mut self) {
        if self.is_transactional {
            return;
        }
        wait_for_worker(&mut self.observer);
        let mut probe = self.connect();
        probe.batch_execute("BEGIN").expect("BEGIN");
        let id = self.start(&mut probe, LOADER_OF_THE_PROBE);
        probe.batch_execute("ROLLBACK").expect("ROLLBACK");
        self.wait_until_failed(id);
        self.observer
            .batch_execute(&format!(
                "DELETE FROM loader.execution_history WHERE id = {id};
                 DELETE FROM loader_history.server_outcome WHERE execution_id = {id}"
            ))
            .expect("the probe goes");
    }

    fn recorded(&mut self) -> Vec<String> {
        let rows = self.observer.query(RECORDED, &[&self.newest_before]).expect("the history");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Checks that each server-derived outcome is the execution's outcome now.
    fn check_server_outcomes(&mut self) {
        let query = "SELECT outcome.execution_id
              FROM loader_history.server_outcome AS outcome
              LEFT JOIN loader.execution_history AS history ON history.id = outcome.execution_id
             WHERE (history.status, history.execution_end)
                   IS DISTINCT FROM ('FAILED', outcome.execution_end)";
        let stale: Vec<i64> = column(&mut self.observer, query);
        assert!(stale.is_empty(), "server_outcome names {stale:?}");
    }
}

/// Starts an execution of `loader`.
///
/// # Panics
/// When that fails.
pub fn start(client: &mut Client, loader: i64) -> i64 {
    let call = "SELECT loader.record_execution_start($1)";
    client.query_one(call, &[&loader]).expect("a start").get(0)
}

/// Reports how an execution ended.
///
/// # Errors
/// What the server says.
pub fn end(
    client: &mut Client,
    id: i64,
    status: &str,
    text: Option<&str>,
) -> Result<(), postgres::Error> {
    let count = (status == "SUCCESS").then_some(RECORDS);
    let call = "SELECT loader.record_execution_end($1, $2, $3, $4)";
    client.query(call, &[&id, &status, &count, &text]).map(|_| ())
}

/// Does what a load does beside recording: it writes data.
///
/// # Panics
/// When that fails.
pub fn load(client: &mut Client, id: i64) {
    client.execute("INSERT INTO public.loaded VALUES ($1)", &[&id]).expect("a load");
}
