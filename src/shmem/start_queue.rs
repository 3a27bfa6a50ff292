//! Starts that backends hand over to the worker of their database. README.md draws the states.

use pgrx::pg_sys;

use crate::model::fallback::Reason;
use crate::pg::latch::ProcLatch;
use crate::pg::segment::{Contents, Segment};

static QUEUE: Segment<Header, Request> = Segment::new(c"loader_history start queue");

/// How many requests are not free.
pub struct Header {
    used: usize,
}

/// A start that a backend hands over.
pub struct Request {
    state: State,
    database: pg_sys::Oid,
    caller: Option<ProcLatch>,
    start: Start,
}

pub type Queue<'a> = Contents<'a, Header, Request>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The place is free.
    Free,
    /// The request waits for the worker.
    Queued,
    /// The worker writes the start, and has not begun to commit it.
    Taken,
    /// The worker commits it under this execution id: it cannot be abandoned any more.
    Committing(i64),
    /// It is committed.
    Done(Recorded),
    /// It is not recorded, and will not be.
    Declined(Reason),
    /// The caller has continued, and the worker will not commit it.
    Abandoned,
    /// An error has ended the caller's wait while the worker committed it.
    Orphaned(i64),
}

/// The start of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub loader_id: i64,
    /// When it started, in PostgreSQL's microseconds.
    pub time: i64,
    /// The transaction that started it.
    pub xid: u64,
    /// The subtransaction that started it; 0 for none.
    pub subxid: u64,
    /// Whether the worker must verify that the loader's row is committed.
    pub check_loader: bool,
    /// Whether the session wants events.
    pub notify: bool,
}

/// A start that the worker has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    pub execution_id: i64,
    /// The LSN at which the worker's commit ends, up to which the WAL may not be flushed yet.
    pub commit_lsn: u64,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(usize);

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Answer {
    /// Nothing yet.
    Wait,
    /// The worker has committed it.
    Recorded(Recorded),
    /// It is not recorded.
    Declined(Reason),
    /// It was still queued when the time was up.
    #[default]
    NotTaken,
    /// The worker had taken it when the time was up, and will not commit it.
    Abandoned,
}

pub fn request(count: usize) {
    QUEUE.request(count);
}

pub fn initialize(count: usize) {
    QUEUE.initialize(count, Header { used: 0 }, |_| Request::FREE);
}

/// Calls `work` with the queue, under the lock.
pub fn with<R: Default>(work: impl FnOnce(&mut Queue<'_>) -> R) -> R {
    QUEUE.with(work).unwrap_or_default()
}

/// Answers a request that the worker has committed; false if no caller waits any more.
pub fn answer(id: RequestId, recorded: Recorded) -> bool {
    with(|queue| queue.answer(id, recorded)).inspect(|caller| caller.set()).is_some()
}

/// Declines a request.
pub fn decline(id: RequestId, reason: Reason) {
    if let Some(caller) = with(|queue| queue.decline(id, reason)) {
        caller.set();
    }
}

/// Declines the requests that wait for a worker of `database`.
pub fn decline_queued(database: pg_sys::Oid, reason: Reason) {
    with(|queue| queue.take(database)).into_iter().for_each(|(id, _)| decline(id, reason));
}

impl Request {
    const FREE: Self = Self {
        state: State::Free,
        database: pg_sys::InvalidOid,
        caller: None,
        start: Start {
            loader_id: 0,
            time: 0,
            xid: 0,
            subxid: 0,
            check_loader: false,
            notify: false,
        },
    };
}

impl Queue<'_> {
    /// The requests that are not free. They lie in front, since the first free place is taken.
    fn used(&self) -> impl Iterator<Item = (RequestId, &Request)> {
        let places = self.entries.iter().enumerate();
        places
            .filter(|(_, request)| request.state != State::Free)
            .map(|(place, request)| (RequestId(place), request))
            .take(self.header.used)
    }

    fn used_by(&self, database: pg_sys::Oid, state: State) -> Vec<RequestId> {
        self.used()
            .filter(|(_, request)| request.database == database && request.state == state)
            .map(|(id, _)| id)
            .collect()
    }

    /// Queues a start for the worker of `database`; `None` if the queue is full.
    pub fn enqueue(
        &mut self,
        database: pg_sys::Oid,
        caller: Option<ProcLatch>,
        start: Start,
    ) -> Option<RequestId> {
        let place = self.entries.iter().position(|request| request.state == State::Free)?;
        self.entries[place] = Request { state: State::Queued, database, caller, start };
        self.header.used += 1;
        Some(RequestId(place))
    }

    /// Whether a request waits for the worker of `database`.
    pub fn is_any(&self, database: pg_sys::Oid) -> bool {
        !self.used_by(database, State::Queued).is_empty()
    }

    /// The databases that requests wait in.
    pub fn waiting_databases(&self) -> Vec<pg_sys::Oid> {
        let queued = self.used().filter(|(_, request)| request.state == State::Queued);
        queued.map(|(_, request)| request.database).collect()
    }

    /// How many requests wait for the worker of `database`, or for its commit.
    pub fn depth(&self, database: pg_sys::Oid) -> usize {
        let waits = |state| matches!(state, State::Queued | State::Taken | State::Committing(_));
        self.used().filter(|(_, one)| one.database == database && waits(one.state)).count()
    }

    /// Frees a request if its caller has abandoned it; whether it has.
    pub fn free_abandoned(&mut self, id: RequestId) -> bool {
        let is_abandoned = self.entries[id.0].state == State::Abandoned;
        if is_abandoned {
            self.free(id);
        }
        is_abandoned
    }

    fn free(&mut self, id: RequestId) {
        self.entries[id.0].state = State::Free;
        self.header.used -= 1;
    }

    /// The commit of a start has failed: it is taken, as before.
    pub fn undo_commit(&mut self, id: RequestId) {
        let state = &mut self.entries[id.0].state;
        *state = match *state {
            State::Committing(_) => State::Taken,
            State::Orphaned(_) => State::Abandoned,
            state => state,
        };
    }

    /// The answer to a request, whose place is free once there is one. `time_is_up` abandons it
    /// unless it is being committed.
    pub fn poll(&mut self, id: RequestId, time_is_up: bool) -> Answer {
        let answer = match self.entries[id.0].state {
            State::Done(recorded) => Answer::Recorded(recorded),
            State::Declined(reason) => Answer::Declined(reason),
            State::Queued if time_is_up => Answer::NotTaken,
            State::Taken if time_is_up => {
                self.entries[id.0].state = State::Abandoned;
                return Answer::Abandoned;
            }
            _ => return Answer::Wait,
        };
        self.free(id);
        answer
    }

    /// Abandons a request, since an error has ended the wait for it.
    pub fn give_up(&mut self, id: RequestId) {
        match self.entries[id.0].state {
            State::Taken => self.entries[id.0].state = State::Abandoned,
            State::Committing(execution_id) => {
                self.entries[id.0].state = State::Orphaned(execution_id);
            }
            State::Queued | State::Done(_) | State::Declined(_) => self.free(id),
            State::Free | State::Abandoned | State::Orphaned(_) => {}
        }
    }

    /// The worker takes the requests to `database`.
    pub fn take(&mut self, database: pg_sys::Oid) -> Vec<(RequestId, Start)> {
        let ids = self.used_by(database, State::Queued);
        for id in &ids {
            self.entries[id.0].state = State::Taken;
        }
        ids.into_iter().map(|id| (id, self.entries[id.0].start)).collect()
    }

    /// The requests that a worker of `database` that has exited had only taken, and those that it
    /// was committing, with their loaders and execution ids.
    pub fn take_over(
        &mut self,
        database: pg_sys::Oid,
    ) -> (Vec<RequestId>, Vec<(RequestId, i64, i64)>) {
        for id in self.used_by(database, State::Abandoned) {
            self.free(id);
        }
        let used = self.used().filter(|(_, request)| request.database == database);
        let committing = used
            .filter_map(|(id, request)| match request.state {
                State::Committing(execution_id) | State::Orphaned(execution_id) => {
                    Some((id, request.start.loader_id, execution_id))
                }
                _ => None,
            })
            .collect();
        (self.used_by(database, State::Taken), committing)
    }

    /// The worker is about to commit these starts under these execution ids; false if a caller has
    /// abandoned one.
    pub fn begin_commit(&mut self, ids: &[(RequestId, i64)]) -> bool {
        let all = ids.iter().all(|(id, _)| self.entries[id.0].state == State::Taken);
        if all {
            for &(id, execution_id) in ids {
                self.entries[id.0].state = State::Committing(execution_id);
            }
        }
        all
    }

    /// The caller to wake.
    fn answer(&mut self, id: RequestId, recorded: Recorded) -> Option<ProcLatch> {
        if matches!(self.entries[id.0].state, State::Orphaned(_)) {
            self.free(id);
            return None;
        }
        self.entries[id.0].state = State::Done(recorded);
        self.entries[id.0].caller
    }

    /// The caller to wake.
    fn decline(&mut self, id: RequestId, reason: Reason) -> Option<ProcLatch> {
        let request = &mut self.entries[id.0];
        match request.state {
            State::Queued | State::Taken | State::Committing(_) => {
                request.state = State::Declined(reason);
                return request.caller;
            }
            State::Abandoned | State::Orphaned(_) => self.free(id),
            State::Free | State::Done(_) | State::Declined(_) => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATABASE: pg_sys::Oid = pg_sys::Oid::from_u32(5);
    const RECORDED: Recorded = Recorded { execution_id: 17, commit_lsn: 99 };

    fn with_queue(test: impl FnOnce(&mut Queue<'_>, &mut dyn FnMut(&mut Queue<'_>) -> RequestId)) {
        let mut entries = [const { Request::FREE }; 4];
        let mut header = Header { used: 0 };
        let mut queue = Queue { header: &mut header, entries: &mut entries };
        let mut enqueue = |queue: &mut Queue<'_>| {
            queue.enqueue(DATABASE, None, Request::FREE.start).expect("a free place")
        };
        test(&mut queue, &mut enqueue);
        assert_eq!(queue.header.used, 0, "a place is lost");
    }

    fn ids(taken: &[(RequestId, Start)]) -> Vec<RequestId> {
        taken.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn a_start_is_recorded_or_given_up_and_never_both() {
        with_queue(|queue, enqueue| {
            // Committed before the time is up.
            let id = enqueue(queue);
            assert_eq!(queue.poll(id, false), Answer::Wait);
            assert_eq!(ids(&queue.take(DATABASE)), [id]);
            assert!(queue.begin_commit(&[(id, 17)]));
            assert_eq!(queue.poll(id, true), Answer::Wait, "it can't be given up any more");
            queue.answer(id, RECORDED);
            assert_eq!(queue.poll(id, true), Answer::Recorded(RECORDED));
            // Given up before.
            let id = enqueue(queue);
            queue.take(DATABASE);
            assert_eq!(queue.poll(id, true), Answer::Abandoned);
            assert!(!queue.begin_commit(&[(id, 17)]));
            assert!(queue.free_abandoned(id));
            // Not taken.
            let id = enqueue(queue);
            assert_eq!(queue.poll(id, true), Answer::NotTaken);
            assert_eq!(queue.take(DATABASE), []);
        });
    }

    #[test]
    fn one_that_is_given_up_keeps_the_others_from_committing() {
        with_queue(|queue, enqueue| {
            let (one, other) = (enqueue(queue), enqueue(queue));
            queue.take(DATABASE);
            queue.give_up(other);
            assert!(!queue.begin_commit(&[(one, 1), (other, 2)]));
            assert!(queue.free_abandoned(other));
            assert!(queue.begin_commit(&[(one, 1)]));
            queue.undo_commit(one);
            queue.decline(one, Reason::TableLocked);
            assert_eq!(queue.poll(one, false), Answer::Declined(Reason::TableLocked));
        });
    }

    #[test]
    fn an_error_in_the_wait_orphans_what_is_being_committed() {
        with_queue(|queue, enqueue| {
            let id = enqueue(queue);
            queue.take(DATABASE);
            assert!(queue.begin_commit(&[(id, 17)]));
            queue.give_up(id);
            queue.answer(id, RECORDED);
            for free in [false, true] {
                let id = enqueue(queue);
                if free {
                    queue.take(DATABASE);
                    queue.decline(id, Reason::Failed);
                }
                queue.give_up(id);
            }
        });
    }

    #[test]
    fn another_worker_takes_over_what_was_being_committed() {
        with_queue(|queue, enqueue| {
            let (queued, taken, committing) = (enqueue(queue), enqueue(queue), enqueue(queue));
            for id in [taken, committing] {
                queue.entries[id.0].state = State::Taken;
            }
            assert!(queue.begin_commit(&[(committing, 17)]));
            assert_eq!(queue.take_over(DATABASE), (vec![taken], vec![(committing, 0, 17)]));
            queue.decline(taken, Reason::Late);
            assert_eq!(queue.poll(taken, false), Answer::Declined(Reason::Late));
            queue.answer(committing, RECORDED);
            assert_eq!(queue.poll(committing, false), Answer::Recorded(RECORDED));
            assert_eq!(queue.poll(queued, false), Answer::Wait);
            assert_eq!(queue.poll(queued, true), Answer::NotTaken);
        });
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        with_queue(|queue, enqueue| {
            let all = [enqueue(queue), enqueue(queue), enqueue(queue), enqueue(queue)];
            assert!(queue.enqueue(DATABASE, None, Request::FREE.start).is_none());
            all.into_iter().for_each(|id| queue.give_up(id));
        });
    }
}
