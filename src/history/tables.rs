//! The extension's tables and sequences.

use crate::model::error::Error;
use crate::pg::relation::{Name, try_lock};

pub const EXECUTION_HISTORY: Name = Name::new(c"loader", c"execution_history");
/// The sequence of its ids.
pub const EXECUTION_HISTORY_ID_SEQ: Name = Name::new(c"loader", c"execution_history_id_seq");
/// The last timeline whose lost ids were skipped.
pub const LAST_TIMELINE: Name = Name::new(c"loader_history", c"last_timeline");
/// Changes of prepared transactions.
pub const PREPARED_CHANGE: Name = Name::new(c"loader_history", c"prepared_change");
pub const PURGE_POSITION: Name = Name::new(c"loader_history", c"purge_position");
/// Every loader that has history.
pub const RECORDED_LOADER: Name = Name::new(c"loader_history", c"recorded_loader");
/// Outcomes that the server has found.
pub const SERVER_OUTCOME: Name = Name::new(c"loader_history", c"server_outcome");
/// Transactions that have made autonomous starts.
pub const WATCHED_TRANSACTION: Name = Name::new(c"loader_history", c"watched_transaction");

/// Locks relations if no other session does.
pub fn try_lock_all(tables: &[Name], mode: u32) -> Result<(), Error> {
    tables.iter().try_for_each(|table| try_lock(*table, mode))
}

/// Verifies that no trigger kept rows of the history from being written.
pub fn require_written(written: u64, meant: usize) -> Result<(), Error> {
    if usize::try_from(written) == Ok(meant) { Ok(()) } else { Err(Error::Suppressed) }
}
