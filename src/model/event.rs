//! The event that NOTIFY carries, and its payload (pure).

use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::execution::Status;
use super::timestamp::from_postgres;

/// The longest payload, in bytes. NOTIFY refuses 8,000 and more (`NOTIFY_PAYLOAD_MAX_LENGTH` in
/// PostgreSQL's `async.c`).
pub const MAX_PAYLOAD_BYTES: usize = 7_999;

/// Characters of an error message whose first line `message` has.
const MESSAGE_CHARACTERS: usize = 200;

/// A change of an execution's status: a row of `loader.activity_feed`.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    pub execution_id: i64,
    pub loader_id: i64,
    /// Its status after the change.
    pub status: Status,
    /// When it started or ended.
    pub time: DateTime<Utc>,
    /// Records loaded. The payload of a start has neither this nor the following fields.
    pub record_count: Option<i32>,
    pub duration_seconds: Option<i32>,
    /// The error message or its beginning; `None` also if loader_history.notify_error_message is
    /// off.
    pub error_message: Option<&'a str>,
    /// Whether `error_message` is only the beginning.
    pub truncated: bool,
}

/// The keys of a payload, in the order of the columns of `loader.activity_feed`.
#[derive(Serialize)]
struct Payload<'a> {
    event_time: DateTime<Utc>,
    event_type: &'static str,
    severity: &'static str,
    execution_id: i64,
    loader_id: i64,
    status: &'static str,
    record_count: Option<i32>,
    duration_seconds: Option<i32>,
    error_message: Option<&'a str>,
    message: &'a str,
    truncated: bool,
}

impl Event<'_> {
    /// That an execution has changed to `status` at `time`, in PostgreSQL's microseconds.
    pub fn new(execution_id: i64, loader_id: i64, status: Status, time: i64) -> Self {
        Self {
            execution_id,
            loader_id,
            status,
            time: from_postgres(time),
            record_count: None,
            duration_seconds: None,
            error_message: None,
            truncated: false,
        }
    }

    /// The event as one JSON object of at most [`MAX_PAYLOAD_BYTES`], in ASCII, its error message
    /// cut between two characters if it does not fit.
    pub fn payload(&self) -> serde_json::Result<String> {
        let message = self.message();
        let (event_type, severity) = match self.status {
            Status::Running => ("EXECUTION_STARTED", "info"),
            Status::Success => ("EXECUTION_SUCCESS", "success"),
            Status::Failed => ("EXECUTION_FAILED", "error"),
        };
        let ended = self.status != Status::Running;
        let mut payload = Payload {
            event_time: self.time,
            event_type,
            severity,
            execution_id: self.execution_id,
            loader_id: self.loader_id,
            status: self.status.as_str(),
            record_count: self.record_count.filter(|_| ended),
            duration_seconds: self.duration_seconds.filter(|_| ended),
            error_message: None,
            message: &message,
            truncated: false,
        };
        if let Some(error) = self.error_message.filter(|_| ended) {
            payload.error_message = Some("");
            let frame = ascii_json(&payload)?.len();
            let fitting = fitting_prefix(error, MAX_PAYLOAD_BYTES.saturating_sub(frame));
            payload.error_message = Some(fitting);
            // "true" is a byte shorter than the "false" that was measured.
            payload.truncated = self.truncated || fitting.len() < error.len();
        }
        ascii_json(&payload)
    }

    /// The event as a sentence, as `loader.activity_feed` has it.
    fn message(&self) -> String {
        let mut text = format!("Execution {} of loader {} ", self.execution_id, self.loader_id);
        let mut add = |part: String| text += &part;
        match self.status {
            Status::Running => add("started".to_owned()),
            Status::Success => {
                add("succeeded".to_owned());
                if let Some(count) = self.record_count {
                    add(format!(
                        ": {} record{}",
                        grouped(count),
                        if count == 1 { "" } else { "s" }
                    ));
                }
                if let Some(seconds) = self.duration_seconds {
                    add(format!(" in {} s", grouped(seconds)));
                }
            }
            Status::Failed => {
                add("failed".to_owned());
                if let Some(seconds) = self.duration_seconds {
                    add(format!(" after {} s", grouped(seconds)));
                }
                if let Some(error) = self.error_message {
                    let first = error.split('\n').next().unwrap_or_default();
                    add(format!(
                        ": {}",
                        first.chars().take(MESSAGE_CHARACTERS).collect::<String>()
                    ));
                }
            }
        }
        text
    }
}

/// A number with commas, as to_char() writes it by FM9,999,999,990.
fn grouped(number: i32) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// `value` as JSON of ASCII characters alone: one that a listener's client_encoding does not have
/// would end its connection.
fn ascii_json(value: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String does not fail.
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    Ok(ascii)
}

/// Separates the payloads of several events: JSON never contains it.
pub const SEPARATOR: u8 = 0;

/// The payloads of several events, one by one.
pub fn split(payloads: &[u8]) -> impl Iterator<Item = &[u8]> {
    payloads.split(|&byte| byte == SEPARATOR).filter(|payload| !payload.is_empty())
}

/// Payloads as one, for [`split`].
pub fn join(payloads: impl Iterator<Item = String>) -> Vec<u8> {
    let mut joined = Vec::new();
    for payload in payloads {
        joined.extend_from_slice(payload.as_bytes());
        joined.push(SEPARATOR);
    }
    joined
}

/// The longest prefix of `text` that needs at most `budget` bytes inside such a string.
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

/// Bytes of `character` inside a string of [`ascii_json`].
const fn escaped_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\u{0}'..='\u{1f}' => 6,
        _ if character.is_ascii() => 1,
        _ => 6 * character.len_utf16(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn failed(message: &str) -> Event<'_> {
        Event {
            record_count: Some(i32::MAX),
            duration_seconds: Some(i32::MAX),
            error_message: Some(message),
            ..Event::new(i64::MIN, i64::MIN, Status::Failed, i64::MIN)
        }
    }

    fn read_back(event: &Event<'_>) -> Value {
        let payload = event.payload().expect("an event is serializable");
        assert!(payload.is_ascii() && payload.len() <= MAX_PAYLOAD_BYTES, "{payload}");
        serde_json::from_str(&payload).expect("a payload is valid JSON")
    }

    #[test]
    fn a_start_has_every_key_and_says_nothing_of_an_end() {
        let start = Event {
            execution_id: 17,
            loader_id: 4,
            status: Status::Running,
            time: from_postgres(0),
            ..failed("x")
        };
        assert_eq!(
            read_back(&start),
            json!({
                "event_time": "2000-01-01T00:00:00Z", "event_type": "EXECUTION_STARTED", "severity": "info",
                "execution_id": 17, "loader_id": 4, "status": "RUNNING", "record_count": null,
                "duration_seconds": null, "error_message": null,
                "message": "Execution 17 of loader 4 started", "truncated": false
            })
        );
    }

    #[test]
    fn a_message_has_as_much_of_the_error_as_the_event() {
        let event = |error_message| Event {
            execution_id: 17,
            loader_id: 4,
            duration_seconds: Some(5_400),
            error_message,
            ..failed("")
        };
        let message = |error| read_back(&event(error))["message"].clone();
        assert_eq!(message(None), "Execution 17 of loader 4 failed after 5,400 s");
        let said = message(Some("no table\nLINE 1"));
        assert_eq!(said, "Execution 17 of loader 4 failed after 5,400 s: no table");
        let long = message(Some(&"😀".repeat(300)));
        let long = long.as_str().expect("a string");
        assert!(long.ends_with(&format!(": {}", "😀".repeat(200))), "{long}");
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (-12_345, "-12,345"),
            (i32::MAX, "2,147,483,647"),
            (i32::MIN, "-2,147,483,648"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_message_that_just_fits_is_whole() {
        // The first line goes into the message too.
        let frame = failed("\n").payload().expect("an event is serializable").len();
        let longest = format!("\n{}", "x".repeat(MAX_PAYLOAD_BYTES - frame));
        assert_eq!(failed(&longest).payload().expect("an event").len(), MAX_PAYLOAD_BYTES);
        assert_eq!(read_back(&failed(&longest))["truncated"], json!(false));

        let longer = format!("{longest}y");
        assert_eq!(read_back(&failed(&longer))["error_message"], json!(longest));
        assert_eq!(read_back(&failed(&longer))["truncated"], json!(true));
    }

    proptest! {
        #[test]
        fn any_message_gives_a_short_and_valid_payload(
            part in "[\\x00-\\x1f\"\\\\a😀é\u{7f}\u{2028}]{1,40}", times in 1_usize..2_000
        ) {
            let message = part.repeat(times);
            let value = read_back(&failed(&message));
            let kept = value["error_message"].as_str().expect("a string");
            prop_assert!(message.starts_with(kept));
            prop_assert_eq!(value["truncated"] == json!(true), kept.len() < message.len());
            // Cut no earlier than needed: one more character would not have fitted.
            if kept.len() < message.len() {
                let payload = failed(&message).payload().expect("an event is serializable");
                prop_assert!(payload.len() + 13 > MAX_PAYLOAD_BYTES);
            }
        }
    }
}
