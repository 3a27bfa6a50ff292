//! The statements on the extension's tables, for every process.

pub mod id_sequence;
pub mod loader_fk;
pub mod outcomes;
pub mod prepared_changes;
pub mod purge;
pub mod recorded_loaders;
pub mod starts;
pub mod tables;
pub mod watched_transactions;
