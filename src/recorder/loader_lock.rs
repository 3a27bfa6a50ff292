//! The lock on a loader's row that a start takes in the caller's own transaction, as the foreign key
//! would: the row cannot go while the worker records its execution.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::ptr;

use pgrx::Spi;
use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::spi::{self, SpiClient};

use crate::error::Error;
use crate::lookup::OpenRelation;
use crate::statement::{self, Sight};

/// The column of the history that names the loader, the second by the contract.
const LOADER_ID_COLUMN: pg_sys::AttrNumber = 2;

/// The loader's row, as the caller's transaction finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoaderRow {
    /// Locked, and committed.
    Committed,
    /// Locked, and last written by the caller's own transaction: maybe nobody else can see it.
    Own,
    /// Not there.
    Missing,
    /// Not asked for: there is no foreign key.
    Unchecked,
    /// The foreign key is none that can be locked by.
    Unsupported,
}

thread_local! {
    /// The statement that locks, and the table that it is for.
    static LOCK: Cell<(pg_sys::Oid, pg_sys::SPIPlanPtr)> =
        const { Cell::new((pg_sys::InvalidOid, ptr::null_mut())) };
}

/// Locks the row of `loader_id` as the foreign key of `history` would.
///
/// # Errors
/// What SPI says of a call; PostgreSQL's own errors pass as they are.
pub fn lock(history: &OpenRelation, loader_id: i64) -> Result<LoaderRow, Error> {
    let Some((target, column)) = target(history) else { return Ok(LoaderRow::Unchecked) };
    let table = OpenRelation::table(target, pg_sys::RowShareLock);
    let (owner, kind) = owner_and_kind(&table);
    // SAFETY: a catalog lookup of a column of a table that is open.
    let column_type = unsafe { pg_sys::get_atttype(target, column) };
    if ![pg_sys::RELKIND_RELATION, pg_sys::RELKIND_PARTITIONED_TABLE].contains(&kind)
        || ![pg_sys::INT8OID, pg_sys::INT4OID, pg_sys::INT2OID, pg_sys::NUMERICOID]
            .contains(&column_type)
    {
        return Ok(LoaderRow::Unsupported);
    }
    // Planning and running may call functions that the table's owner can define.
    let _owner = ActingAs::new(owner);
    Ok(Spi::connect(|client| -> spi::Result<LoaderRow> {
        let plan = plan(client, target, column, kind)?;
        // SAFETY: a kept plan for one bigint.
        let rows = unsafe { statement::execute(client, plan, Sight::Latest, &[loader_id.into()])? };
        if rows.is_empty() {
            return Ok(LoaderRow::Missing);
        }
        let writer = rows.get::<i64>(0, 1).and_then(|xid| u32::try_from(xid).ok());
        // SAFETY: looks the id up among those of the current transaction.
        let own = writer.is_none_or(|xid| unsafe {
            pg_sys::TransactionIdIsCurrentTransactionId(pg_sys::TransactionId::from(xid))
        });
        Ok(if own { LoaderRow::Own } else { LoaderRow::Committed })
    })?)
}

/// Whether the row of `loader_id` is committed, looked at with the rights of its table's owner.
///
/// # Errors
/// As of [`lock`].
pub fn is_committed(history: &OpenRelation, loader_id: i64) -> Result<bool, Error> {
    let Some((target, column)) = target(history) else { return Ok(true) };
    let table = OpenRelation::table(target, pg_sys::AccessShareLock);
    let (owner, kind) = owner_and_kind(&table);
    let _owner = ActingAs::new(owner);
    Ok(Spi::connect(|client| -> spi::Result<bool> {
        let only = only(kind);
        let sql = format!("SELECT FROM {only}{} WHERE {}", name(target), condition(target, column));
        let sql = CString::new(sql).unwrap_or_default();
        let plan = statement::prepare(client, &sql, &[BuiltinOid::INT8OID.value()])?;
        // SAFETY: prepared just now, for one bigint.
        let rows = unsafe { statement::execute(client, plan, Sight::Usual, &[loader_id.into()])? };
        Ok(!rows.is_empty())
    })?)
}

/// The table and the column that the history's foreign key names.
fn target(history: &OpenRelation) -> Option<(pg_sys::Oid, pg_sys::AttrNumber)> {
    // SAFETY: the relation is open, and its cache entry keeps the list and what is in it; it is read
    // before anything can invalidate them.
    unsafe {
        let keys = pg_sys::RelationGetFKeyList(history.as_ptr());
        let count = if keys.is_null() { 0 } else { (*keys).length };
        (0..count).find_map(|place| {
            let key = pg_sys::list_nth(keys, place).cast::<pg_sys::ForeignKeyCacheInfo>();
            ((*key).nkeys == 1 && (*key).conkey[0] == LOADER_ID_COLUMN)
                .then(|| ((*key).confrelid, (*key).confkey[0]))
        })
    }
}

/// The kept statement that locks a row of `table`, prepared anew where something about it changed.
fn plan(
    client: &SpiClient<'_>,
    table: pg_sys::Oid,
    column: pg_sys::AttrNumber,
    kind: u8,
) -> spi::Result<pg_sys::SPIPlanPtr> {
    let (kept_for, kept) = LOCK.get();
    // SAFETY: a kept plan lives until it is freed, here alone.
    unsafe {
        if !kept.is_null() {
            if kept_for == table && pg_sys::SPI_plan_is_valid(kept) {
                return Ok(kept);
            }
            LOCK.set((pg_sys::InvalidOid, ptr::null_mut()));
            pg_sys::SPI_freeplan(kept);
        }
    }
    // Partitions need not be heaps, which alone tell who wrote a row.
    let writer = if kind == pg_sys::RELKIND_RELATION {
        "xmin::pg_catalog.text::pg_catalog.int8"
    } else {
        "NULL::pg_catalog.int8"
    };
    let sql = format!(
        "SELECT {writer} FROM {}{} AS loader WHERE {} FOR KEY SHARE OF loader",
        only(kind),
        name(table),
        condition(table, column),
    );
    let sql = CString::new(sql).unwrap_or_default();
    let plan = statement::prepare(client, &sql, &[BuiltinOid::INT8OID.value()])?;
    // SAFETY: prepared just now, within the SPI connection of `client`.
    unsafe { pg_sys::SPI_keepplan(plan) };
    LOCK.set((table, plan));
    Ok(plan)
}

/// What a foreign key's check leaves out: rows of tables that inherit from a plain one.
const fn only(kind: u8) -> &'static str {
    if kind == pg_sys::RELKIND_PARTITIONED_TABLE { "" } else { "ONLY " }
}

fn owner_and_kind(table: &OpenRelation) -> (pg_sys::Oid, u8) {
    // SAFETY: the table is open.
    unsafe {
        let form = (*table.as_ptr()).rd_rel;
        ((*form).relowner, (*form).relkind as u8)
    }
}

fn condition(table: pg_sys::Oid, column: pg_sys::AttrNumber) -> String {
    // SAFETY: a catalog lookup; the column is one of a foreign key, so it is there.
    let name = unsafe { text(pg_sys::get_attname(table, column, false)) };
    format!("{} OPERATOR(pg_catalog.=) $1", spi::quote_identifier(name))
}

fn name(table: pg_sys::Oid) -> String {
    // SAFETY: catalog lookups of a table that is open.
    unsafe {
        let schema = text(pg_sys::get_namespace_name(pg_sys::get_rel_namespace(table)));
        spi::quote_qualified_identifier(schema, text(pg_sys::get_rel_name(table)))
    }
}

/// # Safety
/// `string` is NULL or a C string.
unsafe fn text(string: *const std::ffi::c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// The current user, changed until this is dropped, and restricted as for a foreign key's check.
struct ActingAs {
    user: pg_sys::Oid,
    context: i32,
}

impl ActingAs {
    fn new(user: pg_sys::Oid) -> Self {
        let mut saved = Self { user: pg_sys::InvalidOid, context: 0 };
        // SAFETY: reads and sets the state of the current session; an abort sets it back too.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut saved.user, &raw mut saved.context);
            let restrictions = pg_sys::SECURITY_LOCAL_USERID_CHANGE
                | pg_sys::SECURITY_RESTRICTED_OPERATION
                | pg_sys::SECURITY_NOFORCE_RLS;
            pg_sys::SetUserIdAndSecContext(user, saved.context | restrictions.cast_signed());
        }
        saved
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        // SAFETY: what GetUserIdAndSecContext() returned.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
    }
}
