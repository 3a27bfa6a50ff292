//! Promise: the CSV is the history, whole and row by row, whatever error texts hold.

mod support;

use std::io::Read;

use chrono::{DateTime, SecondsFormat, Utc};
use pg_test::{Client, Row};
use support::{Console, cluster};

/// More than twenty of the pages that the console reads at once; texts that break careless CSV.
const HISTORY: &str = r#"
    INSERT INTO loader.execution_history
           (loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds)
    SELECT n % 3 + 1, t, t + interval '90 s', CASE WHEN n % 2 = 0 THEN 'FAILED' ELSE 'SUCCESS' END, n,
           CASE WHEN n % 2 = 0 THEN (ARRAY[
               'plain', 'a "quoted" word', 'one, two', E'line one\nline two', E'line one\r\nline two', E'\n', '"',
               '=1+1', '+1', '-1', '@SUM(A1)', E'\t=1', E'\r=1', '', ' =1', ',,,', '\. on a line', E'\\"',
               'ünïcødé 🦀', 'NULL', repeat('long "', 3000), 'one;=1+1', E'one\t=1+1'])[n / 2 % 23 + 1] END,
           90
      FROM (SELECT n, timestamptz '2026-01-01 00:00:00.000001+00' + make_interval(secs => n * 7 % 4000) AS t
              FROM generate_series(1, 12345) AS n) AS s;
    INSERT INTO loader.execution_history (loader_id, execution_start, status)
    VALUES (1, '2026-02-01', 'RUNNING');
"#;

/// What the CSV should say of the table.
fn expected(client: &mut Client, condition: &str) -> Vec<Vec<String>> {
    let query = format!(
        "SELECT id, loader_id, status::text, execution_start::text, execution_end::text, duration_seconds,
                record_count, left(error_message, 8192), coalesce(length(error_message) > 8192, false)
           FROM loader.execution_history WHERE {condition} ORDER BY execution_start DESC, id DESC"
    );
    client.batch_execute("SET TIME ZONE 'UTC'").unwrap();
    client.query(&query, &[]).unwrap().iter().map(fields).collect()
}

fn fields(row: &Row) -> Vec<String> {
    let time = |column: usize| {
        let text: Option<String> = row.get(column);
        text.map_or_else(String::new, |text| {
            let time = DateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f%#z").unwrap();
            time.with_timezone(&Utc).to_rfc3339_opts(SecondsFormat::Micros, true)
        })
    };
    let number = |column: usize| {
        row.get::<_, Option<i32>>(column).map_or_else(String::new, |number| number.to_string())
    };
    let error: String = row.get::<_, Option<String>>(7).unwrap_or_default();
    let is_formula = error.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    vec![
        row.get::<_, i64>(0).to_string(),
        row.get::<_, i64>(1).to_string(),
        row.get(2),
        time(3),
        time(4),
        number(5),
        number(6),
        if is_formula { format!("'{error}") } else { error },
        row.get::<_, bool>(8).to_string(),
    ]
}

/// The header and the rows of a CSV.
fn parse(text: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let header = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let rows = reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect());
    (header, rows.collect())
}

#[test]
fn it_equals_the_table_row_by_row() {
    let cluster = cluster();
    let mut client = cluster.connect();
    client.batch_execute(HISTORY).unwrap();
    let console = Console::start(&cluster);
    for (path, condition, count) in [
        ("/executions.csv", "true", 12_346),
        ("/executions.csv?status=RUNNING", "status = 'RUNNING'", 1),
        ("/loaders/2/executions.csv", "loader_id = 2", 4115),
        (
            "/loaders/3/executions.csv?status=FAILED&started_from=2026-01-01T00:10:00Z&started_before=2026-01-01T00:40:00Z",
            "loader_id = 3 AND status = 'FAILED'
             AND execution_start >= '2026-01-01 00:10:00+00' AND execution_start < '2026-01-01 00:40:00+00'",
            0,
        ),
        ("/loaders/4711/executions.csv", "loader_id = 4711", 0),
    ] {
        let answer = console.get(&format!("/api/v1{path}"));
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").starts_with("text/csv; charset=utf-8"));
        assert!(answer.header("content-disposition").starts_with("attachment; filename="));
        assert_eq!(answer.header("content-length"), "", "it is streamed");
        let (header, rows) = parse(&answer.body);
        assert_eq!(
            header.join(","),
            "id,loader_id,status,execution_start,execution_end,duration_seconds,record_count,error_message,error_truncated"
        );
        let expected = expected(&mut client, condition);
        assert!(expected.len() >= count, "{path}: tests nothing");
        assert_eq!(rows.len(), expected.len(), "{path}");
        for (row, expected) in rows.iter().zip(&expected) {
            assert_eq!(row, expected, "{path}");
        }
        assert!(answer.body.ends_with("\r\n"), "RFC 4180");
    }
    // Spreadsheets end a field there, where it is not in quotes.
    let text = console.get("/api/v1/executions.csv?status=FAILED").body;
    for quoted in [",\"one;=1+1\",", ",\"one\t=1+1\","] {
        assert!(text.contains(quoted), "{quoted}");
    }
}

#[test]
fn a_database_that_stops_meanwhile_does_not_look_like_its_end() {
    let mut cluster = cluster();
    let mut client = cluster.connect();
    let texts = HISTORY.replace("'plain'", "repeat('much ', 1600)");
    client.batch_execute(&texts).unwrap();
    let console = Console::start(&cluster);
    let url = format!("{}/api/v1/executions.csv", console.url);
    let mut answer = ureq::get(&url).call().unwrap();
    let mut reader = answer.body_mut().as_reader();
    let mut begin = [0; 1000];
    reader.read_exact(&mut begin).unwrap();
    drop(client);
    cluster.stop_server();
    let mut rest = Vec::new();
    let ended = reader.read_to_end(&mut rest);
    assert!(ended.is_err(), "a broken file of {} bytes looks whole", rest.len());
}
