//! Promise: the database's password is told to nobody but the database, and nobody but this machine reaches a console
//! that was told nothing.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use pg_test::{Cluster, Session, wait_for};
use support::sse::Stream;
use support::{Console, cluster, succeed};

/// What would be found of it, however it is written.
const PASSWORD: &str = "hunter2/ &@x";
const ENCODED: &str = "hunter2%2F%20%26%40x";
const TRACE: &str = "hunter2";

/// A cluster whose login `dashboard` needs its password.
fn guarded() -> Cluster {
    let cluster = cluster();
    let mut session = Session::new(&cluster, "postgres");
    succeed(&mut session, 1, 1);
    session.client.execute("SELECT set_config('app.password', $1, false)", &[&PASSWORD]).unwrap();
    session.run(
        "DO $$ BEGIN EXECUTE format('ALTER ROLE dashboard PASSWORD %L', current_setting('app.password')); END $$",
    );
    let file = cluster.data().join("pg_hba.conf");
    let rules = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("local all dashboard scram-sha-256\n{rules}")).unwrap();
    session.run("SELECT pg_reload_conf()");
    wait_for("the rules", || {
        std::panic::catch_unwind(|| cluster.connect_to("postgres", "dashboard")).is_err()
    });
    cluster
}

fn url(cluster: &Cluster, password: &str) -> String {
    let host = cluster.directory().display();
    format!("postgresql://dashboard:{password}@localhost/postgres?host={host}")
}

#[test]
fn nothing_that_is_written_holds_the_password() {
    let mut cluster = guarded();
    let url = |password: &str| url(&cluster, password);
    let tracing = |command: &mut Command| {
        Console::spawn(command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1"))
    };
    let right = [
        tracing(Console::command(&cluster).env("DATABASE_URL", url(ENCODED))),
        tracing(Console::command(&cluster).args(["--database-url", &url(ENCODED)])),
        tracing(Console::command(&cluster).env("PGPASSWORD", PASSWORD)),
    ];
    for console in &right {
        console.wait_until_live();
        let _stream = Stream::open(console, "/api/v1/events");
        for path in ["/", "/loaders/1", "/api/v1/executions", "/api/v1/health"] {
            let answer = console.get(path);
            assert_eq!(answer.status, 200, "{path}");
            assert!(!answer.body.contains(TRACE));
        }
    }
    let wrong = tracing(Console::command(&cluster).env("DATABASE_URL", url("hunter2-is-wrong")));
    wait_for("the refusal", || wrong.log().contains("password authentication failed"));
    cluster.stop_server();
    for console in right.iter().chain([&wrong]) {
        wait_for("the outage", || console.get("/").status == 503);
        for path in ["/", "/api/v1/executions", "/api/v1/health", "/api/v1/executions?limit=x"] {
            let answer = console.get(path);
            assert!([400, 503].contains(&answer.status), "{path}");
            assert!(!answer.body.contains(TRACE), "{}", answer.body);
            let headers = format!("{:?}", answer.headers);
            assert!(!headers.contains(TRACE), "{headers}");
        }
        let log = console.log();
        assert!(log.contains("TRACE"), "it has told everything: {log}");
        assert!(!log.contains(TRACE), "{log}");
    }
}

/// What the console says to what it is started with, on both of its outputs.
fn says(command: &mut Command) -> String {
    let output = command.env("RUST_LOG", "trace").output().unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat()
}

#[test]
fn neither_do_its_help_and_its_complaints() {
    let cluster = cluster();
    let help =
        says(Console::command(&cluster).arg("--help").env("DATABASE_URL", url(&cluster, ENCODED)));
    assert!(help.contains("[env: DATABASE_URL]") && !help.contains(TRACE), "{help}");
    for bad in [
        "hunter2",
        "postgresql://dashboard:hunter2@[::1/postgres",
        "postgresql://dashboard:hunter2@localhost:port/postgres",
        "postgresql://dashboard:hunter2@localhost/postgres?sslmode=hunter2",
        "postgresql://dashboard@localhost/postgres?sslpassword=hunter2",
        "postgresql://dashboard@localhost/postgres?user=dashboard&sslpassword=hunter2#x",
        "postgresql://dashboard:1?hunter2@localhost/postgres",
        "mysql://dashboard:hunter2@localhost/postgres",
    ] {
        let told = says(Console::command(&cluster).env("DATABASE_URL", bad));
        assert!(told.contains("database's URL") && !told.contains(TRACE), "{bad}: {told}");
        let told = says(Console::command(&cluster).arg(format!("--database-url={bad}")));
        assert!(told.contains("database's URL") && !told.contains(TRACE), "{bad}: {told}");
    }
    let url = format!("{}&connect_timeout=hunter2", url(&cluster, ENCODED));
    let told = says(Console::command(&cluster).env("DATABASE_URL", url));
    assert!(told.contains("does not know: connect_timeout") && !told.contains(TRACE), "{told}");
    // A misspelt mode would be none.
    for (name, bad) in
        [("PGSSLMODE", "hunter2"), ("PGSSLMODE", "verifyfull"), ("PGPORT", "hunter2")]
    {
        let told = says(Console::command(&cluster).env(name, bad));
        assert!(told.contains(name) && !told.contains(TRACE), "{bad}: {told}");
    }
}

#[test]
fn by_default_it_listens_on_this_machine_alone() {
    let cluster = cluster();
    // The same login as elsewhere, without the address that tests give.
    let mut command = Command::new(env!("CARGO_BIN_EXE_loader-history-console"));
    for (name, value) in Console::command(&cluster).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut process = command.env_remove("CONSOLE_LISTEN").stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(process.stderr.take().unwrap());
    // The port may be somebody else's.
    let told = stderr.lines().map(Result::unwrap).find(|line| line.contains("listen"));
    let told = told.unwrap_or_default();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(
        told.contains("listening on http://127.0.0.1:8700")
            || told.contains("cannot listen on 127.0.0.1:8700"),
        "{told}"
    );
}
