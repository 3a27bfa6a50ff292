//! The events of the current transaction, until it ends.

use std::mem::ManuallyDrop;

use pgrx::pg_sys::SubTransactionId;

use crate::model::event;
use crate::model::execution::Status;

/// Payloads in their order, and the subtransactions that they belong to.
pub struct PendingNotifies {
    // Never dropped: callbacks may run when a process has run its destructors.
    payloads: ManuallyDrop<Vec<u8>>,
    changes: ManuallyDrop<Vec<Change>>,
}

/// A change of an execution, whose payload begins at `begin`.
struct Change {
    subtransaction: SubTransactionId,
    begin: usize,
    execution_id: i64,
    status: Status,
}

impl PendingNotifies {
    pub const fn new() -> Self {
        Self { payloads: ManuallyDrop::new(Vec::new()), changes: ManuallyDrop::new(Vec::new()) }
    }

    /// Adds the event that `execution_id` has changed to `status`, made in `subtransaction`, the
    /// innermost one; false if memory is short.
    pub fn add(
        &mut self,
        payload: &str,
        execution_id: i64,
        status: Status,
        subtransaction: SubTransactionId,
    ) -> bool {
        let room = self.payloads.try_reserve(payload.len() + 1).is_ok()
            && self.changes.try_reserve(1).is_ok();
        if !room {
            return false;
        }
        let begin = self.payloads.len();
        self.changes.push(Change { subtransaction, begin, execution_id, status });
        self.payloads.extend_from_slice(payload.as_bytes());
        self.payloads.push(event::SEPARATOR);
        true
    }

    pub fn payloads(&self) -> &[u8] {
        &self.payloads
    }

    /// The executions that have changed, and to which status.
    pub fn changes(&self) -> impl Iterator<Item = (i64, Status)> {
        self.changes.iter().map(|change| (change.execution_id, change.status))
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub fn clear(&mut self) {
        self.payloads.clear();
        self.changes.clear();
        // A large transaction's memory is released.
        if self.payloads.capacity() > 1 << 20 {
            *self.payloads = Vec::new();
            *self.changes = Vec::new();
        }
    }

    /// Gives the events of `mine`, which has committed, to its parent.
    pub fn subtransaction_committed(&mut self, mine: SubTransactionId, parent: SubTransactionId) {
        // They are the last ones: it was the innermost subtransaction.
        for change in self.changes.iter_mut().rev().take_while(|one| one.subtransaction == mine) {
            change.subtransaction = parent;
        }
    }

    /// Removes the events of `mine`, which was rolled back.
    pub fn subtransaction_aborted(&mut self, mine: SubTransactionId) {
        while let Some(last) = self.changes.pop_if(|last| last.subtransaction == mine) {
            self.payloads.truncate(last.begin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(pending: &mut PendingNotifies, payload: &str, subtransaction: SubTransactionId) {
        assert!(pending.add(payload, 1, Status::Running, subtransaction));
    }

    fn payloads(pending: &PendingNotifies) -> Vec<&str> {
        let text = std::str::from_utf8(pending.payloads()).expect("UTF-8");
        text.split_terminator('\0').collect()
    }

    #[test]
    fn events_of_subtransactions_go_with_them() {
        let mut pending = PendingNotifies::new();
        add(&mut pending, "a", 1);
        add(&mut pending, "b", 2);
        add(&mut pending, "c", 3);
        pending.subtransaction_committed(3, 2);
        add(&mut pending, "d", 2);
        pending.subtransaction_aborted(4);
        assert_eq!(payloads(&pending), ["a", "b", "c", "d"]);
        pending.subtransaction_aborted(2);
        assert_eq!(payloads(&pending), ["a"]);
        add(&mut pending, "e", 5);
        pending.subtransaction_committed(5, 1);
        add(&mut pending, "f", 1);
        add(&mut pending, "g", 6);
        pending.subtransaction_aborted(6);
        assert_eq!(payloads(&pending), ["a", "e", "f"]);
        assert_eq!(pending.changes().count(), 3);
        pending.clear();
        assert!(pending.is_empty());
        add(&mut pending, "h", 1);
        assert_eq!(payloads(&pending), ["h"]);
    }

    #[test]
    fn much_memory_is_given_back() {
        let mut pending = PendingNotifies::new();
        add(&mut pending, &"x".repeat(2 << 20), 1);
        pending.clear();
        assert_eq!(pending.payloads.capacity(), 0);
    }
}
