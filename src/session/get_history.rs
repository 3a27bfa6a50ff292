//! `loader.get_execution_history`: the history as pages of JSON.

use std::ffi::CString;

use chrono::{DateTime, Utc};
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{AnyElement, FromDatum, Spi, direct_function_call_as_datum, pg_extern};
use serde::Serialize;
use serde_json::Number;

use crate::model::cursor::Cursor;
use crate::model::error::{Error, shown};
use crate::model::execution::{MAX_PAGE_SIZE, Status, listed};
use crate::model::timestamp::from_postgres;
use crate::pg::guc_scope::{GucScope, Setting};
use crate::pg::spi::{Rows, SavedPlanCell, Snapshot, timestamptz};

/// Characters of an error message that a page carries.
const MAX_ERROR_CHARACTERS: usize = 8192;

/// A page of the history, newest first.
#[derive(Serialize)]
struct Page {
    executions: Vec<Execution>,
    next_cursor: Option<String>,
}

/// An execution as a page shows it. The fields are in jsonb's own order, which saves sorting them:
/// by length, then by name.
#[derive(Serialize)]
struct Execution {
    id: i64,
    status: String,
    loader_id: i64,
    duration_ms: Option<Number>,
    record_count: Option<i32>,
    error_message: Option<String>,
    execution_end: Option<DateTime<Utc>>,
    error_truncated: bool,
    execution_start: DateTime<Utc>,
    duration_seconds: Option<i32>,
}

/// The milliseconds between two times in PostgreSQL's microseconds.
#[allow(clippy::cast_precision_loss)] // from 285 years on
fn milliseconds(start: i64, end: i64) -> Option<Number> {
    match end.saturating_sub(start) {
        micros if micros % 1_000 == 0 => Some((micros / 1_000).into()),
        micros => Number::from_f64(micros as f64 / 1_000.0),
    }
}

/// Settings under which a page is planned: as a scan of an index in the order of the page or, for
/// running executions, as a bitmap scan of all of them and a sort. Stale or missing statistics must
/// not lead to another plan.
const PLANNER_SETTINGS: [Setting; 6] = [
    (c"plan_cache_mode", c"force_generic_plan"),
    (c"enable_indexscan", c"on"),
    (c"enable_seqscan", c"off"),
    (c"enable_bitmapscan", c"on"),
    (c"max_parallel_workers_per_gather", c"0"),
    (c"jit", c"off"),
];

/// How a page is limited to older executions.
#[derive(Clone, Copy)]
enum Before {
    /// Not: it begins with the newest.
    Nothing,
    /// By the start of its executions.
    Start,
    /// By start and id: it continues another page.
    Row,
}

/// Which conditions a page has. Each combination is a statement of its own, so that each gets its
/// own plan and index.
#[derive(Clone, Copy)]
struct Conditions {
    loader: bool,
    status: Option<Status>,
    from: bool,
    before: Before,
}

/// How many combinations there are.
const COMBINATIONS: usize = 2 * (Status::ALL.len() + 1) * 2 * 3;

thread_local! {
    static PLANS: [SavedPlanCell; COMBINATIONS] = const { [const { SavedPlanCell::new() }; COMBINATIONS] };
}

impl Conditions {
    /// A number for each combination, below [`COMBINATIONS`].
    fn number(self) -> usize {
        let status = Status::ALL.iter().position(|&status| Some(status) == self.status);
        let status = status.map_or(0, |position| position + 1);
        let flags = usize::from(self.loader) * 2 + usize::from(self.from);
        (self.before as usize * (Status::ALL.len() + 1) + status) * 4 + flags
    }

    /// The statement. Statuses are written out: an index may be limited to one.
    fn sql(self) -> String {
        let mut sql = format!(
            "SELECT id, loader_id, execution_start, execution_end, status::pg_catalog.text, record_count, \
                    pg_catalog.left(error_message, {}), duration_seconds \
             FROM loader.execution_details WHERE true",
            MAX_ERROR_CHARACTERS + 1,
        );
        if self.loader {
            sql += " AND loader_id OPERATOR(pg_catalog.=) $1";
        }
        // The outcomes of a loader have an index by status and start. A range of statuses, and an
        // order that begins with the status, leave no other index: with an equality the planner
        // could choose the index of all executions of the loader, in which these may be far apart.
        let outcome = self.status.filter(|&status| self.loader && status != Status::Running);
        let (row, order) = match outcome {
            Some(_) => ("status, execution_start", "status DESC, execution_start DESC, id DESC"),
            None => ("execution_start", "execution_start DESC, id DESC"),
        };
        let value = |time: &str| {
            outcome
                .map_or_else(|| time.to_owned(), |status| format!("'{}', {time}", status.as_str()))
        };
        if let Some(status) = self.status.map(Status::as_str) {
            sql += &match outcome {
                Some(_) => format!(
                    " AND status OPERATOR(pg_catalog.>=) '{status}' AND status OPERATOR(pg_catalog.<=) '{status}'"
                ),
                None => format!(" AND status OPERATOR(pg_catalog.=) '{status}'"),
            };
        }
        if self.from {
            sql += &format!(" AND ({row}) OPERATOR(pg_catalog.>=) ({})", value("$2"));
        }
        sql += &match self.before {
            Before::Nothing => String::new(),
            Before::Start => format!(" AND ({row}) OPERATOR(pg_catalog.<) ({})", value("$3")),
            Before::Row => format!(" AND ({row}, id) OPERATOR(pg_catalog.<) ({}, $4)", value("$3")),
        };
        if self.status == Some(Status::Running) && !self.loader {
            // The index of running executions is by loader. OFFSET makes PostgreSQL find all of
            // them before it sorts.
            sql = format!("SELECT * FROM ({sql} OFFSET 0) AS running");
        }
        format!("{sql} ORDER BY {order} LIMIT $5")
    }
}

/// One page of the history of one loader or of all.
#[pg_extern(sql = false)]
fn get_execution_history(
    loader_id: Option<i64>,
    page_size: Option<i32>,
    cursor: Option<&str>,
    status: Option<&str>,
    started_from: Option<TimestampWithTimeZone>,
    started_before: Option<TimestampWithTimeZone>,
) -> Result<Option<AnyElement>, ErrorReport> {
    let page_size = page_size.ok_or(Error::MissingArgument(
        "page_size",
        "Leave the argument out for pages of 50 executions.",
    ))?;
    let invalid = |message: String, hint: String| Error::InvalidArgument { message, hint };
    if !(1..=MAX_PAGE_SIZE).contains(&page_size) {
        let hint =
            format!("Pass a number from 1 to {MAX_PAGE_SIZE}; next_cursor leads to the rest.");
        return Err(invalid(format!("page_size {page_size} is out of range"), hint).into());
    }
    let cursor = cursor
        .map(|text| {
            let message = || format!("malformed cursor \"{}\"", shown(text));
            let hint =
                "Pass next_cursor of the page before, unchanged, or NULL for the first page.";
            text.parse::<Cursor>().map_err(|_| invalid(message(), hint.to_owned()))
        })
        .transpose()?;
    let status = status
        .map(|text| {
            Status::parse(text, &Status::ALL).ok_or_else(|| {
                let hint = format!("Pass {}, or NULL for all.", listed(&Status::ALL));
                invalid(format!("unknown status \"{}\"", shown(text)), hint)
            })
        })
        .transpose()?;

    // One upper bound, the lower of the two: given both, PostgreSQL may begin the index scan at the
    // other.
    let started_before = started_before.map(TimestampWithTimeZone::into_inner);
    let (before, latest) = match (cursor, started_before) {
        (None, None) => (Before::Nothing, None),
        (Some(cursor), limit) if limit.is_none_or(|limit| cursor.start < limit) => {
            (Before::Row, Some(cursor.start))
        }
        (_, limit) => (Before::Start, limit),
    };
    let conditions =
        Conditions { loader: loader_id.is_some(), status, from: started_from.is_some(), before };
    // For every page, whether its statement uses them all or not.
    let arguments = [
        loader_id.into(),
        started_from.into(),
        latest.map_or_else(DatumWithOid::null::<TimestampWithTimeZone>, timestamptz),
        cursor.map(|cursor| cursor.id).into(),
        // One row more than the page holds shows whether another page follows.
        (i64::from(page_size) + 1).into(),
    ];
    let mut rows = Spi::connect(|client| {
        let _planned_so = GucScope::set(&PLANNER_SETTINGS);
        let found = PLANS.with(|plans| {
            let sql = || CString::new(conditions.sql()).unwrap_or_default().into();
            plans[conditions.number()].run(client, sql, Snapshot::Active, &arguments)
        })?;
        Ok::<_, Error>((0..found.len()).map(|row| read_row(&found, row)).collect::<Vec<_>>())
    })?;

    let size = usize::try_from(page_size).unwrap_or_default();
    let more = rows.len() > size;
    rows.truncate(size);
    let next_cursor = rows.last().filter(|_| more).map(|(position, _)| position.to_string());
    let page = Page { executions: rows.into_iter().map(|(_, row)| row).collect(), next_cursor };
    let json = serde_json::to_string(&page).map_err(Error::from)?;
    Ok(jsonb(CString::new(json).unwrap_or_default()))
}

/// The jsonb that is written as `json`. (pgrx's own type for it would make a tree of values first.)
fn jsonb(json: CString) -> Option<AnyElement> {
    // SAFETY: jsonb_in() takes a C string and returns a jsonb, in the current memory context.
    unsafe {
        let datum = direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(json.as_ptr().into())])?;
        AnyElement::from_polymorphic_datum(datum, false, pg_sys::JSONBOID)
    }
}

/// A row of a page's statement, and its position in the history.
fn read_row(rows: &Rows<'_>, row: u64) -> (Cursor, Execution) {
    let time = |column| rows.time(row, column);
    let id = rows.get(row, 1).unwrap_or_default();
    let start = time(3).unwrap_or_default();
    let mut error_message = rows.get::<String>(row, 7);
    let cut = error_message
        .as_deref()
        .and_then(|message| message.char_indices().nth(MAX_ERROR_CHARACTERS))
        .map(|(end, _)| end);
    if let (Some(message), Some(end)) = (&mut error_message, cut) {
        message.truncate(end);
    }
    let execution = Execution {
        id,
        loader_id: rows.get(row, 2).unwrap_or_default(),
        duration_ms: time(4).and_then(|end| milliseconds(start, end)),
        execution_start: from_postgres(start),
        execution_end: time(4).map(from_postgres),
        status: rows.get(row, 5).unwrap_or_default(),
        record_count: rows.get(row, 6),
        error_message,
        error_truncated: cut.is_some(),
        duration_seconds: rows.get(row, 8),
    };
    (Cursor { start, id }, execution)
}
