//! The page that a run is written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use pg_test::Cluster;

use crate::charts::Chart;
use crate::report::Report;
use crate::scale::Scale;

/// Writes table and charts: those of the full size into `docs`, others where they go with the cluster.
/// Returns the lines that say of what the table is.
pub fn write(scale: &Scale, cluster: &Cluster, report: &Report, charts: &[Chart]) -> String {
    let folder = if scale.small { cluster.directory().join("docs") } else { docs() };
    let drawings = folder.join("charts");
    fs::create_dir_all(&drawings).expect("a folder");
    charts.iter().for_each(|chart| chart.write(&drawings));
    let facts = facts(scale, cluster);
    let pictures: String = charts
        .iter()
        .map(|chart| format!("\n![{}](charts/{}.svg)\n", chart.title(), chart.file()))
        .collect();
    let page = format!(
        "# What loader_history costs\n\n\
         Written by `make bench`. {facts}\n\n\
         What is compared took turns in slices of this one run, so trust the ratios. The goals of throughput are \
         against the seed schema: the eight columns with a primary key and a foreign key, hand-written PL/pgSQL \
         functions, no events, and none of the indexes that the extension's reads need. {}\n\n{}{pictures}",
        report.verdict(),
        report.markdown()
    );
    let path = folder.join("bench.md");
    fs::write(&path, page).expect("the page");
    facts
}

/// The folder of the repository that is written.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// When it was, of what, and on what machine.
fn facts(scale: &Scale, cluster: &Cluster) -> String {
    let query = "SELECT current_date::text, current_setting('server_version'), \
                        (SELECT default_version FROM pg_available_extensions WHERE name = 'loader_history')";
    let row = cluster.connect().query_one(query, &[]).expect("the facts");
    let cores = thread::available_parallelism().expect("a number of cores");
    let settings: Vec<_> = scale.settings.lines().filter(|line| !line.is_empty()).collect();
    let (date, server, version): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
    // "15.20 (Debian 15.20-1)"
    let server = server.split(' ').next().unwrap_or(server);
    format!(
        "{date}, version {version}, PostgreSQL {server} on {cores} cores, fsync on{}.",
        settings.iter().map(|setting| format!(", {setting}")).collect::<String>()
    )
}
