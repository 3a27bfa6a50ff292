//! Histories to read: hourly runs of every loader, up to now.

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use pg_test::Client;

use crate::database::Database;
use crate::variant::Variant;

/// The loader that has failed once, long ago: in its first run.
pub const ONCE_FAILED: i64 = 7;

/// Every so many loaders there is one that fails three runs out of five, so that pages of its failures are
/// full in every history; and which of them that is.
const FAILING_EVERY: i64 = 200;
const FAILING: i64 = 11;

/// Rows that one statement inserts: what triggers are to do with them is kept in memory until its end.
const AT_ONCE: i64 = 250_000;

/// The `number`th loader that often fails, beginning again after the last.
pub fn often_failing(number: i64, loaders: i64) -> i64 {
    number % (loaders / FAILING_EVERY).max(1) * FAILING_EVERY + FAILING
}

/// Fills the extension's table with as many executions, and the `others` with the same.
///
/// Histories of a full hundred runs a loader are alike from their ends backwards: what is read of them is as
/// much, whatever their length. Two in a hundred runs have failed; one in a hundred loaders has been failing for four runs; one
/// in forty is running. Ids are in the order of starts, and in each hour every loader runs once.
pub fn fill(database: &Database, rows: i64, others: &[Variant]) {
    assert!(rows % database.loaders() == 0, "{rows} executions are no full hours of its loaders");
    let mut client = connect(database);
    let until = "SELECT (date_trunc('second', now()) - interval '10 minutes')::text";
    let until: String = client.query_one(until, &[]).expect("the time").get(0);
    // Several at once, where the machine has as many cores.
    let next = &AtomicI64::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().expect("a number of cores").get() {
            scope.spawn(|| {
                let mut client = connect(database);
                loop {
                    let first = next.fetch_add(AT_ONCE, Ordering::Relaxed);
                    if first >= rows {
                        return;
                    }
                    let last = (first + AT_ONCE).min(rows) - 1;
                    batch(&mut client, &insert(database.loaders(), rows, first, last, &until));
                }
            });
        }
    });
    batch(&mut client, &format!("SELECT setval('loader.execution_history_id_seq', {rows})"));
    for other in others {
        let table = other.table();
        batch(
            &mut client,
            &format!(
                "INSERT INTO {table} SELECT * FROM loader.execution_history ORDER BY id;
                 SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table};"
            ),
        );
    }
    vacuum(database, others);
    // Or one that goes on for long would meet what is measured.
    batch(&mut client, "CHECKPOINT");
}

/// As replication inserts rows: nothing is checked again, and no event is emitted. The list of loaders that
/// have history is kept all the same, since its trigger fires always.
fn connect(database: &Database) -> Client {
    let mut client = database.connect();
    batch(&mut client, "SET session_replication_role = replica; SET synchronous_commit = off");
    client
}

/// The statement that inserts the executions numbered from `first` to `last`, of `rows`, the last of
/// which starts at `until`.
fn insert(loaders: i64, rows: i64, first: i64, last: i64, until: &str) -> String {
    format!(
        "INSERT INTO loader.execution_history
                (id, loader_id, execution_start, execution_end, status, record_count, error_message,
                 duration_seconds)
         SELECT n + 1, loader, start, start + make_interval(secs => took), status,
                CASE status WHEN 'SUCCESS' THEN n * 13 % 100000 ELSE 0 END,
                CASE status WHEN 'FAILED' THEN
                     'duplicate key value violates unique constraint \"sales_' || loader || '_pkey\"' END,
                took
           FROM (SELECT n, loader, start, status,
                        CASE WHEN status <> 'RUNNING' THEN ((loader * 37 + run * 11) % 290 + 1)::integer END AS took
                   FROM (SELECT n, loader, run,
                                timestamptz '{until}'
                                    - make_interval(secs => ({rows} - 1 - n) * 3600.0 / {loaders}) AS start,
                                CASE WHEN run = newest AND loader % 40 = 5 THEN 'RUNNING'
                                     WHEN loader = {ONCE_FAILED} THEN
                                          CASE run WHEN 0 THEN 'FAILED' ELSE 'SUCCESS' END
                                     WHEN loader % {FAILING_EVERY} = {FAILING} THEN
                                          CASE WHEN run % 5 < 3 THEN 'FAILED' ELSE 'SUCCESS' END
                                     WHEN run >= newest - 3 AND loader % 100 = 3
                                       OR (run * 31 + loader) % 50 = 0 THEN 'FAILED'
                                     ELSE 'SUCCESS' END AS status
                           FROM (SELECT n, n * 7919 % {loaders} + 1 AS loader, n / {loaders} AS run,
                                        {rows} / {loaders} - 1 AS newest
                                   FROM generate_series({first}::bigint, {last}) AS n) AS numbered) AS known) AS run"
    )
}

/// VACUUM ANALYZE, as autovacuum does sooner or later.
pub fn vacuum(database: &Database, others: &[Variant]) {
    let mut client = database.connect();
    // Its schema is another in version 1.5.0.
    let query = "SELECT oid::regclass::text FROM pg_class WHERE relname = 'recorded_loader'";
    let recorded: String = client.query_one(query, &[]).expect("the loaders").get(0);
    let tables = others.iter().map(|other| other.table());
    for table in ["loader.execution_history", &recorded].into_iter().chain(tables) {
        batch(&mut client, &format!("VACUUM ANALYZE {table}"));
    }
}

fn batch(client: &mut Client, sql: &str) {
    client.batch_execute(sql).expect("rows");
}
