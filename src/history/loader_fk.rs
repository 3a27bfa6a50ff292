//! The lock on a loader's row that a start takes in the caller's own transaction, as the foreign
//! key would: the row cannot be deleted while the worker records its execution.

use pgrx::PgList;
use pgrx::pg_sys::{self, LockTupleMode, LockWaitPolicy};

use super::tables::EXECUTION_HISTORY;
use crate::model::error::Error;
use crate::pg::compat;
use crate::pg::index_scan::{Key, find};
use crate::pg::relation::{OpenRelation, require};
use crate::pg::syscache;
use crate::pg::tuple_lock::{self, Locked};
use crate::pg::xact;

/// The column of the history that names the loader, the second by the contract.
const LOADER_ID_COLUMN: pg_sys::AttrNumber = 2;

/// How often the lookup of a row that other sessions change is repeated.
const ATTEMPTS: u32 = 100;

/// The loader's row, as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoaderRow {
    /// Locked, and committed.
    Committed,
    /// Locked, and last written by the current transaction: other sessions may not see it.
    Own,
    /// Not there.
    Missing,
    /// It exists, and another session locks it.
    Busy,
    /// Another session locks its table.
    TableBusy,
    /// Not looked up: there is no foreign key, or it is not enforced.
    Unchecked,
    /// The foreign key references a column whose type is not supported.
    Unsupported,
}

/// Locks the row of `loader_id` as the foreign key of `history` would; `wait` says whether to wait
/// for other sessions.
pub fn lock(history: &OpenRelation, loader_id: i64, wait: LockWaitPolicy::Type) -> LoaderRow {
    for _ in 0..ATTEMPTS {
        if let Ok(row) = try_lock(history, loader_id, wait) {
            return row;
        }
    }
    LoaderRow::Busy
}

/// The row changed between being found and being locked.
struct RowChanged;

fn try_lock(
    history: &OpenRelation,
    loader_id: i64,
    wait: LockWaitPolicy::Type,
) -> Result<LoaderRow, RowChanged> {
    let Some(key) = foreign_key(history) else { return Ok(LoaderRow::Unchecked) };
    let (target, column) = (key.confrelid, key.confkey[0]);
    let Some(table) = open(target, wait) else { return Ok(LoaderRow::TableBusy) };
    // SAFETY: catalog lookups of a column of a table that is open.
    let (name, column_type) = unsafe {
        let column_type = pg_sys::getBaseType(pg_sys::get_atttype(target, column));
        (pg_sys::get_attname(target, column, false), column_type)
    };
    let types = [pg_sys::INT8OID, pg_sys::INT4OID, pg_sys::INT2OID, pg_sys::NUMERICOID];
    if !types.contains(&column_type) {
        return Ok(LoaderRow::Unsupported);
    }
    for oid in tables(&table, target) {
        let Some(table) = open(oid, wait) else { return Ok(LoaderRow::TableBusy) };
        // SAFETY: a catalog lookup by a C string; partitions have the columns in orders of their
        // own.
        let column = unsafe { pg_sys::get_attnum(oid, name) };
        let Some(key) = Key::number(column, column_type, loader_id) else { break };
        let Some((tid, writer)) = find(&table, &key, |row| (row.tid, row.writer)) else {
            continue;
        };
        return match tuple_lock::lock(&table, tid, LockTupleMode::LockTupleKeyShare, wait) {
            Locked::Yes if xact::is_current(writer) => Ok(LoaderRow::Own),
            Locked::Yes => Ok(LoaderRow::Committed),
            Locked::Busy => Ok(LoaderRow::Busy),
            Locked::Changed | Locked::Gone => Err(RowChanged),
        };
    }
    Ok(LoaderRow::Missing)
}

/// Opens a table as the foreign key does; `None` if another session locks it, unless `wait` is to
/// block.
fn open(oid: pg_sys::Oid, wait: LockWaitPolicy::Type) -> Option<OpenRelation> {
    let lock = pg_sys::RowShareLock;
    // SAFETY: in a transaction, at whose end the lock is released.
    let free = wait == LockWaitPolicy::LockWaitBlock
        || unsafe { pg_sys::ConditionalLockRelationOid(oid, lock.cast_signed()) };
    free.then(|| OpenRelation::table(oid, lock))
}

/// The tables that hold the rows of a table: itself, or its partitions.
fn tables(table: &OpenRelation, oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: the table is open, so its partitions cannot be dropped; the list is read before it is
    // freed.
    unsafe {
        if (*(*table.as_ptr()).rd_rel).relkind as u8 != pg_sys::RELKIND_PARTITIONED_TABLE {
            return vec![oid];
        }
        let none = pg_sys::NoLock.cast_signed();
        let list = pg_sys::find_all_inheritors(oid, none, std::ptr::null_mut());
        let leaves = PgList::<pg_sys::Oid>::from_pg(list)
            .iter_oid()
            .filter(|&leaf| pg_sys::get_rel_relkind(leaf) as u8 == pg_sys::RELKIND_RELATION)
            .collect();
        pg_sys::list_free(list);
        leaves
    }
}

/// Whether the history's foreign key exists and is valid.
pub fn is_valid() -> Result<bool, Error> {
    let history = require(EXECUTION_HISTORY, pg_sys::AccessShareLock)?;
    let constraint = foreign_key(&history).and_then(|key| {
        // SAFETY: in a transaction; the cache is that of pg_constraint, by OID.
        unsafe { syscache::row(pg_sys::SysCacheIdentifier::CONSTROID, key.conoid) }
    });
    Ok(constraint.is_some_and(|row: pg_sys::FormData_pg_constraint| row.convalidated))
}

/// The history's foreign key, if it is enforced.
fn foreign_key(history: &OpenRelation) -> Option<pg_sys::ForeignKeyCacheInfo> {
    // SAFETY: the relation is open, and its cache entry holds the list; the entry found is copied
    // before anything can invalidate it.
    unsafe {
        PgList::<pg_sys::ForeignKeyCacheInfo>::from_pg(pg_sys::RelationGetFKeyList(
            history.as_ptr(),
        ))
        .iter_ptr()
        .map(|key| *key)
        .find(|key| key.nkeys == 1 && key.conkey[0] == LOADER_ID_COLUMN && compat::is_enforced(key))
    }
}
