//! The workers of the databases, the launcher, and the commands that keep workers out of a
//! database. README.md draws the states of a worker.

use pgrx::pg_sys;

use super::text::Text;
use crate::pg::latch::ProcLatch;
use crate::pg::segment::{Contents, Segment};
use crate::pg::xact::{clock_timestamp, my_pid};

/// Databases that can be announced, or closed to workers, at the same time.
const MAX_ANNOUNCED: usize = 64;

static WORKERS: Segment<Header, WorkerBlock> = Segment::new(c"loader_history workers");

/// The launcher, and the databases that have no worker.
struct Header {
    launcher: Option<ProcLatch>,
    /// A start found that the launcher is late to start a worker: further starts do not wait for
    /// it.
    launcher_is_late: bool,
    /// A prepared transaction was rolled back in this run of the server.
    rolled_back_prepared: bool,
    /// No transaction of the server's previous run has an id of this or higher; 0 until it is
    /// known.
    first_xid: u64,
    /// Databases that may have the extension, and no worker.
    announced: [pg_sys::Oid; MAX_ANNOUNCED],
    /// Databases that are closed to workers, and the processes that have closed them.
    closed: [(pg_sys::Oid, i32); MAX_ANNOUNCED],
}

/// The worker of a database. The block is free if the database is invalid.
#[derive(Clone)]
pub struct WorkerBlock {
    database: pg_sys::Oid,
    pub state: WorkerState,
    latch: Option<ProcLatch>,
    /// Its process id; 0 if there is no process.
    pub pid: i32,
    /// A start found that the worker is late: further starts do not wait for it.
    pub is_late: bool,
    /// The extension may have changed: the worker is to check.
    pub check_extension: bool,
    /// Events were published that the worker has not taken.
    pub has_events: bool,
    /// There may be rows in `loader_history.prepared_change`.
    pub prepared_changes: bool,
    /// Its last error; empty for none.
    pub last_error: Text,
    /// When, in PostgreSQL's microseconds; 0 for never.
    pub last_error_at: i64,
}

/// The state of a database's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// The block is unused.
    Unused,
    /// The server has no slot for another background worker.
    NoSlot,
    /// The launcher has started a worker.
    Starting,
    /// The worker runs.
    Running,
    /// The worker exited: the database does not have the extension.
    Exited,
    /// The worker ended, and the launcher starts another.
    Crashed,
}

/// Whether a start can be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// The worker takes it.
    Available,
    /// The launcher may start a worker, which then takes it.
    Announced,
    /// The server has no slot for a worker.
    NoSlot,
    /// The worker is late.
    Late,
}

type Workers<'a> = Contents<'a, Header, WorkerBlock>;

pub fn request(count: usize) {
    WORKERS.request(count);
}

pub fn initialize(count: usize) {
    let header = Header {
        launcher: None,
        launcher_is_late: false,
        rolled_back_prepared: false,
        first_xid: 0,
        announced: [pg_sys::InvalidOid; MAX_ANNOUNCED],
        closed: [(pg_sys::InvalidOid, 0); MAX_ANNOUNCED],
    };
    WORKERS.initialize(count, header, |_| WorkerBlock::UNUSED);
}

pub fn is_preloaded() -> bool {
    WORKERS.exists()
}

fn with<R>(work: impl FnOnce(&mut Workers<'_>) -> R) -> Option<R> {
    WORKERS.with(work)
}

/// Calls `work` with the block of `database`, if there is one, under the lock.
pub fn block<R: Default>(database: pg_sys::Oid, work: impl FnOnce(&mut WorkerBlock) -> R) -> R {
    with(|workers| workers.block(database).map(work)).flatten().unwrap_or_default()
}

// What sessions do

/// Whether a start in `database` can be handed over; announces the database if that needs the
/// launcher.
pub fn availability(database: pg_sys::Oid) -> Availability {
    with(|workers| {
        let block = workers.block(database).map(|block| (block.state, block.is_late));
        match block {
            Some((WorkerState::NoSlot, _)) => {
                workers.announce(database);
                Availability::NoSlot
            }
            Some((_, false)) => Availability::Available,
            Some((_, true)) => {
                workers.wake(database);
                Availability::Late
            }
            None if workers.announce(database) => Availability::NoSlot,
            None => Availability::Announced,
        }
    })
    .unwrap_or(Availability::NoSlot)
}

/// Wakes the worker of `database`, or the launcher if there is no worker. Cannot fail.
pub fn wake(database: pg_sys::Oid) {
    with(|workers| workers.wake(database));
}

/// Notes that the worker of `database`, or the launcher without which there is none, did not take a
/// start in time.
pub fn set_late(database: pg_sys::Oid) {
    with(|workers| match workers.block(database) {
        Some(block) => {
            block.is_late = true;
            block.wake();
        }
        None => workers.header.launcher_is_late = true,
    });
}

/// Wakes the worker of `database`, since events were published; false if there is none to take
/// them. Cannot fail.
pub fn events_published(database: pg_sys::Oid) -> bool {
    block(database, |block| {
        if !block.has_events {
            block.has_events = true;
            block.wake();
        }
        true
    })
}

/// Wakes the worker of `database`, since a transaction that was prepared is committed.
pub fn prepared_committed(database: pg_sys::Oid) {
    block(database, |block| {
        if block.prepared_changes {
            block.has_events = true;
            block.wake();
        }
    });
}

/// Notes that a prepared transaction is rolled back.
pub fn set_rolled_back_prepared() {
    with(|workers| workers.header.rolled_back_prepared = true);
}

/// Has the worker of `database`, or the launcher, check whether the extension exists. Cannot fail.
pub fn extension_changed(database: pg_sys::Oid) {
    with(|workers| {
        if let Some(block) = workers.block(database) {
            block.check_extension = true;
            block.wake();
        }
        workers.announce(database);
    });
}

/// Has the launcher start a worker in `database`: it may have the extension and no worker. Cannot
/// fail.
pub fn announce(database: pg_sys::Oid) {
    with(|workers| workers.announce(database));
}

/// Closes `database` to workers until [`reopen_all`]; false if too many databases are closed.
pub fn close(database: pg_sys::Oid) -> bool {
    with(|workers| {
        let free = workers.header.closed.iter_mut().find(|(_, pid)| *pid == 0);
        let closed = free.map(|entry| *entry = (database, my_pid())).is_some();
        if let Some(block) = workers.block(database) {
            block.wake();
        }
        closed
    })
    .unwrap_or_default()
}

/// Reopens all databases that this process has closed, and announces them. Cannot fail.
pub fn reopen_all() {
    with(|workers| {
        for place in 0..MAX_ANNOUNCED {
            let (database, pid) = workers.header.closed[place];
            if pid == my_pid() {
                workers.header.closed[place] = (pg_sys::InvalidOid, 0);
                workers.announce(database);
            }
        }
    });
}

/// The worker of `database`; `None` if there is no block for it.
pub fn status(database: pg_sys::Oid) -> Option<WorkerBlock> {
    block(database, |block| Some(block.clone()))
}

// What the worker does

/// Makes the current process the worker of `database`; false if the launcher has not started one,
/// or another process is the worker.
pub fn enter(database: pg_sys::Oid) -> bool {
    block(database, |block| {
        let free = block.state == WorkerState::Starting && block.pid == 0;
        if free {
            block.pid = my_pid();
            block.latch = ProcLatch::mine();
            block.check_extension = false;
        }
        free
    })
}

/// The worker of `database`, the current process, ends. Cannot fail.
pub fn exit(database: pg_sys::Oid, state: WorkerState) {
    block(database, |block| {
        if block.pid == my_pid() {
            block.latch = None;
            block.state = state;
            block.pid = 0;
        }
    });
    wake_launcher();
}

/// The worker of `database` takes starts.
pub fn set_running(database: pg_sys::Oid) {
    block(database, |block| {
        block.state = WorkerState::Running;
        block.is_late = false;
    });
    wake_launcher();
}

/// Keeps an error of the worker of `database`, for `recorder_status`.
pub fn set_last_error(database: pg_sys::Oid, error: &str) {
    let now = clock_timestamp();
    block(database, |block| {
        block.last_error.set(error.as_bytes());
        block.last_error_at = now;
    });
}

/// Whether `database` is closed to workers.
pub fn is_closed(database: pg_sys::Oid) -> bool {
    with(|workers| workers.header.closed.iter().any(|(oid, _)| *oid == database))
        .unwrap_or_default()
}

/// The first transaction id of this run of the server, at the latest. What is lower and has not
/// committed may have ended with the server's previous run.
pub fn first_xid() -> u64 {
    // SAFETY: reads shared memory, in a process attached to it.
    let next = unsafe { pg_sys::ReadNextFullTransactionId() }.value;
    with(|workers| {
        if workers.header.first_xid == 0 {
            workers.header.first_xid = next;
        }
        workers.header.first_xid
    })
    .unwrap_or(next)
}

/// Whether a transaction that was never seen open in this run of the server ended with the previous
/// one. One that was prepared may have been rolled back since.
pub fn ended_with_the_server(xid: u64) -> bool {
    let rolled_back_prepared = with(|workers| workers.header.rolled_back_prepared);
    xid < first_xid() && rolled_back_prepared == Some(false)
}

// What the launcher does

/// Makes the current process the launcher. An earlier launcher may have started workers that have
/// not entered yet: they will find their state changed, and exit.
pub fn enter_launcher() {
    with(|workers| {
        workers.header.launcher = ProcLatch::mine();
        for block in workers.entries.iter_mut() {
            if block.state == WorkerState::Starting && block.pid == 0 {
                block.state = WorkerState::Crashed;
            }
        }
    });
}

/// The launcher, the current process, ends.
pub fn exit_launcher() {
    with(|workers| workers.header.launcher = None);
}

pub fn wake_launcher() {
    with(|workers| workers.wake_launcher());
}

/// Takes the databases that were announced. The launcher is not late.
pub fn take_announced() -> Vec<pg_sys::Oid> {
    with(|workers| {
        workers.header.launcher_is_late = false;
        let announced = workers.header.announced.iter_mut();
        announced
            .map(|oid| std::mem::replace(oid, pg_sys::InvalidOid))
            .filter(|&oid| oid != pg_sys::InvalidOid)
            .collect()
    })
    .unwrap_or_default()
}

/// The databases that have a block, the states of their workers, and whether there is a process.
pub fn all() -> Vec<(pg_sys::Oid, WorkerState, bool)> {
    with(|workers| {
        let used = workers.entries.iter().filter(|block| block.state != WorkerState::Unused);
        used.map(|block| (block.database, block.state, block.pid != 0)).collect()
    })
    .unwrap_or_default()
}

/// The launcher starts a worker in `database`; false if there is no free block.
pub fn start(database: pg_sys::Oid) -> bool {
    with(|workers| {
        let known = workers.block(database).is_some();
        let block = workers.block(if known { database } else { pg_sys::InvalidOid });
        block
            .map(|block| {
                if !known {
                    *block = WorkerBlock { database, ..WorkerBlock::UNUSED };
                }
                block.state = WorkerState::Starting;
            })
            .is_some()
    })
    .unwrap_or_default()
}

impl WorkerBlock {
    pub const UNUSED: Self = Self {
        database: pg_sys::InvalidOid,
        state: WorkerState::Unused,
        latch: None,
        pid: 0,
        is_late: false,
        check_extension: false,
        has_events: false,
        prepared_changes: false,
        last_error: Text::EMPTY,
        last_error_at: 0,
    };

    /// Whether the worker has taken up its work.
    pub fn is_running(&self) -> bool {
        self.state == WorkerState::Running
    }

    pub fn is_served(&self) -> bool {
        matches!(self.state, WorkerState::Starting | WorkerState::Running)
    }

    fn wake(&self) {
        if let Some(latch) = self.latch {
            latch.set();
        }
    }
}

impl Workers<'_> {
    fn block(&mut self, database: pg_sys::Oid) -> Option<&mut WorkerBlock> {
        self.entries.iter_mut().find(|block| block.database == database)
    }

    /// Wakes the worker of `database`, or the launcher if there is none.
    fn wake(&mut self, database: pg_sys::Oid) {
        match self.block(database) {
            Some(block) => block.wake(),
            None => self.wake_launcher(),
        }
    }

    fn wake_launcher(&self) {
        if let Some(launcher) = self.header.launcher {
            launcher.set();
        }
    }

    /// Announces a database; whether the launcher was late before.
    fn announce(&mut self, database: pg_sys::Oid) -> bool {
        let announced = &mut self.header.announced;
        if !announced.contains(&database)
            && let Some(free) = announced.iter_mut().find(|oid| **oid == pg_sys::InvalidOid)
        {
            *free = database;
        }
        self.wake_launcher();
        self.header.launcher_is_late
    }
}
