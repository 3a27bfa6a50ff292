//! The console over what the demo has recorded: running until Enter on a terminal, and elsewhere looked at
//! once.

use std::env;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use pg_test::{Client, Cluster};

use crate::application::{self, BACKEND_LOGIN, Load};
use crate::screen::{Screen, Style};
use crate::{Result, variable};

/// Between two loads that keep the pages moving.
const PAUSE: Duration = Duration::from_secs(2);

/// A running console.
struct Console {
    process: Child,
    url: String,
}

impl Console {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut process = Command::new(variable("DEMO_CONSOLE")?)
            .env("PGHOST", cluster.directory())
            .env("PGUSER", BACKEND_LOGIN)
            .env("PGDATABASE", "postgres")
            .env_remove("DATABASE_URL")
            .env("CONSOLE_LISTEN", env::var("CONSOLE_LISTEN").as_deref().unwrap_or("127.0.0.1:0"))
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(process.stderr.take().ok_or("no standard error")?);
        let mut console = Self { process, url: String::new() };
        let mut line = String::new();
        while console.url.is_empty() {
            if log.read_line(&mut line)? == 0 {
                return Err("the console does not start".into());
            }
            if let Some((_, url)) = line.trim_end().split_once("listening on ") {
                console.url = url.to_owned();
            }
            line.clear();
        }
        // Reads on, so that the console never waits for its log to be read.
        thread::spawn(move || io::copy(&mut log, &mut io::sink()));
        Ok(console)
    }

    fn get(&self, path: &str) -> Result<String> {
        Ok(ureq::get(format!("{}{path}", self.url)).call()?.body_mut().read_to_string()?)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the console. On a terminal it stays, with more loads to watch, until Enter; elsewhere it is
/// asked whether it shows what the views say.
pub fn show(
    cluster: &Cluster,
    screen: &mut Screen,
    failed_loaders: i64,
    mut load: impl FnMut(&mut Client, &Load) -> Result<()>,
    mut loader: Client,
) -> Result<()> {
    let console = Console::start(cluster)?;
    let page = console.get("/")?;
    let shown = format!(
        "<dd id=\"failed-loaders\"><a href=\"/loaders?failed=true\">{failed_loaders}</a></dd>"
    );
    if !page.contains(&shown) {
        return Err(format!("the console does not show {failed_loaders} failed loaders").into());
    }
    screen.heading("The console", &format!("{}/", console.url))?;
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        screen.line("It shows the same numbers, and ends: this is no terminal.", Style::Plain)?;
        return Ok(());
    }
    screen.line("Open it and watch: loads go on, and one in five fails.", Style::Plain)?;
    screen.line("Press Enter to end.", Style::Bold)?;
    io::stdout().flush()?;
    let (enter, entered) = mpsc::channel();
    thread::spawn(move || {
        let read = io::stdin().lock().read_line(&mut String::new());
        enter.send(read)
    });
    for next in application::REPEATED.iter().cycle() {
        match entered.recv_timeout(PAUSE) {
            Err(RecvTimeoutError::Timeout) => load(&mut loader, next)?,
            _ => break,
        }
    }
    Ok(())
}
