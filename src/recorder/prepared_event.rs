//! Events of transactions that are prepared for a two-phase commit. They wait in a table of the
//! database, where they share the transaction's fate, until the worker emits them.

use std::ffi::CStr;

use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::{IntoDatum, Spi};

use super::gathered::split;
use super::ledger;
use super::shared::EventQueue;
use crate::error::Error;
use crate::lookup::{OpenRelation, relation};
use crate::statement::{KeptStatement, Sight};

const TABLE: &CStr = c"prepared_event";

/// The types of its columns.
const COLUMNS: [pg_sys::Oid; 2] = [pg_sys::INT8OID, pg_sys::TEXTOID];

thread_local! {
    static SELECT: KeptStatement = const { KeptStatement::new(
        c"SELECT id, payload FROM loader.prepared_event",
        &[],
    ) };
    static DELETE: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader.prepared_event WHERE id = ANY ($1)",
        &[BuiltinOid::INT8ARRAYOID],
    ) };
    static SELECT_PREPARED: KeptStatement = const { KeptStatement::new(
        c"SELECT 1 FROM pg_prepared_xacts WHERE database = current_database() LIMIT 1",
        &[],
    ) };
}

/// An event of a prepared transaction that was committed.
pub struct PreparedEvent {
    /// Its place in the order of all batches of events.
    pub ticket: u64,
    /// What NOTIFY is to carry.
    pub payload: String,
}

/// Writes the events of the current transaction, which is about to be prepared; false where this version
/// of the SQL has no table for them.
///
/// A row is written as PostgreSQL writes its catalogs': the session's user has no right to the table,
/// which has neither index nor constraint, and at this point of a transaction no query should run.
pub fn write(payloads: &[u8], queue: EventQueue) -> bool {
    let Some(table) = relation(TABLE) else { return false };
    let table = OpenRelation::table(table, pg_sys::RowExclusiveLock);
    // SAFETY: the relation is open; SPI_gettypeid() itself checks the column's number.
    let is_ours = unsafe {
        let descriptor = (*table.as_ptr()).rd_att;
        let types =
            (1..=(*descriptor).natts).map(|column| pg_sys::SPI_gettypeid(descriptor, column));
        types.eq(COLUMNS)
    };
    if !is_ours {
        return false;
    }
    let count = u64::try_from(split(payloads).count()).unwrap_or_default();
    for (ticket, payload) in (queue.draw_tickets(count)..).zip(split(payloads)) {
        let Ok(payload) = std::str::from_utf8(payload) else { continue };
        // SAFETY: in a transaction that may write; the table is open and locked. The tuple is formed by the
        // table's own descriptor, whose columns are a bigint and a text, both given. A snapshot must be
        // active where a long value goes to the TOAST table.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let mut values: [pg_sys::Datum; COLUMNS.len()] = [
                ticket.cast_signed().into(),
                payload.into_datum().unwrap_or(pg_sys::Datum::null()),
            ];
            let mut nulls = [false; COLUMNS.len()];
            let tuple = pg_sys::heap_form_tuple(
                (*table.as_ptr()).rd_att,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            pg_sys::simple_heap_insert(table.as_ptr(), tuple);
            pg_sys::heap_freetuple(tuple);
            pg_sys::PopActiveSnapshot();
        }
    }
    true
}

/// The events of committed transactions, in their order. Called in a transaction, by the worker.
///
/// # Errors
/// [`Error::TableLocked`], or what SPI says of a call.
pub fn committed() -> Result<Vec<PreparedEvent>, Error> {
    if relation(TABLE).is_none() {
        return Ok(Vec::new());
    }
    ledger::lock(&[TABLE])?;
    Spi::connect(|client| {
        let rows = SELECT.with(|select| select.run(client, Sight::Usual, &[]))?;
        let mut events: Vec<_> = (0..rows.len())
            .filter_map(|row| {
                let ticket = rows.get::<i64>(row, 1)?.cast_unsigned();
                Some(PreparedEvent { ticket, payload: rows.get(row, 2)? })
            })
            .collect();
        events.sort_unstable_by_key(|event| event.ticket);
        Ok(events)
    })
}

/// Deletes events, in the transaction that emits them.
///
/// # Errors
/// What SPI says of a call.
pub fn delete(events: &[PreparedEvent]) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = events.iter().map(|event| event.ticket.cast_signed()).collect();
    Spi::connect(|client| {
        DELETE.with(|delete| delete.run(client, Sight::Usual, &[ids.into()]))?;
        Ok(())
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
