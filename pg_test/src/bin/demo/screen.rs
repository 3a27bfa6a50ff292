//! What the demo prints: headings, the SQL that answers them, and aligned tables.

use std::env;
use std::io::{self, IsTerminal, Write};

/// Columns of the terminal that everything fits into.
const WIDTH: usize = 100;
/// What stands before every line of a table.
const MARGIN: &str = "  ";
/// What stands between two columns.
const GAP: &str = "  ";

/// How a piece of text looks on a terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As the terminal writes.
    Plain,
    /// Headings.
    Bold,
    /// What may be overlooked.
    Dim,
    /// A success.
    Good,
    /// A failure.
    Bad,
    /// What is not yet decided.
    Busy,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Busy => "33",
        }
    }
}

/// A cell of a table.
pub struct Cell {
    text: String,
    style: Style,
}

/// A plain cell.
pub fn cell(text: impl Into<String>) -> Cell {
    styled(text, Style::Plain)
}

/// A cell in `style`.
pub fn styled(text: impl Into<String>, style: Style) -> Cell {
    Cell { text: text.into(), style }
}

/// Standard output, with colors where it is a terminal that wants them.
pub struct Screen {
    out: io::Stdout,
    colors: bool,
}

impl Screen {
    /// The screen of this process.
    pub fn new() -> Self {
        let out = io::stdout();
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|value| value == "dumb");
        let colors = out.is_terminal() && !refused;
        Self { out, colors }
    }

    /// A heading, and below it the statement that what follows comes from.
    pub fn heading(&mut self, title: &str, sql: &str) -> io::Result<()> {
        let title = self.paint(title, Style::Bold);
        let sql = self.paint(sql, Style::Dim);
        writeln!(self.out, "\n{title}\n{MARGIN}{sql}\n")
    }

    /// An empty line.
    pub fn blank(&mut self) -> io::Result<()> {
        writeln!(self.out)
    }

    /// A line of text.
    pub fn line(&mut self, text: &str, style: Style) -> io::Result<()> {
        let text = self.paint(text, style);
        writeln!(self.out, "{MARGIN}{text}")
    }

    /// A table. A column whose header begins with '>' is aligned to the right; the last one wraps.
    pub fn table(&mut self, headers: &[&str], rows: &[Vec<Cell>]) -> io::Result<()> {
        let right: Vec<bool> = headers.iter().map(|header| header.starts_with('>')).collect();
        let names: Vec<&str> =
            headers.iter().map(|header| header.trim_start_matches('>')).collect();
        let last = names.len().saturating_sub(1);
        let mut widths: Vec<usize> = names.iter().map(|name| name.chars().count()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.text.chars().count().max(*width);
            }
        }
        let before_last: usize = widths[..last].iter().map(|width| width + GAP.len()).sum();
        let room = WIDTH.saturating_sub(MARGIN.len() + before_last).max(20);
        if !right[last] {
            widths[last] = widths[last].min(room);
        }

        let header = names.iter().map(|name| styled(*name, Style::Dim)).collect();
        for row in std::iter::once(&header).chain(rows) {
            let mut text = MARGIN.to_owned();
            for (index, cell) in row.iter().enumerate() {
                let lines = if index == last && !right[last] {
                    wrap(&cell.text, room)
                } else {
                    vec![cell.text.clone()]
                };
                let indent = format!("\n{MARGIN}{}", " ".repeat(before_last));
                for (number, line) in lines.iter().enumerate() {
                    if number > 0 {
                        text.push_str(&indent);
                    }
                    let padding = " ".repeat(widths[index].saturating_sub(line.chars().count()));
                    let painted = self.paint(line, cell.style);
                    match (right[index], index == last) {
                        (true, _) => text.extend([padding.as_str(), painted.as_str()]),
                        (false, true) => text.push_str(&painted),
                        (false, false) => text.extend([painted.as_str(), padding.as_str()]),
                    }
                }
                if index < last {
                    text.push_str(GAP);
                }
            }
            writeln!(self.out, "{}", text.trim_end())?;
        }
        Ok(())
    }

    fn paint(&self, text: &str, style: Style) -> String {
        if self.colors && style != Style::Plain && !text.is_empty() {
            format!("\x1b[{}m{text}\x1b[0m", style.code())
        } else {
            text.to_owned()
        }
    }
}

/// `text` in lines of at most `width` characters where its words allow that.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let needed = line.chars().count() + 1 + word.chars().count();
            if !line.is_empty() && needed > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

/// A whole number with its thousands apart: 26,115. Other text stays as it is.
pub fn thousands(number: &str) -> String {
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return number.to_owned();
    }
    let mut text = String::new();
    for (index, digit) in number.chars().enumerate() {
        if index > 0 && (number.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Of a timestamp, as PostgreSQL or RFC 3339 writes it, the time of day to the millisecond.
pub fn time_of_day(timestamp: &str) -> String {
    let time = timestamp.get(11..).unwrap_or_default();
    let time = time.split(['+', '-', 'Z']).next().unwrap_or_default();
    // PostgreSQL leaves zeros at the end away.
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    if whole.is_empty() { String::new() } else { format!("{whole}.{fraction:0<3.3}") }
}

/// An interval shorter than a day, as PostgreSQL writes it, for people: "120 ms", "2.3 s".
pub fn duration(interval: &str) -> String {
    let mut seconds = 0.0;
    for part in interval.split(':') {
        let Ok(number) = part.parse::<f64>() else { return interval.to_owned() };
        seconds = seconds * 60.0 + number;
    }
    elapsed(seconds)
}

/// Seconds, for people.
pub fn elapsed(seconds: f64) -> String {
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), (seconds % 60.0).floor())
    }
}
