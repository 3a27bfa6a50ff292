//! Server-sent events: every event for programs, and ticks for pages.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::wrappers::BroadcastStream;

use super::Parameters;
use crate::events::{Event, Tick};
use crate::problem::Problem;
use crate::state::State;

/// A client connects again after this.
const RETRY: Duration = Duration::from_secs(1);

/// A comment is sent where nothing else was for so long, by which both ends learn of a lost connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    loader_id: Option<i64>,
}

/// Every event, or those of one loader.
pub async fn events(
    Shared(state): Shared<State>,
    Parameters(wanted): Parameters<Wanted>,
) -> Result<Response, Problem> {
    let permit = permit(&state)?;
    let watched = BroadcastStream::new(state.hub.watch());
    let events = watched.filter_map(move |event| {
        let sent = match event {
            Ok(Event::Execution { loader_id, .. })
                if wanted.loader_id.is_some_and(|wanted| wanted != loader_id) =>
            {
                None
            }
            Ok(Event::Execution { number, payload, .. }) => {
                Some(sse::Event::default().event("execution").id(number.to_string()).data(&payload))
            }
            // Behind by more than is kept, or the console was.
            Ok(Event::Gap) | Err(_) => Some(gap()),
        };
        std::future::ready(sent)
    });
    // Earlier events have not reached this client, and a client that opens another stream, as browsers must after any
    // answer but 200, does not tell that it had one.
    let first = stream::iter([gap().retry(RETRY)]);
    Ok(respond(&state, permit, first.chain(events)))
}

fn gap() -> sse::Event {
    sse::Event::default().event("gap").data("{}")
}

/// A tick where something changed that a page shows, at most one a second.
pub async fn changes(
    Shared(state): Shared<State>,
    Parameters(wanted): Parameters<Wanted>,
) -> Result<Response, Problem> {
    let permit = permit(&state)?;
    let ticks = BroadcastStream::new(state.hub.watch_ticks()).filter_map(move |tick| {
        let tick = tick.unwrap_or(Tick::ALL);
        let changed = sse::Event::default().event("change").data("{}");
        std::future::ready(tick.concerns(wanted.loader_id).then_some(changed))
    });
    // A page that connects may have been made before the last change.
    let first = sse::Event::default().retry(RETRY).event("change").data("{}");
    Ok(respond(&state, permit, stream::iter([first]).chain(ticks)))
}

fn permit(state: &State) -> Result<OwnedSemaphorePermit, Problem> {
    state.streams.clone().try_acquire_owned().map_err(|_| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Too many streams of events are open.")
    })
}

fn respond(
    state: &State,
    permit: OwnedSemaphorePermit,
    events: impl Stream<Item = sse::Event> + Send + 'static,
) -> Response {
    let mut stopping = state.stopping.clone();
    let stopped = async move {
        let _ = stopping.wait_for(|&stopping| stopping).await;
    };
    let events = events
        .map(move |event| {
            // The stream's own for as long as it is open.
            let _ = &permit;
            Ok::<_, Infallible>(event)
        })
        .take_until(Box::pin(stopped));
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    ([(HEADER_BUFFERING, "no")], stream).into_response()
}

/// Has nginx pass events on as they come.
const HEADER_BUFFERING: header::HeaderName = header::HeaderName::from_static("x-accel-buffering");
