//! Events of transactions that are prepared for a two-phase commit. They wait in a table of the
//! database, where they share the transaction's fate, until the worker emits them.

use pgrx::{IntoDatum, Spi, pg_sys};

use super::gathered::split;
use crate::error::Error;
use crate::lookup::{OpenRelation, relation};
use crate::statement::{KeptStatement, Sight};

/// The columns of `loader.prepared_event`.
const COLUMNS: usize = 2;

thread_local! {
    static TAKE: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader.prepared_event RETURNING id, payload",
        &[],
    ) };
    static SELECT_PREPARED: KeptStatement = const { KeptStatement::new(
        c"SELECT 1 FROM pg_prepared_xacts WHERE database = current_database() LIMIT 1",
        &[],
    ) };
}

/// Writes the events of the current transaction, which is about to be prepared; false where this version
/// of the SQL has no table for them.
///
/// The row is written as PostgreSQL writes its catalogs': the session's user has no right to the table,
/// which has neither index nor constraint, and at this point of a transaction no query should run.
pub fn write(payloads: &[u8]) -> bool {
    let (Some(table), Some(sequence)) =
        (relation(c"prepared_event"), relation(c"prepared_event_id_seq"))
    else {
        return false;
    };
    let table = OpenRelation::table(table, pg_sys::RowExclusiveLock);
    for payload in split(payloads).filter_map(|payload| std::str::from_utf8(payload).ok()) {
        // SAFETY: in a transaction that may write; the table is open and locked. The tuple is formed by the
        // table's own descriptor, whose columns are a bigint and a text, both given. A snapshot must be
        // active where a long value goes to the TOAST table.
        unsafe {
            let descriptor = (*table.as_ptr()).rd_att;
            if (*descriptor).natts.cast_unsigned() as usize != COLUMNS {
                return false;
            }
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            // Ids tell in which order transactions were prepared.
            let id = pg_sys::nextval_internal(sequence, false);
            let mut values: [pg_sys::Datum; COLUMNS] =
                [id.into(), payload.into_datum().unwrap_or(pg_sys::Datum::null())];
            let mut nulls = [false; COLUMNS];
            let tuple =
                pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::simple_heap_insert(table.as_ptr(), tuple);
            pg_sys::heap_freetuple(tuple);
            pg_sys::PopActiveSnapshot();
        }
    }
    true
}

/// Takes the events of committed transactions, in their order. Called in a transaction, by the worker.
///
/// # Errors
/// What SPI says of a call.
pub fn take() -> Result<Vec<String>, Error> {
    if relation(c"prepared_event").is_none() {
        return Ok(Vec::new());
    }
    Spi::connect(|client| {
        let rows = TAKE.with(|take| take.run(client, Sight::Usual, &[]))?;
        let mut events: Vec<(i64, String)> = (0..rows.len())
            .filter_map(|row| Some((rows.get(row, 1)?, rows.get(row, 2)?)))
            .collect();
        events.sort_unstable();
        Ok(events.into_iter().map(|(_, payload)| payload).collect())
    })
}

/// Whether a transaction of this database is prepared. Called in a transaction.
///
/// # Errors
/// What SPI says of a call.
pub fn is_any_prepared() -> Result<bool, Error> {
    Spi::connect(|client| {
        Ok(!SELECT_PREPARED.with(|select| select.run(client, Sight::Usual, &[]))?.is_empty())
    })
}
