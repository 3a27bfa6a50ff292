//! What a start and an end write and touch: bytes of write-ahead log, of the caller and of the worker, and
//! pages in the buffers.
//!
//! One session, each call a transaction of its own. Full-page images are switched off, since how many
//! there are is a matter of checkpoints, and so is vacuum.

use std::thread;
use std::time::Duration;

use pg_test::Client;
use pg_test::measure::{Goal, Worker, wait_for_quiet, wal_position};

use crate::charts::{Bars, Chart, number};
use crate::database::Database;
use crate::recorder::{Calls, Recorder};
use crate::report::{Report, Row};
use crate::scale::Scale;
use crate::variant::{self, Variant};

/// Executions before those that count: plans and files that grow.
const WARM_UP: u64 = 20;

/// What an execution costs.
#[derive(Clone, Copy)]
pub struct Cost {
    /// Bytes of write-ahead log.
    pub bytes: f64,
    /// Pages touched in the buffers.
    pub buffers: f64,
}

/// Measures it.
pub fn measure(scale: &Scale, database: &Database, report: &mut Report) -> Chart {
    let costs = costs(scale, database, variant::ALL);
    report.section("Bytes of write-ahead log a start and end");
    add_rows(report, &costs.map(|cost| cost.bytes), |row, variant, bytes| match variant {
        Variant::Transactional => row.goal("", Goal::AtMost(1_000.0), " (aim 850)", bytes),
        _ => row,
    });
    report.section("Buffers touched a start and end");
    add_rows(report, &costs.map(|cost| cost.buffers), |row, _, _| row);
    Chart::Bars(Bars {
        file: "wal".to_owned(),
        title: "Bytes of write-ahead log a start and end".to_owned(),
        logarithmic: false,
        series: vec!["bytes".to_owned()],
        groups: variant::ALL
            .into_iter()
            .zip(costs)
            .map(|(variant, cost)| (variant.name().to_owned(), vec![Some(cost.bytes)]))
            .collect(),
    })
}

/// What an execution costs in each of the `variants`.
pub fn costs<const N: usize>(
    scale: &Scale,
    database: &Database,
    variants: [Variant; N],
) -> [Cost; N] {
    let before = database.set("full_page_writes", "off");
    let mut admin = database.connect();
    // From here on no page is written whole.
    admin.batch_execute("CHECKPOINT").expect("a checkpoint");
    let costs = variants.map(|variant| cost(scale.wal_rounds, database, &mut admin, variant));
    database.set("full_page_writes", &before);
    costs
}

fn add_rows(report: &mut Report, figures: &[f64], goal: impl Fn(Row, Variant, f64) -> Row) {
    let baseline = figures[Variant::Plain as usize];
    for (variant, figure) in variant::ALL.into_iter().zip(figures) {
        let row = Row::new(variant.name(), number(*figure));
        let row = if variant == Variant::Plain {
            row
        } else {
            row.baseline(format!("{} {}", Variant::Plain.name(), number(baseline)))
                .ratio(figure / baseline)
        };
        report.add(goal(row, variant, *figure));
    }
}

fn cost(rounds: u64, database: &Database, admin: &mut Client, variant: Variant) -> Cost {
    let mut recorder = Recorder::new(database, 0, 1, &[variant]);
    let work = (variant, Calls::Separate);
    recorder.prepare(work);
    for _ in 0..WARM_UP {
        recorder.work(work);
    }
    let mut state = |recorder: &mut Recorder| {
        recorder.flush_statistics();
        wait_for_quiet(admin);
        if variant == Variant::Autonomous {
            // The worker tells what it has read when it has nothing else to do; nothing shows that it has.
            thread::sleep(Duration::from_millis(500));
        }
        (wal_position(admin), buffers(admin))
    };
    let (bytes_before, buffers_before) = state(&mut recorder);
    for _ in 0..rounds {
        recorder.work(work);
    }
    let (bytes, buffers) = state(&mut recorder);
    let each = |difference: i64| difference as f64 / rounds as f64;
    Cost { bytes: each(bytes - bytes_before), buffers: each(buffers - buffers_before) }
}

/// Pages that the sessions of this database have asked for.
fn buffers(client: &mut Client) -> i64 {
    let query =
        "SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database()";
    client.query_one(query, &[]).expect("statistics").get(0)
}
