//! The events of the current transaction, until it ends.

use std::ffi::CStr;
use std::mem::ManuallyDrop;

use pgrx::direct_function_call;
use pgrx::pg_sys::{self, SubTransactionId};

use crate::{error, notify};

/// What the payloads of several events are separated by: JSON never holds it.
const SEPARATOR: u8 = 0;

/// The payloads of several events, one by one.
pub fn split(payloads: &[u8]) -> impl Iterator<Item = &[u8]> {
    payloads.split(|&byte| byte == SEPARATOR).filter(|payload| !payload.is_empty())
}

/// Emits payloads by NOTIFY when the current transaction commits. May fail.
pub fn emit_all(payloads: &[u8]) {
    split(payloads).for_each(notify::emit);
}

/// Emits payloads by NOTIFY when the current transaction, which is about to commit, does; drops them with a
/// warning where PostgreSQL's queue has no room, which would fail the commit. May fail.
pub fn emit_what_fits(payloads: &[u8]) {
    // SAFETY: in a transaction. It is the lock that PostgreSQL takes for a NOTIFY a moment later anyway:
    // until the end of the transaction nobody else adds to the queue.
    unsafe {
        pg_sys::LockSharedObject(
            pg_sys::DatabaseRelationId,
            pg_sys::InvalidOid,
            0,
            pg_sys::AccessExclusiveLock.cast_signed(),
        );
    }
    if queue_pages(payloads) <= free_queue_pages() {
        emit_all(payloads);
    } else {
        error::warn_events_dropped(split(payloads).count());
    }
}

/// Pages of PostgreSQL's queue of notifications.
const PAGE_BYTES: usize = 8192;

/// Bytes of an entry beside its payload: more than the header, the channel's name and the alignment.
const ENTRY_BYTES: usize = 64;

/// Pages that payloads take in PostgreSQL's queue, at most: an entry does not go over a page's end.
fn queue_pages(payloads: &[u8]) -> usize {
    let sizes = split(payloads).map(|payload| payload.len() + ENTRY_BYTES);
    let (pages, _) = sizes.fold((2, 0), |(pages, used), size| {
        if used + size > PAGE_BYTES { (pages + 1, size) } else { (pages, used + size) }
    });
    pages
}

/// Pages of that queue that are free, at least. PostgreSQL finds out which are, and frees them: while it is
/// full nobody else does. May fail.
pub fn free_queue_pages() -> usize {
    // Since version 17 it is a setting; before, the queue had these, and could not use the last segment.
    const PAGES: u32 = 1 << 20;
    const SEGMENT: u32 = 34;
    // SAFETY: a setting's value as text, which is read at once; NULL where there is no such setting.
    let setting: Option<u32> = unsafe {
        let value = pg_sys::GetConfigOption(c"max_notify_queue_pages".as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_str().ok()?.parse().ok()).flatten()
    };
    let (all, usable) = setting.map_or((PAGES, PAGES - SEGMENT), |pages| (pages, pages));
    // SAFETY: the function takes no argument and returns a double precision.
    let usage: Option<f64> =
        unsafe { direct_function_call(pg_sys::pg_notification_queue_usage, &[]) };
    let used = (usage.unwrap_or_default() * f64::from(all)).ceil();
    (f64::from(usable) - used).max(0.0) as usize
}

/// Payloads in their order, and the subtransactions that they belong to.
pub struct Gathered {
    // Never dropped: callbacks may run when a process has run its destructors.
    payloads: ManuallyDrop<Vec<u8>>,
    spans: ManuallyDrop<Vec<Span>>,
}

/// Payloads in a row that belong to one subtransaction.
struct Span {
    subtransaction: SubTransactionId,
    begin: usize,
}

impl Gathered {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { payloads: ManuallyDrop::new(Vec::new()), spans: ManuallyDrop::new(Vec::new()) }
    }

    /// Adds an event of `subtransaction`, the innermost one; false where memory is short.
    pub fn add(&mut self, payload: &str, subtransaction: SubTransactionId) -> bool {
        let room = self.payloads.try_reserve(payload.len() + 1).is_ok()
            && self.spans.try_reserve(1).is_ok();
        if !room {
            return false;
        }
        if self.spans.last().is_none_or(|last| last.subtransaction != subtransaction) {
            self.spans.push(Span { subtransaction, begin: self.payloads.len() });
        }
        self.payloads.extend_from_slice(payload.as_bytes());
        self.payloads.push(SEPARATOR);
        true
    }

    /// The payloads, for [`split`].
    pub fn payloads(&self) -> &[u8] {
        &self.payloads
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// Forgets them. Cannot fail.
    pub fn clear(&mut self) {
        self.payloads.clear();
        self.spans.clear();
        // A large transaction's memory is not kept.
        if self.payloads.capacity() > 1 << 20 {
            *self.payloads = Vec::new();
            *self.spans = Vec::new();
        }
    }

    /// Hands what belongs to `mine`, which has committed, to its parent.
    pub fn subtransaction_committed(&mut self, mine: SubTransactionId, parent: SubTransactionId) {
        // Those of one subtransaction stand at the end: it was the innermost one.
        for span in self.spans.iter_mut().rev().take_while(|span| span.subtransaction == mine) {
            span.subtransaction = parent;
        }
    }

    /// Forgets what belongs to `mine`, which was rolled back.
    pub fn subtransaction_aborted(&mut self, mine: SubTransactionId) {
        while let Some(last) = self.spans.pop_if(|last| last.subtransaction == mine) {
            self.payloads.truncate(last.begin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payloads(gathered: &Gathered) -> Vec<&str> {
        let text = std::str::from_utf8(gathered.payloads()).expect("UTF-8");
        text.split_terminator('\0').collect()
    }

    #[test]
    fn events_of_subtransactions_go_with_them() {
        let mut gathered = Gathered::new();
        gathered.add("a", 1);
        gathered.add("b", 2);
        gathered.add("c", 3);
        gathered.subtransaction_committed(3, 2);
        gathered.add("d", 2);
        gathered.subtransaction_aborted(4);
        assert_eq!(payloads(&gathered), ["a", "b", "c", "d"]);
        gathered.subtransaction_aborted(2);
        assert_eq!(payloads(&gathered), ["a"]);
        gathered.add("e", 5);
        gathered.subtransaction_committed(5, 1);
        gathered.add("f", 1);
        gathered.add("g", 6);
        gathered.subtransaction_aborted(6);
        assert_eq!(payloads(&gathered), ["a", "e", "f"]);
        gathered.clear();
        assert!(gathered.is_empty());
        gathered.add("h", 1);
        assert_eq!(payloads(&gathered), ["h"]);
    }

    #[test]
    fn much_memory_is_given_back() {
        let mut gathered = Gathered::new();
        gathered.add(&"x".repeat(2 << 20), 1);
        gathered.clear();
        assert_eq!(gathered.payloads.capacity(), 0);
    }
}
