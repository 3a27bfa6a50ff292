//! The trigger functions.

use std::convert::Infallible;

use pgrx::datum::{TimestampWithTimeZone, TryFromDatumError};
use pgrx::heap_tuple::PgHeapTuple;
use pgrx::htup::heap_getattr_raw;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{AllocatedByPostgres, PgLogLevel, PgTrigger, pg_sys, pg_trigger, varlena};

use super::xact_callbacks;
use crate::history::recorded_loaders;
use crate::model::error::Error;
use crate::model::event::{Event, MAX_PAYLOAD_BYTES};
use crate::model::execution::{Status, column};
use crate::pg::bgworker;
use crate::{gucs, pg};

/// A row as a trigger has it.
type Row<'a> = PgHeapTuple<'a, AllocatedByPostgres>;

/// Records the loader of a new row, and emits the event of an execution that has started or whose
/// status has changed. Replicated rows emit no events.
#[pg_trigger(sql = false)]
fn history_changed<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    if let Some(new) = trigger.new()
        && let Err(error) = on_change(trigger, trigger.old().as_ref(), &new)
    {
        raise(error);
    }
    Ok(None)
}

fn on_change(trigger: &PgTrigger<'_>, old: Option<&Row<'_>>, new: &Row<'_>) -> Result<(), Error> {
    let loader_id = new.get_by_index::<i64>(column::LOADER_ID)?;
    let known = old.map(|old| old.get_by_index::<i64>(column::LOADER_ID)).transpose()?.flatten();
    if let Some(loader_id) = loader_id.filter(|_| loader_id != known) {
        recorded_loaders::insert(trigger.trigger().tgoid, loader_id)?;
    }
    if gucs::NOTIFY.get() && !is_replica() && is_event(old, new)? {
        notify(trigger, new)?;
    }
    Ok(())
}

/// Whether a change is an event: a start, or a change of the status.
fn is_event(old: Option<&Row<'_>>, new: &Row<'_>) -> Result<bool, Error> {
    let status = new.get_by_index::<String>(column::STATUS)?;
    Ok(match old {
        None => status.as_deref() == Some("RUNNING"),
        Some(old) => status != old.get_by_index::<String>(column::STATUS)?,
    })
}

/// Whether session_replication_role is replica, so that ordinary triggers do not fire.
fn is_replica() -> bool {
    // SAFETY: reads a setting of this process.
    unsafe {
        pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA.cast_signed()
    }
}

/// Emits the event that `row`, the new row of `trigger`, is.
fn notify(trigger: &PgTrigger<'_>, row: &Row<'_>) -> Result<(), Error> {
    let message = gucs::NOTIFY_ERROR_MESSAGE.get().then(|| message_start(trigger, row)).flatten();
    let Some(event) = read_event(row, message.as_ref())? else { return Ok(()) };
    let payload = event.payload()?;
    if !xact_callbacks::add_event(&payload, event.execution_id, event.status) {
        pg::notify::emit(payload.as_bytes());
    }
    Ok(())
}

/// The event that `row` is now, with `message`, the beginning of its error message and whether
/// there is more.
fn read_event<'a>(
    row: &Row<'_>,
    message: Option<&'a (String, bool)>,
) -> Result<Option<Event<'a>>, TryFromDatumError> {
    let status = row.get_by_index::<String>(column::STATUS)?;
    let Some(status) = status.and_then(|status| Status::parse(&status, &Status::ALL)) else {
        return Ok(None);
    };
    let time = match status {
        Status::Running => row.get_by_index::<TimestampWithTimeZone>(column::EXECUTION_START)?,
        Status::Success | Status::Failed => row.get_by_index(column::EXECUTION_END)?,
    };
    let (Some(execution_id), Some(loader_id), Some(time)) =
        (row.get_by_index(column::ID)?, row.get_by_index(column::LOADER_ID)?, time)
    else {
        return Ok(None);
    };
    Ok(Some(Event {
        record_count: row.get_by_index(column::RECORD_COUNT)?,
        duration_seconds: row.get_by_index(column::DURATION_SECONDS)?,
        error_message: message.map(|(start, _)| start.as_str()),
        truncated: message.is_some_and(|(_, more)| *more),
        ..Event::new(execution_id, loader_id, status, time.into_inner())
    }))
}

/// The beginning of the row's error message, and whether there is more of it.
///
/// Reads no more of the message than an event can carry: it may be hundreds of megabytes long.
fn message_start(trigger: &PgTrigger<'_>, row: &Row<'_>) -> Option<(String, bool)> {
    let attribute = row.get_attribute_by_index(column::ERROR_MESSAGE)?;
    // The trigger may have been created on a table with other columns.
    if attribute.type_oid().value() != pg_sys::TEXTOID {
        return None;
    }
    let data = trigger.trigger_data();
    let tuple =
        if trigger.event().fired_by_insert() { data.tg_trigtuple } else { data.tg_newtuple };
    let slice_bytes = i32::try_from(MAX_PAYLOAD_BYTES).unwrap_or(i32::MAX);
    // SAFETY: PostgreSQL fired this row trigger, so the tuple (the same that `row` was made from)
    // and the relation's descriptor are valid until it returns. The column is a text, as was just
    // checked, in the database's encoding; that is UTF-8, or CREATE EXTENSION would have refused.
    // The slice is a fresh copy.
    let (bytes, whole_size) = unsafe {
        let datum = heap_getattr_raw(tuple, column::ERROR_MESSAGE, (*data.tg_relation).rd_att)?;
        let slice = pg_sys::pg_detoast_datum_slice(datum.cast_mut_ptr(), 0, slice_bytes);
        let whole_size = pg_sys::toast_raw_datum_size(datum) - pg_sys::VARHDRSZ;
        (varlena::varlena_to_byte_slice(slice), whole_size)
    };
    // The slice may end inside a character.
    let start = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    Some((start.to_owned(), bytes.len() < whole_size))
}

/// Drops replicated rows, which hold another cluster's transaction ids.
#[pg_trigger(sql = false)]
fn drop_replicated_row<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    Ok(own_row(trigger))
}

/// The row, unless it is replicated. The worker has the same session_replication_role as an apply
/// worker.
fn own_row<'a>(trigger: &'a PgTrigger<'a>) -> Option<Row<'a>> {
    trigger.new().filter(|_| bgworker::is_worker() || !is_replica())
}

/// Raises `error`. If a trigger function returned it, the wrapper that pgrx generates would lose
/// its SQLSTATE.
fn raise(error: Error) {
    ErrorReport::from(error).report(PgLogLevel::ERROR);
}

// The triggers of version 1.5.0, until ALTER EXTENSION UPDATE.

/// Emits an event. The triggers' WHEN conditions decide whether a change is one.
#[pg_trigger(sql = false)]
fn notify_execution<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    if gucs::NOTIFY.get()
        && let Some(new) = trigger.new()
        && let Err(error) = notify(trigger, &new)
    {
        raise(error);
    }
    Ok(None)
}

/// Does nothing: the update of the extension records the loaders of the whole history.
#[pg_trigger(sql = false)]
fn remember_loader<'a>(_trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    Ok(None)
}

/// As [`drop_replicated_row`].
#[pg_trigger(sql = false)]
fn refuse_foreign_binding<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    Ok(own_row(trigger))
}
