//! A client of a stream of server-sent events.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use pg_test::TIMEOUT;
use serde_json::Value;

use super::Console;

/// An open stream.
pub struct Stream {
    reader: BufReader<TcpStream>,
    /// The status of the response.
    pub status: u16,
    /// Its type of content.
    pub content_type: String,
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub kind: String,
    pub data: Value,
}

impl Stream {
    /// Opens the stream at `path` with some more lines of headers.
    pub fn open_with(console: &Console, path: &str, headers: &str) -> Self {
        let mut socket = TcpStream::connect(console.address()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        // Of HTTP 1.0, whose body comes as it is.
        write!(socket, "GET {path} HTTP/1.0\r\n{headers}\r\n").unwrap();
        let reader = BufReader::new(socket);
        let mut stream = Self { reader, status: 0, content_type: String::new() };
        let status = stream.line().unwrap();
        stream.status = status.split(' ').nth(1).unwrap().parse().unwrap();
        loop {
            let line = stream.line().unwrap();
            if line.is_empty() {
                return stream;
            }
            if let Some(("content-type", value)) = line.split_once(": ") {
                value.clone_into(&mut stream.content_type);
            }
        }
    }

    /// Opens a stream, which there must be. One of events begins with a gap, which is read.
    #[track_caller]
    pub fn open(console: &Console, path: &str) -> Self {
        let mut stream = Self::open_with(console, path, "");
        assert_eq!(stream.status, 200, "{path}");
        if path.contains("/events") {
            assert!(stream.next_event().unwrap().is_gap(), "what came before was told to nobody");
        }
        stream
    }

    /// The connection.
    pub fn socket(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// The next line; `None` where the stream has ended.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).expect("the stream stays open");
        (read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The next event; `None` where the stream has ended.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn next_event(&mut self) -> Option<Event> {
        let (mut kind, mut data) = (String::new(), Vec::new());
        loop {
            let line = self.line()?;
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match (field, line.is_empty()) {
                ("event", _) => kind = value,
                ("data", _) => data.push(value),
                (_, true) if !data.is_empty() => {
                    let data = serde_json::from_str(&data.join("\n")).expect("valid JSON");
                    return Some(Event { kind, data });
                }
                _ => {}
            }
        }
    }

    /// Reads up to the event for which `last` is true; returns all of them.
    #[track_caller]
    pub fn read_until(&mut self, last: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next_event().expect("the stream goes on");
            let found = last(&event);
            events.push(event);
            if found {
                return events;
            }
        }
    }
}

impl Event {
    /// Whether it says that events may be missing.
    pub fn is_gap(&self) -> bool {
        self.kind == "gap"
    }

    /// Whether it is the successful end of the execution `id`.
    pub fn is_end_of(&self, id: i64) -> bool {
        self.data["execution_id"] == id && self.data["event_type"] == "EXECUTION_SUCCESS"
    }
}
