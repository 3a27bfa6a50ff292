//! What recording, reading and events cost, beside what people write today: one run, one table.
//!
//! The baselines are in the same run: the seed schema with hand-written PL/pgSQL functions, with and
//! without a `pg_notify` trigger, and a bare INSERT and UPDATE. What is compared takes turns in slices, so
//! that whatever else the machine does meets all of it: trust the ratios.
//!
//! `make bench` sets `PG_TEST_BINDIR`, the server's programs, built for release, `TMPDIR`, a directory on a
//! disk, and `BENCH_SIZE`. The full size (`BENCH_SIZE=full`) writes its table to `docs/bench.md` and its
//! charts to `docs/charts`; `BENCH_ROWS=100000000` adds a history of that many executions. The small size,
//! which `make test` runs, makes sure that every execution is recorded, that every event comes once, that
//! reads say what the seed schema says, and that charts are SVG; it writes them to a temporary folder.
//! `BENCH_ONLY=reads,purge` measures some parts alone, of either size, and writes nothing to `docs`; `scale`
//! lists them. `make baseline` is `BENCH_ONLY=baseline`: this version beside the release before it.

mod background;
mod baseline;
mod charts;
mod database;
mod delivery;
mod document;
mod history;
mod machine;
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
    let facts = document::facts(&scale, &cluster);
    let warnings = Warnings::default();
    let mut report = Report::new(!scale.small);
    let charts = measure(&scale, &cluster, &settings, &warnings, &mut report);

    document::write(&scale, &cluster, &facts, &report, &charts);
    report.print();
    println!("\n{facts}");
    println!("\nStarts with the WARNING: {}", warnings.count());
    for (reason, count) in &*warnings.reasons() {
        println!("{count}: {reason}");
    }
    println!("{} {:.0} s", report.verdict(), begun.elapsed().as_secs_f64());
}

fn measure(
    scale: &Scale,
    cluster: &Cluster,
    settings: &str,
    warnings: &Warnings,
    report: &mut Report,
) -> Vec<Chart> {
    let baseline = baseline::bindir(scale);
    let wants_any = |parts: &[&str]| parts.iter().any(|part| scale.wants(part));
    let needed = if scale.wants("reads") {
        scale.histories.len()
    } else if scale.wants("purge") {
        2
    } else {
        usize::from(wants_any(&["throughput", "wal", "delivery"]))
    };
    let histories: Vec<_> = scale
        .histories
        .iter()
        .enumerate()
        .take(needed)
        .map(|(place, &executions)| {
            eprintln!("Filling a history of {} executions", scale::rows(executions));
            let name = format!("history_{executions}");
            let database = Database::create(cluster, warnings, name, scale.loaders);
            let has_seed = place < WITH_SEED;
            history::fill(&database, executions, &copies(place));
            History::new(scale, database, executions, has_seed)
        })
        .collect();
    let mut charts = Vec::new();
    let mut medians = Vec::new();
    if scale.wants("reads") {
        eprintln!("Reads");
        (charts, medians) = reads::compare(scale, &histories, report);
    }
    if scale.wants("throughput") {
        charts.extend(throughput::measure(scale, &histories[0].database, report));
    }
    if scale.wants("wal") {
        charts.push(wal::measure(scale, &histories[0].database, report));
    }
    if scale.wants("delivery") {
        charts.extend(delivery::measure(scale, &histories[0].database, report));
    }
    if scale.wants("reads") {
        reads::while_others_record(scale, &histories[1], &medians[1], report);
        reads::after_a_day(scale, &histories[1], &medians[1], report);
    }
    if scale.wants("purge") {
        retention::purge(scale, &histories[1].database, report);
    }
    if scale.wants("steady") {
        charts.push(retention::steady(scale, cluster, warnings, report));
    }
    if let Some(bindir) = baseline {
        baseline::measure(scale, cluster, settings, bindir, warnings, report);
    }
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
