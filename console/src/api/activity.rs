//! The activity feed.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, header};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Parameters, limit};
use crate::database::{FeedCursor, FeedEvent};
use crate::format::{address, machine_time};
use crate::problem::Problem;
use crate::state::State;
use crate::timestamp::Timestamp;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u16>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    before: Option<String>,
}

/// Where a page goes on, as text: microseconds since 1970, the execution's id, and which of its events.
fn read_cursor(text: &str) -> Option<FeedCursor> {
    let (micros, rest) = text.split_once('_')?;
    let (id, kind) = rest.split_once('_')?;
    // No others: the database would look for them in vain.
    let event_type =
        ["STARTED", "SUCCESS", "FAILED"].contains(&kind).then(|| format!("EXECUTION_{kind}"))?;
    let time = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
    Some(FeedCursor { time, execution_id: id.parse().ok()?, event_type })
}

fn write_cursor(event: &FeedEvent) -> String {
    let kind = event.event_type.trim_start_matches("EXECUTION_");
    format!("{}_{}_{kind}", event.event_time.0.timestamp_micros(), event.execution_id)
}

/// An event, with the keys that the front end reads which the feed was first made for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    timestamp: Timestamp,
    #[serde(rename = "type")]
    kind: String,
    /// The loader's id: the extension reads no other column of loaders.
    loader_code: String,
    message: String,
    status: String,
    execution_id: i64,
}

impl From<FeedEvent> for Item {
    fn from(event: FeedEvent) -> Self {
        Self {
            timestamp: event.event_time,
            kind: event.event_type,
            loader_code: event.loader_id.to_string(),
            message: event.message,
            status: event.severity,
            execution_id: event.execution_id,
        }
    }
}

pub async fn activity(
    Shared(state): Shared<State>,
    Parameters(wanted): Parameters<Wanted>,
) -> Result<(HeaderMap, Json<Vec<Item>>), Problem> {
    let limit = limit(wanted.limit)?;
    let before = match wanted.before.as_deref() {
        Some(text) => Some(read_cursor(text).ok_or_else(|| {
            Problem::bad_request("before is what the link of the page before says.")
        })?),
        None => None,
    };
    let (since, until) = (wanted.since, wanted.until);
    let events = state.database.activity_feed(limit.into(), since, until, before).await?;
    let mut headers = HeaderMap::new();
    // The body is the list that its front end reads: what follows is said beside it (RFC 8288).
    if let Some(oldest) = events.last().filter(|_| events.len() == usize::from(limit)) {
        let since = since.map_or_else(String::new, machine_time);
        let (limit, cursor) = (limit.to_string(), write_cursor(oldest));
        let parameters = [("limit", limit.as_str()), ("since", &since), ("before", &cursor)];
        let link = format!("<{}>; rel=\"next\"", address("/api/v1/activity", &parameters));
        headers.extend(link.parse().ok().map(|link| (header::LINK, link)));
    }
    Ok((headers, Json(events.into_iter().map(Item::from).collect())))
}
