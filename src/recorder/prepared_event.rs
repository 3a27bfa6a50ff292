//! Events of transactions that are prepared for a two-phase commit. They wait in a table of the
//! database, where they share the transaction's fate, until the worker emits them.

use std::ffi::CStr;

use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::{IntoDatum, Spi};

use super::gathered::split;
use super::ledger;
use super::shared::EventQueue;
use crate::error::Error;
use crate::local_settings::{LocalSettings, Setting};
use crate::lookup::{OpenRelation, relation};
use crate::statement::{KeptStatement, Sight};

const TABLE: &CStr = c"prepared_event";

/// The types of its columns.
const COLUMNS: [pg_sys::Oid; 2] = [pg_sys::INT8OID, pg_sys::TEXTOID];

/// Settings under which the statements are planned: rows are deleted by their places, whatever the table's
/// statistics say.
const PLANNER_SETTINGS: [Setting; 3] = [
    (c"plan_cache_mode", c"force_generic_plan"),
    (c"enable_tidscan", c"on"),
    (c"enable_seqscan", c"off"),
];

thread_local! {
    static SELECT: KeptStatement = const { KeptStatement::new(
        c"SELECT id, payload, ctid::text FROM loader_history.prepared_event ORDER BY id LIMIT $1",
        &[BuiltinOid::INT8OID],
    ) };
    static DELETE: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader_history.prepared_event WHERE ctid = ANY ($1::tid[])",
        &[BuiltinOid::TEXTARRAYOID],
    ) };
    static SELECT_PREPARED: KeptStatement = const { KeptStatement::new(
        c"SELECT transaction FROM pg_prepared_xacts WHERE database = current_database()",
        &[],
    ) };
}

/// An event of a prepared transaction that was committed.
pub struct PreparedEvent {
    /// Its place in the order of all batches of events.
    pub ticket: u64,
    /// What NOTIFY is to carry.
    pub payload: String,
    /// Where its row is.
    place: String,
}

/// Writes the events of the current transaction, which is about to be prepared; false where this version
/// of the SQL has no table for them.
pub fn write(payloads: &[u8], queue: EventQueue) -> bool {
    let Some(table) = open() else { return false };
    let count = u64::try_from(split(payloads).count()).unwrap_or_default();
    for (ticket, payload) in (queue.draw_tickets(count)..).zip(split(payloads)) {
        if let Ok(payload) = std::str::from_utf8(payload) {
            insert(&table, ticket, payload);
        }
    }
    true
}

/// Writes events of the worker's own, with their tickets; false where this version of the SQL has no table for
/// them. Called in a transaction.
///
/// # Errors
/// [`Error::TableLocked`].
pub fn write_own<'a>(events: impl Iterator<Item = (u64, &'a str)>) -> Result<bool, Error> {
    ledger::lock(&[TABLE])?;
    let Some(table) = open() else { return Ok(false) };
    for (ticket, payload) in events {
        insert(&table, ticket, payload);
    }
    Ok(true)
}

/// The table, open and locked for writing; `None` where this version of the SQL has none like that.
fn open() -> Option<OpenRelation> {
    let table = OpenRelation::table(relation(TABLE)?, pg_sys::RowExclusiveLock);
    // SAFETY: the relation is open; SPI_gettypeid() itself checks the column's number.
    let is_ours = unsafe {
        let descriptor = (*table.as_ptr()).rd_att;
        let types =
            (1..=(*descriptor).natts).map(|column| pg_sys::SPI_gettypeid(descriptor, column));
        types.eq(COLUMNS)
    };
    is_ours.then_some(table)
}

/// Inserts a row as PostgreSQL writes its catalogs': the session's user has no right to the table, which has
/// neither index nor constraint, and where a transaction is about to be prepared no query should run.
fn insert(table: &OpenRelation, ticket: u64, payload: &str) {
    // SAFETY: in a transaction that may write; the table is open and locked. The tuple is formed by the
    // table's own descriptor, whose columns are a bigint and a text, both given. A snapshot must
    // be active where a long value goes to the TOAST table.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let mut values: [pg_sys::Datum; COLUMNS.len()] =
            [ticket.cast_signed().into(), payload.into_datum().unwrap_or(pg_sys::Datum::null())];
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

/// The first `count` events of committed transactions, in their order. Called in a transaction, by the
/// worker.
///
/// # Errors
/// [`Error::TableLocked`], or what SPI says of a call.
pub fn committed(count: usize) -> Result<Vec<PreparedEvent>, Error> {
    if relation(TABLE).is_none() {
        return Ok(Vec::new());
    }
    ledger::lock(&[TABLE])?;
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let _planned_so = LocalSettings::set(&PLANNER_SETTINGS);
    Spi::connect(|client| {
        let rows = SELECT.with(|select| select.run(client, Sight::Usual, &[count.into()]))?;
        let events = (0..rows.len()).filter_map(|row| {
            let ticket = rows.get::<i64>(row, 1)?.cast_unsigned();
            Some(PreparedEvent { ticket, payload: rows.get(row, 2)?, place: rows.get(row, 3)? })
        });
        Ok(events.collect())
    })
}

/// Deletes events, in the transaction that has read and that emits them.
///
/// # Errors
/// What SPI says of a call.
pub fn delete(events: &[&PreparedEvent]) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let places: Vec<_> = events.iter().map(|event| event.place.as_str()).collect();
    let _planned_so = LocalSettings::set(&PLANNER_SETTINGS);
    Spi::connect(|client| {
        DELETE.with(|delete| delete.run(client, Sight::Usual, &[places.into()]))?;
        Ok(())
    })
}

/// The transactions of this database that are prepared. Called in a transaction.
///
/// # Errors
/// What SPI says of a call.
pub fn prepared_transactions() -> Result<Vec<pg_sys::TransactionId>, Error> {
    Spi::connect(|client| {
        let rows = SELECT_PREPARED.with(|select| select.run(client, Sight::Usual, &[]))?;
        Ok((0..rows.len()).filter_map(|row| rows.get(row, 1)).collect())
    })
}
