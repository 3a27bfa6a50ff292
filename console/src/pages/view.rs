//! Rows as pages show them.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use crate::database::{Execution, FeedEvent, LoaderSummary, Point, Recorder};
use crate::filter::Status;
use crate::format;
use crate::timestamp::Timestamp;

/// A time, for people and for machines.
pub struct Time {
    /// To the second.
    pub text: String,
    /// To the microsecond.
    pub machine: String,
    /// How long ago it was.
    pub ago: String,
}

impl Time {
    /// `time`, as it is `now`.
    pub fn new(time: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        Self {
            text: format::time(time),
            machine: format::machine_time(time),
            ago: format::ago(time, now),
        }
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
        let line = whole.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Self { line: line.chars().take(LINE).collect(), whole, truncated }
    }

    /// Whether there is more than the line.
    pub fn is_longer(&self) -> bool {
        self.truncated || self.line.len() < self.whole.len()
    }
}

impl ExecutionRow {
    /// `execution` as it is `now`.
    pub fn new(execution: &Execution, now: DateTime<Utc>) -> Self {
        let error = execution.error_message.clone();
        Self {
            id: execution.id,
            loader_id: execution.loader_id,
            start: Time::new(execution.execution_start, now),
            status: execution.status.clone(),
            duration: match execution.execution_end {
                Some(end) => format::duration(end - execution.execution_start),
                None => format::running(now - execution.execution_start),
            },
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
    pub running: String,
    pub last_start: Time,
    pub last_success: Option<Time>,
    pub last_failure: Option<Time>,
    pub failures: String,
    pub error: Option<ErrorText>,
}

/// Where the counts of a loader's summary stop.
const COUNTED: i64 = 1000;

fn counted(count: i64) -> String {
    format::count(count) + if count >= COUNTED { " or more" } else { "" }
}

impl LoaderRow {
    /// `loader` as it is `now`.
    pub fn new(loader: &LoaderSummary, now: DateTime<Utc>) -> Self {
        let time = |time: Timestamp| Time::new(time.0, now);
        let error = loader.last_error_message.clone().filter(|error| !error.is_empty());
        Self {
            id: loader.loader_id,
            status: loader.last_status.clone(),
            is_failed: loader.is_failed,
            running: counted(loader.running_executions),
            last_start: time(loader.last_execution_start),
            last_success: loader.last_success_at.map(time),
            last_failure: loader.last_failure_at.map(time),
            failures: counted(loader.consecutive_failures),
            error: error.map(|error| ErrorText::new(error, loader.last_error_truncated)),
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

impl EventRow {
    /// `event` as it is `now`.
    pub fn new(event: &FeedEvent, now: DateTime<Utc>) -> Self {
        Self {
            time: Time::new(event.event_time.0, now),
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

    /// What the chart shows of `point`; nothing of what runs.
    pub fn of(point: &Point) -> Option<Self> {
        let Point { start, duration, ref status } = *point;
        let has_ended = *status != Status::Running.as_str();
        has_ended.then(|| Self { start, duration, status: status.clone() })
    }
}

/// What the chart shows, in words: "60 executions, 15 of them failed; from 1.2 s to 8.6 s, half of them in 5.0 s or less".
pub fn describe(points: &[ChartPoint]) -> String {
    let failures = points.iter().filter(|point| point.is_failed()).count();
    let mut durations: Vec<_> = points.iter().map(|point| point.duration).collect();
    durations.sort_by(f64::total_cmp);
    let (Some(&shortest), Some(&longest)) = (durations.first(), durations.last()) else {
        return "no executions".to_owned();
    };
    let median = durations[(durations.len() - 1) / 2];
    #[expect(clippy::cast_possible_truncation, reason = "a duration in words")]
    let say =
        |seconds: f64| format::duration(TimeDelta::milliseconds((seconds * 1e3).min(1e15) as i64));
    format!(
        "{} executions, {failures} of them failed; from {} to {}, half of them in {} or less",
        durations.len(),
        say(shortest),
        say(longest),
        say(median)
    )
}

/// What a DBA should correct, in sentences; nothing if the recorder works.
pub fn what_is_wrong(recorder: &Recorder, now: DateTime<Utc>) -> Vec<String> {
    let mut wrong = Vec::new();
    let has_no_worker = recorder.preloaded && recorder.worker_pid.is_none();
    if has_no_worker {
        wrong.push("The recorder's background worker does not run.".to_owned());
    }
    if has_no_worker || !recorder.foreign_key {
        wrong.extend(recorder.detail.clone());
    }
    // It is kept for ever: what is older has passed.
    if let (Some(error), Some(at)) = (&recorder.last_error, recorder.last_error_at)
        && now - at.0 < TimeDelta::days(1)
    {
        wrong.push(format!("The recorder's last error, {}: {error}", format::ago(at.0, now)));
    }
    wrong
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_an_error_says_something() {
        for (whole, line, is_longer) in [
            ("no such file", "no such file", false),
            ("one\ntwo", "one", true),
            ("\n \r\none\ntwo", "one", true),
            ("\n", "", true),
        ] {
            let text = ErrorText::new(whole.to_owned(), false);
            assert_eq!((text.line.as_str(), text.is_longer()), (line, is_longer), "{whole:?}");
        }
    }

    #[test]
    fn counts_that_stop_say_so() {
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000 or more")] {
            assert_eq!(counted(count), text);
        }
    }
}
