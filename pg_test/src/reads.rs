//! A history of all kinds, and everything that a reader can ask of it.

use postgres::{Client, SimpleQueryMessage};

use crate::column;

/// A history of all kinds: many executions that share their start, error texts short and long, some that
/// run, a loader that never succeeded.
pub const HISTORY: &str = "
    INSERT INTO loader.execution_history
           (loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds)
    SELECT n % 9 + 1, t, CASE WHEN n % 7 > 0 THEN t + interval '90 s' END,
           CASE WHEN n % 7 = 0 THEN 'RUNNING' WHEN n % 9 = 4 OR n % 7 = 1 THEN 'FAILED' ELSE 'SUCCESS' END,
           n, CASE WHEN n % 7 = 1 THEN 'line one' || repeat('x', n * 100) END, CASE WHEN n % 7 > 0 THEN 90 END
      FROM (SELECT n, now() - make_interval(hours => n * 37 % 50, mins => 2) AS t
              FROM generate_series(1, 300) AS n) AS s;
    SELECT loader.record_execution_end(loader.record_execution_start(10), 'FAILED', 7, 'over and out');
    SELECT loader.record_execution_start(10);
";

/// All but what says how long something has been running.
const READS: [&str; 16] = [
    "SELECT * FROM loader.activity_feed ORDER BY event_time DESC, execution_id DESC LIMIT 50",
    "SELECT * FROM loader.activity_feed WHERE event_time < now() - interval '1 day' AND severity = 'error'
      ORDER BY event_time DESC, execution_id DESC LIMIT 50",
    "SELECT * FROM loader.activity_feed WHERE loader_id = 7 ORDER BY event_time, execution_id, event_type",
    "SELECT * FROM loader.execution_details WHERE NOT is_running ORDER BY id",
    "SELECT id, is_running, duration > '0' FROM loader.execution_details WHERE loader_id = 7
      ORDER BY execution_start DESC, id DESC LIMIT 50",
    "SELECT * FROM loader.execution_details WHERE status = 'FAILED' AND loader_id = 7
      ORDER BY execution_start DESC, id DESC LIMIT 1",
    "SELECT * FROM loader.loader_summary ORDER BY loader_id",
    "SELECT * FROM loader.loader_summary WHERE loader_id = 7",
    "SELECT * FROM loader.failed_loader_counts",
    "SELECT loader.get_execution_history()",
    "SELECT loader.get_execution_history(7)",
    "SELECT loader.get_execution_history(7, status => 'RUNNING')",
    "SELECT loader.get_execution_history(status => 'SUCCESS', page_size => 1000)",
    "SELECT loader.get_execution_history(3, 5, status => 'FAILED')",
    "SELECT loader.get_execution_history(started_from => date_trunc('hour', now()) - interval '20 h',
                                         started_before => date_trunc('hour', now()) - interval '9 h')",
    "SELECT loader.get_execution_history(99)",
];

/// Asserts that `other` reads what `client` reads, whatever is asked.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn assert_same_reads(client: &mut Client, other: &mut Client) {
    let now: Vec<String> = column(client, "SELECT now()::text");
    for query in READS {
        let query = query.replace("now()", &format!("timestamptz '{}'", now[0]));
        let expected = rows(client, &query);
        assert!(!expected.is_empty(), "{query}: tests nothing");
        assert_eq!(rows(other, &query), expected, "{query}");
    }
}

/// Everything that `query` returns, as text.
///
/// # Panics
/// When it fails.
pub fn rows(client: &mut Client, query: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| (0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect()).collect()
}
