//! The page that a run is written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use pg_test::Cluster;

use crate::charts::{Chart, number};
use crate::machine;
use crate::report::Report;
use crate::scale::Scale;

/// Writes table and charts below the `facts`: those of a whole run of the full size into `docs`, others where
/// they go with the cluster.
pub fn write(scale: &Scale, cluster: &Cluster, facts: &str, report: &Report, charts: &[Chart]) {
    let is_whole = !scale.small && scale.parts.is_empty();
    let folder = if is_whole { docs() } else { cluster.directory().join("docs") };
    let drawings = folder.join("charts");
    fs::create_dir_all(&drawings).expect("a folder");
    charts.iter().for_each(|chart| chart.write(&drawings));
    let pictures: String = charts
        .iter()
        .map(|chart| format!("\n![{}](charts/{}.svg)\n", chart.title(), chart.file()))
        .collect();
    let page = format!(
        "# What loader_history costs\n\n\
         Written by `make bench`. {facts}\n\n\
         What is compared took turns in slices of this one run, and a ratio is the median of the turns' ratios, \
         not that of the medians beside it: trust the ratios, those of reads as far as the control of the same \
         read by two sessions comes to 1. The goals of throughput are against the extension without events and against the seed \
         schema: the eight columns with a primary key and a foreign key, hand-written PL/pgSQL functions, no \
         events, and none of the indexes that the extension's reads need. Where a commit is quick the processors \
         decide; where it takes as long as on an ordinary disk or network storage, for which PostgreSQL's own \
         `commit_delay` stands here, the number of commits does. {}\n\n{}{pictures}",
        report.verdict(),
        report.markdown()
    );
    let path = folder.join("bench.md");
    fs::write(&path, page).expect("the page");
}

/// The folder of the repository that is written.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// When it was, of what, and on what machine; to be asked for before anything else is done.
pub fn facts(scale: &Scale, cluster: &Cluster) -> String {
    let load = machine::load_average().unwrap_or_else(|| "unknown".to_owned());
    let mut client = cluster.connect();
    let [commit, round_trip] =
        [machine::commit_ms, machine::round_trip_ms].map(|measure| number(measure(&mut client)));
    let query = "SELECT current_date::text, current_setting('server_version'), \
                        (SELECT default_version FROM pg_available_extensions WHERE name = 'loader_history')";
    let row = client.query_one(query, &[]).expect("the facts");
    let cores = thread::available_parallelism().expect("a number of cores");
    let settings: Vec<_> = scale.settings.lines().filter(|line| !line.is_empty()).collect();
    let (date, server, version): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
    // "15.20 (Debian 15.20-1)"
    let server = server.split(' ').next().unwrap_or(server);
    format!(
        "{date}, version {version}, PostgreSQL {server} on {cores} cores, fsync on{}. Before anything else: \
         load average {load}, {commit} ms for a bare insert of one row that commits, {round_trip} ms for SELECT 1.",
        settings.iter().map(|setting| format!(", {setting}")).collect::<String>()
    )
}
