//! Promise: in a real browser pages show what the views say, move by themselves while loaders record, and
//! can be used by everybody: with a keyboard alone, a screen reader, a phone, in the dark.

mod support;

use pg_test::{Client, Cluster, Session, Signal, column};
use serde_json::{Value, json};
use support::browser::{Browser, Colors};
use support::{Console, cluster, fail, one, start, succeed};

/// Keys, as WebDriver names them.
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

/// What there is to look at: ended executions of four loaders over two days, durations of all lengths.
const PAST: &str = "
    INSERT INTO loader.execution_history
        (loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds)
    SELECT loader, start, start + took, CASE WHEN failed THEN 'FAILED' ELSE 'SUCCESS' END,
        CASE WHEN failed THEN 0 ELSE 1000 * n + loader END, CASE WHEN failed THEN 'timeout of run ' || n END,
        extract(epoch FROM took)
    FROM generate_series(1, 4) AS loader, generate_series(1, 60) AS n,
        LATERAL (SELECT now() - n * interval '50 min' - loader * interval '1 min' AS start,
            interval '1.234 s' * (n % 7 + loader) AS took, n % (loader + 3) = 1 AND loader < 4 AS failed) AS run;
    ";

/// Counts the changes that the page is told of.
const COUNT_TICKS: &str =
    "source.addEventListener('change', () => { window.ticks = (window.ticks ?? 0) + 1; })";

/// The value of a JavaScript expression in the page, with times as they are exactly rather than how long ago
/// they were. Both at once: a page that moves in between would say that again.
fn exactly(browser: &Browser, expression: &str) -> Vec<String> {
    let value = browser.value(&format!(
        "(document.querySelectorAll('time[title]').forEach((time) => {{
            time.removeAttribute('data-ago'); time.textContent = time.title.replace(' UTC', '');
        }}), {expression})"
    ));
    serde_json::from_value(value).unwrap()
}

fn fill(cluster: &Cluster) {
    cluster.connect().batch_execute(PAST).unwrap();
}

/// What the login of the console sees.
fn reader(cluster: &Cluster) -> Client {
    cluster.connect_to("postgres", "dashboard")
}

#[test]
fn the_overview_moves_by_itself() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    browser.go("/");
    browser.wait_for_text("#live", "Live");
    assert!(!browser.has("#running"), "nothing runs yet");

    let mut loader = Session::new(&cluster, "postgres");
    let id = start(&mut loader, 3);
    let row = format!("#running-{id}");
    browser.wait(&format!("document.querySelector('{row}')"));
    browser.wait_for_text(&format!("{row} th"), "Loader 3");
    browser.wait_for_text(
        &format!("#event-{id}-EXECUTION_STARTED .message"),
        "Execution 1 of loader 3 started",
    );

    // Its duration ticks, though nothing happens.
    let duration = format!("document.querySelector('{row} [data-running-since]').innerText");
    let shown = browser.string(&duration);
    browser.wait(&format!("{duration} !== '{shown}'"));
    browser.wait(&format!("/^([2-9]|[1-5][0-9]) s$|min/.test({duration})"));

    loader.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', 1245)"));
    browser.wait(&format!("!document.querySelector('{row}')"));
    let ended = format!("#event-{id}-EXECUTION_SUCCESS .message");
    browser.wait(&format!("document.querySelector('{ended}')"));
    let ended = browser.text(&ended).unwrap();
    assert!(ended.contains("Execution 1 of loader 3 succeeded: 1,245 records in"), "{ended}");

    // A load that dies of an error, and nobody reports it.
    loader.run("BEGIN");
    start(&mut loader, 4);
    loader.client.batch_execute("SELECT 1 / 0").unwrap_err();
    loader.run("ROLLBACK");
    browser.wait("document.querySelector('#failed-4')");
    let error = browser.text("#failed-4 .wide").unwrap();
    assert!(error.contains("division by zero"), "{error}");
    browser.wait_for_text("#failed-loaders", "1");
    fail(&mut loader, 5, "no such file");
    browser.wait_for_text("#failed-5 .error", "no such file");
    browser.wait_for_text("#failed-loaders", "2");

    succeed(&mut loader, 4, 1);
    browser.wait("!document.querySelector('#failed-4')");
    browser.wait_for_text("#failed-loaders", "1");
    assert_eq!(browser.text("#failed-loaders-24h").as_deref(), Some("2"), "it did fail");

    browser.go("/loaders");
    browser.wait("document.querySelectorAll('#loaders tbody tr').length === 3");
    fail(&mut loader, 10, "not there before");
    browser.wait_for_text("#loader-10 .status", "FAILED");
    browser.assert_clean();
}

#[test]
fn the_details_of_a_loader_move_by_themselves() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    let mut loader = Session::new(&cluster, "postgres");
    succeed(&mut loader, 7, 10);
    browser.go("/loaders/7");
    browser.wait_for_text("#live", "Live");
    browser.wait_for_text("#state", "Good");

    let id = start(&mut loader, 7);
    let row = format!("#execution-{id}");
    browser.wait(&format!("document.querySelector('{row}')"));
    browser.wait_for_text(&format!("{row} .status"), "RUNNING");
    browser.wait_for_text("#running-now", "1");

    let error = "column \"price\" is of type numeric\nLINE 3: VALUES ('twelve')";
    let end = "SELECT loader.record_execution_end($1, 'FAILED', NULL, $2)";
    loader.client.execute(end, &[&id, &error]).unwrap();
    browser.wait_for_text(&format!("{row} .status"), "FAILED");
    browser.wait_for_text("#state", "Failed");
    assert!(!browser.has(&format!("{row} details[open]")));
    browser.click(&format!("{row} summary"));
    browser.wait_for_text(&format!("{row} details[open] pre"), error);

    // It stays open, and the keyboard where it is, while the page moves.
    browser.wait(&format!("document.activeElement === document.querySelector('{row} summary')"));
    let next = succeed(&mut loader, 7, 20);
    browser.wait_for_text(&format!("#execution-{next} .status"), "SUCCESS");
    browser.wait_for_text("#state", "Good");
    browser.wait_for_text(&format!("{row} details[open] pre"), error);
    browser.wait(&format!("document.activeElement === document.querySelector('{row} summary')"));

    // What other loaders do is not shown.
    fail(&mut loader, 8, "another loader's");
    let last = succeed(&mut loader, 7, 30);
    browser.wait_for_text(&format!("#execution-{last} .status"), "SUCCESS");
    assert_eq!(browser.texts("#history tbody tr").len(), 4);
    browser.assert_clean();
}

#[test]
fn a_change_while_the_page_is_asked_for_is_not_missed() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    browser.go("/");
    browser.wait_for_text("#live", "Live");
    // Its own clock would find the change too.
    browser.value("document.querySelector('[data-stream]').dataset.every = 1e6");
    browser.value(COUNT_TICKS);
    let ticks = || browser.value("window.ticks ?? 0").as_i64().unwrap();

    // A lock that pages wait for, and no loader.
    let mut blocker = cluster.connect();
    let mut lock = blocker.transaction().unwrap();
    lock.batch_execute("ALTER VIEW loader.failed_loader_counts OWNER TO postgres").unwrap();
    let mut loader = Session::new(&cluster, "postgres");
    let first = start(&mut loader, 1);
    pg_test::wait_for("a request that waits", || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        column::<i64>(&mut loader.client, waiting) >= vec![1]
    });
    let before = ticks();
    let second = start(&mut loader, 2);
    pg_test::wait_for("the browser to be told", || ticks() > before);
    lock.rollback().unwrap();
    for id in [first, second] {
        browser.wait(&format!("document.querySelector('#running-{id}')"));
    }
    browser.assert_clean();
}

#[test]
fn an_open_page_asks_once_a_change_however_long_it_is_open() {
    let cluster = cluster();
    fill(&cluster);
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    let mut loader = Session::new(&cluster, "postgres");
    for path in ["/", "/loaders", "/loaders/1", "/executions"] {
        browser.go(path);
        browser.wait_for_text("#live", "Live");
        browser.value(COUNT_TICKS);
        browser.value("document.body.addEventListener('htmx:beforeRequest', () => { window.asked = (window.asked ?? 0) + 1; })");
        let mut listeners = 0;
        for n in 0..8 {
            let made = browser.string("document.getElementById('made').dataset.made");
            succeed(&mut loader, 1, n);
            browser.wait(&format!("document.getElementById('made').dataset.made !== '{made}'"));
            if n == 0 {
                listeners = browser.listeners();
            }
        }
        let asked = browser.value("window.asked ?? 0").as_i64().unwrap();
        let ticks = browser.value("window.ticks ?? 0").as_i64().unwrap();
        // And by its clock, every 15 seconds.
        assert!((5..=ticks + 2).contains(&asked), "{path}: {asked} requests, {ticks} changes");
        // A request that is under way has some.
        pg_test::wait_for("as many listeners as before", || browser.listeners() <= listeners + 3);
    }
    browser.assert_clean();
}

#[test]
fn nothing_is_asked_for_a_page_that_nobody_looks_at() {
    let cluster = cluster();
    let console = Console::start_live(&cluster, &["--max-streams", "1"]);
    let browser = Browser::open(&console);
    let look = |away: bool| {
        browser.value(&format!(
            "Object.defineProperty(document, 'hidden', {{ value: {away}, configurable: true }}) \
             && document.dispatchEvent(new Event('visibilitychange'))"
        ));
    };
    browser.go("/");
    browser.wait_for_text("#live", "Live");
    browser.wait("source.readyState === EventSource.OPEN");
    // The stream's first event has it ask, which could bring what starts below.
    browser.wait("document.getElementById('made').dataset.made !== document.body.dataset.made");
    look(true);
    // It leaves its place to others.
    pg_test::wait_for("the place", || {
        support::sse::Stream::open_with(&console, "/changes", "").status == 200
    });
    let id = start(&mut Session::new(&cluster, "postgres"), 1);
    browser.value("window.from = Date.now()");
    browser.wait("Date.now() > window.from + 3000");
    assert!(!browser.has("#running"));
    look(false);
    browser.wait(&format!("document.querySelector('#running-{id}')"));
    browser.wait_for_text("#live", "Live");
    browser.wait("source?.readyState === EventSource.OPEN");
}

#[test]
fn failures_are_said_and_counted_in_the_title() {
    let cluster = cluster();
    let mut loader = Session::new(&cluster, "postgres");
    fail(&mut loader, 1, "seen when the page was opened");
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    let title = |begin: &str| browser.wait(&format!("document.title.startsWith('{begin}')"));
    browser.go("/");
    browser.wait_for_text("#live", "Live");
    title("(1) Overview");
    assert_eq!(browser.text("#announced").as_deref(), Some(""));
    succeed(&mut loader, 3, 1);
    fail(&mut loader, 2, "no such file");
    title("(2) Overview");
    browser.wait(r"/of loader 2 failed after \d+ s: no such file/.test(document.getElementById('announced').textContent)");
    succeed(&mut loader, 1, 1);
    succeed(&mut loader, 2, 1);
    title("Overview");
    browser.go("/loaders/2");
    browser.wait_for_text("#live", "Live");
    let id = fail(&mut loader, 2, "again");
    browser.wait_for_text("#announced", &format!("Execution {id} failed"));
    browser.assert_clean();
}

#[test]
fn the_overview_says_what_is_wrong_with_the_recorder() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    pg_test::wait_for("a worker", || {
        browser.go("/");
        !browser.has("#wrong")
    });
    let key = one(
        &mut cluster.connect(),
        "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid = 'loader.execution_history'::regclass",
    );
    cluster
        .connect()
        .batch_execute(&format!("ALTER TABLE loader.execution_history DROP CONSTRAINT {key}"))
        .unwrap();
    browser.wait("document.querySelector('#wrong')");
    let wrong = browser.text("#wrong").unwrap();
    assert!(wrong.contains("The foreign key to loader.loader is not there"), "{wrong}");
    assert_eq!(browser.violations(), [""; 0]);
    browser.assert_clean();
}

#[test]
fn durations_of_what_runs_never_step_back() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    let mut loader = Session::new(&cluster, "postgres");
    let id = start(&mut loader, 3);
    browser.go("/");
    browser.wait_for_text("#live", "Live");
    browser.value(&format!(
        "new MutationObserver(() => {{
            const text = document.querySelector('#running-{id} [data-running-since]')?.textContent;
            if (text && text !== (window.said ??= []).at(-1)) window.said.push(text);
        }}).observe(document.body, {{ subtree: true, childList: true, characterData: true, attributes: true }})"
    ));
    for n in 0..5 {
        let made = browser.string("document.getElementById('made').dataset.made");
        succeed(&mut loader, 1, n);
        browser.wait(&format!("document.getElementById('made').dataset.made !== '{made}'"));
    }
    browser.wait("window.said?.length > 3");
    let said: Vec<String> = serde_json::from_value(browser.value("window.said")).unwrap();
    let seconds: Vec<u32> =
        said.iter().filter_map(|text| text.strip_suffix(" s")?.parse().ok()).collect();
    assert!(seconds.len() > 3 && seconds.is_sorted(), "{said:?}");
}

#[test]
fn a_time_with_an_offset_is_one_that_the_form_can_send_again() {
    let cluster = cluster();
    fill(&cluster);
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    browser.go("/executions?from=2026-01-01T03:00:00%2B05:00");
    assert_eq!(
        browser.string("document.querySelector('[name=from]').getAttribute('value')"),
        "2025-12-31T22:00:00"
    );
    browser.click(".filter button");
    browser.wait("location.search.includes('from=2025-12-31T22')");
    assert_eq!(browser.texts("#history tbody tr").len(), 50);
}

#[test]
fn executions_are_filtered_paged_and_exported() {
    let cluster = cluster();
    fill(&cluster);
    let mut reader = reader(&cluster);
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    let ids = |browser: &Browser| browser.texts("#history tbody td:last-child");
    let mut expected = |condition: &str| -> Vec<String> {
        let query = format!(
            "SELECT id::text FROM loader.execution_details WHERE loader_id = 2 AND {condition} \
             ORDER BY execution_start DESC, id DESC"
        );
        column(&mut reader, &query)
    };

    browser.go("/loaders/2");
    let all = expected("true");
    assert_eq!(all.len(), 60);
    assert_eq!(ids(&browser), all[..50]);
    browser.click("a[rel=next]");
    browser.wait("location.search.includes('cursor=')");
    assert_eq!(ids(&browser), all[50..]);
    assert!(!browser.has("a[rel=next]"), "that was the last page");
    browser.click("a[rel=first]");
    browser.wait("!location.search.includes('cursor=')");
    assert_eq!(ids(&browser), all[..50]);

    browser.fill("status", "FAILED");
    browser.click(".filter button");
    browser.wait("location.search.includes('status=FAILED')");
    let failed = expected("status = 'FAILED'");
    assert!(!failed.is_empty());
    assert_eq!(ids(&browser), failed);
    assert_eq!(browser.value("document.querySelector('[name=status]').value"), "FAILED");
    let file = browser.download(".csv");
    assert_eq!(file, console.get("/api/v1/loaders/2/executions.csv?status=FAILED").body);
    assert_eq!(file.lines().count(), failed.len() + 1, "a header and the rows");

    let hour = |hours: i32| {
        one(
            &mut cluster.connect(),
            &format!(
                "SELECT to_char((now() - interval '{hours} hours') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')"
            ),
        )
    };
    let (from, before) = (hour(30), hour(10));
    browser.fill("from", &from);
    browser.fill("before", &before);
    browser.click(".filter button");
    browser.wait("location.search.includes('from=2')");
    let between = expected(&format!(
        "status = 'FAILED' AND execution_start >= '{from}Z' AND execution_start < '{before}Z'"
    ));
    assert!(!between.is_empty() && between.len() < failed.len());
    assert_eq!(ids(&browser), between);
    assert_eq!(browser.download(".csv").lines().count(), between.len() + 1);

    browser.click("form a[href='?']");
    browser.wait("location.search === ''");
    assert_eq!(ids(&browser), all[..50]);

    // Pages of what is filtered, and back.
    browser.go("/executions?status=SUCCESS");
    let newest = ids(&browser);
    assert_eq!(newest.len(), 50);
    browser.click("a[rel=next]");
    browser.wait("location.search.includes('cursor=')");
    assert_ne!(ids(&browser), newest);
    assert!(browser.texts("#history .status").iter().all(|status| status == "SUCCESS"));
    browser.click("a[rel=first]");
    browser.wait("!location.search.includes('cursor=')");
    assert_eq!(ids(&browser), newest);

    browser.go("/loaders/2?status=RUNNING");
    assert_eq!(browser.text("main .empty").as_deref(), Some("No execution matches the filter."));
    browser.assert_clean();
}

#[test]
fn numbers_are_those_of_the_views() {
    let cluster = cluster();
    fill(&cluster);
    let mut loader = Session::new(&cluster, "postgres");
    fail(&mut loader, 1, "one");
    fail(&mut loader, 1, "two");
    fail(&mut loader, 5, "never good");
    start(&mut loader, 3);
    start(&mut loader, 6);
    let mut reader = reader(&cluster);
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    let time = |column: &str| {
        format!("coalesce(to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), 'never')")
    };
    let cells = |table: &str, columns: &[usize]| -> Vec<String> {
        let cells = columns.iter().map(|column| format!(".children[{column}].innerText.trim()"));
        let cells: Vec<_> = cells.map(|cell| format!("row{cell}")).collect();
        let rows = format!(
            "[...document.querySelectorAll('{table} tbody tr')].map((row) => [{}].join('|'))",
            cells.join(",")
        );
        exactly(&browser, &rows)
    };

    browser.go("/");
    for (tile, count) in [
        ("#failed-loaders", "failed_loaders"),
        ("#failed-loaders-24h", "failed_loaders_24h"),
        ("#failed-executions-24h", "failed_executions_24h"),
    ] {
        // In the tile's link, where it is one.
        let expected =
            one(&mut reader, &format!("SELECT {count} FROM loader.failed_loader_counts"));
        assert_ne!(expected, "0");
        assert_eq!(browser.text(tile), Some(expected), "{tile}");
    }
    let running = "SELECT count(*) FROM loader.execution_details WHERE is_running";
    let running = one(&mut reader, running);
    assert_ne!(running, "0");
    assert_eq!(browser.text("#running-executions"), Some(running));
    let trend = one(
        &mut reader,
        "SELECT failed_loaders_24h - failed_loaders_previous_24h FROM loader.failed_loader_counts",
    );
    assert_eq!(
        browser.text(".tile .hint"),
        Some(format!("{trend} more than in the 24 hours before"))
    );
    let failed = format!(
        "SELECT concat_ws('|', 'Loader ' || loader_id, {}, consecutive_failures, {}, last_error_message)
         FROM loader.loader_summary WHERE is_failed ORDER BY last_failure_at DESC",
        time("last_failure_at"),
        time("last_success_at")
    );
    let expected: Vec<String> = column(&mut reader, &failed);
    assert!(expected.len() >= 2);
    assert_eq!(cells("#failed", &[0, 1, 2, 3, 4]), expected);
    let running = format!(
        "SELECT concat_ws('|', 'Loader ' || loader_id, id, {}) FROM loader.execution_details
         WHERE is_running ORDER BY execution_start DESC",
        time("execution_start")
    );
    assert_eq!(cells("#running", &[0, 1, 2]), column::<String>(&mut reader, &running));
    let feed = format!(
        "SELECT {} || ' ' || message FROM loader.activity_feed
         ORDER BY event_time DESC, execution_id DESC LIMIT 50",
        time("event_time")
    );
    let events = "[...document.querySelectorAll('#activity li')].map((event) => event.innerText.trim().replace(/\\n/g, ' '))";
    assert_eq!(exactly(&browser, events), column::<String>(&mut reader, &feed));

    browser.go("/loaders");
    let summary = format!(
        "SELECT concat_ws('|', 'Loader ' || loader_id, CASE WHEN is_failed THEN 'FAILED' ELSE last_status END, {}, {}, {},
             running_executions)
         FROM loader.loader_summary ORDER BY loader_id",
        time("last_execution_start"),
        time("last_success_at"),
        time("last_failure_at")
    );
    assert_eq!(cells("#loaders", &[0, 1, 2, 3, 4, 5]), column::<String>(&mut reader, &summary));

    for id in [1, 3] {
        browser.go(&format!("/loaders/{id}"));
        let history = format!(
            "SELECT concat_ws('|', {}, status, CASE WHEN is_running THEN '' ELSE to_char(record_count, 'FM999,999,999') END,
                 coalesce(error_message, ''), id)
             FROM loader.execution_details WHERE loader_id = {id} ORDER BY execution_start DESC, id DESC LIMIT 50",
            time("execution_start")
        );
        let rows = cells("#history", &[0, 1, 2, 4, 5]);
        assert_eq!(rows, column::<String>(&mut reader, &history));
        // None of these lasts a minute.
        let durations = format!(
            "SELECT to_char(round(extract(epoch FROM duration), 1), 'FM990.0') || ' s'
             FROM loader.execution_details WHERE loader_id = {id} AND NOT is_running
             ORDER BY execution_start DESC, id DESC LIMIT 49"
        );
        let shown: Vec<_> = cells("#history", &[1, 3])
            .iter()
            .filter_map(|row| row.split_once('|'))
            .filter(|(status, _)| *status != "RUNNING")
            .map(|(_, duration)| duration.to_owned())
            .take(49)
            .collect();
        assert_eq!(shown, column::<String>(&mut reader, &durations));
        let tiles = format!(
            "SELECT concat_ws('|', running_executions, consecutive_failures) FROM loader.loader_summary
             WHERE loader_id = {id}"
        );
        let shown = browser.texts("#running-now, #failures").join("|");
        assert_eq!(shown, one(&mut reader, &tiles));
        let ended = format!(
            "SELECT count(*) FROM loader.execution_details WHERE loader_id = {id} AND NOT is_running"
        );
        let points =
            browser.value("JSON.parse(document.querySelector('#chart').dataset.points).length");
        assert_eq!(points.to_string(), one(&mut reader, &ended));
    }
    browser.assert_clean();
}

#[test]
fn the_chart_is_drawn_in_both_colors_and_moves() {
    let cluster = cluster();
    fill(&cluster);
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    // Pixels of the chart that have the color of a style's variable.
    let pixels = |variable: &str| {
        let count = browser.value(&format!(
            "(() => {{
                const probe = document.body.appendChild(document.createElement('span'));
                probe.style.color = 'var({variable})';
                const [red, green, blue] = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
                probe.remove();
                const canvas = document.querySelector('#plot canvas');
                const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
                copy.drawImage(canvas, 0, 0);
                const {{ data }} = copy.getImageData(0, 0, canvas.width, canvas.height);
                let count = 0;
                for (let i = 0; i < data.length; i += 4)
                    if (data[i] === red && data[i + 1] === green && data[i + 2] === blue && data[i + 3] === 255) count++;
                return count;
            }})()"
        ));
        count.as_u64().unwrap()
    };
    browser.set_colors(Colors::Light);
    browser.go("/loaders/1");
    browser.wait("document.querySelector('#plot canvas')");
    pg_test::wait_for("a chart", || pixels("--good") > 100 && pixels("--bad") > 100);
    browser.set_colors(Colors::Dark);
    pg_test::wait_for("a dark chart", || pixels("--good") > 100 && pixels("--bad") > 100);

    let described = "document.querySelector('#chart').getAttribute('aria-label')";
    let before = browser.string(described);
    fail(&mut Session::new(&cluster, "postgres"), 1, "once more");
    browser.wait(&format!("{described} !== '{before}'"));
    assert_eq!(
        before,
        "60 executions, 15 of them failed; from 1.2 s to 8.6 s, half of them in 4.9 s or less"
    );
    let after = browser.string(described);
    let shortest = one(
        &mut cluster.connect(),
        "SELECT to_char(round(extract(epoch FROM min(duration)), 1), 'FM990.0')
         FROM loader.execution_details WHERE loader_id = 1",
    );
    let begin = format!("61 executions, 16 of them failed; from {shortest} s to ");
    assert!(after.starts_with(&begin), "{after}, {begin}");
    assert_eq!(browser.text("#charted"), Some(browser.string(described)));
    assert!(pixels("--good") > 100 && pixels("--bad") > 100);
    // It follows the filter.
    browser.go("/loaders/1?status=FAILED");
    pg_test::wait_for("failures alone", || pixels("--good") == 0 && pixels("--bad") > 100);
    assert!(browser.string(described).starts_with("16 executions, 16 of them failed"));
    // Long ones are in units that people read.
    session_of_hours(&cluster);
    browser.go("/loaders/6");
    browser.wait("plot?.axes[1]._values?.some((label) => label.endsWith(' h 0 min'))");
    browser.assert_clean();
}

/// Executions of loader 6 that took hours.
fn session_of_hours(cluster: &Cluster) {
    cluster
        .connect()
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT 6, now() - n * interval '1 day', now() - n * interval '1 day' + n * interval '1 h', 'SUCCESS'
             FROM generate_series(1, 9) AS n",
        )
        .unwrap();
}

#[test]
fn pages_say_that_there_is_nothing() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    browser.go("/");
    let empty = browser.texts(".empty");
    assert_eq!(empty.len(), 3, "{empty:?}");
    assert_eq!(empty[..2], ["No loader fails.", "No loader runs."]);
    assert!(empty[2].starts_with("Nothing has happened yet."), "{empty:?}");
    assert_eq!(browser.text("#failed-loaders").as_deref(), Some("0"));
    for path in ["/loaders", "/executions"] {
        browser.go(path);
        assert_eq!(browser.texts(".empty"), ["No loader has been recorded yet."], "{path}");
    }
    browser.go("/loaders?failed=true");
    assert_eq!(browser.texts(".empty"), ["No loader fails."]);
    browser.assert_clean();

    // It may come.
    browser.go("/loaders/1");
    assert_eq!(browser.texts(".empty"), ["Loader 1 has no history yet."]);
    browser.wait_for_text("#live", "Live");
    let id = start(&mut Session::new(&cluster, "postgres"), 1);
    browser.wait(&format!("document.querySelector('#execution-{id}')"));
    browser.wait_for_text("#running-now", "1");
    browser.assert_clean();

    for (path, says) in [
        ("/loaders/one", "A loader's id is a whole number of 64 bits."),
        ("/nothing", "There is no page /nothing."),
        ("/executions?status=GOOD", "status is RUNNING, SUCCESS or FAILED."),
    ] {
        browser.go(path);
        assert_eq!(browser.text("#problem").as_deref(), Some(says), "{path}");
        assert!(!browser.has("#live"), "{path} does not move");
    }
}

#[test]
fn pages_say_that_the_database_is_away_and_go_on_when_it_is_back() {
    let mut cluster = cluster();
    let mut loader = Session::new(&cluster, "postgres");
    fail(&mut loader, 1, "before the outage");
    succeed(&mut loader, 1, 5);
    drop(loader);
    let console = Console::start(&cluster);
    let open = Browser::open(&console);
    let late = Browser::open(&console);
    open.go("/");
    open.wait_for_text("#live", "Live");
    let runs = start(&mut Session::new(&cluster, "postgres"), 2);
    open.wait(&format!("document.querySelector('#running-{runs}')"));
    open.assert_clean();
    assert_eq!(open.value("document.getElementById('as-of').hidden"), json!(true));

    cluster.stop_server();
    open.wait_for_text("#live", "Not live: The database does not answer. Try again soon.");
    // What is shown is as it was then, and nobody knows how long it ran.
    let as_of = open.text("#as-of").unwrap();
    assert!(as_of.starts_with("As of ") && as_of.len() == 14, "{as_of}");
    let duration = "document.querySelector('[data-running-since]').textContent";
    let shown = open.string(duration);
    open.value("window.asked = Date.now()");
    open.wait("Date.now() > window.asked + 2500");
    assert_eq!(open.string(duration), shown);
    assert!(open.has("#activity li"), "what is known stays");
    late.go("/loaders/1");
    late.wait_for_text("#problem", "The database does not answer. Try again soon.");

    cluster.start_server();
    open.wait_for_text("#live", "Live");
    assert_eq!(open.value("document.getElementById('as-of').hidden"), json!(true));
    late.wait_for_text("h1", "Loader 1");
    late.wait_for_text("#live", "Live");
    assert!(late.string("document.title").starts_with("Loader 1"));
    assert_eq!(late.text("#announced").as_deref(), Some(""), "no failure is new");
    pg_test::wait_for_worker(&mut cluster.connect());
    let mut loader = Session::new(&cluster, "postgres");
    let id = start(&mut loader, 1);
    open.wait(&format!("document.querySelector('#running-{id}')"));
    late.wait(&format!("document.querySelector('#execution-{id}')"));
    late.wait("document.querySelector('#plot canvas')");
    for browser in [open, late] {
        let scripts = browser.log().into_iter().filter(|entry| !entry.contains("503"));
        assert_eq!(scripts.collect::<Vec<_>>(), [""; 0], "nothing but that");
    }
}

#[test]
fn pages_say_that_the_console_is_away_and_go_on_when_it_is_back() {
    let cluster = cluster();
    let address = format!("127.0.0.1:{}", pg_test::free_port());
    let arguments = ["--listen", address.as_str()];
    let console = Console::start_with(&cluster, &arguments);
    let browser = Browser::open(&console);
    browser.go("/");
    browser.wait_for_text("#live", "Live");
    assert!(console.stop());
    let away = "Not live: the console does not answer";
    browser.wait_for_text("#live", away);
    // It stays said while the stream is tried again.
    browser.value(
        "window.said = [], source.addEventListener('error', () => \
         window.said.push(document.getElementById('live').textContent))",
    );
    browser.wait("window.said.length > 2");
    let said: Vec<String> = serde_json::from_value(browser.value("window.said")).unwrap();
    assert!(said.iter().all(|text| text == away), "{said:?}");
    let _console = Console::start_with(&cluster, &arguments);
    browser.wait_for_text("#live", "Live");
    let id = start(&mut Session::new(&cluster, "postgres"), 1);
    browser.wait(&format!("document.querySelector('#running-{id}')"));
}

#[test]
fn pages_say_that_a_dead_network_does_not_answer() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    browser.go("/");
    browser.wait_for_text("#live", "Live");
    // Longer than the console takes to answer, but not for ever.
    assert_eq!(browser.value("htmx.config.timeout"), 35_000);
    browser.value("htmx.config.timeout = 1000");
    let signal = |signal| pg_test::send_signal(console.pid().cast_signed(), signal);
    signal(Signal::SIGSTOP);
    browser.value("move()");
    browser.wait_for_text("#live", "Not live: the console does not answer");
    signal(Signal::SIGCONT);
    browser.wait_for_text("#live", "Live");
}

#[test]
fn durations_do_not_tick_on_pages_that_do_not_move() {
    let cluster = cluster();
    fill(&cluster);
    cluster
        .connect()
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, status)
             VALUES (1, now() - interval '100 days', 'RUNNING')",
        )
        .unwrap();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    // Whether it does when a week passes; at once, before a page that moves sets its clock.
    let ticks = "(() => {
        const shown = () => document.querySelector('[data-running-since]').textContent, before = shown();
        offset += 7 * 86400 * 1000;
        tick();
        return shown() !== before;
    })()";
    browser.go("/loaders/1?status=RUNNING");
    assert_eq!(browser.value(ticks), true);
    browser.go("/loaders/1");
    browser.click("a[rel=next]");
    browser.wait("location.search.includes('cursor=')");
    assert_eq!(browser.value(ticks), false);
    browser.assert_clean();
}

#[test]
fn the_keyboard_is_enough() {
    let cluster = cluster();
    fill(&cluster);
    fail(&mut Session::new(&cluster, "postgres"), 9, "a long story\nof two lines");
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    browser.go("/");
    browser.press(TAB);
    browser.wait("document.activeElement.matches('.skip') && document.activeElement.getBoundingClientRect().left >= 0");
    browser.press(ENTER);
    browser.wait("document.activeElement.id === 'content'");

    let tab_to = |css: &str| {
        for _ in 0..60 {
            browser.press(TAB);
            if browser.value(&format!("document.activeElement.matches('{css}')")) == json!(true) {
                let outline =
                    browser.string("getComputedStyle(document.activeElement).outlineStyle");
                assert_eq!(outline, "solid", "{css} shows that it has the focus");
                return;
            }
        }
        panic!("no way to {css}");
    };
    tab_to("#failed-9 summary");
    browser.press(ENTER);
    browser.wait_for_text("#failed-9 details[open] pre", "a long story\nof two lines");
    tab_to("#failed-9 pre");
    tab_to("#activity a");
    browser.press(ENTER);
    browser.wait("location.pathname === '/loaders/9'");

    tab_to("header a[href=\"/executions\"]");
    browser.press(ENTER);
    browser.wait("location.pathname === '/executions'");
    tab_to("select");
    // The first letter of its only option: one that comes late would choose anew.
    browser.press("F");
    tab_to(".filter button");
    browser.press(ENTER);
    browser.wait("location.search.includes('status=FAILED')");
    browser.assert_clean();
}

#[test]
fn after_the_skip_link_the_page_stays_where_it_is_while_it_moves() {
    let cluster = cluster();
    fill(&cluster);
    let mut loader = Session::new(&cluster, "postgres");
    for failing in 1..=10 {
        fail(&mut loader, failing, "long pages scroll");
    }
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    browser.resize(1280, 400);
    for path in [
        "/",
        "/loaders",
        "/loaders?failed=true",
        "/executions",
        "/executions?status=SUCCESS",
        "/loaders/1",
    ] {
        browser.go(path);
        browser.wait_for_text("#live", "Live");
        browser.press(TAB);
        browser.press(ENTER);
        browser.wait("location.hash === '#content'");
        browser.value("scrollTo(0, document.body.scrollHeight)");
        let scrolled = browser.value("scrollY").as_f64().unwrap();
        assert!(scrolled > 50.0, "{path} is too short: {scrolled}");
        let made = browser.string("document.getElementById('made').dataset.made");
        fail(&mut loader, 1, "moves it");
        browser.wait(&format!("document.getElementById('made').dataset.made !== '{made}'"));
        let now = browser.value("scrollY").as_f64().unwrap();
        assert!(now > scrolled / 2.0, "{path} has jumped from {scrolled} to {now}");
    }
    browser.assert_clean();
}

#[test]
fn a_page_without_a_stream_never_says_that_it_is_live() {
    let cluster = cluster();
    fill(&cluster);
    let console = Console::start_live(&cluster, &["--max-streams", "0"]);
    let browser = Browser::open(&console);
    browser.go("/");
    browser.wait("document.getElementById('live').innerText.startsWith('Not live')");
    for _ in 0..3 {
        let made = browser.string("document.getElementById('made').dataset.made");
        browser.value("move()");
        browser.wait(&format!("document.getElementById('made').dataset.made !== '{made}'"));
        let live = browser.text("#live").unwrap();
        assert!(live.starts_with("Not live"), "{live}");
    }
}

#[test]
fn hostile_errors_are_text() {
    let control: String = (1..32)
        .filter(|&code| code != 13)
        .chain([0x7f, 0x85, 0x9f])
        .filter_map(char::from_u32)
        .collect();
    let messages = [
        "<script>window.ran = 1; alert(1)</script>".to_owned(),
        "<img src=x onerror=\"window.ran = 2; alert(2)\"><svg onload='alert(2)'>".to_owned(),
        "\" autofocus onfocus=\"alert(3)\" x='y' ' onmouseover='alert(3)' `".to_owned(),
        "</textarea></pre></details></table></body><script>alert(4)</script><!-- ]]>".to_owned(),
        "{{ 7*7 }} {% include \"x\" %} ${7*7} <%= 7*7 %> #{7*7} &lt;b&gt; &amp;amp;".to_owned(),
        "\u{202e}gpj.exe \u{2066}\u{2067}\u{200f}\u{feff}".to_owned(),
        "<b>".repeat(50_000),
        format!("control{control}end"),
        "<div hx-get=\"/nothing\" hx-trigger=\"load\" hx-on:load=\"alert(9)\">\n<a href=\"javascript:alert(9)\">".to_owned(),
        "<base href=\"https://example.com/\"><meta http-equiv=refresh content=0><style>*{display:none}".to_owned(),
    ];
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    browser.go("/");
    browser.wait_for_text("#live", "Live");
    let mut session = Session::new(&cluster, "postgres");
    for (loader, message) in (1..).zip(&messages) {
        fail(&mut session, loader, message);
    }
    let harmless = || {
        assert_eq!(browser.value("window.ran ?? null"), Value::Null);
        let elements = "main :is(script, img, svg, textarea, b, style, base, [onfocus], [onmouseover], [hx-on\\\\:load])";
        assert_eq!(browser.value(&format!("document.querySelectorAll('{elements}').length")), 0);
        browser.assert_clean();
    };
    // As they come, and as a page has them.
    let all = "document.querySelectorAll('#failed tbody tr').length === 10";
    browser.wait(all);
    harmless();
    browser.go("/");
    browser.wait(all);
    for (loader, message) in (1..).zip(&messages) {
        let shown: String = message.chars().take(8192).collect();
        let cell = format!("document.querySelector('#failed-{loader} :is(pre, .error)')");
        assert_eq!(browser.string(&format!("{cell}.textContent")), shown);
        let is_cut = message.chars().count() > 8192;
        assert_eq!(browser.has(&format!("#failed-{loader} .hint")), is_cut, "{loader} says so");
    }
    // Whatever a text says about direction ends with it.
    assert_eq!(
        browser.string("getComputedStyle(document.querySelector('#failed-6 .error')).unicodeBidi"),
        "isolate"
    );
    harmless();
    for path in ["/executions", "/loaders?failed=true", "/loaders/7", "/loaders/8", "/loaders/10"] {
        browser.go(path);
        harmless();
    }
    browser.go("/loaders/%3Cscript%3Ealert(1)%3C%2Fscript%3E");
    assert!(browser.has("#problem"));
}

#[test]
fn everybody_can_read_the_pages() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    let check = |paths: &[&str]| {
        for path in paths {
            for colors in [Colors::Light, Colors::Dark] {
                browser.set_colors(colors);
                browser.go(path);
                assert_eq!(browser.violations(), [""; 0], "{path} {colors:?}");
            }
        }
    };
    let check_widths = |paths: &[&str]| {
        for width in [320, 390, 768, 1920] {
            browser.resize(width, 844);
            for path in paths {
                browser.go(path);
                let fits = browser.value("document.documentElement.scrollWidth");
                assert_eq!(fits, width, "{path} fits a width of {width}");
                for colors in [Colors::Light, Colors::Dark] {
                    if width == 390 || width == 320 && matches!(colors, Colors::Light) {
                        browser.set_colors(colors);
                        assert_eq!(browser.violations(), [""; 0], "{path} {width} {colors:?}");
                    }
                }
                // Tables stay tables for those who cannot see them, however they are laid out.
                let lost =
                    "[...document.querySelectorAll('.scroll :is(table, thead, tbody, tr, th, td)')]
                    .filter((element) => !element.getAttribute('role')).length";
                assert_eq!(browser.value(lost), 0, "{path}");
            }
        }
        browser.resize(1280, 900);
    };
    let empty = ["/", "/loaders", "/executions"];
    check(&empty);
    check_widths(&empty);

    fill(&cluster);
    let mut session = Session::new(&cluster, "postgres");
    fail(&mut session, 5, &format!("unbreakable {} text\nof two lines", "x".repeat(300)));
    fail(&mut session, 6, &"0123456789".repeat(11));
    start(&mut session, 7);
    let pages = [
        "/",
        "/loaders",
        "/loaders?failed=true",
        "/loaders/1",
        "/loaders/5",
        "/loaders/7",
        "/executions",
        "/executions?status=FAILED",
        "/loaders/1?status=RUNNING",
        "/nothing",
    ];
    check(&pages);
    check_widths(&pages);
}
