//! The databases that have workers, or may get one, and who keeps workers out of them.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, fence};

use pgrx::pg_sys;

use super::event_queue::Batches;
use super::process::Process;
use super::text::SharedText;
use super::{Shared, databases_offset};

/// Databases that can announce themselves, or be barred, before the launcher has looked.
pub const NOTES: usize = 64;

/// A database that a session wants to itself.
pub struct Bar {
    database: AtomicU32,
    owner: AtomicI32,
}

/// The worker of a database.
pub struct Database {
    oid: AtomicU32,
    state: AtomicU32,
    /// The worker, while it runs.
    pub worker: Process,
    /// Its process id.
    pub pid: AtomicI32,
    /// Set by a start that the worker was late for, cleared by the worker: others then don't wait.
    pub late: AtomicBool,
    /// Set when the extension may have changed: the worker is to look.
    check: AtomicBool,
    /// Its events.
    pub events: Batches,
    /// Whether there are events of prepared transactions.
    prepared_events: AtomicU32,
    /// The last thing that went wrong.
    pub last_error: SharedText,
    /// When, in PostgreSQL's microseconds.
    pub last_error_at: AtomicI64,
}

/// Where a database stands. The launcher moves it, but for RUNNING and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Serving {
    /// The entry is free.
    Nobody = 0,
    /// There was no room for another background worker.
    NoRoom,
    /// A worker was asked for.
    Starting,
    /// The worker is at work.
    Running,
    /// The worker left since the database does not have the extension.
    Left,
    /// The worker ended, and another is to come.
    Ended,
}

impl Serving {
    const ALL: [Self; 6] =
        [Self::Nobody, Self::NoRoom, Self::Starting, Self::Running, Self::Left, Self::Ended];
}

impl Database {
    /// The database's OID; invalid where the entry is free.
    pub fn oid(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.oid.load(Acquire))
    }

    /// Where it stands.
    pub fn serving(&self) -> Serving {
        let state = self.state.load(Acquire);
        Serving::ALL.into_iter().find(|&serving| serving as u32 == state).unwrap_or(Serving::Nobody)
    }

    /// Moves it on.
    pub fn set_serving(&self, serving: Serving) {
        self.state.store(serving as u32, Release);
    }

    /// Lets the current process be the worker, where one was asked for and none has come.
    pub fn enter(&self) -> bool {
        // SAFETY: a read of the process's own global.
        let me = unsafe { pg_sys::MyProcPid };
        let free = self.serving() == Serving::Starting
            && self.pid.compare_exchange(0, me, AcqRel, Acquire).is_ok();
        if free {
            self.check.store(false, Release);
            self.worker.set_to_me();
        }
        free
    }

    /// The worker, the current process, ends. Cannot fail.
    pub fn exit(&self, serving: Serving) {
        // SAFETY: a read of the process's own global.
        if self.pid.load(Acquire) == unsafe { pg_sys::MyProcPid } {
            self.worker.clear();
            self.set_serving(serving);
            self.pid.store(0, Release);
        }
    }

    /// Has the worker look, when it wakes, whether the extension is still there. Cannot fail.
    pub fn ask_to_check(&self) {
        self.check.store(true, Release);
    }

    /// Whether the worker was asked to look, and has not done so. Asks no more.
    pub fn take_check(&self) -> bool {
        self.check.swap(false, AcqRel)
    }

    /// Has the worker look for events of prepared transactions. Cannot fail.
    pub fn note_prepared_events(&self, prepared: PreparedEvents) {
        self.prepared_events.fetch_max(prepared as u32, AcqRel);
    }

    /// Has the worker emit events of prepared transactions, where there are any, since one was committed.
    pub fn commit_prepared_events(&self) {
        if self.prepared_events() != PreparedEvents::None {
            self.note_prepared_events(PreparedEvents::Due);
            self.worker.wake();
        }
    }

    /// Whether there may be events of prepared transactions.
    pub fn prepared_events(&self) -> PreparedEvents {
        match self.prepared_events.load(Acquire) {
            0 => PreparedEvents::None,
            1 => PreparedEvents::Some,
            _ => PreparedEvents::Due,
        }
    }

    /// Remembers that there are none, unless somebody says so afterwards.
    pub fn forget_prepared_events(&self) {
        self.prepared_events.store(0, Release);
    }

    /// Keeps what went wrong, for `recorder_status()`. Only the worker and the launcher call it.
    pub fn remember_error(&self, text: &str) {
        // SAFETY: reads the clock.
        self.last_error_at.store(unsafe { pg_sys::GetCurrentTimestamp() }, Relaxed);
        self.last_error.set(text.as_bytes());
    }
}

/// Whether there are events of prepared transactions, which wait in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PreparedEvents {
    /// There are none.
    None = 0,
    /// There are some, or may be.
    Some,
    /// And a prepared transaction was committed.
    Due,
}

impl Shared {
    /// The databases' entries.
    pub fn databases(self) -> &'static [Database] {
        // SAFETY: lay_out() has put that many initialized entries there.
        unsafe {
            std::slice::from_raw_parts(self.part(databases_offset()).cast(), self.0.databases)
        }
    }

    /// The entry of the database `oid`.
    pub fn database(self, oid: pg_sys::Oid) -> Option<&'static Database> {
        self.databases().iter().find(|database| database.oid() == oid)
    }

    /// Gives `oid` a free entry. Only the launcher calls it.
    pub fn add_database(self, oid: pg_sys::Oid) -> Option<&'static Database> {
        let database = self.database(pg_sys::InvalidOid)?;
        database.late.store(false, Relaxed);
        database.check.store(false, Relaxed);
        database.last_error.set(b"");
        database.last_error_at.store(0, Relaxed);
        database.worker.clear();
        database.pid.store(0, Relaxed);
        database.events.reset();
        // A server before this one may have left some.
        database.note_prepared_events(PreparedEvents::Due);
        database.set_serving(Serving::NoRoom);
        database.oid.store(oid.to_u32(), Release);
        Some(database)
    }

    /// Frees the entry of a database. Only the launcher calls it.
    pub fn remove_database(self, database: &Database) {
        let oid = database.oid();
        database.oid.store(0, Release);
        self.events().drop_all(&database.events, oid);
        database.set_serving(Serving::Nobody);
    }

    /// The launcher.
    pub fn launcher(self) -> &'static Process {
        &self.0.launcher
    }

    /// Whether the launcher was late to send a worker to a database without one.
    pub fn is_launcher_late(self) -> bool {
        self.0.launcher_late.load(Relaxed)
    }

    /// Remembers whether it is.
    pub fn set_launcher_late(self, late: bool) {
        self.0.launcher_late.store(late, Relaxed);
    }

    /// Has the launcher look at a database: it may have the extension and no worker. Cannot fail.
    pub fn announce(self, oid: pg_sys::Oid) {
        let oid = oid.to_u32();
        let announced = &self.0.announced;
        if !announced.iter().any(|entry| entry.load(Relaxed) == oid) {
            let _ = announced
                .iter()
                .any(|entry| entry.compare_exchange(0, oid, AcqRel, Relaxed).is_ok());
        }
        self.0.launcher.wake();
    }

    /// Takes the databases that were announced. Only the launcher calls it.
    pub fn take_announced(self) -> impl Iterator<Item = pg_sys::Oid> {
        self.0
            .announced
            .iter()
            .map(|entry| entry.swap(0, AcqRel))
            .filter(|&oid| oid != 0)
            .map(pg_sys::Oid::from)
    }

    /// Keeps workers out of a database until [`Self::lift_bars`]; false where too many are kept out.
    pub fn bar(self, oid: pg_sys::Oid) -> bool {
        // SAFETY: a read of the process's own global.
        let me = unsafe { pg_sys::MyProcPid };
        let placed = self.0.barred.iter().any(|bar| {
            let free = bar.owner.compare_exchange(0, me, AcqRel, Relaxed).is_ok();
            if free {
                bar.database.store(oid.to_u32(), Release);
            }
            free
        });
        // Orders the bar before the caller's look at the database's entry: the launcher makes an entry
        // before it looks at the bars.
        fence(SeqCst);
        if let Some(database) = self.database(oid) {
            database.worker.wake();
        }
        placed
    }

    /// Lifts every bar of the current process, and has the launcher look at those databases again.
    /// Cannot fail.
    pub fn lift_bars(self) {
        // SAFETY: a read of the process's own global.
        let me = unsafe { pg_sys::MyProcPid };
        for bar in self.0.barred.iter().filter(|bar| bar.owner.load(Acquire) == me) {
            let oid = bar.database.swap(0, AcqRel);
            bar.owner.store(0, Release);
            self.announce(pg_sys::Oid::from(oid));
        }
    }

    /// Whether workers must stay out of a database.
    pub fn is_barred(self, oid: pg_sys::Oid) -> bool {
        self.0.barred.iter().any(|bar| bar.database.load(Acquire) == oid.to_u32())
    }
}
