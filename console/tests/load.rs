//! Promise: many streams and pages while loaders record cost the console a bounded memory, and a client that takes
//! nothing, or that is gone, costs the others nothing.
//!
//! `make console-load` runs a larger size.

mod support;

use std::collections::HashSet;
use std::fs;
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pg_test::{Cluster, Session, column, size, wait_for};
use socket2::{Domain, SockAddr, Socket, Type};
use support::sse::Stream;
use support::{Console, cluster, fail, succeed};

const PATHS: [&str; 6] = [
    "/",
    "/loaders",
    "/loaders/1",
    "/executions?status=FAILED",
    "/api/v1/activity",
    "/api/v1/failed-loaders/counts",
];

/// Growth of the console's memory over a run that is not taken for a leak, in kB.
const FLAT: u64 = 16 * 1024;

/// Streams of clients that read nothing.
const MUTE: usize = 10;

/// The part of the pages asked for that must have been answered, in percent: otherwise nothing was measured.
const ACHIEVED: u64 = 90;

/// Clients that take nothing may make the median of a page so many times longer.
const SLOWED: u32 = 3;

/// Keeps the tests of this file from each other: what one has the machine do is not what another measures.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The console's resident memory, in kB.
fn memory(console: &Console) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", console.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How many files, connections among them, the console has open.
fn open_files(console: &Console) -> usize {
    fs::read_dir(format!("/proc/{}/fd", console.pid())).unwrap().count()
}

/// A client that asks for `path` and then reads nothing, with little room for what arrives.
fn mute(console: &Console, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let address: std::net::SocketAddr = console.address().parse().unwrap();
    socket.connect(&SockAddr::from(address)).unwrap();
    let mut socket = TcpStream::from(socket);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
    socket
}

/// What a stream brought up to the first success of loader 10: the executions' events, and how many gaps.
fn drain(mut stream: Stream) -> (HashSet<(i64, String)>, usize, Stream) {
    let mut events = HashSet::new();
    let mut gaps = 0;
    loop {
        let event = stream.next_event().expect("the stream goes on");
        if event.is_gap() {
            gaps += 1;
            continue;
        }
        let id = event.data["execution_id"].as_i64().unwrap();
        let kind = event.data["event_type"].as_str().unwrap();
        events.insert((id, kind.to_owned()));
        if event.data["loader_id"] == 10 && kind == "EXECUTION_SUCCESS" {
            return (events, gaps, stream);
        }
    }
}

/// Every event that there was.
fn recorded(cluster: &Cluster) -> HashSet<(i64, String)> {
    let query = "SELECT execution_id || ' ' || event_type FROM loader.activity_feed";
    column::<String>(&mut cluster.connect(), query)
        .iter()
        .map(|event| event.split_once(' ').unwrap())
        .map(|(id, kind)| (id.parse().unwrap(), kind.to_owned()))
        .collect()
}

#[test]
fn streams_and_pages_while_loaders_record() {
    let _alone = alone();
    let seconds = size("CONSOLE_LOAD_SECONDS", 6);
    let count = usize::try_from(size("CONSOLE_LOAD_STREAMS", 50)).unwrap();
    let pages_a_second = size("CONSOLE_LOAD_PAGES", 20);
    let cluster = cluster();
    let console = Console::start_live(&cluster, &[]);
    succeed(&mut Session::new(&cluster, "postgres"), 1, 1);
    fail(&mut Session::new(&cluster, "postgres"), 2, "x");
    for path in PATHS.iter().cycle().take(60) {
        assert_eq!(console.get(path).status, 200, "{path}");
    }
    let files_before = open_files(&console);
    let earlier = recorded(&cluster);
    let mute: Vec<_> = (0..MUTE).map(|_| mute(&console, "/api/v1/events")).collect();
    let streams: Vec<_> = (0..count).map(|_| Stream::open(&console, "/api/v1/events")).collect();
    wait_for("the streams", || open_files(&console) >= files_before + count + MUTE - 4);

    let took = Mutex::new(Vec::new());
    let until = Instant::now() + Duration::from_secs(seconds);
    let (warm, drained) = thread::scope(|scope| {
        let (console, cluster, took) = (&console, &cluster, &took);
        let readers: Vec<_> =
            streams.into_iter().map(|stream| scope.spawn(move || drain(stream))).collect();
        let loaders = [1, 2, 3, 4].map(|loader| {
            scope.spawn(move || {
                let mut session = Session::new(cluster, "postgres");
                while Instant::now() < until {
                    if loader % 2 == 0 {
                        fail(&mut session, loader, "no <warehouse> 🦀");
                    } else {
                        succeed(&mut session, loader, 1000);
                    }
                    thread::sleep(Duration::from_millis(80));
                }
            })
        });
        let readers_of_pages = 8;
        for reader in 0..readers_of_pages {
            scope.spawn(move || {
                let pace =
                    Duration::from_secs(readers_of_pages) / u32::try_from(pages_a_second).unwrap();
                let mut next = Instant::now();
                for path in PATHS.iter().cycle().skip(usize::try_from(reader).unwrap()) {
                    if next > until {
                        return;
                    }
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += pace;
                    let asked = Instant::now();
                    assert_eq!(console.get(path).status, 200, "{path}");
                    took.lock().unwrap().push(asked.elapsed());
                }
            });
        }
        thread::sleep(Duration::from_secs(seconds) / 3);
        let warm = memory(console);
        for loader in loaders {
            loader.join().unwrap();
        }
        succeed(&mut Session::new(cluster, "postgres"), 10, 1);
        let drained: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        (warm, drained)
    });
    let end = memory(&console);
    let mut expected = recorded(&cluster);
    expected.retain(|event| !earlier.contains(event));
    let mut gaps = 0;
    for (events, told, _) in &drained {
        gaps += told;
        assert!(
            *told > 0 || *events == expected,
            "a stream without a gap has {} of {} events",
            events.len(),
            expected.len()
        );
    }
    let mut took = took.into_inner().unwrap();
    took.sort_unstable();
    let quantile =
        |part: usize| format!("{:.1} ms", took[(took.len() - 1) * part / 1000].as_secs_f64() * 1e3);
    let delivered: usize = drained.iter().map(|(events, ..)| events.len()).sum();
    let report = [
        ("streams, beside which that read nothing", format!("{count}, {MUTE}")),
        ("seconds", seconds.to_string()),
        ("events", expected.len().to_string()),
        ("delivered to streams, gaps told", format!("{delivered}, {gaps}")),
        ("pages", took.len().to_string()),
        ("a page: median, p99, longest", [500, 990, 1000].map(quantile).join(", ")),
        ("memory after a third of the time, at the end", format!("{warm} kB, {end} kB")),
    ];
    for (name, value) in report {
        println!("| {name} | {value} |");
    }
    let asked = seconds * pages_a_second;
    let answered = u64::try_from(took.len()).unwrap();
    assert!(answered * 100 >= asked * ACHIEVED, "{answered} of {asked} pages");
    assert!(end < warm + FLAT, "memory grows from {warm} to {end} kB");
    drop(drained);
    drop(mute);
    wait_for("the connections to be closed", || open_files(&console) <= files_before + 4);
    assert_eq!(console.get("/").status, 200);
}

#[test]
fn a_burst_reaches_those_who_read_or_is_a_gap() {
    let _alone = alone();
    let cluster = cluster();
    let console = Console::start_live(&cluster, &[]);
    let _mute: Vec<_> = (0..MUTE).map(|_| mute(&console, "/api/v1/events")).collect();
    let streams: Vec<_> = (0..20).map(|_| Stream::open(&console, "/api/v1/events")).collect();
    wait_for("the streams", || open_files(&console) >= 20 + MUTE);
    let before = memory(&console);
    let burst = 20_000;
    let notify = format!(
        r#"SELECT count(pg_notify('loader_execution', json_build_object(
               'event_type', 'EXECUTION_SUCCESS', 'execution_id', n, 'loader_id', CASE n WHEN {burst} THEN 10 ELSE 1 END,
               'status', 'SUCCESS', 'event_time', '2026-11-23T20:52:27Z', 'error_message', repeat('x', 1000))::text))
             FROM generate_series(1, {burst}) AS n"#
    );
    let began = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> =
            streams.into_iter().map(|stream| scope.spawn(move || drain(stream))).collect();
        cluster.connect().batch_execute(&notify).unwrap();
        for reader in readers {
            let (events, gaps, _) = reader.join().unwrap();
            assert!(gaps > 0 || events.len() == burst, "{} events without a gap", events.len());
        }
    });
    println!(
        "| {burst} events at once, all of 20 streams at their end after | {:?} |",
        began.elapsed()
    );
    let after = memory(&console);
    println!("| memory before and after | {before} kB, {after} kB |");
    assert!(after < before + 2 * FLAT, "memory grows from {before} to {after} kB");
    assert_eq!(console.get("/").status, 200);
}

/// The median of what a page takes.
fn page(console: &Console) -> Duration {
    let mut took: Vec<_> = PATHS
        .iter()
        .cycle()
        .take(90)
        .map(|path| {
            let asked = Instant::now();
            assert_eq!(console.get(path).status, 200, "{path}");
            asked.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[took.len() / 2]
}

#[test]
fn clients_that_take_nothing_slow_no_page_down() {
    let _alone = alone();
    let cluster = cluster();
    let console = Console::start_live(&cluster, &[]);
    cluster
        .connect()
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, error_message)
             SELECT 1, now(), now(), 'FAILED', repeat('x', 8000) FROM generate_series(1, 3000)",
        )
        .unwrap();
    page(&console);
    let before = page(&console);
    let files = open_files(&console);
    let streams: Vec<_> = (0..100).map(|_| mute(&console, "/api/v1/events")).collect();
    let exports: Vec<_> = (0..16).map(|_| mute(&console, "/api/v1/executions.csv")).collect();
    wait_for("the clients", || open_files(&console) >= files + 100);
    let mut session = Session::new(&cluster, "postgres");
    // Until then the exports keep the machine busy, as those would that are taken.
    let active =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'dashboard' AND state = 'active'";
    let mut looks = 0;
    wait_for("the exports to stand still", || {
        looks = if column::<i64>(&mut session.client, active) == [0] { looks + 1 } else { 0 };
        looks == 20
    });
    for _ in 0..20 {
        fail(&mut session, 2, &"x".repeat(5000));
    }
    let after = page(&console);
    println!(
        "| a page's median without and with 116 clients that take nothing | {before:?}, {after:?} |"
    );
    assert!(after < before * SLOWED, "{before:?} became {after:?}");
    drop((streams, exports));
    wait_for("the connections to be closed", || open_files(&console) <= files + 4);
    assert_eq!(
        console.get("/api/v1/executions.csv?status=RUNNING").status,
        200,
        "its place is free"
    );
}
