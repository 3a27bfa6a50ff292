//! Rows found by their id, as they are committed by now: in every isolation level, and without a
//! predicate lock, by which serializable sessions that record different executions would fail each
//! other.

use std::ffi::CStr;

use pgrx::htup::heap_getattr_raw;
use pgrx::{FromDatum, IntoDatum, pg_sys};

/// The OID of a relation of the extension's; `None` where this version of its SQL has none of the name.
pub fn relation(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog lookups by static C strings, in a transaction.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"loader".as_ptr(), true);
        let oid = pg_sys::get_relname_relid(name.as_ptr(), schema);
        (schema != pg_sys::InvalidOid && oid != pg_sys::InvalidOid).then_some(oid)
    }
}

/// A relation, open until this is dropped. Its lock is kept until the transaction ends.
pub struct OpenRelation(pg_sys::Relation);

impl OpenRelation {
    /// Opens the table `oid`.
    pub fn table(oid: pg_sys::Oid, lock: u32) -> Self {
        // SAFETY: in a transaction; raises PostgreSQL's own error where there is no such table.
        Self(unsafe { pg_sys::table_open(oid, lock.cast_signed()) })
    }

    /// The relation's cache entry, valid while this is.
    pub const fn as_ptr(&self) -> pg_sys::Relation {
        self.0
    }
}

impl Drop for OpenRelation {
    fn drop(&mut self) {
        // While an error unwinds, PostgreSQL closes it itself, and the resource owner may be gone.
        if !std::thread::panicking() {
            // SAFETY: opened by table().
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock.cast_signed()) };
        }
    }
}

/// A row that was found.
pub struct Found {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Found {
    /// Where the row is.
    pub fn tid(&self) -> pg_sys::ItemPointerData {
        // SAFETY: the tuple is valid while `self` is borrowed from find().
        unsafe { (*self.tuple).t_self }
    }

    /// The value of column number `column`, counted from 1; `None` where it is NULL.
    ///
    /// # Safety
    /// The column is of a type that `T` reads.
    pub unsafe fn get<T: FromDatum + IntoDatum>(&self, column: usize) -> Option<T> {
        let column = std::num::NonZeroUsize::new(column)?;
        // SAFETY: tuple and descriptor are valid while `self` is borrowed from find(); the caller
        // vouches for the type.
        unsafe {
            let datum = heap_getattr_raw(self.tuple, column, self.descriptor)?;
            T::from_datum(datum, false)
        }
    }
}

/// Finds the row of `table` whose primary key, the bigint in its first column, is `id`, and reads it.
pub fn find<R>(table: &OpenRelation, id: i64, read: impl Fn(&Found) -> R) -> Option<R> {
    // A scan that meets an update just as it commits can miss both versions of a row. A row of ours
    // is updated three times at most: at its end, and where the server ended it and the loader then
    // did.
    (0..4).find_map(|_| find_once(table, id, &read))
}

fn find_once<R>(table: &OpenRelation, id: i64, read: &impl Fn(&Found) -> R) -> Option<R> {
    let relation = table.as_ptr();
    // SAFETY: the relation is open; the key compares a bigint column with a bigint by the built-in
    // function; what is found is read before the scan ends.
    unsafe {
        pg_sys::list_free(pg_sys::RelationGetIndexList(relation));
        let index = (*relation).rd_pkindex;
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &raw mut key,
            1,
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            pg_sys::Oid::from(pg_sys::F_INT8EQ),
            pg_sys::Datum::from(id),
        );
        let scan = pg_sys::systable_beginscan(
            relation,
            index,
            index != pg_sys::InvalidOid,
            &raw mut pg_sys::SnapshotSelfData,
            1,
            &raw mut key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let result =
            (!tuple.is_null()).then(|| read(&Found { tuple, descriptor: (*relation).rd_att }));
        pg_sys::systable_endscan(scan);
        result
    }
}
