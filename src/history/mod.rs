//! The statements on the extension's tables, for every process.
//!
//! Functions return what SPI reports, or [`Error`](crate::model::error::Error)`::TableLocked` or
//! `Untrusted`. Errors of the statements pass as PostgreSQL raised them.

pub mod id_sequence;
pub mod loader_fk;
pub mod outcomes;
pub mod prepared_changes;
pub mod purge;
pub mod recorded_loaders;
pub mod starts;
pub mod tables;
pub mod watched_transactions;
