//! Errors as RFC 9457 problem details.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sqlx::postgres::PgDatabaseError;

use crate::database;

/// Why a request has no answer.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem that its status says all about but `detail`.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { kind: "about:blank", title, status, detail: Some(detail.into()) }
    }

    /// The HTTP status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The problem in two or three words.
    pub const fn title(&self) -> &'static str {
        self.title
    }

    /// The problem in a sentence or two.
    pub fn detail(&self) -> &str {
        self.detail.as_deref().unwrap_or_default()
    }

    /// A part of the request that is not understood.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Nothing is there.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }
}

/// Between two warnings of what requests meet: in an outage each of them does.
const PAUSE: Duration = Duration::from_secs(10);

/// Warns, unless it did so a moment ago.
fn warn(what: &str) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_none_or(|last| last.elapsed() >= PAUSE) {
        *last = Some(Instant::now());
        tracing::warn!("{what}");
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl From<Arc<database::Error>> for Problem {
    fn from(error: Arc<database::Error>) -> Self {
        Self::from(&*error)
    }
}

impl From<database::Error> for Problem {
    fn from(error: database::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&database::Error> for Problem {
    fn from(error: &database::Error) -> Self {
        use sqlx::Error::{ColumnDecode, ColumnNotFound, Decode, TypeNotFound};
        let error = match error {
            database::Error::Database(
                ColumnDecode { .. } | ColumnNotFound(_) | Decode(_) | TypeNotFound { .. },
            )
            | database::Error::Form(_) => {
                tracing::error!("{error}");
                return Self::new(
                    StatusCode::BAD_GATEWAY,
                    "The database's answer is not understood: the extension and the console may be of different versions.",
                );
            }
            database::Error::Busy => {
                return Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "All of the console's connections to the database are busy. Try again soon.",
                );
            }
            database::Error::Database(error) => error,
        };
        let Some(of_database) = error.as_database_error() else {
            warn(&format!("the database does not answer: {error}"));
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The database does not answer. Try again soon.",
            );
        };
        let code = of_database.code().unwrap_or_default();
        match &*code {
            // Bad input is the client's: malformed cursors, times out of range.
            code if code.starts_with("22") => {
                let message = of_database.message();
                let hint = of_database
                    .try_downcast_ref::<PgDatabaseError>()
                    .and_then(PgDatabaseError::hint);
                Self::bad_request(
                    hint.map_or_else(|| message.to_owned(), |hint| format!("{message}: {hint}")),
                )
            }
            "57014" => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "The database took too long to answer.")
            }
            // It stops or starts.
            "57P01" | "57P02" | "57P03" => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The database does not answer. Try again soon.",
            ),
            code if code.starts_with("28") => {
                warn(&format!("the database: {code} {}", of_database.message()));
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "The database does not let the console's login in: see PGUSER, PGPASSWORD and pg_hba.conf.",
                )
            }
            "3D000" => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "There is no database of the name that the console was given: see PGDATABASE.",
            ),
            "53300" => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The database takes no more connections. Try again soon.",
            ),
            "3F000" | "42P01" | "42883" => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Extension loader_history is not installed in the database.",
            ),
            "42501" => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The console's login may not read the history: run SELECT loader_history.grant_reader() for it.",
            ),
            _ => {
                warn(&format!("the database: {code} {}", of_database.message()));
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "The database does not answer as it should. Try again soon.",
                )
            }
        }
    }
}
