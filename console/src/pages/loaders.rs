//! All loaders that have history.

use askama::Template;
use axum::extract::State as Shared;
use axum::response::Response;
use chrono::Utc;
use serde::Deserialize;

use super::view::LoaderRow;
use super::{Frame, error, page};
use crate::api::Parameters;
use crate::format::address;
use crate::problem::Problem;
use crate::state::{OVERVIEW_ROWS, State};

#[derive(Deserialize)]
pub struct Wanted {
    after: Option<i64>,
    #[serde(default)]
    failed: bool,
}

#[derive(Template)]
#[template(path = "loaders.html")]
struct Loaders {
    frame: Frame,
    loaders: Vec<LoaderRow>,
    only_failed: bool,
    /// Its own address.
    here: String,
    is_first: bool,
    next_after: Option<i64>,
}

pub async fn list(
    Shared(state): Shared<State>,
    wanted: Result<Parameters<Wanted>, Problem>,
) -> Response {
    match wanted {
        Ok(Parameters(wanted)) => page(&state, make(&state, &wanted).await),
        Err(problem) => error(&state, &problem),
    }
}

async fn make(state: &State, wanted: &Wanted) -> Result<Loaders, Problem> {
    let found = state.loaders(wanted.after.unwrap_or(i64::MIN), wanted.failed).await?;
    let shown = &found[..found.len().min(OVERVIEW_ROWS.into())];
    let more = found.len() > shown.len();
    let now = Utc::now();
    Ok(Loaders {
        frame: Frame::new(state, "loaders"),
        next_after: shown.last().filter(|_| more).map(|last| last.loader_id),
        loaders: shown.iter().map(|loader| LoaderRow::new(loader, now)).collect(),
        only_failed: wanted.failed,
        here: address(
            "/loaders",
            &[
                ("failed", if wanted.failed { "true" } else { "" }),
                ("after", &wanted.after.map_or_else(String::new, |after| after.to_string())),
            ],
        ),
        is_first: wanted.after.is_none(),
    })
}
