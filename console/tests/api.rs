//! Promise: the API says what the views say, and its errors are problem details.

mod support;

use pg_test::Session;
use support::{Console, cluster, fail, start, succeed};

#[test]
fn the_feed_has_the_keys_that_its_front_end_reads() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 1245);
    fail(&mut session, 2, "no <b>warehouse</b>");
    start(&mut session, 3);
    let items = console.json("/api/v1/activity?limit=10");
    let items: Vec<_> = items
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            [&item["type"], &item["loaderCode"], &item["status"], &item["message"]]
                .map(|value| value.as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(
        items,
        [
            ["EXECUTION_STARTED", "3", "info", "Execution 3 of loader 3 started"],
            [
                "EXECUTION_FAILED",
                "2",
                "error",
                "Execution 2 of loader 2 failed after 0 s: no <b>warehouse</b>"
            ],
            ["EXECUTION_STARTED", "2", "info", "Execution 2 of loader 2 started"],
            [
                "EXECUTION_SUCCESS",
                "1",
                "success",
                "Execution 1 of loader 1 succeeded: 1,245 records in 0 s"
            ],
            ["EXECUTION_STARTED", "1", "info", "Execution 1 of loader 1 started"],
        ]
        .map(|item| item.map(str::to_owned))
    );
}
