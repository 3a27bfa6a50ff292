//! `loader_history.recorder_state`: what shared memory knows of the worker of this database, for
//! `loader.recorder_status`.

use std::sync::atomic::Ordering::Relaxed;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::iter::TableIterator;
use pgrx::{name, pg_extern, pg_sys};

use super::shared::{Progress, Serving, my_database, shared};
use crate::settings;

/// Whether the library is preloaded, the worker's process id, how many starts wait for it, its last
/// error and when that was, and why it is not at work.
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
    let Some(shared) = shared() else {
        return TableIterator::once((false, None, 0, None, None, None));
    };
    let oid = my_database();
    let depth = shared
        .requests_of(oid)
        .filter(|request| request.is(Progress::Queued) || request.is(Progress::Taken))
        .count();
    let database = shared.database(oid);
    let pid = database.map(|database| database.pid.load(Relaxed)).filter(|&pid| pid != 0);
    let error = database.map(|database| database.last_error.get()).filter(|text| !text.is_empty());
    let error_at = database
        .map(|database| database.last_error_at.load(Relaxed))
        .filter(|&at| at != 0)
        .and_then(|at| TimestampWithTimeZone::try_from(at).ok());
    let obstacle = match database {
        // SAFETY: reads shared memory, which every backend is attached to.
        None if unsafe { pg_sys::RecoveryInProgress() } => Some("this server is a standby"),
        None => Some(
            "no background worker serves this database (yet): it is a template, does not allow connections, or max_worker_processes leaves no room",
        ),
        Some(database) => match database.serving() {
            Serving::Running if database.late.load(Relaxed) => {
                Some("the background worker did not answer in time")
            }
            Serving::Running => None,
            Serving::NoRoom => {
                Some("there is no room for another background worker: raise max_worker_processes")
            }
            Serving::Starting => Some("the background worker is starting"),
            Serving::Nobody | Serving::Left => Some("the background worker has left"),
            Serving::Ended => Some("the background worker ended, and is started again soon"),
        },
    };
    let obstacle = obstacle.or_else(|| {
        (!settings::AUTONOMOUS_START.get()).then_some("loader_history.autonomous_start is off here")
    });
    TableIterator::once((
        true,
        pid,
        i32::try_from(depth).unwrap_or(i32::MAX),
        error,
        error_at,
        obstacle.map(str::to_owned),
    ))
}
