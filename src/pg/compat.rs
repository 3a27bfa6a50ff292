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
