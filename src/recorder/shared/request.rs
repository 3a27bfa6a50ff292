//! Starts that backends ask the workers to record.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64};

use pgrx::pg_sys;

use super::process::{Process, my_database};
use super::{Shared, claim, requests_offset, shared};

/// What a backend asks a worker to record.
#[repr(C)]
pub struct Request {
    state: AtomicU32,
    database: AtomicU32,
    /// Who waits for it.
    pub waiting: Process,
    /// Why it was declined.
    pub reason: AtomicU32,
    execution_id: AtomicI64,
    loader_id: AtomicI64,
    start: AtomicI64,
    xid: AtomicU64,
    subxid: AtomicU64,
    check_loader: AtomicBool,
    notify: AtomicBool,
    /// Where the worker's commit ends in the log.
    committed_at: AtomicU64,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Progress {
    /// The entry is free.
    Free = 0,
    /// A backend is writing it.
    Filling,
    /// It waits for the worker.
    Queued,
    /// The worker has it.
    Taken,
    /// The worker is about to commit it, or already has.
    Committing,
    /// It is recorded.
    Done,
    /// It is not, and won't be.
    Declined,
    /// Nobody waits any more, and the worker will not commit it.
    Abandoned,
    /// Nobody waits any more; what the worker records stays.
    Unattended,
}

/// The start of an execution, as a request carries it.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// The execution's id.
    pub execution_id: i64,
    /// The loader's id.
    pub loader_id: i64,
    /// When it started, in PostgreSQL's microseconds.
    pub start: i64,
    /// The transaction that started it.
    pub xid: u64,
    /// The subtransaction that started it; 0 where it was in none.
    pub subxid: u64,
    /// Whether the worker must see that the loader's row is committed.
    pub check_loader: bool,
    /// Whether the start is to be notified.
    pub notify: bool,
}

impl Request {
    /// Whether it stands at `progress`.
    pub fn is(&self, progress: Progress) -> bool {
        self.state.load(Acquire) == progress as u32
    }

    /// Whether a worker has it, or had it, and has not answered.
    pub fn is_taken(&self) -> bool {
        [Progress::Taken, Progress::Committing, Progress::Abandoned, Progress::Unattended]
            .into_iter()
            .any(|progress| self.is(progress))
    }

    /// Moves it from `from` to `to`, unless another process has moved it.
    pub fn advance(&self, from: Progress, to: Progress) -> bool {
        self.state.compare_exchange(from as u32, to as u32, AcqRel, Acquire).is_ok()
    }

    /// Its database.
    pub fn database(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.database.load(Relaxed))
    }

    /// The start it is about.
    pub fn start(&self) -> Start {
        Start {
            execution_id: self.execution_id.load(Relaxed),
            loader_id: self.loader_id.load(Relaxed),
            start: self.start.load(Relaxed),
            xid: self.xid.load(Relaxed),
            subxid: self.subxid.load(Relaxed),
            check_loader: self.check_loader.load(Relaxed),
            notify: self.notify.load(Relaxed),
        }
    }

    /// Takes it for `database`; not where it is another's by now.
    pub fn take(&self, database: pg_sys::Oid) -> bool {
        if !self.advance(Progress::Queued, Progress::Taken) {
            return false;
        }
        self.database() == database || {
            // It was freed and used again for another database just now: its caller may even have given it up
            // meanwhile, and its own worker have passed it over.
            if !self.advance(Progress::Taken, Progress::Queued) {
                self.decline(0);
            } else if let Some(own) = shared().and_then(|shared| shared.database(self.database())) {
                own.worker.wake();
            }
            false
        }
    }

    /// The worker is about to commit it; false where its caller has given it up.
    pub fn begin_commit(&self) -> bool {
        self.advance(Progress::Taken, Progress::Committing)
    }

    /// The commit has failed: the worker may try again.
    pub fn undo_commit(&self) {
        self.advance(Progress::Committing, Progress::Taken);
    }

    /// Frees it where its caller has given it up; whether that is so.
    pub fn forget_abandoned(&self) -> bool {
        self.advance(Progress::Abandoned, Progress::Free)
    }

    /// Answers whoever waits that it is recorded by a commit that ends at `committed_at` in the log, and that
    /// may not be on disk yet; false where nobody waits any more.
    pub fn answer(&self, committed_at: u64) -> bool {
        self.committed_at.store(committed_at, Relaxed);
        let waiting = self.advance(Progress::Committing, Progress::Done);
        if waiting {
            self.waiting.wake();
        } else {
            self.advance(Progress::Unattended, Progress::Free);
        }
        waiting
    }

    /// Where the commit that has recorded it ends in the log; of one that is done.
    pub fn committed_at(&self) -> u64 {
        self.committed_at.load(Relaxed)
    }

    /// Answers whoever waits that it is not recorded. Only who has taken it calls it.
    pub fn decline(&self, reason: u32) {
        self.reason.store(reason, Relaxed);
        if self.advance(Progress::Taken, Progress::Declined)
            || self.advance(Progress::Committing, Progress::Declined)
        {
            self.waiting.wake();
        } else if !self.advance(Progress::Abandoned, Progress::Free) {
            self.advance(Progress::Unattended, Progress::Free);
        }
    }

    /// Gives it up on behalf of whoever waits: an error ends the wait, and cannot be failed by this.
    pub fn give_up(&self) {
        let ways = [
            (Progress::Queued, Progress::Free),
            (Progress::Taken, Progress::Abandoned),
            (Progress::Committing, Progress::Unattended),
            (Progress::Done, Progress::Free),
            (Progress::Declined, Progress::Free),
        ];
        // Whoever takes it by mistake puts it back, so it may stand where it was just not found.
        while ways.iter().any(|&(from, _)| self.is(from))
            && !ways.iter().any(|&(from, to)| self.advance(from, to))
        {}
    }
}

impl Shared {
    fn requests(self) -> &'static [Request] {
        // SAFETY: lay_out() has put that many initialized entries there.
        unsafe {
            let offset = requests_offset(self.0.databases);
            std::slice::from_raw_parts(self.part(offset).cast(), self.0.queue_size)
        }
    }

    /// Queues a start for the worker of the current database; `None` where the queue is full.
    pub fn queue(self, start: &Start) -> Option<&'static Request> {
        let request = claim(self.requests(), &self.0.next_request, |request| {
            request.advance(Progress::Free, Progress::Filling)
        })?;
        request.database.store(my_database().to_u32(), Relaxed);
        request.waiting.set_to_me();
        request.reason.store(0, Relaxed);
        request.execution_id.store(start.execution_id, Relaxed);
        request.loader_id.store(start.loader_id, Relaxed);
        request.start.store(start.start, Relaxed);
        request.xid.store(start.xid, Relaxed);
        request.subxid.store(start.subxid, Relaxed);
        request.check_loader.store(start.check_loader, Relaxed);
        request.notify.store(start.notify, Relaxed);
        request.advance(Progress::Filling, Progress::Queued);
        Some(request)
    }

    /// The requests of a database that are in use.
    pub fn requests_of(self, oid: pg_sys::Oid) -> impl Iterator<Item = &'static Request> {
        self.requests().iter().filter(move |request| {
            !request.is(Progress::Free)
                && !request.is(Progress::Filling)
                && request.database() == oid
        })
    }

    /// Every request that waits for a worker.
    pub fn queued(self) -> impl Iterator<Item = &'static Request> {
        self.requests().iter().filter(|request| request.is(Progress::Queued))
    }
}
