//! What the programs that measure share: what is compared takes turns in slices of one run, so that
//! whatever else the machine does meets all of it.

use std::fmt;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use postgres::Client;

use crate::{Cluster, wait_for};

/// Commits reach the disk, as on a server with real data. The harness switches fsync off, but later
/// lines win.
pub const COMMITS_REACH_DISK: &str = "
fsync = on
synchronous_commit = on
";

/// Refuses a cluster in memory, where a commit costs nothing.
///
/// # Panics
/// When the cluster's directory is in memory.
pub fn assert_on_disk(cluster: &Cluster) {
    let kind = statfs(cluster.directory()).expect("its file system").filesystem_type();
    assert!(kind != TMPFS_MAGIC, "a commit costs nothing here: set TMPDIR to a folder on a disk");
}

/// Waits until the server has nothing left to do: nobody writes WAL for a moment.
///
/// # Panics
/// When it goes on and on.
pub fn wait_for_quiet(client: &mut Client) {
    const MOMENT: Duration = Duration::from_millis(50);
    let mut position = || wal_position(client);
    let mut last = position();
    wait_for("the server to have nothing left to do", || {
        thread::sleep(MOMENT);
        let before = last;
        last = position();
        last == before
    });
}

/// How many bytes of WAL there are.
///
/// # Panics
/// When the server does not say.
pub fn wal_position(client: &mut Client) -> i64 {
    let query = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint";
    client.query_one(query, &[]).expect("a position").get(0)
}

/// A session that does one of several kinds of work over and over.
pub trait Worker: Send {
    /// What there is to do.
    type Work: Copy + Send + Sync;

    /// Gets ready for `work`, before the time of a slice begins.
    fn prepare(&mut self, work: Self::Work);

    /// Works once, and says how long what is timed has taken.
    fn work(&mut self, work: Self::Work) -> Duration;
}

/// What one side of a comparison came to.
#[derive(Debug, Default)]
pub struct Measured {
    /// How long each piece of work took.
    pub latencies: Vec<Duration>,
    /// How often a second all sessions together did the work, for each slice.
    pub rates: Vec<f64>,
}

impl Measured {
    /// The seconds that `part` of all latencies stay below.
    pub fn quantile(&mut self, part: f64) -> f64 {
        self.latencies.sort_unstable();
        quantile(&self.latencies, part).as_secs_f64()
    }

    /// The median of the slices' rates.
    pub fn rate(&self) -> f64 {
        median(&mut self.rates.clone())
    }

    /// How many times the rate of `baseline` it is: the median of the turns, in each of which both met the
    /// same.
    pub fn ratio_to(&self, baseline: &Self) -> f64 {
        let ratios = self.rates.iter().zip(&baseline.rates).map(|(rate, other)| rate / other);
        median(&mut ratios.collect::<Vec<_>>())
    }

    /// Adds what another slice came to.
    pub fn add(&mut self, slice: Self) {
        self.latencies.extend(slice.latencies);
        self.rates.extend(slice.rates);
    }
}

/// The value that `part` of the `sorted` values, of which there are some, stay below.
pub fn quantile<T: Copy>(sorted: &[T], part: f64) -> T {
    let place = (sorted.len() as f64 * part) as usize;
    sorted[place.min(sorted.len() - 1)]
}

/// The value in the middle of `values`, of which there are some.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// Does `work` as often as said: the median of how long it takes, in ms.
pub fn median_ms(times: u32, mut work: impl FnMut()) -> f64 {
    let mut taken: Vec<_> = (0..times)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed().as_secs_f64() * 1_000.0
        })
        .collect();
    median(&mut taken)
}

/// How many slices each side gets, and how long they are.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    /// Slices of each side that count.
    pub slices: u64,
    /// How long a slice is.
    pub slice: Duration,
}

impl Turns {
    /// Has all `workers` do the work of each side, taking turns; `admins`, of a server each, wait between two
    /// slices until the servers are quiet, so that no side pays for what another has left to be done.
    pub fn compare<W: Worker>(
        self,
        admins: &mut [Client],
        workers: &mut [W],
        sides: &[W::Work],
    ) -> Vec<Measured> {
        let mut measured: Vec<_> = sides.iter().map(|_| Measured::default()).collect();
        // The first turn warms up: plans, caches, files that grow for the first time.
        for turn in 0..=self.slices {
            // There and back: what changes with time meets all alike.
            let mut order: Vec<_> = sides.iter().zip(&mut measured).collect();
            if turn % 2 == 1 {
                order.reverse();
            }
            for (work, side) in order {
                admins.iter_mut().for_each(wait_for_quiet);
                let slice = run_slice(workers, *work, self.slice);
                if turn > 0 {
                    side.add(slice);
                }
            }
        }
        measured
    }
}

/// Has all `workers` do `work` for as long as a slice is.
///
/// # Panics
/// When a worker does.
pub fn run_slice<W: Worker>(workers: &mut [W], work: W::Work, length: Duration) -> Measured {
    let barrier = &Barrier::new(workers.len());
    let begun = Instant::now();
    let latencies: Vec<_> = thread::scope(|scope| {
        let sessions: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                scope.spawn(move || {
                    worker.prepare(work);
                    barrier.wait();
                    let begun = Instant::now();
                    let mut latencies = Vec::new();
                    while begun.elapsed() < length {
                        latencies.push(worker.work(work));
                    }
                    latencies
                })
            })
            .collect();
        sessions.into_iter().flat_map(|session| session.join().expect("a session")).collect()
    });
    let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
    Measured { latencies, rates: vec![rate] }
}

/// A line of a table in Markdown.
pub fn markdown_line<T: AsRef<str>>(cells: &[T]) -> String {
    let cells: Vec<_> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |", cells.join(" | "))
}

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// This, or more.
    AtLeast(f64),
    /// This, or less.
    AtMost(f64),
}

impl Goal {
    /// Whether `figure` is as it should be.
    pub fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(bound) => figure >= bound,
            Self::AtMost(bound) => figure <= bound,
        }
    }

    /// "met" or "MISSED".
    pub fn verdict(self, figure: f64) -> &'static str {
        if self.is_met(figure) { "met" } else { "MISSED" }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(formatter, "at least {bound}"),
            Self::AtMost(bound) => write!(formatter, "at most {bound}"),
        }
    }
}
