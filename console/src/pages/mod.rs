//! The pages, made on the server; they work without scripts, and move by themselves with them.

use askama::Template;
use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use chrono::{DateTime, Utc};

use crate::api::changes;
use crate::assets;
use crate::format::machine_time;
use crate::problem::Problem;
use crate::state::State;

mod history;
mod loaders;
mod overview;
mod view;

/// Serves the pages.
pub fn router() -> Router<State> {
    Router::new()
        .route("/", get(overview::overview))
        .route("/loaders", get(loaders::list))
        .route("/loaders/{loader_id}", get(history::of_loader))
        .route("/executions", get(history::of_all))
        .route("/changes", get(changes))
        .fallback(no_such_page)
}

/// What every page has.
struct Frame {
    /// Part of the addresses of its files.
    version: &'static str,
    /// When it was made, which the browser's clock is compared with.
    made: String,
    /// Whether events arrive.
    live: bool,
    /// Whether it moves by itself.
    moves: bool,
    /// Which item of the menu it is.
    menu: &'static str,
}

impl Frame {
    fn new(state: &State, menu: &'static str) -> Self {
        Self {
            version: assets::version(),
            made: machine_time(Utc::now()),
            live: state.hub.is_live(),
            moves: true,
            menu,
        }
    }

    /// Of a page whose durations are up to `now`.
    fn at(self, now: DateTime<Utc>) -> Self {
        Self { made: machine_time(now), ..self }
    }

    /// Of a page that stays as it is unless `moves`.
    fn moving(self, moves: bool) -> Self {
        Self { moves, ..self }
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    frame: Frame,
    problem: &'a Problem,
}

/// A page, or why there is none.
fn page(state: &State, made: Result<impl Template, Problem>) -> Response {
    match made {
        Ok(page) => render(StatusCode::OK, &page),
        Err(problem) => error(state, &problem),
    }
}

/// The page that says what `problem` is.
pub fn error(state: &State, problem: &Problem) -> Response {
    let page = ErrorPage { frame: Frame::new(state, "").moving(false), problem };
    render(problem.status(), &page)
}

fn render(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => (status, Html(text)).into_response(),
        Err(error) => {
            tracing::error!("a page cannot be made: {error}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The page cannot be made.")
                .into_response()
        }
    }
}

async fn no_such_page(
    axum::extract::State(state): axum::extract::State<State>,
    uri: Uri,
) -> Response {
    error(&state, &Problem::not_found(format!("There is no page {}.", uri.path())))
}
