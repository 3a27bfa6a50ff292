//! What differs between PostgreSQL's major versions.

use pgrx::pg_sys;

/// Whether PostgreSQL checks a foreign key: one can be NOT ENFORCED from PostgreSQL 18 on.
#[cfg(any(feature = "pg18", feature = "pg19"))]
pub const fn is_enforced(key: &pg_sys::ForeignKeyCacheInfo) -> bool {
    key.conenforced
}

/// Whether PostgreSQL checks a foreign key: before PostgreSQL 18 always.
#[cfg(not(any(feature = "pg18", feature = "pg19")))]
pub const fn is_enforced(_key: &pg_sys::ForeignKeyCacheInfo) -> bool {
    true
}

/// Sets what a signal does in this process.
#[cfg(any(feature = "pg18", feature = "pg19"))]
pub use pg_sys::pqsignal_be as set_signal_handler;

/// Sets what a signal does in this process.
#[cfg(not(any(feature = "pg18", feature = "pg19")))]
pub use pg_sys::pqsignal as set_signal_handler;

/// Whether the client has sent more than the message that is worked on: so much as has arrived.
#[cfg(any(feature = "pg17", feature = "pg18", feature = "pg19"))]
pub fn client_has_sent_more() -> bool {
    unsafe extern "C-unwind" {
        // PostgreSQL's libpq.h.
        fn pq_buffer_remaining_data() -> isize;
    }
    // SAFETY: looks at a buffer of the process's own.
    unsafe { pq_buffer_remaining_data() > 0 }
}

/// Whether the client has sent more than the message that is worked on: so much as has arrived.
#[cfg(not(any(feature = "pg17", feature = "pg18", feature = "pg19")))]
pub fn client_has_sent_more() -> bool {
    unsafe extern "C-unwind" {
        // PostgreSQL's libpq.h.
        fn pq_buffer_has_data() -> bool;
    }
    // SAFETY: looks at a buffer of the process's own.
    unsafe { pq_buffer_has_data() }
}
