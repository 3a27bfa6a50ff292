//! Commits the starts that backends hand over.
//!
//! The worker never waits for a lock that a caller may hold: it locks tables and rows only if no
//! other session does, and `lock_timeout` limits all other waits. A start that it cannot record at
//! once it declines, and the caller records it.

use std::collections::HashMap;
use std::slice;
use std::time::{Duration, Instant};

use super::orphaned_starts::OrphanedStart;
use super::{Context, Part};
use crate::history::loader_fk::LoaderRow;
use crate::history::starts;
use crate::model::error::Error;
use crate::model::fallback::Reason;
use crate::pg::bgworker::{XactError, last_commit_lsn, report_activity, transaction};
use crate::pg::guc_scope::set_local;
use crate::shmem::start_queue::{self, Recorded, RequestId, Start};

/// How long starts are retried while a table is locked, and the pause between.
const LOCK_TIMEOUT: Duration = Duration::from_millis(20);
const LOCK_PAUSE: Duration = Duration::from_millis(4);

pub struct StartWriter;

impl Part for StartWriter {
    fn run(&mut self, context: &mut Context) -> bool {
        let mut taken = start_queue::with(|queue| queue.take(context.database));
        if taken.is_empty() {
            return false;
        }
        report_activity(Some("recording starts"));
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let mut result = record(context, &taken);
        // Vacuum takes an ACCESS EXCLUSIVE lock for a moment to truncate a table.
        while let Err(error) = &result
            && (error.is_lock() && Instant::now() < deadline || error.is_abandoned())
        {
            if error.is_lock() {
                std::thread::sleep(LOCK_PAUSE);
            }
            taken.retain(|(request, _)| !start_queue::with(|queue| queue.free_abandoned(*request)));
            result = record(context, &taken);
        }
        let Err(error) = result else { return true };
        if error.is_lock() || taken.len() == 1 {
            taken.iter().for_each(|(request, _)| decline(context, *request, &error));
            return true;
        }
        // One of them fails: it is found by trying each alone.
        for one in &taken {
            if let Err(error) = record(context, slice::from_ref(one))
                && !start_queue::with(|queue| queue.free_abandoned(one.0))
            {
                decline(context, one.0, &error);
            }
        }
        true
    }
}

impl StartWriter {
    /// Answers the requests that an earlier worker was committing.
    pub fn take_over(&self, context: &mut Context) -> Result<(), XactError> {
        let (taken, committing) = start_queue::with(|queue| queue.take_over(context.database));
        taken.into_iter().for_each(|request| start_queue::decline(request, Reason::Late));
        if committing.is_empty() {
            return Ok(());
        }
        // The LSNs of that worker's commits are unknown, but a commit of this one comes after them.
        transaction(|| {
            crate::pg::xact::assign_xids();
            Ok(())
        })?;
        for (request, loader_id, execution_id) in committing {
            if context.watched.contains(execution_id) {
                let recorded = Recorded { execution_id, commit_lsn: last_commit_lsn() };
                answer(context, request, loader_id, recorded);
            } else {
                start_queue::decline(request, Reason::Late);
            }
        }
        Ok(())
    }
}

/// Answers a request that is committed. If no caller waits any more, the start is orphaned.
fn answer(context: &mut Context, request: RequestId, loader_id: i64, recorded: Recorded) {
    if !start_queue::answer(request, recorded) {
        let execution_id = recorded.execution_id;
        context.orphans.push_back(OrphanedStart { execution_id, loader_id, is_unanswered: true });
    }
}

fn decline(context: &mut Context, request: RequestId, error: &XactError) {
    context.report_unless_locked(error);
    let reason = if error.is_lock() { Reason::TableLocked } else { Reason::Failed };
    start_queue::decline(request, reason);
}

/// Records starts in one transaction, and answers their callers.
fn record(context: &mut Context, taken: &[(RequestId, Start)]) -> Result<(), XactError> {
    let (recorded, declined) = transaction(|| {
        // Callers wait for the flush, which many share, while the worker records more starts.
        set_local(c"synchronous_commit", c"off");
        starts::lock_tables()?;
        let declined = unavailable_loaders(taken)?;
        let mut recorded = Vec::with_capacity(taken.len());
        for (request, start) in taken.iter().filter(|(one, _)| !declined.contains_key(one)) {
            recorded.push((*request, *start, starts::next_id(false)?));
        }
        let rows: Vec<_> = recorded.iter().map(|(_, start, id)| (*id, *start)).collect();
        starts::insert(&rows)?;
        // From here on no caller can abandon its start and record it itself.
        let committing: Vec<_> = recorded.iter().map(|(request, _, id)| (*request, *id)).collect();
        if start_queue::with(|queue| queue.begin_commit(&committing)) {
            Ok((recorded, declined))
        } else {
            Err(Error::Abandoned)
        }
    })
    .inspect_err(|_| {
        start_queue::with(|queue| {
            taken.iter().for_each(|(request, _)| queue.undo_commit(*request))
        });
    })?;
    let commit_lsn = last_commit_lsn();
    for (request, start, execution_id) in recorded {
        let Start { loader_id, xid, subxid, notify, .. } = start;
        context.watched.insert(execution_id, xid, subxid, notify);
        answer(context, request, loader_id, Recorded { execution_id, commit_lsn });
        if notify && let Ok(event) = starts::event(execution_id, &start) {
            context.events.push_back(event);
        }
    }
    for (request, _) in taken {
        if let Some(reason) = declined.get(request) {
            start_queue::decline(*request, *reason);
        }
    }
    Ok(())
}

/// The requests whose loaders' rows are not committed, or cannot be looked up.
fn unavailable_loaders(taken: &[(RequestId, Start)]) -> Result<HashMap<RequestId, Reason>, Error> {
    let mut declined = HashMap::new();
    for (request, start) in taken.iter().filter(|(_, start)| start.check_loader) {
        // The caller, which locks the row, may have written it.
        match starts::lock_loader(start.loader_id)? {
            LoaderRow::Missing | LoaderRow::Unsupported => {
                declined.insert(*request, Reason::LoaderUncommitted);
            }
            LoaderRow::TableBusy => {
                declined.insert(*request, Reason::TableLocked);
            }
            LoaderRow::Committed | LoaderRow::Own | LoaderRow::Busy | LoaderRow::Unchecked => {}
        }
    }
    Ok(declined)
}
