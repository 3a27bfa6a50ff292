//! Promise: whatever a client passes to whichever function, the server lives, the SQLSTATE is one
//! that the contract names or that PostgreSQL's input functions raise, and the table's constraints
//! hold.
//!
//! A failure names its seed: PG_TEST_SEED=… repeats the same calls.

use std::error::Error;
use std::fmt;

use fallible_iterator::FallibleIterator;
use pg_test::{Client, Cluster, HasError, cluster_with_extension};
use postgres::SimpleQueryMessage;
use postgres::error::DbError;
// Hidden from the documentation of `postgres`, and the only name there for what ToSql writes to.
use postgres::types::private::BytesMut;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value as Json;

const CALLS: usize = 2_500;

/// Calls between two looks at the table and the server.
const BATCH: usize = 100;

/// Events are below NOTIFY's limit.
const EVENT_BYTES: usize = 8_000;

/// The functions, and what the contract lets each answer to a bad call. `true`: with a HINT.
const FUNCTIONS: [(&str, &[(&str, bool)]); 8] = [
    (
        "record_execution_start",
        &[("22004", true), ("23503", true), ("25006", true), ("42501", false)],
    ),
    (
        "record_execution_end",
        &[
            ("22004", true),
            ("22023", true),
            ("25006", true),
            ("42501", false),
            ("55000", true),
            ("P0002", true),
        ],
    ),
    ("get_execution_history", &[("22004", true), ("22023", true), ("42501", false)]),
    (
        "purge_execution_history",
        &[("22004", true), ("22023", true), ("25006", true), ("42501", false)],
    ),
    // 42704: of an OID that is no role's. It comes of input functions too, which give no HINT.
    ("grant_recorder", &[("22004", true), ("25006", true), ("42501", false), ("42704", false)]),
    ("grant_reader", &[("22004", true), ("25006", true), ("42501", false), ("42704", false)]),
    ("attach_foreign_key", &[("25006", true), ("42501", false)]),
    ("recorder_status", &[("42501", false)]),
];

/// What PostgreSQL says of a value that is none, before any function sees it.
const INPUT_FUNCTIONS: [&str; 9] = [
    "22P02", // a text that is no number
    "22003", // a number that is out of its type's range
    "22007", // a text that is no time or interval
    "22008", // a time or interval out of range, as a text or in binary
    "22009", // a time zone's displacement out of range
    "22015", // a field of an interval out of range
    "22021", // bytes that are no UTF-8, or hold a zero byte
    "42602", // a text that is no role's name
    "42704", // the name of no role
];

/// A value in the binary form in which a client passes it.
#[derive(Clone)]
enum Value {
    Null,
    Int8(i64),
    Int4(i32),
    Text(String),
    /// A text that is none.
    Bytes(Vec<u8>),
    /// Microseconds since 2000-01-01, in range or not.
    Time(i64),
    Interval {
        microseconds: i64,
        days: i32,
        months: i32,
    },
    Oid(u32),
}

impl ToSql for Value {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Null => return Ok(IsNull::Yes),
            Self::Int8(value) | Self::Time(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::Int4(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::Oid(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::Text(value) => out.extend_from_slice(value.as_bytes()),
            Self::Bytes(value) => out.extend_from_slice(value),
            Self::Interval { microseconds, days, months } => {
                out.extend_from_slice(&microseconds.to_be_bytes());
                out.extend_from_slice(&days.to_be_bytes());
                out.extend_from_slice(&months.to_be_bytes());
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => write!(f, "NULL"),
            Self::Int8(value) => write!(f, "{value}"),
            Self::Int4(value) => write!(f, "{value}"),
            Self::Oid(value) => write!(f, "role {value}"),
            Self::Time(value) => write!(f, "time {value}"),
            Self::Text(value) => write!(f, "text of {} bytes {value:.200?}", value.len()),
            Self::Bytes(value) => write!(f, "bytes {value:?}"),
            Self::Interval { microseconds, days, months } => {
                write!(f, "interval {months} months {days} days {microseconds} µs")
            }
        }
    }
}

/// Types of arguments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    LoaderId,
    ExecutionId,
    Count,
    PageSize,
    Status,
    Message,
    Cursor,
    Time,
    Interval,
    Role,
}

/// Parameters: name, type, and whether a call may leave it out.
fn parameters(function: &str) -> &'static [(&'static str, Kind, bool)] {
    match function {
        "record_execution_start" => &[("loader_id", Kind::LoaderId, false)],
        "record_execution_end" => &[
            ("execution_id", Kind::ExecutionId, false),
            ("status", Kind::Status, false),
            ("record_count", Kind::Count, true),
            ("error_message", Kind::Message, true),
        ],
        "get_execution_history" => &[
            ("loader_id", Kind::LoaderId, true),
            ("page_size", Kind::PageSize, true),
            ("\"cursor\"", Kind::Cursor, true),
            ("status", Kind::Status, true),
            ("started_from", Kind::Time, true),
            ("started_before", Kind::Time, true),
        ],
        "purge_execution_history" => {
            &[("older_than", Kind::Interval, false), ("max_rows", Kind::Count, true)]
        }
        "grant_recorder" | "grant_reader" => &[("role", Kind::Role, false)],
        _ => &[],
    }
}

/// The schema that a function is in.
fn schema(function: &str) -> &'static str {
    match function {
        "purge_execution_history" | "grant_recorder" | "grant_reader" | "attach_foreign_key" => {
            "loader_history"
        }
        _ => "loader",
    }
}

/// A call to make: a statement, and the values of its parameters. Without `values` (not even none)
/// it goes by the simple protocol, all arguments as literals.
struct Call {
    function: &'static str,
    sql: String,
    values: Option<Vec<Value>>,
    begin: Option<&'static str>,
    end: &'static str,
    user: usize,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "as {}: ", USERS[self.user])?;
        if let Some(begin) = self.begin {
            write!(f, "{begin}; ")?;
        }
        write!(f, "{:.2000}", self.sql)?;
        if let Some(values) = &self.values {
            write!(f, " with {values:?}")?;
        }
        Ok(())
    }
}

/// Who calls. The superuser first, for it gets furthest.
const USERS: [&str; 3] = ["postgres", "recorder", "reader"];

/// Makes up calls.
struct Source {
    rng: StdRng,
    /// Executions that were started, some of them ended or rolled back since.
    executions: Vec<i64>,
    cursors: Vec<String>,
    roles: Vec<u32>,
}

impl Source {
    fn pick<T: Clone>(&mut self, among: &[T]) -> T {
        among.choose(&mut self.rng).expect("something to choose from").clone()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    fn call(&mut self) -> Call {
        // Starts and ends most of all: they write.
        let index = self.pick(&[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7]);
        let function = FUNCTIONS[index].0;
        let simple = self.one_in(3);
        let mut values = Vec::new();
        let mut arguments = Vec::new();
        for &(name, kind, optional) in parameters(function) {
            if optional && self.one_in(3) {
                continue;
            }
            let value = if simple {
                self.literal(kind)
            } else {
                values.push(self.value(kind));
                format!("${}", values.len())
            };
            arguments.push(format!("{name} => {value}"));
        }
        let (begin, end) = match self.rng.random_range(0..16) {
            0 => (Some("BEGIN READ ONLY"), "COMMIT"),
            1 => (Some("BEGIN"), "ROLLBACK"),
            2 => (Some("BEGIN ISOLATION LEVEL REPEATABLE READ"), "COMMIT"),
            3 => (Some("BEGIN ISOLATION LEVEL SERIALIZABLE"), "COMMIT"),
            _ => (None, ""),
        };
        Call {
            function,
            sql: format!("SELECT {}.{function}({})", schema(function), arguments.join(", ")),
            values: (!simple).then_some(values),
            begin,
            end,
            user: if self.one_in(8) { self.rng.random_range(1..USERS.len()) } else { 0 },
        }
    }

    /// A value of type `kind`: one that means something, one at the edge, or any.
    fn value(&mut self, kind: Kind) -> Value {
        if self.one_in(12) {
            return Value::Null;
        }
        match kind {
            Kind::LoaderId if !self.one_in(4) => Value::Int8(self.rng.random_range(1..=10)),
            Kind::ExecutionId if !self.one_in(4) && !self.executions.is_empty() => {
                // The latest are the ones that may still run.
                let recent = self.executions.len().saturating_sub(8);
                let from = if self.one_in(3) { 0 } else { recent };
                Value::Int8(self.executions[self.rng.random_range(from..self.executions.len())])
            }
            Kind::LoaderId | Kind::ExecutionId | Kind::Count => Value::Int8(self.int8()),
            Kind::PageSize => Value::Int4(match self.rng.random_range(0..4) {
                0 => self.pick(&[0, 1, -1, 1_000, 1_001, i32::MIN, i32::MAX, i32::MIN + 1]),
                1 => self.rng.random(),
                _ => self.rng.random_range(1..=20),
            }),
            Kind::Status if !self.one_in(4) => {
                Value::Text(self.pick(&["SUCCESS", "FAILED", "FAILED", "RUNNING"]).to_owned())
            }
            Kind::Cursor => Value::Text(self.cursor()),
            Kind::Status | Kind::Message if self.one_in(12) => Value::Bytes(self.no_text()),
            Kind::Status | Kind::Message => Value::Text(self.text()),
            Kind::Time => Value::Time(match self.rng.random_range(0..6) {
                0 => self.pick(&[
                    i64::MIN, // -infinity
                    i64::MAX, // infinity
                    i64::MIN + 1,
                    i64::MAX - 1,
                    FIRST_TIME,
                    FIRST_TIME - 1,
                    END_OF_TIME - 1,
                    END_OF_TIME,
                    0,
                    -1,
                ]),
                1 => self.rng.random(),
                _ => self.rng.random_range(FIRST_TIME..END_OF_TIME),
            }),
            Kind::Interval => Value::Interval {
                microseconds: self.pick(&[0, 0, 1, -1, 86_400_000_000, i64::MIN, i64::MAX]),
                days: match self.rng.random_range(0..5) {
                    0 => self.pick(&[0, 1, -1, 30, -30, 31, i32::MIN, i32::MAX]),
                    1 => self.rng.random(),
                    _ => 0,
                },
                months: match self.rng.random_range(0..5) {
                    0 => self.pick(&[0, 1, -1, 12, i32::MIN, i32::MAX]),
                    1 => self.rng.random(),
                    _ => 0,
                },
            },
            Kind::Role => Value::Oid(match self.rng.random_range(0..3) {
                0 => self.pick(&[0, 1, 10, u32::MAX, 1 << 31]),
                1 => self.rng.random(),
                _ => {
                    let roles = self.roles.clone();
                    self.pick(&roles)
                }
            }),
        }
    }

    fn int8(&mut self) -> i64 {
        match self.rng.random_range(0..3) {
            0 => self.pick(&[
                0,
                1,
                -1,
                11,
                i64::MIN,
                i64::MAX,
                i64::MIN + 1,
                i64::from(i32::MAX),
                i64::from(i32::MAX) + 1,
                i64::from(i32::MIN) - 1,
                i64::from(u32::MAX) + 1,
            ]),
            1 => self.rng.random(),
            _ => self.rng.random_range(0..100_000),
        }
    }

    /// A literal as a client writes it who puts statements together by hand.
    fn literal(&mut self, kind: Kind) -> String {
        let text = if !self.one_in(3) {
            match self.value(kind) {
                Value::Null => return "NULL".to_owned(),
                Value::Int8(value) => value.to_string(),
                Value::Int4(value) => value.to_string(),
                Value::Oid(value) => value.to_string(),
                Value::Text(value) => value,
                Value::Bytes(_) => self.text(),
                Value::Time(_) => self
                    .pick(&[
                        "infinity",
                        "-infinity",
                        "now",
                        "today",
                        "epoch",
                        "4714-11-24 00:00:00+00 BC",
                        "294276-12-31 23:59:59.999999+00",
                        "2024-02-29 12:00:00 Europe/Berlin",
                    ])
                    .to_owned(),
                Value::Interval { microseconds, days, months } => {
                    format!("{months} months {days} days {} s", microseconds / 1_000_000)
                }
            }
        } else {
            let odd: &[&str] = match kind {
                Kind::LoaderId | Kind::ExecutionId | Kind::Count | Kind::PageSize => &[
                    "9223372036854775807",
                    "9223372036854775808",
                    "-9223372036854775809",
                    "2147483648",
                    " 7 ",
                    "1e3",
                    "0x10",
                    "1.5",
                    "NaN",
                    "Infinity",
                    "१",
                    "−1",
                    "--1",
                    "1_000",
                ],
                Kind::Time => &[
                    "4714-11-23 23:59:59+00 BC",
                    "294277-01-01 00:00:00+00",
                    "2024-02-30",
                    "2024-01-01 24:00:01",
                    "2024-01-01 00:00:60",
                    "2024-01-01 00:00:00+99",
                    "2024-01-01 00:00:00 Europe/Nowhere",
                    "allballs",
                    "tomorrow",
                    "J99999999999",
                    "99999-99-99",
                    "current",
                    "invalid",
                ],
                Kind::Interval => &[
                    "178000000 years",
                    "-178000000 years",
                    "178956971 years",
                    "2147483647 days",
                    "2147483648 days",
                    "99999999999999 hours",
                    "1 mon -31 days",
                    "1 mon -30 days",
                    "-1 mon 31 days",
                    "90 days ago",
                    "-0.0000004 s",
                    "P1Y-400D",
                    "infinity",
                    "-infinity",
                    "@",
                    "1 fortnight",
                ],
                Kind::Role => &[
                    "granted",
                    "postgres",
                    "\"Odd \"\"Name\"",
                    "\"unfinished",
                    "\"\"",
                    "a.b",
                    "-",
                    "0",
                    "4294967296",
                    "public",
                    "none",
                    "current_user",
                    "granted; DROP SCHEMA loader CASCADE",
                ],
                Kind::Status => &["success", "SUCCESS ", "SUCCESS\t", "FAILED'", "RUNNING", ""],
                Kind::Message => &["", " ", "null", "%s%n%d", "$1", "\\", "'; ROLLBACK; --"],
                Kind::Cursor => &["0_0", "-0_0", "_", "1_1_1", "1_+1", " 1_1"],
            };
            if self.one_in(3) { self.text() } else { self.pick(odd).to_owned() }
        };
        // The protocol itself has no place for a zero byte in a statement.
        format!("'{}'", text.replace('\0', "").replace('\'', "''"))
    }

    /// A cursor that was returned, one that was tampered with, or none.
    fn cursor(&mut self) -> String {
        let cursors = self.cursors.clone();
        if cursors.is_empty() || self.one_in(6) {
            return if self.one_in(2) {
                self.text()
            } else {
                format!("{}_{}", self.int8(), self.int8())
            };
        }
        let mut characters: Vec<char> = self.pick(&cursors).chars().collect();
        for _ in 0..self.pick(&[0, 0, 0, 1, 1, 2, 5]) {
            let position = self.rng.random_range(0..=characters.len());
            let other = if self.one_in(2) {
                self.character()
            } else {
                self.pick(&['0', '9', '-', '_', '+', ' '])
            };
            match self.rng.random_range(0..4) {
                0 => characters.insert(position, other),
                1 => characters.truncate(position),
                2 if position < characters.len() => characters[position] = other,
                _ if position < characters.len() => {
                    characters.remove(position);
                }
                _ => characters.reverse(),
            }
        }
        characters.into_iter().collect()
    }

    fn character(&mut self) -> char {
        match self.rng.random_range(0..8) {
            0 => self.pick(&['\'', '"', '\\', '%', '$', '{', '}', '\u{7f}', '/', '\u{0}']),
            1 => char::from(self.rng.random_range(0..32_u8)),
            2 => self.pick(&[
                '\u{85}',
                '\u{a0}',
                '\u{300}',
                '\u{200d}',
                '\u{202e}',
                '\u{2028}',
                '\u{2029}',
                '\u{feff}',
                '\u{fffd}',
                '\u{fffe}',
                '\u{ffff}',
                '\u{d7ff}',
                '\u{e000}',
                '\u{10000}',
                '\u{10ffff}',
                '\u{80}',
                '\u{7ff}',
                '\u{800}',
                'İ',
                'ß',
                '👩',
            ]),
            3 => self.rng.random(),
            _ => char::from(self.rng.random_range(32..127_u8)),
        }
    }

    /// A text, now and then of megabytes.
    fn text(&mut self) -> String {
        let length = match self.rng.random_range(0..64) {
            0 => 0,
            1..=3 => self.pick(&[7_999, 8_000, 8_191, 8_192, 8_193, 50_000]),
            4 => {
                // A block over and over: making up each character would cost more than the call.
                let block: String =
                    (0..self.rng.random_range(1..1_000)).map(|_| self.character()).collect();
                return block.repeat(self.rng.random_range(1_000_000..6_000_000) / block.len());
            }
            5..=12 => self.rng.random_range(100..3_000),
            _ => self.rng.random_range(1..40),
        };
        // A zero byte makes PostgreSQL refuse the text before a function sees it: in few of them.
        let keeps_zeros = self.one_in(8);
        (0..length)
            .map(|_| self.character())
            .filter(|&character| keeps_zeros || character != '\0')
            .collect()
    }

    /// Bytes that are no UTF-8: cut off, overlong, a surrogate, beyond the last character.
    fn no_text(&mut self) -> Vec<u8> {
        let mut bytes = self.text().into_bytes();
        bytes.truncate(1_000);
        bytes.extend_from_slice(self.pick(&[
            &b"\xe2\x82"[..],
            b"\xc0\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xff",
            b"\x80",
            b"\0",
        ]));
        bytes
    }
}

/// The first time there is in PostgreSQL, and the first after the last one, in microseconds since
/// 2000-01-01 (`MIN_TIMESTAMP` and `END_TIMESTAMP` in PostgreSQL's `datatype/timestamp.h`).
const FIRST_TIME: i64 = -211_813_488_000_000_000;
const END_OF_TIME: i64 = 9_223_371_331_200_000_000;

/// Makes the call, and returns what came of it, as a text.
fn make(client: &mut Client, call: &Call) -> Result<Option<String>, postgres::Error> {
    if let Some(begin) = call.begin {
        client.batch_execute(begin)?;
    }
    let result = match &call.values {
        Some(values) => {
            let values: Vec<&(dyn ToSql + Sync)> =
                values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
            client.query(&call.sql, &values).map(|rows| text_of(call.function, &rows[0]))
        }
        None => client.simple_query(&call.sql).map(|messages| {
            messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
        }),
    };
    if call.begin.is_some() {
        client.batch_execute(call.end)?;
    }
    result
}

/// The one value of a row that a function has returned, as PostgreSQL would write it.
fn text_of(function: &str, row: &postgres::Row) -> Option<String> {
    match function {
        "record_execution_start" | "purge_execution_history" => {
            row.get::<_, Option<i64>>(0).map(|value| value.to_string())
        }
        "record_execution_end" => row.get::<_, Option<i32>>(0).map(|value| value.to_string()),
        "get_execution_history" => row.get::<_, Option<Json>>(0).map(|value| value.to_string()),
        _ => None,
    }
}

/// What is wrong with an error that a call got, if anything is.
fn objection(call: &Call, error: &DbError) -> Option<String> {
    let state = error.code().code();
    let of_contract = FUNCTIONS
        .iter()
        .find(|(function, _)| *function == call.function)
        .and_then(|(_, states)| states.iter().find(|(named, _)| *named == state));
    // What PostgreSQL says of an unknown time zone in a literal. The extension passes no such text on.
    let of_time_zone = state == "22023" && error.message().starts_with("time zone ");
    match of_contract {
        _ if of_time_zone => None,
        Some((_, true)) if error.hint().is_none_or(str::is_empty) => Some("no HINT".to_owned()),
        Some(("23503", _)) if error.constraint() != Some("execution_history_loader_id_fkey") => {
            Some("no constraint's name".to_owned())
        }
        Some(("55000", _)) if error.detail().is_none() => Some("no DETAIL".to_owned()),
        Some(("42501", _)) if call.user == 0 => Some("refused to a superuser".to_owned()),
        Some(("25006", _)) if call.begin != Some("BEGIN READ ONLY") => {
            Some("the transaction may write".to_owned())
        }
        Some(_) => None,
        None if INPUT_FUNCTIONS.contains(&state) => None,
        None => Some("neither of the contract nor of an input function".to_owned()),
    }
}

/// What is wrong with what a call returned, if anything is; keeps what later calls can use.
fn learn(source: &mut Source, call: &Call, returned: Option<&str>) -> Option<String> {
    let number = returned.and_then(|text| text.parse::<i64>().ok());
    match call.function {
        "record_execution_start" => match number {
            Some(id) if id > 0 => source.executions.push(id),
            _ => return Some("no id".to_owned()),
        },
        "record_execution_end" if !number.is_some_and(|n| (0..3_600).contains(&n)) => {
            return Some("no duration".to_owned());
        }
        "purge_execution_history" if number.is_none_or(|rows| rows < 0) => {
            return Some("no number of rows".to_owned());
        }
        "get_execution_history" => {
            let page: Json = match returned.map(serde_json::from_str) {
                Some(Ok(page)) => page,
                _ => return Some("no JSON".to_owned()),
            };
            if !page["executions"].is_array() {
                return Some("no page".to_owned());
            }
            if let Some(cursor) = page["next_cursor"].as_str() {
                source.cursors.push(cursor.to_owned());
            } else if !page["next_cursor"].is_null() {
                return Some("a cursor that is none".to_owned());
            }
        }
        _ => {}
    }
    None
}

/// Rows that break what holds for every row.
const BROKEN_ROWS: &str = "
    SELECT count(*) FROM loader.execution_history AS h
     WHERE (status IN ('RUNNING', 'SUCCESS', 'FAILED')
            AND (status = 'RUNNING') = (execution_end IS NULL)
            AND (status = 'RUNNING') = (duration_seconds IS NULL)
            AND isfinite(execution_start) AND isfinite(coalesce(execution_end, now()))
            AND coalesce(execution_end, execution_start) >= execution_start
            AND coalesce(record_count, 0) >= 0
            AND duration_seconds IS NOT DISTINCT FROM
                floor(extract(epoch FROM execution_end - execution_start))
            AND EXISTS (SELECT FROM loader.loader AS l WHERE l.id = h.loader_id)
            AND EXISTS (SELECT FROM loader_history.recorded_loader AS r WHERE r.loader_id = h.loader_id)
           ) IS NOT TRUE";

/// What must be as it was, whoever called what: the server, the constraints, the key.
const LASTING: &str = "
    SELECT concat_ws(' ', pg_postmaster_start_time(), (
        SELECT string_agg(conname || ' ' || convalidated || ' ' || pg_get_constraintdef(oid), ', ' ORDER BY conname)
          FROM pg_constraint WHERE conrelid = 'loader.execution_history'::regclass))";

fn lasting(cluster: &Cluster) -> String {
    cluster.connect().query_one(LASTING, &[]).unwrap().get(0)
}

/// Looks at the table, the views, the events and the server.
fn look(cluster: &Cluster, listener: &mut Client, before: &str) {
    // A new session: the server accepts connections.
    let mut client = cluster.connect();
    let broken: i64 = client.query_one(BROKEN_ROWS, &[]).unwrap().get(0);
    assert_eq!(broken, 0, "rows that break the table's constraints");
    assert_eq!(lasting(cluster), before);
    client
        .batch_execute(
            "SELECT max(octet_length(f::text)) FROM loader.activity_feed AS f;
             SELECT max(octet_length(d::text)) FROM loader.execution_details AS d;
             SELECT max(octet_length(s::text)) FROM loader.loader_summary AS s;
             TABLE loader.failed_loader_counts;
             SELECT loader.get_execution_history(page_size => 1000)",
        )
        .unwrap();
    check_events(listener);
    let log = cluster.log();
    // %e in the prefix of the log's lines is the SQLSTATE.
    for sign in ["terminated by signal", "PANIC", " XX000 ", "XX001", "XX002", "panicked"] {
        assert!(!log.contains(sign), "{sign} in the server's log");
    }
}

/// Checks the events that have arrived, and returns their number.
fn check_events(listener: &mut Client) -> usize {
    // Whatever was committed before it arrives with its answer.
    listener.batch_execute("SELECT 1").unwrap();
    let mut notifications = listener.notifications();
    let mut events = notifications.iter();
    let mut count = 0;
    while let Some(event) = events.next().unwrap() {
        let payload = event.payload();
        assert!(payload.len() < EVENT_BYTES, "an event of {} bytes", payload.len());
        let json: Json = serde_json::from_str(payload).expect("an event is JSON");
        assert!(
            json["execution_id"].is_i64() && json["event_type"].is_string() && payload.is_ascii(),
            "{json}"
        );
        count += 1;
    }
    count
}

fn listener(cluster: &Cluster) -> Client {
    let mut listener = cluster.connect();
    listener.batch_execute("LISTEN loader_execution").unwrap();
    listener
}

#[test]
fn no_argument_breaks_anything() {
    let seed = pg_test::seed();

    let cluster = cluster_with_extension();
    let mut dba = cluster.connect();
    dba.batch_execute(
        "CREATE ROLE recorder LOGIN;
         CREATE ROLE reader LOGIN;
         CREATE ROLE granted;
         CREATE ROLE \"Odd \"\"Name\";
         SELECT loader_history.grant_recorder('recorder'), loader_history.grant_reader('reader');
         -- A test that fails names its case; megabytes of it in the log would only take time.
         ALTER DATABASE postgres SET log_min_error_statement = panic;
         ALTER DATABASE postgres SET loader_history.notify_error_message = on;",
    )
    .unwrap();
    let roles = dba
        .query("SELECT oid FROM pg_roles WHERE rolname IN ('granted', 'Odd \"Name')", &[])
        .unwrap();
    let mut source = Source {
        rng: StdRng::seed_from_u64(seed),
        executions: Vec::new(),
        cursors: Vec::new(),
        roles: roles.iter().map(|row| row.get(0)).collect(),
    };
    let mut clients = USERS.map(|user| cluster.connect_to("postgres", user));
    let mut listener = listener(&cluster);
    let before = lasting(&cluster);
    let mut seen = std::collections::BTreeMap::<(&str, String), usize>::new();

    for number in 0..CALLS {
        let call = source.call();
        let (state, objection) = match make(&mut clients[call.user], &call) {
            Ok(returned) => ("00000".to_owned(), learn(&mut source, &call, returned.as_deref())),
            Err(error) => match error.as_db_error() {
                Some(error) => (error.code().code().to_owned(), objection(&call, error)),
                None => (String::new(), Some(format!("the connection failed: {error}"))),
            },
        };
        if let Some(objection) = objection {
            panic!("PG_TEST_SEED={seed}, call {number}: {state}, {objection}\n{call:?}");
        }
        *seen.entry((call.function, state)).or_default() += 1;
        if number % BATCH == BATCH - 1 {
            look(&cluster, &mut listener, &before);
        }
    }

    eprintln!("{seen:?}");

    // The calls went where they were meant to go: every function did its work, and every error of
    // the contract was met. Each is certain enough, at this number of calls, for any seed.
    for (function, states) in FUNCTIONS {
        assert!(
            seen.contains_key(&(function, "00000".to_owned())),
            "PG_TEST_SEED={seed}: no call of {function} succeeded: {seen:?}",
        );
        for (state, _) in states {
            assert!(
                seen.keys().any(|(_, met)| met == state),
                "PG_TEST_SEED={seed}: no call got {state}: {seen:?}",
            );
        }
    }
}

#[test]
fn an_error_message_of_64_megabytes_is_stored_whole() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let mut listener = listener(&cluster);
    let id: i64 = client.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0);
    let block = "ligne 17 : \"échec\"\t\\x01\u{1}\u{7f} 失敗 💥\u{10ffff}\r\n";
    let message = block.repeat((64 << 20) / block.len() + 1);
    client
        .execute("SELECT loader.record_execution_end($1, 'FAILED', NULL, $2)", &[&id, &message])
        .unwrap();
    assert_eq!(check_events(&mut listener), 2);

    let whole: bool = client
        .query_one(
            "SELECT error_message = $2 FROM loader.execution_history WHERE id = $1",
            &[&id, &message],
        )
        .unwrap()
        .get(0);
    assert!(whole);
    let page: Json = client.query_one("SELECT loader.get_execution_history()", &[]).unwrap().get(0);
    let execution = &page["executions"][0];
    assert_eq!(execution["error_truncated"], true);
    let beginning: String = message.chars().take(8_192).collect();
    assert_eq!(execution["error_message"], beginning);
}

#[test]
fn an_error_message_that_no_row_can_hold_is_refused_and_a_huge_one_is_kept() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let mut listener = listener(&cluster);
    let id: i64 = client.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0);
    // Repeated twice over, as repeat() copies each repetition by itself.
    let end = |thousands: usize| {
        format!(
            "SELECT loader.record_execution_end({id}, 'FAILED', NULL,
                                                repeat(repeat('x', 1000), {thousands}))"
        )
    };
    // A gigabyte, which is as much as PostgreSQL's repeat() can make.
    let error = client.simple_query(&end(1_073_741)).error("54000");
    assert!(error.hint().is_some() && error.detail().is_some(), "{error:?}");
    assert_eq!(check_events(&mut listener), 1);

    client.batch_execute(&end(300_000)).unwrap();
    assert_eq!(check_events(&mut listener), 1);
    let length: i32 = client
        .query_one("SELECT length(error_message) FROM loader.execution_history", &[])
        .unwrap()
        .get(0);
    assert_eq!(length, 300_000_000);
    let page: Json = client.query_one("SELECT loader.get_execution_history()", &[]).unwrap().get(0);
    assert_eq!(page["executions"][0]["error_message"].as_str().map(str::len), Some(8_192));
    let message: String =
        client.query_one("SELECT max(message) FROM loader.activity_feed", &[]).unwrap().get(0);
    assert!(message.len() < 1_000);
}
