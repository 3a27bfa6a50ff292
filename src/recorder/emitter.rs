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

/// The events of a database.
pub struct Emitter {
    shared: Shared,
    database: &'static Database,
    oid: pg_sys::Oid,
    /// Taken, and not in their order yet.
    taken: Vec<Batch>,
    /// In their order.
    waiting: VecDeque<Waiting>,
    next: Instant,
    next_prepared: Instant,
    patience: Duration,
    /// The batch that others wait for, and since when.
    awaited: Option<(u64, Instant)>,
}

enum Waiting {
    /// An event of the worker's own.
    Own(String),
    /// The events of a transaction.
    Batch(Batch),
}

impl Emitter {
    /// Takes over what a worker before this one has left.
    pub fn new(shared: Shared, database: &'static Database, oid: pg_sys::Oid) -> Self {
        let now = Instant::now();
        Self {
            shared,
            database,
            oid,
            taken: shared.events().held(oid),
            waiting: VecDeque::new(),
            next: now,
            next_prepared: now,
            patience: PATIENCE,
            awaited: None,
        }
    }

    /// Adds an event of the worker's own; false where another had to be dropped for it.
    pub fn add(&mut self, payload: String) -> bool {
        let full = self.waiting.len() >= MAX_WAITING;
        if full && let Some(Waiting::Batch(batch)) = self.waiting.pop_front() {
            self.shared.events().free(Some(&self.database.events), batch);
        }
        self.waiting.push_back(Waiting::Own(payload));
        !full
    }

    /// When there is something to emit; `None` where there is nothing.
    pub fn next_duty(&self) -> Option<Instant> {
        let prepared = match self.database.prepared_events() {
            PreparedEvents::None => None,
            PreparedEvents::Some => Some(self.next.max(self.next_prepared)),
            PreparedEvents::Due => Some(self.next),
        };
        let any = !self.waiting.is_empty()
            || !self.taken.is_empty()
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
        self.collect(now);
        let look = self.database.prepared_events() != PreparedEvents::None;
        if self.waiting.is_empty() && !look {
            self.next = now + HAND_OVER_PAUSE;
            return Ok(false);
        }
        self.database.forget_prepared_events();
        let count = self.waiting.len().min(EMITTED_AT_ONCE);
        let emitted = transaction(|| {
            // A crash that undoes it drops the listeners too.
            set_local(c"synchronous_commit", c"off");
            if let Ok(patience) = CString::new(self.patience.as_millis().to_string()) {
                set_local(c"lock_timeout", &patience);
            }
            // Those of prepared transactions come first: whoever has seen their commit may have made the
            // others.
            let mut more = false;
            if look {
                more = prepared_event::is_any_prepared()?;
                let payloads = prepared_event::take()?;
                more |= !payloads.is_empty();
                payloads.into_iter().for_each(notify::emit);
            }
            for waiting in self.waiting.iter().take(count) {
                match waiting {
                    Waiting::Own(payload) => notify::emit(payload.as_str()),
                    Waiting::Batch(batch) => emit_all(&self.shared.events().payloads(*batch)),
                }
            }
            Ok(more)
        });
        match emitted {
            Ok(more) => {
                if more {
                    self.database.note_prepared_events(PreparedEvents::Some);
                }
                self.next_prepared = now + PREPARED_INTERVAL;
                self.patience = PATIENCE;
                self.next = Instant::now() + PAUSE;
                for waiting in self.waiting.drain(..count) {
                    if let Waiting::Batch(batch) = waiting {
                        self.shared.events().free(Some(&self.database.events), batch);
                    }
                }
                Ok(true)
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
                self.next = Instant::now() + RETRY;
                Err(trouble)
            }
        }
    }

    /// Emits what there is, before the worker ends. What is in shared memory stays there for the next one.
    ///
    /// # Errors
    /// What went wrong.
    pub fn flush(&mut self) -> Result<(), Trouble> {
        loop {
            self.next = Instant::now();
            if !self.emit()? || self.waiting.is_empty() {
                return Ok(());
            }
        }
    }

    /// Takes what transactions have handed over, and puts in order what can be emitted.
    fn collect(&mut self, now: Instant) {
        if self.waiting.len() >= MAX_WAITING {
            return;
        }
        let (queue, batches) = (self.shared.events(), &self.database.events);
        self.taken.extend(queue.take(batches, self.oid));
        let Some(last) = self.taken.iter().map(|batch| batch.ticket).max() else { return };
        // SAFETY: asks shared memory, in a process attached to it.
        let is_open = |xid| unsafe { pg_sys::TransactionIdIsInProgress(xid) };
        let awaited = queue
            .reserved(batches, self.oid)
            .filter(|&(ticket, xid)| ticket < last && !is_open(xid))
            .map(|(ticket, _)| ticket)
            .min();
        // What those have handed over meanwhile comes before what was taken first.
        self.taken.extend(queue.take(batches, self.oid));
        self.taken.sort_unstable_by_key(|batch| batch.ticket);
        self.awaited = awaited.map(|ticket| match self.awaited {
            Some((known, since)) if known == ticket => (ticket, since),
            _ => (ticket, now),
        });
        let is_given_up =
            self.awaited.is_some_and(|(_, since)| now.duration_since(since) >= HAND_OVER_PATIENCE);
        let end = awaited.filter(|_| !is_given_up).unwrap_or(last + 1);
        let ready = self.taken.partition_point(|batch| batch.ticket < end);
        self.waiting.extend(self.taken.drain(..ready).map(Waiting::Batch));
    }
}
