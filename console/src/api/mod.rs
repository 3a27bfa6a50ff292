//! The JSON API, below /api/v1; `openapi.yaml` describes it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, OriginalUri, Path, Query};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;
use crate::state::State;

mod activity;
mod csv;
mod executions;
mod loaders;
mod stream;

pub use stream::changes;

/// The description of the API.
const OPENAPI: &str = include_str!("../../openapi.yaml");

/// The largest page.
const MAX_LIMIT: u16 = 1000;

/// A page of more rows is a large one.
const LARGE: u16 = 100;

/// Rows of a page where the request does not say.
const DEFAULT_LIMIT: u16 = 50;

/// Serves the API.
pub fn router() -> Router<State> {
    Router::new()
        .route("/openapi.yaml", get(openapi))
        .route("/health", get(health))
        .route("/activity", get(activity::activity))
        .route("/failed-loaders/counts", get(loaders::counts))
        .route("/statistics", get(loaders::statistics))
        .route("/loaders", get(loaders::list))
        .route("/loaders/{loader_id}", get(loaders::one))
        .route("/loaders/{loader_id}/executions", get(executions::of_loader))
        .route("/loaders/{loader_id}/executions.csv", get(executions::csv_of_loader))
        .route("/executions", get(executions::of_all))
        .route("/executions.csv", get(executions::csv_of_all))
        .route("/events", get(stream::events))
        .method_not_allowed_fallback(not_allowed)
        .fallback(no_such_path)
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/yaml")], OPENAPI)
}

async fn health(
    axum::extract::State(state): axum::extract::State<State>,
) -> Result<impl IntoResponse, Problem> {
    state.database.ping().await?;
    Ok(axum::Json(serde_json::json!({ "database": "ok", "live_events": state.hub.is_live() })))
}

/// Nothing is there.
pub async fn no_such_path(OriginalUri(uri): OriginalUri) -> Problem {
    Problem::not_found(format!("There is no {}.", uri.path()))
}

async fn not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "The API only reads: use GET.")
}

/// Parameters of the query, or a problem that says what is wrong with them.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err(Problem::bad_request(rejection.body_text())),
        }
    }
}

/// A loader's id in the path.
pub struct LoaderId(pub i64);

impl<S: Send + Sync> FromRequestParts<S> for LoaderId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(Problem::bad_request("A loader's id is a whole number of 64 bits.")),
        }
    }
}

/// The number of rows asked for.
fn limit(limit: Option<u16>) -> Result<u16, Problem> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if (1..=MAX_LIMIT).contains(&limit) {
        Ok(limit)
    } else {
        Err(Problem::bad_request(format!("limit is a number from 1 to {MAX_LIMIT}.")))
    }
}

/// The place of a page of `limit` rows, where it needs one.
fn place(state: &State, limit: u16) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let pages = || format!("pages of more than {LARGE} rows");
    (limit > LARGE).then(|| place_among(&state.large_pages, &pages())).transpose()
}

/// One of `places`, which `what` have.
fn place_among(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        let detail = format!("Too many {what} are under way.");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    })
}

/// `page`, which has its place until its client has taken it.
fn keep(place: Option<OwnedSemaphorePermit>, page: Response) -> Response {
    let Some(place) = place else { return page };
    page.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |part| {
            let _ = &place;
            part
        }))
    })
}
