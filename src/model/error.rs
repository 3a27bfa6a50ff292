//! Every error that a caller can get.
//!
//! The SQLSTATEs are part of the public contract. Functions return [`Error`]; the one place where
//! it becomes a PostgreSQL error is the `From` at the end of this file.

use chrono::{DateTime, SecondsFormat, Utc};
use pgrx::datum::TryFromDatumError;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgSqlErrorCode, function_name, spi};

use super::execution::MAX_ERROR_MESSAGE_BYTES;

/// Characters of an invalid argument that its error message repeats.
const SHOWN_CHARACTERS: usize = 60;

/// An error.
#[derive(Debug)]
pub enum Error {
    /// A required argument is NULL. The second text is the HINT.
    MissingArgument(&'static str, &'static str),
    /// An argument is out of range, or malformed.
    InvalidArgument {
        message: String,
        hint: String,
    },
    UnknownExecution(i64),
    /// The loader has already reported an outcome, which is final.
    AlreadyEnded {
        execution_id: i64,
        status: String,
        end: Option<DateTime<Utc>>,
    },
    /// SUCCESS was reported while the transaction that started the execution is open in another
    /// session.
    StillOpen(i64),
    ReadOnlyTransaction,
    Standby,
    /// An error message of this length, in bytes, which no row can hold.
    MessageTooLong(usize),
    /// A relation of the extension that does not belong to a superuser, or another one in its
    /// place.
    Untrusted {
        relation: String,
        /// Its owner; `None` if it is not a member of the extension.
        owner: Option<String>,
    },
    /// There is no such relation of the extension: its SQL is of an older version.
    MissingRelation(String),
    /// Another session locks a table that the worker must not wait for.
    TableLocked,
    /// The caller of a start that the worker was about to commit has abandoned it.
    Abandoned,
    /// A DBA's trigger kept the row from being written.
    Suppressed,
    /// A superuser's delete would run the triggers of this table, which belongs to another role.
    UntrustedCascade(String),
    /// An error of a library or of SPI that should not occur.
    Internal(String),
}

impl From<spi::Error> for Error {
    fn from(error: spi::Error) -> Self {
        Self::Internal(format!("could not run a statement: {error}"))
    }
}

impl From<TryFromDatumError> for Error {
    fn from(error: TryFromDatumError) -> Self {
        Self::Internal(format!("could not read a row of the history: {error}"))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Internal(format!("could not write JSON: {error}"))
    }
}

impl Error {
    pub const fn sqlstate(&self) -> PgSqlErrorCode {
        match self {
            Self::MissingArgument(..) => PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Self::InvalidArgument { .. } => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            Self::UnknownExecution(_) => PgSqlErrorCode::ERRCODE_NO_DATA_FOUND,
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
            Self::UntrustedCascade(_) => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            Self::Suppressed => PgSqlErrorCode::ERRCODE_TRIGGERED_ACTION_EXCEPTION,
            Self::Internal(_) => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        }
    }

    /// The message and the HINT.
    fn message_and_hint(&self) -> (String, String) {
        let fixed = |message: &str, hint: &str| (message.to_owned(), hint.to_owned());
        let hinted = |message: String, hint: &str| (message, hint.to_owned());
        match self {
            Self::MissingArgument(name, hint) => hinted(format!("{name} must not be NULL"), hint),
            Self::InvalidArgument { message, hint } => (message.clone(), hint.clone()),
            Self::UnknownExecution(id) => {
                hinted(format!("execution {id} does not exist"), EXECUTION_ID_HINT)
            }
            Self::AlreadyEnded { execution_id, .. } => hinted(
                format!("execution {execution_id} has already ended"),
                "The first outcome reported is final; record another run with loader.record_execution_start().",
            ),
            Self::StillOpen(id) => hinted(
                format!("the transaction that started execution {id} is still open"),
                "Report SUCCESS in that transaction, so that it commits with the data, or after its commit.",
            ),
            Self::Untrusted { relation, owner: Some(_) } => {
                let kind = if relation.ends_with("_seq") { "SEQUENCE" } else { "TABLE" };
                let hint = format!("Give it to a superuser: ALTER {kind} {relation} OWNER TO ....");
                (format!("{relation} does not belong to a superuser"), hint)
            }
            Self::Untrusted { relation, owner: None } => hinted(
                format!("{relation} is not part of extension loader_history"),
                "Drop or rename it, and create the extension.",
            ),
            Self::MissingRelation(relation) => hinted(
                format!("{relation} does not exist"),
                "Run ALTER EXTENSION loader_history UPDATE.",
            ),
            Self::TableLocked => fixed("a table of the history is locked", "Try again."),
            Self::Abandoned => fixed("the caller of a start has given it up", "Try again."),
            Self::ReadOnlyTransaction => fixed(
                "cannot change the history in a read-only transaction",
                "Use SET TRANSACTION READ WRITE.",
            ),
            Self::Standby => fixed(
                "cannot change the history on a standby server",
                "Connect to the primary server.",
            ),
            Self::MessageTooLong(bytes) => hinted(
                format!("error_message of {bytes} bytes does not fit into a row"),
                "Pass the beginning of the message.",
            ),
            Self::Suppressed => fixed(
                "a trigger on loader.execution_history suppressed the change",
                "Look at the BEFORE triggers of the table.",
            ),
            Self::UntrustedCascade(table) => hinted(
                format!(
                    "table {table}, whose foreign key references loader.execution_history, does not belong to a superuser"
                ),
                "Purge as a role that is no superuser and has DELETE, with EXECUTE on this function.",
            ),
            Self::Internal(message) => {
                hinted(message.clone(), "This is a defect of loader_history; please report it.")
            }
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::AlreadyEnded { status, end: Some(end), .. } => {
                let end = end.to_rfc3339_opts(SecondsFormat::Micros, true);
                Some(format!("It ended as {status} at {end}."))
            }
            Self::AlreadyEnded { status, .. } => Some(format!("It ended as {status}.")),
            Self::Untrusted { owner: Some(owner), .. } => Some(format!(
                "It belongs to {owner}, whose triggers would run with a superuser's privileges."
            )),
            Self::MessageTooLong(_) => {
                Some(format!("The limit is {MAX_ERROR_MESSAGE_BYTES} bytes."))
            }
            Self::UntrustedCascade(_) => Some(
                "Its foreign key is deferrable or changes the table, whose triggers would run with a superuser's privileges."
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// The HINT of a missing or unknown execution.
pub const EXECUTION_ID_HINT: &str = "Pass the id that loader.record_execution_start() returned; if the start was rolled back, start again.";

/// `text`, cut to the length that a message repeats.
pub fn shown(text: &str) -> String {
    text.char_indices()
        .nth(SHOWN_CHARACTERS)
        .map_or_else(|| text.to_owned(), |(end, _)| format!("{}…", &text[..end]))
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let (message, hint) = error.message_and_hint();
        let report = Self::new(error.sqlstate(), message, function_name!()).set_hint(hint);
        match error.detail() {
            Some(detail) => report.set_detail(detail),
            None => report,
        }
    }
}
