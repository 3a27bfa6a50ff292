//! What the tests, the soak test and the benchmark tell people, and the sizes that they are given.

use std::env;
use std::io::{self, Write};

/// The number in the environment variable `name`, or `default`.
///
/// # Panics
/// When the variable holds something else.
pub fn size(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}"))
    })
}

/// Says what a test leaves out on this server: on the terminal, though cargo keeps what a test that passes
/// prints.
pub fn say_left_out(what: &str) {
    let _ = writeln!(io::stderr(), "left out: {what}");
}

/// Prints a table, its first column to the left and the others to the right. A row of one cell is a heading
/// of those that follow, as long as it may be.
pub fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let rows = rows.iter().filter(|row| row.len() > 1);
        let cells = rows.filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded: Vec<_> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(header);
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
