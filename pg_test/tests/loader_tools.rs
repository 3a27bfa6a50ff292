//! Promise: loaders that people use, pgloader and dlt, record what they do without being changed: the two
//! calls are wrapped around them.

use std::fs;
use std::path::Path;
use std::process::Command;

use pg_test::ClientProgram::Psycopg;
use pg_test::{Process, Signal, Site, bindir, column, python, wait_for, write_half};

/// pgloader for loader 4, from `file`, by way of `load`, recorded by the wrapper or not.
fn pgloader(site: &Site, wrapper: Option<&str>, load: &str, file: &Path) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/pgloader");
    let mut command = match wrapper {
        Some(wrapper) => Command::new(folder.join(wrapper)),
        None => Command::new("pgloader"),
    };
    match wrapper {
        Some(_) => command.arg("4"),
        None => command.arg("--root-dir").arg(site.cluster.directory()),
    };
    let path = format!("{}:{}", bindir().display(), std::env::var("PATH").unwrap());
    command
        .arg(folder.join(load))
        .env("PATH", path)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", site.cluster.port().to_string())
        .env("PGUSER", "etl")
        .env("PGDATABASE", "postgres")
        .env("FILE", file);
    command
}

#[test]
fn pgloader_in_a_wrapper() {
    let mut site = Site::start();
    let planes = Site::data("planes.csv");
    let load = |site: &Site, file: &Path| {
        Process::start(&mut pgloader(site, Some("load.sh"), "planes.load", file))
    };
    load(&site, &planes).succeed();
    assert_eq!((site.newest().as_str(), site.planes()), ("SUCCESS 3322", 3322));

    // A row that is there already: pgloader loads the others, and ends with 0.
    site.observer.batch_execute("DELETE FROM planes WHERE tailnum <> 'N10156'").unwrap();
    load(&site, &planes).fail();
    let failed = site.newest();
    assert!(failed.starts_with("FAILED 3321 "), "{failed}");
    assert!(failed.contains("23505: duplicate key value violates unique constraint"), "{failed}");
    assert_eq!(site.planes(), 3322);

    load(&site, Path::new("/nonexistent/planes.csv")).fail();
    let failed = site.newest();
    assert!(
        failed.starts_with("FAILED ") && failed.contains("/nonexistent/planes.csv"),
        "{failed}"
    );
}

#[test]
fn what_pgloader_does_before_and_after_a_load_says_nothing_of_its_outcome() {
    let mut site = Site::start();
    site.observer
        .batch_execute("INSERT INTO planes VALUES ('N10156', 1, '', '', '', 1, 1, 1, '')")
        .unwrap();
    let planes = Site::data("planes.csv");
    Process::start(&mut pgloader(&site, None, "before_and_after.load", &planes)).succeed();
    // Nothing was loaded, what comes after the load was done, and pgloader says that it succeeded.
    let loaded = "SELECT tailnum FROM planes ORDER BY tailnum";
    assert_eq!(column::<String>(&mut site.observer, loaded), ["N10156", "after load"]);
    assert_eq!(site.newest(), "RUNNING", "what comes before the load is committed by itself");
}

#[test]
fn dlt_in_a_wrapper() {
    let mut site = Site::start();
    site.observer.batch_execute("GRANT CREATE ON DATABASE postgres TO etl").unwrap();
    let home = site.cluster.directory().join("dlt");
    fs::create_dir(&home).unwrap();
    // dlt insists on a password.
    let dsn = Psycopg.dsn(site.cluster.port(), "etl:password");
    let load = |file: &Path| {
        let mut command = python();
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/dlt/load.py"));
        command.args([&dsn, "4"]).arg(file).current_dir(&home).env("HOME", &home);
        command.env("DLT_DATA_DIR", &home).env("RUNTIME__DLTHUB_TELEMETRY", "false");
        Process::start(&mut command)
    };
    let planes = Site::data("planes.csv");
    let count = "SELECT count(*) FROM fleet.planes";

    let pipe = site.pipe();
    let mut loader = load(&pipe);
    let mut file = loader.open(&pipe);
    let rest = write_half(&mut file, &planes);
    assert_eq!(site.newest(), "RUNNING");
    std::io::Write::write_all(&mut file, &rest).unwrap();
    drop(file);
    loader.succeed();
    assert_eq!(site.newest(), "SUCCESS 3322");
    assert_eq!(column::<i64>(&mut site.observer, count), [3322]);

    // Data of other columns breaks the schema's contract.
    load(&Site::data("airlines.csv")).fail();
    let failed = site.newest();
    assert!(failed.starts_with("FAILED ") && failed.contains("contract"), "{failed}");

    // A database that refuses the data.
    site.observer
        .batch_execute("ALTER TABLE fleet.planes ADD CHECK (seats <> '139') NOT VALID")
        .unwrap();
    load(&planes).fail();
    let failed = site.newest();
    assert!(
        failed.starts_with("FAILED ") && failed.contains("violates check constraint"),
        "{failed}"
    );

    let pipe = site.pipe();
    let mut loader = load(&pipe);
    let mut file = loader.open(&pipe);
    write_half(&mut file, &planes);
    assert_eq!(site.newest(), "RUNNING");
    loader.signal(Signal::SIGKILL);
    wait_for("the failure", || site.newest() != "RUNNING");
    assert_eq!(
        site.newest(),
        "FAILED 08006: unexpected EOF on client connection with an open transaction"
    );
}
