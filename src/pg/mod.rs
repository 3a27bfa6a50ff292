//! Thin and safe wrappers of PostgreSQL's functions, independent of loaders.

pub mod bgworker;
pub mod compat;
pub mod guc_scope;
pub mod index_scan;
pub mod latch;
pub mod notify;
pub mod relation;
pub mod security_context;
pub mod segment;
pub mod spi;
pub mod syscache;
pub mod tuple_lock;
pub mod xact;
