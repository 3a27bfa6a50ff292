//! How long an event takes to a listener: from the moment that the call which committed it has returned.
//!
//! On an idle server one client starts and ends an execution now and then; under load several do so
//! without a pause. Every committed change must come exactly once. A listener may well have an event
//! before the loader has the answer of its call: such an event took less than nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;
use pg_test::measure::{Goal, quantile};
use pg_test::{Client, TIMEOUT};
use serde_json::Value;

use crate::charts::{Bars, Chart, number};
use crate::database::Database;
use crate::recorder::Recorder;
use crate::report::{Report, Row};
use crate::scale::Scale;
use crate::variant::Variant;

/// Whose events there are.
const VARIANTS: [Variant; 3] = [Variant::Notifying, Variant::Transactional, Variant::Autonomous];

/// Sessions that record under load.
const CLIENTS: usize = 8;

/// Between two executions on an idle server.
const PAUSE: Duration = Duration::from_millis(10);

/// Longer than an event takes that comes once too often.
const SURPLUS: Duration = Duration::from_millis(300);

/// Parts of all events, by name.
const PARTS: [(&str, f64); 4] = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)];

/// An execution's id, and the status that it has after the event.
type Event = (i64, String);

/// Measures it.
pub fn measure(scale: &Scale, database: &Database, report: &mut Report) -> Vec<Chart> {
    let loads: [(&'static str, &str, usize, Option<Duration>); 2] = [
        ("delivery-idle", "an idle server", 1, Some(PAUSE)),
        ("delivery-load", "8 clients record", CLIENTS, None),
    ];
    let mut charts = Vec::new();
    for (file, load, clients, pause) in loads {
        report.section(format!("Delivery of events in ms, {load}: p50, p95, p99, max"));
        let mut groups = Vec::new();
        for variant in VARIANTS {
            let delivered = deliver(database, variant, clients, pause, scale.listening);
            let parts = PARTS.map(|(_, part)| quantile(&delivered.milliseconds, part));
            let row = Row::new(
                format!(
                    "{}, {} events, {}/s",
                    variant.name(),
                    delivered.milliseconds.len(),
                    number(delivered.rate)
                ),
                parts.map(|part| format!("{part:.2}")).join(", "),
            );
            let ours = variant != Variant::Notifying && pause.is_some();
            let goal = ours.then_some(Goal::AtMost(100.0));
            report.add(row.goal_if_any("p99", goal, " ms", parts[2]));
            // A logarithmic axis has no place for what came at once.
            let bars = parts.map(|part| (part > 0.0).then_some(part));
            groups.push((variant.name().to_owned(), bars.into()));
        }
        charts.push(Chart::Bars(Bars {
            file: file.to_owned(),
            title: format!("Delivery of events in ms, {load}"),
            logarithmic: true,
            series: PARTS.map(|(name, _)| name.to_owned()).into(),
            groups,
        }));
    }
    charts
}

/// What a listener has seen.
struct Delivered {
    /// How long each event took, from the shortest to the longest.
    milliseconds: Vec<f64>,
    /// Events a second.
    rate: f64,
}

fn deliver(
    database: &Database,
    variant: Variant,
    clients: usize,
    pause: Option<Duration>,
    length: Duration,
) -> Delivered {
    let mut listener = database.connect();
    let channel = variant.channel().expect("events");
    listener.batch_execute(&format!("LISTEN {channel}")).expect("a listener");
    let mut recorders = Recorder::several(database, clients, &[variant]);
    recorders.iter_mut().for_each(|recorder| recorder.set(variant));

    let expected = &AtomicUsize::new(usize::MAX);
    let begun = Instant::now();
    let (committed, received, took) = thread::scope(|scope| {
        let listening = scope.spawn(|| listen(&mut listener, expected));
        let sessions: Vec<_> = recorders
            .iter_mut()
            .map(|recorder| scope.spawn(move || record(recorder, variant, pause, length)))
            .collect();
        let committed: Vec<_> =
            sessions.into_iter().flat_map(|session| session.join().expect("a session")).collect();
        let took = begun.elapsed();
        expected.store(committed.len(), Ordering::Release);
        (committed, listening.join().expect("the listener"), took)
    });

    let count = committed.len();
    let mut committed: HashMap<Event, Instant> = committed.into_iter().collect();
    assert_eq!(committed.len(), count, "{variant:?}: every change is another");
    let mut milliseconds: Vec<_> = received
        .into_iter()
        .map(|(payload, at)| {
            let event = event(&payload);
            let returned = committed.remove(&event);
            let returned = returned
                .unwrap_or_else(|| panic!("{variant:?}: an event of nothing, or twice: {payload}"));
            match at.checked_duration_since(returned) {
                Some(late) => late.as_secs_f64() * 1_000.0,
                None => -returned.duration_since(at).as_secs_f64() * 1_000.0,
            }
        })
        .collect();
    assert!(committed.is_empty(), "{variant:?}: {} events have not come", committed.len());
    milliseconds.sort_unstable_by(f64::total_cmp);
    Delivered { milliseconds, rate: count as f64 / took.as_secs_f64() }
}

/// Records for as long as `length`, and returns what was committed, and when the call returned.
fn record(
    recorder: &mut Recorder,
    variant: Variant,
    pause: Option<Duration>,
    length: Duration,
) -> Vec<(Event, Instant)> {
    let mut committed = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < length {
        let execution_id = recorder.start(variant);
        committed.push(((execution_id, "RUNNING".to_owned()), Instant::now()));
        pause.into_iter().for_each(thread::sleep);
        recorder.end(variant, execution_id);
        committed.push(((execution_id, "SUCCESS".to_owned()), Instant::now()));
        pause.into_iter().for_each(thread::sleep);
    }
    committed
}

/// Listens until as many events have come as are `expected`, and a while longer, or none comes any more.
fn listen(client: &mut Client, expected: &AtomicUsize) -> Vec<(String, Instant)> {
    let mut received = Vec::new();
    let mut last = Instant::now();
    loop {
        let mut notifications = client.notifications();
        let mut arriving = notifications.timeout_iter(SURPLUS);
        while let Some(notification) = arriving.next().expect("a connection") {
            last = Instant::now();
            received.push((notification.payload().to_owned(), last));
        }
        if received.len() >= expected.load(Ordering::Acquire) || last.elapsed() > TIMEOUT {
            return received;
        }
    }
}

fn event(payload: &str) -> Event {
    let value: Value = serde_json::from_str(payload).expect("JSON");
    let execution_id = value["execution_id"].as_i64().expect("an id");
    (execution_id, value["status"].as_str().expect("a status").to_owned())
}
