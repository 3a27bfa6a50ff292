//! Everything that a caller can do wrong, and what it is told.
//!
//! The SQLSTATEs are part of the public contract. Functions return [`Error`]; the one place where it
//! becomes a PostgreSQL error is the `From` at the end of this file.

use chrono::{DateTime, SecondsFormat, Utc};
use pgrx::datum::TryFromDatumError;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode, function_name, spi};

use super::execution::{MAX_ERROR_MESSAGE_BYTES, MAX_PAGE_SIZE, Status};

/// Characters of a bad argument that its error message repeats.
const SHOWN_CHARACTERS: usize = 60;

/// What a call did wrong.
#[derive(Debug)]
pub enum Error {
    /// A required argument is NULL.
    MissingArgument(&'static str),
    /// No execution has this id.
    UnknownExecution(i64),
    /// An execution can't end in this status.
    NoOutcome(String),
    /// The history can't be filtered by this status.
    UnknownStatusFilter(String),
    /// A count below zero.
    NegativeRecordCount(i64),
    /// An age below zero.
    NegativeAge,
    /// A number of rows to delete below zero.
    NegativeMaxRows(i64),
    /// A page of this size isn't served.
    PageSizeOutOfRange(i32),
    /// A cursor that no page returned.
    MalformedCursor(String),
    /// The first outcome that was reported stands.
    AlreadyEnded {
        /// The execution.
        execution_id: i64,
        /// How it ended.
        status: String,
        /// When it ended.
        end: Option<DateTime<Utc>>,
    },
    /// SUCCESS was reported while the transaction that started the execution is open elsewhere.
    StillOpen(i64),
    /// The transaction can't write.
    ReadOnlyTransaction,
    /// The server can't write.
    Standby,
    /// An error message, of this many bytes, that no row can hold.
    MessageTooLong(usize),
    /// A relation of the extension's that is no superuser's, or another in its place.
    Untrusted {
        /// Its name, with its schema.
        relation: String,
        /// Whose it is; `None` where it is not a member of the extension.
        owner: Option<String>,
    },
    /// There is no such relation of the extension's: its SQL is of an older version.
    MissingRelation(String),
    /// Somebody locks a table that the worker must not wait for.
    TableLocked,
    /// The caller of a start, which the worker was about to commit, has given it up.
    Abandoned,
    /// A trigger of the user's kept the row from being written.
    Suppressed,
    /// What a superuser is about to delete would run the triggers of this table, which is no superuser's.
    ForeignAction(String),
    /// The page could not be written as JSON.
    Json(serde_json::Error),
    /// A row was not what the table's definition says.
    Row(TryFromDatumError),
    /// SPI refused a call.
    Spi(spi::Error),
}

impl From<spi::Error> for Error {
    fn from(error: spi::Error) -> Self {
        Self::Spi(error)
    }
}

impl From<TryFromDatumError> for Error {
    fn from(error: TryFromDatumError) -> Self {
        Self::Row(error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

impl Error {
    /// Its SQLSTATE.
    pub fn sqlstate(&self) -> PgSqlErrorCode {
        match self {
            Self::MissingArgument(_) => PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Self::UnknownExecution(_) => PgSqlErrorCode::ERRCODE_NO_DATA_FOUND,
            Self::NoOutcome(_)
            | Self::UnknownStatusFilter(_)
            | Self::NegativeRecordCount(_)
            | Self::NegativeAge
            | Self::NegativeMaxRows(_)
            | Self::PageSizeOutOfRange(_)
            | Self::MalformedCursor(_) => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            Self::AlreadyEnded { .. } | Self::Untrusted { .. } | Self::MissingRelation(_) => {
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
            }
            Self::StillOpen(_) => PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            Self::TableLocked => PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            Self::Abandoned => PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK,
            Self::ReadOnlyTransaction | Self::Standby => {
                PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION
            }
            Self::MessageTooLong(_) => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Self::ForeignAction(_) => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            Self::Suppressed => PgSqlErrorCode::ERRCODE_TRIGGERED_ACTION_EXCEPTION,
            Self::Json(_) | Self::Row(_) | Self::Spi(_) => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::MissingArgument(name) => format!("{name} must not be NULL"),
            Self::UnknownExecution(id) => format!("execution {id} does not exist"),
            Self::NoOutcome(text) => {
                format!("an execution cannot end in status \"{}\"", shown(text))
            }
            Self::UnknownStatusFilter(text) => format!("unknown status \"{}\"", shown(text)),
            Self::NegativeRecordCount(count) => format!("record_count {count} is negative"),
            Self::NegativeAge => "older_than is negative".to_owned(),
            Self::NegativeMaxRows(rows) => format!("max_rows {rows} is negative"),
            Self::PageSizeOutOfRange(size) => format!("page_size {size} is out of range"),
            Self::MalformedCursor(text) => format!("malformed cursor \"{}\"", shown(text)),
            Self::AlreadyEnded { execution_id, .. } => {
                format!("execution {execution_id} has already ended")
            }
            Self::StillOpen(id) => {
                format!("the transaction that started execution {id} is still open")
            }
            Self::Untrusted { relation, owner: Some(_) } => {
                format!("{relation} does not belong to a superuser")
            }
            Self::Untrusted { relation, owner: None } => {
                format!("{relation} is not part of extension loader_history")
            }
            Self::MissingRelation(relation) => format!("{relation} does not exist"),
            Self::Abandoned => "the caller of a start has given it up".to_owned(),
            Self::TableLocked => "a table of the history is locked".to_owned(),
            Self::ReadOnlyTransaction => {
                "cannot change the history in a read-only transaction".to_owned()
            }
            Self::Standby => "cannot change the history on a standby server".to_owned(),
            Self::MessageTooLong(bytes) => {
                format!("error_message of {bytes} bytes does not fit into a row")
            }
            Self::Suppressed => {
                "a trigger on loader.execution_history suppressed the change".to_owned()
            }
            Self::ForeignAction(table) => {
                format!(
                    "table {table}, whose foreign key refers to loader.execution_history, does not belong to a superuser"
                )
            }
            Self::Json(error) => format!("could not write the page as JSON: {error}"),
            Self::Row(error) => format!("could not read a row of the history: {error}"),
            Self::Spi(error) => format!("could not run a statement: {error}"),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::AlreadyEnded { status, end, .. } => Some(end.map_or_else(
                || format!("It ended as {status}."),
                |end| {
                    let end = end.to_rfc3339_opts(SecondsFormat::Micros, true);
                    format!("It ended as {status} at {end}.")
                },
            )),
            Self::Untrusted { owner: Some(owner), .. } => Some(format!(
                "It belongs to {owner}, whose triggers would run with a superuser's rights."
            )),
            Self::MessageTooLong(_) => {
                Some(format!("The limit is {} bytes.", MAX_ERROR_MESSAGE_BYTES))
            }
            Self::ForeignAction(_) => Some(
                "Its foreign key is deferrable or changes the table, whose triggers would run with a superuser's rights."
                    .to_owned(),
            ),
            _ => None,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::MissingArgument("loader_id") => {
                "Pass the id of a row of loader.loader.".to_owned()
            }
            Self::MissingArgument("execution_id") | Self::UnknownExecution(_) => {
                "Pass the id that loader.record_execution_start() returned; where the start was \
                 rolled back, start again."
                    .to_owned()
            }
            Self::MissingArgument("page_size") => {
                "Leave the argument out for pages of 50 executions.".to_owned()
            }
            Self::MissingArgument("older_than") | Self::NegativeAge => {
                "Pass an age such as '90 days'.".to_owned()
            }
            Self::MissingArgument("max_rows") | Self::NegativeMaxRows(_) => {
                "Pass the number of rows to delete at most, or nothing for 10000.".to_owned()
            }
            Self::MissingArgument(_) | Self::NoOutcome(_) => {
                format!("Pass {}.", listed(&Status::OUTCOMES))
            }
            Self::UnknownStatusFilter(_) => {
                format!("Pass {}, or NULL for all.", listed(&Status::ALL))
            }
            Self::NegativeRecordCount(_) => {
                "Pass the number of records loaded, or NULL where it is not known.".to_owned()
            }
            Self::PageSizeOutOfRange(_) => format!(
                "Pass a number from 1 to {}; next_cursor leads to the rest.",
                MAX_PAGE_SIZE
            ),
            Self::MalformedCursor(_) => {
                "Pass next_cursor of the page before, unchanged, or NULL for the first page."
                    .to_owned()
            }
            Self::AlreadyEnded { .. } => {
                "The first outcome reported stands; record another run with \
                 loader.record_execution_start()."
                    .to_owned()
            }
            Self::StillOpen(_) => {
                "Report SUCCESS in that transaction, so that it commits with the data, or after its commit."
                    .to_owned()
            }
            Self::Untrusted { relation, owner: Some(_) } => {
                let kind = if relation.ends_with("_seq") { "SEQUENCE" } else { "TABLE" };
                format!("Give it to a superuser: ALTER {kind} {relation} OWNER TO ....")
            }
            Self::Untrusted { owner: None, .. } => {
                "Drop or rename it, and create the extension.".to_owned()
            }
            Self::MissingRelation(_) => {
                "Run ALTER EXTENSION loader_history UPDATE.".to_owned()
            }
            Self::TableLocked | Self::Abandoned => "Try again.".to_owned(),
            Self::ReadOnlyTransaction => {
                "Do it in a transaction that may write: SET TRANSACTION READ WRITE.".to_owned()
            }
            Self::Standby => "Connect to the primary server.".to_owned(),
            Self::MessageTooLong(_) => "Pass the beginning of the message.".to_owned(),
            Self::ForeignAction(_) => {
                "Purge as a role that is no superuser and may delete, with EXECUTE on this function.".to_owned()
            }
            Self::Suppressed => "Look at the BEFORE triggers of the table.".to_owned(),
            Self::Json(_) | Self::Row(_) | Self::Spi(_) => {
                "This is a defect of loader_history; please report it.".to_owned()
            }
        }
    }
}

/// `text`, cut to what a message can repeat.
fn shown(text: &str) -> String {
    text.char_indices()
        .nth(SHOWN_CHARACTERS)
        .map_or_else(|| text.to_owned(), |(end, _)| format!("{}…", &text[..end]))
}

/// "A, B or C"
fn listed(statuses: &[Status]) -> String {
    let names: Vec<_> = statuses.iter().map(|status| status.as_str()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let report =
            Self::new(error.sqlstate(), error.message(), function_name!()).set_hint(error.hint());
        match error.detail() {
            Some(detail) => report.set_detail(detail),
            None => report,
        }
    }
}
