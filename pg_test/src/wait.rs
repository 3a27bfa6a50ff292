//! Waiting for a condition, never for a time.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::column;

/// How long a condition may take to come true before the test fails.
pub const TIMEOUT: Duration = Duration::from_secs(180);

/// Waits until `condition` is true.
///
/// # Panics
/// When it has not come true within [`TIMEOUT`].
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < TIMEOUT, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `found` returns `expected`.
///
/// # Panics
/// When it has not within [`TIMEOUT`], with what it returned instead.
#[track_caller]
pub fn wait_for_equal<T: Debug + PartialEq>(
    what: &str,
    expected: &T,
    mut found: impl FnMut() -> T,
) {
    let started = Instant::now();
    let mut last = found();
    while last != *expected {
        assert!(
            started.elapsed() < TIMEOUT,
            "{what}: it stays {last:?} and should become {expected:?}"
        );
        thread::sleep(Duration::from_millis(5));
        last = found();
    }
}

/// Waits until a standby has replayed all that its primary has written.
///
/// # Panics
/// When it has not within [`TIMEOUT`], or is none.
pub fn catch_up(primary: &mut Client, standby: &mut Client) {
    // Replay says where the last record ends, and what is written next may begin after a page's header: a record
    // that ends behind it is for both the same.
    column::<String>(primary, "SELECT pg_logical_emit_message(true, 'catch_up', '')::text");
    let written: Vec<String> = column(primary, "SELECT pg_current_wal_flush_lsn()::text");
    let query = format!("SELECT pg_last_wal_replay_lsn() >= '{}'::pg_lsn", written[0]);
    wait_for("the standby to catch up", || column::<bool>(standby, &query) == [true]);
}
