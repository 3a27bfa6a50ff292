//! The event that NOTIFY carries, and its payload (pure).

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::execution::Status;

/// The longest payload, in bytes. NOTIFY refuses 8,000 and more (`NOTIFY_PAYLOAD_MAX_LENGTH` in
/// PostgreSQL's `async.c`).
pub const MAX_PAYLOAD_BYTES: usize = 7_999;

/// A change of an execution's status.
#[derive(Debug, Clone, Serialize)]
pub struct Event<'a> {
    event: &'static str,
    /// The execution's id.
    pub execution_id: i64,
    /// The loader's id.
    pub loader_id: i64,
    status: &'static str,
    event_time: DateTime<Utc>,
    /// Records loaded, where the loader has said so.
    pub record_count: Option<i32>,
    /// Whole seconds from start to end, once ended.
    pub duration_seconds: Option<i32>,
    /// What went wrong, or the beginning of it.
    pub error_message: Option<&'a str>,
    /// Whether `error_message` is only the beginning.
    pub truncated: bool,
}

impl<'a> Event<'a> {
    /// An execution's change to `status` at `event_time`.
    pub const fn new(
        execution_id: i64,
        loader_id: i64,
        status: Status,
        event_time: DateTime<Utc>,
    ) -> Self {
        Self {
            event: match status {
                Status::Running => "EXECUTION_STARTED",
                Status::Success => "EXECUTION_SUCCESS",
                Status::Failed => "EXECUTION_FAILED",
            },
            execution_id,
            loader_id,
            status: status.as_str(),
            event_time,
            record_count: None,
            duration_seconds: None,
            error_message: None,
            truncated: false,
        }
    }

    /// The event as one JSON object of at most [`MAX_PAYLOAD_BYTES`], its error message cut between
    /// two characters where it does not fit.
    ///
    /// # Errors
    /// None in practice: `serde_json` fails on maps whose keys are no strings, and here is none.
    pub fn payload(&self) -> serde_json::Result<String> {
        let Some(message) = self.error_message else {
            return serde_json::to_string(self);
        };
        let frame = serde_json::to_string(&Event { error_message: Some(""), ..self.clone() })?;
        let fitting = fitting_prefix(message, MAX_PAYLOAD_BYTES.saturating_sub(frame.len()));
        serde_json::to_string(&Event {
            error_message: Some(fitting),
            // "true" is a byte shorter than the "false" that was measured.
            truncated: self.truncated || fitting.len() < message.len(),
            ..self.clone()
        })
    }
}

/// The longest prefix of `text` that needs at most `budget` bytes inside a JSON string.
fn fitting_prefix(text: &str, budget: usize) -> &str {
    let mut used = 0;
    for (position, character) in text.char_indices() {
        used += escaped_bytes(character);
        if used > budget {
            return &text[..position];
        }
    }
    text
}

/// Bytes of `character` inside a JSON string as serde_json writes it.
const fn escaped_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\u{0}'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::from_postgres;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn failed(message: &str) -> Event<'_> {
        let mut event = Event::new(i64::MIN, i64::MIN, Status::Failed, from_postgres(i64::MIN));
        event.record_count = Some(i32::MAX);
        event.duration_seconds = Some(i32::MAX);
        event.error_message = Some(message);
        event
    }

    fn read_back(payload: &str) -> Value {
        serde_json::from_str(payload).expect("a payload is valid JSON")
    }

    #[test]
    fn a_start_has_every_key() {
        let event = Event::new(17, 4, Status::Running, from_postgres(0));
        let payload = event.payload().expect("an event is serializable");
        assert_eq!(
            read_back(&payload),
            json!({
                "event": "EXECUTION_STARTED", "execution_id": 17, "loader_id": 4, "status": "RUNNING",
                "event_time": "2000-01-01T00:00:00Z", "record_count": null, "duration_seconds": null,
                "error_message": null, "truncated": false
            })
        );
    }

    #[test]
    fn a_message_that_just_fits_is_whole() {
        let frame = failed("").payload().expect("an event is serializable").len();
        let longest = "x".repeat(MAX_PAYLOAD_BYTES - frame);
        let payload = failed(&longest).payload().expect("an event is serializable");
        assert_eq!(payload.len(), MAX_PAYLOAD_BYTES);
        assert_eq!(read_back(&payload)["truncated"], json!(false));

        let longer = format!("{longest}y");
        let payload = failed(&longer).payload().expect("an event is serializable");
        assert_eq!(read_back(&payload)["error_message"], json!(longest));
        assert_eq!(read_back(&payload)["truncated"], json!(true));
    }

    proptest! {
        #[test]
        fn any_message_gives_a_short_and_valid_payload(
            part in "[\\x00-\\x1f\"\\\\a😀é\u{7f}\u{2028}]{1,40}", times in 1_usize..2_000
        ) {
            let message = part.repeat(times);
            let payload = failed(&message).payload().expect("an event is serializable");
            prop_assert!(payload.len() <= MAX_PAYLOAD_BYTES);
            let value = read_back(&payload);
            let kept = value["error_message"].as_str().expect("a string");
            prop_assert!(message.starts_with(kept));
            prop_assert_eq!(value["truncated"] == json!(true), kept.len() < message.len());
            // Cut no earlier than needed: one more character would not have fitted.
            if kept.len() < message.len() {
                prop_assert!(payload.len() + 7 > MAX_PAYLOAD_BYTES);
            }
        }
    }
}
