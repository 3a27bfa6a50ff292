//! The warnings that sessions get, counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postgres::{Client, NoTls};

use crate::Cluster;

/// How often the server gave which reason (a warning's detail) for not doing as it was asked.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<BTreeMap<String, u64>>>);

impl Warnings {
    /// A client of the superuser in database `postgres`, whose warnings are counted.
    ///
    /// # Panics
    /// When it cannot connect.
    pub fn connect(&self, cluster: &Cluster) -> Client {
        self.connect_to(cluster, "postgres")
    }

    /// A client of the superuser in `database`, whose warnings are counted.
    ///
    /// # Panics
    /// When it cannot connect.
    pub fn connect_to(&self, cluster: &Cluster, database: &str) -> Client {
        let warnings = self.clone();
        let mut config = cluster.config(database, "postgres");
        config.notice_callback(move |warning| {
            let reason = warning.detail().unwrap_or(warning.message()).to_owned();
            *warnings.reasons().entry(reason).or_default() += 1;
        });
        config.connect(NoTls).expect("a connection")
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.reasons().values().sum()
    }

    /// How many there were for each reason.
    pub fn reasons(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
