//! The history, as pages of JSON and whole as CSV.

use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{LoaderId, Parameters, csv, keep, limit, place};
use crate::filter::{ExecutionFilter, Status};
use crate::problem::Problem;
use crate::state::State;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u16>,
    cursor: Option<String>,
    status: Option<Status>,
    started_from: Option<DateTime<Utc>>,
    started_before: Option<DateTime<Utc>>,
}

pub async fn of_loader(
    Shared(state): Shared<State>,
    LoaderId(loader): LoaderId,
    Parameters(wanted): Parameters<Wanted>,
) -> Result<Response, Problem> {
    page(&state, Some(loader), wanted).await
}

pub async fn of_all(
    Shared(state): Shared<State>,
    Parameters(wanted): Parameters<Wanted>,
) -> Result<Response, Problem> {
    page(&state, None, wanted).await
}

/// The extension's own JSON.
async fn page(state: &State, loader: Option<i64>, wanted: Wanted) -> Result<Response, Problem> {
    let limit = limit(wanted.limit)?;
    let place = place(state, limit)?;
    let filter = ExecutionFilter {
        status: wanted.status,
        started_from: wanted.started_from,
        started_before: wanted.started_before,
    };
    let cursor = wanted.cursor.as_deref();
    let (json, _) = state.database.history_json(loader, &filter, limit.into(), cursor).await?;
    Ok(keep(place, ([(header::CONTENT_TYPE, "application/json")], json).into_response()))
}

pub async fn csv_of_loader(
    Shared(state): Shared<State>,
    LoaderId(loader): LoaderId,
    Parameters(filter): Parameters<ExecutionFilter>,
) -> Result<Response, Problem> {
    csv::export(state, Some(loader), filter).await
}

pub async fn csv_of_all(
    Shared(state): Shared<State>,
    Parameters(filter): Parameters<ExecutionFilter>,
) -> Result<Response, Problem> {
    csv::export(state, None, filter).await
}
