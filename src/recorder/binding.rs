//! What ties an execution to the transaction that started it, and what became of that transaction.

use std::convert::Infallible;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::{AllocatedByPostgres, PgTrigger, pg_sys, pg_trigger};

use super::worker;
use crate::error::Error;
use crate::lookup::{Key, find, open, require};
use crate::triggers::is_replica;

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is open, prepared, or waits for a standby before it counts as committed.
    InProgress,
    /// It has committed.
    Committed,
    /// It was rolled back, or died with the server.
    Aborted,
    /// The server can't tell: it is too long ago, or the id was not given by this cluster.
    Unknown,
}

/// What became of the transaction, or the subtransaction of a transaction that has ended, `xid`.
pub fn outcome(xid: u64) -> Outcome {
    // SAFETY: in a transaction. pg_xact_status() takes the 64-bit id by value and returns a text or
    // NULL; an id of the future, at which it raises an error, is not passed to it.
    let status: Option<&str> = unsafe {
        if xid >= pg_sys::ReadNextFullTransactionId().value {
            return Outcome::Unknown;
        }
        pgrx::direct_function_call(pg_sys::pg_xact_status, &[Some(pg_sys::Datum::from(xid))])
    };
    match status {
        Some("in progress") => Outcome::InProgress,
        Some("committed") => Outcome::Committed,
        Some("aborted") => Outcome::Aborted,
        _ => Outcome::Unknown,
    }
}

/// Whether an execution was started by a transaction of another session, or a prepared one, that is
/// still open.
pub fn is_open_elsewhere(execution_id: i64) -> bool {
    let Ok(Some(table)) = open(c"watched_transaction", pg_sys::AccessShareLock) else {
        return false;
    };
    // SAFETY: column 2 of loader_history.watched_transaction is an xid8, which is passed by value as a bigint is.
    let xid = find(&table, &Key::id(execution_id), |row| unsafe { row.get::<i64>(2) }).flatten();
    xid.is_some_and(|xid| {
        let xid = xid.cast_unsigned();
        // SAFETY: reads the state of the current transaction.
        let mine = unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value;
        xid != mine && outcome(xid) == Outcome::InProgress
    })
}

/// When the server itself ended an execution, in PostgreSQL's microseconds, and where it has noted
/// that; `None` where it did not, or the loader has had its word since.
///
/// # Errors
/// [`Error::Untrusted`], or [`Error::MissingRelation`].
pub fn server_outcome(execution_id: i64) -> Result<Option<(i64, pg_sys::ItemPointerData)>, Error> {
    let table = require(c"server_outcome", pg_sys::AccessShareLock)?;
    // SAFETY: column 2 of loader_history.server_outcome is a timestamptz, passed by value as a bigint is.
    let found = find(&table, &Key::id(execution_id), |row| unsafe {
        row.get::<i64>(2).map(|end| (end, row.tid()))
    });
    Ok(found.flatten())
}

/// Drops rows that replication brings: they hold another cluster's transaction ids. The worker is in the same
/// role as what applies those.
#[pg_trigger(sql = false)]
fn drop_replicated_row<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, Infallible> {
    Ok(trigger.new().filter(|_| worker::is_worker() || !is_replica()))
}
