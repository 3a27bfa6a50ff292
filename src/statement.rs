//! SQL statements that a session plans once and keeps.

use std::cell::OnceCell;
use std::ffi::CStr;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, BuiltinOid, PgOid};
use pgrx::spi::{self, OwnedPreparedStatement, SpiClient, SpiTupleTable};

/// A statement, planned at its first use in a session. PostgreSQL plans it again by itself when what
/// it names changes.
pub struct KeptStatement {
    sql: &'static CStr,
    arguments: &'static [BuiltinOid],
    plan: OnceCell<&'static OwnedPreparedStatement>,
}

impl KeptStatement {
    /// The statement `sql`, whose `$n` are of the types `arguments`.
    pub const fn new(sql: &'static CStr, arguments: &'static [BuiltinOid]) -> Self {
        Self { sql, arguments, plan: OnceCell::new() }
    }

    /// Runs the statement, with a snapshot of its own where the isolation level gives it one.
    ///
    /// # Errors
    /// What SPI says of the call; errors of the statement itself pass as PostgreSQL raised them.
    pub fn run<'conn>(
        &self,
        client: &SpiClient<'conn>,
        arguments: &[DatumWithOid<'_>],
    ) -> spi::Result<SpiTupleTable<'conn>> {
        let plan = match self.plan.get() {
            Some(plan) => plan,
            None => {
                let types: Vec<_> = self.arguments.iter().map(|&oid| PgOid::BuiltIn(oid)).collect();
                // Leaked on purpose: it lives as long as the session, and must not be freed by a
                // thread-local's destructor, when PostgreSQL's memory is gone.
                let plan = Box::leak(Box::new(client.prepare_mut(self.sql, &types)?.keep()));
                self.plan.get_or_init(|| plan)
            }
        };
        client.select(*plan, None, arguments)
    }
}

/// Whether the current transaction may write; `Err` says why not.
///
/// # Errors
/// [`Error::Standby`](crate::error::Error::Standby) or
/// [`Error::ReadOnlyTransaction`](crate::error::Error::ReadOnlyTransaction).
pub fn require_writable() -> Result<(), crate::error::Error> {
    // SAFETY: reads of process state, valid at any time on the backend's main thread.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            return Err(crate::error::Error::Standby);
        }
        if pg_sys::XactReadOnly {
            return Err(crate::error::Error::ReadOnlyTransaction);
        }
    }
    Ok(())
}
