//! A structure in shared memory that one LWLock protects.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

use pgrx::pg_sys;

/// The alignment of the entries, a cache line.
const ALIGNMENT: usize = 64;

/// A header and an array of entries in shared memory, with an LWLock of their own.
///
/// The postmaster requests and initializes it; all other processes inherit the pointer.
pub struct Segment<H: 'static, E: 'static> {
    name: &'static CStr,
    memory: AtomicPtr<Memory<H>>,
    entries: PhantomData<fn() -> E>,
}

/// The beginning of a segment; the entries follow.
#[repr(C)]
struct Memory<H> {
    lock: *mut pg_sys::LWLock,
    count: usize,
    header: H,
}

/// The contents of a segment.
pub struct Contents<'a, H, E> {
    pub header: &'a mut H,
    pub entries: &'a mut [E],
}

impl<H, E> Segment<H, E> {
    /// A segment, which does not exist yet. The name is that of the memory and of the lock.
    pub const fn new(name: &'static CStr) -> Self {
        Self { name, memory: AtomicPtr::new(ptr::null_mut()), entries: PhantomData }
    }

    const fn entries_offset() -> usize {
        size_of::<Memory<H>>().next_multiple_of(ALIGNMENT)
    }

    const fn size(count: usize) -> usize {
        Self::entries_offset() + count * size_of::<E>()
    }

    /// Requests the memory and the lock. Called in `shmem_request_hook`.
    pub fn request(&self, count: usize) {
        // SAFETY: called by the postmaster while memory may be requested; the name is a static C
        // string.
        unsafe {
            pg_sys::RequestAddinShmemSpace(Self::size(count));
            pg_sys::RequestNamedLWLockTranche(self.name.as_ptr(), 1);
        }
    }

    /// Initializes the memory. Called in `shmem_startup_hook`: at server start, and again after a
    /// crash.
    pub fn initialize(&self, count: usize, header: H, entry: impl Fn(usize) -> E) {
        // SAFETY: called by the postmaster when shared memory is new and no other process is
        // attached to it. The memory is as large as was requested, and begins at a cache line,
        // which is enough for every type here.
        unsafe {
            let mut found = false;
            let memory: *mut Memory<H> =
                pg_sys::ShmemInitStruct(self.name.as_ptr(), Self::size(count), &raw mut found)
                    .cast();
            let lock = &raw mut (*pg_sys::GetNamedLWLockTranche(self.name.as_ptr())).lock;
            memory.write(Memory { lock, count, header });
            let entries = memory.byte_add(Self::entries_offset()).cast::<E>();
            (0..count).for_each(|place| entries.add(place).write(entry(place)));
            self.memory.store(memory, Release);
        }
    }

    /// Whether the segment exists: the library was preloaded.
    pub fn exists(&self) -> bool {
        !self.memory.load(Acquire).is_null()
    }

    /// Calls `work` with the contents, under the lock; `None` if the segment does not exist.
    /// Nothing in it raises an error. LWLocks may be taken in commit and abort callbacks.
    pub fn with<R>(&self, work: impl FnOnce(&mut Contents<'_, H, E>) -> R) -> Option<R> {
        let memory = self.memory.load(Acquire);
        if memory.is_null() {
            return None;
        }
        // SAFETY: the postmaster has initialized the memory, which outlives every process that
        // inherits the pointer. Under the exclusive lock no other process refers to the contents.
        // If a panic unwinds, the abort that follows releases all LWLocks.
        unsafe {
            let lock = (*memory).lock;
            pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
            let entries = memory.byte_add(Self::entries_offset()).cast::<E>();
            let entries = std::slice::from_raw_parts_mut(entries, (*memory).count);
            let result = work(&mut Contents { header: &mut (*memory).header, entries });
            pg_sys::LWLockRelease(lock);
            Some(result)
        }
    }
}
