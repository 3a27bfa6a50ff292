//! What fails, what runs, what happened.

use askama::Template;
use axum::extract::State as Shared;
use axum::response::Response;

use super::view::{EventRow, ExecutionRow, LoaderRow, what_is_wrong};
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
    running_executions: String,
    /// Running executions whose transaction the server does not watch.
    unwatched: i64,
    /// What a DBA should correct.
    wrong: Vec<String>,
    running: Vec<ExecutionRow>,
    more_running: bool,
    events: Vec<EventRow>,
}

pub async fn overview(Shared(state): Shared<State>) -> Response {
    page(&state, make(&state).await)
}

async fn make(state: &State) -> Result<Overview, Problem> {
    // Each to its end, though one fails: others wait for the same answers.
    let (recorder, running_counts, counts, failed, running, events) = tokio::join!(
        state.recorder(),
        state.running_counts(),
        state.failed_loader_counts(),
        state.failed_loaders(),
        state.running(),
        state.newest_events(),
    );
    let (counts, failed, running, events) = (counts?, failed?, running?, events?);
    let (recorder, running_counts) = (recorder?, running_counts?);
    let now = running.now();
    let trend = match counts.failed_loaders_24h - counts.failed_loaders_previous_24h {
        0 => "as many as in the 24 hours before".to_owned(),
        more @ 1.. => format!("{} more than in the 24 hours before", format::count(more)),
        fewer => format!("{} fewer than in the 24 hours before", format::count(-fewer)),
    };
    Ok(Overview {
        frame: Frame::new(state, "overview").at(now),
        failed_loaders: counts.failed_loaders,
        failed_loaders_24h: format::count(counts.failed_loaders_24h),
        failed_executions_24h: format::count(counts.failed_executions_24h),
        trend,
        failed: failed.iter().map(|loader| LoaderRow::new(loader, now)).collect(),
        running_executions: format::count(running_counts.executions),
        unwatched: if recorder.preloaded { recorder.unwatched_running } else { 0 },
        wrong: what_is_wrong(&recorder, now),
        running: running
            .executions
            .iter()
            .map(|execution| ExecutionRow::new(execution, now))
            .collect(),
        more_running: running.next_cursor.is_some(),
        events: events.iter().map(|event| EventRow::new(event, now)).collect(),
    })
}

impl Overview {
    fn failed_count(&self) -> String {
        format::count(self.failed_loaders)
    }

    fn runs(&self) -> bool {
        !self.running.is_empty()
    }

    fn failed_lately(&self) -> bool {
        self.failed_executions_24h != "0"
    }

    fn more_failed(&self) -> bool {
        usize::try_from(self.failed_loaders).is_ok_and(|failed| failed > self.failed.len())
    }
}
