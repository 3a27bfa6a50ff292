//! A start, recorded by the worker in a transaction of its own, as the caller's backend sees it.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, LockWaitPolicy};

use super::loader_row::{self, LoaderRow};
use super::shared::{Progress, Request, Serving, Shared, Start, my_database, shared};
use super::{transaction, worker};
use crate::lookup::{OpenRelation, relation};
use crate::settings;

/// Where a start is recorded.
pub enum Started {
    /// In a transaction of its own, committed: the execution's id.
    Durably(i64),
    /// In the caller's, to be done by the caller: that is what was asked for.
    Plainly,
    /// In the caller's, to be done by the caller with a warning: the worker can't.
    Declined(Reason),
}

/// Why the worker does not record a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The loader's row was not there, or nobody else can see it yet.
    LoaderUncommitted,
    /// Nobody else can see the extension yet.
    ExtensionUncommitted,
    /// The foreign key is of a kind that the recorder can't lock by.
    ForeignKey,
    /// The queue is full.
    QueueFull,
    /// No background worker can be started.
    NoRoom,
    /// The database is one that no worker serves.
    NotServed,
    /// The worker did not answer in time.
    Late,
    /// Another session locks a table of the history.
    TableLocked,
    /// The worker met an error.
    Failed(String),
}

/// Reasons as a request's entry in shared memory carries them.
const REASONS: [Reason; 5] = [
    Reason::LoaderUncommitted,
    Reason::TableLocked,
    Reason::NoRoom,
    Reason::NotServed,
    Reason::Late,
];

/// A worker that has not taken a request for so long is late for everybody.
const LATE_AFTER: Duration = Duration::from_millis(100);

impl Reason {
    /// The reason as a number; 0 for an error of the worker's.
    pub fn code(&self) -> u32 {
        let place = REASONS.iter().position(|reason| reason == self);
        place.and_then(|place| u32::try_from(place + 1).ok()).unwrap_or_default()
    }

    fn from_code(code: u32) -> Option<Self> {
        REASONS.get(usize::try_from(code).ok()?.checked_sub(1)?).cloned()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoaderUncommitted => f.write_str("The loader's row is not committed."),
            Self::ExtensionUncommitted => {
                f.write_str("The extension was created or updated in this transaction.")
            }
            Self::ForeignKey => {
                f.write_str("The background worker cannot lock by the key of loader.loader.")
            }
            Self::QueueFull => f.write_str("The queue to the background workers is full."),
            Self::NoRoom => f.write_str("No background worker could be started for this database."),
            Self::NotServed => f.write_str("No background worker serves this database."),
            Self::Late => f.write_str("The background worker did not answer in time."),
            Self::TableLocked => {
                f.write_str("A table of the history is locked, by this session or another.")
            }
            Self::Failed(error) => write!(f, "The background worker met an error: {error}."),
        }
    }
}

/// Has the worker record that `loader_id` started at `time`, in PostgreSQL's microseconds.
///
/// Errors of PostgreSQL pass as they are.
pub fn start(loader_id: i64, time: i64) -> Started {
    // The worker runs the triggers of others, and must not wait for itself.
    let Some(shared) =
        shared().filter(|_| settings::AUTONOMOUS_START.get() && !worker::is_worker())
    else {
        return Started::Plainly;
    };
    let (Some(history), Some(sequence), Some(binding)) = (
        relation(c"execution_history"),
        relation(c"execution_history_id_seq"),
        relation(c"watched_transaction"),
    ) else {
        return Started::Plainly;
    };
    let history = OpenRelation::table(history, pg_sys::AccessShareLock);
    // The bindings came with a later version of the extension.
    if history.is_new() || OpenRelation::table(binding, pg_sys::AccessShareLock).is_new() {
        return Started::Declined(Reason::ExtensionUncommitted);
    }
    let check_loader = match loader_row::lock(&history, loader_id, LockWaitPolicy::LockWaitBlock) {
        LoaderRow::Missing => return Started::Declined(Reason::LoaderUncommitted),
        LoaderRow::Unsupported => return Started::Declined(Reason::ForeignKey),
        LoaderRow::Busy | LoaderRow::TableBusy => return Started::Declined(Reason::Late),
        // A key may be attached before the worker gets to it.
        LoaderRow::Own | LoaderRow::Unchecked => true,
        LoaderRow::Committed => false,
    };
    shared.first_xid();
    // SAFETY: in a transaction that may write, which the caller has checked.
    let start = unsafe {
        let xid = pg_sys::GetTopFullTransactionId().value;
        let subxid = match pg_sys::GetCurrentTransactionNestLevel() {
            ..=1 => 0,
            _ => pg_sys::GetCurrentFullTransactionId().value,
        };
        let execution_id = pg_sys::nextval_internal(sequence, false);
        let notify = settings::NOTIFY.get();
        Start { execution_id, loader_id, start: time, xid, subxid, check_loader, notify }
    };
    match hand_over(shared, &start) {
        Ok(committed_at) => {
            wait_at_commit(committed_at);
            // SAFETY: in a server that is not in recovery; the log goes that far.
            unsafe { pg_sys::XLogFlush(committed_at) };
            Started::Durably(start.execution_id)
        }
        Err(reason) => Started::Declined(reason),
    }
}

/// Has the commit of the current transaction, for which the worker has written up to `committed_at` of the
/// log, wait for the disk and for standbys as the session's settings say. PostgreSQL does so only where a
/// transaction has written to the log itself; a crash, or the loss of the primary, would undo what the
/// client has seen committed.
fn wait_at_commit(committed_at: u64) {
    // SAFETY: in a transaction with an id. The record of its commit, which is what is waited for, is newer.
    unsafe {
        if pg_sys::XactLastRecEnd == 0 {
            pg_sys::XactLastRecEnd = committed_at;
        }
    }
}

/// Hands a start to the worker and waits until it is recorded; returns where the worker's commit ends in the
/// log. The worker does not wait until that is on disk, and goes on with the starts of others: who needs
/// it waits.
fn hand_over(shared: Shared, start: &Start) -> Result<u64, Reason> {
    let oid = my_database();
    let database = shared.database(oid);
    match database {
        None => {
            shared.announce(oid);
            if shared.is_launcher_late() {
                return Err(Reason::NoRoom);
            }
        }
        Some(database) => {
            if database.serving() == Serving::NoRoom {
                shared.announce(oid);
                return Err(Reason::NoRoom);
            }
            if database.late.load(Relaxed) {
                database.worker.wake();
                return Err(Reason::Late);
            }
        }
    }
    let Some(request) = shared.queue(start) else {
        if let Some(database) = database {
            database.worker.wake();
        }
        return Err(Reason::QueueFull);
    };
    // Before the wait, since an error may end it when the worker has already committed.
    transaction::remember_bound_start(start.xid, start.subxid);
    transaction::set_waiting(Some(request));
    match database {
        Some(database) => database.worker.wake(),
        None => shared.launcher().wake(),
    }
    let timeout = settings::worker_timeout();
    let answer = wait(request, timeout);
    transaction::set_waiting(None);
    match answer {
        Answer::Done(committed_at) => Ok(committed_at),
        Answer::Declined(code) => Err(Reason::from_code(code).unwrap_or_else(|| {
            let error = shared.database(oid).map(|database| database.last_error.get());
            Reason::Failed(error.unwrap_or_default())
        })),
        // It is at work, though slow.
        Answer::Abandoned => Err(Reason::Late),
        Answer::None => {
            match shared.database(oid) {
                Some(database) if timeout >= LATE_AFTER => {
                    database.late.store(true, Relaxed);
                    database.worker.wake();
                }
                None if timeout >= LATE_AFTER => shared.set_launcher_late(true),
                _ => {}
            }
            Err(Reason::Late)
        }
    }
}

/// What came of a request.
enum Answer {
    /// It is recorded, by a commit that ends there in the log.
    Done(u64),
    /// With the reason's code.
    Declined(u32),
    /// The worker had taken it, and will not record it.
    Abandoned,
    /// Nothing in time, and nothing will.
    None,
}

/// How often it is looked whether the worker has committed a start, where its wake-up was missed.
const COMMIT_WAIT: Duration = Duration::from_millis(10);

/// Waits for the answer to a request, and frees it or leaves it to the worker.
fn wait(request: &Request, timeout: Duration) -> Answer {
    let deadline = Instant::now() + timeout;
    loop {
        if request.is(Progress::Done) {
            // Whoever answered has written it before; another's request may be there once it is free.
            let committed_at = request.committed_at();
            request.advance(Progress::Done, Progress::Free);
            return Answer::Done(committed_at);
        }
        if request.is(Progress::Declined) {
            // Whoever declined it has written the reason before.
            let reason = request.reason.load(Relaxed);
            request.advance(Progress::Declined, Progress::Free);
            return Answer::Declined(reason);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            wait_for_latch(left);
        } else if request.is(Progress::Committing) {
            // What is being committed can't be given up.
            wait_for_latch(COMMIT_WAIT);
        } else if request.advance(Progress::Queued, Progress::Free) {
            return Answer::None;
        } else if request.advance(Progress::Taken, Progress::Abandoned) {
            return Answer::Abandoned;
        }
    }
}

/// Sleeps until somebody wakes this backend, or for `time`; an interrupt ends it with its error.
pub fn wait_for_latch(time: Duration) {
    let milliseconds = time.as_millis().clamp(1, 1_000);
    // SAFETY: the latch is this process's own; interrupts are checked where an error may be raised.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH).cast_signed(),
            std::ffi::c_long::try_from(milliseconds).unwrap_or(1_000),
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pgrx::check_for_interrupts!();
    }
}
