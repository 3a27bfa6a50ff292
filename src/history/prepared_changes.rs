//! `loader_history.prepared_change`: the executions that prepared transactions have changed. A row
//! is committed or rolled back with its transaction, so the worker sees it exactly after COMMIT
//! PREPARED. It then emits the event of the execution in the history.

use pgrx::pg_sys;

use super::tables::{self, PREPARED_CHANGE};
use crate::gucs;
use crate::model::error::Error;
use crate::model::event::Event;
use crate::model::execution::Status;
use crate::pg::relation::{require, trusted};
use crate::pg::security_context::SecurityContext;
use crate::pg::spi::{Rows, SavedPlan, execute, query, with_active_snapshot};

thread_local! {
    static INSERT: SavedPlan = const { SavedPlan::new(
        c"INSERT INTO loader_history.prepared_change (execution_id, xid, status) \
          VALUES ($1, pg_catalog.pg_current_xact_id(), $2) ON CONFLICT DO NOTHING",
    ) };
    // A transaction's changes of one execution in the order in which they can happen.
    static TAKE: SavedPlan = const { SavedPlan::new(
        c"WITH taken AS ( \
              DELETE FROM loader_history.prepared_change WHERE ctid = ANY (ARRAY( \
                  SELECT ctid FROM loader_history.prepared_change LIMIT $1)) \
              RETURNING execution_id, status) \
          SELECT h.id, h.loader_id, t.status::text, h.status::text, h.execution_start, h.execution_end, \
                 h.record_count, h.duration_seconds, h.error_message \
          FROM taken AS t JOIN loader.execution_history AS h ON h.id = t.execution_id \
          ORDER BY h.id, t.status <> 'RUNNING'",
    ) };
    static IS_ANY_LEFT: SavedPlan = const { SavedPlan::new(
        c"SELECT EXISTS (SELECT FROM loader_history.prepared_change) \
              OR EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())",
    ) };
}

/// Events of prepared transactions that were committed.
pub struct Taken {
    /// Their payloads.
    pub payloads: Vec<String>,
    /// Whether there are more, or may be later.
    pub has_more: bool,
}

/// Inserts the changes made by the current transaction, which is about to be prepared. The
/// session's user needs no privilege for it.
pub fn insert(changes: impl Iterator<Item = (i64, Status)>) -> Result<(), Error> {
    let table = require(PREPARED_CHANGE, pg_sys::RowExclusiveLock)?;
    let _rights = SecurityContext::of_owner(&table);
    with_active_snapshot(|| {
        for (execution_id, status) in changes {
            execute(&INSERT, &[execution_id.into(), status.as_str().into()])?;
        }
        Ok(())
    })
}

/// Takes at most `count` changes of committed transactions. Called in a transaction of the worker,
/// which emits them.
pub fn take(count: usize) -> Result<Taken, Error> {
    if trusted(PREPARED_CHANGE)?.is_none() {
        // The extension was dropped.
        return Ok(Taken { payloads: Vec::new(), has_more: false });
    }
    tables::try_lock_all(&[PREPARED_CHANGE], pg_sys::RowExclusiveLock)?;
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let payloads = query(&TAKE, &[count.into()], |rows| {
        (0..rows.len()).filter_map(|row| event(rows, row).transpose()).collect::<Result<_, _>>()
    })??;
    let has_more = query(&IS_ANY_LEFT, &[], |rows| rows.get(0, 1).unwrap_or(true))?;
    Ok(Taken { payloads, has_more })
}

/// The payload of the event of a change; `None` if the execution has gone back to RUNNING.
fn event(rows: &Rows<'_>, row: u64) -> Result<Option<String>, Error> {
    let time = |column| rows.time(row, column);
    let status = |column| {
        let text = rows.get::<String>(row, column);
        text.and_then(|text| Status::parse(&text, &Status::ALL))
    };
    let (Some(id), Some(loader_id)) = (rows.get(row, 1), rows.get(row, 2)) else { return Ok(None) };
    let error_message = rows.get::<String>(row, 9).filter(|_| gucs::NOTIFY_ERROR_MESSAGE.get());
    let event = match (status(3), status(4), time(5), time(6)) {
        (Some(Status::Running), _, Some(start), _) => {
            Event::new(id, loader_id, Status::Running, start)
        }
        (Some(_), Some(status), _, Some(end)) => Event {
            record_count: rows.get(row, 7),
            duration_seconds: rows.get(row, 8),
            error_message: error_message.as_deref(),
            ..Event::new(id, loader_id, status, end)
        },
        _ => return Ok(None),
    };
    Ok(Some(event.payload()?))
}
