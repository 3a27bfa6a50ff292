//! Skips ids that were assigned on a timeline that this server has left. A standby that is
//! promoted, and a backup that is restored to a point in time, continue at the end of their WAL. If
//! a lost id were assigned again, a loader that reports by it would end another execution.

use pgrx::pg_sys;

use super::tables::{self, EXECUTION_HISTORY_ID_SEQ, LAST_TIMELINE};
use crate::model::error::Error;
use crate::pg::spi::{SavedPlan, execute, query};

/// How many ids are skipped, times the timeline: each timeline has a range of its own, larger than
/// the number of ids that a server assigns while a standby may be behind.
const SKIPPED: i64 = 1_000_000;

thread_local! {
    static SELECT_LAST: SavedPlan = const { SavedPlan::new(
        c"SELECT last_value FROM loader_history.last_timeline",
    ) };
    static SET_LAST: SavedPlan = const { SavedPlan::new(
        c"SELECT setval('loader_history.last_timeline', $1)",
    ) };
    // Nothing is skipped if the sequence's limits do not allow it.
    static SKIP: SavedPlan = const { SavedPlan::new(
        c"SELECT setval(s.seqrelid::regclass, next.id::bigint) \
          FROM pg_sequence AS s, \
               LATERAL (SELECT last_value + s.seqincrement::numeric * $1 AS id \
                        FROM loader.execution_history_id_seq) AS next \
          WHERE s.seqrelid = 'loader.execution_history_id_seq'::regclass \
            AND next.id BETWEEN s.seqmin AND s.seqmax",
    ) };
}

/// Skips the ids that may have been assigned on the timeline that this server's branched off from.
/// Called by the worker before it takes an id, in a transaction.
pub fn skip_lost_ids() -> Result<(), Error> {
    tables::try_lock_all(&[LAST_TIMELINE, EXECUTION_HISTORY_ID_SEQ], pg_sys::RowExclusiveLock)?;
    // SAFETY: the server is not in recovery, or no worker would run.
    let timeline = i64::from(unsafe { pg_sys::GetWALInsertionTimeLine() });
    let last = query(&SELECT_LAST, &[], |rows| rows.get::<i64>(0, 1))?.unwrap_or_default();
    if last == timeline {
        return Ok(());
    }
    // It is 0 in a new extension; pg_upgrade starts from the first timeline again.
    if last != 0 && timeline > last {
        execute(&SKIP, &[(timeline * SKIPPED).into()])?;
    }
    execute(&SET_LAST, &[timeline.into()])?;
    Ok(())
}
