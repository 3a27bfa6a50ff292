//! Writes the pictures of the README, `make screenshots`: pages over a day of loads that look like real ones.

mod support;

use std::fs;
use std::path::Path;

use pg_test::Session;
use support::browser::{Browser, Colors};
use support::{Console, cluster, fail, start, succeed};

/// A day of eight loaders, of which two have had bad runs: loader 4 for hours, loader 6 now and then.
const DAY: &str = "
    INSERT INTO loader.execution_history
        (loader_id, execution_start, execution_end, status, record_count, error_message, duration_seconds)
    SELECT loader, start, start + took, CASE WHEN error IS NULL THEN 'SUCCESS' ELSE 'FAILED' END,
        CASE WHEN error IS NULL THEN (800 * loader * loader * took_seconds)::int ELSE 0 END, error,
        floor(took_seconds)
    FROM generate_series(1, 8) AS loader,
        generate_series(1, 1440 / (10 + 7 * loader)) AS n,
        LATERAL (SELECT now() - n * (10 + 7 * loader) * interval '1 min' AS start,
            (loader * 2.7 * (1 + 0.6 * sin(n / 5.0) + 0.35 * abs(sin(n * 12.9898 + loader * 78.233))))::numeric AS took_seconds,
            CASE
                WHEN loader = 4 AND n <= 3 THEN
                    'could not connect to server: Connection timed out' || chr(10) ||
                    'Is the server running on host \"warehouse.internal\" and accepting TCP/IP connections on port 5432?'
                WHEN loader = 6 AND n % 9 = 4 THEN
                    'duplicate key value violates unique constraint \"orders_pkey\"' || chr(10) ||
                    'DETAIL:  Key (order_id)=(' || 88120 + n || ') already exists.'
                WHEN loader = 2 AND n % 23 = 11 THEN 'canceling statement due to statement timeout'
            END AS error) AS run,
        LATERAL (SELECT took_seconds * interval '1 s' AS took) AS length
    ORDER BY start;
";

/// Bytes of a picture, at most.
const SIZE: usize = 150_000;

#[test]
#[ignore = "writes docs/screenshots"]
fn screenshots() {
    let cluster = cluster();
    cluster.connect().batch_execute(DAY).unwrap();
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 18_240);
    succeed(&mut session, 3, 51_772);
    fail(
        &mut session,
        7,
        "null value in column \"customer_id\" of relation \"invoices\" violates not-null constraint\n\
         DETAIL:  Failing row contains (20418, null, 2026-11-23, 118.40, EUR).\n\
         CONTEXT:  COPY invoices, line 20419",
    );
    succeed(&mut session, 2, 9_034);
    start(&mut session, 5);
    start(&mut session, 6);
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
