//! Why a start falls back to the caller's transaction, although it was to be autonomous (pure).

use std::fmt;

/// Why the worker does not record a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The loader's row does not exist, or no other session can see it yet.
    LoaderUncommitted,
    /// No other session can see the extension yet.
    ExtensionUncommitted,
    /// The SQL objects are those of version 1.5.0.
    OldSql,
    /// The foreign key references a column of a type that the worker cannot lock a row by.
    ForeignKey,
    QueueFull,
    /// No background worker can be started.
    NoSlot,
    /// The database is one that has no worker.
    NotServed,
    Late,
    /// Another session locks a table of the history.
    TableLocked,
    /// The worker met an error.
    Failed,
}

/// A reason, with the worker's error if that is the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    pub reason: Reason,
    /// The message of the worker's last error.
    pub error: String,
}

impl From<Reason> for Fallback {
    fn from(reason: Reason) -> Self {
        Self { reason, error: String::new() }
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::LoaderUncommitted => "The loader's row is not committed.",
            Reason::ExtensionUncommitted => {
                "The extension was created or updated in this transaction."
            }
            Reason::OldSql => {
                "The SQL objects are those of an older version: run ALTER EXTENSION loader_history UPDATE."
            }
            Reason::ForeignKey => "The background worker cannot lock by the key of loader.loader.",
            Reason::QueueFull => "The queue to the background workers is full.",
            Reason::NoSlot => "No background worker could be started for this database.",
            Reason::NotServed => "No background worker serves this database.",
            Reason::Late => "The background worker did not answer in time.",
            Reason::TableLocked => "A table of the history is locked, by this session or another.",
            Reason::Failed => {
                return write!(f, "The background worker met an error: {}.", self.error);
            }
        })
    }
}
