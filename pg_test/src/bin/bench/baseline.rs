//! This version beside the release before it, in the same run: each on a cluster of its own with the same
//! settings and the same history, taking turns in slices, and beside hand-written PL/pgSQL with `pg_notify`.
//!
//! `PG_TEST_BASELINE_BINDIR` is the folder of programs of a server with that release, as `scripts/baseline`
//! prints it. Without it this part is left out, unless it was asked for by name.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use pg_test::measure::{Measured, Turns, Worker};
use pg_test::{Client, Cluster, Warnings, say_left_out};

use crate::charts::number;
use crate::database::Database;
use crate::history;
use crate::reads::{self, History};
use crate::recorder::{Calls, Recorder, done};
use crate::report::{Report, Row};
use crate::scale::{self, Scale};
use crate::throughput::{clients_name, slow_commits, while_commits_are_slow};
use crate::variant::Variant;
use crate::wal;

/// Which of the two versions records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    Baseline,
    Current,
}

/// A version, and how it records.
type Side = (Release, Variant);

/// What takes turns.
const SIDES: [Side; 5] = [
    (Release::Current, Variant::Autonomous),
    (Release::Baseline, Variant::Autonomous),
    (Release::Current, Variant::Transactional),
    (Release::Baseline, Variant::Transactional),
    (Release::Current, Variant::Notifying),
];

/// What of this version is compared with what.
const PAIRS: [(Variant, Side); 4] = [
    (Variant::Autonomous, (Release::Baseline, Variant::Autonomous)),
    (Variant::Transactional, (Release::Baseline, Variant::Transactional)),
    (Variant::Autonomous, (Release::Current, Variant::Notifying)),
    (Variant::Transactional, (Release::Current, Variant::Notifying)),
];

/// The server of the release before, where there is one.
pub fn bindir(scale: &Scale) -> Option<PathBuf> {
    if !scale.wants("baseline") {
        return None;
    }
    let bindir = env::var_os("PG_TEST_BASELINE_BINDIR").map(PathBuf::from);
    if bindir.is_none() {
        let missing = "PG_TEST_BASELINE_BINDIR is not set (run `make baseline`)";
        assert!(scale.parts.is_empty(), "{missing}");
        say_left_out(&format!("the comparison with the release before: {missing}"));
    }
    bindir
}

/// Compares the version of `cluster` with that of `bindir`, whose cluster gets the same `settings` and history.
pub fn measure(
    scale: &Scale,
    cluster: &Cluster,
    settings: &str,
    bindir: PathBuf,
    warnings: &Warnings,
    report: &mut Report,
) {
    let before = Cluster::start_in(bindir, settings);
    let warnings_before = Warnings::default();
    let baseline = history_of(scale, &before, &warnings_before, &[]);
    let current = history_of(scale, cluster, warnings, &[Variant::Notifying]);
    let title =
        format!("Version {} beside {}: ", current.database.version(), baseline.database.version());
    let databases = [&baseline.database, &current.database];

    compare_throughput(scale, databases, &title, report);
    report.section(format!("{title}bytes of write-ahead log a start and end"));
    compare_wal(scale, databases, report);
    let executions = scale::rows(current.executions);
    report.section(format!("{title}reads in ms, median (p99), {executions} executions"));
    reads::compare_releases(scale, &baseline, &current, report);
    for (reason, count) in &*warnings_before.reasons() {
        println!(
            "Version {}, {count} starts with the WARNING: {reason}",
            baseline.database.version()
        );
    }
}

/// A database of its own with a history, which the tables of `others` have, too.
fn history_of<'a>(
    scale: &Scale,
    cluster: &'a Cluster,
    warnings: &'a Warnings,
    others: &[Variant],
) -> History<'a> {
    let executions = scale.histories[0];
    let database = Database::create(cluster, warnings, "baseline".to_owned(), scale.loaders);
    eprintln!("Filling a history of version {}", database.version());
    history::fill(&database, executions, others);
    History::new(scale, database, executions, false)
}

/// A session of each version.
struct Sessions {
    baseline: Recorder,
    current: Recorder,
}

impl Sessions {
    fn of(&mut self, release: Release) -> &mut Recorder {
        match release {
            Release::Baseline => &mut self.baseline,
            Release::Current => &mut self.current,
        }
    }
}

impl Worker for Sessions {
    type Work = (Side, Calls);

    fn prepare(&mut self, ((release, variant), calls): Self::Work) {
        self.of(release).prepare((variant, calls));
    }

    fn work(&mut self, ((release, variant), calls): Self::Work) -> Duration {
        self.of(release).work((variant, calls))
    }
}

/// The variants of one version.
fn variants_of(release: Release) -> Vec<Variant> {
    let sides = SIDES.iter().filter(|(of, _)| *of == release);
    sides.map(|(_, variant)| *variant).collect()
}

fn compare_throughput(scale: &Scale, databases: [&Database; 2], title: &str, report: &mut Report) {
    let [baseline, current] = databases;
    let before = databases.map(|database| database.count_successes(Variant::Autonomous));
    let most = scale.clients.iter().copied().max().unwrap_or_default();
    let baselines = Recorder::several(baseline, most, &variants_of(Release::Baseline));
    let currents = Recorder::several(current, most, &variants_of(Release::Current));
    let mut sessions: Vec<_> = baselines
        .into_iter()
        .zip(currents)
        .map(|(baseline, current)| Sessions { baseline, current })
        .collect();
    let mut admins = databases.map(Database::connect);
    let mut compare = |turns, commits: &str, report: &mut Report| {
        for calls in Calls::ALL {
            report.section(format!("{title}executions a second, {}{commits}", calls.name()));
            for &clients in scale.clients {
                let measured = take_turns(turns, &mut admins, &mut sessions[..clients], calls);
                add_rows(report, clients, baseline.version(), &measured);
            }
        }
    };
    compare(scale.throughput, "", report);
    let ((), slow) = while_commits_are_slow(&databases, || {
        compare(scale.slow_throughput, &slow_commits(), report);
    });
    report.add(slow);

    // Every execution that was recorded is there.
    let (baselines, currents): (Vec<_>, Vec<_>) =
        sessions.into_iter().map(|sessions| (sessions.baseline, sessions.current)).unzip();
    for ((recorders, database), before) in [baselines, currents].iter().zip(databases).zip(before) {
        let recorded: u64 = [Variant::Autonomous, Variant::Transactional]
            .iter()
            .map(|variant| done(recorders, *variant))
            .sum();
        let after = database.count_successes(Variant::Autonomous);
        assert_eq!(after, before + recorded, "version {}", database.version());
    }
}

fn take_turns(
    turns: Turns,
    admins: &mut [Client],
    sessions: &mut [Sessions],
    calls: Calls,
) -> Vec<Measured> {
    turns.compare(admins, sessions, &SIDES.map(|side| (side, calls)))
}

/// What a side is called in a row of this version.
fn name(version: &str, (release, variant): Side) -> String {
    match release {
        Release::Baseline => version.to_owned(),
        Release::Current => variant.name().to_owned(),
    }
}

fn add_rows(report: &mut Report, clients: usize, version: &str, measured: &[Measured]) {
    let of = |wanted: Side| {
        let place = SIDES.iter().position(|side| *side == wanted).expect("a side");
        &measured[place]
    };
    for (variant, other) in PAIRS {
        let (ours, theirs) = (of((Release::Current, variant)), of(other));
        report.add(
            Row::new(format!("{}, {}", clients_name(clients), variant.name()), number(ours.rate()))
                .baseline(format!("{} {}", name(version, other), number(theirs.rate())))
                .ratio(ours.ratio_to(theirs)),
        );
    }
}

fn compare_wal(scale: &Scale, [baseline, current]: [&Database; 2], report: &mut Report) {
    let variants = [Variant::Autonomous, Variant::Transactional, Variant::Notifying];
    let costs = [baseline, current].map(|database| wal::costs(scale, database, variants));
    let of = |(release, variant): Side| {
        let place = variants.iter().position(|it| *it == variant).expect("a variant");
        costs[release as usize][place].bytes
    };
    for (variant, other) in PAIRS {
        let (ours, theirs) = (of((Release::Current, variant)), of(other));
        report.add(
            Row::new(variant.name(), number(ours))
                .baseline(format!("{} {}", name(baseline.version(), other), number(theirs)))
                .ratio(ours / theirs),
        );
    }
}
