//! Writes the pictures of docs/console.md, `make screenshots`: pages over two days of loads that look like real ones.

mod support;

use std::fs;
use std::path::Path;

use support::browser::{Browser, Colors};
use support::{Console, cluster};

/// Two days of eight loaders, of which some have had bad runs: loader 4 for hours, loader 6 now and then.
const DAYS: &str = r#"
    SELECT setval('loader.execution_history_id_seq', 48210);
    INSERT INTO loader.execution_history
        (loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds)
    SELECT loader, start, start + seconds * interval '1 s', CASE WHEN error IS NULL THEN 'SUCCESS' ELSE 'FAILED' END,
        CASE WHEN error IS NULL THEN (80 * (11 - loader) * seconds)::int ELSE 0 END, error, floor(seconds)
    FROM generate_series(1, 8) AS loader, generate_series(0, 2880 / (10 + 4 * loader)) AS n,
        LATERAL (SELECT abs(sin(n * 12.9898 + loader * 78.233)) AS noise) AS random,
        LATERAL (SELECT now() - interval '1 min' * (n * (10 + 4 * loader) + loader * 1.6 + 2 + noise) AS start,
            (loader * 2.7 * (1 + 0.6 * sin(n / 5.0) + 0.35 * noise))::numeric AS seconds,
            CASE
                WHEN loader = 4 AND n < 3 THEN E'could not connect to server: Connection timed out\n'
                    'Is the server running on host "warehouse.internal" and accepting TCP/IP connections on port 5432?'
                WHEN loader = 6 AND n % 9 = 4 THEN E'duplicate key value violates unique constraint "orders_pkey"\n'
                    'DETAIL:  Key (order_id)=(' || 88120 + n || ') already exists.'
                WHEN loader = 2 AND n % 23 = 11 THEN 'canceling statement due to statement timeout'
                WHEN loader = 7 AND n = 0 THEN
                    E'null value in column "customer_id" of relation "invoices" violates not-null constraint\n'
                    'DETAIL:  Failing row contains (20418, null, 118.40, EUR).'
            END AS error) AS run
    ORDER BY start;
    INSERT INTO loader.execution_history (loader_id, execution_start, status)
    VALUES (5, now() - interval '1 min 52 s', 'RUNNING'), (6, now() - interval '38 s', 'RUNNING');
"#;

/// Bytes of a picture, at most.
const SIZE: usize = 150_000;

#[test]
#[ignore = "writes docs/screenshots"]
fn screenshots() {
    let cluster = cluster();
    cluster.connect().batch_execute(DAYS).unwrap();
    let console = Console::start(&cluster);
    let browser = Browser::open(&console);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/screenshots");
    fs::create_dir_all(&folder).unwrap();
    let take = |path: &str, name: &str, (width, height): (u16, u16)| {
        browser.resize(width, height);
        browser.go(path);
        browser.wait_for_text("#live", "Live");
        browser.wait(
            "document.querySelector('#chart') === null || document.querySelector('#plot canvas')",
        );
        browser.assert_clean();
        let picture = browser.screenshot();
        assert!(picture.len() < SIZE, "{name} has {} bytes", picture.len());
        fs::write(folder.join(name), picture).unwrap();
    };
    for (colors, name) in [(Colors::Light, "light"), (Colors::Dark, "dark")] {
        browser.set_colors(colors);
        take("/", &format!("overview-{name}.png"), (1280, 900));
        take("/loaders/6", &format!("details-{name}.png"), (1280, 900));
    }
    browser.set_colors(Colors::Light);
    take("/", "overview-phone.png", (390, 844));
}
