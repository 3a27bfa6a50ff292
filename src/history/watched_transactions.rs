//! `loader_history.watched_transaction`: the transactions that have made autonomous starts and
//! whose end is not known. Only the worker writes it.

use pgrx::pg_sys;

use super::tables::{self, EXECUTION_HISTORY, WATCHED_TRANSACTION};
use crate::model::error::Error;
use crate::pg::index_scan::{Key, find};
use crate::pg::relation::open;
use crate::pg::spi::{SavedPlan, execute, query, xid8};
use crate::pg::xact::{self, XactStatus};
use crate::shmem::start_queue::Start;

thread_local! {
    // A start alone, as most are, is faster without arrays.
    static INSERT_ONE: SavedPlan = const { SavedPlan::new(
        c"INSERT INTO loader_history.watched_transaction (execution_id, xid, subxid, notify) \
          VALUES ($1, $2, $3, $4)",
    ) };
    static INSERT_ALL: SavedPlan = const { SavedPlan::new(
        c"INSERT INTO loader_history.watched_transaction (execution_id, xid, subxid, notify) \
          SELECT w.id, w.xid::text::xid8, NULLIF(w.subxid, 0)::text::xid8, w.notify \
          FROM ROWS FROM (unnest($1), unnest($2), unnest($3), unnest($4)) AS w (id, xid, subxid, notify)",
    ) };
    static SELECT_ALL: SavedPlan = const { SavedPlan::new(
        c"SELECT w.execution_id, h.loader_id, w.xid::text::bigint, w.subxid::text::bigint, w.notify \
          FROM loader_history.watched_transaction AS w \
          LEFT JOIN loader.execution_history AS h ON h.id = w.execution_id",
    ) };
    static DELETE: SavedPlan = const { SavedPlan::new(
        c"DELETE FROM loader_history.watched_transaction WHERE execution_id = ANY ($1)",
    ) };
}

/// A row of the table.
pub struct WatchedTransaction {
    pub execution_id: i64,
    pub loader_id: i64,
    /// The transaction that started it.
    pub xid: u64,
    /// The subtransaction that did; 0 for none.
    pub subxid: u64,
    /// Whether the session that started it wants events.
    pub notify: bool,
}

/// Inserts the transactions that have made starts, under these execution ids.
pub fn insert(starts: &[(i64, Start)]) -> Result<(), Error> {
    if let [(id, start)] = starts {
        let arguments = [(*id).into(), xid8(start.xid), xid8(start.subxid), start.notify.into()];
        execute(&INSERT_ONE, &arguments)?;
        return Ok(());
    }
    let ids: Vec<_> = starts.iter().map(|(id, _)| *id).collect();
    let xids: Vec<_> = starts.iter().map(|(_, start)| start.xid.cast_signed()).collect();
    let subxids: Vec<_> = starts.iter().map(|(_, start)| start.subxid.cast_signed()).collect();
    let notify: Vec<_> = starts.iter().map(|(_, start)| start.notify).collect();
    execute(&INSERT_ALL, &[ids.into(), xids.into(), subxids.into(), notify.into()])?;
    Ok(())
}

/// All rows.
pub fn all() -> Result<Vec<WatchedTransaction>, Error> {
    tables::try_lock_all(&[WATCHED_TRANSACTION, EXECUTION_HISTORY], pg_sys::AccessShareLock)?;
    query(&SELECT_ALL, &[], |rows| {
        let number = |row, column| rows.get::<i64>(row, column).unwrap_or_default();
        (0..rows.len())
            .map(|row| WatchedTransaction {
                execution_id: number(row, 1),
                loader_id: number(row, 2),
                xid: number(row, 3).cast_unsigned(),
                subxid: number(row, 4).cast_unsigned(),
                notify: rows.get(row, 5).unwrap_or(true),
            })
            .collect()
    })
}

/// Deletes the rows of executions.
pub fn delete(execution_ids: &[i64]) -> Result<(), Error> {
    if execution_ids.is_empty() {
        return Ok(());
    }
    execute(&DELETE, &[execution_ids.to_vec().into()])?;
    Ok(())
}

/// Whether an execution was started by a transaction of another session, or a prepared one, that is
/// open.
pub fn is_open_elsewhere(execution_id: i64) -> Result<bool, Error> {
    // The SQL of version 1.5.0 has no such table.
    let Some(table) = open(WATCHED_TRANSACTION, pg_sys::AccessShareLock)? else { return Ok(false) };
    // SAFETY: column 2 of the table is an xid8, which is passed by value as a bigint is.
    let xid = find(&table, &Key::id(execution_id), |row| unsafe { row.get::<i64>(2) }).flatten();
    Ok(xid.is_some_and(|xid| {
        let xid = xid.cast_unsigned();
        xid != xact::current_xid() && xact::status(xid) == XactStatus::InProgress
    }))
}
