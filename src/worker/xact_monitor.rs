//! Determines the end of the transactions that have made autonomous starts, and ends the executions
//! of those that were rolled back. README.md draws the states of a watched transaction.

use std::collections::{HashMap, HashSet, VecDeque};
use std::slice;
use std::time::{Duration, Instant};

use pgrx::PgSqlErrorCode;

use super::orphaned_starts::OrphanedStart;
use super::{Context, LOCK_RETRY, Part};
use crate::history::outcomes::{self, Ended};
use crate::history::watched_transactions::{self, WatchedTransaction};
use crate::pg::bgworker::{XactError, report_activity, transaction};
use crate::pg::guc_scope::set_local;
use crate::pg::xact::{self, XactStatus};
use crate::shmem::workers;
use crate::shmem::xact_reports::XactReport;

/// How often the worker polls the status of open transactions, besides when one was reported as
/// rolled back. Commits are not reported: their rows are deleted together, at the next poll.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long the execution of a transaction that was rolled back waits for the report, which is
/// posted shortly after the rollback is visible.
const REPORT_DELAY: Duration = Duration::from_millis(200);

/// Executions ended in one transaction. Starts wait for its end.
pub const FAILED_AT_ONCE: usize = 32;

/// Rows deleted in one transaction. Starts wait for its end.
const DELETED_AT_ONCE: usize = 500;

/// How the history describes a transaction that was rolled back without an error.
const ROLLED_BACK: &str = "The transaction that started the execution was rolled back.";

/// The transactions that have started executions, and the errors that backends have reported.
pub struct WatchedTransactions {
    by_execution: HashMap<i64, Watched>,
    /// By transaction and subtransaction.
    error_texts: HashMap<(u64, u64), String>,
    /// When their status is polled next.
    next_poll: Instant,
}

/// A transaction that has started an execution.
struct Watched {
    xid: u64,
    /// The subtransaction; 0 for none.
    subxid: u64,
    /// Whether the session that started it wants events.
    notify: bool,
    /// Whether it was seen open in this run of the server.
    was_open: bool,
    /// When the rollback was first seen.
    rollback_seen: Option<Instant>,
    /// Whether its end is known: what follows is in `failed` or `committed`.
    is_settled: bool,
}

/// An execution that was started by a transaction that was rolled back.
struct Failed {
    execution_id: i64,
    message: String,
    notify: bool,
}

pub struct XactMonitor {
    /// Executions to end.
    failed: VecDeque<Failed>,
    /// How many of them at once: fewer while another session locks some of them.
    failed_at_once: usize,
    next_fail: Instant,
    /// Executions whose row in `watched_transaction` is to be deleted.
    committed: VecDeque<i64>,
    next_delete: Instant,
}

impl Default for WatchedTransactions {
    fn default() -> Self {
        Self {
            by_execution: HashMap::new(),
            error_texts: HashMap::new(),
            next_poll: Instant::now(),
        }
    }
}

impl WatchedTransactions {
    pub fn is_empty(&self) -> bool {
        self.by_execution.is_empty()
    }

    /// Whether the transaction that has started an execution is among them.
    pub fn contains(&self, execution_id: i64) -> bool {
        self.by_execution.contains_key(&execution_id)
    }

    /// Adds a transaction that is open.
    pub fn insert(&mut self, execution_id: i64, xid: u64, subxid: u64, notify: bool) {
        self.by_execution.insert(execution_id, Watched::new(xid, subxid, notify, true));
        self.next_poll = self.next_poll.min(Instant::now() + POLL_INTERVAL);
    }

    /// Removes the transaction that has started an execution.
    pub fn remove(&mut self, execution_id: i64) {
        self.by_execution.remove(&execution_id);
    }

    /// Notes what a backend reports.
    pub fn add_report(&mut self, report: XactReport) {
        if report.subxid == 0 {
            self.next_poll = Instant::now();
        }
        self.error_texts.insert((report.xid, report.subxid), report.error);
    }

    fn open(&self) -> impl Iterator<Item = &Watched> {
        self.by_execution.values().filter(|watched| !watched.is_settled)
    }
}

impl Watched {
    const fn new(xid: u64, subxid: u64, notify: bool, was_open: bool) -> Self {
        Self { xid, subxid, notify, was_open, rollback_seen: None, is_settled: false }
    }

    /// The error message of the execution whose start was rolled back; `None` while the report may
    /// still come.
    fn message(
        &mut self,
        whole: XactStatus,
        error_texts: &HashMap<(u64, u64), String>,
        now: Instant,
    ) -> Option<String> {
        let text = |subxid| error_texts.get(&(self.xid, subxid)).filter(|text| !text.is_empty());
        let savepoint = (self.subxid != 0).then(|| text(self.subxid)).flatten();
        if whole == XactStatus::Committed {
            return Some(savepoint.map_or_else(
                || "The savepoint that the execution started in was rolled back.".to_owned(),
                String::clone,
            ));
        }
        if let Some(error) = text(0).or(savepoint) {
            return Some(error.clone());
        }
        if !self.was_open && workers::ended_with_the_server(self.xid) {
            return Some(
                "The server stopped before the transaction that started the execution had committed."
                    .to_owned(),
            );
        }
        let first_seen = *self.rollback_seen.get_or_insert(now);
        // The rollback was reported without an error, or no backend exists to report it.
        (error_texts.contains_key(&(self.xid, 0)) || now.duration_since(first_seen) >= REPORT_DELAY)
            .then(|| ROLLED_BACK.to_owned())
    }
}

impl Part for XactMonitor {
    fn due(&self, context: &Context) -> Option<Instant> {
        let due = |is_due: bool, when: Instant| is_due.then_some(when);
        let all = [
            due(!context.watched.is_empty(), context.watched.next_poll),
            due(!self.failed.is_empty(), self.next_fail),
            due(!self.committed.is_empty(), self.next_delete),
        ];
        all.into_iter().flatten().min()
    }

    fn run(&mut self, context: &mut Context) -> bool {
        let polled = self.poll_transaction_status(context);
        let failed = self.fail_aborted_executions(context);
        let deleted = self.delete_committed(context);
        polled || failed || deleted
    }
}

impl XactMonitor {
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            failed: VecDeque::new(),
            failed_at_once: FAILED_AT_ONCE,
            next_fail: now,
            committed: VecDeque::new(),
            next_delete: now,
        }
    }

    /// Reads the table again.
    pub fn load(&mut self, context: &mut Context) -> Result<(), XactError> {
        let rows = transaction(watched_transactions::all)?;
        self.failed.clear();
        self.committed.clear();
        context.watched.by_execution.clear();
        context.watched.next_poll = Instant::now();
        for WatchedTransaction { execution_id, loader_id, xid, subxid, notify } in rows {
            let watched = Watched::new(xid, subxid, notify, false);
            context.watched.by_execution.insert(execution_id, watched);
            // An earlier worker may have left an orphaned start.
            context.orphans.push_back(OrphanedStart {
                execution_id,
                loader_id,
                is_unanswered: false,
            });
        }
        Ok(())
    }

    /// Whether executions are to be ended.
    pub fn has_failures(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Finds out which open transactions have ended, if that is due; whether it did.
    fn poll_transaction_status(&mut self, context: &mut Context) -> bool {
        let now = Instant::now();
        if now < context.watched.next_poll {
            return false;
        }
        context.watched.next_poll = now + POLL_INTERVAL;
        if context.watched.is_empty() {
            context.watched.error_texts.clear();
            return false;
        }
        report_activity(Some("polling transaction status"));
        let statuses = transaction(|| Ok(statuses(&context.watched)));
        let (whole, parts) = match statuses {
            Ok(statuses) => statuses,
            Err(error) => {
                context.report(&error);
                return true;
            }
        };
        let mut unknown = Vec::new();
        let WatchedTransactions { by_execution, error_texts, .. } = &mut context.watched;
        for (&execution_id, watched) in by_execution.iter_mut().filter(|(_, one)| !one.is_settled) {
            let status = whole.get(&watched.xid).copied().unwrap_or(XactStatus::InProgress);
            let part = parts.get(&watched.subxid).copied().unwrap_or(status);
            match (status, part) {
                (XactStatus::InProgress, _) => watched.was_open = true,
                (_, XactStatus::Aborted) => {
                    if let Some(message) = watched.message(status, error_texts, now) {
                        watched.is_settled = true;
                        let notify = watched.notify;
                        self.failed.push_back(Failed { execution_id, message, notify });
                    }
                }
                (XactStatus::Committed, XactStatus::Committed) => {
                    watched.is_settled = true;
                    self.committed.push_back(execution_id);
                }
                _ => {
                    watched.is_settled = true;
                    unknown.push(execution_id);
                }
            }
        }
        let xids: HashSet<_> = by_execution.values().map(|watched| watched.xid).collect();
        error_texts.retain(|(xid, _), _| xids.contains(xid));
        for execution_id in unknown {
            context.report(&XactError::new(
                PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                format!(
                    "the status of the transaction that started execution {execution_id} is not known any more; it stays RUNNING"
                ),
            ));
            self.committed.push_back(execution_id);
        }
        true
    }

    /// Ends some of the executions whose start was rolled back; whether it did.
    fn fail_aborted_executions(&mut self, context: &mut Context) -> bool {
        if self.failed.is_empty() || Instant::now() < self.next_fail {
            return false;
        }
        report_activity(Some("ending executions"));
        let count = self.failed.len().min(self.failed_at_once);
        let some: Vec<_> = self.failed.drain(..count).collect();
        let (mut waited, at_once) = (false, self.failed_at_once);
        self.failed_at_once = FAILED_AT_ONCE;
        let busy = match fail(context, &some) {
            Ok(busy) => busy,
            // One of them fails: it is found by trying each alone. A lock may concern one of them
            // too, but each wait for it delays starts.
            Err(error) if some.len() == 1 || error.is_lock() => {
                context.report_unless_locked(&error);
                waited = error.is_lock();
                if waited && at_once > 1 {
                    self.failed_at_once = 1;
                }
                some.iter().map(|failed| failed.execution_id).collect()
            }
            Err(_) => some
                .iter()
                .flat_map(|one| {
                    fail(context, slice::from_ref(one)).unwrap_or_else(|error| {
                        context.report(&error);
                        HashSet::from([one.execution_id])
                    })
                })
                .collect(),
        };
        if !busy.is_empty() {
            self.next_fail = Instant::now() + LOCK_RETRY;
        }
        let any = waited || busy.len() < some.len();
        self.failed.extend(some.into_iter().filter(|one| busy.contains(&one.execution_id)));
        any
    }

    /// Deletes some of the rows of transactions that have committed; whether it tried.
    fn delete_committed(&mut self, context: &mut Context) -> bool {
        if self.committed.is_empty() || Instant::now() < self.next_delete {
            return false;
        }
        report_activity(Some("deleting watched transactions"));
        let count = self.committed.len().min(DELETED_AT_ONCE);
        let some: Vec<_> = self.committed.iter().take(count).copied().collect();
        let deleted = transaction(|| {
            // If a crash undoes it, it is done again.
            set_local(c"synchronous_commit", c"off");
            outcomes::lock_tables()?;
            watched_transactions::delete(&some)
        });
        match deleted {
            Ok(()) => self.committed.drain(..count).for_each(|id| context.watched.remove(id)),
            Err(error) => {
                context.report_unless_locked(&error);
                self.next_delete = Instant::now() + LOCK_RETRY;
            }
        }
        true
    }
}

/// The status of the open transactions, and of the subtransactions of those that have committed.
fn statuses(watched: &WatchedTransactions) -> (HashMap<u64, XactStatus>, HashMap<u64, XactStatus>) {
    let xids: HashSet<_> = watched.open().map(|one| one.xid).collect();
    let whole: HashMap<_, _> = xids.into_iter().map(|xid| (xid, xact::status(xid))).collect();
    let subxids: HashSet<_> = watched
        .open()
        .filter(|one| one.subxid != 0 && whole.get(&one.xid) == Some(&XactStatus::Committed))
        .map(|one| one.subxid)
        .collect();
    let parts = subxids.into_iter().map(|subxid| (subxid, xact::status(subxid))).collect();
    (whole, parts)
}

/// Ends executions whose start was rolled back, and returns those whose rows other sessions lock.
fn fail(context: &mut Context, failed: &[Failed]) -> Result<HashSet<i64>, XactError> {
    let is_orphan = |id: i64| {
        context.orphans.iter().any(|orphan| orphan.is_unanswered && orphan.execution_id == id)
    };
    let (done, busy, events) = transaction(|| {
        // If a crash undoes it, it is done again.
        set_local(c"synchronous_commit", c"off");
        outcomes::lock_tables()?;
        outcomes::fire_triggers();
        let (mut done, mut busy, mut events) = (Vec::new(), HashSet::new(), Vec::new());
        for Failed { execution_id, message, notify } in failed {
            let ended = match is_orphan(*execution_id) {
                true => Ended::Busy,
                false => outcomes::fail(*execution_id, message)?,
            };
            match ended {
                Ended::Busy => {
                    busy.insert(*execution_id);
                    continue;
                }
                Ended::Failed(event) if *notify => events.push(event),
                Ended::Failed(_) | Ended::Already => {}
            }
            done.push(*execution_id);
        }
        let silent = outcomes::without_triggers()?;
        watched_transactions::delete(&done)?;
        drop(silent);
        Ok((done, busy, events))
    })?;
    for execution_id in done {
        context.watched.remove(execution_id);
    }
    context.events.extend(events);
    Ok(busy)
}
