//! The current transaction, and the status of other transactions.

use pgrx::pg_sys;

use crate::model::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XactStatus {
    /// It is open, prepared, or waits for a standby before it counts as committed.
    InProgress,
    /// It has committed.
    Committed,
    /// It was rolled back, or ended with the server.
    Aborted,
    /// The server has no status of it: it is too old, or the id is not of this cluster.
    Unknown,
}

/// The status of the transaction `xid`, or of a subtransaction of a transaction that has ended.
pub fn status(xid: u64) -> XactStatus {
    // SAFETY: in a transaction. pg_xact_status() takes the 64-bit id by value and returns a text or
    // NULL; an id of the future, at which it raises an error, is not passed to it.
    let status: Option<&str> = unsafe {
        if xid >= pg_sys::ReadNextFullTransactionId().value {
            return XactStatus::Unknown;
        }
        pgrx::direct_function_call(pg_sys::pg_xact_status, &[Some(pg_sys::Datum::from(xid))])
    };
    match status {
        Some("in progress") => XactStatus::InProgress,
        Some("committed") => XactStatus::Committed,
        Some("aborted") => XactStatus::Aborted,
        _ => XactStatus::Unknown,
    }
}

/// Whether `xid` is running, or prepared.
pub fn is_in_progress(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: asks shared memory, in a process attached to it.
    unsafe { pg_sys::TransactionIdIsInProgress(xid) }
}

/// Whether `xid` is the current transaction, or a subtransaction of it.
pub fn is_current(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: reads the state of the current transaction.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid) }
}

/// The id of the current transaction; 0 if it has none.
pub fn current_xid() -> u64 {
    // SAFETY: reads the state of the current transaction.
    unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value
}

/// Assigns ids to the current transaction and subtransaction, and returns them; 0 for no
/// subtransaction. The transaction must be able to write.
pub fn assign_xids() -> (u64, u64) {
    // SAFETY: in a transaction that can write, as the caller says.
    unsafe {
        let xid = pg_sys::GetTopFullTransactionId().value;
        let subxid = match pg_sys::GetCurrentTransactionNestLevel() {
            ..=1 => 0,
            _ => pg_sys::GetCurrentFullTransactionId().value,
        };
        (xid, subxid)
    }
}

pub fn current_subtransaction() -> pg_sys::SubTransactionId {
    // SAFETY: in a transaction.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// Whether the transaction keeps one snapshot: REPEATABLE READ or SERIALIZABLE.
pub fn is_isolated() -> bool {
    // SAFETY: reads the state of the current transaction.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ.cast_signed() }
}

/// Verifies that the current transaction can write.
///
/// # Errors
/// [`Error::Standby`] or [`Error::ReadOnlyTransaction`].
pub fn require_writable() -> Result<(), Error> {
    // SAFETY: reads of process state, valid at any time on the backend's main thread.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            return Err(Error::Standby);
        }
        if pg_sys::XactReadOnly {
            return Err(Error::ReadOnlyTransaction);
        }
    }
    Ok(())
}

/// The clock, in PostgreSQL's microseconds: what `clock_timestamp()` returns, while `now()` stands
/// still within a transaction.
pub fn clock_timestamp() -> i64 {
    // SAFETY: reads the clock; no precondition.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

pub fn my_pid() -> i32 {
    // SAFETY: a read of the process's own global.
    unsafe { pg_sys::MyProcPid }
}

pub fn my_database() -> pg_sys::Oid {
    // SAFETY: a read of the process's own global.
    unsafe { pg_sys::MyDatabaseId }
}

/// Whether the client's own statement calls, outside of a transaction block: the commit follows
/// when the statement ends, and the client gets no result before. False within PL/pgSQL or another
/// language that uses SPI, where other statements may come first.
fn commit_follows() -> bool {
    // SAFETY: reads the state of the current process. SPI_unregister_relation() takes a C string
    // that names none of a caller's relations, and changes nothing.
    unsafe {
        !pg_sys::MyProcPort.is_null()
            && !pg_sys::IsTransactionBlock()
            && pg_sys::GetCurrentTransactionNestLevel() == 1
            && pg_sys::MyXactFlags.cast_unsigned() & pg_sys::XACT_FLAGS_PIPELINING == 0
            && pg_sys::SPI_unregister_relation(c"loader_history".as_ptr())
                == pg_sys::SPI_ERROR_UNCONNECTED
    }
}

/// Has the commit of the current transaction, or this function, wait until the WAL up to `lsn` is
/// on disk, also with synchronous_commit = off. The commit then waits for standbys as the session's
/// settings say, which PostgreSQL does only if a transaction has written WAL itself.
pub fn wait_for_wal(lsn: u64) {
    // SAFETY: in a transaction with an id, of a server that is not in recovery; `lsn` is within the
    // WAL. The commit record, which is what is waited for, is newer.
    unsafe {
        if pg_sys::XactLastRecEnd == 0 {
            pg_sys::XactLastRecEnd = lsn;
        }
        if commit_follows() {
            pg_sys::ForceSyncCommit();
        } else {
            pg_sys::XLogFlush(lsn);
        }
    }
}

/// Takes the next value of a sequence. If `flush`, the value is not assigned again after a crash,
/// even if the transaction rolls back: a sequence logs 32 values at once, and the call that logs them
/// flushes the WAL.
pub fn next_value(sequence: pg_sys::Oid, flush: bool) -> i64 {
    // SAFETY: in a transaction that can write; XactLastRecEnd is a variable of this process, within
    // the WAL.
    unsafe {
        let before = pg_sys::XactLastRecEnd;
        let value = pg_sys::nextval_internal(sequence, false);
        if flush && pg_sys::XactLastRecEnd != before {
            pg_sys::XLogFlush(pg_sys::XactLastRecEnd);
        }
        value
    }
}
