//! What a backend shows of the history: five questions, and the events as they happen.
//!
//! Its statements are printed as they are run; their values are shown as PostgreSQL writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;
use pg_test::{Client, Cluster};
use postgres::{SimpleQueryMessage, SimpleQueryRow};
use serde_json::Value;

use crate::application::BACKEND_LOGIN;
use crate::screen::{Cell, Screen, Style, cell, duration, elapsed, styled, thousands, time_of_day};
use crate::{Result, connect};

/// How long an event may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// A loader, as the application knows it.
#[derive(Clone)]
pub struct Loader {
    /// Its id, which is all that the extension knows.
    pub id: i64,
    /// The name of its file.
    pub file: String,
}

/// An execution, as others see it.
pub struct Seen {
    /// Its id.
    pub id: i64,
    /// Its status.
    pub status: String,
    /// Its error, empty where there is none.
    pub error: String,
}

/// A load that died in its transaction.
pub struct Death {
    /// Which it was.
    pub load: String,
    /// What others saw while its transaction was open.
    pub open: Seen,
    /// What they saw when it was dead.
    pub dead: Seen,
    /// How long that took, in seconds.
    pub found_after: f64,
}

/// A backend: a session that asks, and one that listens.
pub struct Backend {
    reader: Client,
    listener: Client,
    loaders: BTreeMap<String, Loader>,
    /// The events received, by execution and type.
    received: BTreeSet<(i64, String)>,
}

impl Backend {
    /// Connects, listens from now on, and looks up the loaders.
    pub fn connect(cluster: &Cluster) -> Result<Self> {
        let mut reader = connect(cluster, BACKEND_LOGIN)?;
        let mut listener = connect(cluster, BACKEND_LOGIN)?;
        listener.batch_execute("LISTEN loader_execution")?;
        let loaders = reader
            .query("SELECT loader_code, id, source_file FROM loader.loader", &[])?
            .iter()
            .map(|row| (row.get(0), Loader { id: row.get(1), file: row.get(2) }))
            .collect();
        Ok(Self { reader, listener, loaders, received: BTreeSet::new() })
    }

    /// The loader of a code.
    pub fn loader(&self, code: &str) -> Result<&Loader> {
        self.loaders.get(code).ok_or_else(|| format!("there is no loader {code}").into())
    }

    /// The newest execution of a loader.
    pub fn newest_execution(&mut self, loader: i64) -> Result<Seen> {
        let row = self.reader.query_one(
            "SELECT id, status::text, coalesce(error_message, '') FROM loader.execution_details
              WHERE loader_id = $1 ORDER BY execution_start DESC, id DESC LIMIT 1",
            &[&loader],
        )?;
        Ok(Seen { id: row.get(0), status: row.get(1), error: row.get(2) })
    }

    /// The newest execution of a loader, once it runs no more.
    pub fn newest_ended_execution(&mut self, loader: i64) -> Result<Seen> {
        let started = Instant::now();
        loop {
            let seen = self.newest_execution(loader)?;
            if seen.status != "RUNNING" || started.elapsed() > PATIENCE {
                return Ok(seen);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What others saw of loads that died.
    pub fn show_deaths(&self, screen: &mut Screen, deaths: &[Death]) -> Result<()> {
        let ids: Vec<_> = deaths.iter().map(|death| death.dead.id.to_string()).collect();
        screen.heading(
            "Loads that died in their transaction, and reported nothing",
            &format!(
                "SELECT id, status, error_message FROM loader.execution_details WHERE id IN ({});",
                ids.join(", ")
            ),
        )?;
        let table: Vec<Vec<Cell>> = deaths
            .iter()
            .map(|death| {
                vec![
                    cell(death.dead.id.to_string()),
                    cell(&death.load),
                    status(&death.open.status),
                    status(&death.dead.status),
                    cell(elapsed(death.found_after)),
                    cell(&death.dead.error),
                ]
            })
            .collect();
        let headers = [">id", "load", "while open", "when dead", ">known after", "error_message"];
        Ok(screen.table(&headers, &table)?)
    }

    /// The newest events of all loaders.
    pub fn show_activity_feed(&mut self, screen: &mut Screen) -> Result<()> {
        let sql = "SELECT * FROM loader.activity_feed ORDER BY event_time DESC LIMIT 16;";
        screen.heading("Activity feed, the newest first", sql)?;
        let mut table = Vec::new();
        for row in self.query(sql)? {
            let (mark, style) = match text(&row, "severity") {
                "success" => ("✓ success", Style::Good),
                "error" => ("✗ error", Style::Bad),
                _ => ("• info", Style::Plain),
            };
            table.push(vec![
                cell(time_of_day(text(&row, "event_time"))),
                styled(mark, style),
                styled(text(&row, "message"), style),
            ]);
        }
        Ok(screen.table(&["event_time", "severity", "message"], &table)?)
    }

    /// The executions of one loader.
    pub fn show_history(&mut self, screen: &mut Screen, code: &str) -> Result<()> {
        let id = self.loader(code)?.id;
        let sql = format!(
            "SELECT * FROM loader.execution_details WHERE loader_id = {id} ORDER BY execution_start DESC;"
        );
        screen.heading(&format!("History of loader {id}, {code}"), &sql)?;
        let mut table = Vec::new();
        let mut running = 0;
        for row in self.query(&sql)? {
            running += i32::from(text(&row, "is_running") == "t");
            table.push(vec![
                cell(text(&row, "id")),
                cell(time_of_day(text(&row, "execution_start"))),
                status(text(&row, "status")),
                cell(thousands(text(&row, "record_count"))),
                cell(duration(text(&row, "duration"))),
                cell(text(&row, "error_message")),
            ]);
        }
        if running != 1 {
            return Err(format!("{running} executions are running, and one should be").into());
        }
        let headers =
            [">id", "execution_start", "status", ">record_count", ">duration", "error_message"];
        Ok(screen.table(&headers, &table)?)
    }

    /// How each loader is.
    pub fn show_summary(&mut self, screen: &mut Screen) -> Result<()> {
        let sql = "SELECT * FROM loader.loader_summary ORDER BY loader_id;";
        screen.heading("The loaders", sql)?;
        let mut table = Vec::new();
        for row in self.query(sql)? {
            let failed = text(&row, "is_failed") == "t";
            table.push(vec![
                cell(self.name(text(&row, "loader_id"))),
                status(text(&row, "last_status")),
                cell(time_of_day(text(&row, "last_success_at"))),
                cell(time_of_day(text(&row, "last_failure_at"))),
                if failed { styled("yes", Style::Bad) } else { cell("no") },
                cell(text(&row, "consecutive_failures")),
                cell(text(&row, "running_executions")),
            ]);
        }
        let headers = [
            "loader",
            "last_status",
            "last_success",
            "last_failure",
            "is_failed",
            ">failures in a row",
            ">running",
        ];
        Ok(screen.table(&headers, &table)?)
    }

    /// How many loaders are failed. Returns that.
    pub fn show_failed_counts(&mut self, screen: &mut Screen) -> Result<i64> {
        let sql = "SELECT * FROM loader.failed_loader_counts;";
        screen.heading("Failed loaders", sql)?;
        let rows = self.query(sql)?;
        let row = rows.first().ok_or("loader.failed_loader_counts has no row")?;
        let columns = row.columns().iter();
        let headers: Vec<String> = columns.map(|column| format!(">{}", column.name())).collect();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let failed = text(row, "failed_loaders").parse()?;
        let style = if failed > 0 { Style::Bad } else { Style::Good };
        let mut cells: Vec<Cell> =
            (0..row.len()).map(|index| cell(row.get(index).unwrap_or_default())).collect();
        if let Some(first) = cells.first_mut() {
            *first = styled(text(row, "failed_loaders"), style);
        }
        screen.table(&headers, &[cells])?;
        Ok(failed)
    }

    /// The events received since the last call: exactly those that the activity feed has.
    pub fn show_events(&mut self, screen: &mut Screen, title: &str) -> Result<()> {
        let feed: BTreeSet<(i64, String)> = self
            .reader
            .query("SELECT execution_id, event_type FROM loader.activity_feed", &[])?
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();

        screen.heading(title, "LISTEN loader_execution;")?;
        let payloads = self.receive(feed.len())?;
        if self.received != feed {
            let missing: Vec<_> = feed.symmetric_difference(&self.received).collect();
            return Err(format!("the feed and the events received differ in {missing:?}").into());
        }

        let table: Vec<Vec<Cell>> = payloads
            .iter()
            .map(|payload| {
                let event = field(payload, "event_type");
                let style = match event.as_str() {
                    "EXECUTION_SUCCESS" => Style::Good,
                    "EXECUTION_FAILED" => Style::Bad,
                    _ => Style::Plain,
                };
                vec![
                    cell(time_of_day(&field(payload, "event_time"))),
                    styled(event, style),
                    cell(field(payload, "execution_id")),
                    cell(self.name(&field(payload, "loader_id"))),
                    cell(thousands(&field(payload, "record_count"))),
                ]
            })
            .collect();
        let headers = ["event_time", "event_type", ">execution_id", "loader", ">record_count"];
        Ok(screen.table(&headers, &table)?)
    }

    /// The events that arrive until `expected` have been received since the first, or none comes.
    fn receive(&mut self, expected: usize) -> Result<Vec<Value>> {
        let mut payloads = Vec::new();
        let mut notifications = self.listener.notifications();
        let mut arriving = notifications.timeout_iter(PATIENCE);
        while self.received.len() < expected {
            let Some(notification) = arriving.next()? else { break };
            let payload: Value = serde_json::from_str(notification.payload())?;
            let id = payload["execution_id"].as_i64().ok_or("an event has no execution_id")?;
            if !self.received.insert((id, field(&payload, "event_type"))) {
                return Err(format!("an event came twice: {payload}").into());
            }
            payloads.push(payload);
        }
        Ok(payloads)
    }

    /// A loader's id and code.
    fn name(&self, id: &str) -> String {
        let code = self.loaders.iter().find(|(_, loader)| loader.id.to_string() == id);
        code.map_or_else(|| id.to_owned(), |(code, _)| format!("{id} {code}"))
    }

    fn query(&mut self, sql: &str) -> Result<Vec<SimpleQueryRow>> {
        let messages = self.reader.simple_query(sql)?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect())
    }
}

fn status(status: &str) -> Cell {
    let style = match status {
        "SUCCESS" => Style::Good,
        "FAILED" => Style::Bad,
        _ => Style::Busy,
    };
    styled(status, style)
}

/// A column's value as text, empty where it is null.
fn text<'a>(row: &'a SimpleQueryRow, column: &str) -> &'a str {
    row.get(column).unwrap_or_default()
}

/// A field of an event as text, empty where it is null.
fn field(payload: &Value, name: &str) -> String {
    match &payload[name] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
