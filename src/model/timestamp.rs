//! PostgreSQL's `timestamptz` as chrono's `DateTime<Utc>` (pure).

use chrono::{DateTime, SubsecRound, Utc};

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01 (`POSTGRES_EPOCH_JDATE` in
/// PostgreSQL's `datatype/timestamp.h`).
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The first microsecond that a finite `timestamptz` can hold (`MIN_TIMESTAMP` in PostgreSQL's
/// `datatype/timestamp.h`).
pub const FIRST_TIMESTAMP: i64 = -211_813_488_000_000_000;

/// The last one (`END_TIMESTAMP - 1` there).
pub const LAST_TIMESTAMP: i64 = 9_223_371_331_200_000_000 - 1;

/// The time that `micros` microseconds since 2000-01-01 UTC stand for.
///
/// PostgreSQL's years reach 294276 and chrono's 262142: a time that chrono cannot express becomes
/// the nearest one that it can.
pub fn from_postgres(micros: i64) -> DateTime<Utc> {
    let nearest = if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    micros
        .checked_add(POSTGRES_EPOCH_MICROS)
        .and_then(DateTime::from_timestamp_micros)
        // To the microsecond, as PostgreSQL's times are.
        .unwrap_or_else(|| nearest.trunc_subsecs(6))
}

/// When an execution that started at `start` and is ended at `now` ended, all in PostgreSQL's
/// microseconds.
///
/// A clock that was set back must not end an execution before it started. One microsecond later,
/// rather than the same one, keeps the end behind the start when events are ordered by time.
pub fn end_of_execution(start: i64, now: i64) -> i64 {
    now.max(start.saturating_add(1).min(LAST_TIMESTAMP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_the_year_2000() {
        assert_eq!(from_postgres(0).to_rfc3339(), "2000-01-01T00:00:00+00:00");
        assert_eq!(from_postgres(-1).to_rfc3339(), "1999-12-31T23:59:59.999999+00:00");
    }

    #[test]
    fn times_beyond_chrono_saturate() {
        let last = DateTime::<Utc>::MAX_UTC.trunc_subsecs(6);
        assert_eq!(from_postgres(LAST_TIMESTAMP), last);
        assert_eq!(from_postgres(i64::MAX), last);
        assert_eq!(from_postgres(i64::MIN), DateTime::<Utc>::MIN_UTC);
    }

    #[test]
    fn an_execution_ends_after_its_start() {
        assert_eq!(end_of_execution(100, 250), 250);
        assert_eq!(end_of_execution(100, 100), 101);
        assert_eq!(end_of_execution(100, 50), 101);
        assert_eq!(end_of_execution(LAST_TIMESTAMP, 0), LAST_TIMESTAMP);
    }
}
