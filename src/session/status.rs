//! `loader_history.recorder_state`: the state of this database's worker in shared memory, for
//! `loader.recorder_status`.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::iter::TableIterator;
use pgrx::{name, pg_extern, pg_sys};

use crate::gucs;
use crate::pg::xact::my_database;
use crate::shmem::start_queue;
use crate::shmem::workers::{self, WorkerState};

/// Whether the library is preloaded, the worker's process id, how many starts wait for it, its last
/// error and its time, and why it does not record starts.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)] // a row
fn recorder_state() -> TableIterator<
    'static,
    (
        name!(preloaded, bool),
        name!(worker_pid, Option<i32>),
        name!(queue_depth, i32),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
        name!(obstacle, Option<String>),
    ),
> {
    if !workers::is_preloaded() {
        let obstacle = "shared_preload_libraries does not contain loader_history";
        return TableIterator::once((false, None, 0, None, None, Some(obstacle.to_owned())));
    }
    let database = my_database();
    let status = workers::status(database);
    let obstacle = match &status {
        // SAFETY: reads shared memory, which every backend is attached to.
        None if unsafe { pg_sys::RecoveryInProgress() } => Some("this server is a standby"),
        None => Some(
            "no background worker serves this database (yet): it is a template, does not allow connections, or max_worker_processes leaves no slot",
        ),
        Some(status) => match status.state {
            WorkerState::Running if status.is_late => {
                Some("the background worker did not answer in time")
            }
            WorkerState::Running => None,
            WorkerState::NoSlot => {
                Some("there is no slot for another background worker: raise max_worker_processes")
            }
            WorkerState::Starting => Some("the background worker is starting"),
            WorkerState::Unused | WorkerState::Exited => Some("the background worker has exited"),
            WorkerState::Crashed => {
                Some("the background worker has ended, and is about to be started again")
            }
        },
    };
    let obstacle = obstacle.or_else(|| {
        (!gucs::AUTONOMOUS_START.get()).then_some("loader_history.autonomous_start is off here")
    });
    let status = status.as_ref();
    let error_at = status.map(|status| status.last_error_at).filter(|&at| at != 0);
    TableIterator::once((
        true,
        status.map(|status| status.pid).filter(|&pid| pid != 0),
        i32::try_from(start_queue::with(|queue| queue.depth(database))).unwrap_or(i32::MAX),
        status.map(|status| status.last_error.get()).filter(|text| !text.is_empty()),
        error_at.and_then(|at| TimestampWithTimeZone::try_from(at).ok()),
        obstacle.map(str::to_owned),
    ))
}
