//! How much is measured.

use std::env;
use std::time::Duration;

use pg_test::measure::Turns;
use pg_test::size;

use crate::background::Purger;

/// The parts of a run.
const PARTS: [&str; 7] = ["baseline", "reads", "throughput", "wal", "delivery", "purge", "steady"];

/// The sizes of everything.
pub struct Scale {
    /// Whether this is the small size, which proves that all is right and says nothing of speed.
    pub small: bool,
    /// The parts that are measured; all of them where none is named.
    pub parts: Vec<String>,
    /// Settings of the server's that depend on the size.
    pub settings: &'static str,
    /// Loaders of each database.
    pub loaders: i64,
    /// Executions of the databases that reads are compared in, from few to many.
    pub histories: Vec<i64>,
    /// Sessions that record at the same time.
    pub clients: &'static [usize],
    /// Sessions that record while something else is looked at.
    pub background_clients: usize,
    /// Slices of the comparisons of throughput.
    pub throughput: Turns,
    /// The same where commits take long.
    pub slow_throughput: Turns,
    /// Executions of each variant that write-ahead log is counted of.
    pub wal_rounds: u64,
    /// How long each variant's events are listened to.
    pub listening: Duration,
    /// How many turns of reading there are.
    pub read_turns: u32,
    /// How long each is.
    pub read_slice: Duration,
    /// How often a read of the seed schema is repeated.
    pub naive_reads: u32,
    /// Of how many different loaders or executions it is made sure that reads are right.
    pub checked_reads: u32,
    /// The page that is far back, of 50 executions each.
    pub far_page: i64,
    /// What a day adds for each loader.
    pub executions_a_day: i64,
    /// Rows that are purged while loaders record.
    pub purged: u64,
    /// Rows that a call of the purge deletes at most.
    pub purge_batch: i64,
    /// How long a slice of recording with or without a purge is.
    pub purge_slice: Duration,
    /// Slices without a purge, and twice as many are with the worker's.
    pub purge_slices: u32,
    /// How long the steady load lasts.
    pub steady: Duration,
    /// How often it is looked at meanwhile.
    pub steady_samples: u32,
    /// Who purges under the steady load.
    pub steady_purger: Purger,
    /// What the steady load keeps, in PostgreSQL's words.
    pub steady_age: &'static str,
}

impl Scale {
    /// The size that `BENCH_SIZE` names: `full`, or without it `small`. `BENCH_ROWS` adds a history of so
    /// many executions to the full size.
    pub fn from_environment() -> Self {
        match env::var("BENCH_SIZE").as_deref() {
            Ok("full") => Self::full(),
            Ok("small") | Err(_) => Self::small(),
            Ok(other) => panic!("BENCH_SIZE is neither full nor small: {other}"),
        }
    }

    /// Whether this part is to be measured.
    pub fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    fn full() -> Self {
        let mut histories = vec![1_000_000, 10_000_000];
        let more = i64::try_from(size("BENCH_ROWS", 0)).expect("BENCH_ROWS");
        if more > 0 {
            assert!(
                more > 10_000_000 && more % 1_000_000 == 0,
                "BENCH_ROWS is full millions above 10"
            );
            histories.push(more);
        }
        Self {
            small: false,
            parts: parts(),
            settings: "
shared_buffers = '6GB'
checkpoint_timeout = '30min'
max_wal_size = '8GB'
",
            loaders: 10_000,
            histories,
            clients: &[1, 8, 32],
            background_clients: 32,
            throughput: Turns { slices: 7, slice: Duration::from_secs(1) },
            slow_throughput: Turns { slices: 5, slice: Duration::from_secs(1) },
            wal_rounds: 3_000,
            listening: Duration::from_secs(8),
            read_turns: 32,
            read_slice: Duration::from_millis(60),
            naive_reads: 3,
            checked_reads: 1,
            far_page: 1_000,
            executions_a_day: 24,
            purged: 1_000_000,
            purge_batch: 1_000,
            purge_slice: Duration::from_secs(3),
            purge_slices: 10,
            steady: Duration::from_secs(300),
            steady_samples: 100,
            steady_purger: Purger::Worker,
            // The shortest value of the setting. The worker looks for more once a minute.
            steady_age: "1 min",
        }
    }

    fn small() -> Self {
        Self {
            small: true,
            parts: parts(),
            settings: "",
            loaders: 40,
            histories: vec![4_000, 20_000, 24_000],
            clients: &[1, 4],
            background_clients: 4,
            throughput: Turns { slices: 1, slice: Duration::from_millis(100) },
            slow_throughput: Turns { slices: 1, slice: Duration::from_millis(100) },
            wal_rounds: 100,
            listening: Duration::from_millis(500),
            read_turns: 2,
            read_slice: Duration::from_millis(5),
            naive_reads: 2,
            checked_reads: 5,
            far_page: 50,
            executions_a_day: 5,
            purged: 5_000,
            purge_batch: 500,
            purge_slice: Duration::from_millis(200),
            purge_slices: 2,
            steady: Duration::from_secs(4),
            steady_samples: 8,
            steady_purger: Purger::Session,
            steady_age: "1 s",
        }
    }
}

/// What `BENCH_ONLY` names.
fn parts() -> Vec<String> {
    let parts = env::var("BENCH_ONLY").unwrap_or_default();
    let parts: Vec<_> = parts.split(',').filter(|part| !part.is_empty()).collect();
    assert!(parts.iter().all(|part| PARTS.contains(part)), "BENCH_ONLY: parts are {PARTS:?}");
    parts.into_iter().map(str::to_owned).collect()
}

/// A number of rows as people say it.
pub fn rows(number: i64) -> String {
    if number >= 1_000_000 {
        format!("{} M", number / 1_000_000)
    } else {
        format!("{} k", number / 1_000)
    }
}
