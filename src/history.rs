//! `loader.get_execution_history`: the history as pages of JSON.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::spi::{self, SpiHeapTupleData};
use pgrx::{JsonB, Spi, pg_extern};
use serde::Serialize;

use crate::cursor::Cursor;
use crate::error::Error;
use crate::execution::Status;
use crate::time::from_postgres;

/// The largest page, in executions.
pub const MAX_PAGE_SIZE: i32 = 1000;

/// Characters of an error message that a page carries.
const MAX_ERROR_CHARACTERS: usize = 8192;

/// A page of the history, newest first.
#[derive(Serialize)]
struct Page {
    executions: Vec<Execution>,
    next_cursor: Option<String>,
}

/// An execution as a page shows it.
#[derive(Serialize)]
struct Execution {
    id: i64,
    loader_id: i64,
    execution_start: DateTime<Utc>,
    execution_end: Option<DateTime<Utc>>,
    status: String,
    record_count: Option<i32>,
    error_message: Option<String>,
    error_truncated: bool,
    duration_seconds: Option<i32>,
}

/// Arguments that are NULL are constants to the planner, and their conditions vanish: each
/// combination of filters gets the plan, and the index, that is its own.
static SELECT_PAGE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT id, loader_id, execution_start, execution_end, status::pg_catalog.text, record_count, \
                pg_catalog.left(error_message, {}), duration_seconds \
         FROM loader.execution_details \
         WHERE ($1 IS NULL OR loader_id OPERATOR(pg_catalog.=) $1) \
           AND ($2 IS NULL OR status OPERATOR(pg_catalog.=) $2) \
           AND ($3 IS NULL OR execution_start OPERATOR(pg_catalog.>=) $3) \
           AND ($4 IS NULL OR execution_start OPERATOR(pg_catalog.<) $4) \
           AND ($5 IS NULL OR (execution_start, id) OPERATOR(pg_catalog.<) ($5, $6)) \
         ORDER BY execution_start DESC, id DESC LIMIT $7",
        MAX_ERROR_CHARACTERS + 1,
    )
});

/// One page of the history of one loader or of all.
#[pg_extern(sql = false)]
fn get_execution_history(
    loader_id: Option<i64>,
    page_size: Option<i32>,
    cursor: Option<&str>,
    status: Option<&str>,
    started_from: Option<TimestampWithTimeZone>,
    started_before: Option<TimestampWithTimeZone>,
) -> Result<JsonB, ErrorReport> {
    let page_size = page_size.ok_or(Error::MissingArgument("page_size"))?;
    if !(1..=MAX_PAGE_SIZE).contains(&page_size) {
        return Err(Error::PageSizeOutOfRange(page_size).into());
    }
    let cursor = cursor
        .map(|text| text.parse::<Cursor>().map_err(|_| Error::MalformedCursor(text.to_owned())))
        .transpose()?;
    let status = status
        .map(|text| {
            Status::parse(text, &Status::ALL)
                .ok_or_else(|| Error::UnknownStatusFilter(text.to_owned()))
        })
        .transpose()?;

    let arguments = [
        loader_id.into(),
        status.map(Status::as_str).into(),
        started_from.into(),
        started_before.into(),
        cursor.and_then(|cursor| TimestampWithTimeZone::try_from(cursor.start).ok()).into(),
        cursor.map(|cursor| cursor.id).into(),
        // One more than the page holds tells whether another follows.
        (i64::from(page_size) + 1).into(),
    ];
    let mut rows = Spi::connect(|client| {
        client
            .select(SELECT_PAGE.as_str(), None, &arguments)?
            .map(read_row)
            .collect::<Result<Vec<_>, _>>()
    })
    .map_err(Error::Spi)?;

    let size = usize::try_from(page_size).unwrap_or_default();
    let more = rows.len() > size;
    rows.truncate(size);
    let next_cursor = rows.last().filter(|_| more).map(|(position, _)| position.to_string());
    let page = Page { executions: rows.into_iter().map(|(_, row)| row).collect(), next_cursor };
    Ok(JsonB(serde_json::to_value(page).map_err(Error::Json)?))
}

/// A row of [`SELECT_PAGE`], and where it stands in the history.
fn read_row(row: SpiHeapTupleData<'_>) -> spi::Result<(Cursor, Execution)> {
    let id = row.get::<i64>(1)?.unwrap_or_default();
    let start = row.get::<TimestampWithTimeZone>(3)?.map_or(0, TimestampWithTimeZone::into_inner);
    let end = row.get::<TimestampWithTimeZone>(4)?.map(TimestampWithTimeZone::into_inner);
    let mut error_message = row.get::<String>(7)?;
    let cut = error_message
        .as_deref()
        .and_then(|message| message.char_indices().nth(MAX_ERROR_CHARACTERS))
        .map(|(end, _)| end);
    if let (Some(message), Some(end)) = (&mut error_message, cut) {
        message.truncate(end);
    }
    let execution = Execution {
        id,
        loader_id: row.get(2)?.unwrap_or_default(),
        execution_start: from_postgres(start),
        execution_end: end.map(from_postgres),
        status: row.get(5)?.unwrap_or_default(),
        record_count: row.get(6)?,
        error_message,
        error_truncated: cut.is_some(),
        duration_seconds: row.get(8)?,
    };
    Ok((Cursor { start, id }, execution))
}
