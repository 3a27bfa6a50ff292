//! Ids that were given and lost, which the sequence would give again.
//!
//! A load that was cut off and reports by the id it had would end another's execution.

use std::cell::Cell;
use std::{fs, io};

use pgrx::{Spi, pg_sys, spi};

use crate::error::Error;
use crate::lookup::{OpenRelation, relation};

/// How many ids are skipped, times the timeline's number: each timeline has a part of its own, larger than
/// what a server gives in the minutes that a standby may be behind.
const SKIPPED: i64 = 1_000_000;

thread_local! {
    /// Whether this process has seen to what the timeline lost. That of a server that records stays.
    static DONE: Cell<bool> = const { Cell::new(false) };
}

/// Skips the ids that may have been given on the timeline that this server's branched off from, unless that
/// was done: a standby that is promoted, and a backup that is restored to a point in time, go on where
/// their log ended. To be called before an id is taken, in a transaction that may write.
///
/// # Errors
/// [`Error::TimelineHistory`], and nothing is skipped yet; what SPI says of the call. Errors of PostgreSQL pass
/// as they are.
pub fn skip_lost_ids() -> Result<(), Error> {
    if DONE.get() {
        return Ok(());
    }
    // SAFETY: the server is not in recovery, or the transaction could not write.
    let timeline = unsafe { pg_sys::GetWALInsertionTimeLine() };
    if let Some(branched_off) = branched_off(timeline)?
        && let Some(sequence) = Sequence::open()
    {
        // What is not logged has no place in the log.
        let is_older = |sequence: &Sequence| (1..=branched_off).contains(&sequence.last_logged());
        if is_older(&sequence) {
            let _one_at_a_time = Lock::take(sequence.oid);
            if is_older(&sequence) {
                skip(i64::from(timeline) * SKIPPED)?;
            }
        }
    }
    DONE.set(true);
    Ok(())
}

/// Has the ids that were given up to now survive a crash of the server, though no transaction that took
/// one has committed. That is a wait for the disk for every 32 of them: a sequence logs so many at once.
pub fn keep_given_ids() {
    if let Some(sequence) = Sequence::open() {
        // SAFETY: what is waited for has been inserted into the log, by whoever wrote the page.
        unsafe { pg_sys::XLogFlush(sequence.last_logged()) };
    }
}

/// Where in the log the timeline branched off from its parent; `None` for the first, and where nothing tells.
///
/// The file is that of PostgreSQL's timeline.c: a line for each ancestor, the parent's last. Its own
/// `readTimeLineHistory()` ends the session where the file can't be read.
fn branched_off(timeline: pg_sys::TimeLineID) -> Result<Option<pg_sys::XLogRecPtr>, Error> {
    let file = format!("pg_wal/{timeline:08X}.history");
    match fs::read(&file) {
        // The name of a restore point is in the encoding of the database that it was made in.
        Ok(history) => Ok(last_switch(&String::from_utf8_lossy(&history))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::TimelineHistory(file, error)),
    }
}

/// The last of the positions in the text of such a file.
fn last_switch(history: &str) -> Option<pg_sys::XLogRecPtr> {
    let half = |digits| u32::from_str_radix(digits, 16).ok().map(u64::from);
    // The reason at a line's end may go on in the next: the name of a restore point may hold anything.
    history.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace();
        words.next()?.parse::<pg_sys::TimeLineID>().ok()?;
        let (high, low) = words.next()?.split_once('/')?;
        Some(half(high)? << 32 | half(low)?)
    })
}

/// Skips so many ids, where the sequence can still count that far.
fn skip(ids: i64) -> Result<(), spi::Error> {
    let (last, increment, end) = Spi::get_three::<i64, i64, i64>(
        "SELECT s.last_value, p.seqincrement,
                CASE WHEN p.seqincrement OPERATOR(pg_catalog.>) 0 THEN p.seqmax ELSE p.seqmin END
           FROM loader.execution_history_id_seq AS s, pg_catalog.pg_sequence AS p
          WHERE p.seqrelid OPERATOR(pg_catalog.=)
                'loader.execution_history_id_seq'::pg_catalog.regclass",
    )?;
    // Others may take ids meanwhile, though not as many.
    let next = || {
        let (last, increment, end) = (last?, increment?, end?);
        let next = increment.checked_mul(ids)?.checked_add(last)?;
        (if increment > 0 { next <= end } else { next >= end }).then_some(next)
    };
    next().map_or(Ok(()), |next| {
        Spi::run_with_args(
            "SELECT pg_catalog.setval('loader.execution_history_id_seq', $1)",
            &[next.into()],
        )
    })
}

/// The sequence of the history's ids.
struct Sequence {
    oid: pg_sys::Oid,
    relation: OpenRelation,
}

impl Sequence {
    /// Opens it, under the lock that taking an id takes.
    fn open() -> Option<Self> {
        let oid = relation(c"execution_history_id_seq")?;
        Some(Self { oid, relation: OpenRelation::table(oid, pg_sys::RowExclusiveLock) })
    }

    /// Where in the log its last change that was logged is: the first id taken after a recovery is one. 0
    /// where it is not logged.
    fn last_logged(&self) -> pg_sys::XLogRecPtr {
        // SAFETY: the relation is open, under a lock that keeps its file from being replaced; a sequence has
        // one page, and the buffer is pinned and locked while it is asked.
        unsafe {
            let buffer = pg_sys::ReadBuffer(self.relation.as_ptr(), 0);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE.cast_signed());
            let position = pg_sys::BufferGetLSNAtomic(buffer);
            pg_sys::UnlockReleaseBuffer(buffer);
            position
        }
    }
}

/// A lock that keeps others from skipping at the same time.
struct Lock(pg_sys::Oid);

impl Lock {
    const MODE: pg_sys::LOCKMODE = pg_sys::ExclusiveLock.cast_signed();

    /// Waits for it. Nobody has it longer than for a statement, whose effect others see at once.
    fn take(oid: pg_sys::Oid) -> Self {
        // SAFETY: in a transaction.
        unsafe { pg_sys::LockDatabaseObject(pg_sys::RelationRelationId, oid, 0, Self::MODE) };
        Self(oid)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While an error unwinds, PostgreSQL gives it back itself.
        if !std::thread::panicking() {
            // SAFETY: taken by take(), in this transaction.
            unsafe {
                pg_sys::UnlockDatabaseObject(pg_sys::RelationRelationId, self.0, 0, Self::MODE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::last_switch;

    #[test]
    fn the_last_line_that_names_a_timeline_says_where_it_ended() {
        for (history, position) in [
            ("", None),
            ("# nothing\n\n", None),
            ("1\t0/3000158\tno recovery target specified\n", Some(0x300_0158)),
            ("1\t0/1\tx\n\n2\tAB/FFFFFFFF\tbefore 2026-11-24\n\n# later\n", Some(0xAB_FFFF_FFFF)),
            ("1\t2/20\tat restore point \"before\nthe load\"\n", Some(0x2_0000_0020)),
            ("1\t0/1G\tx\n", None),
        ] {
            assert_eq!(last_switch(history), position, "{history}");
        }
    }
}
