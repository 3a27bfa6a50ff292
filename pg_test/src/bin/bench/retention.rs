//! What a purge costs those who record, and whether the table stays as small as what it keeps.

use std::thread;
use std::time::Instant;

use pg_test::measure::{Goal, Measured, run_slice};
use pg_test::{Cluster, Warnings};

use crate::background::{while_purging, while_recording};
use crate::charts::{Chart, Line, number};
use crate::database::Database;
use crate::recorder::{Calls, Recorder};
use crate::report::{Report, Row};
use crate::scale::Scale;
use crate::variant::Variant;

/// Sessions that record.
const CLIENTS: usize = 8;

/// Loaders of the steady load: few, so that each runs often, since the newest runs of each are never purged.
const STEADY_LOADERS: i64 = 100;

/// The most slices that a purge gets, however slow it is.
const MOST_SLICES: u32 = 30;

/// Slices of recording with and without a purge take turns, until enough is purged.
pub fn purge(scale: &Scale, database: &Database, report: &mut Report) {
    report.section("Retention: start + end of 8 clients in ms while rows are purged");
    // There is always more to purge.
    let older = i64::try_from(2 * scale.purged).expect("a number of rows");
    let query = "SELECT (clock_timestamp() - execution_end)::text FROM loader.execution_history \
                  WHERE execution_end IS NOT NULL ORDER BY execution_end OFFSET $1 LIMIT 1";
    let age: String = database.connect().query_one(query, &[&older]).expect("a row").get(0);

    let autovacuum = database.set("autovacuum", "on");
    let mut recorders = Recorder::several(database, CLIENTS, &[Variant::Durable]);
    let mut record =
        || run_slice(&mut recorders, (Variant::Durable, Calls::Separate), scale.purge_slice);
    record();
    let (mut quiet, mut purging) = (Measured::default(), Measured::default());
    let (mut deleted, mut slices) = (0, 0);
    while deleted < scale.purged && slices < MOST_SLICES {
        quiet.add(record());
        let (slice, rows) = while_purging(database, &age, scale.purge_batch, &mut record);
        purging.add(slice);
        deleted += rows;
        slices += 1;
    }
    database.set("autovacuum", &autovacuum);

    assert!(deleted > 0, "nothing was purged");
    let seconds = f64::from(slices) * scale.purge_slice.as_secs_f64();
    report.add(Row::new(
        format!("rows purged in {seconds:.0} s, at most {} by a call", scale.purge_batch),
        number(deleted as f64),
    ));
    for (name, part, goal) in [("median", 0.5, None), ("p99", 0.99, Some(Goal::AtMost(2.0)))] {
        let [quiet, purging] = [&mut quiet, &mut purging].map(|side| side.quantile(part) * 1_000.0);
        report.add(
            Row::new(name, format!("{purging:.2}"))
                .baseline(format!("without purge {quiet:.2}"))
                .ratio(purging / quiet)
                .goal_if_any("ratio", goal, "", purging / quiet),
        );
    }
    let [quiet, purging] = [&mut quiet, &mut purging].map(Measured::rate);
    report.add(
        Row::new("executions a second", number(purging))
            .baseline(format!("without purge {}", number(quiet)))
            .ratio(purging / quiet),
    );
}

/// A load that goes on and on, with a purge that keeps up and autovacuum. Time goes faster here than in
/// life: autovacuum looks for work every second and takes no rests, and history is kept for seconds.
pub fn steady(scale: &Scale, cluster: &Cluster, warnings: &Warnings, report: &mut Report) -> Chart {
    report.section(format!(
        "Retention: size of the table and its indexes in MB, 8 clients record, {} kept",
        scale.steady_age
    ));
    let database = Database::create(cluster, warnings, "steady".to_owned(), STEADY_LOADERS);
    let before =
        [("autovacuum", "on"), ("autovacuum_naptime", "1s"), ("autovacuum_vacuum_cost_delay", "0")]
            .map(|(setting, value)| (setting, database.set(setting, value)));
    let ((points, recorded), deleted) =
        while_purging(&database, scale.steady_age, scale.purge_batch, || {
            while_recording(&database, CLIENTS, || sizes(scale, &database))
        });
    for (setting, value) in before {
        database.set(setting, &value);
    }
    let left = database.count(Variant::Durable);
    assert!(deleted > 0, "nothing was purged");
    assert_eq!(left + deleted, recorded, "every execution is there, or purged");

    let third = points.len() / 3;
    let most = |points: &[(f64, f64)]| points.iter().map(|point| point.1).fold(0.0, f64::max);
    let (middle, last) = (most(&points[third..2 * third]), most(&points[2 * third..]));
    report.add(
        Row::new(
            format!("{} recorded, {} purged", number(recorded as f64), number(deleted as f64)),
            format!("last third {last:.1}"),
        )
        .baseline(format!("middle third {middle:.1}"))
        .ratio(last / middle)
        .goal("ratio", Goal::AtMost(1.1), "", last / middle),
    );
    Chart::Line(Line {
        file: "steady",
        title: "MB of the table and its indexes under steady load with a purge".to_owned(),
        points,
    })
}

/// Seconds, and megabytes at that time.
fn sizes(scale: &Scale, database: &Database) -> Vec<(f64, f64)> {
    let mut client = database.connect();
    let begun = Instant::now();
    (0..scale.steady_samples)
        .map(|_| {
            thread::sleep(scale.steady / scale.steady_samples);
            let query = "SELECT pg_total_relation_size('loader.execution_history')";
            let bytes: i64 = client.query_one(query, &[]).expect("a size").get(0);
            (begun.elapsed().as_secs_f64(), bytes as f64 / f64::from(1 << 20))
        })
        .collect()
}
