//! What a backend remembers about its current transaction, and does at its end.
//!
//! The callbacks that run when a transaction has committed or aborted must not fail: an error there
//! would stop the server. They allocate nothing and call nothing that can fail; LWLocks may be
//! taken. What can fail is done before the commit.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::mem::ManuallyDrop;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, SubTransactionId, SubXactEvent, XactEvent};
use pgrx::{PgLogLevel, PgSqlErrorCode, function_name, pg_guard};

use super::error_capture;
use super::pending_notify::PendingNotifies;
use crate::history::prepared_changes;
use crate::model::event;
use crate::model::execution::Status;
use crate::pg::xact::{self, my_database};
use crate::pg::{bgworker, notify};
use crate::shmem::event_queue::{self, Batch};
use crate::shmem::start_queue::{self, RequestId};
use crate::shmem::{workers, xact_reports};

/// An autonomous start inside a subtransaction.
struct WatchedSubtransaction {
    /// The subtransaction that it now belongs to.
    subtransaction: SubTransactionId,
    /// The one that it was made in.
    subxid: u64,
}

/// What is remembered about the current transaction.
struct Current {
    /// Its id, if it has made autonomous starts; else 0.
    watched_xid: Cell<u64>,
    // Never dropped: the server still logs, and so calls back, when a process has run its
    // destructors.
    subtransactions: RefCell<ManuallyDrop<Vec<WatchedSubtransaction>>>,
    /// The start that the backend waits for.
    waits_for: Cell<Option<RequestId>>,
    events: RefCell<PendingNotifies>,
    /// Whether the events so far have been made ready for the commit.
    is_ending: Cell<bool>,
    /// The events in the queue, until the transaction ends.
    batch: Cell<Option<Batch>>,
    /// Whether changes were written that are emitted after COMMIT PREPARED.
    has_prepared_changes: Cell<bool>,
    /// Databases to announce to the launcher when it commits.
    announce: [Cell<pg_sys::Oid>; 4],
    /// Whether the extension in this database was changed.
    extension_changed: Cell<bool>,
    /// Whether it has closed databases to workers.
    has_closed_database: Cell<bool>,
}

thread_local! {
    static CURRENT: Current = const { Current {
        watched_xid: Cell::new(0),
        subtransactions: RefCell::new(ManuallyDrop::new(Vec::new())),
        waits_for: Cell::new(None),
        events: const { RefCell::new(PendingNotifies::new()) },
        is_ending: Cell::new(false),
        batch: Cell::new(None),
        has_prepared_changes: Cell::new(false),
        announce: [const { Cell::new(pg_sys::InvalidOid) }; 4],
        extension_changed: Cell::new(false),
        has_closed_database: Cell::new(false),
    } };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Committed,
    Aborted,
    Prepared,
}

/// Registers the callbacks. Called once, by the postmaster: backends inherit them.
pub fn install() {
    // SAFETY: runs in the postmaster while it preloads libraries; the callbacks are static.
    unsafe {
        pg_sys::RegisterXactCallback(Some(on_transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_subtransaction), std::ptr::null_mut());
    }
}

/// Remembers that transaction `xid` (and its subtransaction `subxid`, or 0) makes an autonomous
/// start, which the backend waits for.
pub fn begin_autonomous_start(xid: u64, subxid: u64, request: RequestId) {
    error_capture::begin();
    CURRENT.with(|current| {
        current.watched_xid.set(xid);
        current.waits_for.set(Some(request));
        if subxid != 0
            && let Ok(mut watched) = current.subtransactions.try_borrow_mut()
            && watched.last().is_none_or(|last| last.subxid != subxid)
        {
            let subtransaction = xact::current_subtransaction();
            watched.push(WatchedSubtransaction { subtransaction, subxid });
        }
    });
}

/// The backend has stopped waiting.
pub fn end_autonomous_start() {
    CURRENT.with(|current| current.waits_for.set(None));
}

/// Adds an event, for the worker to emit when the current transaction has committed; false if the
/// transaction must emit it itself.
pub fn add_event(payload: &str, execution_id: i64, status: Status) -> bool {
    if !workers::is_preloaded() || bgworker::is_worker() {
        return false;
    }
    CURRENT.with(|current| {
        !current.is_ending.get()
            && current.events.try_borrow_mut().is_ok_and(|mut events| {
                events.add(payload, execution_id, status, xact::current_subtransaction())
            })
    })
}

/// Announces a database to the launcher when the current transaction commits.
pub fn announce_at_commit(database: pg_sys::Oid) {
    CURRENT.with(|current| {
        if let Some(free) = current.announce.iter().find(|entry| entry.get() == pg_sys::InvalidOid)
        {
            free.set(database);
        }
    });
}

/// Has the worker check the extension in this database when the current transaction commits.
pub fn check_extension_at_commit() {
    CURRENT.with(|current| current.extension_changed.set(true));
}

/// Reopens the databases that this process has closed to workers when the current transaction ends.
pub fn reopen_databases_at_end() {
    CURRENT.with(|current| current.has_closed_database.set(true));
}

impl Current {
    fn stop_waiting(&self) {
        if let Some(request) = self.waits_for.take() {
            start_queue::with(|queue| queue.give_up(request));
        }
    }

    /// Reserves a batch in the queue, so that the commit need only publish it; emits the events in
    /// this transaction if the queue is full. Can fail.
    fn before_commit(&self) {
        self.is_ending.set(true);
        let Ok(events) = self.events.try_borrow() else { return };
        if events.is_empty() {
            return;
        }
        let database = my_database();
        // SAFETY: in a transaction.
        let xid = unsafe { pg_sys::GetTopTransactionIdIfAny() };
        let batch = workers::block(database, |worker| worker.is_running())
            .then(|| event_queue::with(|queue| queue.reserve(database, xid, events.payloads())))
            .flatten();
        match batch {
            Some(batch) => self.batch.set(Some(batch)),
            None => emit(events.payloads()),
        }
    }

    /// Writes the changes into a table, so that they are committed or rolled back with the prepared
    /// transaction. Can fail.
    fn before_prepare(&self) {
        self.is_ending.set(true);
        let Ok(events) = self.events.try_borrow() else { return };
        if events.is_empty() {
            return;
        }
        if let Err(error) = prepared_changes::insert(events.changes()) {
            ErrorReport::from(error).report(PgLogLevel::ERROR);
        }
        self.has_prepared_changes.set(true);
    }

    fn end(&self, end: End) {
        self.stop_waiting();
        let database = my_database();
        if let Some(batch) = self.batch.take() {
            if end == End::Committed {
                event_queue::with(|queue| queue.publish(batch));
                if !workers::events_published(database) {
                    event_queue::with(|queue| queue.drop_all(database));
                }
            } else {
                event_queue::with(|queue| queue.free(batch));
            }
        }
        if self.has_prepared_changes.take() {
            workers::block(database, |worker| worker.prepared_changes = true);
        }
        if let Ok(mut events) = self.events.try_borrow_mut() {
            events.clear();
        }
        self.is_ending.set(false);
        let xid = self.watched_xid.replace(0);
        if xid != 0 {
            if end == End::Aborted {
                error_capture::with(|error| report(xid, 0, error));
            }
            error_capture::end();
        }
        if let Ok(mut watched) = self.subtransactions.try_borrow_mut() {
            watched.clear();
        }
        if self.extension_changed.take() && end == End::Committed {
            workers::extension_changed(database);
        }
        for entry in &self.announce {
            let announced = entry.replace(pg_sys::InvalidOid);
            if announced != pg_sys::InvalidOid && end == End::Committed {
                workers::announce(announced);
            }
        }
        if self.has_closed_database.take() {
            workers::reopen_all();
        }
    }

    fn subtransaction_committed(&self, mine: SubTransactionId, parent: SubTransactionId) {
        if let Ok(mut events) = self.events.try_borrow_mut() {
            events.subtransaction_committed(mine, parent);
        }
        if let Ok(mut watched) = self.subtransactions.try_borrow_mut() {
            for start in watched.iter_mut().filter(|start| start.subtransaction == mine) {
                start.subtransaction = parent;
            }
        }
    }

    fn subtransaction_aborted(&self, mine: SubTransactionId) {
        self.stop_waiting();
        if let Ok(mut events) = self.events.try_borrow_mut() {
            events.subtransaction_aborted(mine);
        }
        if let Ok(mut watched) = self.subtransactions.try_borrow_mut() {
            let xid = self.watched_xid.get();
            error_capture::with(|error| {
                if !error.is_empty() {
                    let aborted = watched.iter().filter(|start| start.subtransaction == mine);
                    aborted.for_each(|start| report(xid, start.subxid, error));
                }
            });
            watched.retain(|start| start.subtransaction != mine);
        }
    }
}

/// Reports to the worker that a transaction, or its subtransaction `subxid`, was rolled back.
fn report(xid: u64, subxid: u64, error: &[u8]) {
    xact_reports::with(|reports| reports.post(my_database(), xid, subxid, error));
    workers::wake(my_database());
}

/// Emits payloads by NOTIFY when the current transaction, which is about to commit, does; drops
/// them with a WARNING if PostgreSQL's queue has no room, which would fail the commit. Can fail.
fn emit(payloads: &[u8]) {
    if notify::has_room(event::split(payloads).map(<[u8]>::len)) {
        event::split(payloads).for_each(notify::emit);
        return;
    }
    let count = event::split(payloads).count();
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        format!("{count} events of this transaction are not notified"),
        function_name!(),
    )
    .set_detail("The notification queue is full.")
    .set_hint("A session that listens is in a transaction and keeps the queue from being emptied: the server log names it.")
    .report(PgLogLevel::WARNING);
}

#[pg_guard]
extern "C-unwind" fn on_transaction(event: XactEvent::Type, _argument: *mut c_void) {
    use XactEvent::{
        XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE,
        XACT_EVENT_PREPARE,
    };
    CURRENT.with(|current| match event {
        XACT_EVENT_PRE_COMMIT => current.before_commit(),
        XACT_EVENT_PRE_PREPARE => current.before_prepare(),
        XACT_EVENT_COMMIT => current.end(End::Committed),
        XACT_EVENT_ABORT => current.end(End::Aborted),
        XACT_EVENT_PREPARE => current.end(End::Prepared),
        _ => {}
    });
}

#[pg_guard]
extern "C-unwind" fn on_subtransaction(
    event: SubXactEvent::Type,
    mine: SubTransactionId,
    parent: SubTransactionId,
    _argument: *mut c_void,
) {
    CURRENT.with(|current| match event {
        // The error that made a client roll back to a savepoint is not the cause of a later
        // rollback.
        SubXactEvent::SUBXACT_EVENT_START_SUB => error_capture::clear(),
        SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => current.subtransaction_committed(mine, parent),
        SubXactEvent::SUBXACT_EVENT_ABORT_SUB => current.subtransaction_aborted(mine),
        _ => {}
    });
}
