//! Executions a second, started and ended: every variant, each way to commit, few clients and many.
//!
//! Every variant's table holds the same history before. The goals are against what has no events: the
//! extension without them, which tells what the events cost, and the seed schema, with the primary key that
//! people give it and nothing more, so that the extension also pays for its constraints and for the indexes
//! of its reads; the table with the same indexes tells how much these are. Nobody listens
//! meanwhile: how fast events are with a listener is measured with their delivery.
//!
//! All of that on the disk as it is, and again where a commit takes 5 ms longer, which is `commit_delay`.

use std::collections::BTreeMap;
use std::slice;

use pg_test::Client;
use pg_test::measure::{Goal, Measured, Turns};

use crate::charts::{Bars, Chart, number};
use crate::database::Database;
use crate::machine;
use crate::recorder::{Calls, Recorder, done};
use crate::report::{Report, Row};
use crate::scale::Scale;
use crate::variant::{self, Variant};

/// What is compared with what, and shown.
const PAIRS: [(Variant, Variant); 7] = [
    (Variant::Notifying, Variant::Plain),
    (Variant::Transactional, Variant::Silent),
    (Variant::Autonomous, Variant::Silent),
    (Variant::Transactional, Variant::Plain),
    (Variant::Autonomous, Variant::Plain),
    (Variant::Transactional, Variant::Bare),
    (Variant::Transactional, Variant::BareIndexed),
];

/// What is compared where commits take long.
const SLOW: [Variant; 5] = [
    Variant::Plain,
    Variant::Notifying,
    Variant::Silent,
    Variant::Transactional,
    Variant::Autonomous,
];

/// How much longer they take, in microseconds.
const DELAY: u32 = 5_000;

/// The goal for a variant against one without events.
fn goal(variant: Variant, baseline: Variant, calls: Calls, clients: usize) -> Option<Goal> {
    let is_silent = [Variant::Plain, Variant::Silent].contains(&baseline);
    match (variant, calls, clients) {
        _ if !is_silent => None,
        (Variant::Transactional, _, _) => Some(Goal::AtLeast(0.95)),
        (Variant::Autonomous, Calls::Separate, 8..) => Some(Goal::AtLeast(0.8)),
        (Variant::Autonomous, Calls::Together, 8..) => Some(Goal::AtLeast(0.45)),
        _ => None,
    }
}

/// Measures it, and makes sure that every execution is there.
pub fn measure(scale: &Scale, database: &Database, report: &mut Report) -> Vec<Chart> {
    let counts =
        || variant::ALL.map(|variant| (database.count(variant), database.count_successes(variant)));
    let before = counts();
    let most = scale.clients.iter().copied().max().unwrap_or_default();
    let mut bench = Bench {
        clients: scale.clients,
        recorders: Recorder::several(database, most, &variant::ALL),
        admin: database.connect(),
    };
    let mut charts = bench.compare(scale.throughput, &variant::ALL, "", "throughput", report);
    charts.extend(bench.compare_slow(scale, database, report));
    assert_recorded(&bench.recorders, before, counts());
    charts
}

struct Bench {
    clients: &'static [usize],
    recorders: Vec<Recorder>,
    admin: Client,
}

impl Bench {
    /// Compares `variants`. `commits` is said of the commits, and `file` begins the charts' names.
    fn compare(
        &mut self,
        turns: Turns,
        variants: &[Variant],
        commits: &str,
        file: &str,
        report: &mut Report,
    ) -> Vec<Chart> {
        let charts = Calls::ALL.map(|calls| {
            let title = format!("Executions a second, {}{commits}", calls.name());
            report.section(title.clone());
            let sides: Vec<_> = variants.iter().map(|variant| (*variant, calls)).collect();
            let mut groups = Vec::new();
            for &clients in self.clients {
                let recorders = &mut self.recorders[..clients];
                let measured = turns.compare(slice::from_mut(&mut self.admin), recorders, &sides);
                let bars = measured.iter().map(|side| Some(side.rate())).collect();
                let measured = variants.iter().copied().zip(measured).collect();
                add_rows(report, calls, clients, &measured);
                groups.push((clients_name(clients), bars));
            }
            Chart::Bars(Bars {
                file: match calls {
                    Calls::Separate => format!("{file}-separate"),
                    Calls::Together => format!("{file}-together"),
                },
                title,
                logarithmic: false,
                series: variants.iter().map(|variant| variant.name().to_owned()).collect(),
                groups,
            })
        });
        charts.into()
    }

    /// The same where a commit takes longer.
    fn compare_slow(
        &mut self,
        scale: &Scale,
        database: &Database,
        report: &mut Report,
    ) -> Vec<Chart> {
        let (charts, slow) = while_commits_are_slow(&[database], || {
            self.compare(scale.slow_throughput, &SLOW, &slow_commits(), "throughput-slow", report)
        });
        report.add(slow);
        charts
    }
}

/// What is said of commits that take longer.
pub fn slow_commits() -> String {
    let delay = f64::from(DELAY) / 1_000.0;
    format!(", commits take {} ms longer (commit_delay)", number(delay))
}

/// Does `work` while commits take longer, as on an ordinary disk or network storage. `commit_delay` stands for
/// that: the session that writes the log for a commit, and for all that wait for it, sleeps before, so that commits share
/// that as they share a slow disk. The worker's commits do so too. Returns a row about it, too.
pub fn while_commits_are_slow<T>(databases: &[&Database], work: impl FnOnce() -> T) -> (T, Row) {
    let commit_ms = || databases.iter().map(|database| machine::commit_ms(&mut database.connect()));
    let quick: Vec<_> = commit_ms().collect();
    let settings = [("commit_siblings", "0".to_owned()), ("commit_delay", DELAY.to_string())];
    let before: Vec<_> = databases
        .iter()
        .map(|database| settings.clone().map(|(name, value)| (name, database.set(name, &value))))
        .collect();
    let slow: Vec<_> = commit_ms().collect();
    let delay = f64::from(DELAY) / 1_000.0;
    assert!(slow.iter().all(|&slow| slow >= delay), "commit_delay has no effect: {slow:?} ms");
    let result = work();
    for (database, before) in databases.iter().zip(before) {
        for (name, value) in before {
            database.set(name, &value);
        }
    }
    let row = Row::new("ms for a bare insert of one row that commits", number(slow[0]))
        .baseline(format!("without commit_delay {}", number(quick[0])))
        .ratio(slow[0] / quick[0]);
    (result, row)
}

fn add_rows(
    report: &mut Report,
    calls: Calls,
    clients: usize,
    measured: &BTreeMap<Variant, Measured>,
) {
    for (variant, baseline) in PAIRS {
        let (Some(ours), Some(other)) = (measured.get(&variant), measured.get(&baseline)) else {
            continue;
        };
        let ratio = ours.ratio_to(other);
        let goal = goal(variant, baseline, calls, clients);
        report.add(
            Row::new(format!("{}, {}", clients_name(clients), variant.name()), number(ours.rate()))
                .baseline(format!("{} {}", baseline.name(), number(other.rate())))
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

/// A number of clients in words.
pub fn clients_name(clients: usize) -> String {
    match clients {
        1 => "1 client".to_owned(),
        _ => format!("{clients} clients"),
    }
}
