//! Throwaway clusters: a private directory, a private socket, gone when the test ends.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Gid, Pid, Uid, User, geteuid};
use postgres::{Client, Config, NoTls};

use crate::wait::wait_for;

/// The superuser of every cluster.
const SUPERUSER: &str = "postgres";

/// Settings of every cluster: as a default server, but for what only costs time in a test.
const SETTINGS: &str = "
listen_addresses = ''
fsync = off
logging_collector = off
log_line_prefix = '%m [%p] %u@%d %e '
max_connections = 120
autovacuum = off
";

/// A PostgreSQL server of one's own. Dropping it stops it and removes all that was its.
pub struct Cluster {
    bindir: PathBuf,
    directory: PathBuf,
    server: Option<Child>,
    port: u16,
    remains: Remains,
}

/// The shared memory that the kernel keeps of a killed server. The server itself removes it when it starts again.
#[derive(Default)]
struct Remains {
    files: BTreeSet<PathBuf>,
    /// Ids of System V segments.
    segments: BTreeSet<String>,
}

impl Remains {
    /// What there will be of a server whose processes are these.
    fn of(processes: impl Iterator<Item = Pid>) -> Self {
        let mut remains = Self::default();
        for pid in processes {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            for line in maps.lines() {
                // Of a System V segment the kernel shows the id as the inode.
                let mut fields = line.split_whitespace().skip(4);
                if let (Some(inode), Some(name)) = (fields.next(), fields.next()) {
                    if name.starts_with("/dev/shm/PostgreSQL.") {
                        remains.files.insert(name.into());
                    } else if name.starts_with("/SYSV") {
                        remains.segments.insert(inode.to_owned());
                    }
                }
            }
        }
        remains
    }

    fn remove(&self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for segment in &self.segments {
            let _ = Command::new("ipcrm").arg("-m").arg(segment).output();
        }
    }
}

/// The port of clusters that listen on their socket alone.
const DEFAULT_PORT: u16 = 5432;

impl Cluster {
    /// Starts a cluster with no settings of its own.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a cluster with the lines `settings` added to `postgresql.conf`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(settings: &str) -> Self {
        Self::start_in(bindir(), settings)
    }

    /// The same of the server whose programs are in the folder `bindir`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_in(bindir: PathBuf, settings: &str) -> Self {
        Self::start_on_port(bindir, DEFAULT_PORT, settings)
    }

    /// The same where the server also listens on a port of 127.0.0.1, for clients that know no sockets.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with_tcp(settings: &str) -> Self {
        let port = free_port();
        let tcp = format!("listen_addresses = '127.0.0.1'\nport = {port}\n{settings}");
        Self::start_on_port(bindir(), port, &tcp)
    }

    fn start_on_port(bindir: PathBuf, port: u16, settings: &str) -> Self {
        let directory = new_directory();
        let template = template(&bindir);
        run(Command::new("cp").arg("-a").arg(&template).arg(directory.join("data")));
        let remains = Remains::default();
        let mut cluster = Self { bindir, directory, server: None, port, remains };
        cluster.configure(&format!("{SETTINGS}{settings}"));
        cluster.start_server();
        cluster
    }

    /// Starts a hot standby of this cluster.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_standby(&self) -> Self {
        let mut standby = self.base_backup(&["--write-recovery-conf"]);
        standby.start_server();
        standby
    }

    /// A cluster of the same programs without a data directory.
    fn empty(&self) -> Self {
        let (bindir, remains) = (self.bindir.clone(), Remains::default());
        Self { bindir, directory: new_directory(), server: None, port: self.port, remains }
    }

    /// A copy of this cluster, by `pg_basebackup` with some more arguments. Its server is not started.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn base_backup(&self, arguments: &[&str]) -> Self {
        let copy = self.empty();
        let mut backup = as_server_user(self.bindir.join("pg_basebackup"));
        backup.env("PGHOST", &self.directory).env("PGUSER", SUPERUSER);
        backup.env("PGPORT", self.port.to_string());
        run(backup.args(["--checkpoint=fast", "--no-sync", "-D"]).arg(copy.data()).args(arguments));
        copy
    }

    /// A copy of this cluster, whose server is stopped, as of `pg_basebackup`, that when it starts restores
    /// what is archived in `archive` up to a target of recovery such as `recovery_target_xid = '4711'`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn to_restore(&self, archive: &Path, target: &str) -> Self {
        let copy = self.empty();
        run(Command::new("cp").arg("-a").arg(self.data()).arg(copy.data()));
        copy.configure(&format!(
            "archive_mode = off
             restore_command = 'cp {}/%f %p'
             recovery_target_action = promote
             {target}",
            archive.display()
        ));
        // The server itself removes the file, and opens it for writing first.
        run(as_server_user("touch").arg(copy.data().join("recovery.signal")));
        copy
    }

    /// Makes this cluster, whose server is not running, a hot standby of `primary`, whose timeline it has
    /// left, by `pg_rewind`, and starts it.
    ///
    /// # Panics
    /// When that fails.
    pub fn rewind_to(&mut self, primary: &Self) {
        let source =
            format!("host={} user={SUPERUSER} dbname=postgres", primary.directory.display());
        run(self
            .server_program("pg_rewind")
            .args(["--write-recovery-conf", "--no-sync", "--source-server", &source])
            .arg("--target-pgdata")
            .arg(self.data()));
        self.start_server();
    }

    /// Adds lines to `postgresql.conf`, which outrank those before.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn configure(&self, settings: &str) {
        let file = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&file).expect("postgresql.conf");
        fs::write(&file, format!("{text}\n{settings}\n")).expect("postgresql.conf");
    }

    /// Promotes a standby. Returns when its recovery had ended.
    ///
    /// # Panics
    /// When it does not end.
    pub fn promote(&self) -> Instant {
        let mut client = self.connect();
        client.batch_execute("SELECT pg_promote(wait => false)").expect("a standby");
        wait_for("the end of recovery", || {
            let row = client.query_one("SELECT pg_is_in_recovery()", &[]).expect("the state");
            !row.get::<_, bool>(0)
        });
        Instant::now()
    }

    /// Starts the server of a cluster that was stopped.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_server(&mut self) {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log");
        let mut command = as_server_user(self.bindir.join("postgres"));
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.directory);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        // SAFETY: prctl() is async-signal-safe. A test that is killed takes its server with it.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGQUIT).map_err(std::io::Error::from)
            });
        }
        self.server = Some(command.spawn().expect("postgres starts"));
        wait_for("the server to accept connections", || {
            let status = self.server.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = status {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            self.config("postgres", SUPERUSER).connect(NoTls).is_ok()
        });
        self.remains = Remains::default();
    }

    /// Stops the server as `pg_ctl stop -m fast` does.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop_server(&mut self) {
        self.stop_server_by(Signal::SIGINT);
    }

    /// Stops the server as `pg_ctl stop -m immediate` does: it recovers when it starts again.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn crash_server(&mut self) {
        self.stop_server_by(Signal::SIGQUIT);
    }

    /// Kills all processes of the server, as the loss of its machine does.
    ///
    /// # Panics
    /// When they are not there.
    pub fn kill_server(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let postmaster = Pid::from_raw(i32::try_from(server.id()).expect("a pid"));
        // It starts no others meanwhile.
        kill(postmaster, Signal::SIGSTOP).expect("the server is there");
        let children = children(postmaster);
        self.remains = Remains::of([postmaster].into_iter().chain(children.iter().copied()));
        for &pid in &children {
            // One that has ended by itself is gone when its parent is.
            let _ = kill(pid, Signal::SIGKILL);
        }
        kill(postmaster, Signal::SIGKILL).expect("the server is there");
        server.wait().expect("the server's status");
        wait_for("the server's processes to be gone", || {
            children.iter().all(|&pid| state_and_parent(pid).is_none_or(|(state, _)| state == "Z"))
        });
    }

    fn stop_server_by(&mut self, how: Signal) {
        let Some(mut server) = self.server.take() else { return };
        let pid = Pid::from_raw(i32::try_from(server.id()).expect("a pid"));
        kill(pid, how).expect("the server is there");
        wait_for("the server to stop", || {
            server.try_wait().expect("the server's status").is_some()
        });
    }

    /// A client of the superuser in database `postgres`.
    ///
    /// # Panics
    /// When it cannot connect.
    pub fn connect(&self) -> Client {
        self.connect_to("postgres", SUPERUSER)
    }

    /// A client of `user` in `database`.
    ///
    /// # Panics
    /// When it cannot connect.
    pub fn connect_to(&self, database: &str, user: &str) -> Client {
        self.config(database, user).connect(NoTls).expect("a connection")
    }

    /// How to connect as `user` to `database`.
    pub fn config(&self, database: &str, user: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.directory).port(self.port).user(user).dbname(database);
        config
    }

    /// A client program of this server's version, such as `pg_dump`, told where the server is.
    pub fn program(&self, name: impl AsRef<Path>) -> Command {
        let mut command = Command::new(self.bindir.join(name));
        command
            .env("PGHOST", &self.directory)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", SUPERUSER)
            .env("PGDATABASE", "postgres");
        command.env("PGCLIENTENCODING", "UTF8");
        command
    }

    /// A program of this server's version that runs as the server's own user, such as `pg_upgrade`.
    pub fn server_program(&self, name: impl AsRef<Path>) -> Command {
        let mut command = as_server_user(self.bindir.join(name));
        command.current_dir(&self.directory);
        command
    }

    /// The port that the server listens on, and that its socket is named after.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The directory that is removed with the cluster, for files of the test's own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The folder of the server's programs.
    pub fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("--- the server's log, its end ---");
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
            if let Some(mut server) = self.server.take() {
                let _ = kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGQUIT);
                let _ = server.wait();
            }
        } else {
            self.stop_server();
        }
        self.remains.remove();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The processes whose parent is `pid`.
fn children(pid: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("the processes").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.map(Pid::from_raw)
        .filter(|&id| state_and_parent(id).is_some_and(|(_, parent)| parent == pid.to_string()))
        .collect()
}

/// What the kernel calls the state of a process, and its parent; `None` where it is gone.
fn state_and_parent(pid: Pid) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // They come after the name, which is in parentheses and may hold anything.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().map(str::to_owned);
    Some((fields.next()?, fields.next()?))
}

/// Runs a command to its end and returns what it printed.
///
/// # Panics
/// When it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The folder of the server's programs.
///
/// # Panics
/// When `PG_TEST_BINDIR` is not set.
pub fn bindir() -> PathBuf {
    PathBuf::from(std::env::var_os("PG_TEST_BINDIR").expect("PG_TEST_BINDIR (run `make test`)"))
}

/// The folder of the programs of the newest major that there is, to upgrade to.
pub fn new_bindir() -> PathBuf {
    std::env::var_os("PG_TEST_NEW_BINDIR").map_or_else(bindir, PathBuf::from)
}

/// The user that servers run as: oneself, or where that is root, whom PostgreSQL refuses, another.
fn server_user() -> Option<(Uid, Gid)> {
    if !geteuid().is_root() {
        return None;
    }
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .map(|user| (user.uid, user.gid))
}

fn as_server_user(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = server_user() {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command
}

/// A new directory that only the server's user (and root) can enter, with a path short enough for a
/// socket. Its name holds the id of this process, by which leftovers of killed ones are found.
fn new_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let temporary = temporary_directory();
    remove_leftovers(&temporary);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = temporary.join(format!("{PREFIX}{}.{number}", process::id()));
    fs::create_dir(&directory).expect("a directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).expect("its mode");
    if let Some((uid, gid)) = server_user() {
        chown(&directory, Some(uid.as_raw()), Some(gid.as_raw())).expect("its owner");
    }
    directory
}

/// A port of 127.0.0.1 that nobody listens on, of those that the kernel gives to no client.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    // Processes that look at the same time begin at different places.
    let own = u16::try_from(process::id() % u32::from(COUNT / 100)).expect("a small number") * 100;
    (0..COUNT)
        .map(|_| FIRST + (own + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// Where clusters live: in memory where there is plenty, since making one on disk takes seconds on
/// some machines. `TMPDIR` says otherwise.
fn temporary_directory() -> PathBuf {
    const PLENTY: u64 = 8 << 30;
    let memory = Path::new("/dev/shm");
    let free = statvfs(memory).map_or(0, |fs| fs.blocks_available() * fs.fragment_size());
    if std::env::var_os("TMPDIR").is_none() && free >= PLENTY {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

const PREFIX: &str = "loader_history_test.";

fn remove_leftovers(temporary: &Path) {
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('.').next())
            .and_then(|pid| pid.parse().ok());
        if let Some(pid) = pid
            && kill(Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A data directory as initdb makes it, made once for a copy of the server and kept beside its
/// programs.
fn template(bindir: &Path) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock();
    let template = bindir.join("initdb.template");
    if template.join("PG_VERSION").exists() {
        return template;
    }
    let directory = new_directory();
    let data = directory.join("data");
    run(as_server_user(bindir.join("initdb")).arg("-D").arg(&data).args([
        "-U",
        SUPERUSER,
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale",
        "C.UTF-8",
        "--no-sync",
    ]));
    // Other processes may do the same at the same time: whoever renames first has made it.
    let own = bindir.join(format!("initdb.template.{}", process::id()));
    run(Command::new("cp").arg("-a").arg(&data).arg(&own));
    if fs::rename(&own, &template).is_err() {
        let _ = fs::remove_dir_all(&own);
    }
    let _ = fs::remove_dir_all(&directory);
    template
}
