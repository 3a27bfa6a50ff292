//! The triggers on `loader.execution_history`.

use std::convert::Infallible;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::{AllocatedByPostgres, PgTrigger, pg_sys, pg_trigger};

use crate::error::{Error, raise};
use crate::execution::column;
use crate::notify::notify;
use crate::recorded_loader::remember;
use crate::settings;

/// A row as a trigger has it.
pub type Row<'a> = PgHeapTuple<'a, AllocatedByPostgres>;

/// Remembers the loader of a new row, and emits the event of an execution that has started or whose status has
/// changed. Rows that replication brings emit none.
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
        remember(trigger.trigger().tgoid, loader_id)?;
    }
    if settings::NOTIFY.get() && !is_replica() && is_event(old, new)? {
        notify(trigger, new)?;
    }
    Ok(())
}

/// Whether a change is an event: a start, and whatever changes the status.
fn is_event(old: Option<&Row<'_>>, new: &Row<'_>) -> Result<bool, Error> {
    let status = new.get_by_index::<String>(column::STATUS)?;
    Ok(match old {
        None => status.as_deref() == Some("RUNNING"),
        Some(old) => status != old.get_by_index::<String>(column::STATUS)?,
    })
}

/// Whether the session is in the role in which ordinary triggers do not fire.
pub fn is_replica() -> bool {
    // SAFETY: reads a setting of this process.
    unsafe {
        pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA.cast_signed()
    }
}

/// The triggers of version 1.5.0, until ALTER EXTENSION UPDATE. Its conditions decide what is an event.
#[pg_trigger(sql = false)]
fn notify_execution<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    if settings::NOTIFY.get()
        && let Some(new) = trigger.new()
        && let Err(error) = notify(trigger, &new)
    {
        raise(error);
    }
    Ok(None)
}

/// The other one: the update finds the loaders of the whole history.
#[pg_trigger(sql = false)]
fn remember_loader<'a>(_trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    Ok(None)
}
