//! What the tests share: throwaway clusters, real clients, and a way to wait.
//!
//! The folder of the server's programs comes from `PG_TEST_BINDIR`, which `make test` sets.

mod client_program;
mod cluster;
mod errors;
mod examples;
mod kept;
mod listener;
pub mod measure;
mod preloaded;
mod reads;
mod report;
mod seed;
pub mod story;
pub mod traces;
mod trap;
pub mod version;
mod wait;
mod warnings;
mod workers;

pub use client_program::{ClientProgram, Process, Site, clients_folder, python, write_half};
pub use cluster::{Cluster, bindir, free_port, new_bindir, run};
pub use errors::{HasError, sqlstate};
pub use examples::{Example, examples, masked};
pub use kept::{application, state};
pub use listener::Listener;
pub use nix::sys::signal::Signal;
pub use preloaded::{
    PRELOADED, freeze_worker, preloaded_cluster, preloaded_cluster_with, send_signal,
    stop_replication, wait_for_worker,
};
pub use reads::{HISTORY, assert_same_reads, rows};
pub use report::{print_table, say_left_out, size};
pub use seed::seed;
pub use trap::{caught, forget, nothing_ran, nothing_ran_as_superuser, set_trap};
pub use wait::{TIMEOUT, catch_up, wait_for, wait_for_equal};
pub use warnings::Warnings;
pub use workers::{
    Session, assert_autonomous, assert_autonomous_in, current_version, extension_folder,
    fallback_start, install_extension, launchers, released_versions, served, sleeps, status_of,
    wait_for_no_clients, wait_for_served, worker_of,
};

pub use postgres::{Client, Row};

use postgres::types::FromSqlOwned;

/// The application's own table, as an application would create it, with ten loaders.
pub const APPLICATION_SQL: &str = "
    CREATE SCHEMA IF NOT EXISTS loader;
    CREATE TABLE loader.loader (id bigint PRIMARY KEY, loader_code varchar(64) NOT NULL);
    INSERT INTO loader.loader SELECT n, 'LOADER_' || n FROM generate_series(1, 10) AS n;
";

/// A cluster whose database `postgres` has the application's table and the extension.
pub fn cluster_with_extension() -> Cluster {
    let cluster = Cluster::start();
    cluster.connect().batch_execute(APPLICATION_SQL).expect("the application's table");
    cluster.connect().batch_execute("CREATE EXTENSION loader_history").expect("the extension");
    cluster
}

/// The first column of what `query` returns.
///
/// # Panics
/// When the query fails, or the column is not of the type.
pub fn column<T: FromSqlOwned>(client: &mut Client, query: &str) -> Vec<T> {
    let rows = client.query(query, &[]).expect("a query that succeeds");
    rows.iter().map(|row| row.get(0)).collect()
}
