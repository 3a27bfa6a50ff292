//! Promise: in a real browser pages show what the views say, and move by themselves while loaders record.

mod support;

use pg_test::Session;
use support::browser::Browser;
use support::{Console, cluster, start};

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
    let started = format!("#event-{id}-EXECUTION_STARTED");
    assert!(browser.text(&started).unwrap().ends_with("Execution 1 of loader 3 started"));

    // Its duration ticks, though nothing happens.
    let duration = format!("document.querySelector('{row} [data-running-since]').innerText");
    let shown = browser.string(&duration);
    browser.wait(&format!("{duration} !== '{shown}'"));
    browser.wait(&format!("/^[2-9] s$/.test({duration})"));

    loader.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', 1245)"));
    browser.wait(&format!("!document.querySelector('{row}')"));
    let ended = browser.text(&format!("#event-{id}-EXECUTION_SUCCESS")).unwrap();
    assert!(ended.contains("Execution 1 of loader 3 succeeded: 1,245 records in"), "{ended}");
    browser.assert_clean();
}
