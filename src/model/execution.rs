//! What an execution is: its statuses, the outcomes a loader may report, its duration (pure).

use chrono::{DateTime, Utc};

/// The numbers of the history's columns, whose order the contract fixes.
pub mod column {
    use std::num::NonZeroUsize;

    pub const ID: NonZeroUsize = NonZeroUsize::MIN;
    pub const LOADER_ID: NonZeroUsize = ID.saturating_add(1);
    pub const EXECUTION_START: NonZeroUsize = ID.saturating_add(2);
    pub const EXECUTION_END: NonZeroUsize = ID.saturating_add(3);
    pub const STATUS: NonZeroUsize = ID.saturating_add(4);
    pub const RECORD_COUNT: NonZeroUsize = ID.saturating_add(5);
    pub const ERROR_MESSAGE: NonZeroUsize = ID.saturating_add(6);
    pub const DURATION_SECONDS: NonZeroUsize = ID.saturating_add(7);
}

/// The longest error message, in bytes, that fits into a row: PostgreSQL allocates no tuple beyond
/// 1 GB (`MaxAllocSize` in its `memutils.h`), and the other columns and the server's message need
/// some of that.
pub const MAX_ERROR_MESSAGE_BYTES: usize = 0x3fff_ffff - 4096;

/// The largest page of the history, in executions.
pub const MAX_PAGE_SIZE: i32 = 1000;

/// The status of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Running,
    /// Ended, and succeeded.
    Success,
    /// Ended, and failed.
    Failed,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Running, Self::Success, Self::Failed];

    /// The statuses in which an execution can end.
    pub const OUTCOMES: [Self; 2] = [Self::Success, Self::Failed];

    /// The status as the table stores it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Success => "SUCCESS",
            Self::Failed => "FAILED",
        }
    }

    /// The one of `among` that the table would store as `text`.
    pub fn parse(text: &str, among: &[Self]) -> Option<Self> {
        among.iter().copied().find(|status| status.as_str() == text)
    }
}

/// "A, B or C"
pub fn listed(statuses: &[Status]) -> String {
    let names: Vec<_> = statuses.iter().map(|status| status.as_str()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// Whole seconds from `start` to `end`, rounded down and limited to an integer; 0 if the clock was
/// set back.
pub fn duration_seconds(start: DateTime<Utc>, end: DateTime<Utc>) -> i32 {
    i32::try_from(end.signed_duration_since(start).num_seconds().max(0)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::timestamp::from_postgres;

    #[test]
    fn every_status_reads_back() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str(), &Status::ALL), Some(status));
        }
        assert_eq!(Status::parse("RUNNING", &Status::OUTCOMES), None);
        assert_eq!(Status::parse("success", &Status::ALL), None);
        assert_eq!(Status::parse("", &Status::ALL), None);
    }

    #[test]
    fn durations_round_down_and_saturate() {
        let at = |micros| from_postgres(micros);
        assert_eq!(duration_seconds(at(0), at(2_999_999)), 2);
        assert_eq!(duration_seconds(at(0), at(3_000_000)), 3);
        assert_eq!(duration_seconds(at(5_000_000), at(0)), 0);
        assert_eq!(duration_seconds(at(-1), at(0)), 0);
        assert_eq!(duration_seconds(at(i64::MIN), at(i64::MAX)), i32::MAX);
    }
}
