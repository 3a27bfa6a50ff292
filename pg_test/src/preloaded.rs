//! Clusters whose server preloads the library, and the processes that it then has.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;

use crate::{APPLICATION_SQL, Cluster, wait_for, wait_for_equal};

/// The settings of a cluster that preloads the library. Busy machines stall: what is about a worker that is late
/// sets its own time for that.
pub const PRELOADED: &str = "
shared_preload_libraries = 'loader_history'
max_prepared_transactions = 50
loader_history.worker_timeout = '20s'
";

/// A cluster that preloads the library, whose database `postgres` has the application's table, the
/// extension, and a worker at work.
pub fn preloaded_cluster() -> Cluster {
    preloaded_cluster_with("")
}

/// The same with the lines `settings` added to `postgresql.conf`.
///
/// # Panics
/// When the worker does not come up.
pub fn preloaded_cluster_with(settings: &str) -> Cluster {
    let cluster = Cluster::start_with(&format!("{PRELOADED}{settings}"));
    let mut client = cluster.connect();
    client.batch_execute(APPLICATION_SQL).expect("the application's table");
    client.batch_execute("CREATE EXTENSION loader_history").expect("the extension");
    wait_for_worker(&mut client);
    cluster
}

/// Waits until the database that `client` is connected to has a worker, and returns its process id.
///
/// # Panics
/// When none comes.
pub fn wait_for_worker(client: &mut Client) -> i32 {
    let mut pid = None;
    wait_for_equal("what keeps the worker from its work", &None, || {
        let row = client.query_one("SELECT worker_pid, detail FROM loader.recorder_status()", &[]);
        let row = row.expect("the status");
        pid = row.get(0);
        row.get::<_, Option<String>>(1)
    });
    pid.expect("a worker")
}

/// Sends a signal to a process of a server.
///
/// # Panics
/// When the process is gone.
pub fn send_signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

/// Stops the worker of the database that `client` is connected to, as the system does, between its
/// transactions; returns its process id. In one it would keep whoever waits for all of them to end.
///
/// # Panics
/// When it has none.
pub fn freeze_worker(client: &mut Client) -> i32 {
    let pid = wait_for_worker(client);
    wait_for("the worker to be at rest", || {
        // One that is at work may hold what no view shows, and has yet to do what comes after a commit.
        if state_of(pid) != Some('S') {
            return false;
        }
        send_signal(pid, Signal::SIGSTOP);
        // The signal may take a moment to arrive.
        wait_for("the worker to stand still", || state_of(pid) == Some('T'));
        // Locks go after the transaction: that of NOTIFY, for one.
        let at_rest = "SELECT backend_xid IS NULL AND backend_xmin IS NULL
                          AND NOT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND locktype = 'object')
                         FROM pg_stat_get_activity($1)";
        let row = client.query_one(at_rest, &[&pid]).expect("the worker's state");
        let at_rest: bool = row.get(0);
        if !at_rest {
            send_signal(pid, Signal::SIGCONT);
        }
        at_rest
    });
    pid
}

/// What the kernel calls the state of a process: S where it sleeps, T where it is stopped.
fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// Stops the walsenders of a primary, which has so many standbys: as the network does when it is gone. Their
/// processes.
///
/// # Panics
/// When they do not come.
pub fn stop_replication(primary: &Cluster, standbys: usize) -> Vec<i32> {
    let mut client = primary.connect();
    let mut pids = Vec::new();
    // A standby may serve clients before it has connected.
    wait_for("the standbys", || {
        let streaming = "SELECT pid FROM pg_stat_replication WHERE state = 'streaming'";
        pids = crate::column(&mut client, streaming);
        pids.len() == standbys
    });
    pids.iter().for_each(|&pid| send_signal(pid, Signal::SIGSTOP));
    pids
}
