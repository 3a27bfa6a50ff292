//! The activity feed.

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Parameters, limit};
use crate::database::FeedEvent;
use crate::problem::Problem;
use crate::state::State;
use crate::timestamp::Timestamp;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u16>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
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
) -> Result<Json<Vec<Item>>, Problem> {
    let limit = limit(wanted.limit)?;
    let events = state.database.activity_feed(limit.into(), wanted.since, wanted.until).await?;
    Ok(Json(events.into_iter().map(Item::from).collect()))
}
