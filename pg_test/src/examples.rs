//! The examples of a page of documentation: what its fenced blocks do, and whether they print what the
//! page says they print.
//!
//! What a fenced block's info string means:
//! - `sql`: run by psql. It succeeds, and prints the `text` block after it; without one, no NOTICE.
//! - `sql error`: likewise, but meant to fail: its `text` block shows the error.
//! - `sh`: run by sh, with the server's programs at hand.
//!
//! The test of a page may know other kinds, and says what they mean.

use std::env;
use std::fs;

use crate::{Cluster, bindir};

/// A fenced block of a page.
pub struct Example {
    /// Where on the page it begins.
    pub line: usize,
    /// The words after the fence.
    pub info: &'static str,
    /// What is in it.
    pub body: String,
    /// The `text` block that follows.
    pub output: Option<String>,
}

/// Every fenced block of `page`, each with its output.
///
/// # Panics
/// When a block is of no kind in `kinds`, is not closed, or is the output of nothing.
pub fn examples(page: &'static str, kinds: &[&str]) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut lines = page.lines().enumerate();
    // Whether a `text` block that begins here is the output of the block before.
    let mut adjacent = false;
    while let Some((number, line)) = lines.next() {
        let fence = line.trim_start();
        let Some(info) = fence.strip_prefix("```") else {
            adjacent &= fence.is_empty();
            continue;
        };
        let line_number = number + 1;
        let indent = line.len() - fence.len();
        let mut body = String::new();
        loop {
            let (_, line) = lines.next().unwrap_or_else(|| panic!("{line_number}: not closed"));
            if line.trim() == "```" {
                break;
            }
            body.push_str(line.get(indent..).unwrap_or_default());
            body.push('\n');
        }
        if info == "text" {
            assert!(adjacent, "{line_number}: the output of no example");
            examples.last_mut().expect("a block before").output = Some(body);
        } else {
            assert!(kinds.contains(&info), "{line_number}: unknown kind of block {info:?}");
            examples.push(Example { line: line_number, info, body, output: None });
        }
        adjacent = info.starts_with("sql") || info.starts_with("sh");
    }
    examples
}

impl Example {
    /// Runs it in `database`, by psql or, `sh`, by the shell, and returns whether it succeeded and all
    /// that it printed.
    ///
    /// # Panics
    /// When it cannot be run at all.
    pub fn run(&self, cluster: &Cluster, database: &str) -> (bool, String) {
        let directory = cluster.directory().join("examples");
        fs::create_dir_all(&directory).expect("a directory");
        let script = if self.info.starts_with("sh") {
            self.body.as_str()
        } else {
            fs::write(directory.join("block.sql"), &self.body).expect("a file");
            "psql -X -q -v ON_ERROR_STOP=1 < block.sql"
        };
        let path = env::var("PATH").expect("PATH");
        // An absolute path is run as it is, with the variables that lead to the cluster.
        let output = cluster
            .program("/bin/sh")
            // One stream for both, so that errors stand where a user sees them.
            .args(["-euc", &format!("exec 2>&1\n{script}")])
            .current_dir(&directory)
            .env("PATH", format!("{}:{path}", bindir().display()))
            .env("PGDATABASE", database)
            .env("PGTZ", "UTC")
            .output()
            .expect("sh runs");
        (output.status.success(), String::from_utf8(output.stdout).expect("UTF-8"))
    }

    /// What is wrong with what it did, if anything.
    pub fn problem(&self, succeeded: bool, printed: &str) -> Option<&'static str> {
        let meant_to_fail = self.info.ends_with(" error");
        if meant_to_fail != printed.lines().any(|line| line.starts_with("ERROR:")) {
            return Some("an error that is not meant, or none that is");
        }
        // Psql may go on after an error, and says then that all is well.
        if !succeeded && !meant_to_fail {
            return Some("it failed");
        }
        match &self.output {
            Some(output) if masked(output) != masked(printed) => Some("the output differs"),
            None if meant_to_fail => Some("no text block shows the error"),
            None if printed.contains("NOTICE:") || printed.contains("WARNING:") => {
                Some("no text block shows the notice")
            }
            _ => None,
        }
    }
}

/// `output` without what differs from run to run: times, durations, process ids, cursors, and the
/// widths of columns that hold them.
pub fn masked(output: &str) -> String {
    output.trim_end().lines().map(masked_line).collect::<Vec<_>>().join("\n")
}

fn masked_line(line: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || ".:+-_".contains(c);
    let mut masked = String::new();
    let mut rest = line.trim_end();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if end > 0 {
            let after_pid = masked.ends_with("PID ") || masked.ends_with("worker_pid | ");
            masked.push_str(&masked_word(&rest[..end], after_pid));
            rest = &rest[end..];
        } else {
            let end = rest.find(is_word).unwrap_or(rest.len());
            for c in rest[..end].chars() {
                if c != ' ' || !masked.ends_with(' ') {
                    masked.push(c);
                }
            }
            rest = &rest[end..];
        }
    }
    masked.trim().to_owned()
}

fn masked_word(word: &str, after_pid: bool) -> String {
    let bare = word.trim_end_matches('.');
    // The word with every digit as 9, so that shapes can be compared.
    let shape: String = bare.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    let mask = if word.chars().all(|c| c == '-' || c == '+') {
        // The rule under a table's header.
        let columns: Vec<_> =
            word.split('+').map(|column| &column[..column.len().min(1)]).collect();
        return columns.join("+");
    } else if shape.contains("99:99:99") {
        "<time>"
    } else if shape == "9999-99-99" {
        "<date>"
    } else if shape.starts_with("999999999999") && shape.contains("9_9") {
        "<cursor>"
    } else if after_pid {
        "<pid>"
    } else {
        bare
    };
    format!("{mask}{}", &word[bare.len()..])
}
