//! The history of one loader, the Loader Details page, or of all.

use askama::Template;
use axum::extract::State as Shared;
use axum::response::Response;
use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Deserialize;

use super::view::{ChartPoint, ExecutionRow, LoaderRow, StatusOption, describe, status_options};
use super::{Frame, error, page};
use crate::api::{LoaderId, Parameters};
use crate::filter::{ExecutionFilter, Status};
use crate::format::{address, machine_time};
use crate::problem::Problem;
use crate::state::State;

/// As forms send it: what is not filled in is empty.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Wanted {
    status: String,
    from: String,
    before: String,
    cursor: Option<String>,
}

#[derive(Template)]
#[template(path = "history.html")]
struct History {
    frame: Frame,
    /// The loader, and what its summary says where it has history.
    loader: Option<(i64, Option<LoaderRow>)>,
    statuses: Vec<StatusOption>,
    from: String,
    before: String,
    is_filtered: bool,
    is_first: bool,
    executions: Vec<ExecutionRow>,
    /// Address of the first page.
    newest: String,
    /// Address of the next page.
    next: Option<String>,
    /// Address of the CSV.
    csv: String,
    /// What the chart shows, in words.
    charted: String,
    has_points: bool,
    /// JSON for the chart.
    chart: String,
}

pub async fn of_loader(
    Shared(state): Shared<State>,
    loader: Result<LoaderId, Problem>,
    wanted: Result<Parameters<Wanted>, Problem>,
) -> Response {
    match (loader, wanted) {
        (Ok(LoaderId(loader)), Ok(Parameters(wanted))) => {
            page(&state, make(&state, Some(loader), wanted).await)
        }
        (Err(problem), _) | (_, Err(problem)) => error(&state, &problem),
    }
}

pub async fn of_all(
    Shared(state): Shared<State>,
    wanted: Result<Parameters<Wanted>, Problem>,
) -> Response {
    match wanted {
        Ok(Parameters(wanted)) => page(&state, make(&state, None, wanted).await),
        Err(problem) => error(&state, &problem),
    }
}

async fn make(state: &State, loader: Option<i64>, wanted: Wanted) -> Result<History, Problem> {
    let filter = wanted.filter()?;
    let cursor = wanted.cursor.as_deref().filter(|cursor| !cursor.is_empty());
    // Each to its end, though one fails: others wait for the same answers.
    let (found, of_loader) = tokio::join!(state.history(loader, &filter, cursor), async {
        let id = loader?;
        Some(tokio::join!(state.loader(id), state.points(id, &filter)))
    });
    let found = found?;
    let now = found.now();
    // That a loader has no history does not mean that there is none: it may run for the first time soon.
    let (summary, points) = match of_loader {
        Some((summary, points)) => (
            summary?.as_ref().as_ref().map(|summary| LoaderRow::new(summary, now)),
            points?.iter().rev().filter_map(ChartPoint::of).collect(),
        ),
        None => (None, Vec::new()),
    };
    let path = loader.map_or_else(|| "/executions".to_owned(), |id| format!("/loaders/{id}"));
    let csv_path = loader.map_or_else(
        || "/api/v1/executions.csv".to_owned(),
        |id| format!("/api/v1/loaders/{id}/executions.csv"),
    );
    let page_at = |cursor: &str| {
        let parameters = [
            ("status", wanted.status.as_str()),
            ("from", &wanted.from),
            ("before", &wanted.before),
            ("cursor", cursor),
        ];
        address(&path, &parameters)
    };
    Ok(History {
        frame: Frame::new(state, if loader.is_some() { "" } else { "executions" })
            .at(now)
            .moving(cursor.is_none()),
        loader: loader.map(|id| (id, summary)),
        statuses: status_options(filter.status),
        is_filtered: filter.is_set(),
        is_first: cursor.is_none(),
        executions: found
            .executions
            .iter()
            .map(|execution| ExecutionRow::new(execution, now))
            .collect(),
        newest: page_at(""),
        next: found.next_cursor.as_deref().map(page_at),
        csv: address(
            &csv_path,
            &[
                ("status", filter.status.map_or("", Status::as_str)),
                ("started_from", &machine(filter.started_from)),
                ("started_before", &machine(filter.started_before)),
            ],
        ),
        charted: describe(&points),
        has_points: !points.is_empty(),
        chart: serde_json::to_string(&points).map_err(crate::database::Error::from)?,
        from: field(filter.started_from),
        before: field(filter.started_before),
    })
}

/// As a form's field of a time takes it, whichever way it was written.
fn field(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(String::new, |time| time.format("%Y-%m-%dT%H:%M:%S").to_string())
}

fn machine(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(String::new, machine_time)
}

impl Wanted {
    fn filter(&self) -> Result<ExecutionFilter, Problem> {
        let status = match self.status.as_str() {
            "" => None,
            text => Some(
                Status::ALL
                    .into_iter()
                    .find(|status| status.as_str() == text)
                    .ok_or_else(|| Problem::bad_request("status is RUNNING, SUCCESS or FAILED."))?,
            ),
        };
        Ok(ExecutionFilter {
            status,
            started_from: time(&self.from)?,
            started_before: time(&self.before)?,
        })
    }
}

/// A time as a form sends it, in UTC, or as programs write it.
fn time(text: &str) -> Result<Option<DateTime<Utc>>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let of_form = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S%.f"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    of_form
        .map(|time| time.and_utc())
        .or_else(|| DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()))
        .map(Some)
        .ok_or_else(|| Problem::bad_request("A time is of the form 2026-01-31T23:59, in UTC."))
}
