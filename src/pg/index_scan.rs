//! Single rows found by an index scan, as they are committed by now: in every isolation level, and
//! without a predicate lock, which would make serializable sessions that record different
//! executions fail with serialization errors.

use pgrx::htup::heap_getattr_raw;
use pgrx::{FromDatum, IntoDatum, PgList, pg_sys};

use super::relation::OpenRelation;

/// A row that was found.
pub struct Found {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
    pub tid: pg_sys::ItemPointerData,
    /// The transaction that wrote this version of the row.
    pub writer: pg_sys::TransactionId,
    /// Whether an update wrote it.
    pub is_updated: bool,
}

impl Found {
    /// The value of column number `column`, counted from 1; `None` if it is NULL.
    ///
    /// # Safety
    /// The relation has the column, of a type that `T` reads; and `T` is a copy, which borrows
    /// nothing of the row.
    pub unsafe fn get<T: FromDatum + IntoDatum>(&self, column: usize) -> Option<T> {
        let column = std::num::NonZeroUsize::new(column)?;
        // SAFETY: tuple and descriptor are valid while `self` is: find_once() lends it out, and
        // then ends the scan. The caller vouches for the column and the type.
        unsafe {
            let datum = heap_getattr_raw(self.tuple, column, self.descriptor)?;
            T::from_datum(datum, false)
        }
    }
}

/// What a column is compared with, and by which of PostgreSQL's own functions.
pub struct Key {
    column: pg_sys::AttrNumber,
    equals: u32,
    value: pg_sys::Datum,
}

impl Key {
    /// The bigint `id` in the first column.
    pub fn id(id: i64) -> Self {
        Self { column: 1, equals: pg_sys::F_INT8EQ, value: id.into() }
    }

    /// The number `id` in a column of type `column_type`; `None` if a foreign key of bigint cannot
    /// reference that type, or if the type has no such number.
    pub fn number(column: pg_sys::AttrNumber, column_type: pg_sys::Oid, id: i64) -> Option<Self> {
        let (equals, value) = match column_type {
            pg_sys::INT8OID => (pg_sys::F_INT8EQ, id.into()),
            pg_sys::INT4OID => (pg_sys::F_INT4EQ, i32::try_from(id).ok()?.into()),
            pg_sys::INT2OID => (pg_sys::F_INT2EQ, i16::try_from(id).ok()?.into()),
            // SAFETY: int8_numeric() takes a bigint.
            pg_sys::NUMERICOID => (pg_sys::F_NUMERIC_EQ, unsafe {
                pgrx::direct_function_call_as_datum(pg_sys::int8_numeric, &[Some(id.into())])?
            }),
            _ => return None,
        };
        Some(Self { column, equals, value })
    }
}

/// Finds the row of `table` that has `key`, and reads it.
///
/// Nothing is planned: planning calls functions that the owner of the table's indexes can define.
pub fn find<R>(table: &OpenRelation, key: &Key, read: impl Fn(&Found) -> R) -> Option<R> {
    // A scan that meets an update just as it commits can miss both versions of a row. It does so
    // once for an update; an execution is updated three times at most, and a loader's row not
    // often.
    let index = index_on(table, key.column);
    (0..4).find_map(|_| find_once(table, index, key, &read))
}

fn find_once<R>(
    table: &OpenRelation,
    index: Option<pg_sys::Oid>,
    key: &Key,
    read: &impl Fn(&Found) -> R,
) -> Option<R> {
    let relation = table.as_ptr();
    // SAFETY: the relation is open; the key compares a column with a value of its type by the
    // built-in function; the row is read before the scan ends. A tuple on disk begins with t_heap.
    unsafe {
        let mut scan_key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &raw mut scan_key,
            key.column,
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            pg_sys::Oid::from(key.equals),
            key.value,
        );
        let scan = pg_sys::systable_beginscan(
            relation,
            index.unwrap_or(pg_sys::InvalidOid),
            index.is_some(),
            &raw mut pg_sys::SnapshotSelfData,
            1,
            &raw mut scan_key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let result = (!tuple.is_null()).then(|| {
            let header = (*tuple).t_data;
            read(&Found {
                tuple,
                descriptor: (*relation).rd_att,
                tid: (*tuple).t_self,
                writer: (*header).t_choice.t_heap.t_xmin,
                is_updated: u32::from((*header).t_infomask) & pg_sys::HEAP_UPDATED != 0,
            })
        });
        pg_sys::systable_endscan(scan);
        result
    }
}

/// A valid B-tree on `column` alone: the primary key's, or else another.
fn index_on(table: &OpenRelation, column: pg_sys::AttrNumber) -> Option<pg_sys::Oid> {
    // SAFETY: the relation is open; an index that is open has its row of pg_index in its cache
    // entry, with indnkeyatts key columns.
    unsafe {
        let list = pg_sys::RelationGetIndexList(table.as_ptr());
        let primary = (*table.as_ptr()).rd_pkindex;
        let indexes = PgList::<pg_sys::Oid>::from_pg(list);
        let fits = |&oid: &pg_sys::Oid| {
            if oid == pg_sys::InvalidOid {
                return false;
            }
            let index = pg_sys::index_open(oid, pg_sys::AccessShareLock.cast_signed());
            let form = (*index).rd_index;
            let fits = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                && (*form).indisvalid
                && (*form).indnkeyatts == 1
                && *(*form).indkey.values.as_ptr() == column
                && pg_sys::heap_attisnull(
                    (*index).rd_indextuple,
                    pg_sys::Anum_pg_index_indpred.cast_signed(),
                    std::ptr::null_mut(),
                );
            pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
            fits
        };
        let found = std::iter::once(primary).chain(indexes.iter_oid()).find(fits);
        pg_sys::list_free(list);
        found
    }
}
