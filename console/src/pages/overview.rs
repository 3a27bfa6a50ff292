//! What fails, what runs, what happened.

use askama::Template;
use axum::extract::State as Shared;
use axum::response::Response;

use super::view::{EventRow, ExecutionRow, LoaderRow};
use super::{Frame, page};
use crate::format;
use crate::problem::Problem;
use crate::state::State;

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Frame,
    failed_loaders: i64,
    failed_loaders_24h: String,
    failed_executions_24h: String,
    trend: String,
    failed: Vec<LoaderRow>,
    running: Vec<ExecutionRow>,
    more_running: bool,
    events: Vec<EventRow>,
}

pub async fn overview(Shared(state): Shared<State>) -> Response {
    page(&state, make(&state).await)
}

async fn make(state: &State) -> Result<Overview, Problem> {
    // Each to its end, though one fails: others wait for the same answers.
    let (counts, failed, running, events) = tokio::join!(
        state.failed_loader_counts(),
        state.failed_loaders(),
        state.running(),
        state.newest_events(),
    );
    let (counts, failed, running, events) = (counts?, failed?, running?, events?);
    let trend = match counts.failed_loaders_24h - counts.failed_loaders_previous_24h {
        0 => "as many as in the 24 hours before".to_owned(),
        more @ 1.. => format!("{} more than in the 24 hours before", format::count(more)),
        fewer => format!("{} fewer than in the 24 hours before", format::count(-fewer)),
    };
    Ok(Overview {
        frame: Frame::new(state, "overview").at(running.now()),
        failed_loaders: counts.failed_loaders,
        failed_loaders_24h: format::count(counts.failed_loaders_24h),
        failed_executions_24h: format::count(counts.failed_executions_24h),
        trend,
        failed: failed.iter().map(LoaderRow::from).collect(),
        running: running
            .executions
            .iter()
            .map(|execution| ExecutionRow::new(execution, running.now()))
            .collect(),
        more_running: running.next_cursor.is_some(),
        events: events.iter().map(EventRow::from).collect(),
    })
}

impl Overview {
    fn failed_count(&self) -> String {
        format::count(self.failed_loaders)
    }

    fn more_failed(&self) -> bool {
        usize::try_from(self.failed_loaders).is_ok_and(|failed| failed > self.failed.len())
    }
}
