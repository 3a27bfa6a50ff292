//! Ids that were given elsewhere and lost.
//!
//! A standby that is promoted, or a backup that is restored to a point in time, goes on where its log ended. The
//! sequence would give ids again that the other server had given since, and a load that was cut off by a
//! failover, and then reports by the id it had, would end another's execution.

use std::cell::Cell;

use pgrx::{Spi, pg_sys, spi};

use crate::error::Error;
use crate::lookup::{OpenRelation, relation};

/// How many ids are skipped: more than a server gives in the minutes that a standby may be behind.
const SKIPPED: i64 = 1_000_000;

thread_local! {
    /// Whether this process has seen to it. The timeline of a server that records does not change.
    static DONE: Cell<bool> = const { Cell::new(false) };
}

/// Skips the ids that may have been given on the timeline that this server's branched off from, unless that
/// was done. To be called before an id is taken, in a transaction that may write.
///
/// # Errors
/// What SPI says of the call; errors of PostgreSQL pass as they are.
pub fn skip_lost_ids() -> Result<(), Error> {
    if DONE.get() {
        return Ok(());
    }
    if let Some(oid) = relation(c"execution_history_id_seq") {
        let sequence = OpenRelation::table(oid, pg_sys::AccessShareLock);
        let branched_off = branched_off();
        if last_logged(&sequence) <= branched_off {
            let mode = pg_sys::ExclusiveLock.cast_signed();
            // SAFETY: in a transaction, which gives the lock back where an error leaves it. Nobody waits for it
            // longer than for the statement, whose effect others see at once.
            unsafe { pg_sys::LockDatabaseObject(pg_sys::RelationRelationId, oid, 0, mode) };
            if last_logged(&sequence) <= branched_off {
                skip()?;
            }
            // SAFETY: taken above.
            unsafe { pg_sys::UnlockDatabaseObject(pg_sys::RelationRelationId, oid, 0, mode) };
        }
    }
    DONE.set(true);
    Ok(())
}

/// Skips ids, where the sequence can still count that far.
fn skip() -> Result<(), spi::Error> {
    let (last, increment, max) = Spi::get_three::<i64, i64, i64>(
        "SELECT s.last_value, p.seqincrement, p.seqmax
           FROM loader.execution_history_id_seq AS s, pg_catalog.pg_sequence AS p
          WHERE p.seqrelid OPERATOR(pg_catalog.=)
                'loader.execution_history_id_seq'::pg_catalog.regclass",
    )?;
    // Others may take ids meanwhile, though not as many.
    let next = last.and_then(|last| last.checked_add(SKIPPED)).filter(|&next| {
        increment.is_some_and(|increment| increment > 0) && max.is_some_and(|max| next <= max)
    });
    let Some(next) = next else { return Ok(()) };
    Spi::run_with_args(
        "SELECT pg_catalog.setval('loader.execution_history_id_seq', $1)",
        &[next.into()],
    )
}

/// Where in the log the server's timeline branched off from another; 0 where it is the cluster's first.
fn branched_off() -> pg_sys::XLogRecPtr {
    // SAFETY: in a transaction of a server that is not in recovery. PostgreSQL's list begins with the timeline
    // that it was asked for, also where the file that tells of it is gone.
    unsafe {
        let timelines = pg_sys::readTimeLineHistory(pg_sys::GetWALInsertionTimeLine());
        let own = pg_sys::list_nth(timelines, 0).cast::<pg_sys::TimeLineHistoryEntry>();
        let begin = (*own).begin;
        pg_sys::list_free_deep(timelines);
        begin
    }
}

/// Where in the log the last change of a sequence is that was logged, as the first after a promotion is.
fn last_logged(sequence: &OpenRelation) -> pg_sys::XLogRecPtr {
    // SAFETY: the relation is open, and a sequence has one page; the buffer is pinned while it is asked.
    unsafe {
        let buffer = pg_sys::ReadBuffer(sequence.as_ptr(), 0);
        let position = pg_sys::BufferGetLSNAtomic(buffer);
        pg_sys::ReleaseBuffer(buffer);
        position
    }
}
