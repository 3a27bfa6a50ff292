//! Every statement that the console runs. They select from the extension's views and call its reading functions,
//! which define what is failed, running or newest.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::{Execute, FromRow, PgPool, Postgres};

use crate::filter::ExecutionFilter;
use crate::timestamp::Timestamp;

/// The database, through a pool of connections.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    /// How many connections are in the middle of a statement.
    busy: Arc<AtomicU32>,
}

/// A row of `loader.loader_summary`.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct LoaderSummary {
    pub loader_id: i64,
    pub last_execution_id: i64,
    pub last_status: String,
    pub last_execution_start: Timestamp,
    pub last_execution_end: Option<Timestamp>,
    pub last_success_at: Option<Timestamp>,
    pub last_failure_at: Option<Timestamp>,
    pub last_error_message: Option<String>,
    /// Whether the message is longer.
    #[serde(skip_serializing)]
    pub last_error_truncated: bool,
    pub is_failed: bool,
    pub consecutive_failures: i64,
    pub running_executions: i64,
}

/// The row of `loader.failed_loader_counts`.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct FailedLoaderCounts {
    pub failed_loaders: i64,
    pub failed_loaders_24h: i64,
    pub failed_loaders_previous_24h: i64,
    pub failed_executions_24h: i64,
}

/// A row of `loader.activity_feed`, as far as it is shown.
#[derive(Debug, Clone, FromRow)]
pub struct FeedEvent {
    pub event_time: Timestamp,
    pub event_type: String,
    pub severity: String,
    pub execution_id: i64,
    pub loader_id: i64,
    pub message: String,
}

/// A page of `loader.get_execution_history`.
#[derive(Debug, Clone, Deserialize)]
pub struct HistoryPage {
    pub executions: Vec<Execution>,
    pub next_cursor: Option<String>,
    /// What the database's clock was ahead of this machine's.
    #[serde(skip)]
    ahead: TimeDelta,
}

impl HistoryPage {
    /// The time, by the database's clock, which its times are of.
    pub fn now(&self) -> DateTime<Utc> {
        Utc::now() + self.ahead
    }
}

/// An execution of such a page.
#[derive(Debug, Clone, Deserialize)]
pub struct Execution {
    pub id: i64,
    pub loader_id: i64,
    pub execution_start: DateTime<Utc>,
    pub execution_end: Option<DateTime<Utc>>,
    pub status: String,
    pub record_count: Option<i32>,
    pub error_message: Option<String>,
    pub error_truncated: bool,
    pub duration_seconds: Option<i32>,
}

/// An execution, as far as a chart shows it.
#[derive(Debug, FromRow)]
pub struct Point {
    /// Its start, in seconds since 1970.
    pub start: f64,
    /// How long it took, in seconds; of one that runs, so far.
    pub duration: f64,
    pub status: String,
}

/// How many executions run, and of how many loaders.
#[derive(Debug, FromRow)]
pub struct Running {
    pub executions: i64,
    pub loaders: i64,
}

/// The columns of `loader.recorder_status` that are shown.
#[derive(Debug, FromRow)]
pub struct Recorder {
    pub preloaded: bool,
    pub worker_pid: Option<i32>,
    pub unwatched_running: i64,
    pub last_error: Option<String>,
    pub last_error_at: Option<Timestamp>,
    pub foreign_key: bool,
    pub detail: Option<String>,
}

/// Where the feed goes on: the oldest event of the page before.
#[derive(Debug, Clone)]
pub struct FeedCursor {
    pub time: DateTime<Utc>,
    pub execution_id: i64,
    pub event_type: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database's own, or of the connection to it.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// All connections of the pool are taken, for longer than a request waits.
    #[error("all connections to the database are busy")]
    Busy,
    /// A page of the history is not of the form that this console knows.
    #[error("the extension's answer is not understood: {0}")]
    Form(#[from] serde_json::Error),
}

/// The longest wait for an answer: longer than the database's own limit, `config::STATEMENT_TIMEOUT`.
const ANSWER: Duration = Duration::from_secs(15);

/// Columns of [`LoaderSummary`], as bounded as the rows of a list should be.
const SUMMARY: &str = "SELECT loader_id, last_execution_id, last_status::text, last_execution_start, last_execution_end, \
     last_success_at, last_failure_at, left(last_error_message, 8192) AS last_error_message, \
     coalesce(length(last_error_message) > 8192, false) AS last_error_truncated, is_failed, consecutive_failures, \
     running_executions FROM loader.loader_summary";

impl Database {
    /// The database behind `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, busy: Arc::default() }
    }

    /// How many loaders fail, and the trend.
    pub async fn failed_loader_counts(&self) -> Result<FailedLoaderCounts, Error> {
        let query = "SELECT failed_loaders, failed_loaders_24h, failed_loaders_previous_24h, failed_executions_24h \
                     FROM loader.failed_loader_counts";
        self.row(sqlx::query_as(query)).await?.ok_or(Error::Database(sqlx::Error::RowNotFound))
    }

    /// The newest `limit` events, of those later than `since`, not later than `until` and older than `before`
    /// where these are given.
    pub async fn activity_feed(
        &self,
        limit: i64,
        since: Option<DateTime<Utc>>,
        until: Option<DateTime<Utc>>,
        before: Option<FeedCursor>,
    ) -> Result<Vec<FeedEvent>, Error> {
        // A statement for each: a condition that may be none could not use the indexes.
        let mut conditions = Vec::new();
        let mut parameters = 1;
        let mut parameter = || {
            parameters += 1;
            parameters
        };
        if since.is_some() {
            conditions.push(format!("event_time > ${}", parameter()));
        }
        if until.is_some() {
            conditions.push(format!("event_time <= ${}", parameter()));
        }
        if before.is_some() {
            let (time, id, kind) = (parameter(), parameter(), parameter());
            // An end comes before the start of the same execution and time; it may have been put right since.
            conditions.push(format!(
                "(event_time, execution_id) <= (${time}, ${id}) AND NOT (event_time = ${time} AND execution_id = ${id} \
                 AND (event_type = ${kind} OR event_type <> 'EXECUTION_STARTED'))"
            ));
        }
        let condition = if conditions.is_empty() {
            String::new()
        } else {
            format!("WHERE {}", conditions.join(" AND "))
        };
        let query = format!(
            "SELECT event_time, event_type, severity, execution_id, loader_id, message FROM loader.activity_feed \
             {condition} ORDER BY event_time DESC, execution_id DESC, event_type = 'EXECUTION_STARTED' LIMIT $1"
        );
        let bounds = [since, until].into_iter().flatten();
        let mut asked = bounds.fold(sqlx::query_as(&query).bind(limit), QueryAs::bind);
        if let Some(FeedCursor { time, execution_id, event_type }) = before {
            asked = asked.bind(time).bind(execution_id).bind(event_type);
        }
        self.rows(asked).await
    }

    /// The newest `limit` executions of `loader` that `filter` leaves, as a chart shows them.
    pub async fn points(
        &self,
        loader: i64,
        filter: &ExecutionFilter,
        limit: i64,
    ) -> Result<Vec<Point>, Error> {
        let mut condition = String::new();
        // Written out: an index may be limited to one.
        if let Some(status) = filter.status {
            let _ = write!(condition, " AND status = '{}'", status.as_str());
        }
        let mut parameter = 2;
        for (bound, operator) in [(filter.started_from, ">="), (filter.started_before, "<")] {
            if bound.is_some() {
                parameter += 1;
                let _ = write!(condition, " AND execution_start {operator} ${parameter}");
            }
        }
        let query = format!(
            "SELECT extract(epoch FROM execution_start)::float8 AS start, extract(epoch FROM duration)::float8 AS duration, \
             status::text FROM loader.execution_details WHERE loader_id = $1{condition} \
             ORDER BY execution_start DESC, id DESC LIMIT $2"
        );
        let bounds = [filter.started_from, filter.started_before].into_iter().flatten();
        self.rows(bounds.fold(sqlx::query_as(&query).bind(loader).bind(limit), QueryAs::bind)).await
    }

    /// What runs.
    pub async fn running(&self) -> Result<Running, Error> {
        let query = "SELECT count(*) AS executions, count(DISTINCT loader_id) AS loaders \
                     FROM loader.execution_details WHERE is_running AND status = 'RUNNING'";
        self.row(sqlx::query_as(query)).await?.ok_or(Error::Database(sqlx::Error::RowNotFound))
    }

    /// How many loaders have history.
    pub async fn count_loaders(&self) -> Result<i64, Error> {
        let counted: Option<(i64,)> =
            self.row(sqlx::query_as("SELECT count(*) FROM loader.loader_summary")).await?;
        Ok(counted.ok_or(sqlx::Error::RowNotFound)?.0)
    }

    /// The state of the recorder.
    pub async fn recorder(&self) -> Result<Recorder, Error> {
        let query = "SELECT preloaded, worker_pid, unwatched_running, last_error, last_error_at, foreign_key, detail \
                     FROM loader.recorder_status()";
        self.row(sqlx::query_as(query)).await?.ok_or(Error::Database(sqlx::Error::RowNotFound))
    }

    /// Notifies `token` on `channel`, as any role may; returns whether the extension's own events are on.
    pub async fn notify(&self, channel: &str, token: &str) -> Result<bool, Error> {
        // As text: sqlx has no type for void.
        let query =
            "SELECT pg_notify($1, $2)::text, current_setting('loader_history.notify', true)";
        let row: Option<(String, Option<String>)> =
            self.row(sqlx::query_as(query).bind(channel).bind(token)).await?;
        let (_, notify) = row.ok_or(sqlx::Error::RowNotFound)?;
        Ok(notify.as_deref() != Some("off"))
    }

    /// At most `limit` loaders with an id above `after`, by id; only those that fail, or that do not.
    pub async fn loaders(
        &self,
        after: i64,
        is_failed: Option<bool>,
        limit: i64,
    ) -> Result<Vec<LoaderSummary>, Error> {
        let condition = match is_failed {
            Some(true) => "AND is_failed",
            Some(false) => "AND NOT is_failed",
            None => "",
        };
        let query =
            format!("{SUMMARY} WHERE loader_id > $1 {condition} ORDER BY loader_id LIMIT $2");
        self.rows(sqlx::query_as(&query).bind(after).bind(limit)).await
    }

    /// The `limit` loaders that fail and whose failure is the newest.
    pub async fn failed_loaders(&self, limit: i64) -> Result<Vec<LoaderSummary>, Error> {
        let query =
            format!("{SUMMARY} WHERE is_failed ORDER BY last_failure_at DESC, loader_id LIMIT $1");
        self.rows(sqlx::query_as(&query).bind(limit)).await
    }

    /// One loader; `None` where it has no history.
    pub async fn loader(&self, id: i64) -> Result<Option<LoaderSummary>, Error> {
        let query = format!("{SUMMARY} WHERE loader_id = $1");
        self.row(sqlx::query_as(&query).bind(id)).await
    }

    /// A page of the history, as the JSON that the extension makes, and when it was made.
    pub async fn history_json(
        &self,
        loader: Option<i64>,
        filter: &ExecutionFilter,
        page_size: i32,
        cursor: Option<&str>,
    ) -> Result<(String, Timestamp), Error> {
        let query = "SELECT loader.get_execution_history(loader_id => $1, page_size => $2, \"cursor\" => $3, \
                     status => $4, started_from => $5, started_before => $6)::text, statement_timestamp()";
        let query = sqlx::query_as(query)
            .bind(loader)
            .bind(page_size)
            .bind(cursor)
            .bind(filter.status.map(|status| status.as_str()))
            .bind(filter.started_from)
            .bind(filter.started_before);
        Ok(self.row(query).await?.ok_or(sqlx::Error::RowNotFound)?)
    }

    /// A page of the history.
    pub async fn history(
        &self,
        loader: Option<i64>,
        filter: &ExecutionFilter,
        page_size: i32,
        cursor: Option<&str>,
    ) -> Result<HistoryPage, Error> {
        let (json, made) = self.history_json(loader, filter, page_size, cursor).await?;
        let page = serde_json::from_str(&json)?;
        Ok(HistoryPage { ahead: made.0 - Utc::now(), ..page })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), Error> {
        let query = "SELECT preloaded FROM loader.recorder_status()";
        let _: Option<(bool,)> = self.row(sqlx::query_as(query)).await?;
        Ok(())
    }

    async fn row<T: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static>(
        &self,
        query: QueryAs<'_, Postgres, T, PgArguments>,
    ) -> Result<Option<T>, Error> {
        Ok(self.rows(query).await?.pop())
    }

    async fn rows<T: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static>(
        &self,
        mut query: QueryAs<'_, Postgres, T, PgArguments>,
    ) -> Result<Vec<T>, Error> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?.unwrap_or_default();
        let sql = query.sql().to_owned();
        let mut connection = match self.pool.acquire().await {
            // It is the same where the database refuses connections.
            Err(sqlx::Error::PoolTimedOut)
                if self.busy.load(Ordering::Relaxed)
                    >= self.pool.options().get_max_connections() =>
            {
                return Err(Error::Busy);
            }
            connection => connection?,
        };
        let busy = self.busy.clone();
        // To its end, though its client may leave: the pool would ask the connection whether it still works, and
        // wait for as long as the statement or the network takes.
        let asking = tokio::spawn(async move {
            busy.fetch_add(1, Ordering::Relaxed);
            let rows = sqlx::query_as_with(&sql, arguments).fetch_all(&mut *connection);
            let rows = tokio::time::timeout(ANSWER, rows).await;
            busy.fetch_sub(1, Ordering::Relaxed);
            let Ok(rows) = rows else {
                // The network is cut: it would keep its place in the pool for long.
                drop(connection.detach());
                return Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
            };
            rows
        });
        let ended = asking.await;
        Ok(ended.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()))?)
    }
}
