//! What the worker reads and writes in the database. All of it is called in a transaction of the worker's.

use std::ffi::CStr;

use pgrx::Spi;
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::pg_sys::{self, BuiltinOid, LockWaitPolicy};

use super::background::set_local;
use super::loader_row::{self, LoaderRow};
use super::shared::Start;
use crate::error::Error;
use crate::event::Event;
use crate::execution::{Status, duration_seconds};
use crate::local_settings::LocalSettings;
use crate::lookup::{OpenRelation, relation, try_lock};
use crate::recorded_loader::remember;
use crate::rights;
use crate::settings;
use crate::statement::{KeptStatement, Rows, Sight};
use crate::time::{end_of_execution, from_postgres};

/// The tables that a start is written into.
const TABLES: [&CStr; 3] = [c"execution_history", c"watched_transaction", c"recorded_loader"];

/// Those that are written where it is known what became of it.
const TABLES_OF_ENDS: [&CStr; 3] =
    [c"execution_history", c"watched_transaction", c"server_outcome"];

thread_local! {
    static INSERT_STARTS: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader.execution_history (id, loader_id, execution_start, status) \
          SELECT s.id, s.loader_id, s.execution_start, 'RUNNING' \
          FROM ROWS FROM (unnest($1), unnest($2), unnest($3)) AS s (id, loader_id, execution_start)",
        &[BuiltinOid::INT8ARRAYOID, BuiltinOid::INT8ARRAYOID, BuiltinOid::TIMESTAMPTZARRAYOID],
    ) };
    // A start alone, as most are, is quicker without arrays.
    static INSERT_START: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader.execution_history (id, loader_id, execution_start, status) \
          VALUES ($1, $2, $3, 'RUNNING')",
        &[BuiltinOid::INT8OID, BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID],
    ) };
    static INSERT_BINDING: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader_history.watched_transaction (execution_id, xid, subxid, notify) \
          VALUES ($1, $2, $3, $4)",
        &[BuiltinOid::INT8OID, BuiltinOid::XID8OID, BuiltinOid::XID8OID, BuiltinOid::BOOLOID],
    ) };
    static INSERT_BINDINGS: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader_history.watched_transaction (execution_id, xid, subxid, notify) \
          SELECT b.id, b.xid::text::xid8, NULLIF(b.subxid, 0)::text::xid8, b.notify \
          FROM ROWS FROM (unnest($1), unnest($2), unnest($3), unnest($4)) AS b (id, xid, subxid, notify)",
        &[
            BuiltinOid::INT8ARRAYOID, BuiltinOid::INT8ARRAYOID, BuiltinOid::INT8ARRAYOID,
            BuiltinOid::BOOLARRAYOID,
        ],
    ) };
    static SELECT_BINDINGS: KeptStatement = const { KeptStatement::new(
        c"SELECT b.execution_id, h.loader_id, b.xid::text::bigint, b.subxid::text::bigint, b.notify \
          FROM loader_history.watched_transaction AS b LEFT JOIN loader.execution_history AS h ON h.id = b.execution_id",
        &[],
    ) };
    static DELETE_BINDINGS: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader_history.watched_transaction WHERE execution_id = ANY ($1)",
        &[BuiltinOid::INT8ARRAYOID],
    ) };
    static DELETE_DERIVED: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader_history.server_outcome WHERE execution_id = ANY ($1)",
        &[BuiltinOid::INT8ARRAYOID],
    ) };
    static DELETE_EXECUTIONS: KeptStatement = const { KeptStatement::new(
        c"DELETE FROM loader.execution_history WHERE id = ANY ($1)",
        &[BuiltinOid::INT8ARRAYOID],
    ) };
    static SELECT_END: KeptStatement = const { KeptStatement::new(
        c"SELECT execution_end FROM loader.execution_history WHERE id = $1",
        &[BuiltinOid::INT8OID],
    ) };
    static LOCK_RUNNING: KeptStatement = const { KeptStatement::new(
        c"SELECT execution_start, loader_id, record_count FROM loader.execution_history \
          WHERE id = $1 AND status = 'RUNNING' FOR NO KEY UPDATE SKIP LOCKED",
        &[BuiltinOid::INT8OID],
    ) };
    static CLOSE: KeptStatement = const { KeptStatement::new(
        c"UPDATE loader.execution_history \
          SET execution_end = $2, status = 'FAILED', error_message = $3, duration_seconds = $4 \
          WHERE id = $1",
        &[
            BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID, BuiltinOid::TEXTOID, BuiltinOid::INT4OID,
        ],
    ) };
    static INSERT_DERIVED: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader_history.server_outcome (execution_id, execution_end) VALUES ($1, $2) \
          ON CONFLICT (execution_id) DO UPDATE SET execution_end = EXCLUDED.execution_end",
        &[BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID],
    ) };
}

/// Runs a statement about some executions.
fn run(statement: &'static std::thread::LocalKey<KeptStatement>, ids: &[i64]) -> Result<(), Error> {
    Spi::connect(|client| {
        let arguments = [ids.to_vec().into()];
        statement.with(|statement| statement.run(client, Sight::Usual, &arguments))?;
        Ok(())
    })
}

/// Locks the tables that a start is written into, where nobody else has them.
///
/// # Errors
/// [`Error::TableLocked`].
pub fn lock_tables() -> Result<(), Error> {
    lock(&TABLES)
}

/// Locks the tables that are written where it is known what became of a start, where nobody else has them.
///
/// # Errors
/// [`Error::TableLocked`].
pub fn lock_to_close() -> Result<(), Error> {
    lock(&TABLES_OF_ENDS)
}

/// Locks tables for writing, where nobody else has them.
///
/// # Errors
/// [`Error::TableLocked`].
pub fn lock(tables: &[&CStr]) -> Result<(), Error> {
    lock_for(tables, pg_sys::RowExclusiveLock)
}

fn lock_for(tables: &[&CStr], mode: u32) -> Result<(), Error> {
    tables.iter().try_for_each(|table| try_lock(table, mode))
}

/// The loader's row, locked where nobody else holds it against that.
pub fn lock_loader(loader_id: i64) -> LoaderRow {
    let Some(history) = relation(c"execution_history") else { return LoaderRow::Missing };
    let history = OpenRelation::table(history, pg_sys::AccessShareLock);
    loader_row::lock(&history, loader_id, LockWaitPolicy::LockWaitSkip)
}

/// Whether all executions have loaders by the foreign key: it is there, and valid.
pub fn is_key_valid() -> bool {
    let Some(history) = relation(c"execution_history") else { return false };
    loader_row::is_key_valid(&OpenRelation::table(history, pg_sys::AccessShareLock))
}

/// Inserts RUNNING executions and their bindings.
///
/// # Errors
/// What SPI says of a call.
pub fn insert(starts: &[&Start]) -> Result<(), Error> {
    remember_loaders(starts.iter().map(|start| start.loader_id))?;
    match starts {
        [] => Ok(()),
        [start] => {
            insert_execution(start.execution_id, start.loader_id, start.start)?;
            insert_binding(start)
        }
        _ => {
            insert_executions(starts)?;
            insert_bindings(starts)
        }
    }
}

/// Does what the trigger does that remembers loaders where it does not fire for the worker: after a restore
/// with `--disable-triggers`, which leaves all triggers as those that replication does not fire.
fn remember_loaders(mut loaders: impl Iterator<Item = i64>) -> Result<(), Error> {
    let Some(history) = relation(c"execution_history") else { return Ok(()) };
    let sleeping = OpenRelation::table(history, pg_sys::RowExclusiveLock)
        .sleeps_in_replication(c"history_inserted");
    sleeping.map_or(Ok(()), |trigger| loaders.try_for_each(|loader| remember(trigger, loader)))
}

fn insert_executions(starts: &[&Start]) -> Result<(), Error> {
    let ids: Vec<_> = starts.iter().map(|start| start.execution_id).collect();
    let loaders: Vec<_> = starts.iter().map(|start| start.loader_id).collect();
    let times: Vec<_> =
        starts.iter().map(|start| TimestampWithTimeZone::try_from(start.start).ok()).collect();
    Spi::connect(|client| {
        let arguments = [ids.into(), loaders.into(), times.into()];
        let count =
            INSERT_STARTS.with(|insert| insert.run(client, Sight::Usual, &arguments))?.len();
        all_of(count, starts.len())
    })
}

/// Inserts bindings.
fn insert_bindings(starts: &[&Start]) -> Result<(), Error> {
    let ids: Vec<_> = starts.iter().map(|start| start.execution_id).collect();
    let xids: Vec<_> = starts.iter().map(|start| start.xid.cast_signed()).collect();
    let subxids: Vec<_> = starts.iter().map(|start| start.subxid.cast_signed()).collect();
    let notify: Vec<_> = starts.iter().map(|start| start.notify).collect();
    Spi::connect(|client| {
        let arguments = [ids.into(), xids.into(), subxids.into(), notify.into()];
        INSERT_BINDINGS.with(|insert| insert.run(client, Sight::Usual, &arguments))?;
        Ok(())
    })
}

/// Inserts a RUNNING execution.
fn insert_execution(execution_id: i64, loader_id: i64, start: i64) -> Result<(), Error> {
    let start = TimestampWithTimeZone::try_from(start).ok();
    Spi::connect(|client| {
        let arguments = [execution_id.into(), loader_id.into(), start.into()];
        let count = INSERT_START.with(|insert| insert.run(client, Sight::Usual, &arguments))?.len();
        all_of(count, 1)
    })
}

/// Whether as many rows of the history were written as was meant to.
fn all_of(count: u64, meant: usize) -> Result<(), Error> {
    if usize::try_from(count) == Ok(meant) { Ok(()) } else { Err(Error::Suppressed) }
}

fn xid8(xid: u64) -> DatumWithOid<'static> {
    // SAFETY: an xid8 is passed by value, as a bigint is.
    unsafe { DatumWithOid::new((xid != 0).then(|| xid.cast_signed()), pg_sys::XID8OID) }
}

fn insert_binding(start: &Start) -> Result<(), Error> {
    Spi::connect(|client| {
        let arguments =
            [start.execution_id.into(), xid8(start.xid), xid8(start.subxid), start.notify.into()];
        INSERT_BINDING.with(|insert| insert.run(client, Sight::Usual, &arguments))?;
        Ok(())
    })
}

/// A row of loader_history.watched_transaction.
pub struct Bound {
    /// The execution's id.
    pub execution_id: i64,
    /// The id of its loader.
    pub loader_id: i64,
    /// The transaction that started it.
    pub xid: u64,
    /// The subtransaction that did, or 0.
    pub subxid: u64,
    /// Whether the session that started it wants events.
    pub notify: bool,
}

/// Every binding.
///
/// # Errors
/// [`Error::TableLocked`], or what SPI says of a call.
pub fn bindings() -> Result<Vec<Bound>, Error> {
    lock_for(&[c"watched_transaction", c"execution_history"], pg_sys::AccessShareLock)?;
    Spi::connect(|client| {
        let rows = SELECT_BINDINGS.with(|select| select.run(client, Sight::Usual, &[]))?;
        let number = |row, column| rows.get::<i64>(row, column).unwrap_or_default();
        Ok((0..rows.len())
            .map(|row| Bound {
                execution_id: number(row, 1),
                loader_id: number(row, 2),
                xid: number(row, 3).cast_unsigned(),
                subxid: number(row, 4).cast_unsigned(),
                notify: rows.get(row, 5).unwrap_or_default(),
            })
            .collect())
    })
}

/// Deletes bindings.
///
/// # Errors
/// What SPI says of a call.
pub fn forget(ids: &[i64]) -> Result<(), Error> {
    run(&DELETE_BINDINGS, ids)
}

/// Removes executions as if they had never been recorded.
///
/// # Errors
/// What SPI says of a call.
pub fn remove(ids: &[i64]) -> Result<(), Error> {
    for statement in [&DELETE_BINDINGS, &DELETE_DERIVED, &DELETE_EXECUTIONS] {
        run(statement, ids)?;
    }
    Ok(())
}

/// What came of ending an execution.
pub enum Closed {
    /// It is FAILED now. The event's payload.
    Failed(String),
    /// It is gone, or the loader has had its word.
    Over,
    /// Another session locks its row: try again.
    Busy,
}

/// Has triggers fire as for anybody, but for the event, which is emitted later.
pub fn fire_triggers() {
    set_local(c"session_replication_role", c"origin");
    set_local(c"loader_history.notify", c"off");
}

/// Has those of the tables that [`forget`] deletes from fire none until this is dropped: foreign keys that refer to
/// them would run their owners' code.
pub fn without_triggers() -> Option<LocalSettings> {
    let open = |name| Some(OpenRelation::table(relation(name)?, pg_sys::NoLock));
    TABLES_OF_ENDS[1..]
        .iter()
        .filter_map(|name| open(name))
        .find_map(|table| rights::without_triggers(&table))
}

/// Ends an execution whose start was rolled back as FAILED, and notes that the server did.
///
/// # Errors
/// What SPI says of a call.
pub fn close(execution_id: i64, message: &str) -> Result<Closed, Error> {
    Spi::connect(|client| {
        let id = || DatumWithOid::from(execution_id);
        let locked = LOCK_RUNNING.with(|lock| lock.run(client, Sight::Usual, &[id()]))?;
        let Some((start, loader_id)) = running(&locked) else {
            let rows = SELECT_END.with(|select| select.run(client, Sight::Usual, &[id()]))?;
            let over = rows.is_empty() || rows.get::<TimestampWithTimeZone>(0, 1).is_some();
            return Ok(if over { Closed::Over } else { Closed::Busy });
        };
        let record_count = locked.get(0, 3);
        // SAFETY: reads the clock.
        let end = end_of_execution(start, unsafe { pg_sys::GetCurrentTimestamp() });
        let seconds = duration_seconds(from_postgres(start), from_postgres(end));
        let stored_end = || DatumWithOid::from(TimestampWithTimeZone::try_from(end).ok());
        let arguments = [id(), stored_end(), message.into(), seconds.into()];
        all_of(CLOSE.with(|close| close.run(client, Sight::Usual, &arguments))?.len(), 1)?;
        INSERT_DERIVED.with(|insert| insert.run(client, Sight::Usual, &[id(), stored_end()]))?;
        let event = Event {
            execution_id,
            loader_id,
            status: Status::Failed,
            time: from_postgres(end),
            record_count,
            duration_seconds: Some(seconds),
            error_message: Some(message).filter(|_| settings::NOTIFY_ERROR_MESSAGE.get()),
            truncated: false,
        };
        Ok(Closed::Failed(event.payload()?))
    })
}

/// The start and the loader of the execution that was locked.
fn running(rows: &Rows<'_>) -> Option<(i64, i64)> {
    Some((rows.get::<TimestampWithTimeZone>(0, 1)?.into_inner(), rows.get(0, 2)?))
}

/// The payload of the event that an execution has started.
///
/// # Errors
/// None in practice, as of [`Event::payload`].
pub fn start_event(execution_id: i64, loader_id: i64, start: i64) -> Result<String, Error> {
    let event = Event {
        execution_id,
        loader_id,
        status: Status::Running,
        time: from_postgres(start),
        record_count: None,
        duration_seconds: None,
        error_message: None,
        truncated: false,
    };
    Ok(event.payload()?)
}
