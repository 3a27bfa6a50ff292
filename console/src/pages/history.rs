//! The history of one loader, the Loader Details page, or of all.

use askama::Template;
use axum::extract::State as Shared;
use axum::response::Response;
use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Deserialize;

use super::view::{ChartPoint, ExecutionRow, LoaderRow, StatusOption, status_options};
use super::{Frame, address, error, page};
use crate::api::{LoaderId, Parameters};
use crate::filter::{ExecutionFilter, Status};
use crate::format::machine_time;
use crate::problem::Problem;
use crate::state::State;

/// Executions of a page.
const PAGE_SIZE: i32 = 50;

/// Executions that the chart shows.
const CHART_SIZE: i32 = 200;

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
    let recent = ExecutionFilter::default();
    let (found, summary, charted) = tokio::try_join!(
        state.database.history(loader, &filter, PAGE_SIZE, cursor),
        async {
            match loader {
                Some(id) => state.database.loader(id).await,
                None => Ok(None),
            }
        },
        async {
            match loader {
                Some(_) => {
                    state.database.history(loader, &recent, CHART_SIZE, None).await.map(Some)
                }
                None => Ok(None),
            }
        },
    )?;
    if let (Some(id), None) = (loader, &summary) {
        return Err(Problem::not_found(format!("Loader {id} has no history.")));
    }
    let points: Vec<_> = charted
        .iter()
        .flat_map(|page| page.executions.iter().rev().filter_map(ChartPoint::of))
        .collect();
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
    let failures = points.iter().filter(|point| point.is_failed()).count();
    Ok(History {
        frame: Frame::new(state, if loader.is_some() { "" } else { "executions" })
            .at(found.now())
            .moving(cursor.is_none()),
        loader: loader.map(|id| (id, summary.as_ref().map(LoaderRow::from))),
        statuses: status_options(filter.status),
        is_filtered: filter.is_set(),
        is_first: cursor.is_none(),
        executions: found
            .executions
            .iter()
            .map(|execution| ExecutionRow::new(execution, found.now()))
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
        charted: format!("{} executions, {failures} of them failed", points.len()),
        chart: serde_json::to_string(&points).map_err(crate::database::Error::from)?,
        from: wanted.from,
        before: wanted.before,
    })
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
