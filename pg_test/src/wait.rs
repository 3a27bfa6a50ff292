//! Waiting for a condition, never for a time.

use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take to come true before the test fails.
pub const TIMEOUT: Duration = Duration::from_secs(60);

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
