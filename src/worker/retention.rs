//! The worker's own purge, under `loader_history.retention`.
//!
//! It scans the old executions in the order of their ends, a few at a time. The position is stored
//! in `loader_history.purge_position` and updated in the purge's own transaction: the next batch
//! examines neither executions that are kept nor index entries that wait for vacuum again. Behind
//! the last old execution it waits until others are old enough. Once an hour it starts from the
//! beginning, for executions that have stopped being a loader's newest, were locked, or were
//! inserted late.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{c_int, c_uint};
use std::num::NonZeroI32;
use std::time::{Duration, Instant};

use pgrx::{PgSqlErrorCode, pg_sys};

use super::{Context, Part};
use crate::gucs;
use crate::history::outcomes;
use crate::history::purge::{self, Position};
use crate::model::error::Error;
use crate::model::timestamp::FIRST_TIMESTAMP;
use crate::pg::bgworker::{XactError, report_activity, transaction};
use crate::pg::guc_scope::set_local;
use crate::pg::relation::OpenRelation;
use crate::pg::spi::{SavedPlan, query};
use crate::pg::xact::clock_timestamp;

/// Executions that a batch examines: the first one, and at most. Starts wait for its end.
const FIRST_SIZE: i64 = 25;
const MAX_SIZE: i64 = 200;

/// How long a batch is to take, at most.
const LONGEST_BATCH: Duration = Duration::from_millis(6);

/// When a batch is canceled: a DBA's own triggers, or the check of a foreign key whose column has
/// no index, may take long.
const BATCH_TIMEOUT_MS: c_int = 100;

/// How many times longer than a batch the pause after it is.
const PAUSES: u32 = 5;

/// The shortest pause, and the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long it waits at the end for executions to become old enough, or after an error.
const REST: Duration = Duration::from_secs(60);

/// The same if another session locks the table.
const LOCK_REST: Duration = Duration::from_secs(1);

/// How often it starts from the beginning.
const PASS_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How often in a row a batch may be canceled before it has begun, as on a machine that stalls,
/// before that is reported.
const MAX_STALLS: u32 = 3;

const MICROS_PER_MINUTE: i64 = 60_000_000;
const MICROS_PER_DAY: i64 = 24 * 60 * MICROS_PER_MINUTE;

// PostgreSQL's utils/timeout.h, the same in versions 15 to 18, which pgrx does not bind. Neither
// raises an ERROR.
const STATEMENT_TIMEOUT: c_uint = 3;
unsafe extern "C" {
    fn enable_timeout_after(id: c_uint, delay_ms: c_int);
    fn disable_timeout(id: c_uint, keep_indicator: bool);
}

thread_local! {
    static SELECT_SETTING: SavedPlan = const { SavedPlan::new(
        c"SELECT string_agg(concat_ws(' ', s.setdatabase, s.setrole, entry), ' ' \
                            ORDER BY s.setdatabase, s.setrole) \
          FROM pg_catalog.pg_db_role_setting AS s, unnest(s.setconfig) AS entry \
          WHERE s.setdatabase IN (0, $1) AND s.setrole IN (0, 10) \
            AND starts_with(entry, 'loader_history.retention=')",
    ) };
}

/// The purge of a database.
pub struct Retention {
    /// The setting that it uses.
    age: Option<NonZeroI32>,
    /// What was set for the database when this process connected, which is when PostgreSQL reads
    /// it.
    database_setting: Option<String>,
    /// Whether the database's setting has changed, so that another worker must be started, which
    /// reads it.
    pub is_outdated: bool,
    /// Behind the last execution that was examined; `None` until it is read from the database.
    position: Option<Position>,
    /// The position before the purge started from the beginning.
    resume: Position,
    /// Executions that the next batch examines.
    size: i64,
    /// How often in a row a batch was canceled before it had begun.
    stalls: u32,
    next: Instant,
    next_pass: Instant,
    /// The errors of this pass that were reported.
    reported: HashSet<String>,
}

enum Batch {
    /// It examined all executions up to the position, or to the end.
    Done(Option<Position>),
    /// A table that does not belong to a superuser references the history.
    Refused(String),
}

impl Retention {
    pub fn new(database: pg_sys::Oid) -> Result<Self, XactError> {
        let now = Instant::now();
        Ok(Self {
            age: None,
            database_setting: transaction(|| setting_of(database))?,
            is_outdated: false,
            position: None,
            resume: Position::FIRST,
            size: FIRST_SIZE,
            stalls: 0,
            next: now,
            next_pass: now + PASS_INTERVAL,
            reported: HashSet::new(),
        })
    }

    /// Checks whether the database's setting has changed.
    pub fn check_setting(&mut self, database: pg_sys::Oid) -> Result<(), XactError> {
        self.is_outdated = transaction(|| setting_of(database))? != self.database_setting;
        Ok(())
    }

    /// Purges a batch if that is due; whether it did anything.
    fn purge(&mut self) -> Result<bool, XactError> {
        let now = Instant::now();
        let age = gucs::retention();
        if age != self.age {
            let had_age = self.age.is_some();
            self.age = age;
            self.next = now;
            if had_age {
                self.start_pass(now);
            }
        }
        // An outdated setting may keep less than the new one.
        let is_due = self.next <= now && !self.is_outdated;
        let Some(age) = age.filter(|_| is_due) else { return Ok(false) };
        let reached = Cell::new(None);
        report_activity(Some("purging"));
        let batch = transaction(|| self.batch(age, &reached));
        // SAFETY: PostgreSQL has registered the timeout for every process that is connected to a
        // database. If it fires just now it cancels nothing: outside of transactions the worker
        // ignores it.
        unsafe { disable_timeout(STATEMENT_TIMEOUT, false) };
        let took = now.elapsed();
        let end = now + took;
        let error = match batch {
            Ok(Batch::Done(last)) => {
                self.size = next_size(self.size, took);
                self.stalls = 0;
                self.advance(last, end, took);
                return Ok(true);
            }
            Ok(Batch::Refused(table)) => {
                self.next = end + REST;
                XactError::new(
                    PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                    format!(
                        "nothing is purged: table {table}, whose foreign key references loader.execution_history, does not belong to a superuser"
                    ),
                )
            }
            Err(error) => match self.after_error(error, reached.get(), end, took) {
                Some(error) => error,
                None => return Ok(true),
            },
        };
        if error.is_lock() || !self.reported.insert(error.message.clone()) {
            return Ok(true);
        }
        Err(error)
    }

    /// Decides when to continue after a batch that failed; the error, unless it is expected.
    fn after_error(
        &mut self,
        error: XactError,
        reached: Option<Option<Position>>,
        end: Instant,
        took: Duration,
    ) -> Option<XactError> {
        self.next = end + pause(took);
        match reached {
            // One of the executions cannot be deleted: smaller batches find out which one. That one
            // is kept.
            Some(last) if self.size == 1 => {
                self.advance(last, end, took);
                let message = format!("an execution is not purged: {error}");
                return Some(XactError::new(error.sqlstate, message));
            }
            Some(_) => self.size = (self.size / 4).max(1),
            None if error.is_lock() => self.next = end + LOCK_REST,
            // Before the oldest there may be many dead index entries that an old snapshot keeps.
            None if self.position == Some(Position::FIRST) && self.resume != Position::FIRST => {
                self.position = Some(self.resume);
            }
            None if error.sqlstate == PgSqlErrorCode::ERRCODE_QUERY_CANCELED
                && self.stalls < MAX_STALLS =>
            {
                self.stalls += 1;
            }
            None => {
                self.next = end + REST;
                return Some(error);
            }
        }
        None
    }

    /// Purges a batch, in a transaction, and sets `reached` to where it ends.
    fn batch(
        &mut self,
        age: NonZeroI32,
        reached: &Cell<Option<Option<Position>>>,
    ) -> Result<Batch, Error> {
        // If a crash undoes it, it is done again.
        set_local(c"synchronous_commit", c"off");
        let opened = purge::lock_tables()?;
        if let Some(table) = opened.iter().find_map(OpenRelation::untrusted_referencing_table) {
            return Ok(Batch::Refused(table));
        }
        // SAFETY: as for disable_timeout() in purge().
        unsafe { enable_timeout_after(STATEMENT_TIMEOUT, BATCH_TIMEOUT_MS) };
        let position = match self.position {
            Some(position) => position,
            None => *self.position.insert(purge::position()?),
        };
        let cutoff = cutoff(age, purge::newest_start()?);
        let last = purge::batch_end(cutoff, position, self.size)?;
        reached.set(Some(last));
        // Foreign keys of other tables that reference the history are triggers too. If there are
        // none, session_replication_role is not changed, which would make PostgreSQL replan every
        // saved plan.
        if opened.iter().any(OpenRelation::fires_on_delete) {
            outcomes::fire_triggers();
        }
        purge::delete(cutoff, position, last, self.size)?;
        let next = last.unwrap_or_else(|| position.max(Position::before(cutoff)));
        if next != position {
            purge::set_position(next)?;
        }
        Ok(Batch::Done(last))
    }

    /// Continues behind `last` or, at the end, waits.
    fn advance(&mut self, last: Option<Position>, now: Instant, took: Duration) {
        match last {
            Some(last) => {
                self.position = Some(last);
                self.next = now + pause(took);
            }
            None if self.next_pass <= now => {
                self.start_pass(now);
                self.next = now + REST;
            }
            None => {
                // The batch has written it.
                self.position = None;
                self.next = now + REST;
            }
        }
    }

    /// Starts from the beginning.
    fn start_pass(&mut self, now: Instant) {
        self.resume = self.position.unwrap_or(Position::FIRST);
        self.position = Some(Position::FIRST);
        self.next = now;
        self.next_pass = now + PASS_INTERVAL;
        self.reported.clear();
    }
}

impl Part for Retention {
    fn due(&self, _context: &Context) -> Option<Instant> {
        gucs::retention()
            .filter(|_| !self.is_outdated)
            .map(|age| if self.age == Some(age) { self.next } else { Instant::now() })
    }

    fn run(&mut self, context: &mut Context) -> bool {
        self.purge().unwrap_or_else(|error| {
            context.report(&error);
            true
        })
    }
}

/// What is set for the database and for the worker's role, the first superuser.
fn setting_of(database: pg_sys::Oid) -> Result<Option<String>, Error> {
    query(&SELECT_SETTING, &[database.into()], |rows| rows.get(0, 1))
}

/// Executions that ended before this time are purged. The age is measured from the clock, but
/// at most from a day after the newest start.
fn cutoff(age: NonZeroI32, newest_start: Option<i64>) -> i64 {
    let newest = newest_start.map_or(i64::MAX, |start| start.saturating_add(MICROS_PER_DAY));
    let now = clock_timestamp().min(newest);
    now.saturating_sub(i64::from(age.get()) * MICROS_PER_MINUTE).max(FIRST_TIMESTAMP)
}

/// The pause after a batch that `took` this long, in which the worker does its other work.
fn pause(took: Duration) -> Duration {
    (took * PAUSES).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// How many executions to examine after `size` of them `took` this long. Sizes fall more slowly
/// than they grow, since a single slow batch may be due to a busy machine.
fn next_size(size: i64, took: Duration) -> i64 {
    let next = if took > LONGEST_BATCH {
        size * 3 / 4
    } else if took * 3 <= LONGEST_BATCH * 2 {
        (size * 3 / 2).max(size + 1)
    } else {
        size
    };
    next.clamp(1, MAX_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_no_longer_than_it_may() {
        let settled = |micros_a_row: u64| {
            (0..30).fold(FIRST_SIZE, |size, _| {
                next_size(size, Duration::from_micros(micros_a_row * size.unsigned_abs()))
            })
        };
        assert_eq!(settled(1), MAX_SIZE);
        assert_eq!(settled(20), MAX_SIZE);
        assert!((40..=60).contains(&settled(100)), "{}", settled(100));
        // A single row that takes too long is deleted all the same.
        assert_eq!(settled(50_000), 1);
    }

    #[test]
    fn the_pause_is_longer_than_the_batch() {
        assert_eq!(pause(Duration::from_millis(4)), Duration::from_millis(20));
        assert_eq!(pause(Duration::ZERO), SHORTEST_PAUSE);
        assert_eq!(pause(Duration::from_secs(100)), LONGEST_PAUSE);
    }

    #[test]
    fn positions_are_in_the_order_of_the_ends() {
        assert!(Position::FIRST < Position::before(FIRST_TIMESTAMP));
        assert!(Position::before(7) < Position::before(8));
    }
}
