//! Emits events, many in a transaction: the worker's own, and those that transactions have handed over.
//!
//! An execution's events come in their order. A session can change an execution only when it sees the
//! commit of whoever changed it before; so an event waits while a transaction that began to commit earlier
//! has committed, and not handed over its events yet. That is a matter of microseconds.

use std::collections::VecDeque;
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::background::{Trouble, set_local, transaction};
use super::gathered::emit_all;
use super::prepared_event;
use super::shared::{Batch, Database, PreparedEvents, Shared};
use crate::error::Error;
use crate::notify;

/// Events emitted in one transaction, about.
const EMITTED_AT_ONCE: usize = 1_000;

/// The worker's own events that wait to be emitted, at most: where PostgreSQL's lock on NOTIFY is held on
/// and on, by a commit that waits for a standby, the oldest are dropped.
const MAX_WAITING: usize = 65_536;

/// The pause after an emission, in which more events gather.
const PAUSE: Duration = Duration::from_millis(5);

/// How long an emission waits for PostgreSQL's lock on NOTIFY: starts wait meanwhile. While it is in
/// vain the next one waits longer, up to the longest, or would never get it from others that notify.
const PATIENCE: Duration = Duration::from_millis(50);
const LONGEST_PATIENCE: Duration = Duration::from_millis(400);

/// When an emission that met an error is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often the worker looks for a transaction that hands its events over.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(1);

/// How long events wait for it, at most: a process may have been stopped.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(1);

/// How often the worker looks for events of prepared transactions, beside whenever it is told that one was
/// committed.
const PREPARED_INTERVAL: Duration = Duration::from_millis(250);

/// How often the worker tries to emit its own events before it ends.
const FLUSHES: u32 = 5;

/// The events of a database.
pub struct Emitter {
    shared: Shared,
    database: &'static Database,
    oid: pg_sys::Oid,
    /// Events of the worker's own. An execution's come before those that transactions hand over.
    own: VecDeque<String>,
    /// The events of transactions, in their order.
    batches: VecDeque<Batch>,
    next: Instant,
    next_prepared: Instant,
    prepared_retry: Option<Instant>,
    patience: Duration,
    /// The batch that others wait for, and since when.
    awaited: Option<(u64, Instant)>,
}

/// What an emission came to.
struct Emitted {
    own: usize,
    batches: usize,
    /// Whether there may be more events of prepared transactions.
    more_prepared: bool,
    any: bool,
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
            next_prepared: now,
            prepared_retry: None,
            patience: PATIENCE,
            awaited: None,
        }
    }

    /// Adds an event of the worker's own; false where another had to be dropped for it.
    pub fn add(&mut self, payload: String) -> bool {
        let full = self.own.len() >= MAX_WAITING;
        if full {
            self.own.pop_front();
        }
        self.own.push_back(payload);
        !full
    }

    /// When there is something to emit; `None` where there is nothing.
    pub fn next_duty(&self) -> Option<Instant> {
        let prepared = match self.database.prepared_events() {
            PreparedEvents::None => None,
            PreparedEvents::Some => Some(self.next.max(self.next_prepared)),
            PreparedEvents::Due => Some(self.next),
        };
        let prepared = prepared.max(self.prepared_retry.filter(|_| prepared.is_some()));
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
        // What is wrong with those of prepared transactions must not keep the others back.
        let look = self.database.prepared_events() != PreparedEvents::None
            && self.prepared_retry.is_none_or(|retry| retry <= now);
        if look {
            self.database.forget_prepared_events();
            self.prepared_retry = None;
        }
        match transaction(|| self.emit_some(now, look)) {
            Ok(emitted) => {
                if emitted.more_prepared {
                    self.database.note_prepared_events(PreparedEvents::Some);
                }
                self.next_prepared = now + PREPARED_INTERVAL;
                self.patience = PATIENCE;
                self.next = Instant::now() + if emitted.any { PAUSE } else { HAND_OVER_PAUSE };
                self.own.drain(..emitted.own);
                for batch in self.batches.drain(..emitted.batches) {
                    self.shared.events().free(Some(&self.database.events), batch);
                }
                Ok(emitted.any)
            }
            Err(trouble) => {
                if look {
                    self.database.note_prepared_events(PreparedEvents::Due);
                }
                if trouble.is_lock() {
                    // As long for the starts.
                    self.next = Instant::now() + self.patience;
                    self.patience = (self.patience * 2).min(LONGEST_PATIENCE);
                    return Ok(false);
                }
                let retry = Instant::now() + RETRY;
                if look {
                    self.prepared_retry = Some(retry);
                } else {
                    self.next = retry;
                }
                Err(trouble)
            }
        }
    }

    fn emit_some(&mut self, now: Instant, look: bool) -> Result<Emitted, Error> {
        // A crash that undoes it drops the listeners too.
        set_local(c"synchronous_commit", c"off");
        if let Ok(patience) = CString::new(self.patience.as_millis().to_string()) {
            set_local(c"lock_timeout", &patience);
        }
        let mut more_prepared = look && prepared_event::is_any_prepared()?;
        let mut prepared = Vec::new();
        if look {
            match prepared_event::committed() {
                Ok(events) => prepared = events,
                // They must not keep the others back.
                Err(Error::TableLocked) => more_prepared = true,
                Err(error) => return Err(error),
            }
        }
        more_prepared |= !prepared.is_empty();
        // After the look into the table: whoever made what was found there has seen others' commits, and
        // these have handed over, or are about to.
        let end = self.collect(now, prepared.last().map(|event| event.ticket));
        prepared.truncate(prepared.partition_point(|event| event.ticket < end));
        let ready = self.batches.iter().take_while(|batch| batch.ticket < end).count();

        // Those of prepared transactions have to come in between, so that then there is no limit.
        let limit = if prepared.is_empty() { EMITTED_AT_ONCE } else { usize::MAX };
        let own = self.own.len().min(limit);
        let batches = ready.min(limit - own);
        self.own.iter().take(own).for_each(|payload| notify::emit(payload.as_str()));
        prepared_event::delete(&prepared)?;
        let any = own + batches + prepared.len() > 0;
        let mut prepared = prepared.into_iter().peekable();
        for batch in self.batches.iter().take(batches) {
            while let Some(event) = prepared.next_if(|event| event.ticket < batch.ticket) {
                notify::emit(event.payload);
            }
            emit_all(&self.shared.events().payloads(*batch));
        }
        prepared.for_each(|event| notify::emit(event.payload));
        Ok(Emitted { own, batches, more_prepared, any })
    }

    /// Emits what there is, before the worker ends, and returns how many events of its own are lost. What
    /// is in shared memory stays there for the next worker.
    pub fn flush(&mut self) -> usize {
        for _ in 0..FLUSHES {
            self.next = Instant::now();
            if self.next_duty().is_none() || matches!(self.emit(), Ok(true)) && self.own.is_empty()
            {
                break;
            }
        }
        self.own.len()
    }

    /// Takes what transactions have handed over, in their order, and returns the ticket up to which it can
    /// be emitted, `last` being the highest of what else there is.
    fn collect(&mut self, now: Instant, last: Option<u64>) -> u64 {
        let (queue, batches) = (self.shared.events(), &self.database.events);
        self.batches.extend(queue.take(batches, self.oid));
        let tickets = self.batches.iter().map(|batch| batch.ticket);
        let Some(last) = tickets.chain(last).max() else { return 0 };
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
