//! Rows of catalogs, from PostgreSQL's cache.

use pgrx::pg_sys;

/// The fixed part of the row with this OID, copied; `None` if there is no such row.
///
/// # Safety
/// In a transaction. `T` is the struct of the catalog that the cache is of, whose key is an OID.
pub unsafe fn row<T: Copy>(cache: pg_sys::SysCacheIdentifier::Type, oid: pg_sys::Oid) -> Option<T> {
    // SAFETY: as the caller says; the tuple is read before it is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache.cast_signed(), pg_sys::Datum::from(oid));
        if tuple.is_null() {
            return None;
        }
        let row = *pg_sys::GETSTRUCT(tuple).cast::<T>();
        pg_sys::ReleaseSysCache(tuple);
        Some(row)
    }
}
