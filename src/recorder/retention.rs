//! The worker's own purge, under `loader_history.retention`.
//!
//! It walks through the old executions by their ends, a few at a time, and remembers where it is: what
//! was looked at and stays is not looked at again by the next batch, nor is what went and waits for
//! vacuum. Behind the last old one it waits for others to get old. From time to time it walks anew, for
//! what has stopped being a loader's newest, was locked, or came late. Nothing of this is kept: another
//! worker begins anew. Where too much went before the oldest one that vacuum has not been able to remove, it
//! searches for that one.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{CStr, c_int, c_uint};
use std::num::NonZeroI32;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::{PgSqlErrorCode, Spi};

use super::background::{Trouble, report_activity, set_local, transaction};
use super::ledger;
use crate::error::Error;
use crate::lookup::{OpenRelation, relation};
use crate::purge::{self, Place};
use crate::settings;
use crate::statement::{KeptStatement, Sight};
use crate::time::FIRST_TIMESTAMP;

/// The tables that a purge deletes from.
const TABLES: [&CStr; 2] = [c"execution_history", c"server_outcome"];

/// Executions that a batch looks at: the first one, and at most. Starts wait for its end.
const FIRST_SIZE: i64 = 25;
const MAX_SIZE: i64 = 200;

/// How long a batch is to take, at most.
const LONGEST_BATCH: Duration = Duration::from_millis(6);

/// When a batch is given up: what a DBA's own triggers do, or the check of a foreign key whose column has
/// no index, takes as long as it takes.
const PATIENCE_MS: c_int = 100;

/// How much longer than a batch the pause behind it is.
const PAUSES: u32 = 5;

/// The shortest pause, and the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long it waits at the end for executions to get old, or before it tries again what did not work.
const REST: Duration = Duration::from_secs(60);

/// The same where somebody has locked the table.
const LOCK_REST: Duration = Duration::from_secs(1);

/// How often it walks anew.
const WALK_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How often in a row a batch may run out of time before it has begun, as on a machine that stalls, before that
/// is an error.
const MAX_STALLS: u32 = 3;

const MICROS_PER_MINUTE: i64 = 60_000_000;

// PostgreSQL's utils/timeout.h, the same in versions 15 to 18, which pgrx does not bind. Neither raises an
// ERROR.
const STATEMENT_TIMEOUT: c_uint = 3;
unsafe extern "C" {
    fn enable_timeout_after(id: c_uint, delay_ms: c_int);
    fn disable_timeout(id: c_uint, keep_indicator: bool);
}

thread_local! {
    static SELECT_SETTING: KeptStatement = const { KeptStatement::new(
        c"SELECT string_agg(concat_ws(' ', s.setdatabase, s.setrole, entry), ' ' \
                            ORDER BY s.setdatabase, s.setrole) \
          FROM pg_catalog.pg_db_role_setting AS s, unnest(s.setconfig) AS entry \
          WHERE s.setdatabase IN (0, $1) AND s.setrole IN (0, 10) \
            AND starts_with(entry, 'loader_history.retention=')",
        &[BuiltinOid::OIDOID],
    ) };
}

/// How far the purge of a database has come, and when it goes on.
pub struct Retention {
    /// The setting that this goes by.
    age: Option<NonZeroI32>,
    /// What was set for the database when this process came, which is when PostgreSQL reads it.
    of_database: Option<String>,
    /// Whether that has changed.
    is_outdated: bool,
    /// Behind the last execution that was looked at.
    place: Place,
    /// Where it was before it began anew.
    resume: Place,
    /// The search for the first execution that is left, where that takes too long from the beginning.
    search: Option<Search>,
    /// Executions that the next batch looks at.
    size: i64,
    /// How often in a row it has run out of time before it had begun.
    stalls: u32,
    next: Instant,
    next_walk: Instant,
    /// The errors of this walk that were reported.
    reported: HashSet<String>,
}

/// A search for the first execution that is left, by batches that begin at different times: of those that
/// begin amid what went, and waits for vacuum, none is over in time.
struct Search {
    /// From here it takes too long; `None` while no such time is known but the beginning.
    slow: Option<i64>,
    /// From here it does not.
    quick: i64,
    /// Behind it there is nothing to purge.
    end: i64,
}

impl Search {
    const fn new(cutoff: i64) -> Self {
        Self { slow: None, quick: cutoff, end: cutoff }
    }

    /// Where the next batch is to begin; `None` where the search is over, and the purge goes on from `quick`.
    fn next(&self) -> Option<i64> {
        let age = self.end - self.quick;
        match self.slow {
            None => (self.quick > FIRST_TIMESTAMP).then(|| {
                (self.end.saturating_sub((age * 2).max(MICROS_PER_MINUTE))).max(FIRST_TIMESTAMP)
            }),
            Some(slow) => {
                let gap = self.quick - slow;
                (gap > MICROS_PER_MINUTE && gap > age / 1_000).then_some(slow + gap / 2)
            }
        }
    }

    /// Goes by how a batch from `time` went.
    const fn found(&mut self, time: i64, quick: bool) {
        if quick {
            self.quick = time;
        } else {
            self.slow = Some(time);
        }
    }
}

/// What a batch came to.
enum Batch {
    /// It looked at all up to there, or at all there were.
    Done(Option<Place>),
    /// A table that is no superuser's refers to the history.
    Refused(String),
}

impl Retention {
    /// # Errors
    /// What went wrong with reading the database's settings.
    pub fn new(database: pg_sys::Oid) -> Result<Self, Trouble> {
        let now = Instant::now();
        Ok(Self {
            age: None,
            of_database: transaction(|| setting_of(database))?,
            is_outdated: false,
            place: Place::FIRST,
            resume: Place::FIRST,
            search: None,
            size: FIRST_SIZE,
            stalls: 0,
            next: now,
            next_walk: now,
            reported: HashSet::new(),
        })
    }

    /// When there is something to do; `None` where everything is kept.
    pub fn next(&self) -> Option<Instant> {
        settings::retention()
            .filter(|_| !self.is_outdated)
            .map(|age| if self.age == Some(age) { self.next } else { Instant::now() })
    }

    /// Finds out whether the database's setting has changed.
    ///
    /// # Errors
    /// What went wrong with reading it.
    pub fn check_setting(&mut self, database: pg_sys::Oid) -> Result<(), Trouble> {
        self.is_outdated = transaction(|| setting_of(database))? != self.of_database;
        Ok(())
    }

    /// Whether the database's setting has changed, so that another worker must come, which reads it.
    pub const fn is_outdated(&self) -> bool {
        self.is_outdated
    }

    /// Purges a batch where that is due; whether it did anything.
    ///
    /// # Errors
    /// What a DBA should know of, once a walk.
    pub fn work(&mut self) -> Result<bool, Trouble> {
        let now = Instant::now();
        let age = settings::retention();
        if age != self.age {
            self.age = age;
            self.walk_anew(now);
        }
        // What is outdated may keep less than is wanted now.
        let is_due = self.next <= now && !self.is_outdated;
        let Some(age) = age.filter(|_| is_due) else { return Ok(false) };
        let cutoff = cutoff(age);
        let reached = Cell::new(None);
        report_activity(Some("purging"));
        let batch = transaction(|| self.batch(cutoff, &reached));
        // SAFETY: PostgreSQL has registered the timeout for every process that is connected to a database.
        // One that comes just now cancels nothing: outside of transactions that is forgotten.
        unsafe { disable_timeout(STATEMENT_TIMEOUT, false) };
        let took = now.elapsed();
        let end = now + took;
        let trouble = match batch {
            Ok(Batch::Done(last)) => {
                self.size = next_size(self.size, took);
                self.stalls = 0;
                if self.search.is_some() {
                    self.search_on(true, end + pause(took));
                } else {
                    self.go_on(last, cutoff, end, took);
                }
                return Ok(true);
            }
            Ok(Batch::Refused(table)) => {
                self.next = end + REST;
                Trouble {
                    sqlstate: PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                    message: format!(
                        "nothing is purged: table {table}, whose foreign key refers to loader.execution_history, does not belong to a superuser"
                    ),
                }
            }
            Err(trouble) => match reached.get() {
                // Something in the batch is bad: what, shows when it is alone. Then it stays.
                Some(last) => {
                    let was_alone = self.size == 1;
                    self.size = (self.size / 4).max(1);
                    if !was_alone {
                        self.next = end + pause(took);
                        return Ok(true);
                    }
                    self.go_on(last, cutoff, end, took);
                    Trouble {
                        sqlstate: trouble.sqlstate,
                        message: format!("an execution is not purged: {trouble}"),
                    }
                }
                None if trouble.is_lock() => {
                    self.next = end + LOCK_REST;
                    return Ok(true);
                }
                // Before the oldest there may be much that went, and that an old snapshot keeps in the index.
                None if self.place == Place::FIRST && self.resume != Place::FIRST => {
                    self.place = self.resume;
                    self.next = end + pause(took);
                    return Ok(true);
                }
                None if trouble.sqlstate == PgSqlErrorCode::ERRCODE_QUERY_CANCELED
                    && (self.place == Place::FIRST || self.search.is_some()) =>
                {
                    self.search.get_or_insert_with(|| Search::new(cutoff));
                    self.search_on(false, end + pause(took));
                    return Ok(true);
                }
                None if trouble.sqlstate == PgSqlErrorCode::ERRCODE_QUERY_CANCELED
                    && self.stalls < MAX_STALLS =>
                {
                    self.stalls += 1;
                    self.next = end + pause(took);
                    return Ok(true);
                }
                None => {
                    self.next = end + REST;
                    trouble
                }
            },
        };
        if trouble.is_lock() || !self.reported.insert(trouble.message.clone()) {
            return Ok(true);
        }
        Err(trouble)
    }

    /// Purges a batch, in a transaction, and says in `reached` how far it is to reach.
    fn batch(&self, cutoff: i64, reached: &Cell<Option<Option<Place>>>) -> Result<Batch, Error> {
        // Where a crash undoes it, it is done again.
        set_local(c"synchronous_commit", c"off");
        ledger::lock(&TABLES)?;
        // The indexes that the statements go along came with the same version.
        if relation(c"prepared_event").is_none() {
            return Ok(Batch::Done(None));
        }
        let open = |name| Some(OpenRelation::table(relation(name)?, pg_sys::NoLock));
        let Some(tables) = TABLES.into_iter().map(open).collect::<Option<Vec<_>>>() else {
            return Ok(Batch::Done(None));
        };
        if let Some(table) = tables.iter().find_map(OpenRelation::foreign_referrer) {
            return Ok(Batch::Refused(table));
        }
        // SAFETY: as where it is disabled.
        unsafe { enable_timeout_after(STATEMENT_TIMEOUT, PATIENCE_MS) };
        let last = purge::reach(cutoff, self.place, self.size)?;
        reached.set(Some(last));
        // Foreign keys of other tables that refer to the history are triggers too. Where there are none,
        // the role stays as it is: a change makes every kept plan one to be planned again.
        if tables.iter().any(OpenRelation::fires_on_delete) {
            ledger::fire_triggers();
        }
        purge::delete(cutoff, self.place, last, self.size)?;
        Ok(Batch::Done(last))
    }

    /// Goes on behind `last` or, where that is the end, with what gets old.
    fn go_on(&mut self, last: Option<Place>, cutoff: i64, now: Instant, took: Duration) {
        match last {
            Some(last) => {
                self.place = last;
                self.next = now + pause(took);
            }
            None if self.next_walk <= now => {
                self.walk_anew(now);
                self.next = now + REST;
            }
            None => {
                self.place = self.place.max(Place::before(cutoff));
                self.next = now + REST;
            }
        }
    }

    /// Goes on with the search, after a batch that was over in time or was not.
    fn search_on(&mut self, quick: bool, next: Instant) {
        let Some(search) = &mut self.search else { return };
        if self.place != Place::FIRST {
            search.found(self.place.end(), quick);
        }
        let time = search.next();
        self.place = Place::before(time.unwrap_or(search.quick));
        if time.is_none() {
            self.search = None;
        }
        self.next = next;
    }

    fn walk_anew(&mut self, now: Instant) {
        self.search = None;
        self.resume = self.place;
        self.place = Place::FIRST;
        self.next = now;
        self.next_walk = now + WALK_INTERVAL;
        self.reported.clear();
    }
}

/// What is set for the database and for the worker's role, the first superuser.
fn setting_of(database: pg_sys::Oid) -> Result<Option<String>, Error> {
    Spi::connect(|client| {
        let rows =
            SELECT_SETTING.with(|select| select.run(client, Sight::Usual, &[database.into()]))?;
        Ok(rows.get(0, 1))
    })
}

/// What ended before that goes.
fn cutoff(age: NonZeroI32) -> i64 {
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    now.saturating_sub(i64::from(age.get()) * MICROS_PER_MINUTE).max(FIRST_TIMESTAMP)
}

/// How long to leave the worker to others after a batch that `took` so long.
fn pause(took: Duration) -> Duration {
    (took * PAUSES).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// How many executions to look at after `size` of them `took` so long. One batch that was slow, on a busy
/// machine, says little: sizes fall more slowly than they grow.
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
    fn a_batch_takes_as_long_as_it_is_to() {
        let settled = |micros_a_row: u64| {
            (0..30).fold(FIRST_SIZE, |size, _| {
                next_size(size, Duration::from_micros(micros_a_row * size.unsigned_abs()))
            })
        };
        assert_eq!(settled(1), MAX_SIZE);
        assert_eq!(settled(20), MAX_SIZE);
        assert!((40..=60).contains(&settled(100)), "{}", settled(100));
        // Where a row alone takes too long, it goes all the same.
        assert_eq!(settled(50_000), 1);
    }

    #[test]
    fn the_worker_belongs_to_others_most_of_the_time() {
        assert_eq!(pause(Duration::from_millis(4)), Duration::from_millis(20));
        assert_eq!(pause(Duration::ZERO), SHORTEST_PAUSE);
        assert_eq!(pause(Duration::from_secs(100)), LONGEST_PAUSE);
    }

    #[test]
    fn a_search_finds_the_first_execution_that_is_left() {
        const DAY: i64 = 24 * 60 * MICROS_PER_MINUTE;
        let cutoff = 9_000 * DAY;
        for first in [0, 5_000 * DAY, 8_999 * DAY, cutoff - 90 * MICROS_PER_MINUTE, cutoff] {
            let mut search = Search::new(cutoff);
            let mut batches = 0;
            while let Some(time) = search.next() {
                search.found(time, time >= first);
                batches += 1;
            }
            assert!(search.quick >= first);
            let missed = search.quick - first;
            assert!(missed <= ((cutoff - first) / 500).max(MICROS_PER_MINUTE), "{missed}");
            assert!(batches < 50, "{batches}");
        }
        // Nothing went, or what did is quick by now.
        let mut search = Search::new(cutoff);
        while let Some(time) = search.next() {
            search.found(time, true);
        }
        assert_eq!(search.quick, FIRST_TIMESTAMP);
    }

    #[test]
    fn places_are_in_the_order_of_the_ends() {
        assert!(Place::FIRST < Place::before(FIRST_TIMESTAMP));
        assert!(Place::before(7) < Place::before(8));
    }
}
