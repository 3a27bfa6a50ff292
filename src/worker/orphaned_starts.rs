//! Orphaned starts: committed after the caller's backend had ended and so released its KEY SHARE
//! lock on the loader's row. The loader may have been deleted meanwhile.
//!
//! It is unknown whether a caller that an earlier worker answered has read the answer. If the
//! loader does not exist although the foreign key is valid, it has not: its lock would have kept
//! the loader's row, and then the execution. If the key is NOT VALID, it may have been added after
//! starts of loaders that never existed: those are kept.

use std::time::Instant;

use super::xact_monitor::FAILED_AT_ONCE;
use super::{Context, LOCK_RETRY, Part};
use crate::history::loader_fk::{self, LoaderRow};
use crate::history::{outcomes, starts};
use crate::pg::bgworker::transaction;

/// A start whose loader may have been deleted.
pub struct OrphanedStart {
    pub execution_id: i64,
    pub loader_id: i64,
    /// Whether the caller certainly did not read the answer.
    pub is_unanswered: bool,
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
                    row == LoaderRow::Missing && (one.is_unanswered || loader_fk::is_valid()?);
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
