//! What a backend remembers of the starts in its current transaction, and tells the worker at its end.
//!
//! The callbacks that run when a transaction has committed or aborted must not fail: an error there would
//! stop the server. They allocate nothing, take no lock and call nothing that can fail. What may fail is
//! done before the commit.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::mem::ManuallyDrop;

use pgrx::pg_guard;
use pgrx::pg_sys::{self, SubTransactionId, SubXactEvent, XactEvent};

use super::gathered::{Gathered, emit_all, emit_what_fits};
use super::shared::{Batch, PreparedEvents, Request, Serving, Shared, my_database, shared};
use super::{last_error, prepared_event, worker};

/// A durable start inside a subtransaction.
struct BoundSubtransaction {
    /// The subtransaction that it now belongs to.
    subtransaction: SubTransactionId,
    /// The one that it was made in.
    subxid: u64,
}

/// What is remembered of the current transaction.
struct Current {
    /// Its id, where it has durable starts; else 0.
    xid: Cell<u64>,
    /// The request that the backend waits for.
    waiting: Cell<Option<&'static Request>>,
    // Never dropped: the server still logs, and so asks, when a process has run its destructors.
    bound: RefCell<ManuallyDrop<Vec<BoundSubtransaction>>>,
    events: RefCell<Gathered>,
    /// Whether the events gathered so far have been prepared for the commit.
    is_ending: Cell<bool>,
    /// The events, as the worker gets them where the transaction commits.
    batch: Cell<Option<Batch>>,
    /// Whether its events wait in the database for a COMMIT PREPARED.
    prepared_events: Cell<bool>,
    /// Databases to announce when it commits.
    announce: [Cell<u32>; 4],
    /// Whether the extension in this database was changed.
    extension_changed: Cell<bool>,
    /// Whether it keeps workers out of a database.
    bars: Cell<bool>,
}

thread_local! {
    static CURRENT: Current = const { Current {
        xid: Cell::new(0),
        waiting: Cell::new(None),
        bound: RefCell::new(ManuallyDrop::new(Vec::new())),
        events: const { RefCell::new(Gathered::new()) },
        is_ending: Cell::new(false),
        batch: Cell::new(None),
        prepared_events: Cell::new(false),
        announce: [const { Cell::new(0) }; 4],
        extension_changed: Cell::new(false),
        bars: Cell::new(false),
    } };
}

/// Registers the callbacks. Called once, by the postmaster: backends inherit them.
pub fn install() {
    // SAFETY: runs in the postmaster while it preloads libraries; the callbacks are static.
    unsafe {
        pg_sys::RegisterXactCallback(Some(on_transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_subtransaction), std::ptr::null_mut());
    }
}

/// Whether the current transaction has started executions, so that an error in it matters.
pub fn is_watched() -> bool {
    CURRENT.with(|current| current.xid.get() != 0)
}

/// Remembers that transaction `xid` (and its subtransaction `subxid`, or 0) starts an execution through
/// the worker.
pub fn remember_bound_start(xid: u64, subxid: u64) {
    CURRENT.with(|current| {
        current.xid.set(xid);
        if subxid != 0
            && let Ok(mut bound) = current.bound.try_borrow_mut()
        {
            // SAFETY: called in a transaction.
            let subtransaction = unsafe { pg_sys::GetCurrentSubTransactionId() };
            if bound.last().is_none_or(|last| last.subxid != subxid) {
                bound.push(BoundSubtransaction { subtransaction, subxid });
            }
        }
    });
}

/// Keeps an event's payload for the worker to emit when the current transaction has committed; false where
/// the transaction must do it itself.
pub fn gather(payload: &str) -> bool {
    if shared().is_none() || worker::is_worker() {
        return false;
    }
    CURRENT.with(|current| {
        // SAFETY: called in a transaction.
        let subtransaction = unsafe { pg_sys::GetCurrentSubTransactionId() };
        !current.is_ending.get()
            && current
                .events
                .try_borrow_mut()
                .is_ok_and(|mut events| events.add(payload, subtransaction))
    })
}

/// Remembers the request that the backend waits for, so that it is given up where an error ends the
/// wait, and `None` when the wait is over.
pub fn set_waiting(request: Option<&'static Request>) {
    CURRENT.with(|current| current.waiting.set(request));
}

/// Announces a database to the launcher when the current transaction commits.
pub fn announce_at_commit(database: pg_sys::Oid) {
    CURRENT.with(|current| {
        if let Some(free) = current.announce.iter().find(|entry| entry.get() == 0) {
            free.set(database.to_u32());
        }
    });
}

/// Has a worker look at the extension in this database when the current transaction commits.
pub fn extension_changes() {
    CURRENT.with(|current| current.extension_changed.set(true));
}

/// Lifts the bars of this process when the current transaction ends.
pub fn lift_bars_at_end() {
    CURRENT.with(|current| current.bars.set(true));
}

impl Current {
    /// Gives up the request that an error interrupted the wait for.
    fn stop_waiting(&self) {
        if let Some(request) = self.waiting.take() {
            request.give_up();
        }
    }

    /// Has the events ready for the worker, so that the commit need only tell it; where it can't take
    /// them, has the transaction notify by itself. May fail.
    fn before_commit(&self, shared: Shared) {
        self.is_ending.set(true);
        let Ok(events) = self.events.try_borrow() else { return };
        if events.is_empty() {
            return;
        }
        let oid = my_database();
        // SAFETY: in a transaction.
        let xid = unsafe { pg_sys::GetTopTransactionIdIfAny() };
        let batch = shared
            .database(oid)
            .filter(|database| database.serving() == Serving::Running)
            .and_then(|database| {
                shared.events().reserve(&database.events, oid, xid, events.payloads())
            });
        match batch {
            Some(batch) => self.batch.set(Some(batch)),
            None => emit_what_fits(events.payloads()),
        }
    }

    /// Writes the events into the database, to share the fate of the prepared transaction. May fail.
    fn before_prepare(&self, shared: Shared) {
        self.is_ending.set(true);
        let Ok(events) = self.events.try_borrow() else { return };
        if events.is_empty() {
            return;
        }
        if prepared_event::write(events.payloads(), shared.events()) {
            self.prepared_events.set(true);
        } else {
            emit_all(events.payloads());
        }
    }

    /// Gives the events to the worker, or drops them.
    fn hand_over_events(&self, shared: Shared, committed: bool) {
        // Looked up only where there are events: this runs at the end of every transaction.
        let database = || shared.database(my_database());
        if let Some(batch) = self.batch.take() {
            match database() {
                Some(database) if committed => {
                    if shared.events().publish(&database.events, batch) {
                        database.worker.wake();
                    }
                }
                database => {
                    let batches = database.map(|database| &database.events);
                    shared.events().give_back(batches, batch);
                }
            }
        }
        if self.prepared_events.take()
            && let Some(database) = database()
        {
            database.note_prepared_events(PreparedEvents::Some);
        }
        if let Ok(mut events) = self.events.try_borrow_mut() {
            events.clear();
        }
        self.is_ending.set(false);
    }

    fn end(&self, shared: Shared, committed: bool, aborted: bool) {
        self.stop_waiting();
        self.hand_over_events(shared, committed);
        let xid = self.xid.replace(0);
        if aborted && xid != 0 {
            last_error::with(|text| shared.post(my_database(), xid, 0, text));
        }
        if let Ok(mut bound) = self.bound.try_borrow_mut() {
            bound.clear();
        }
        if self.extension_changed.take() && committed {
            if let Some(database) = shared.database(my_database()) {
                database.ask_to_check();
                database.worker.wake();
            }
            shared.announce(my_database());
        }
        for entry in &self.announce {
            let oid = entry.take();
            if committed && oid != 0 {
                shared.announce(pg_sys::Oid::from(oid));
            }
        }
        if self.bars.take() {
            shared.lift_bars();
        }
        last_error::forget();
    }

    fn subtransaction_committed(&self, mine: SubTransactionId, parent: SubTransactionId) {
        if let Ok(mut events) = self.events.try_borrow_mut() {
            events.subtransaction_committed(mine, parent);
        }
        if let Ok(mut bound) = self.bound.try_borrow_mut() {
            for start in bound.iter_mut().filter(|start| start.subtransaction == mine) {
                start.subtransaction = parent;
            }
        }
    }

    fn subtransaction_aborted(&self, shared: Shared, mine: SubTransactionId) {
        self.stop_waiting();
        if let Ok(mut events) = self.events.try_borrow_mut() {
            events.subtransaction_aborted(mine);
        }
        if let Ok(mut bound) = self.bound.try_borrow_mut() {
            let xid = self.xid.get();
            last_error::with(|text| {
                if !text.is_empty() {
                    for start in bound.iter().filter(|start| start.subtransaction == mine) {
                        let subxid = start.subxid;
                        shared.post(my_database(), xid, subxid, text);
                    }
                }
            });
            bound.retain(|start| start.subtransaction != mine);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_transaction(event: XactEvent::Type, _argument: *mut c_void) {
    use XactEvent::{
        XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE,
        XACT_EVENT_PREPARE,
    };
    let Some(shared) = shared() else { return };
    CURRENT.with(|current| match event {
        XACT_EVENT_PRE_COMMIT => current.before_commit(shared),
        XACT_EVENT_PRE_PREPARE => current.before_prepare(shared),
        XACT_EVENT_COMMIT => current.end(shared, true, false),
        XACT_EVENT_ABORT => current.end(shared, false, true),
        XACT_EVENT_PREPARE => current.end(shared, false, false),
        _ => {}
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_subtransaction(
    event: SubXactEvent::Type,
    mine: SubTransactionId,
    parent: SubTransactionId,
    _argument: *mut c_void,
) {
    let Some(shared) = shared() else { return };
    CURRENT.with(|current| match event {
        // An error that made a client roll back to a savepoint is over once it has done so.
        SubXactEvent::SUBXACT_EVENT_START_SUB => last_error::forget(),
        SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => current.subtransaction_committed(mine, parent),
        SubXactEvent::SUBXACT_EVENT_ABORT_SUB => current.subtransaction_aborted(shared, mine),
        _ => {}
    });
}
