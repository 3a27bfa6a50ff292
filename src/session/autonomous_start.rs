//! An autonomous start, as the caller's backend sees it: the worker records it in a transaction of
//! its own.

use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, LockWaitPolicy};

use super::xact_callbacks;
use crate::gucs;
use crate::history::loader_fk::{self, LoaderRow};
use crate::history::tables::{EXECUTION_HISTORY, WATCHED_TRANSACTION};
use crate::model::error::Error;
use crate::model::fallback::{Fallback, Reason};
use crate::pg::bgworker;
use crate::pg::latch::{ProcLatch, wait_in_session};
use crate::pg::relation::{OpenRelation, open, require};
use crate::pg::xact::{self, my_database};
use crate::shmem::start_queue::{self, Answer, Recorded, RequestId, Start};
use crate::shmem::workers::{self, Availability};

/// A worker that has not taken a request for this long is late for all sessions.
const LATE_AFTER: Duration = Duration::from_millis(100);

/// How often the caller polls a start that is being committed, if it missed the wake-up.
const COMMIT_WAIT: Duration = Duration::from_millis(10);

/// Where a start is recorded.
pub enum Started {
    /// In a transaction of its own, committed: the execution's id.
    Autonomous(i64),
    /// In the caller's transaction, by the caller.
    Transactional,
    /// In the caller's transaction, by the caller, with a WARNING.
    Fallback(Fallback),
}

/// Has the worker record that `loader_id` started at `time`, in PostgreSQL's microseconds.
pub fn start(loader_id: i64, time: i64) -> Result<Started, Error> {
    // A DBA's trigger may call this in the worker, which must not wait for itself.
    if !workers::is_preloaded() || !gucs::AUTONOMOUS_START.get() || bgworker::is_worker() {
        return Ok(Started::Transactional);
    }
    let fallback = |reason: Reason| Ok(Started::Fallback(reason.into()));
    let history = require(EXECUTION_HISTORY, pg_sys::AccessShareLock)?;
    let Some(watched) = open(WATCHED_TRANSACTION, pg_sys::AccessShareLock)? else {
        return fallback(Reason::OldSql);
    };
    if [&history, &watched].into_iter().any(OpenRelation::is_new) {
        return fallback(Reason::ExtensionUncommitted);
    }
    let check_loader = match loader_fk::lock(&history, loader_id, LockWaitPolicy::LockWaitBlock) {
        LoaderRow::Missing => return fallback(Reason::LoaderUncommitted),
        LoaderRow::Unsupported => return fallback(Reason::ForeignKey),
        LoaderRow::Busy | LoaderRow::TableBusy => return fallback(Reason::Late),
        // A key may be attached before the worker takes the start.
        LoaderRow::Own | LoaderRow::Unchecked => true,
        LoaderRow::Committed => false,
    };
    workers::first_xid();
    let (xid, subxid) = xact::assign_xids();
    let notify = gucs::NOTIFY.get();
    match hand_over(Start { loader_id, time, xid, subxid, check_loader, notify }) {
        Ok(recorded) => {
            xact::wait_for_wal(recorded.commit_lsn);
            Ok(Started::Autonomous(recorded.execution_id))
        }
        Err(reason) => Ok(Started::Fallback(reason)),
    }
}

/// Hands a start over to the worker and waits until it is committed. The worker does not wait until
/// its commit is on disk, and continues with the starts of other sessions: the caller waits for the
/// disk.
fn hand_over(start: Start) -> Result<Recorded, Fallback> {
    let database = my_database();
    match workers::availability(database) {
        Availability::Available | Availability::Announced => {}
        Availability::NoSlot => return Err(Reason::NoSlot.into()),
        Availability::Late => return Err(Reason::Late.into()),
    }
    let Some(request) =
        start_queue::with(|queue| queue.enqueue(database, ProcLatch::mine(), start))
    else {
        workers::wake(database);
        return Err(Reason::QueueFull.into());
    };
    // Before the wait, since an error may end it when the worker has already committed.
    xact_callbacks::begin_autonomous_start(start.xid, start.subxid, request);
    workers::wake(database);
    let timeout = gucs::worker_timeout();
    let answer = wait(request, timeout);
    xact_callbacks::end_autonomous_start();
    match answer {
        Answer::Recorded(recorded) => Ok(recorded),
        Answer::Declined(Reason::Failed) => {
            let error = workers::status(database).map(|status| status.last_error.get());
            Err(Fallback { reason: Reason::Failed, error: error.unwrap_or_default() })
        }
        Answer::Declined(reason) => Err(reason.into()),
        Answer::NotTaken if timeout >= LATE_AFTER => {
            workers::set_late(database);
            Err(Reason::Late.into())
        }
        Answer::NotTaken | Answer::Abandoned | Answer::Wait => Err(Reason::Late.into()),
    }
}

/// Waits for the answer to a request.
fn wait(request: RequestId, timeout: Duration) -> Answer {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match start_queue::with(|queue| queue.poll(request, left.is_zero())) {
            // A start that is being committed cannot be abandoned.
            Answer::Wait if left.is_zero() => wait_in_session(COMMIT_WAIT),
            Answer::Wait => wait_in_session(left),
            answer => return answer,
        }
    }
}
