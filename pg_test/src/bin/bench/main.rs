//! What recording, reading and events cost, beside what people write today: one run, one table.
//!
//! The baselines are in the same run: the seed schema with hand-written PL/pgSQL functions, with and
//! without a `pg_notify` trigger, and a bare INSERT and UPDATE. What is compared takes turns in slices, so
//! that whatever else the machine does meets all of it: trust the ratios.
//!
//! `make bench` sets `PG_TEST_BINDIR`, the server's programs, built for release, `TMPDIR`, a directory on a
//! disk, and `BENCH_SIZE`. The full size (`BENCH_SIZE=full`) writes its table to `docs/bench.md` and its
//! charts to `docs/charts`; `BENCH_ROWS=100000000` adds a history of so many executions. The small size,
//! which `make test` runs, makes sure that every execution is recorded, that every event comes once, that
//! reads say what the seed schema says, and that charts are SVG; it writes them to a temporary folder.

mod background;
mod charts;
mod database;
mod delivery;
mod document;
mod history;
mod queries;
mod reads;
mod recorder;
mod report;
mod retention;
mod scale;
mod throughput;
mod variant;
mod wal;

use std::time::Instant;

use pg_test::measure::{COMMITS_REACH_DISK, assert_on_disk};
use pg_test::{Cluster, PRELOADED, Warnings};

use crate::charts::Chart;
use crate::database::Database;
use crate::reads::History;
use crate::report::Report;
use crate::scale::Scale;
use crate::variant::Variant;

/// Beside what the size says. Autovacuum, which the harness switches off, is on where a purge is measured.
const SETTINGS: &str = "
max_worker_processes = 16
";

/// Histories that the seed schema has, too: longer ones it takes too long to read.
const WITH_SEED: usize = 2;

fn main() {
    let scale = Scale::from_environment();
    let begun = Instant::now();
    let settings = [PRELOADED, COMMITS_REACH_DISK, SETTINGS, scale.settings].concat();
    let cluster = Cluster::start_with(&settings);
    if !scale.small {
        assert_on_disk(&cluster);
    }
    let warnings = Warnings::default();
    let mut report = Report::new(!scale.small);
    let charts = measure(&scale, &cluster, &warnings, &mut report);

    let text = document::write(&scale, &cluster, &report, &charts);
    report.print();
    println!("\n{text}");
    println!("\nStarts that were to be durable and were not: {}", warnings.count());
    for (reason, count) in &*warnings.reasons() {
        println!("{count}: {reason}");
    }
    println!("{} {:.0} s", report.verdict(), begun.elapsed().as_secs_f64());
}

fn measure(
    scale: &Scale,
    cluster: &Cluster,
    warnings: &Warnings,
    report: &mut Report,
) -> Vec<Chart> {
    let histories: Vec<_> = scale
        .histories
        .iter()
        .enumerate()
        .map(|(place, &executions)| {
            eprintln!("Filling a history of {} executions", scale::rows(executions));
            let name = format!("history_{executions}");
            let database = Database::create(cluster, warnings, name, scale.loaders);
            let has_seed = place < WITH_SEED;
            history::fill(&database, executions, &copies(place));
            History { database, executions, has_seed }
        })
        .collect();
    let (few, many) = (&histories[0], &histories[1]);

    eprintln!("Reads");
    let (mut charts, medians) = reads::compare(scale, &histories, report);
    charts.extend(throughput::measure(scale, &few.database, report));
    charts.push(wal::measure(scale, &few.database, report));
    charts.extend(delivery::measure(scale, &few.database, report));
    reads::while_others_record(scale, many, &medians[1], report);
    reads::after_a_day(scale, many, &medians[1], report);
    retention::purge(scale, &many.database, report);
    charts.push(retention::steady(scale, cluster, warnings, report));
    charts
}

/// Which tables get a copy of a history: in the shortest everything records, too.
fn copies(place: usize) -> Vec<Variant> {
    let recorded =
        [Variant::Plain, Variant::Notifying, Variant::Bare, Variant::BareIndexed].into_iter();
    match place {
        0 => recorded.collect(),
        _ => recorded.take(1).filter(|_| place < WITH_SEED).collect(),
    }
}
