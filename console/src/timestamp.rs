//! Times of the database.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};

/// A `timestamptz`. The database's years go further than chrono's: beyond them is the last of these, as in the
/// extension's own JSON. (sqlx's own conversion panics there.)
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(transparent)]
pub struct Timestamp(pub DateTime<Utc>);

/// From the epoch of chrono to that of the database, the year 2000.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        // In binary, as results of prepared statements are: microseconds.
        let micros = <i64 as Decode<Postgres>>::decode(value)?;
        let beyond = if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
        let time = micros.checked_add(EPOCH_MICROS).and_then(DateTime::from_timestamp_micros);
        Ok(Self(time.unwrap_or(beyond)))
    }
}
