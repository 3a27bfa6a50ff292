//! Things that go on while something else is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pg_test::measure::Worker;
use pg_test::{Client, wait_for, wait_for_worker};

use crate::database::Database;
use crate::recorder::{Calls, Recorder, done};
use crate::variant::Variant;

/// How long a purge rests before it looks again where little was left to do.
const PURGE_PAUSE: Duration = Duration::from_millis(100);

/// One of this number of executions is rolled back, so that the worker has outcomes to write.
const FAILING: u64 = 50;

/// Tells those who go on that they may end, also where the work has failed.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Does `work` while `background` goes on, which ends soon after the flag is set.
pub fn meanwhile<T, B: Send>(
    background: impl FnOnce(&AtomicBool) -> B + Send,
    work: impl FnOnce() -> T,
) -> (T, B) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let going_on = scope.spawn(|| background(&over));
        let ending = Ending(&over);
        let result = work();
        drop(ending);
        (result, going_on.join().expect("what goes on meanwhile"))
    })
}

/// Does `work` while `clients` sessions record executions without a pause, some of which are rolled back;
/// returns how many, too.
pub fn while_recording<T>(
    database: &Database,
    clients: usize,
    work: impl FnOnce() -> T,
) -> (T, u64) {
    let mut recorders = Recorder::several(database, clients, &[Variant::Autonomous]);
    let record = |over: &AtomicBool| {
        thread::scope(|scope| {
            for recorder in &mut recorders {
                scope.spawn(|| {
                    let work = (Variant::Autonomous, Calls::Separate);
                    recorder.prepare(work);
                    for run in 1_u64.. {
                        if over.load(Ordering::Acquire) {
                            return;
                        } else if run.is_multiple_of(FAILING) {
                            recorder.fail(Variant::Autonomous);
                        } else {
                            recorder.work(work);
                        }
                    }
                });
            }
        });
        done(&recorders, Variant::Autonomous)
    };
    meanwhile(record, work)
}

/// Who purges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purger {
    /// A session that calls the function over and over.
    Session,
    /// The worker, under `loader_history.retention`.
    Worker,
}

/// Does `work` while executions older than `age` are purged, by a session at most `batch` in a call.
///
/// The one place that knows how history is purged.
pub fn while_purging<T>(
    database: &Database,
    purger: Purger,
    age: &str,
    batch: i64,
    work: impl FnOnce() -> T,
) -> T {
    match purger {
        Purger::Session => while_a_session_purges(database, age, batch, work),
        Purger::Worker => {
            set_retention(database, &format!("SET loader_history.retention = '{age}'"));
            let result = work();
            set_retention(database, "RESET loader_history.retention");
            result
        }
    }
}

/// Changes a setting of the database and restarts its worker, which reads it when it starts.
fn set_retention(database: &Database, change: &str) {
    let mut client: Client = database.connect();
    client
        .batch_execute(&format!("ALTER DATABASE {} {change}", database.name()))
        .expect("a setting");
    let before = wait_for_worker(&mut client);
    client.query("SELECT pg_terminate_backend($1)", &[&before]).expect("the end of the worker");
    wait_for("another worker", || wait_for_worker(&mut client) != before);
}

fn while_a_session_purges<T>(
    database: &Database,
    age: &str,
    batch: i64,
    work: impl FnOnce() -> T,
) -> T {
    let purge = |over: &AtomicBool| {
        let mut client = database.connect();
        let purge = "SELECT loader_history.purge_execution_history($1::text::interval, $2)";
        let purge = client.prepare(purge).expect("a purge");
        while !over.load(Ordering::Acquire) {
            let rows: i64 = client.query_one(&purge, &[&age, &batch]).expect("a purge").get(0);
            if rows < batch {
                thread::sleep(PURGE_PAUSE);
            }
        }
    };
    meanwhile(purge, work).0
}
