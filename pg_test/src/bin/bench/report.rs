//! The one table that a run comes to, for the terminal and as Markdown.

use std::fmt::Write as _;

use pg_test::measure::{Goal, markdown_line};
use pg_test::print_table;

const HEADER: [&str; 6] = ["", "baseline", "measured", "ratio", "goal", ""];

/// A line of the table.
#[derive(Default)]
pub struct Row {
    what: String,
    baseline: String,
    measured: String,
    ratio: String,
    goals: Vec<String>,
    missed: bool,
}

impl Row {
    /// A line about `what`, which came to `measured`.
    pub fn new(what: impl Into<String>, measured: impl Into<String>) -> Self {
        Self { what: what.into(), measured: measured.into(), ..Self::default() }
    }

    /// What it is compared with.
    pub fn baseline(mut self, baseline: impl Into<String>) -> Self {
        self.baseline = baseline.into();
        self
    }

    /// Measured divided by baseline.
    pub fn ratio(mut self, ratio: f64) -> Self {
        self.ratio = format!("{ratio:.2}");
        self
    }

    /// What `figure` should be; `of` and `unit` say what it is.
    pub fn goal(mut self, of: &str, goal: Goal, unit: &str, figure: f64) -> Self {
        self.goals.push(format!("{of} {goal}{unit}").trim_start().to_owned());
        self.missed |= !goal.is_met(figure);
        self
    }

    /// The same where there is a goal.
    pub fn goal_if_any(self, of: &str, goal: Option<Goal>, unit: &str, figure: f64) -> Self {
        match goal {
            Some(goal) => self.goal(of, goal, unit, figure),
            None => self,
        }
    }

    fn cells(&self, judged: bool) -> Vec<String> {
        let verdict = match (judged && !self.goals.is_empty(), self.missed) {
            (false, _) => "",
            (true, false) => "met",
            (true, true) => "MISSED",
        };
        vec![
            self.what.clone(),
            self.baseline.clone(),
            self.measured.clone(),
            self.ratio.clone(),
            self.goals.join(", "),
            verdict.to_owned(),
        ]
    }
}

/// All lines, in sections.
pub struct Report {
    judged: bool,
    sections: Vec<(String, Vec<Row>)>,
}

impl Report {
    /// An empty one; it says whether goals are met where figures can be `judged`.
    pub fn new(judged: bool) -> Self {
        Self { judged, sections: Vec::new() }
    }

    /// Begins a section.
    pub fn section(&mut self, title: impl Into<String>) {
        let title = title.into();
        eprintln!("{title}");
        self.sections.push((title, Vec::new()));
    }

    /// Adds a line to the section.
    ///
    /// # Panics
    /// Before the first section.
    pub fn add(&mut self, row: Row) {
        let (_, rows) = self.sections.last_mut().expect("a section");
        rows.push(row);
    }

    /// What of the goals is met, in words.
    pub fn verdict(&self) -> String {
        if !self.judged {
            return "The small size says nothing of goals.".to_owned();
        }
        let rows = || self.sections.iter().flat_map(|(_, rows)| rows);
        let with_goal = || rows().filter(|row| !row.goals.is_empty());
        let met = with_goal().filter(|row| !row.missed).count();
        format!("The goals of {met} lines out of {} are met.", with_goal().count())
    }

    /// Prints it.
    pub fn print(&self) {
        let mut lines = Vec::new();
        for (title, rows) in &self.sections {
            lines.push(vec![title.to_uppercase()]);
            lines.extend(rows.iter().map(|row| row.cells(self.judged)));
        }
        print_table(&HEADER, &lines);
    }

    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let mut line = |cells: &[String]| {
            let _ = writeln!(text, "{}", markdown_line(cells));
        };
        line(&HEADER.map(str::to_owned));
        line(&["---", "--:", "--:", "--:", "---", "---"].map(str::to_owned));
        for (title, rows) in &self.sections {
            let mut cells = vec![String::new(); HEADER.len()];
            cells[0] = format!("**{title}**");
            line(&cells);
            rows.iter().for_each(|row| line(&row.cells(self.judged)));
        }
        text
    }
}
