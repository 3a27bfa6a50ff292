//! Executions a second, started and ended: every variant, each way to commit, few clients and many.
//!
//! Every variant's table holds the same history before. The goals are against what has no events: the
//! extension without them, which tells what the events cost, and the seed schema, with the primary key that
//! people give it and nothing more, so that the extension also pays for its constraints and for the indexes
//! of its reads; the table with the same indexes tells how much these are. Nobody listens
//! meanwhile: how fast events are with a listener is told with their delivery.

use pg_test::measure::{Goal, Measured};

use crate::charts::{Bars, Chart, number};
use crate::database::Database;
use crate::recorder::{Calls, Recorder, done};
use crate::report::{Report, Row};
use crate::scale::Scale;
use crate::variant::{self, Variant};

/// What is compared with what, and shown.
const PAIRS: [(Variant, Variant); 7] = [
    (Variant::Notifying, Variant::Plain),
    (Variant::Transactional, Variant::Silent),
    (Variant::Durable, Variant::Silent),
    (Variant::Transactional, Variant::Plain),
    (Variant::Durable, Variant::Plain),
    (Variant::Transactional, Variant::Bare),
    (Variant::Transactional, Variant::BareIndexed),
];

/// The goal for a variant against one without events.
fn goal(variant: Variant, baseline: Variant, calls: Calls, clients: usize) -> Option<Goal> {
    let is_silent = [Variant::Plain, Variant::Silent].contains(&baseline);
    match (variant, calls, clients) {
        _ if !is_silent => None,
        (Variant::Transactional, _, _) => Some(Goal::AtLeast(0.95)),
        (Variant::Durable, Calls::Separate, 8..) => Some(Goal::AtLeast(0.8)),
        (Variant::Durable, Calls::Together, 8..) => Some(Goal::AtLeast(0.45)),
        _ => None,
    }
}

/// Measures it, and makes sure that every execution is there.
pub fn measure(scale: &Scale, database: &Database, report: &mut Report) -> Vec<Chart> {
    let counts =
        || variant::ALL.map(|variant| (database.count(variant), database.count_successes(variant)));
    let before = counts();
    let most = scale.clients.iter().copied().max().unwrap_or_default();
    let mut recorders = Recorder::several(database, most, &variant::ALL);
    let mut admin = database.connect();
    let charts = Calls::ALL.map(|calls| {
        report.section(format!("Executions a second, {}", calls.name()));
        let mut groups = Vec::new();
        for &clients in scale.clients {
            let sides = variant::ALL.map(|variant| (variant, calls));
            let measured = scale.throughput.compare(&mut admin, &mut recorders[..clients], &sides);
            let rates: Vec<_> =
                measured.into_iter().map(|mut side: Measured| side.rate()).collect();
            add_rows(report, calls, clients, &rates);
            groups.push((clients_name(clients), rates.into_iter().map(Some).collect()));
        }
        Chart::Bars(Bars {
            file: match calls {
                Calls::Separate => "throughput-separate",
                Calls::Together => "throughput-together",
            },
            title: format!("Executions a second, {}", calls.name()),
            logarithmic: false,
            series: variant::ALL.map(|variant| variant.name().to_owned()).into(),
            groups,
        })
    });
    assert_recorded(&recorders, before, counts());
    charts.into()
}

fn add_rows(report: &mut Report, calls: Calls, clients: usize, rates: &[f64]) {
    for (variant, baseline) in PAIRS {
        let [rate, of_baseline] = [rates[variant as usize], rates[baseline as usize]];
        let ratio = rate / of_baseline;
        let goal = goal(variant, baseline, calls, clients);
        report.add(
            Row::new(format!("{}, {}", clients_name(clients), variant.name()), number(rate))
                .baseline(format!("{} {}", baseline.name(), number(of_baseline)))
                .ratio(ratio)
                .goal_if_any("ratio", goal, "", ratio),
        );
    }
}

/// Every execution that was recorded is there, once, and has succeeded: `before` and `after` are counts of
/// all executions and of successes.
fn assert_recorded(
    recorders: &[Recorder],
    before: [(u64, u64); variant::ALL.len()],
    after: [(u64, u64); variant::ALL.len()],
) {
    let ours: u64 = variant::OURS.iter().map(|ours| done(recorders, *ours)).sum();
    for ((variant, before), after) in variant::ALL.into_iter().zip(before).zip(after) {
        let recorded =
            if variant::OURS.contains(&variant) { ours } else { done(recorders, variant) };
        assert!(recorded > 0, "{variant:?} has recorded nothing");
        assert_eq!(after, (before.0 + recorded, before.1 + recorded), "{variant:?}");
    }
}

fn clients_name(clients: usize) -> String {
    match clients {
        1 => "1 client".to_owned(),
        _ => format!("{clients} clients"),
    }
}
