//! Which executions are asked for.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Where an execution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It has not ended.
    Running,
    /// It ended well.
    Success,
    /// It ended otherwise.
    Failed,
}

impl Status {
    /// Every status, in the order in which they are offered.
    pub const ALL: [Self; 3] = [Self::Failed, Self::Running, Self::Success];

    /// As the extension writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Success => "SUCCESS",
            Self::Failed => "FAILED",
        }
    }
}

/// Which executions of a history are asked for; by default, all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutionFilter {
    /// Only those that stand so.
    pub status: Option<Status>,
    /// Only those that started then or later.
    pub started_from: Option<DateTime<Utc>>,
    /// Only those that started earlier.
    pub started_before: Option<DateTime<Utc>>,
}

impl ExecutionFilter {
    /// Whether it leaves any out.
    pub const fn is_set(&self) -> bool {
        self.status.is_some() || self.started_from.is_some() || self.started_before.is_some()
    }
}
