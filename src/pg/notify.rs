//! NOTIFY, and PostgreSQL's notification queue.

use std::ffi::{CStr, CString};

use pgrx::{direct_function_call, pg_sys};

/// The channel that clients LISTEN on.
const CHANNEL: &CStr = c"loader_execution";

/// Bytes of a page of PostgreSQL's queue.
const PAGE_BYTES: usize = 8192;

/// Bytes of an entry beside its payload: more than the header, the channel's name and the
/// alignment.
const ENTRY_BYTES: usize = 64;

/// Emits a payload when the current transaction commits.
pub fn emit(payload: &[u8]) {
    // JSON escapes NUL, the only character that a C string cannot hold.
    let Ok(payload) = CString::new(payload) else { return };
    // SAFETY: both are C strings that PostgreSQL copies; called in a transaction.
    unsafe { pg_sys::Async_Notify(CHANNEL.as_ptr(), payload.as_ptr()) };
}

/// Whether payloads of these lengths find room in PostgreSQL's queue when the current transaction,
/// which is about to commit, adds them. Takes the lock that the commit takes anyway: until then no
/// other session adds any.
pub fn has_room(lengths: impl Iterator<Item = usize>) -> bool {
    // SAFETY: in a transaction; the lock is that of PreCommit_Notify() in PostgreSQL's async.c.
    unsafe {
        pg_sys::LockSharedObject(
            pg_sys::DatabaseRelationId,
            pg_sys::InvalidOid,
            0,
            pg_sys::AccessExclusiveLock.cast_signed(),
        );
    }
    // An entry does not continue on the next page.
    let (pages, _) =
        lengths.map(|length| length + ENTRY_BYTES).fold((2, 0), |(pages, used), size| {
            if used + size > PAGE_BYTES { (pages + 1, size) } else { (pages, used + size) }
        });
    pages <= free_queue_pages()
}

/// Pages of PostgreSQL's queue that are free, at least. Has PostgreSQL advance the tail of the
/// queue, which no other session does while it is full.
pub fn free_queue_pages() -> usize {
    // Since version 17 it is a setting; before, the queue had these, and could not use the last
    // segment.
    const PAGES: u32 = 1 << 20;
    const SEGMENT: u32 = 34;
    // SAFETY: a setting's value as text, which is read at once, or NULL if there is no such
    // setting. The function takes no argument and returns a double precision.
    let (setting, usage): (Option<u32>, Option<f64>) = unsafe {
        let value = pg_sys::GetConfigOption(c"max_notify_queue_pages".as_ptr(), true, false);
        let value = (!value.is_null()).then(|| CStr::from_ptr(value).to_str().ok()?.parse().ok());
        (value.flatten(), direct_function_call(pg_sys::pg_notification_queue_usage, &[]))
    };
    let (all, usable) = setting.map_or((PAGES, PAGES - SEGMENT), |pages| (pages, pages));
    let used = (usage.unwrap_or_default() * f64::from(all)).ceil();
    (f64::from(usable) - used).max(0.0) as usize
}
