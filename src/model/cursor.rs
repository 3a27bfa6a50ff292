//! The cursor of `get_execution_history`: where the next page begins (pure).
//!
//! Opaque to users. It is the position of a page's last row in the order of the history, so that a
//! page costs the same however far back it lies, and rows that arrive meanwhile shift nothing.

use std::fmt;
use std::str::FromStr;

use crate::model::timestamp::{FIRST_TIMESTAMP, LAST_TIMESTAMP};

/// A position in the history, which is ordered by `(execution_start, id)`, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// `execution_start` of the row, in microseconds since 2000-01-01 UTC.
    pub start: i64,
    pub id: i64,
}

/// A text that is no cursor.
#[derive(Debug, PartialEq, Eq)]
pub struct MalformedCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.start, self.id)
    }
}

impl FromStr for Cursor {
    type Err = MalformedCursor;

    fn from_str(text: &str) -> Result<Self, MalformedCursor> {
        let (start, id) = text.split_once('_').ok_or(MalformedCursor)?;
        let cursor = Self {
            start: start.parse().map_err(|_| MalformedCursor)?,
            id: id.parse().map_err(|_| MalformedCursor)?,
        };
        // Signs and leading zeros parse too, but no cursor is written like that. PostgreSQL
        // cannot print times outside of its range.
        let within_range = (FIRST_TIMESTAMP..=LAST_TIMESTAMP).contains(&cursor.start);
        if within_range && cursor.to_string() == text { Ok(cursor) } else { Err(MalformedCursor) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_cursor_is_refused() {
        let huge = format!("1_{}", "9".repeat(1_000_000));
        for text in [
            "",
            "_",
            "1",
            "1_",
            "_1",
            "+1_1",
            "01_1",
            "1_1 ",
            "1_1_1",
            "१_१",
            "9223372036854775807_1",
            &huge,
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(MalformedCursor), "{text:.40}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back(start in FIRST_TIMESTAMP..=LAST_TIMESTAMP, id: i64) {
            let cursor = Cursor { start, id };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn no_text_breaks_the_parser(text in ".*") {
            let _ = text.parse::<Cursor>();
        }
    }
}
