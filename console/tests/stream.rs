//! Promise: every event reaches every stream as it was notified and in its order, or the stream says that some may
//! be missing; nothing that happens to the database, and nothing that others notify, ends it.

mod support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pg_test::{Cluster, Listener, Session, column, wait_for, wait_for_equal};
use serde_json::{Value, json};
use support::sse::{Event, Stream};
use support::{Console, DESCRIPTION, cluster, fail, succeed, walk_feed};

/// The data of the events, all of which are of executions.
#[track_caller]
fn payloads(events: &[Event]) -> Vec<Value> {
    assert!(events.iter().all(|event| event.kind == "execution"), "{events:?}");
    events.iter().map(|event| event.data.clone()).collect()
}

/// Asserts that events recorded from now on arrive.
#[track_caller]
fn assert_arrive(cluster: &Cluster, stream: &mut Stream) -> Vec<Event> {
    let id = succeed(&mut Session::new(cluster, "postgres"), 1, 7);
    stream.read_until(|event| event.is_end_of(id))
}

/// A console to which events arrive and that has told its streams of the gap before them, which it does a moment after
/// it says that it is live.
fn live_console(cluster: &Cluster) -> Console {
    let console = Console::start_live(cluster, &[]);
    assert_arrive(cluster, &mut Stream::open(&console, "/api/v1/events"));
    console
}

#[test]
fn every_client_gets_every_event_as_notified_and_in_order() {
    let cluster = cluster();
    let console = live_console(&cluster);
    let mut listener = Listener::new(&cluster);
    let mut streams: Vec<_> = (0..5).map(|_| Stream::open(&console, "/api/v1/events")).collect();
    let mut of_two = Stream::open(&console, "/api/v1/events?loader_id=2");
    let mut of_none = Stream::open(&console, "/api/v1/events?loader_id=4711");
    thread::scope(|scope| {
        for loader in 1..=4 {
            let mut session = Session::new(&cluster, "postgres");
            scope.spawn(move || {
                for n in 0..25 {
                    if n % 5 == 0 {
                        fail(
                            &mut session,
                            loader,
                            "line one\nline two\r\n\tdata: \"x\" 🦀 \u{2028}",
                        );
                    } else {
                        succeed(&mut session, loader, n);
                    }
                }
            });
        }
    });
    let last = succeed(&mut Session::new(&cluster, "postgres"), 2, 0);
    let is_last = |event: &Event| event.is_end_of(last);
    listener.receive_until("the last", |event| {
        event["execution_id"] == last && event["event_type"] == "EXECUTION_SUCCESS"
    });
    assert_eq!(listener.events.len(), 202);
    // Their form is described.
    let (_, described) = DESCRIPTION.split_once("\n    EventPayload:\n").unwrap();
    let (described, _) = described.split_once("\n    FailedLoaderCounts:").unwrap();
    for key in listener.events[0].as_object().unwrap().keys() {
        assert!(described.contains(&format!("\n        {key}: ")), "{key}");
    }
    for stream in &mut streams {
        assert_eq!(payloads(&stream.read_until(is_last)), listener.events);
    }
    let mut expected = listener.events.clone();
    expected.retain(|event| event["loader_id"] == 2);
    assert_eq!(payloads(&of_two.read_until(is_last)), expected);
    // Of a loader without events nothing comes, until the stream ends.
    console.stop();
    assert_eq!(of_none.next_event(), None);
}

#[test]
fn a_restart_of_the_database_is_a_gap_and_then_events_again() {
    let mut cluster = cluster();
    let console = live_console(&cluster);
    let mut stream = Stream::open(&console, "/api/v1/events");
    let mut page = Stream::open(&console, "/changes?loader_id=1");
    page.next_event();
    for crash in [false, true, false] {
        assert!(!assert_arrive(&cluster, &mut stream).iter().any(Event::is_gap));
        if crash {
            cluster.crash_server();
        } else {
            cluster.stop_server();
        }
        wait_for("the outage", || console.get("/api/v1/health").status == 503);
        assert!(
            console.get("/").body.contains("data-live=\"false\"") || console.get("/").status == 503
        );
        cluster.start_server();
        // Nobody listened to this one.
        let missed = succeed(&mut Session::new(&cluster, "postgres"), 1, 1);
        let events = stream.read_until(Event::is_gap);
        assert!(
            !events.iter().any(|event| event.is_end_of(missed)) || events.len() <= 3,
            "{events:?}"
        );
        assert_eq!(page.next_event().unwrap().kind, "change");
        console.wait_until_live();
    }
    assert_arrive(&cluster, &mut stream);
}

/// A client that does what docs/console.md says.
struct Reader<'a> {
    console: &'a Console,
    known: HashSet<(i64, String)>,
    /// The time of the last event.
    last: Option<String>,
    gaps: usize,
}

impl Reader<'_> {
    fn take(&mut self, event: &Event) {
        if event.is_gap() {
            self.gaps += 1;
            self.read_the_feed_again();
        } else {
            let kind = event.data["event_type"].as_str().unwrap().to_owned();
            self.known.insert((event.data["execution_id"].as_i64().unwrap(), kind));
            self.last = event.data["event_time"].as_str().map(str::to_owned);
        }
    }

    fn read_the_feed_again(&mut self) {
        let since = self.last.as_deref().map_or_else(String::new, |last| {
            // The longest load's transaction.
            let since =
                chrono::DateTime::parse_from_rfc3339(last).unwrap() - Duration::from_secs(60);
            format!("&since={}", since.to_rfc3339().replace('+', "%2B"))
        });
        for item in walk_feed(self.console, 7, &since) {
            let kind = item["type"].as_str().unwrap().to_owned();
            self.known.insert((item["executionId"].as_i64().unwrap(), kind));
        }
    }
}

#[test]
fn who_reads_the_feed_again_at_each_gap_misses_nothing() {
    let mut cluster = cluster();
    let before = succeed(&mut Session::new(&cluster, "postgres"), 1, 1);
    let console = Console::start_live(&cluster, &[]);
    let (known, last) = (HashSet::new(), None);
    let mut reader = Reader { console: &console, known, last, gaps: 0 };
    let record = |cluster: &Cluster| {
        let mut session = Session::new(cluster, "postgres");
        for loader in 1..=9 {
            fail(&mut session, loader, "x");
        }
        succeed(&mut session, 10, 1)
    };
    for crash in [true, false] {
        // A stream of its own each time: such a client does not say that it had one.
        let mut stream = Stream::open_with(&console, "/api/v1/events", "");
        let last = record(&cluster);
        for event in stream.read_until(|event| event.is_end_of(last)) {
            reader.take(&event);
        }
        if crash {
            cluster.crash_server();
        } else {
            drop(stream);
            cluster.stop_server();
            stream = Stream::open_with(&console, "/api/v1/events", "");
        }
        cluster.start_server();
        // Some of these before anybody listens again.
        record(&cluster);
        console.wait_until_live();
        let last = record(&cluster);
        for event in stream.read_until(|event| event.is_end_of(last)) {
            reader.take(&event);
        }
    }
    assert!(reader.known.contains(&(before, "EXECUTION_SUCCESS".to_owned())));
    assert!(reader.gaps >= 4, "{} gaps", reader.gaps);
    let query = "SELECT execution_id || ' ' || event_type FROM loader.activity_feed";
    let mut expected: Vec<_> = column::<String>(&mut cluster.connect(), query);
    let mut known: Vec<_> = reader.known.iter().map(|(id, kind)| format!("{id} {kind}")).collect();
    expected.sort_unstable();
    known.sort_unstable();
    assert_eq!(known, expected);
}

#[test]
fn every_stream_begins_with_a_gap() {
    let cluster = cluster();
    let console = live_console(&cluster);
    for (path, header) in
        [("", ""), ("?loader_id=1", ""), ("", "Last-Event-ID: 17\r\n"), ("?loader_id=4711", "")]
    {
        let path = format!("/api/v1/events{path}");
        let mut stream = Stream::open_with(&console, &path, header);
        assert!(stream.next_event().unwrap().is_gap(), "{path}");
        if !path.ends_with("4711") {
            assert!(!assert_arrive(&cluster, &mut stream).iter().any(Event::is_gap));
        }
    }
}

/// The type of content that openapi.yaml says an answer of `status` to a request of events has.
fn described(status: u16) -> &'static str {
    let part = |text: &'static str, heading: &str| {
        text.split_once(heading).unwrap_or_else(|| panic!("no{heading}")).1
    };
    let events = part(DESCRIPTION, "\n  /events:\n").split("\n  /").next().unwrap();
    let mut answer = part(events, &format!("\n        '{status}':"));
    // One line where others have it too.
    if let Some(name) = answer.strip_prefix(" {$ref: '#/components/responses/") {
        let name = name.split('\'').next().unwrap();
        answer = part(part(DESCRIPTION, "\n  responses:\n"), &format!("    {name}:\n"));
    }
    part(answer, "content:\n").trim_start().split(':').next().unwrap()
}

#[test]
fn streams_and_refusals_are_of_the_type_that_the_description_says() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    for (query, status) in [("", 200), ("?loader_id=1", 200), ("?loader_id=x", 400)] {
        let stream = Stream::open_with(&console, &format!("/api/v1/events{query}"), "");
        assert_eq!(stream.status, status, "{query}");
        assert_eq!(stream.content_type, described(status), "{query}");
    }
}

#[test]
fn what_others_notify_breaks_nothing() {
    let cluster = cluster();
    let console = live_console(&cluster);
    let mut stream = Stream::open(&console, "/api/v1/events");
    let mut anyone = cluster.connect_to("postgres", "dashboard");
    let event = json!({
        "event_type": "EXECUTION_SUCCESS", "execution_id": 4711, "loader_id": 9, "status": "SUCCESS",
        "event_time": "2026-11-23T20:52:27.123456Z", "record_count": 1, "duration_seconds": 1,
        "error_message": null, "truncated": false,
    });
    let with = |key: &str, value: Value| {
        let mut event = event.clone();
        event[key] = value;
        event.to_string()
    };
    let mut forged = vec![
        String::new(),
        "x".to_owned(),
        "null".to_owned(),
        "17".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        r#"{"loader_id": 1}"#.to_owned(),
        r#"{"loader_id": 1, "loader_id": 2}"#.to_owned(),
        "\n\ndata: {}\n\nevent: gap\ndata: {}\n\n".to_owned(),
        "\r\rretry: 1\r\r".to_owned(),
        "[".repeat(7_990),
        format!("\"{}\"", "🦀".repeat(1_900)),
        with("loader_id", json!("1")),
        with("loader_id", json!(1.5)),
        with("loader_id", json!(u64::MAX)),
        with("execution_id", json!([1])),
        with("event_type", json!("EXECUTION_EXPLODED")),
        with("event_time", json!("yesterday")),
        with("status", json!(null)),
    ];
    // What is JSON though it has line ends is one event.
    let lines = serde_json::to_string_pretty(&event).unwrap();
    forged.extend([lines.replace('\n', "\r"), lines.replace('\n', "\r\n"), lines.clone()]);
    for payload in &forged {
        anyone.execute("SELECT pg_notify('loader_execution', $1)", &[payload]).unwrap();
    }
    let id = succeed(&mut Session::new(&cluster, "postgres"), 1, 7);
    let events = stream.read_until(|event| event.is_end_of(id));
    let events = payloads(&events);
    assert_eq!(events[..3], [event.clone(), event.clone(), event]);
    assert_eq!(events.len(), 5);
    assert!(events[3..].iter().all(|event| event["execution_id"] == id));
    for path in ["/", "/loaders", "/executions", "/api/v1/failed-loaders/counts"] {
        assert_eq!(console.get(path).status, 200);
    }
}

#[test]
fn more_streams_than_allowed_are_refused_until_one_closes() {
    let cluster = cluster();
    let console = Console::start_live(&cluster, &["--max-streams", "3"]);
    let mut streams = vec![
        Stream::open(&console, "/api/v1/events"),
        Stream::open(&console, "/changes"),
        Stream::open(&console, "/api/v1/events?loader_id=1"),
    ];
    for path in ["/api/v1/events", "/changes"] {
        let refused = console.get(path);
        assert_eq!(refused.status, 503);
        assert_eq!(refused.header("retry-after"), "5");
        assert!(refused.body.contains("Too many streams"), "{}", refused.body);
    }
    assert_eq!(console.get("/").status, 200);
    // HEAD and bad requests take no place.
    streams.pop();
    wait_for("the place", || console.request("HEAD", "/api/v1/events", &[]).status == 200);
    assert_eq!(console.get("/api/v1/events?loader_id=x").status, 400);
    wait_for("the place", || Stream::open_with(&console, "/api/v1/events", "").status == 200);
}

#[test]
fn sigterm_ends_the_streams_and_the_console() {
    let cluster = cluster();
    let console = Console::start_live(&cluster, &[]);
    let mut streams =
        vec![Stream::open(&console, "/api/v1/events"), Stream::open(&console, "/changes")];
    // One that reads nothing, and one that has asked for nothing yet.
    let _mute = Stream::open(&console, "/api/v1/events");
    let _idle = TcpStream::connect(console.address()).unwrap();
    let began = Instant::now();
    assert!(console.stop(), "it ends well");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    for stream in &mut streams {
        while stream.next_event().is_some() {}
    }
}

#[test]
fn a_console_that_starts_before_its_database_recovers() {
    let mut cluster = cluster();
    cluster.stop_server();
    let console = Console::start(&cluster);
    assert_eq!(console.get("/api/v1/health").status, 503);
    let mut stream = Stream::open(&console, "/api/v1/events");
    cluster.start_server();
    assert!(stream.next_event().unwrap().is_gap());
    assert_arrive(&cluster, &mut stream);
    assert_eq!(console.get("/").status, 200);
}

#[test]
fn over_a_standby_pages_are_read_and_say_that_they_are_not_live() {
    let primary = cluster();
    let standby = primary.start_standby();
    let console = Console::start(&standby);
    let not_live = json!({ "database": "ok", "live_events": false });
    wait_for_equal("the refusal", &1, || console.log().matches("no live events").count());
    let mut stream = Stream::open(&console, "/api/v1/events");
    let id = fail(&mut Session::new(&primary, "postgres"), 3, "seen on the standby");
    wait_for("the failure", || console.get("/").body.contains("seen on the standby"));
    let page = console.get("/loaders/3");
    assert!(page.body.contains("data-live=\"false\""), "{}", page.body);
    assert_eq!(console.json("/api/v1/executions")["executions"][0]["id"], id);
    assert_eq!(console.json("/api/v1/health"), not_live);
    assert_eq!(console.log().matches("no live events").count(), 1, "said once: {}", console.log());
    // Promoted, it gives events.
    standby.promote();
    assert!(stream.read_until(Event::is_gap).len() == 1);
    console.wait_until_live();
    assert_arrive(&standby, &mut stream);
}

/// A way to the database that can be cut as a network is: nobody hears of it.
struct Network {
    port: u16,
    is_cut: Arc<AtomicBool>,
    /// Whether notifications get lost, as behind a pooler that gives each transaction another connection.
    swallows: Arc<AtomicBool>,
}

impl Network {
    fn to(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_cut = Arc::new(AtomicBool::new(false));
        let swallows = Arc::new(AtomicBool::new(false));
        let swallowing = swallows.clone();
        let (cut, socket) = (is_cut.clone(), cluster.directory().join(".s.PGSQL.5432"));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = UnixStream::connect(&socket) else { continue };
                // Connections that the cut has hit stay dead when it is mended.
                let dead = Arc::new(AtomicBool::new(false));
                let answers =
                    Answers { server: server.try_clone().unwrap(), swallows: swallowing.clone() };
                let ways: [(Box<dyn Read + Send>, Box<dyn Write + Send>); 2] = [
                    (Box::new(client.try_clone().unwrap()), Box::new(server)),
                    (Box::new(answers), Box::new(client)),
                ];
                for (from, to) in ways {
                    let (cut, dead) = (cut.clone(), dead.clone());
                    thread::spawn(move || pass(from, to, &cut, &dead));
                }
            }
        });
        Self { port, is_cut, swallows }
    }

    /// A console that reaches its database this way.
    fn console(&self, cluster: &Cluster) -> Console {
        Console::spawn(
            Console::command(cluster)
                .env("PGHOST", "127.0.0.1")
                .env("PGPORT", self.port.to_string())
                .env("PGSSLMODE", "disable"),
        )
    }
}

/// What the server says, message by message.
struct Answers {
    server: UnixStream,
    swallows: Arc<AtomicBool>,
}

impl Read for Answers {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let mut head = [0; 5];
            if self.server.read(&mut head[..1])? == 0 {
                return Ok(0);
            }
            self.server.read_exact(&mut head[1..])?;
            let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize + 1;
            assert!(length <= bytes.len(), "a message of {length} bytes");
            bytes[..5].copy_from_slice(&head);
            self.server.read_exact(&mut bytes[5..length])?;
            // NotificationResponse.
            if head[0] != b'A' || !self.swallows.load(Ordering::SeqCst) {
                return Ok(length);
            }
        }
    }
}

fn pass(mut from: impl Read, mut to: impl Write, is_cut: &AtomicBool, is_dead: &AtomicBool) {
    let mut bytes = vec![0; 1 << 20];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if is_cut.load(Ordering::SeqCst) {
            is_dead.store(true, Ordering::SeqCst);
        }
        while is_dead.load(Ordering::SeqCst) {
            thread::park();
        }
        if to.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

#[test]
fn a_network_that_is_cut_silently_is_noticed_and_left_behind() {
    let cluster = cluster();
    let network = Network::to(&cluster);
    let console = network.console(&cluster);
    console.wait_until_live();
    let mut stream = Stream::open(&console, "/api/v1/events");
    let mut session = Session::new(&cluster, "postgres");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'dashboard' AND wait_event_type = 'Lock'";
    for clients_stay in [true, false] {
        assert_arrive(&cluster, &mut stream);
        let told = console.log().matches("no live events").count();
        session.run("BEGIN; LOCK TABLE loader.execution_history");
        // All connections of the pool are in the middle of a statement.
        let mut clients: Vec<_> = (0..4)
            .map(|_| {
                let mut client = TcpStream::connect(console.address()).unwrap();
                client.write_all(b"GET /api/v1/executions HTTP/1.0\r\n\r\n").unwrap();
                client
            })
            .collect();
        wait_for_equal("statements", &vec![4], || column::<i64>(&mut cluster.connect(), waiting));
        network.is_cut.store(true, Ordering::SeqCst);
        session.run("COMMIT");
        for client in clients.drain(..).filter(|_| clients_stay) {
            let mut answer = String::new();
            (&client).read_to_string(&mut answer).unwrap();
            // On a slow machine the statement ends before the cut, which the console then hears of.
            assert!(["503", "504"].contains(&&answer[9..12]), "{answer}");
        }
        wait_for("the silence", || console.log().matches("no live events").count() > told);
        network.is_cut.store(false, Ordering::SeqCst);
        wait_for_equal("pages", &200, || console.get("/executions").status);
        assert!(stream.read_until(Event::is_gap).len() == 1);
    }
    assert_arrive(&cluster, &mut stream);
    let mut client = cluster.connect();
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'dashboard' AND state IS NOT NULL";
    assert!(column::<i64>(&mut client, sessions)[0] > 0);
}

#[test]
fn a_console_to_which_nothing_comes_does_not_say_that_it_is_live() {
    let cluster = cluster();
    let network = Network::to(&cluster);
    let is_live = |console: &Console| console.json("/api/v1/health")["live_events"] == true;
    network.swallows.store(true, Ordering::SeqCst);
    let console = network.console(&cluster);
    wait_for("the finding", || console.log().contains("what is notified does not arrive"));
    assert!(!is_live(&console) && !console.log().contains("live events arrive"));
    assert!(console.get("/").body.contains("data-live=\"false\""));
    network.swallows.store(false, Ordering::SeqCst);
    console.wait_until_live();
    let mut stream = Stream::open(&console, "/api/v1/events");
    assert_arrive(&cluster, &mut stream);
    // Without any event, and without an error.
    network.swallows.store(true, Ordering::SeqCst);
    wait_for("the silence", || !is_live(&console));
    network.swallows.store(false, Ordering::SeqCst);
    console.wait_until_live();

    let set = |value: &str| {
        let mut client = cluster.connect();
        let setting = format!("ALTER SYSTEM SET loader_history.notify = {value}");
        client.batch_execute(&setting).unwrap();
        client.batch_execute("SELECT pg_reload_conf()").unwrap();
    };
    set("off");
    wait_for("the setting", || console.log().contains("loader_history.notify is off"));
    assert!(!is_live(&console));
    set("on");
    console.wait_until_live();
    assert!(stream.read_until(Event::is_gap).len() < 10);
    assert_arrive(&cluster, &mut stream);
}

#[test]
fn a_connection_that_asks_for_nothing_is_closed() {
    let cluster = cluster();
    let console = Console::start_live(&cluster, &[]);
    for says in [
        "",
        "GET / HTTP/1.1\r\nHost: localhost\r\n",
        "GET /assets/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(console.address()).unwrap();
        client.set_read_timeout(Some(pg_test::TIMEOUT)).unwrap();
        client.write_all(says.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // It ends, with an answer or without.
        client.read_to_end(&mut answer).unwrap();
    }
}

#[test]
fn a_client_that_takes_nothing_gives_its_place_up() {
    let cluster = cluster();
    let console = Console::start_live(&cluster, &["--max-streams", "1"]);
    let mute = Stream::open(&console, "/api/v1/events");
    let burst = r#"SELECT count(pg_notify('loader_execution', json_build_object(
        'event_type', 'EXECUTION_SUCCESS', 'execution_id', n, 'loader_id', 1, 'status', 'SUCCESS',
        'event_time', '2026-11-23T20:52:27Z', 'error_message', repeat('x', 7000))::text))
        FROM generate_series(1, 1000) AS n"#;
    let mut client = cluster.connect();
    let mut bursts = 0;
    wait_for("the place", || {
        // More than the system keeps for it.
        if bursts < 20 {
            client.batch_execute(burst).unwrap();
            bursts += 1;
        }
        Stream::open_with(&console, "/api/v1/events", "").status == 200
    });
    drop(mute);
}
