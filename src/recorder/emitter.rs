//! Emits events, many in a transaction: the worker's own, and those that transactions have handed over.
//!
//! An execution's events come in their order. A session can change an execution only when it sees the
//! commit of whoever changed it before; so an event waits while a transaction that began to commit earlier
//! has committed, and not handed over its events yet. That is a matter of microseconds. It also waits for
//! a look at the events of prepared transactions that is later than itself.
//!
//! PostgreSQL drops a NOTIFY that a transaction repeats, so an emission ends before that.

use std::collections::{HashSet, VecDeque, vec_deque};
use std::ffi::CString;
use std::iter::Peekable;
use std::slice;
use std::time::{Duration, Instant};

use pgrx::{PgSqlErrorCode, pg_sys};

use super::background::{Trouble, set_local, transaction};
use super::gathered::{free_queue_pages, split};
use super::prepared_event::{self, PreparedEvent};
use super::shared::{Batch, Database, PreparedEvents, Shared};
use crate::error::Error;
use crate::notify;

/// Events emitted in one transaction, at most.
const EMITTED_AT_ONCE: usize = 1_000;

/// The same where there are some of prepared transactions, and as many of these are read: each time their
/// whole table is.
const READ_AT_ONCE: usize = 10_000;

/// The worker's own events that wait in its memory: more are written into the database.
const MAX_IN_MEMORY: usize = 1_000;

/// The same where they can't be written: the oldest are dropped.
const MAX_WAITING: usize = 65_536;

/// The pause after an emission, in which more events gather.
const PAUSE: Duration = Duration::from_millis(5);

/// How long an emission waits for PostgreSQL's lock on NOTIFY: starts wait meanwhile. While it is in
/// vain the next one waits longer, up to the longest, or would never get it from others that notify.
const PATIENCE: Duration = Duration::from_millis(50);
const LONGEST_PATIENCE: Duration = Duration::from_millis(400);

/// When an emission that met an error is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The same where fewer events may find room in PostgreSQL's queue.
const FEWER_RETRY: Duration = Duration::from_millis(100);

/// How often the worker looks for a transaction that hands its events over.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(1);

/// How long events wait for it, at most: a process may have been stopped.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(1);

/// How often the worker looks for events of prepared transactions, beside whenever it is told that one was
/// committed.
const PREPARED_INTERVAL: Duration = Duration::from_millis(250);

/// When it looks again where somebody has locked their table.
const LOCKED_RETRY: Duration = Duration::from_millis(20);

/// How long other events wait for such a look, at most.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// How often the worker tries to emit its own events before it ends, and then to write them.
const FLUSHES: u32 = 5;

/// The events of a database.
pub struct Emitter {
    shared: Shared,
    database: &'static Database,
    oid: pg_sys::Oid,
    /// Events of the worker's own, with their tickets.
    own: VecDeque<(u64, String)>,
    /// The events of transactions, in their order.
    batches: VecDeque<Batch>,
    next: Instant,
    patience: Duration,
    /// Events that the next emission has, at most.
    at_once: usize,
    /// The batch that others wait for, and since when.
    awaited: Option<(u64, Instant)>,
    prepared: Prepared,
}

/// What is known of the events of prepared transactions.
struct Prepared {
    /// The transactions that were prepared at the last look.
    transactions: Vec<pg_sys::TransactionId>,
    /// Whether that look left some.
    more: bool,
    next: Instant,
    /// Not before that, since a look has failed.
    retry: Option<Instant>,
    /// Since when looks fail.
    failing: Option<Instant>,
    /// Whether the current emission has looked.
    looked: bool,
}

/// How far an emission has come.
#[derive(Default)]
struct Emitted {
    /// Events of the worker's own.
    own: usize,
    /// Whole batches.
    batches: usize,
    /// How many events of the batch behind them have been emitted.
    of_next: Option<usize>,
    any: bool,
    /// Until when all has to wait for a look.
    held: Option<Instant>,
}

/// An emission, while it is made.
struct Emission<'a> {
    /// Events that it has room for.
    room: usize,
    emitted: HashSet<Vec<u8>>,
    /// The events of prepared transactions, those that were emitted and then the others.
    gone: Vec<&'a PreparedEvent>,
    prepared: Peekable<slice::Iter<'a, PreparedEvent>>,
    /// How many of the worker's own were emitted, and the others.
    own_gone: usize,
    own: Peekable<vec_deque::Iter<'a, (u64, String)>>,
}

impl Emission<'_> {
    /// Emits what there is beside batches and comes before `end`; false where something is for another
    /// emission.
    fn emit_before(&mut self, end: u64) -> bool {
        loop {
            let prepared = self.prepared.peek().map_or(end, |event| event.ticket);
            let own = self.own.peek().map_or(end, |(ticket, _)| *ticket);
            if prepared.min(own) >= end {
                return true;
            }
            if own < prepared {
                let Some((_, payload)) = self.own.peek().copied() else { return true };
                if !self.emit(payload.as_bytes()) {
                    return false;
                }
                self.own.next();
                self.own_gone += 1;
            } else {
                let Some(event) = self.prepared.peek().copied() else { return true };
                if !self.emit(event.payload.as_bytes()) {
                    return false;
                }
                self.prepared.next();
                self.gone.push(event);
            }
        }
    }

    /// Emits a payload; false where it is for another emission.
    fn emit(&mut self, payload: &[u8]) -> bool {
        let fits = self.emitted.len() < self.room && self.emitted.insert(payload.to_vec());
        if fits {
            notify::emit(payload);
        }
        fits
    }
}

impl Emitter {
    /// Takes over what a worker before this one has left.
    pub fn new(shared: Shared, database: &'static Database, oid: pg_sys::Oid) -> Self {
        let now = Instant::now();
        // It may have ended in the middle of a look.
        database.note_prepared_events(PreparedEvents::Due);
        Self {
            shared,
            database,
            oid,
            own: VecDeque::new(),
            batches: shared.events().held(oid).into(),
            next: now,
            patience: PATIENCE,
            at_once: EMITTED_AT_ONCE,
            awaited: None,
            prepared: Prepared {
                transactions: Vec::new(),
                more: false,
                next: now,
                retry: None,
                failing: None,
                looked: false,
            },
        }
    }

    /// Adds an event of the worker's own, whose ticket was drawn before its transaction committed; false where
    /// another had to be dropped for it.
    pub fn add(&mut self, ticket: u64, payload: String) -> bool {
        let full = self.own.len() >= MAX_WAITING;
        if full {
            self.own.pop_front();
        }
        self.own.push_back((ticket, payload));
        !full
    }

    /// When there is something to emit; `None` where there is nothing.
    pub fn next_duty(&self) -> Option<Instant> {
        let Prepared { transactions, more, next, retry, .. } = &self.prepared;
        let prepared = match self.database.prepared_events() {
            PreparedEvents::Due => Some(self.next),
            _ if *more => Some(self.next),
            PreparedEvents::None if transactions.is_empty() => None,
            PreparedEvents::None | PreparedEvents::Some => Some(self.next.max(*next)),
        };
        let prepared = prepared.max(retry.filter(|_| prepared.is_some()));
        let any = !self.own.is_empty()
            || !self.batches.is_empty()
            || self.database.events.is_any_published();
        any.then_some(self.next).into_iter().chain(prepared).min()
    }

    /// Emits some of what is due; whether there was anything.
    ///
    /// # Errors
    /// What went wrong. Nothing is lost by it.
    pub fn emit(&mut self) -> Result<bool, Trouble> {
        let now = Instant::now();
        if self.next_duty().is_none_or(|due| now < due) {
            return Ok(false);
        }
        self.prepared.looked = false;
        match transaction(|| self.emit_some(now)) {
            Ok(emitted) => {
                self.prepared.next = now + PREPARED_INTERVAL;
                self.patience = PATIENCE;
                let pause = if emitted.any { PAUSE } else { HAND_OVER_PAUSE };
                self.next = emitted.held.unwrap_or_else(|| Instant::now() + pause);
                if emitted.any {
                    self.at_once = (self.at_once * 2).min(EMITTED_AT_ONCE);
                }
                self.own.drain(..emitted.own);
                for batch in self.batches.drain(..emitted.batches) {
                    self.shared.events().free(Some(&self.database.events), batch);
                }
                if let (Some(count), Some(batch)) = (emitted.of_next, self.batches.front()) {
                    self.shared.events().set_emitted(*batch, count);
                }
                Ok(emitted.any)
            }
            Err(trouble) => {
                if self.prepared.looked {
                    self.database.note_prepared_events(PreparedEvents::Due);
                }
                if self.own.len() > MAX_IN_MEMORY {
                    // Where that fails, they stay.
                    let _ = self.write_own();
                }
                if trouble.is_lock() {
                    // As long for the starts.
                    self.next = Instant::now() + self.patience;
                    self.patience = (self.patience * 2).min(LONGEST_PATIENCE);
                    // The wait may have swallowed a wake-up.
                    return Ok(true);
                }
                let mut retry = Instant::now() + RETRY;
                if trouble.sqlstate == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED {
                    // PostgreSQL's queue is full.
                    if self.at_once > 1 {
                        retry = Instant::now() + FEWER_RETRY;
                    }
                    self.at_once = (self.at_once / 4).max(1);
                    self.next = retry;
                } else if self.prepared.looked {
                    // What is wrong with those of prepared transactions must not keep the others back.
                    self.prepared.retry = Some(retry);
                    self.prepared.failing.get_or_insert(now);
                } else {
                    self.next = retry;
                }
                Err(trouble)
            }
        }
    }

    fn emit_some(&mut self, now: Instant) -> Result<Emitted, Error> {
        // A crash that undoes it drops the listeners too.
        set_local(c"synchronous_commit", c"off");
        if let Ok(patience) = CString::new(self.patience.as_millis().to_string()) {
            set_local(c"lock_timeout", &patience);
        }
        if self.at_once < EMITTED_AT_ONCE {
            // PostgreSQL's queue was full.
            free_queue_pages();
        }
        // Before the look: whatever the transactions have seen that made these, the look sees.
        let queue = self.shared.events();
        self.batches.extend(queue.take(&self.database.events, self.oid));
        let (prepared, held) = self.look(now)?;
        if held.is_some() {
            return Ok(Emitted { held, ..Emitted::default() });
        }
        // After it: whoever made what was found there has seen others' commits, and these have handed
        // over, or are about to.
        let last = prepared.last().map(|event| event.ticket);
        let mut end = self.collect(now, last);
        if let Some(last) = last
            && self.prepared.more
        {
            end = end.min(last + 1);
        }

        let is_usual = prepared.is_empty() || self.at_once < EMITTED_AT_ONCE;
        let room = if is_usual { self.at_once } else { READ_AT_ONCE };
        let mut emission = Emission {
            room,
            emitted: HashSet::new(),
            gone: Vec::new(),
            prepared: prepared.iter().peekable(),
            own_gone: 0,
            own: self.own.iter().peekable(),
        };
        let mut emitted = Emitted::default();
        let whole = self.emit_in_order(&mut emission, end, &mut emitted);
        emitted.any = !emission.emitted.is_empty();
        emitted.own = emission.own_gone;
        let gone = emission.gone;
        self.prepared.more |= !whole && gone.len() < prepared.len();
        prepared_event::delete(&gone)?;
        Ok(emitted)
    }

    /// Emits what comes before `end`, by the tickets. False where something was left.
    fn emit_in_order(&self, emission: &mut Emission<'_>, end: u64, emitted: &mut Emitted) -> bool {
        let queue = self.shared.events();
        for batch in self.batches.iter().take_while(|batch| batch.ticket < end) {
            if !emission.emit_before(batch.ticket) {
                return false;
            }
            let before = queue.emitted(*batch);
            for (number, payload) in split(&queue.payloads(*batch)).enumerate().skip(before) {
                if !emission.emit(payload) {
                    emitted.of_next = Some(number);
                    return false;
                }
            }
            emitted.batches += 1;
        }
        emission.emit_before(end) && emission.prepared.peek().is_none()
    }

    /// The events of prepared transactions that were committed, in their order; and until when all others
    /// have to wait, since some of these may belong before them.
    fn look(&mut self, now: Instant) -> Result<(Vec<PreparedEvent>, Option<Instant>), Error> {
        let known = &mut self.prepared;
        // SAFETY: asks shared memory, in a transaction.
        let is_over =
            |&xid: &pg_sys::TransactionId| unsafe { !pg_sys::TransactionIdIsInProgress(xid) };
        let is_due = known.more
            || self.database.prepared_events() != PreparedEvents::None
            || known.transactions.iter().any(is_over);
        if !is_due {
            return Ok((Vec::new(), None));
        }
        if known.retry.is_none_or(|retry| retry <= now) {
            known.looked = true;
            self.database.forget_prepared_events();
            // One that is prepared from now on says so, before it can be committed.
            let transactions = prepared_event::prepared_transactions()?;
            match prepared_event::committed(READ_AT_ONCE) {
                Ok(events) => {
                    known.transactions = transactions;
                    known.more = events.len() >= READ_AT_ONCE;
                    known.retry = None;
                    known.failing = None;
                    return Ok((events, None));
                }
                Err(Error::TableLocked) => {
                    self.database.note_prepared_events(PreparedEvents::Due);
                    known.retry = Some(now + LOCKED_RETRY);
                }
                Err(error) => return Err(error),
            }
        }
        let until = *known.failing.get_or_insert(now) + LOOK_PATIENCE;
        let held = (now < until).then(|| known.retry.map_or(until, |retry| retry.min(until)));
        Ok((Vec::new(), held))
    }

    /// Emits what there is, before the worker ends, or leaves it to the next one; returns how many events
    /// are lost.
    pub fn flush(&mut self) -> usize {
        for _ in 0..FLUSHES {
            self.next = Instant::now();
            if self.next_duty().is_none() || matches!(self.emit(), Ok(true)) && self.own.is_empty()
            {
                break;
            }
            std::thread::sleep(HAND_OVER_PAUSE);
        }
        for _ in 0..FLUSHES {
            if self.own.is_empty() || !self.write_own().is_err_and(|trouble| trouble.is_lock()) {
                break;
            }
        }
        self.own.len()
    }

    /// Writes the worker's own events into the database.
    fn write_own(&mut self) -> Result<(), Trouble> {
        let written = transaction(|| {
            // A crash drops the listeners too.
            set_local(c"synchronous_commit", c"off");
            prepared_event::write_own(
                self.own.iter().map(|(ticket, event)| (*ticket, event.as_str())),
            )
        })?;
        if written {
            self.own.clear();
            self.database.note_prepared_events(PreparedEvents::Due);
        }
        Ok(())
    }

    /// Takes what transactions have handed over meanwhile, and returns the ticket up to which all can be
    /// emitted that was taken before, `last` being the highest of what else there is.
    fn collect(&mut self, now: Instant, last: Option<u64>) -> u64 {
        let (queue, batches) = (self.shared.events(), &self.database.events);
        let tickets = self.batches.iter().map(|batch| batch.ticket);
        let own = self.own.back().map(|(ticket, _)| *ticket);
        let Some(last) = tickets.chain(own).chain(last).max() else { return 0 };
        // SAFETY: asks shared memory, in a process attached to it.
        let is_open = |xid| unsafe { pg_sys::TransactionIdIsInProgress(xid) };
        let awaited = queue
            .reserved(batches, self.oid)
            .filter(|&(ticket, xid)| ticket < last && !is_open(xid))
            .map(|(ticket, _)| ticket)
            .min();
        // What those have handed over meanwhile comes before what was taken first.
        self.batches.extend(queue.take(batches, self.oid));
        self.batches.make_contiguous().sort_unstable_by_key(|batch| batch.ticket);
        self.awaited = awaited.map(|ticket| match self.awaited {
            Some((known, since)) if known == ticket => (ticket, since),
            _ => (ticket, now),
        });
        let is_given_up =
            self.awaited.is_some_and(|(_, since)| now.duration_since(since) >= HAND_OVER_PATIENCE);
        awaited.filter(|_| !is_given_up).unwrap_or(last + 1)
    }
}
