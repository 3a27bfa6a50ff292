//! What a purge costs those who record, and whether the table stays as small as what it keeps.

use std::thread;
use std::time::Instant;

use pg_test::measure::{Goal, Measured, run_slice};
use pg_test::{Cluster, Warnings};

use crate::background::{Purger, while_purging, while_recording};
use crate::charts::{Chart, Line, number};
use crate::database::Database;
use crate::history::vacuum;
use crate::recorder::{Calls, Recorder, done};
use crate::report::{Report, Row};
use crate::scale::Scale;
use crate::variant::Variant;

/// Sessions that record.
const CLIENTS: usize = 8;

/// Loaders of the steady load: few, so that each runs often, since the newest runs of each are never purged.
const STEADY_LOADERS: i64 = 100;

/// The most slices that a purge gets, however slow it is.
const MOST_SLICES: u32 = 30;

/// Slices of recording, first without a purge, then with the worker's, and then with a session's until enough is
/// purged: what vacuum has to do after a purge is part of what that costs, and meets none of the first.
pub fn purge(scale: &Scale, database: &Database, report: &mut Report) {
    report.section("Retention: start + end of 8 clients in ms while rows are purged");
    // There is always more to purge.
    let older = i64::try_from(3 * scale.purged).expect("a number of rows");
    let query = "SELECT ceil(extract(epoch FROM clock_timestamp() - execution_end) / 60)::bigint \
                   FROM loader.execution_history \
                  WHERE execution_end IS NOT NULL ORDER BY execution_end OFFSET $1 LIMIT 1";
    let minutes: i64 = database.connect().query_one(query, &[&older]).expect("a row").get(0);
    let age = format!("{minutes} min");

    vacuum(database, &[]);
    let autovacuum = database.set("autovacuum", "on");
    let mut recorders = Recorder::several(database, CLIENTS, &[Variant::Autonomous]);
    let mut quiet = Measured::default();
    // The first warms up.
    for slice in 0..=scale.purge_slices {
        let measured = record(scale, &mut recorders);
        if slice > 0 {
            quiet.add(measured);
        }
    }
    for (purger, name) in [(Purger::Worker, "the worker"), (Purger::Session, "a session")] {
        let (left, done_before) = (database.count(Variant::Autonomous), recorded(&recorders));
        let deletions = database.deletions();
        let (mut purging, seconds) =
            while_purging(database, purger, &age, scale.purge_batch, || {
                let begun = Instant::now();
                let mut purging = Measured::default();
                for _ in 0..MOST_SLICES {
                    purging.add(record(scale, &mut recorders));
                    if database.deletions() - deletions >= scale.purged {
                        break;
                    }
                }
                (purging, begun.elapsed().as_secs_f64())
            });
        let recorded = recorded(&recorders) - done_before;
        let deleted = left + recorded - database.count(Variant::Autonomous);
        assert!(deleted > 0, "nothing was purged by {name}");
        let limit = match purger {
            Purger::Worker => "under loader_history.retention".to_owned(),
            Purger::Session => format!("at most {} by a call", scale.purge_batch),
        };
        report.add(Row::new(
            format!("{} rows purged by {name}, {limit}", number(deleted as f64)),
            format!("{}/s", number(deleted as f64 / seconds)),
        ));
        add_rows(name, &mut quiet, &mut purging, report);
    }
    database.set("autovacuum", &autovacuum);
}

fn record(scale: &Scale, recorders: &mut [Recorder]) -> Measured {
    run_slice(recorders, (Variant::Autonomous, Calls::Separate), scale.purge_slice)
}

fn recorded(recorders: &[Recorder]) -> u64 {
    done(recorders, Variant::Autonomous)
}

fn add_rows(name: &str, quiet: &mut Measured, purging: &mut Measured, report: &mut Report) {
    for (part_name, part, goal) in [("median", 0.5, None), ("p99", 0.99, Some(Goal::AtMost(2.0)))] {
        let [before, now] = [&mut *quiet, &mut *purging].map(|side| side.quantile(part) * 1_000.0);
        report.add(
            Row::new(format!("{name} purges: {part_name}"), format!("{now:.2}"))
                .baseline(format!("without purge {before:.2}"))
                .ratio(now / before)
                .goal_if_any("ratio", goal, "", now / before),
        );
    }
    let [before, now] = [quiet, purging].map(|side| side.rate());
    report.add(
        Row::new(format!("{name} purges: executions a second"), number(now))
            .baseline(format!("without purge {}", number(before)))
            .ratio(now / before),
    );
}

/// A load that goes on and on, with a purge that keeps up and autovacuum. Time goes faster here than in
/// life: autovacuum looks for work every second and takes no rests, and history is kept for a minute.
pub fn steady(scale: &Scale, cluster: &Cluster, warnings: &Warnings, report: &mut Report) -> Chart {
    report.section(format!(
        "Retention: size of all tables of the extension in MB, 8 clients record, {} kept by {}",
        scale.steady_age,
        match scale.steady_purger {
            Purger::Worker => "the worker",
            Purger::Session => "a session",
        }
    ));
    let database = Database::create(cluster, warnings, "steady".to_owned(), STEADY_LOADERS);
    let before =
        [("autovacuum", "on"), ("autovacuum_naptime", "1s"), ("autovacuum_vacuum_cost_delay", "0")]
            .map(|(setting, value)| (setting, database.set(setting, value)));
    let (points, recorded) =
        while_purging(&database, scale.steady_purger, scale.steady_age, scale.purge_batch, || {
            while_recording(&database, CLIENTS, || sizes(scale, &database))
        });
    for (setting, value) in before {
        database.set(setting, &value);
    }
    let deleted = recorded - database.count(Variant::Autonomous);
    assert!(deleted > 0, "nothing was purged");

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
        title: "MB of the history and all that goes with it under steady load with a purge"
            .to_owned(),
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
            let query = "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
                          WHERE relkind = 'r' AND relnamespace IN
                                (SELECT oid FROM pg_namespace WHERE nspname IN ('loader', 'loader_history'))";
            let bytes: i64 = client.query_one(query, &[]).expect("a size").get(0);
            (begun.elapsed().as_secs_f64(), bytes as f64 / f64::from(1 << 20))
        })
        .collect()
}
