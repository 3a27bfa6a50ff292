//! Promise: what cannot be answered is a problem that says why, and every answer has its security headers.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use pg_test::{APPLICATION_SQL, Session, column, wait_for, wait_for_equal};
use serde_json::Value;
use support::{Answer, Console, cluster, fail, succeed};

/// Asserts that `answer` is a problem of `status`; returns its detail.
#[track_caller]
fn problem(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_secure(answer);
    let problem: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], "about:blank");
    assert!(!problem["title"].as_str().unwrap().is_empty());
    if status == 503 {
        assert_eq!(answer.header("retry-after"), "5");
    }
    problem["detail"].as_str().unwrap().to_owned()
}

#[track_caller]
fn assert_secure(answer: &Answer) {
    let policy = answer.header("content-security-policy");
    for part in
        ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(policy.contains(part), "{policy:?} lacks {part}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("referrer-policy"), "same-origin");
    assert_eq!(answer.header("x-frame-options"), "DENY");
}

/// Every kind of request that asks the database, of the API and of the pages.
const API: [&str; 9] = [
    "/api/v1/statistics",
    "/api/v1/activity",
    "/api/v1/failed-loaders/counts",
    "/api/v1/loaders",
    "/api/v1/loaders/1",
    "/api/v1/loaders/1/executions",
    "/api/v1/executions",
    "/api/v1/executions.csv",
    "/api/v1/health",
];
const PAGES: [&str; 4] = ["/", "/loaders", "/loaders/1", "/executions"];

/// Asserts that nothing can be read, for the reason `says`.
#[track_caller]
fn assert_unavailable(console: &Console, says: &str) {
    for path in API {
        let detail = problem(&console.get(path), 503);
        assert!(detail.contains(says), "{path}: {detail}");
    }
    for path in PAGES {
        let answer = console.get(path);
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.header("retry-after"), "5", "{path}");
        assert!(answer.body.contains("<html") && answer.body.contains(says), "{path}");
        assert_secure(&answer);
    }
}

#[test]
fn a_bad_parameter_is_named() {
    let cluster = cluster();
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 1);
    let console = Console::start(&cluster);
    let executions = ["/executions", "/loaders/1/executions"];
    let all = ["/executions", "/loaders/1/executions", "/loaders", "/activity"];
    let csv = ["/executions.csv", "/loaders/1/executions.csv"];
    let mut bad = Vec::new();
    for value in ["0", "1001", "-1", "70000", "many", "", "1.5", "1&limit=2"] {
        bad.extend(all.map(|path| (path, "limit", value)));
    }
    for value in ["done", "failed", "FAILED,RUNNING", ""] {
        bad.extend(executions.map(|path| (path, "status", value)));
        bad.extend(csv.map(|path| (path, "status", value)));
    }
    for value in
        ["yesterday", "2026-01-01", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00+01:00", ""]
    {
        for name in ["started_from", "started_before"] {
            bad.extend(executions.map(|path| (path, name, value)));
            bad.extend(csv.map(|path| (path, name, value)));
        }
        bad.push(("/activity", "since", value));
    }
    for value in ["x", "1", "1_2_3", "9223372036854775808_1", "'; DROP TABLE x; --", ""] {
        bad.extend(executions.map(|path| (path, "cursor", value)));
    }
    for value in ["x", "9223372036854775808", ""] {
        bad.push(("/loaders", "after", value));
        bad.push(("/events", "loader_id", value));
    }
    bad.extend(["maybe", "1", ""].map(|value| ("/loaders", "is_failed", value)));
    // What nobody knows is a slip of the pen, which would otherwise be no filter.
    let every = ["/activity", "/loaders", "/executions", "/executions.csv", "/events"];
    bad.extend(every.map(|path| (path, "statsu", "FAILED")));
    for (path, name, value) in bad {
        // All but a plus is written as browsers do.
        let value = value.replace(' ', "%20").replace('\'', "%27");
        let answer = console.get(&format!("/api/v1{path}?{name}={value}"));
        let detail = problem(&answer, 400);
        assert!(detail.contains(name), "{path}?{name}={value}: {detail}");
        assert!(!detail.contains("_rust"), "{detail}");
    }
    for path in [
        "/executions?cursor=%00",
        "/executions?cursor=%FF",
        "/activity?since=-262143-01-01T00:00:00Z",
    ] {
        problem(&console.get(&format!("/api/v1{path}")), 400);
    }
    for id in ["x", "1.5", "9223372036854775808", "%20"] {
        for path in ["", "/executions", "/executions.csv"] {
            let detail = problem(&console.get(&format!("/api/v1/loaders/{id}{path}")), 400);
            assert!(detail.contains("loader's id"), "{detail}");
        }
        let page = console.get(&format!("/loaders/{id}"));
        assert_eq!(page.status, 400);
        assert_secure(&page);
    }
    for page in [
        "/executions?status=done",
        "/executions?from=x",
        "/executions?cursor=x",
        "/loaders?after=x",
    ] {
        let answer = console.get(page);
        assert_eq!(answer.status, 400, "{page}");
        assert!(answer.body.contains("<html"), "{page}");
        assert_secure(&answer);
    }
    // The greatest and least that there are.
    for id in [i64::MIN, -1, 0, i64::MAX] {
        assert_eq!(
            console.json(&format!("/api/v1/loaders?after={}", i64::MAX))["next_after"],
            Value::Null
        );
        assert_eq!(console.get(&format!("/api/v1/loaders/{id}/executions")).status, 200);
    }
}

#[test]
fn what_is_not_there_is_not_found_and_what_is_not_read_is_not_allowed() {
    let cluster = cluster();
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 1);
    let console = Console::start(&cluster);
    for path in
        ["/api/v1/loaders/4711", "/api/v1/nothing", "/api/v1", "/api/v1/", "/api/v1/loaders/1/"]
    {
        let detail = problem(&console.get(path), 404);
        assert!(detail.contains("4711") || detail.contains(path), "{path}: {detail}");
    }
    for path in ["/nothing", "/api", "/api/v2/loaders", "/assets/0/x.js", "/../etc/passwd"] {
        let answer = console.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert_secure(&answer);
    }
    // Its page is there: it may run for the first time while somebody looks.
    let page = console.get("/loaders/4711");
    assert!(page.status == 200 && page.body.contains("Loader 4711 has no history yet."));
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY"] {
        for path in API {
            let answer = console.request(method, path, &[]);
            problem(&answer, 405);
            assert_eq!(answer.header("allow"), "GET,HEAD", "{method} {path}");
        }
        for path in PAGES {
            let answer = console.request(method, path, &[]);
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), "GET,HEAD", "{method} {path}");
            assert_secure(&answer);
        }
    }
}

#[test]
fn head_has_the_headers_of_get() {
    let cluster = cluster();
    let mut session = Session::new(&cluster, "postgres");
    fail(&mut session, 1, "x");
    let console = Console::start(&cluster);
    let of_documents =
        ["/api/v1/openapi.yaml", "/api/v1/nothing", "/api/v1/loaders?limit=0", "/nothing"];
    for path in API.into_iter().chain(PAGES).chain(of_documents) {
        let get = console.get(path);
        let head = console.request("HEAD", path, &[]);
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        for name in ["content-type", "cache-control", "content-disposition"] {
            assert_eq!(head.header(name), get.header(name), "{path}: {name}");
        }
        assert_secure(&get);
        assert_secure(&head);
    }
    let head = console.request("HEAD", "/api/v1/events", &[]);
    assert_eq!((head.status, head.header("content-type")), (200, "text/event-stream"));
    assert_secure(&head);
    // What is large is compressed for those who say that they can.
    let page = console.request("HEAD", "/", &[("accept-encoding", "gzip")]);
    assert_eq!(page.header("content-encoding"), "gzip");
    let stream = console.request("HEAD", "/api/v1/events", &[("accept-encoding", "gzip")]);
    assert_eq!(stream.header("content-encoding"), "", "a stream is not held back");
}

#[test]
fn it_is_asked_by_names_that_are_its_own_alone() {
    let cluster = cluster();
    let console =
        Console::start_with(&cluster, &["--allowed-hosts", "loads.example,History.example"]);
    let ask = |host: &str, path: &str| console.request("GET", path, &[("Host", host)]);
    for host in [
        "localhost",
        "LOCALHOST:8700",
        "127.0.0.1",
        "10.1.2.3:80",
        "[::1]:8700",
        "loads.example",
        "history.example:443",
    ] {
        assert_eq!(ask(host, "/").status, 200, "{host}");
    }
    let css = "/assets/0/console.css";
    for host in [
        "evil.example",
        "evil.example:8700",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "x@",
        "\"<",
    ] {
        for path in ["/", "/executions", css].into_iter().chain(API) {
            let detail = problem(&ask(host, path), 421);
            assert!(detail.contains("--allowed-hosts"), "{detail}");
        }
        // People get a page.
        let accepts = ("Accept", "text/html,application/xhtml+xml;q=0.9");
        let page = console.request("GET", "/", &[("Host", host), accepts]);
        assert_eq!(page.status, 421);
        assert!(
            page.body.contains("<html") && page.body.contains("--allowed-hosts"),
            "{}",
            page.body
        );
        assert_secure(&page);
    }
    // An empty variable allows no name.
    let console = Console::spawn(Console::command(&cluster).env("CONSOLE_ALLOWED_HOSTS", ""));
    for host in ["", "evil.example", "\"<"] {
        problem(&console.request("GET", "/", &[("Host", host)]), 421);
    }
    assert_eq!(console.get("/").status, 200);
}

#[test]
fn files_of_pages_are_kept_by_what_they_hold() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let page = console.get("/").body;
    let files: Vec<_> =
        page.split('"').filter(|part| part.starts_with("/assets/")).map(str::to_owned).collect();
    assert_eq!(files.len(), 6);
    for file in files {
        let answer = console.get(&file);
        assert_eq!(answer.status, 200, "{file}");
        assert!(answer.header("cache-control").contains("immutable"));
        let hash = file.split('/').nth(2).unwrap();
        assert!(hash.len() == 16 && hash != env!("CARGO_PKG_VERSION"), "{file}");
    }
}

/// Clients that ask for `path` and read only the beginning.
fn begin_to_read(console: &Console, clients: usize, path: &str) -> Vec<TcpStream> {
    let begin = |_| {
        let mut client = TcpStream::connect(console.address()).unwrap();
        write!(client, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        client.read_exact(&mut [0; 1]).unwrap();
        client
    };
    (0..clients).map(begin).collect()
}

#[test]
fn exports_have_places_of_their_own() {
    let cluster = cluster();
    cluster
        .connect()
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, error_message)
             SELECT 1, now(), now(), 'FAILED', repeat('x', 8000) FROM generate_series(1, 5000)",
        )
        .unwrap();
    let console = Console::start(&cluster);
    let exports = begin_to_read(&console, 16, "/api/v1/executions.csv");
    let refused = problem(&console.get("/api/v1/loaders/1/executions.csv"), 503);
    assert!(refused.contains("Too many exports"), "{refused}");
    assert_eq!(console.get("/").status, 200, "they hold no connection of the database's");
    drop(exports);
    wait_for_equal("a place", &200, || {
        console.get("/api/v1/loaders/1/executions.csv?status=RUNNING").status
    });
}

#[test]
fn large_pages_have_places_of_their_own() {
    let cluster = cluster();
    cluster
        .connect()
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, error_message)
             SELECT 1, now(), now(), 'FAILED', repeat('x', 8192) FROM generate_series(1, 1000)",
        )
        .unwrap();
    let console = Console::start(&cluster);
    let pages = begin_to_read(&console, 8, "/api/v1/executions?limit=1000");
    for path in ["/executions", "/loaders/1/executions", "/loaders"] {
        let refused = problem(&console.get(&format!("/api/v1{path}?limit=101")), 503);
        assert!(refused.contains("Too many pages of more than 100 rows"), "{refused}");
        assert_eq!(console.get(&format!("/api/v1{path}?limit=100")).status, 200, "{path}");
    }
    drop(pages);
    for _ in 0..20 {
        // Who reads one to its end has given its place back.
        wait_for_equal("a place", &200, || console.get("/api/v1/executions?limit=101").status);
    }
}

#[test]
fn a_database_that_stops_is_unavailable_until_it_is_back() {
    let mut cluster = cluster();
    succeed(&mut Session::new(&cluster, "postgres"), 1, 1);
    let console = Console::start(&cluster);
    assert_eq!(console.get("/").status, 200);
    cluster.stop_server();
    // What all share is kept for a moment.
    for path in API.into_iter().chain(PAGES) {
        wait_for_equal(path, &503, || console.get(path).status);
    }
    assert_unavailable(&console, "The database does not answer");
    assert_eq!(console.get("/api/v1/openapi.yaml").status, 200, "needs no database");
    cluster.start_server();
    for path in API.into_iter().chain(PAGES) {
        wait_for_equal(path, &200, || console.get(path).status);
    }
}

#[test]
fn a_database_without_the_extension_and_a_login_without_grants_say_what_to_do() {
    let cluster = cluster();
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 1);
    session.run("CREATE DATABASE bare");
    session.run("CREATE ROLE nobody LOGIN");
    let console = Console::spawn(Console::command(&cluster).env("PGDATABASE", "bare"));
    assert_unavailable(&console, "loader_history is not installed");
    let mut bare = Session::new(&cluster, "bare");
    bare.run(APPLICATION_SQL);
    bare.run("CREATE EXTENSION loader_history; SELECT loader_history.grant_reader('dashboard')");
    wait_for_equal("the extension", &200, || console.get("/").status);

    let console = Console::spawn(Console::command(&cluster).env("PGDATABASE", "no_such"));
    assert_unavailable(&console, "no database of the name");
    let began = Instant::now();
    let console = Console::spawn(Console::command(&cluster).env("PGUSER", "no_such"));
    assert_unavailable(&console, "does not let the console");
    // An outage is warned of every ten seconds, not by every request that meets it.
    let warnings = console.log().matches("the database: 28").count() as u64;
    assert!(warnings <= 1 + began.elapsed().as_secs() / 10, "{}", console.log());

    let console = Console::spawn(Console::command(&cluster).env("PGUSER", "nobody"));
    assert_unavailable(&console, "loader_history.grant_reader()");
    session.run("SELECT loader_history.grant_reader('nobody')");
    wait_for_equal("the grants", &200, || console.get("/").status);
}

#[test]
fn a_database_that_is_too_slow_costs_each_request_its_time_once() {
    let cluster = cluster();
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 1);
    let console = Console::start_with(&cluster, &["--connections", "20"]);
    session.run("BEGIN; LOCK TABLE loader.execution_history");
    let began = Instant::now();
    thread::scope(|scope| {
        // Many who share an answer wait for it together, not one after the other.
        for path in API.iter().take(8).chain(&["/api/v1/failed-loaders/counts"; 10]) {
            let console = &console;
            scope.spawn(move || {
                let detail = problem(&console.get(path), 504);
                assert!(detail.contains("too long"), "{path}: {detail}");
            });
        }
        for path in ["/"; 5] {
            scope.spawn(|| {
                let answer = console.get(path);
                assert_eq!(answer.status, 504);
                assert!(answer.body.contains("<html"));
                assert_secure(&answer);
            });
        }
    });
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    session.run("COMMIT");
    wait_for_equal("the answer", &200, || console.get("/").status);
}

#[test]
fn connections_that_are_all_busy_are_no_outage() {
    let cluster = cluster();
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 1);
    let console = Console::start_with(&cluster, &["--connections", "1"]);
    session.run("BEGIN; LOCK TABLE loader.execution_history");
    thread::scope(|scope| {
        scope.spawn(|| console.get("/api/v1/executions"));
        wait_for("the one that waits", || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'dashboard' AND wait_event = 'relation'";
            column::<i64>(&mut cluster.connect(), waiting) == [1]
        });
        let detail = problem(&console.get("/api/v1/loaders/1"), 503);
        assert!(detail.contains("connections to the database are busy"), "{detail}");
        session.run("COMMIT");
    });
}

#[test]
fn times_beyond_those_of_the_api_break_nothing_else() {
    let cluster = cluster();
    let mut session = Session::new(&cluster, "postgres");
    let id = succeed(&mut session, 1, 1);
    session.run(
        "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
         VALUES (2, '4712-01-01 BC', '294276-12-31', 'FAILED'), (3, '294000-01-01', '294000-01-01', 'FAILED'),
                (4, '20000-01-01', '20000-01-01', 'SUCCESS')",
    );
    let console = Console::start(&cluster);
    for path in API.into_iter().chain(PAGES).chain(["/loaders/2", "/loaders/3", "/loaders/4"]) {
        let answer = console.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_secure(&answer);
    }
    assert_eq!(console.json("/api/v1/loaders/1")["last_execution_id"], id);
    assert_eq!(console.get("/loaders/1").status, 200);
    assert!(!console.log().contains("panicked"), "{}", console.log());
}
