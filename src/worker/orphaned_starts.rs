//! Orphaned starts: committed after the caller's backend, and so its KEY SHARE lock on the loader's row, was gone. The
//! loader may have been deleted meanwhile.
//!
//! Whether a caller that an earlier worker has answered learned that its start is recorded is unknown. If the foreign key
//! is valid it did not, or the row would still exist: the lock kept it, and since then the execution does. If the key is
//! NOT VALID, it came after starts of loaders that have never existed: those stay.

use std::time::Instant;

use super::xact_monitor::FAILED_AT_ONCE;
use super::{Context, LOCK_RETRY, Part};
use crate::history::loader_fk::{self, LoaderRow};
use crate::history::{outcomes, starts};
use crate::pg::bgworker::transaction;

/// A start whose loader's row may be gone.
pub struct OrphanedStart {
    pub execution_id: i64,
    pub loader_id: i64,
    /// Whether the caller did not learn that the start is recorded.
    pub is_certain: bool,
}

/// Removes orphaned starts of loaders that do not exist.
pub struct OrphanedStarts {
    next: Instant,
}

impl OrphanedStarts {
    pub fn new() -> Self {
        Self { next: Instant::now() }
    }
}

impl Part for OrphanedStarts {
    fn due(&self, context: &Context) -> Option<Instant> {
        (!context.orphans.is_empty()).then_some(self.next)
    }

    fn run(&mut self, context: &mut Context) -> bool {
        if context.orphans.is_empty() || Instant::now() < self.next {
            return false;
        }
        let count = context.orphans.len().min(FAILED_AT_ONCE);
        let some: Vec<_> = context.orphans.drain(..count).collect();
        for one in some {
            let removed = transaction(|| {
                let row = starts::lock_loader(one.loader_id)?;
                let remove =
                    row == LoaderRow::Missing && (one.is_certain || loader_fk::is_valid()?);
                if remove {
                    outcomes::lock_tables()?;
                    outcomes::remove(one.execution_id)?;
                }
                Ok((row, remove))
            });
            match removed {
                Ok((_, true)) => context.watched.remove(one.execution_id),
                Ok((LoaderRow::Busy | LoaderRow::TableBusy, _)) => {
                    self.next = Instant::now() + LOCK_RETRY;
                    context.orphans.push_back(one);
                }
                Ok(_) => {}
                Err(error) => {
                    context.report_unless_locked(&error);
                    self.next = Instant::now() + LOCK_RETRY;
                    context.orphans.push_back(one);
                }
            }
        }
        true
    }
}
