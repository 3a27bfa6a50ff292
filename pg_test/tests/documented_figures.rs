//! Promise: the figures that docs/performance.md takes from docs/bench.md are those that stand there.

use std::collections::BTreeSet;

const BENCH: &str = include_str!("../../docs/bench.md");
const PERFORMANCE: &str = include_str!("../../docs/performance.md");

/// What names the page that the figures of the table below it are from.
const SOURCE: &str = "from [bench.md](bench.md):";

#[test]
fn tables_of_performance_hold_figures_of_bench() {
    let known: BTreeSet<&str> = figures(BENCH).collect();
    let mut tables = 0;
    let mut gone = Vec::new();
    for (_, below) in
        PERFORMANCE.match_indices(SOURCE).map(|(at, _)| PERFORMANCE.split_at(at + SOURCE.len()))
    {
        let rows: Vec<&str> =
            below.trim_start().lines().take_while(|line| line.starts_with('|')).collect();
        assert!(rows.len() > 2, "no table is below it: {}", below.lines().next().unwrap());
        tables += 1;
        // Below its names and its ruler; the first column names the row.
        for row in &rows[2..] {
            let cells = row.trim_matches('|').split_once('|').expect("a row of several columns").1;
            gone.extend(figures(cells).filter(|figure| !known.contains(figure)));
        }
    }
    assert_eq!(tables, 3, "tables of performance.md with figures of bench.md");
    assert!(
        gone.is_empty(),
        "docs/bench.md has no {gone:?}: docs/performance.md is of an older run"
    );
}

/// The numbers in a text, as they are written.
fn figures(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !(character.is_ascii_digit() || matches!(character, '.' | ',')))
        .map(|word| word.trim_matches(['.', ',']))
        .filter(|word| !word.is_empty())
}
