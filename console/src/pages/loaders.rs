//! All loaders that have history.

use askama::Template;
use axum::extract::State as Shared;
use axum::response::Response;
use serde::Deserialize;

use super::view::LoaderRow;
use super::{Frame, address, error, page};
use crate::api::Parameters;
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
    let after = wanted.after.unwrap_or(i64::MIN);
    let only = wanted.failed.then_some(true);
    let size = usize::from(OVERVIEW_ROWS);
    let mut found = state.database.loaders(after, only, i64::from(OVERVIEW_ROWS) + 1).await?;
    let more = found.len() > size;
    found.truncate(size);
    Ok(Loaders {
        frame: Frame::new(state, "loaders"),
        next_after: found.last().filter(|_| more).map(|last| last.loader_id),
        loaders: found.iter().map(LoaderRow::from).collect(),
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
