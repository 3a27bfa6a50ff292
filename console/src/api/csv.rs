//! The history as CSV, page by page: a client that reads slowly keeps nothing open in the database.

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use crate::database::{Execution, HistoryPage};
use crate::filter::ExecutionFilter;
use crate::format::machine_time;
use crate::problem::Problem;
use crate::state::State;

/// Executions that are read at once: with error messages as long as they get, 0.2 MB in memory for each client
/// that takes its time, or four times that where they are not of Latin letters.
const PAGE_SIZE: i32 = 25;

const COLUMNS: [&str; 9] = [
    "id",
    "loader_id",
    "status",
    "execution_start",
    "execution_end",
    "duration_seconds",
    "record_count",
    "error_message",
    "error_truncated",
];

/// All executions that `filter` leaves, newest first.
pub async fn export(
    state: State,
    loader: Option<i64>,
    filter: ExecutionFilter,
) -> Result<Response, Problem> {
    let permit = super::place_among(&state.exports, "exports")?;
    // The first page before the response begins: its error is a problem rather than a broken file.
    let first = state.database.history(loader, &filter, PAGE_SIZE, None).await?;
    let rows = stream::try_unfold(Some((first, true)), move |page| {
        let (state, filter) = (state.clone(), filter.clone());
        // The export's own for as long as it is under way.
        let _ = &permit;
        async move {
            let Some((page, is_first)) = page else { return Ok(None) };
            let text = write(&page, is_first);
            let next = match page.next_cursor.as_deref() {
                Some(cursor) => state
                    .database
                    .history(loader, &filter, PAGE_SIZE, Some(cursor))
                    .await
                    .map(|page| Some((page, false)))
                    .map_err(std::io::Error::other)?,
                None => None,
            };
            Ok::<_, std::io::Error>(Some((Bytes::from(text), next)))
        }
    });
    let name = loader.map_or_else(|| "executions.csv".to_owned(), |id| format!("loader-{id}.csv"));
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    Ok((headers, Body::from_stream(rows)).into_response())
}

/// Rows as RFC 4180 has them.
fn write(page: &HistoryPage, with_header: bool) -> String {
    let mut text = String::new();
    if with_header {
        text = COLUMNS.join(",") + "\r\n";
    }
    for execution in &page.executions {
        text += &record(execution).join(",");
        text += "\r\n";
    }
    text
}

fn record(execution: &Execution) -> [String; COLUMNS.len()] {
    let number = |number: Option<i32>| number.map_or_else(String::new, |number| number.to_string());
    [
        execution.id.to_string(),
        execution.loader_id.to_string(),
        execution.status.clone(),
        machine_time(execution.execution_start),
        execution.execution_end.map_or_else(String::new, machine_time),
        number(execution.duration_seconds),
        number(execution.record_count),
        execution.error_message.as_deref().map_or_else(String::new, quote),
        execution.error_truncated.to_string(),
    ]
}

/// In quotes whatever it holds: spreadsheets take semicolons and tabs too for the end of a field, and would begin
/// another. They run what begins like a formula; an apostrophe before it makes it text (OWASP, "CSV Injection").
fn quote(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    format!("\"{}{}\"", if is_formula { "'" } else { "" }, text.replace('"', "\"\""))
}
