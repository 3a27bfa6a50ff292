//! Loaders, and how many fail.

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{LoaderId, Parameters, keep, limit, place};
use crate::database::{FailedLoaderCounts, LoaderSummary};
use crate::problem::Problem;
use crate::state::State;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u16>,
    after: Option<i64>,
    is_failed: Option<bool>,
}

#[derive(Serialize)]
pub struct Loaders {
    loaders: Vec<LoaderSummary>,
    /// Where the next page begins.
    next_after: Option<i64>,
}

pub async fn list(
    Shared(state): Shared<State>,
    Parameters(wanted): Parameters<Wanted>,
) -> Result<Response, Problem> {
    let limit = limit(wanted.limit)?;
    let place = place(&state, limit)?;
    let after = wanted.after.unwrap_or(i64::MIN);
    // One more tells whether another page follows.
    let mut loaders = state.database.loaders(after, wanted.is_failed, i64::from(limit) + 1).await?;
    let more = loaders.len() > usize::from(limit);
    loaders.truncate(limit.into());
    let next_after = loaders.last().filter(|_| more).map(|last| last.loader_id);
    Ok(keep(place, Json(Loaders { loaders, next_after }).into_response()))
}

pub async fn one(
    Shared(state): Shared<State>,
    LoaderId(id): LoaderId,
) -> Result<Json<LoaderSummary>, Problem> {
    let loader = state.database.loader(id).await?;
    loader.map(Json).ok_or_else(|| Problem::not_found(format!("Loader {id} has no history.")))
}

/// How many loaders there are, fail and run: what a front end polls for its tiles.
#[derive(Serialize)]
pub struct Statistics {
    total: i64,
    failed: i64,
    running: i64,
}

pub async fn statistics(Shared(state): Shared<State>) -> Result<Json<Statistics>, Problem> {
    let (total, counts, running) =
        tokio::join!(state.loader_count(), state.failed_loader_counts(), state.running_counts());
    let failed = counts?.failed_loaders;
    Ok(Json(Statistics { total: *total?, failed, running: running?.loaders }))
}

#[derive(Serialize)]
pub struct Counts {
    #[serde(flatten)]
    counts: FailedLoaderCounts,
    /// Loaders with failures in the last 24 hours, against the 24 hours before.
    trend: i64,
}

pub async fn counts(Shared(state): Shared<State>) -> Result<Json<Counts>, Problem> {
    let counts = (*state.failed_loader_counts().await?).clone();
    let trend = counts.failed_loaders_24h - counts.failed_loaders_previous_24h;
    Ok(Json(Counts { counts, trend }))
}
