//! The trigger that keeps `loader.recorded_loader`: every loader that has history.
//!
//! In Rust for the sake of restores: it fires for each row, and must not ask a table about the same
//! few thousand loaders a million times.

use std::cell::RefCell;
use std::collections::HashSet;
use std::convert::Infallible;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::{AllocatedByPostgres, PgTrigger, Spi, pg_trigger};

use crate::error::{Error, raise};
use crate::execution::column;
use crate::lookup::{Key, OpenRelation, find, relation};
use crate::rights::OwnersRights;
use crate::statement::{KeptStatement, Sight};

/// Loaders known to be in the table, as one subtransaction saw it.
///
/// Valid within that subtransaction only: while it is the current one, what it saw or wrote cannot
/// have been rolled back. And for that trigger only, by its OID: the extension may have been
/// dropped and created again.
#[derive(Default)]
struct Known {
    scope: Option<(pg_sys::Oid, u64, pg_sys::SubTransactionId)>,
    loaders: HashSet<i64>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
    static INSERT_KNOWN: KeptStatement = const { KeptStatement::new(
        c"INSERT INTO loader.recorded_loader (loader_id) VALUES ($1)",
        &[BuiltinOid::INT8OID],
    ) };
}

/// Remembers the loader of the row that fired the trigger.
#[pg_trigger(sql = false)]
fn remember_loader<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, Infallible> {
    if let Some(row) = trigger.new() {
        let oid = trigger.trigger().tgoid;
        let remembered = row.get_by_index(column::LOADER_ID).map_err(Error::Row);
        if let Err(error) = remembered.and_then(|id| id.map_or(Ok(()), |id| remember(oid, id))) {
            raise(error);
        }
    }
    Ok(None)
}

/// Makes sure that the table has `loader_id`, for a row that was written or is about to be. The OID of the trigger
/// tells one extension from another that was created after it.
///
/// # Errors
/// What SPI says of a call.
pub fn remember(trigger: pg_sys::Oid, loader_id: i64) -> Result<(), Error> {
    // SAFETY: called in a transaction, which has its id or may get it, since it writes the row.
    let scope = unsafe {
        Some((
            trigger,
            pg_sys::GetTopFullTransactionId().value,
            pg_sys::GetCurrentSubTransactionId(),
        ))
    };
    let known = KNOWN.with_borrow_mut(|known| {
        if known.scope != scope {
            known.scope = scope;
            known.loaders.clear();
        }
        known.loaders.contains(&loader_id)
    });
    if known {
        return Ok(());
    }
    let table = relation(c"recorded_loader")
        .map(|table| OpenRelation::table(table, pg_sys::RowExclusiveLock));
    // Without a predicate lock: serializable sessions that start different loaders would fail each other.
    let is_there =
        table.as_ref().is_some_and(|table| find(table, &Key::id(loader_id), |_| ()).is_some());
    if !is_there {
        // Whoever may write the history need not have a right to this table. (SECURITY
        // DEFINER with a search_path would take longer than to look does, at each start.)
        let _rights = table.as_ref().map(OwnersRights::of);
        Spi::connect(|client| {
            let arguments = [loader_id.into()];
            INSERT_KNOWN.with(|insert| insert.run(client, Sight::Usual, &arguments))?;
            Ok::<(), Error>(())
        })?;
    }
    KNOWN.with_borrow_mut(|known| {
        if known.scope == scope {
            known.loaders.insert(loader_id);
        }
    });
    Ok(())
}
