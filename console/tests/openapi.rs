//! Promise: the API is what openapi.yaml says, whatever is asked of it.

mod support;

use std::process::Command;

use pg_test::{HISTORY, clients_folder, run};
use support::{Console, DESCRIPTION, cluster};

#[test]
fn it_is_served_and_of_the_package_s_version() {
    let cluster = cluster();
    let console = Console::start(&cluster);
    let answer = console.get("/api/v1/openapi.yaml");
    assert_eq!(answer.header("content-type"), "application/yaml");
    assert_eq!(answer.body, DESCRIPTION);
    let version = format!("\n  version: {}\n", env!("CARGO_PKG_VERSION"));
    assert!(DESCRIPTION.contains(&version), "another version than{version}");
}

/// Requests that schemathesis makes of each operation in each of its phases: `CONSOLE_EXAMPLES` says otherwise.
fn examples() -> String {
    std::env::var("CONSOLE_EXAMPLES").unwrap_or_else(|_| "15".to_owned())
}

#[test]
fn schemathesis_finds_nothing_else() {
    let cluster = cluster();
    cluster.connect().batch_execute(HISTORY).unwrap();
    let console = Console::start(&cluster);
    let libraries = clients_folder().join("schemathesis");
    let report = run(Command::new("python3")
        .env("PYTHONPATH", &libraries)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(cluster.directory())
        .args(["-m", "schemathesis.cli", "run", "--checks", "all", "--continue-on-failure"])
        // It never ends; stream.rs tests it.
        .args(["--exclude-path", "/events"])
        // Its own limits, of 10 s, are for machines that are less busy.
        .args(["--request-timeout", "60", "--max-response-time", "60"])
        .args(["--url", &format!("{}/api/v1", console.url)])
        .args(["--max-examples", &examples(), "--seed", &(pg_test::seed() % 1_000_000).to_string()])
        .arg(format!("{}/api/v1/openapi.yaml", console.url)));
    println!("{report}");
    assert!(report.contains("Operations:       10 selected / 11 total"), "{report}");
    assert_eq!(console.get("/api/v1/health").status, 200);
    assert!(!console.log().contains("ERROR"), "{}", console.log());
}
