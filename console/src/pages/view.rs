//! Rows as pages show them.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::database::{Execution, FeedEvent, LoaderSummary};
use crate::filter::Status;
use crate::format;
use crate::timestamp::Timestamp;

/// A time, for people and for machines.
pub struct Time {
    /// To the second.
    pub text: String,
    /// To the microsecond.
    pub machine: String,
}

impl From<DateTime<Utc>> for Time {
    fn from(time: DateTime<Utc>) -> Self {
        Self { text: format::time(time), machine: format::machine_time(time) }
    }
}

impl From<Timestamp> for Time {
    fn from(time: Timestamp) -> Self {
        time.0.into()
    }
}

/// An execution.
pub struct ExecutionRow {
    pub id: i64,
    pub loader_id: i64,
    pub start: Time,
    pub status: String,
    /// How long it took; of one that runs, so far.
    pub duration: String,
    pub is_running: bool,
    pub records: String,
    pub error: Option<ErrorText>,
}

/// An error message, and what of it fits into a line.
pub struct ErrorText {
    pub line: String,
    pub whole: String,
    pub truncated: bool,
}

/// Characters of an error that a line holds.
const LINE: usize = 120;

impl ErrorText {
    fn new(whole: String, truncated: bool) -> Self {
        let line: String = whole.lines().next().unwrap_or_default().chars().take(LINE).collect();
        Self { line, whole, truncated }
    }

    /// Whether there is more than the line.
    pub fn is_longer(&self) -> bool {
        self.truncated || self.line.len() < self.whole.len()
    }
}

impl ExecutionRow {
    /// `execution` as it is `now`.
    pub fn new(execution: &Execution, now: DateTime<Utc>) -> Self {
        let end = execution.execution_end.unwrap_or(now);
        let error = execution.error_message.clone();
        Self {
            id: execution.id,
            loader_id: execution.loader_id,
            start: execution.execution_start.into(),
            status: execution.status.clone(),
            duration: format::duration(end - execution.execution_start),
            is_running: execution.execution_end.is_none(),
            // The count of one that runs is not known yet.
            records: execution
                .record_count
                .filter(|_| execution.execution_end.is_some())
                .map_or_else(String::new, |count| format::count(count.into())),
            error: error
                .filter(|error| !error.is_empty())
                .map(|error| ErrorText::new(error, execution.error_truncated)),
        }
    }
}

/// A loader.
pub struct LoaderRow {
    pub id: i64,
    pub status: String,
    pub is_failed: bool,
    pub running: i64,
    pub last_start: Time,
    pub last_success: Option<Time>,
    pub last_failure: Option<Time>,
    pub failures: String,
    pub error: Option<ErrorText>,
}

/// Where the counts of a loader's summary stop.
const COUNTED: i64 = 1000;

impl From<&LoaderSummary> for LoaderRow {
    fn from(loader: &LoaderSummary) -> Self {
        let failures = format::count(loader.consecutive_failures);
        let more = if loader.consecutive_failures >= COUNTED { " or more" } else { "" };
        let error = loader.last_error_message.clone().filter(|error| !error.is_empty());
        Self {
            id: loader.loader_id,
            status: loader.last_status.clone(),
            is_failed: loader.is_failed,
            running: loader.running_executions,
            last_start: loader.last_execution_start.into(),
            last_success: loader.last_success_at.map(Time::from),
            last_failure: loader.last_failure_at.map(Time::from),
            failures: failures + more,
            error: error.map(|error| ErrorText::new(error, false)),
        }
    }
}

/// An event of the feed.
pub struct EventRow {
    pub time: Time,
    pub severity: String,
    pub execution_id: i64,
    pub loader_id: i64,
    pub kind: String,
    pub message: String,
}

impl From<&FeedEvent> for EventRow {
    fn from(event: &FeedEvent) -> Self {
        Self {
            time: event.event_time.into(),
            severity: event.severity.clone(),
            execution_id: event.execution_id,
            loader_id: event.loader_id,
            kind: event.event_type.clone(),
            message: event.message.clone(),
        }
    }
}

/// An execution in the chart.
#[derive(Serialize)]
pub struct ChartPoint {
    /// Its start, in seconds since 1970.
    start: f64,
    /// How long it took, in seconds.
    duration: f64,
    status: String,
}

impl ChartPoint {
    /// Whether it failed.
    pub fn is_failed(&self) -> bool {
        self.status == Status::Failed.as_str()
    }

    /// What the chart shows of `execution`; nothing of one that runs.
    pub fn of(execution: &Execution) -> Option<Self> {
        let end = execution.execution_end?;
        // Exact enough: f64 holds microseconds since 1970 beyond the year 2200.
        #[expect(clippy::cast_precision_loss, reason = "a chart")]
        let seconds = |micros: i64| micros as f64 / 1e6;
        let duration = (end - execution.execution_start).num_microseconds().unwrap_or(i64::MAX);
        Some(Self {
            start: seconds(execution.execution_start.timestamp_micros()),
            duration: seconds(duration),
            status: execution.status.clone(),
        })
    }
}

/// A status to filter by.
pub struct StatusOption {
    pub value: &'static str,
    pub chosen: bool,
}

/// The statuses to filter by.
pub fn status_options(chosen: Option<Status>) -> Vec<StatusOption> {
    let option =
        |status: Status| StatusOption { value: status.as_str(), chosen: chosen == Some(status) };
    Status::ALL.map(option).into()
}
