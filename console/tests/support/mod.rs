//! A console over a throwaway cluster, and requests to it.

#![allow(dead_code, reason = "each file of tests uses a part")]

pub mod browser;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use pg_test::{Client, Cluster, Session, Signal, preloaded_cluster, wait_for};

pub mod sse;

/// A preloaded cluster with the extension, loaders 1 to 10, and a login `dashboard` that has only `grant_reader`.
pub fn cluster() -> Cluster {
    let cluster = preloaded_cluster();
    cluster
        .connect()
        .batch_execute(
            "CREATE ROLE dashboard LOGIN; SELECT loader_history.grant_reader('dashboard')",
        )
        .unwrap();
    cluster
}

/// A running console. Dropping it stops it.
pub struct Console {
    process: Child,
    /// Its address, such as `http://127.0.0.1:12345`.
    pub url: String,
    log: Arc<Mutex<String>>,
}

impl Console {
    /// Starts a console over `cluster`, as the login that has only `grant_reader`.
    pub fn start(cluster: &Cluster) -> Self {
        Self::start_with(cluster, &[])
    }

    /// The same with some arguments more.
    pub fn start_with(cluster: &Cluster, arguments: &[&str]) -> Self {
        Self::spawn(Self::command(cluster).args(arguments))
    }

    /// What starts a console over `cluster`, as the login that has only `grant_reader`.
    pub fn command(cluster: &Cluster) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loader-history-console"));
        command
            .env("CONSOLE_LISTEN", "127.0.0.1:0")
            .env("PGHOST", cluster.directory())
            .env("PGUSER", "dashboard")
            .env("PGDATABASE", "postgres")
            .env_remove("DATABASE_URL");
        command
    }

    /// Starts what `command` says, and returns when it listens.
    pub fn spawn(command: &mut Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let url = loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "{}", log.lock().unwrap());
            log.lock().unwrap().push_str(&line);
            if let Some((_, url)) = line.trim_end().split_once("listening on ") {
                break url.to_owned();
            }
        };
        let kept = log.clone();
        thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        Self { process, url, log }
    }

    /// Starts one over `cluster`, and returns when events arrive there.
    pub fn start_live(cluster: &Cluster, arguments: &[&str]) -> Self {
        let console = Self::start_with(cluster, arguments);
        console.wait_until_live();
        console
    }

    /// Waits until events arrive.
    pub fn wait_until_live(&self) {
        wait_for("live events", || {
            let health = self.get("/api/v1/health");
            health.status == 200 && health.body.contains("\"live_events\":true")
        });
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Stops it as the system does; returns whether it ended as it should.
    pub fn stop(mut self) -> bool {
        pg_test::send_signal(self.process.id().cast_signed(), Signal::SIGTERM);
        self.process.wait().unwrap().success()
    }

    /// The answer to a GET of `path`: status, headers in lower case, body.
    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[])
    }

    /// The answer to a request of `path` by `method` with some more headers.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .body(())
            .unwrap();
        for &(name, value) in headers {
            let name: ureq::http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .build()
            .new_agent();
        let mut answer = agent.run(request).unwrap();
        let headers = answer
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let status = answer.status().as_u16();
        let mut body = String::new();
        answer.body_mut().as_reader().read_to_string(&mut body).unwrap();
        Answer { status, headers, body }
    }

    /// The JSON at `path`, which is there.
    pub fn json(&self, path: &str) -> serde_json::Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An answer of the console's.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let header = self.headers.iter().find(|(header, _)| header == name);
        header.map_or("", |(_, value)| value)
    }
}

/// The description of the API.
pub const DESCRIPTION: &str = include_str!("../../openapi.yaml");

/// Asserts that the feed's `cursors`, one a line, are of the form that the description says.
fn assert_described(cursors: &str) {
    let (_, before) = DESCRIPTION.split_once("name: before\n").unwrap();
    let pattern = before.split('\'').nth(1).unwrap();
    let mut grep = Command::new("grep")
        .args(["-v", "-E", "-e", pattern])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    grep.stdin.take().unwrap().write_all(cursors.as_bytes()).unwrap();
    let others = grep.wait_with_output().unwrap();
    // It ends with 1 where there are none, and with 2 where it does not understand the pattern.
    let others = (others.status.code(), String::from_utf8(others.stdout).unwrap());
    assert_eq!(others, (Some(1), String::new()), "{pattern}");
}

/// All events of the feed that `query` leaves, from page to page of `limit` by their links.
pub fn walk_feed(console: &Console, limit: usize, query: &str) -> Vec<serde_json::Value> {
    let mut found = Vec::new();
    let mut path = format!("/api/v1/activity?limit={limit}{query}");
    let mut cursors = String::new();
    loop {
        let answer = console.get(&path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let page: Vec<serde_json::Value> = serde_json::from_str(&answer.body).unwrap();
        found.extend(page.iter().cloned());
        match answer.header("link").strip_suffix(">; rel=\"next\"") {
            Some(next) => next[1..].clone_into(&mut path),
            None => {
                assert_described(&cursors);
                return found;
            }
        }
        let (_, cursor) = path.split_once("before=").expect("the link has a cursor");
        cursors += &format!("{cursor}\n");
        assert_eq!(page.len(), limit, "only the last page is short");
    }
}

/// A load of `loader` that succeeds; returns the execution's id.
pub fn succeed(session: &mut Session, loader: i64, records: i64) -> i64 {
    let id = start(session, loader);
    session.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', {records})"));
    id
}

/// A load of `loader` that fails with `error`; returns the execution's id.
pub fn fail(session: &mut Session, loader: i64, error: &str) -> i64 {
    let id = start(session, loader);
    let end = "SELECT loader.record_execution_end($1, 'FAILED', NULL, $2)";
    session.client.execute(end, &[&id, &error]).unwrap();
    id
}

/// Starts an execution of `loader`; returns its id.
pub fn start(session: &mut Session, loader: i64) -> i64 {
    let start = "SELECT loader.record_execution_start($1)";
    session.client.query_one(start, &[&loader]).unwrap().get(0)
}

/// What the views say, as text.
pub fn one(client: &mut Client, query: &str) -> String {
    let query = format!("SELECT ({query})::text");
    client.query_one(&query, &[]).unwrap().get::<_, Option<String>>(0).unwrap_or_default()
}

/// The rows of `query`, as the JSON that PostgreSQL makes of them.
pub fn rows_as_json(client: &mut Client, query: &str) -> serde_json::Value {
    let json = format!("SELECT coalesce(jsonb_agg(to_jsonb(q)), '[]') FROM ({query}) AS q");
    normal(serde_json::from_str(&one(client, &json)).unwrap())
}

/// JSON with its times written in one way: the API ends them with Z, PostgreSQL with +00:00.
pub fn normal(json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match json {
        Value::String(text) => match chrono::DateTime::parse_from_rfc3339(&text) {
            Ok(time) => Value::String(time.to_utc().to_string()),
            Err(_) => Value::String(text),
        },
        Value::Array(items) => items.into_iter().map(normal).collect(),
        Value::Object(entries) => {
            entries.into_iter().map(|(key, value)| (key, normal(value))).collect()
        }
        other => other,
    }
}
