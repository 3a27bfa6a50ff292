//! The loaders in `clients/`, programs as their authors would write them, and what they load.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use postgres::Client;

use crate::{APPLICATION_SQL, Cluster, PRELOADED, column, wait_for, wait_for_worker};

/// What every loader is given beside the extension: a login that may record and write into `planes`,
/// and one that may read the history.
const LOGINS_AND_TABLE: &str = "
    CREATE ROLE etl LOGIN;
    CREATE ROLE dashboard LOGIN;
    SELECT loader_history.grant_recorder('etl');
    SELECT loader_history.grant_reader('dashboard');
    CREATE TABLE planes (
        tailnum text PRIMARY KEY, year integer, type text NOT NULL, manufacturer text NOT NULL,
        model text NOT NULL, engines integer NOT NULL, seats integer NOT NULL, speed integer,
        engine text NOT NULL
    );
    GRANT SELECT, INSERT, TRUNCATE ON planes TO etl;
";

/// A variable that `scripts/test` sets.
fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| panic!("{name} (run `make test`)"), PathBuf::from)
}

/// The folder of what `scripts/clients` has fetched.
pub fn clients_folder() -> PathBuf {
    variable("PG_TEST_CLIENTS")
}

/// A preloading cluster that listens on TCP, with the logins and the table of the loaders.
pub struct Site {
    /// The server.
    pub cluster: Cluster,
    /// A session of the superuser.
    pub observer: Client,
}

impl Site {
    /// Starts one.
    pub fn start() -> Self {
        Self::start_with(PRELOADED)
    }

    /// Starts one with `settings`, which must preload the library.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(settings: &str) -> Self {
        let cluster = Cluster::start_with_tcp(settings);
        let mut observer = cluster.connect();
        observer.batch_execute(APPLICATION_SQL).expect("the application's table");
        observer.batch_execute("CREATE EXTENSION loader_history").expect("the extension");
        observer.batch_execute(LOGINS_AND_TABLE).expect("logins and a table");
        wait_for_worker(&mut observer);
        Self { cluster, observer }
    }

    /// Restarts the server.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.cluster.stop_server();
        self.cluster.start_server();
        self.observer = self.cluster.connect();
        wait_for_worker(&mut self.observer);
    }

    /// The newest execution, as "status count text", without what is 0 or null.
    ///
    /// # Panics
    /// When the query fails.
    pub fn newest(&mut self) -> String {
        let query = "SELECT concat_ws(' ', status, NULLIF(record_count, 0), error_message)
                       FROM loader.execution_history ORDER BY id DESC LIMIT 1";
        column::<String>(&mut self.observer, query).pop().unwrap_or_default()
    }

    /// How many planes are loaded.
    ///
    /// # Panics
    /// When the query fails.
    pub fn planes(&mut self) -> i64 {
        column(&mut self.observer, "SELECT count(*) FROM planes")[0]
    }

    /// The file of real data that the loaders load.
    pub fn data(name: &str) -> PathBuf {
        variable("DEMO_DATA").join(name)
    }

    /// A pipe to load from, which a test fills, so that it knows how far the load is.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn pipe(&self) -> PathBuf {
        let path = self.cluster.directory().join("pipe");
        let _ = std::fs::remove_file(&path);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe");
        path
    }
}

/// A loader's language and driver.
#[derive(Clone, Copy, Debug)]
pub enum ClientProgram {
    /// Python.
    Psycopg,
    /// JavaScript.
    NodePostgres,
    /// Java.
    Jdbc,
    /// Rust, whose programs cargo builds: the folder that they are in.
    TokioPostgres(&'static str),
}

impl ClientProgram {
    /// How `user` connects to a port of 127.0.0.1, as the driver writes it.
    pub fn dsn(self, port: u16, user: &str) -> String {
        match self {
            Self::Jdbc => format!("jdbc:postgresql://127.0.0.1:{port}/postgres?user={user}"),
            _ => format!("postgresql://{user}@127.0.0.1:{port}/postgres"),
        }
    }

    /// The folder of its programs.
    pub fn folder(self) -> PathBuf {
        let name = match self {
            Self::Psycopg => "psycopg",
            Self::NodePostgres => "node-postgres",
            Self::Jdbc => "jdbc",
            Self::TokioPostgres(_) => "tokio-postgres",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
    }

    /// One of its programs: `load`, `listen` or `calls`.
    pub fn command(self, name: &str) -> Command {
        let mut command;
        match self {
            Self::Psycopg => {
                command = python();
                command.arg(self.folder().join(format!("{name}.py")));
            }
            Self::NodePostgres => {
                command = Command::new("node");
                command.env("NODE_PATH", clients_folder().join("node-postgres/node_modules"));
                command.arg(self.folder().join(format!("{name}.js")));
            }
            Self::Jdbc => {
                let class = name[..1].to_uppercase() + &name[1..];
                command = Command::new("java");
                command.args(["-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp"]);
                command.arg("/usr/share/java/postgresql.jar");
                command.arg(self.folder().join(format!("{class}.java")));
            }
            Self::TokioPostgres(folder) => {
                command = Command::new(Path::new(folder).join(format!("tokio_postgres_{name}")));
            }
        }
        command
    }

    /// Starts its loader of planes, as login `etl` over a port, for loader 4.
    ///
    /// # Panics
    /// When it does not start.
    pub fn load(self, port: u16, path: &Path) -> Process {
        let mut command = self.command("load");
        Process::start(command.arg(self.dsn(port, "etl")).arg("4").arg(path))
    }
}

/// Python with what `scripts/clients` has fetched.
pub fn python() -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", clients_folder().join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A program that runs beside the test, and that is killed with it.
pub struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, stdout }
    }

    /// The next line that it prints, once it does.
    ///
    /// # Panics
    /// When it ends without.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        if self.stdout.read_line(&mut line).expect("its output") == 0 {
            panic!("it ended: {}", self.errors());
        }
        line.trim_end().to_owned()
    }

    /// Opens the pipe that it reads, once it does.
    ///
    /// # Panics
    /// When it ends without.
    pub fn open(&mut self, pipe: &Path) -> File {
        let mut first = None;
        wait_for("the loader to open its file", || {
            if self.child.try_wait().expect("its status").is_some() {
                panic!("it ended: {}", self.errors());
            }
            // Without a reader this fails, and would otherwise wait.
            let options = OFlag::O_NONBLOCK.bits();
            first = OpenOptions::new().write(true).custom_flags(options).open(pipe).ok();
            first.is_some()
        });
        // The reader must not be left without a writer, which would be the end of the file.
        OpenOptions::new().write(true).open(pipe).expect("the pipe")
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it is there");
    }

    /// Waits for its end, and returns how it ended and what it has printed.
    ///
    /// # Panics
    /// When it is not there.
    pub fn end(mut self) -> (ExitStatus, String, String) {
        let mut output = String::new();
        self.stdout.read_to_string(&mut output).expect("its output");
        let errors = self.errors();
        (self.child.wait().expect("its status"), output, errors)
    }

    /// Waits for its end, and returns what it printed.
    ///
    /// # Panics
    /// When it has failed.
    pub fn succeed(self) -> String {
        let (status, output, errors) = self.end();
        assert!(status.success(), "it ended with {status}:\n{output}{errors}");
        output
    }

    /// Waits for its end, and returns its errors.
    ///
    /// # Panics
    /// When it has succeeded.
    pub fn fail(self) -> String {
        let (status, output, errors) = self.end();
        assert!(!status.success(), "it succeeded:\n{output}{errors}");
        errors
    }

    fn errors(&mut self) -> String {
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut errors).expect("its errors");
        }
        errors
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes to a pipe the first half of `path`.
///
/// # Panics
/// When that fails.
pub fn write_half(pipe: &mut File, path: &Path) -> Vec<u8> {
    let mut text = std::fs::read(path).expect("the data");
    let rest = text.split_off(text.len() / 2);
    pipe.write_all(&text).expect("a reader");
    rest
}
