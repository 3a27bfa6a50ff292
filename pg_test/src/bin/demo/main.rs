//! Runs real loads of real public data through loader_history, and shows what it recorded.
//!
//! `make demo` sets `PG_TEST_BINDIR`, the server's programs, `DEMO_DATA`, the folder of the data, and
//! `DEMO_CONSOLE`, the console's program.

mod application;
mod backend;
mod console;
mod screen;

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use pg_test::{Client, Cluster, wait_for_worker};
use postgres::NoTls;
use postgres::error::SqlState;

use application::{LOADER_LOGIN, Load, Outcome};
use backend::{Backend, Death, Loader};
use screen::{Screen, Style, elapsed, thousands};

/// What goes wrong ends the demo with a message.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let Err(error) = demo() else { return ExitCode::SUCCESS };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    eprintln!("\nerror: {text}");
    ExitCode::FAILURE
}

/// The server preloads the library: starts are autonomous and survive the rollback of the load.
const SERVER_SETTINGS: &str = "
shared_preload_libraries = 'loader_history'
# Starts stay autonomous on a machine that is also building.
loader_history.worker_timeout = '20s'
";

fn demo() -> Result<()> {
    let data = variable("DEMO_DATA")?;
    variable("PG_TEST_BINDIR")?;

    step("Starting a throwaway cluster that preloads the library")?;
    let started = Instant::now();
    let cluster = Cluster::start_with(SERVER_SETTINGS);
    done(started, "ready")?;

    step("Creating loader.loader, the tables to load and the extension")?;
    let started = Instant::now();
    let mut owner = connect(&cluster, "postgres")?;
    owner.batch_execute(application::TABLES)?;
    owner.batch_execute(application::EXTENSION)?;
    wait_for_worker(&mut owner);
    done(started, "ready")?;

    let mut backend = Backend::connect(&cluster)?;
    let open = |backend: &Backend, load: &Load| -> Result<(Loader, File)> {
        let loader = backend.loader(load.code)?.clone();
        let path = data.join(&loader.file);
        let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((loader, file))
    };

    let mut client = connect(&cluster, LOADER_LOGIN)?;
    for load in application::LOADS {
        let (loader, mut file) = open(&backend, load)?;
        step_of(load)?;
        let started = Instant::now();
        let outcome = application::run(&mut client, loader.id, load, &mut file)?;
        check(load, &outcome)?;
        done(started, &summary(&outcome))?;
    }

    // These do everything in one transaction, and die in its middle.
    let mut deaths = Vec::new();
    for load in [&application::FLIGHTS_JFK, &application::FLIGHTS_JFK_TERMINATED] {
        let (loader, file) = open(&backend, load)?;
        let client = connect(&cluster, LOADER_LOGIN)?;
        deaths.push(let_die(&mut owner, &mut backend, client, load, &loader, file)?);
    }

    // The last load stops in the middle of its COPY until everything is printed.
    let load = &application::FLIGHTS_REPAIRED;
    let (loader, file) = open(&backend, load)?;
    let bytes = file.metadata()?.len();
    let mut client = connect(&cluster, LOADER_LOGIN)?;
    step_of(load)?;
    let started = Instant::now();
    let ((started, mut screen), outcome) = while_paused(
        file,
        |file| application::run(&mut client, loader.id, load, file),
        || {
            done(started, &format!("still running: {}", progress_of_copy(&mut owner, bytes)?))?;
            let mut screen = Screen::new();
            backend.show_deaths(&mut screen, &deaths)?;
            show(&mut backend, &mut screen, load.code)?;
            writeln!(io::stderr())?;
            step("Letting that load finish")?;
            Ok((Instant::now(), screen))
        },
    )?;
    let outcome = outcome?;
    done(started, &summary(&outcome))?;
    check(load, &outcome)?;
    show_healed(&mut owner, &mut backend, &mut screen, load.code)?;

    let repeat = |client: &mut Client, load: &Load| -> Result<()> {
        let (loader, mut file) = open(&backend, load)?;
        check(load, &application::run(client, loader.id, load, &mut file)?)
    };
    console::show(&cluster, &mut screen, 0, repeat, connect(&cluster, LOADER_LOGIN)?)
}

/// Runs a load that starts and dies in one transaction, of its data's fault or, where that has none,
/// because its connection is terminated in the middle. Nobody reports the failure.
fn let_die(
    owner: &mut Client,
    backend: &mut Backend,
    mut client: Client,
    load: &Load,
    loader: &Loader,
    file: File,
) -> Result<Death> {
    step(&format!("Loading {}, in one transaction", name(load)))?;
    let started = Instant::now();
    let bytes = file.metadata()?.len();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let (open, outcome) = while_paused(
        file,
        |file| application::run_in_one_transaction(&mut client, loader.id, load, file),
        || {
            let open = backend.newest_execution(loader.id)?;
            write!(io::stderr(), "{} at {}; ", open.status, progress_of_copy(owner, bytes)?)?;
            if load.violates.is_none() {
                write!(io::stderr(), "terminating its connection; ")?;
                owner.query("SELECT pg_terminate_backend($1)", &[&pid])?;
            }
            Ok(open)
        },
    )?;
    let died = Instant::now();
    if outcome.is_ok() {
        return Err(format!("{}: it succeeded, and was to die", name(load)).into());
    }
    let dead = backend.newest_ended_execution(loader.id)?;
    let found_after = died.elapsed().as_secs_f64();
    done(started, &format!("{}: {}", dead.status, dead.error))?;

    let (sqlstate, text) = match load.violates {
        Some(constraint) => (SqlState::FOREIGN_KEY_VIOLATION, constraint),
        None => (SqlState::ADMIN_SHUTDOWN, "terminating connection"),
    };
    let expected = dead.error.starts_with(sqlstate.code()) && dead.error.contains(text);
    if open.id != dead.id || open.status != "RUNNING" || dead.status != "FAILED" || !expected {
        return Err(format!("{}: its execution should be FAILED with its error", name(load)).into());
    }
    Ok(Death { load: name(load), open, dead, found_after })
}

/// Runs `load`, which reads a file, and `during` while it has read half of it. Returns what `during`
/// returned, and what came of the load.
fn while_paused<L: Send, R>(
    file: File,
    load: impl FnOnce(&mut Pausing) -> Result<L> + Send,
    during: impl FnOnce() -> Result<R>,
) -> Result<(R, Result<L>)> {
    let left = file.metadata()?.len() / 2;
    thread::scope(|scope| {
        let (paused, wait_for_pause) = mpsc::channel();
        let (resume, wait_for_resume) = mpsc::channel();
        let mut file = Pausing { file, left, paused, resume: wait_for_resume };
        let load_thread = scope.spawn(move || load(&mut file));
        if wait_for_pause.recv().is_err() {
            return match load_thread.join() {
                Ok(Err(error)) => Err(error),
                _ => Err("the load that should still run has ended".into()),
            };
        }
        let seen = during()?;
        drop::<Sender<()>>(resume);
        let outcome = load_thread.join().map_err(|_| "the loading thread panicked")?;
        Ok((seen, outcome))
    })
}

/// What the history says while a load is running.
fn show(backend: &mut Backend, screen: &mut Screen, code: &str) -> Result<()> {
    backend.show_activity_feed(screen)?;
    backend.show_history(screen, code)?;
    backend.show_summary(screen)?;
    let failed = backend.show_failed_counts(screen)?;
    if failed != 1 {
        return Err(format!("{failed} loaders are failed, and one should be").into());
    }
    backend.show_events(screen, "Events that a LISTENing session received")
}

/// What has changed when that load has ended, and whether the history is right about the data.
fn show_healed(
    owner: &mut Client,
    backend: &mut Backend,
    screen: &mut Screen,
    code: &str,
) -> Result<()> {
    backend.show_events(screen, "The event that has come since")?;
    let failed = backend.show_failed_counts(screen)?;
    if failed != 0 {
        return Err(format!("{failed} loaders are still failed").into());
    }

    let row = owner.query_one(
        "SELECT (SELECT count(*) FROM nyc.flights),
                (SELECT count(*) FROM nyc.flights_rejected),
                (SELECT sum(record_count) FROM loader.execution_details
                  WHERE loader_id = $1 AND status = 'SUCCESS')",
        &[&backend.loader(code)?.id],
    )?;
    let (loaded, rejected, recorded): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if loaded != recorded {
        return Err(format!("nyc.flights has {loaded} rows, the history says {recorded}").into());
    }
    let loaded = thousands(&loaded.to_string());
    let rejected = thousands(&rejected.to_string());
    screen.blank()?;
    screen.line(
        &format!("nyc.flights holds {loaded} rows, as recorded; {rejected} to unknown airports were set aside."),
        Style::Good,
    )?;
    Ok(())
}

/// Whether a load did what it must: fail on the constraint that its data violates, or else succeed.
fn check(load: &Load, outcome: &Outcome) -> Result<()> {
    let problem = match (outcome, load.violates) {
        (Outcome::Success(_), None) => return Ok(()),
        (Outcome::Success(_), Some(constraint)) => format!("it succeeded in spite of {constraint}"),
        (Outcome::Failed(error), Some(constraint))
            if *error.code() == SqlState::FOREIGN_KEY_VIOLATION
                && error.constraint() == Some(constraint) =>
        {
            return Ok(());
        }
        (Outcome::Failed(error), _) => error.to_string(),
    };
    Err(format!("{}: {problem}", name(load)).into())
}

/// How far the COPY that runs has come, as the server sees it.
fn progress_of_copy(owner: &mut Client, bytes: u64) -> Result<String> {
    let row = owner
        .query_opt(
            "SELECT tuples_processed, bytes_processed
               FROM pg_stat_progress_copy WHERE relid <> 0",
            &[],
        )?
        .ok_or("no COPY is running")?;
    let (rows, read): (i64, i64) = (row.get(0), row.get(1));
    let megabyte = 1_000_000;
    Ok(format!(
        "{} rows, {} of {} MB",
        thousands(&rows.to_string()),
        read / megabyte,
        bytes / u64::try_from(megabyte)?,
    ))
}

/// A file that is read to its middle, and further only once `resume` is closed.
struct Pausing {
    file: File,
    left: u64,
    paused: Sender<()>,
    resume: Receiver<()>,
}

impl Read for Pausing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            // Nobody who listens any more is nobody who will resume: both mean to go on.
            let _ = self.paused.send(());
            let _ = self.resume.recv();
            self.left = u64::MAX;
        }
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read(&mut buffer[..limit])?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Connects as `user`.
fn connect(cluster: &Cluster, user: &str) -> Result<Client> {
    Ok(cluster.config("postgres", user).connect(NoTls)?)
}

fn variable(name: &str) -> Result<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set: run `make demo`").into())
}

/// Says what begins now. On stderr, as all progress, so that stdout holds the results alone.
fn step(what: &str) -> Result<()> {
    let mut stderr = io::stderr();
    write!(stderr, "=> {what} ... ")?;
    Ok(stderr.flush()?)
}

fn step_of(load: &Load) -> Result<()> {
    step(&format!("Loading {}", name(load)))
}

fn name(load: &Load) -> String {
    format!("{} {}", load.code, load.part).trim_end().to_owned()
}

/// Says how that went, and how long it took.
fn done(started: Instant, how: &str) -> Result<()> {
    writeln!(io::stderr(), "{how}, {}", elapsed(started.elapsed().as_secs_f64()))?;
    Ok(())
}

fn summary(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Success(records) => format!("{} records", thousands(&records.to_string())),
        Outcome::Failed(error) => {
            format!("FAILED on {}", error.constraint().unwrap_or(error.message()))
        }
    }
}
