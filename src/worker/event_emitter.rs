//! Emits events, many in a transaction: the worker's own, those of prepared transactions that were
//! committed, and those that other transactions have published.
//!
//! The events of one execution are emitted in their order. Those that an earlier worker left come
//! first, then the worker's own, which it makes when it commits: no other session can change the
//! execution before. A session that changes an execution after another one sees its commit, so its
//! batch has a higher number: a batch waits while a transaction with a lower number has committed
//! and not yet published its events, which is a matter of microseconds.

use std::ffi::CString;
use std::mem::take;
use std::time::{Duration, Instant};

use pgrx::{PgSqlErrorCode, pg_sys};

use super::{Context, Part, events_dropped};
use crate::history::prepared_changes;
use crate::model::error::Error;
use crate::model::event;
use crate::pg::bgworker::{XactError, report_activity, transaction};
use crate::pg::guc_scope::set_local;
use crate::pg::{notify, xact};
use crate::shmem::event_queue::{self, Batch};
use crate::shmem::workers;

/// Events emitted in one transaction, at most.
const EMITTED_AT_ONCE: usize = 1_000;

/// The worker's own events that wait in its memory, at most: the oldest are dropped.
const MAX_OWN: usize = 65_536;

/// The pause after an emission, in which more events arrive.
const PAUSE: Duration = Duration::from_millis(5);

/// How long an emission waits for PostgreSQL's lock on NOTIFY: starts wait meanwhile. After a
/// failure the next emission waits longer, up to MAX_LOCK_TIMEOUT, or it might never get the lock
/// while other sessions notify.
const LOCK_TIMEOUT: Duration = Duration::from_millis(50);
const MAX_LOCK_TIMEOUT: Duration = Duration::from_millis(400);

/// When an emission that met an error is retried; and with fewer events, which may find room in
/// PostgreSQL's queue.
const RETRY: Duration = Duration::from_secs(1);
const FEWER_RETRY: Duration = Duration::from_millis(100);

/// How often the worker checks for a transaction that is about to publish its events, and how long
/// later batches wait for it.
const PUBLISH_PAUSE: Duration = Duration::from_millis(1);
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the worker checks for changes of prepared transactions, besides when one is committed.
const PREPARED_INTERVAL: Duration = Duration::from_millis(250);

/// How often the worker tries to emit its events before it ends.
const LAST_TRIES: u32 = 5;

pub struct EventEmitter {
    /// Batches that the worker has taken.
    batches: Vec<Batch>,
    next: Instant,
    next_prepared: Instant,
    lock_timeout: Duration,
    /// Events that the next emission has, at most.
    at_once: usize,
    /// The batch that later batches wait for, and since when.
    awaited: Option<(u64, Instant)>,
}

/// What an emission has emitted.
#[derive(Default)]
struct Emitted {
    /// Events of the worker's own.
    own: usize,
    /// Whole batches.
    batches: usize,
    /// How many events of the batch behind them have been emitted.
    of_next: Option<usize>,
    /// All events.
    count: usize,
}

impl EventEmitter {
    /// Takes over the batches that an earlier worker had taken.
    pub fn new(database: pg_sys::Oid) -> Self {
        let now = Instant::now();
        Self {
            batches: event_queue::with(|queue| queue.take(database, true)),
            next: now,
            next_prepared: now,
            lock_timeout: LOCK_TIMEOUT,
            at_once: EMITTED_AT_ONCE,
            awaited: None,
        }
    }

    /// Emits some of the events that there are; whether there were any.
    fn emit(&mut self, context: &mut Context) -> Result<bool, XactError> {
        let (now, database) = (Instant::now(), context.database);
        if workers::block(database, |worker| take(&mut worker.has_events)) {
            // A prepared transaction may have been committed.
            self.next_prepared = self.next_prepared.min(now);
        }
        self.batches.extend(event_queue::with(|queue| queue.take(database, false)));
        self.batches.sort_unstable();
        // Before the batches, since a session that changes an execution after a prepared
        // transaction has seen its commit.
        let has_prepared = workers::block(database, |worker| worker.prepared_changes)
            && (now >= self.next_prepared || !self.batches.is_empty());
        if context.events.is_empty() && self.batches.is_empty() && !has_prepared {
            return Ok(false);
        }
        report_activity(Some("emitting events"));
        let ready = self.ready_batches(database, now);
        let emitted = transaction(|| self.emit_in_transaction(context, ready, has_prepared))?;
        self.lock_timeout = LOCK_TIMEOUT;
        self.next = Instant::now() + if emitted.count > 0 { PAUSE } else { PUBLISH_PAUSE };
        if emitted.count > 0 {
            self.at_once = (self.at_once * 2).min(EMITTED_AT_ONCE);
        }
        context.events.drain(..emitted.own);
        let emitted_batches = self.batches.drain(..emitted.batches);
        event_queue::with(|queue| emitted_batches.for_each(|batch| queue.free(batch)));
        if let (Some(count), Some(batch)) = (emitted.of_next, self.batches.first()) {
            event_queue::with(|queue| queue.set_emitted(*batch, count));
        }
        Ok(emitted.count > 0)
    }

    /// How many of the batches need not wait for one with a lower number.
    fn ready_batches(&mut self, database: pg_sys::Oid, now: Instant) -> usize {
        let Some(last) = self.batches.last() else { return 0 };
        let awaited = event_queue::with(|queue| queue.unpublished(database))
            .into_iter()
            .filter(|(number, xid)| *number < last.sequence_number && !xact::is_in_progress(*xid))
            .map(|(number, _)| number)
            .min();
        self.awaited = awaited.map(|number| match self.awaited {
            Some((known, since)) if known == number => (number, since),
            _ => (number, now),
        });
        match self.awaited {
            Some((number, since)) if now.duration_since(since) < PUBLISH_TIMEOUT => {
                self.batches.partition_point(|batch| batch.sequence_number < number)
            }
            _ => self.batches.len(),
        }
    }

    fn emit_in_transaction(
        &mut self,
        context: &Context,
        ready: usize,
        has_prepared: bool,
    ) -> Result<Emitted, Error> {
        // A crash that undoes it ends the sessions that listen, too.
        set_local(c"synchronous_commit", c"off");
        if let Ok(lock_timeout) = CString::new(self.lock_timeout.as_millis().to_string()) {
            set_local(c"lock_timeout", &lock_timeout);
        }
        if self.at_once < EMITTED_AT_ONCE {
            // PostgreSQL's queue was full.
            notify::free_queue_pages();
        }
        let mut emitted = Emitted::default();
        let left = self.batches.partition_point(|batch| batch.is_left_by_worker());
        if !self.emit_batches(&self.batches[..left], &mut emitted) {
            return Ok(emitted);
        }
        for payload in context.events.iter().take(self.at_once - emitted.count) {
            notify::emit(payload.as_bytes());
            emitted.own += 1;
            emitted.count += 1;
        }
        if has_prepared && emitted.count < self.at_once {
            emitted.count += self.emit_prepared(context.database, self.at_once - emitted.count)?;
        }
        self.emit_batches(&self.batches[left..ready], &mut emitted);
        Ok(emitted)
    }

    /// Emits batches; false if there are more events in them than may be emitted at once.
    fn emit_batches(&self, batches: &[Batch], emitted: &mut Emitted) -> bool {
        for batch in batches {
            let (payloads, before) = event_queue::with(|queue| queue.payloads(*batch));
            for (number, payload) in event::split(&payloads).enumerate().skip(before) {
                if emitted.count == self.at_once {
                    emitted.of_next = Some(number);
                    return false;
                }
                notify::emit(payload);
                emitted.count += 1;
            }
            emitted.batches += 1;
        }
        true
    }

    /// Emits at most `count` events of prepared transactions that were committed; how many.
    fn emit_prepared(&mut self, database: pg_sys::Oid, count: usize) -> Result<usize, Error> {
        // A transaction that is prepared from now on sets it again.
        workers::block(database, |worker| worker.prepared_changes = false);
        let taken = prepared_changes::take(count)?;
        taken.payloads.iter().for_each(|payload| notify::emit(payload.as_bytes()));
        if taken.has_more {
            workers::block(database, |worker| worker.prepared_changes = true);
        }
        if taken.payloads.len() < count {
            self.next_prepared = Instant::now() + PREPARED_INTERVAL;
        }
        Ok(taken.payloads.len())
    }

    fn retry_after(&mut self, context: &mut Context, error: &XactError) {
        let now = Instant::now();
        // The rollback has restored what was taken.
        workers::block(context.database, |worker| worker.prepared_changes = true);
        self.next_prepared = now + RETRY;
        if error.is_lock() {
            // Starts get as much time.
            self.next = now + self.lock_timeout;
            self.lock_timeout = (self.lock_timeout * 2).min(MAX_LOCK_TIMEOUT);
        } else if error.sqlstate == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED {
            // PostgreSQL's queue is full.
            self.next = now + if self.at_once > 1 { FEWER_RETRY } else { RETRY };
            self.at_once = (self.at_once / 4).max(1);
        } else {
            self.next = now + RETRY;
        }
        context.report_unless_locked(error);
        let surplus = context.events.len().saturating_sub(MAX_OWN);
        if surplus > 0 {
            context.events.drain(..surplus);
            context.report(&events_dropped(format!(
                "{surplus} events are dropped: other sessions keep the lock that NOTIFY needs"
            )));
        }
    }

    /// Emits the remaining events before the worker ends, and leaves those of its own that it
    /// cannot emit to the next worker.
    pub fn finish(&mut self, context: &mut Context) {
        for _ in 0..LAST_TRIES {
            match self.emit(context) {
                Ok(false) => break,
                Ok(true) => {}
                Err(error) => self.retry_after(context, &error),
            }
        }
        let payloads = event::join(context.events.drain(..));
        if !payloads.is_empty()
            && !event_queue::with(|queue| queue.leave(context.database, &payloads))
        {
            context.report(&events_dropped(format!(
                "{} events are dropped with the worker's end",
                event::split(&payloads).count()
            )));
        }
    }
}

impl Part for EventEmitter {
    fn due(&self, context: &Context) -> Option<Instant> {
        let any = !context.events.is_empty()
            || !self.batches.is_empty()
            || workers::block(context.database, |worker| worker.has_events);
        let prepared = workers::block(context.database, |worker| worker.prepared_changes);
        let prepared = prepared.then_some(self.next_prepared.max(self.next));
        any.then_some(self.next).into_iter().chain(prepared).min()
    }

    fn run(&mut self, context: &mut Context) -> bool {
        if self.due(context).is_none_or(|due| Instant::now() < due) {
            return false;
        }
        self.emit(context).unwrap_or_else(|error| {
            self.retry_after(context, &error);
            // It may have waited for a lock, and consumed a wake-up.
            true
        })
    }
}
