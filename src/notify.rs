//! NOTIFY: what listeners hear of an execution.

use std::ffi::{CStr, CString};

use pgrx::datum::{TimestampWithTimeZone, TryFromDatumError};
use pgrx::htup::heap_getattr_raw;
use pgrx::{PgTrigger, pg_sys, varlena};

use crate::error::Error;
use crate::event::{Event, MAX_PAYLOAD_BYTES};
use crate::execution::{Status, column};
use crate::recorder;
use crate::settings;
use crate::time::from_postgres;
use crate::triggers::Row;

/// The channel that listeners LISTEN on.
const CHANNEL: &CStr = c"loader_execution";

/// Emits the event that `row`, the new row of `trigger`, is.
///
/// # Errors
/// Where the row is not one of the history's.
pub fn notify(trigger: &PgTrigger<'_>, row: &Row<'_>) -> Result<(), Error> {
    let message =
        settings::NOTIFY_ERROR_MESSAGE.get().then(|| message_start(trigger, row)).flatten();
    let Some(event) = read_event(row, message.as_ref())? else { return Ok(()) };
    let payload = event.payload()?;
    if !recorder::gather(&payload) {
        emit(payload);
    }
    Ok(())
}

/// Emits an event's payload when the current transaction commits.
pub fn emit(payload: impl Into<Vec<u8>>) {
    // JSON escapes the only character that a C string can't hold.
    let Ok(payload) = CString::new(payload) else { return };
    // SAFETY: both are C strings that PostgreSQL copies; called in a transaction.
    unsafe { pg_sys::Async_Notify(CHANNEL.as_ptr(), payload.as_ptr()) };
}

/// The event that `row` is now, with `message`, the beginning of its error message and whether there is more.
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
        execution_id,
        loader_id,
        status,
        time: from_postgres(time.into_inner()),
        record_count: row.get_by_index(column::RECORD_COUNT)?,
        duration_seconds: row.get_by_index(column::DURATION_SECONDS)?,
        error_message: message.map(|(start, _)| start.as_str()),
        truncated: message.is_some_and(|(_, more)| *more),
    }))
}

/// The beginning of the row's error message, and whether there is more of it.
///
/// Reads no more of the message than an event can carry: it may be hundreds of megabytes long.
fn message_start(trigger: &PgTrigger<'_>, row: &Row<'_>) -> Option<(String, bool)> {
    let attribute = row.get_attribute_by_index(column::ERROR_MESSAGE)?;
    // The trigger may have been created on a table of another make.
    if attribute.type_oid().value() != pg_sys::TEXTOID {
        return None;
    }
    let data = trigger.trigger_data();
    let tuple =
        if trigger.event().fired_by_insert() { data.tg_trigtuple } else { data.tg_newtuple };
    let slice_bytes = i32::try_from(MAX_PAYLOAD_BYTES).unwrap_or(i32::MAX);
    // SAFETY: PostgreSQL fired this row trigger, so the tuple (the same that `row` was made from) and
    // the relation's descriptor are valid until it returns. The column is a text, as was just checked,
    // in the database's encoding; that is UTF-8, or CREATE EXTENSION would have refused. The slice is a
    // fresh copy.
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
