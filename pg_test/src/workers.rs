//! The background workers of a cluster, and sessions that keep their warnings.

use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::mpsc::{Receiver, channel};
use std::{fs, thread};

use postgres::error::DbError;
use postgres::{Client, NoTls};

use crate::{APPLICATION_SQL, Cluster, bindir, column, run, wait_for};

/// A session that keeps the warnings it gets.
pub struct Session {
    /// The connection.
    pub client: Client,
    notices: Receiver<DbError>,
}

impl Session {
    /// A session of the superuser in `database`.
    pub fn new(cluster: &Cluster, database: &str) -> Self {
        Self::with_options(cluster, database, "postgres", "")
    }

    /// A session of `user` in `database` with command line options such as `-c name=value`, which
    /// outrank what the database or the role set.
    ///
    /// # Panics
    /// When it cannot connect.
    pub fn with_options(cluster: &Cluster, database: &str, user: &str, options: &str) -> Self {
        let (sender, notices) = channel();
        let mut config = cluster.config(database, user);
        if !options.is_empty() {
            config.options(options);
        }
        let client = config
            .notice_callback(move |notice| drop(sender.send(notice)))
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("a connection to {database}: {error:?}"));
        Self { client, notices }
    }

    /// The warnings since the last call, each with its detail.
    pub fn warnings(&self) -> Vec<String> {
        self.notices
            .try_iter()
            .filter(|notice| notice.severity() == "WARNING")
            .map(|notice| format!("{}: {}", notice.message(), notice.detail().unwrap_or_default()))
            .collect()
    }

    /// Starts an execution of loader 1 and returns its id.
    ///
    /// # Panics
    /// When that fails.
    pub fn start(&mut self) -> i64 {
        let row = self.client.query_one("SELECT loader.record_execution_start(1)", &[]);
        row.expect("a start").get(0)
    }

    /// Runs statements that must succeed.
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn run(&mut self, statements: &str) {
        if let Err(error) = self.client.batch_execute(statements) {
            panic!("{statements}: {error:?}");
        }
    }
}

/// Gives a database the application's table and the extension.
///
/// # Panics
/// When that fails.
pub fn install_extension(cluster: &Cluster, database: &str) {
    let mut session = Session::new(cluster, database);
    session.run(APPLICATION_SQL);
    session.run("CREATE EXTENSION loader_history");
    drop(session);
    wait_for_no_clients(cluster, database);
}

/// Waits until the sessions that a test has closed are gone: `DROP DATABASE` would wait for them.
///
/// # Panics
/// When they stay.
pub fn wait_for_no_clients(cluster: &Cluster, database: &str) {
    let other = if database == "postgres" { "template1" } else { "postgres" };
    let mut client = cluster.connect_to(other, "postgres");
    let query = format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'client backend'"
    );
    wait_for("closed sessions to go", || column::<i32>(&mut client, &query).is_empty());
}

/// The databases that have a worker, one entry a worker, sorted.
///
/// # Panics
/// When the query fails.
pub fn served(client: &mut Client) -> Vec<String> {
    column(
        client,
        "SELECT coalesce(datname::text, '(none yet)') FROM pg_stat_activity
          WHERE backend_type = 'loader_history worker' ORDER BY 1",
    )
}

/// Waits until exactly `databases`, which must be sorted, have a worker each.
///
/// # Panics
/// When that does not come true, with what there is instead.
#[track_caller]
pub fn wait_for_served(client: &mut Client, databases: &[&str]) {
    let mut found = Vec::new();
    let mut steady = 0;
    let started = std::time::Instant::now();
    // The launcher looks into databases without the extension too; those workers leave at once.
    while steady < 3 {
        assert!(
            started.elapsed() < crate::TIMEOUT,
            "workers serve {found:?}, and should serve {databases:?}"
        );
        found = served(client);
        steady = if found == databases { steady + 1 } else { 0 };
        thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The process id of the worker of `database`, waited for.
///
/// # Panics
/// When none comes.
pub fn worker_of(client: &mut Client, database: &str) -> i32 {
    let query = format!(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'loader_history worker' AND datname = '{database}'"
    );
    let mut pids = Vec::new();
    wait_for(&format!("a worker in {database}"), || {
        pids = column::<i32>(client, &query);
        !pids.is_empty()
    });
    pids[0]
}

/// The process ids of the launchers: one, where all is well.
pub fn launchers(client: &mut Client) -> Vec<i32> {
    column(
        client,
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'loader_history launcher'",
    )
}

/// How often a process has gone to sleep, by the kernel's count.
///
/// # Panics
/// When the process is gone.
pub fn sleeps(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
    line.and_then(|line| line.split_whitespace().last()?.parse().ok()).expect("a count")
}

/// Asserts that a start in `database` is autonomous, without a warning, and that its rollback makes it
/// FAILED.
///
/// # Panics
/// When not.
#[track_caller]
pub fn assert_autonomous(cluster: &Cluster, database: &str) {
    let pids =
        assert_autonomous_in(Session::new(cluster, database), Session::new(cluster, database));
    let other = if database == "postgres" { "template1" } else { "postgres" };
    let mut client = cluster.connect_to(other, "postgres");
    let query = format!("SELECT pid FROM pg_stat_activity WHERE pid IN ({}, {})", pids[0], pids[1]);
    wait_for("closed sessions to go", || column::<i32>(&mut client, &query).is_empty());
}

/// The same with sessions of the caller's making, whose process ids are returned.
///
/// # Panics
/// When not.
#[track_caller]
pub fn assert_autonomous_in(mut session: Session, mut observer: Session) -> [i32; 2] {
    let pids = [&mut session, &mut observer].map(|session| {
        session.client.query_one("SELECT pg_backend_pid()", &[]).expect("a process id").get(0)
    });
    session.run("BEGIN");
    let id = session.start();
    assert_eq!(session.warnings(), Vec::<String>::new(), "an autonomous start gives no warning");
    assert_eq!(status_of(&mut observer.client, id).as_deref(), Some("RUNNING"));
    session.run("ROLLBACK");
    wait_for("the failure", || status_of(&mut observer.client, id).as_deref() == Some("FAILED"));
    pids
}

/// Starts an execution in the session's transaction, with one warning, which is returned.
///
/// # Panics
/// When it is autonomous, or gives another number of warnings.
#[track_caller]
pub fn fallback_start(session: &mut Session, observer: &mut Client) -> String {
    session.run("BEGIN");
    let id = session.start();
    let warnings = session.warnings();
    assert_eq!(warnings.len(), 1, "one warning of a fallback: {warnings:?}");
    assert_eq!(status_of(observer, id), None, "a transactional start is seen when it commits");
    session.run("COMMIT");
    assert_eq!(status_of(observer, id).as_deref(), Some("RUNNING"));
    warnings.into_iter().next().unwrap_or_default()
}

/// The status of an execution; `None` where it cannot be seen.
///
/// # Panics
/// When the query fails.
pub fn status_of(client: &mut Client, id: i64) -> Option<String> {
    let query = "SELECT status FROM loader.execution_history WHERE id = $1";
    client.query_opt(query, &[&id]).expect("the history").map(|row| row.get(0))
}

/// The folder of the server's extension scripts.
pub fn extension_folder() -> PathBuf {
    let sharedir = run(Command::new(bindir().join("pg_config")).arg("--sharedir"));
    Path::new(sharedir.trim()).join("extension")
}

/// Puts the frozen script of a released version where CREATE EXTENSION finds it. Other tests may do the
/// same at the same time: it is the same file.
///
/// # Panics
/// When it cannot be written.
fn offer_released_version(version: &str) {
    let name = format!("loader_history--{version}.sql");
    let frozen = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/released")).join(&name);
    let target = extension_folder().join(&name);
    let script = fs::read(&frozen).unwrap_or_else(|error| panic!("{}: {error}", frozen.display()));
    if fs::read(&target).is_ok_and(|present| present == script) {
        return;
    }
    let new =
        extension_folder().join(format!(".{name}.{}.{:?}", process::id(), thread::current().id()));
    fs::write(&new, script).expect("a file beside the extension's");
    fs::rename(&new, &target).expect("the script in its place");
}

/// Released versions older than the current one, which CREATE EXTENSION then finds.
///
/// # Panics
/// When their scripts cannot be read.
pub fn released_versions() -> Vec<String> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/released"));
    let files = fs::read_dir(folder).expect("the released scripts").flatten();
    let mut versions: Vec<_> = files
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            Some(name.strip_prefix("loader_history--")?.strip_suffix(".sql")?.to_owned())
        })
        .filter(|version| *version != current_version())
        .collect();
    versions.sort();
    versions.iter().for_each(|version| offer_released_version(version));
    versions
}

/// The version that the control file names.
///
/// # Panics
/// When it names none.
pub fn current_version() -> String {
    let control = fs::read_to_string(extension_folder().join("loader_history.control"))
        .expect("the control file");
    let line = control.lines().find(|line| line.starts_with("default_version")).expect("a version");
    line.split('\'').nth(1).expect("a version in quotes").to_owned()
}
