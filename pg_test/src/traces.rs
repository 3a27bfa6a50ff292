//! Databases in which loads leave traces: rows of their own, in the transactions that they record in. What is
//! there of these rows in the end says what the history must say.

use crate::{Cluster, preloaded_cluster_with};

/// The databases. The second has no `loader.loader`, so no foreign key: its starts lock no row, and write
/// nothing.
pub const DATABASES: [&str; 2] = ["postgres", "keyless"];

/// `opened` is written where a start is, `loaded` where a SUCCESS is, `reported` where a load itself
/// says FAILED: in the same transaction or subtransaction.
const TABLES: &str = "
    CREATE TABLE opened (execution_id bigint);
    CREATE TABLE loaded (execution_id bigint);
    CREATE TABLE reported (execution_id bigint);
";

/// A cluster that preloads the library, with these databases, the extension and the tables in both.
///
/// # Panics
/// When there is none to be had.
pub fn cluster_for_traces(settings: &str) -> Cluster {
    let cluster = preloaded_cluster_with(settings);
    cluster.connect().batch_execute("CREATE DATABASE keyless").expect("a database");
    let mut keyless = cluster.connect_to("keyless", "postgres");
    keyless
        .batch_execute("CREATE SCHEMA loader; CREATE EXTENSION loader_history")
        .expect("the extension");
    for database in DATABASES {
        cluster.connect_to(database, "postgres").batch_execute(TABLES).expect("tables");
    }
    cluster
}

/// Fails where anything is wrong, and says what, though not without end.
///
/// # Panics
/// There.
#[track_caller]
pub fn assert_none(wrong: &[String], when: &str) {
    assert!(
        wrong.is_empty(),
        "{when}: {} things are wrong\n{}",
        wrong.len(),
        wrong.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n")
    );
}
