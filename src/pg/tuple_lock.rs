//! Locks on single rows.

use pgrx::pg_sys;

use super::relation::OpenRelation;

/// The result of locking a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked {
    Yes,
    /// Locked, but a newer version of it exists: to be looked up again.
    Changed,
    /// It does not exist any more: to be looked up again.
    Gone,
    /// Another session locks it.
    Busy,
}

/// Locks the row at `tid`, which find() has found since the caller's statement began; `wait` says
/// whether to wait for other sessions.
pub fn lock(
    table: &OpenRelation,
    mut tid: pg_sys::ItemPointerData,
    mode: pg_sys::LockTupleMode::Type,
    wait: pg_sys::LockWaitPolicy::Type,
) -> Locked {
    let version =
        |tid: pg_sys::ItemPointerData| (tid.ip_blkid.bi_hi, tid.ip_blkid.bi_lo, tid.ip_posid);
    let wanted = version(tid);
    debug_assert!(
        // SAFETY: reads the state of the current transaction.
        unsafe { pg_sys::ActiveSnapshotSet() },
        "what find() has found may be vacuumed"
    );
    // SAFETY: the relation is open, and the slot is made for it and dropped after use. At the TID
    // is a row: it was found under a snapshot that is active since, which keeps vacuum and pruning
    // from what was there then, and tables shrink only under a lock that excludes the open
    // relation's.
    unsafe {
        // What this transaction has just written is to be seen.
        pg_sys::CommandCounterIncrement();
        let slot = pg_sys::table_slot_create(table.as_ptr(), std::ptr::null_mut());
        let mut failure = pg_sys::TM_FailureData::default();
        let result = pg_sys::table_tuple_lock(
            table.as_ptr(),
            &raw mut tid,
            &raw mut pg_sys::SnapshotSelfData,
            slot,
            pg_sys::GetCurrentCommandId(true),
            mode,
            wait,
            u8::try_from(pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION).unwrap_or_default(),
            &raw mut failure,
        );
        let found = version((*slot).tts_tid);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        match result {
            pg_sys::TM_Result::TM_Ok if found == wanted => Locked::Yes,
            pg_sys::TM_Result::TM_Ok => Locked::Changed,
            pg_sys::TM_Result::TM_WouldBlock => Locked::Busy,
            _ => Locked::Gone,
        }
    }
}
