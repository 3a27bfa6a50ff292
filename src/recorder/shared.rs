//! The shared memory through which backends, workers and the launcher talk to each other.
//!
//! All of it is atomics: whoever is stopped or killed in the middle of something holds no lock that
//! others wait for. A thing that several processes handle (a request, a message) has a state that moves
//! by compare-and-swap, and whoever moved it owns the rest of it until the next move.

use std::mem::size_of;
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, fence,
};

use pgrx::{pg_guard, pg_sys};

use super::event_queue::{Batches, EventQueue, Pool, SLOTS_PER_EVENT, Slot, SlotBytes};
use crate::settings;

/// Bytes of an error's text that a message can carry.
pub const TEXT_BYTES: usize = 1_000;

/// Databases that can announce themselves, or be barred, before the launcher has looked.
const NOTES: usize = 64;

static SHARED: AtomicPtr<Header> = AtomicPtr::new(ptr::null_mut());

/// What shared memory begins with; databases, requests and messages follow.
#[repr(C)]
struct Header {
    databases: usize,
    queue_size: usize,
    launcher: Process,
    /// Set by a start that the launcher was late for, cleared by the launcher: others then don't wait.
    launcher_late: AtomicBool,
    /// Whether a prepared transaction was rolled back in this run of the server.
    rolled_back_prepared: AtomicBool,
    /// No transaction of before the server's start has an id of this or higher.
    first_xid: AtomicU64,
    /// Databases that may have the extension, and no worker yet.
    announced: [AtomicU32; NOTES],
    /// Databases that a worker must stay out of.
    barred: [Bar; NOTES],
    /// Where the search for a free request or message begins, so that processes rarely meet.
    next_request: AtomicU32,
    next_message: AtomicU32,
    /// Messages posted and not yet taken.
    messages: AtomicU32,
    events: Pool,
}

/// A database that a session wants to itself.
pub struct Bar {
    database: AtomicU32,
    owner: AtomicI32,
}

/// A process that can be woken.
pub struct Process(AtomicU32);

impl Process {
    /// Makes it the current process.
    pub fn set_to_me(&self) {
        self.0.store(my_process(), Release);
    }

    /// Makes it nobody.
    pub fn clear(&self) {
        self.0.store(0, Release);
    }

    /// Wakes the process, if there is one. Cannot fail.
    pub fn wake(&self) {
        let number = self.0.load(Acquire);
        if number > 0 {
            // SAFETY: the number was made by my_process(), so it lies within allProcs, whose entries
            // live as long as shared memory. Where the entry belongs to another process by now, that
            // one wakes for nothing, which PostgreSQL expects of latches.
            unsafe {
                let process = (*pg_sys::ProcGlobal).allProcs.add(number as usize - 1);
                pg_sys::SetLatch(&raw mut (*process).procLatch);
            }
        }
    }
}

/// The database that the current process is connected to.
pub fn my_database() -> pg_sys::Oid {
    // SAFETY: a read of the process's own global.
    unsafe { pg_sys::MyDatabaseId }
}

/// The current process as one more than its place among all, so that 0 is nobody.
fn my_process() -> u32 {
    // SAFETY: MyProc is an entry of allProcs wherever a process has attached to shared memory.
    unsafe {
        if pg_sys::MyProc.is_null() {
            return 0;
        }
        let place = pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs);
        u32::try_from(place + 1).unwrap_or_default()
    }
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

/// A text that one process writes and others read.
#[repr(C)]
pub struct SharedText {
    /// Odd while the text is being written.
    version: AtomicU32,
    length: AtomicU32,
    bytes: [AtomicU8; TEXT_BYTES],
}

impl SharedText {
    /// Sets the text to `bytes`, or their beginning.
    pub fn set(&self, bytes: &[u8]) {
        self.version.fetch_add(1, AcqRel);
        let length = bytes.len().min(TEXT_BYTES);
        for (to, &from) in self.bytes.iter().zip(&bytes[..length]) {
            to.store(from, Relaxed);
        }
        self.length.store(u32::try_from(length).unwrap_or_default(), Relaxed);
        self.version.fetch_add(1, Release);
    }

    /// The text; empty where it is being written just now, or was cut inside its first character.
    pub fn get(&self) -> String {
        let before = self.version.load(Acquire);
        let length = (self.length.load(Relaxed) as usize).min(TEXT_BYTES);
        let bytes: Vec<u8> = self.bytes[..length].iter().map(|byte| byte.load(Relaxed)).collect();
        std::sync::atomic::fence(Acquire);
        if before % 2 == 1 || self.version.load(Relaxed) != before {
            return String::new();
        }
        bytes.utf8_chunks().next().map_or_else(String::new, |chunk| chunk.valid().to_owned())
    }
}

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
    /// The worker has it, and may already have committed it.
    Taken,
    /// It is recorded.
    Done,
    /// It is not, and won't be.
    Declined,
    /// Whoever waited has recorded it otherwise, under another id, and has noted that in the database.
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

    /// Whether it waits for a worker.
    pub fn is_queued(&self) -> bool {
        self.is(Progress::Queued)
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
        let right = self.database() == database;
        // It was freed and used again for another database just now: its caller may even have given it up
        // meanwhile.
        if !right && !self.advance(Progress::Taken, Progress::Queued) {
            self.decline(0);
        }
        right
    }

    /// Answers whoever waits that it is recorded.
    pub fn answer(&self) -> Answered {
        if self.advance(Progress::Taken, Progress::Done) {
            self.waiting.wake();
            Answered::Caller
        } else if self.advance(Progress::Abandoned, Progress::Free) {
            Answered::Abandoned
        } else {
            self.advance(Progress::Unattended, Progress::Free);
            Answered::Nobody
        }
    }

    /// Answers whoever waits that it is not recorded. Only who has taken it calls it.
    pub fn decline(&self, reason: u32) {
        self.reason.store(reason, Relaxed);
        if self.advance(Progress::Taken, Progress::Declined) {
            self.waiting.wake();
        } else if !self.advance(Progress::Abandoned, Progress::Free) {
            self.advance(Progress::Unattended, Progress::Free);
        }
    }

    /// Gives it up on behalf of whoever waits: an error ends the wait, and cannot be failed by this.
    pub fn give_up(&self) {
        let free = |from| self.advance(from, Progress::Free);
        if !free(Progress::Queued)
            && !self.advance(Progress::Taken, Progress::Unattended)
            && !free(Progress::Done)
        {
            free(Progress::Declined);
        }
    }
}

/// Who was answered that a request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// Whoever asked.
    Caller,
    /// Nobody: whoever asked has recorded it otherwise.
    Abandoned,
    /// Nobody: whoever asked is gone, and so are its locks.
    Nobody,
}

/// What a backend tells a worker at the end of a transaction or subtransaction.
#[repr(C)]
pub struct Message {
    state: AtomicU32,
    database: AtomicU32,
    kind: AtomicU32,
    xid: AtomicU64,
    subxid: AtomicU64,
    execution_id: AtomicI64,
    loader_id: AtomicI64,
    start: AtomicI64,
    abandoned: AtomicI64,
    text: SharedText,
}

const FREE: u32 = 0;
const WRITING: u32 = 1;
const READY: u32 = 2;
/// The worker has read it, and keeps it until it has done what it says.
const HELD: u32 = 3;

/// What a message says.
pub enum News {
    /// A transaction, or a subtransaction of it, was rolled back by an error.
    Error {
        /// The transaction.
        xid: u64,
        /// The subtransaction; 0 where it was the whole transaction.
        subxid: u64,
        /// The error.
        text: String,
    },
    /// A start recorded in the caller's own transaction was rolled back with it.
    LostStart(LostStart),
}

/// A start that was rolled back together with the caller's transaction.
pub struct LostStart {
    /// The execution's id.
    pub execution_id: i64,
    /// The loader's id.
    pub loader_id: i64,
    /// When it started, in PostgreSQL's microseconds.
    pub start: i64,
    /// The execution that the worker may have recorded in its stead; 0 for none.
    pub abandoned: i64,
    /// The error that did it; empty where none is known.
    pub text: String,
    /// To release once it is recorded.
    pub message: &'static Message,
}

/// A message as a callback posts it: without an allocation.
pub enum Posting<'a> {
    /// As [`News::Error`].
    Error {
        /// The transaction.
        xid: u64,
        /// The subtransaction, or 0.
        subxid: u64,
        /// The error.
        text: &'a [u8],
    },
    /// As [`News::LostStart`].
    LostStart {
        /// The execution's id.
        execution_id: i64,
        /// The loader's id.
        loader_id: i64,
        /// When it started, in PostgreSQL's microseconds.
        start: i64,
        /// The execution that the worker may have recorded in its stead; 0 for none.
        abandoned: i64,
        /// The error that did it.
        text: &'a [u8],
    },
}

/// The shared memory, in a process that has it.
#[derive(Clone, Copy)]
pub struct Shared(&'static Header);

/// The shared memory; `None` where the library was not preloaded.
pub fn shared() -> Option<Shared> {
    // SAFETY: set by the postmaster to memory that it initialized and that outlives every process
    // which inherits the pointer.
    unsafe { SHARED.load(Acquire).as_ref() }.map(Shared)
}

impl Shared {
    /// The databases' entries.
    pub fn databases(self) -> &'static [Database] {
        // SAFETY: lay_out() has put that many initialized entries there.
        unsafe {
            std::slice::from_raw_parts(self.part(databases_offset()).cast(), self.0.databases)
        }
    }

    fn requests(self) -> &'static [Request] {
        // SAFETY: lay_out() has put that many initialized entries there.
        unsafe {
            let offset = requests_offset(self.0.databases);
            std::slice::from_raw_parts(self.part(offset).cast(), self.0.queue_size)
        }
    }

    fn messages(self) -> &'static [Message] {
        // SAFETY: lay_out() has put that many initialized entries there.
        unsafe {
            let offset = messages_offset(self.0.databases, self.0.queue_size);
            std::slice::from_raw_parts(self.part(offset).cast(), self.0.queue_size)
        }
    }

    /// The queue of events.
    pub fn events(self) -> EventQueue {
        let (databases, queue_size) = (self.0.databases, self.0.queue_size);
        let slots = queue_size * SLOTS_PER_EVENT;
        // SAFETY: lay_out() has put that many initialized entries there.
        let (slots, bytes) = unsafe {
            let first = self.part(slots_offset(databases, queue_size)).cast::<Slot>();
            let bytes = self.part(slot_bytes_offset(databases, queue_size)).cast::<SlotBytes>();
            (std::slice::from_raw_parts(first, slots), std::slice::from_raw_parts(bytes, slots))
        };
        EventQueue { pool: &self.0.events, slots, bytes }
    }

    fn part(self, offset: usize) -> *const u8 {
        ptr::from_ref(self.0).cast::<u8>().wrapping_add(offset)
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

    /// Remembers that a prepared transaction is rolled back.
    pub fn note_rollback_prepared(self) {
        self.0.rolled_back_prepared.store(true, Relaxed);
    }

    /// Whether a transaction that was never seen open in this run of the server died with the run before.
    /// One that was prepared may have been rolled back since.
    pub fn died_with_the_server(self, xid: u64) -> bool {
        xid < self.first_xid() && !self.0.rolled_back_prepared.load(Relaxed)
    }

    /// The first transaction id of this run of the server, at the latest: what is lower and was not
    /// committed may have died with the server's former run.
    pub fn first_xid(self) -> u64 {
        let known = self.0.first_xid.load(Acquire);
        if known != 0 {
            return known;
        }
        // SAFETY: reads shared memory, in a process attached to it.
        let next = unsafe { pg_sys::ReadNextFullTransactionId() }.value;
        match self.0.first_xid.compare_exchange(0, next, AcqRel, Acquire) {
            Ok(_) => next,
            Err(known) => known,
        }
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

    /// Posts a message to the worker of a database and wakes it. Cannot fail; where there is no room, or
    /// nobody to read it, the message is lost, and with it an error's text or a plain start.
    pub fn post(self, oid: pg_sys::Oid, posting: &Posting<'_>) {
        let database = self.database(oid);
        let served = database.is_some_and(|database| database.serving() != Serving::NoRoom);
        if matches!(posting, Posting::Error { .. }) && !served || self.has_too_many_messages(oid) {
            return;
        }
        let message = claim(self.messages(), &self.0.next_message, |message| {
            message.state.compare_exchange(FREE, WRITING, AcqRel, Relaxed).is_ok()
        });
        if let Some(message) = message {
            message.database.store(oid.to_u32(), Relaxed);
            match *posting {
                Posting::Error { xid, subxid, text } => {
                    message.kind.store(0, Relaxed);
                    message.xid.store(xid, Relaxed);
                    message.subxid.store(subxid, Relaxed);
                    message.text.set(text);
                }
                Posting::LostStart { execution_id, loader_id, start, abandoned, text } => {
                    message.abandoned.store(abandoned, Relaxed);
                    message.kind.store(1, Relaxed);
                    message.execution_id.store(execution_id, Relaxed);
                    message.loader_id.store(loader_id, Relaxed);
                    message.start.store(start, Relaxed);
                    message.text.set(text);
                }
            }
            message.state.store(READY, Release);
            self.0.messages.fetch_add(1, AcqRel);
        }
        match database {
            Some(database) => database.worker.wake(),
            None => self.announce(oid),
        }
    }

    /// Whether a database has three quarters of all messages: one whose worker reads none must leave room
    /// for others.
    fn has_too_many_messages(self, oid: pg_sys::Oid) -> bool {
        let messages = self.messages();
        let limit = messages.len() / 4 * 3;
        self.0.messages.load(Relaxed) as usize >= limit
            && messages
                .iter()
                .filter(|message| {
                    message.state.load(Relaxed) != FREE
                        && message.database.load(Relaxed) == oid.to_u32()
                })
                .count()
                >= limit
    }

    /// Takes the messages to the worker of a database. Those of lost starts are kept until
    /// [`Self::release`].
    pub fn take_messages(self, oid: pg_sys::Oid) -> Vec<News> {
        if self.0.messages.load(Acquire) == 0 {
            return Vec::new();
        }
        self.messages_of(oid)
            .filter(|message| message.state.compare_exchange(READY, HELD, AcqRel, Relaxed).is_ok())
            .map(|message| {
                let news = message.news();
                if matches!(news, News::Error { .. }) {
                    self.release(message);
                }
                news
            })
            .collect()
    }

    /// Has the messages that a worker before this one had kept read again.
    pub fn take_over_messages(self, oid: pg_sys::Oid) {
        for message in self.messages_of(oid) {
            let _ = message.state.compare_exchange(HELD, READY, AcqRel, Relaxed);
        }
    }

    /// Drops the messages to the worker of a database.
    pub fn drop_messages(self, oid: pg_sys::Oid) {
        self.messages_of(oid).for_each(|message| self.release(message));
    }

    /// Whether the start of an execution waits to be recorded as lost.
    pub fn is_lost(self, oid: pg_sys::Oid, execution_id: i64) -> bool {
        self.0.messages.load(Acquire) > 0
            && self.messages_of(oid).any(|message| {
                message.kind.load(Relaxed) == 1
                    && message.execution_id.load(Relaxed) == execution_id
            })
    }

    /// Drops messages to databases that are not among `existing`. Only the launcher calls it.
    pub fn drop_messages_except(self, existing: &[pg_sys::Oid]) {
        for message in self.messages() {
            if message.is_posted()
                && !existing.contains(&pg_sys::Oid::from(message.database.load(Relaxed)))
            {
                self.release(message);
            }
        }
    }

    fn messages_of(self, oid: pg_sys::Oid) -> impl Iterator<Item = &'static Message> {
        self.messages().iter().filter(move |message| {
            message.is_posted() && message.database.load(Relaxed) == oid.to_u32()
        })
    }

    /// Frees a message that has been posted.
    pub fn release(self, message: &Message) {
        let free = |from| message.state.compare_exchange(from, FREE, AcqRel, Relaxed).is_ok();
        if free(HELD) || free(READY) {
            self.0.messages.fetch_sub(1, AcqRel);
        }
    }
}

impl Message {
    fn is_posted(&self) -> bool {
        matches!(self.state.load(Acquire), READY | HELD)
    }

    fn news(&'static self) -> News {
        let text = self.text.get();
        if self.kind.load(Relaxed) == 0 {
            News::Error { xid: self.xid.load(Relaxed), subxid: self.subxid.load(Relaxed), text }
        } else {
            News::LostStart(LostStart {
                execution_id: self.execution_id.load(Relaxed),
                loader_id: self.loader_id.load(Relaxed),
                start: self.start.load(Relaxed),
                abandoned: self.abandoned.load(Relaxed),
                text,
                message: self,
            })
        }
    }
}

/// The first of `entries`, from a place on that moves, that `take` takes.
fn claim<T>(
    entries: &'static [T],
    next: &AtomicU32,
    take: impl Fn(&T) -> bool,
) -> Option<&'static T> {
    let first = next.fetch_add(1, Relaxed) as usize % entries.len().max(1);
    entries[first..].iter().chain(&entries[..first]).find(|entry| take(entry))
}

fn databases_offset() -> usize {
    size_of::<Header>().next_multiple_of(64)
}

fn requests_offset(databases: usize) -> usize {
    (databases_offset() + databases * size_of::<Database>()).next_multiple_of(64)
}

fn messages_offset(databases: usize, queue_size: usize) -> usize {
    (requests_offset(databases) + queue_size * size_of::<Request>()).next_multiple_of(64)
}

fn slots_offset(databases: usize, queue_size: usize) -> usize {
    (messages_offset(databases, queue_size) + queue_size * size_of::<Message>())
        .next_multiple_of(64)
}

fn slot_bytes_offset(databases: usize, queue_size: usize) -> usize {
    let slots = queue_size * SLOTS_PER_EVENT;
    (slots_offset(databases, queue_size) + slots * size_of::<Slot>()).next_multiple_of(64)
}

fn total_size(databases: usize, queue_size: usize) -> usize {
    let slots = queue_size * SLOTS_PER_EVENT;
    slot_bytes_offset(databases, queue_size) + slots * size_of::<SlotBytes>()
}

/// How many databases can have a worker: no more than the server has background workers.
fn database_entries() -> usize {
    // SAFETY: a read of a setting that is fixed once the libraries are preloaded.
    usize::try_from(unsafe { pg_sys::max_worker_processes }).unwrap_or_default()
}

static mut NEXT_REQUEST_HOOK: pg_sys::shmem_request_hook_type = None;
static mut NEXT_STARTUP_HOOK: pg_sys::shmem_startup_hook_type = None;

/// Has the postmaster reserve the memory and initialize it, at its start and after a crash.
pub fn reserve() {
    // SAFETY: runs in the postmaster, which has one thread, while it preloads libraries.
    unsafe {
        NEXT_REQUEST_HOOK = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request_memory);
        NEXT_STARTUP_HOOK = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(lay_out);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request_memory() {
    // SAFETY: called by the postmaster when memory may be requested.
    unsafe {
        if let Some(next) = NEXT_REQUEST_HOOK {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| next());
        }
        pg_sys::RequestAddinShmemSpace(total_size(database_entries(), settings::queue_size()));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn lay_out() {
    // SAFETY: called by the postmaster when shared memory is new and no other process has it; the
    // memory is as large as was requested. All-zero bytes are valid for every part of it: atomics and
    // numbers.
    unsafe {
        if let Some(next) = NEXT_STARTUP_HOOK {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| next());
        }
        let (databases, queue_size) = (database_entries(), settings::queue_size());
        let size = total_size(databases, queue_size);
        let mut found = false;
        let header: *mut Header =
            pg_sys::ShmemInitStruct(c"loader_history".as_ptr(), size, &raw mut found).cast();
        ptr::write_bytes(header.cast::<u8>(), 0, size);
        (*header).databases = databases;
        (*header).queue_size = queue_size;
        Shared(&*header).events().lay_out();
        SHARED.store(header, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> SharedText {
        SharedText {
            version: AtomicU32::new(0),
            length: AtomicU32::new(0),
            bytes: [const { AtomicU8::new(0) }; TEXT_BYTES],
        }
    }

    #[test]
    fn a_text_is_read_as_it_was_written_or_not_at_all() {
        let text = text();
        assert_eq!(text.get(), "");
        text.set("é".as_bytes());
        assert_eq!(text.get(), "é");
        text.set(&[b'x'; TEXT_BYTES + 1]);
        assert_eq!(text.get().len(), TEXT_BYTES);
        text.set("xé".as_bytes().split_at(2).0);
        assert_eq!(text.get(), "x");
        text.version.fetch_add(1, Relaxed);
        assert_eq!(text.get(), "");
    }

    #[test]
    fn entries_are_claimed_once_each() {
        let entries: &'static [AtomicU32] = Box::leak(Box::new([const { AtomicU32::new(0) }; 3]));
        let next = AtomicU32::new(u32::MAX);
        let take = |entry: &AtomicU32| entry.compare_exchange(0, 1, AcqRel, Relaxed).is_ok();
        for _ in entries {
            assert!(claim(entries, &next, take).is_some());
        }
        assert!(claim(entries, &next, take).is_none());
    }

    #[test]
    fn the_parts_of_the_memory_do_not_overlap() {
        for (databases, queue_size) in [(0, 16), (8, 1_024), (262_143, 65_536)] {
            assert!(databases_offset() >= size_of::<Header>());
            let end = databases_offset() + databases * size_of::<Database>();
            assert!(requests_offset(databases) >= end);
            let end = requests_offset(databases) + queue_size * size_of::<Request>();
            assert!(messages_offset(databases, queue_size) >= end);
            let end = messages_offset(databases, queue_size) + queue_size * size_of::<Message>();
            assert!(slots_offset(databases, queue_size) >= end);
            let slots = queue_size * SLOTS_PER_EVENT;
            let end = slots_offset(databases, queue_size) + slots * size_of::<Slot>();
            assert!(slot_bytes_offset(databases, queue_size) >= end);
        }
    }
}
