//! The shared memory through which backends, workers and the launcher talk to each other.
//!
//! All of it is atomics: whoever is stopped or killed in the middle of something holds no lock that
//! others wait for. A thing that several processes handle (a request, a message) has a state that moves
//! by compare-and-swap, and whoever moved it owns the rest of it until the next move.

use std::mem::size_of;
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64};

use pgrx::{pg_guard, pg_sys};

mod database;
mod event_queue;
mod message;
mod process;
mod request;
mod text;

pub use database::{Database, PreparedEvents, Serving};
pub use event_queue::{Batch, EventQueue};
pub use message::News;
pub use process::my_database;
pub use request::{Progress, Request, Start};
pub use text::TEXT_BYTES;

use database::{Bar, NOTES};
use event_queue::{Pool, SLOTS_PER_EVENT, Slot, SlotBytes};
use message::Message;
use process::Process;

use crate::settings;

static SHARED: AtomicPtr<Header> = AtomicPtr::new(ptr::null_mut());

/// What shared memory begins with; databases, requests, messages and events follow.
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

/// The shared memory, in a process that has it.
#[derive(Clone, Copy)]
pub struct Shared(&'static Header);

/// The shared memory; `None` where the library was not preloaded.
pub fn shared() -> Option<Shared> {
    // SAFETY: set by the postmaster to memory that it initialized and that outlives every process
    // which inherits the pointer.
    unsafe { SHARED.load(Acquire).as_ref() }.map(Shared)
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
    // SAFETY: called by the postmaster, which has one thread, when memory may be requested.
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
    // memory is as large as was requested, and begins at a cache line. All-zero bytes are valid for every
    // part of it: atomics and numbers.
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
        // By the clock, tickets go on behind those of before, which prepared transactions keep.
        Shared(&*header).events().lay_out(pg_sys::GetCurrentTimestamp().cast_unsigned());
        SHARED.store(header, Release);
    }
}

impl Shared {
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

    /// Where a part begins: at a multiple of 64 bytes, so that it is aligned for whatever is in it.
    fn part(self, offset: usize) -> *const u8 {
        ptr::from_ref(self.0).cast::<u8>().wrapping_add(offset)
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
}
#[cfg(test)]
mod tests {
    use super::*;

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
