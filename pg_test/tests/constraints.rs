//! Promise: constraints hold for every writer. Constraints and triggers that a DBA adds, changes or drops take effect at
//! once, in sessions that have recorded before.

use pg_test::version::has_unenforced_checks;
use pg_test::{Client, HasError, cluster_with_extension, preloaded_cluster};

const TABLE: &str = "ALTER TABLE loader.execution_history";

fn start(client: &mut Client, loader: i64) -> Result<i64, postgres::Error> {
    Ok(client.query_one("SELECT loader.record_execution_start($1)", &[&loader])?.get(0))
}

fn end(client: &mut Client, id: i64, count: i64) -> Result<(), postgres::Error> {
    client.query_one("SELECT loader.record_execution_end($1, 'SUCCESS', $2)", &[&id, &count])?;
    Ok(())
}

fn record(client: &mut Client, loader: i64) {
    let id = start(client, loader).unwrap();
    end(client, id, 1).unwrap();
}

/// A start of `loader` breaks the CHECK `constraint`.
#[track_caller]
fn assert_refused(client: &mut Client, loader: i64, constraint: &str) {
    let error = start(client, loader).error("23514");
    assert_eq!(error.constraint(), Some(constraint));
}

/// Runs `dba`'s statement in a session of its own.
fn alter(dba: &mut Client, statement: &str) {
    dba.batch_execute(statement).unwrap();
}

#[test]
fn checks_that_are_added_and_changed_hold_at_once() {
    let cluster = cluster_with_extension();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    record(&mut client, 1);

    alter(&mut dba, &format!("{TABLE} ADD CONSTRAINT mine CHECK (loader_id <> 2) NOT VALID"));
    assert_refused(&mut client, 2, "mine");
    record(&mut client, 3);
    // The same name, another condition.
    alter(
        &mut dba,
        &format!(
            "{TABLE} DROP CONSTRAINT mine, ADD CONSTRAINT mine CHECK (loader_id <> 3) NOT VALID"
        ),
    );
    record(&mut client, 2);
    assert_refused(&mut client, 3, "mine");
    // Repeatedly.
    for loader in (4..=9).cycle().take(12) {
        let changed = format!(
            "{TABLE} DROP CONSTRAINT mine,
                     ADD CONSTRAINT mine CHECK (loader_id <> {loader} AND id <> {}) NOT VALID",
            rand::random::<u32>(),
        );
        alter(&mut dba, &changed);
        assert_refused(&mut client, loader, "mine");
    }
    alter(&mut dba, &format!("{TABLE} DROP CONSTRAINT mine"));
    record(&mut client, 9);

    // An end is checked as a start is.
    let running = start(&mut client, 1).unwrap();
    alter(
        &mut dba,
        &format!("{TABLE} ADD CONSTRAINT unlucky CHECK (record_count <> 13) NOT VALID"),
    );
    end(&mut client, running, 13).error("23514");
    end(&mut client, running, 14).unwrap();
    alter(&mut dba, &format!("{TABLE} DROP CONSTRAINT unlucky"));
    let again = start(&mut client, 1).unwrap();
    end(&mut client, again, 13).unwrap();
}

#[test]
fn a_trigger_that_is_disabled_does_no_harm() {
    let cluster = cluster_with_extension();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    record(&mut client, 1);
    alter(
        &mut dba,
        "CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER broken AFTER INSERT OR UPDATE ON loader.execution_history
             FOR EACH ROW WHEN (NEW.id > 1 / 0) EXECUTE FUNCTION public.see();
         CREATE TRIGGER of_deletes AFTER DELETE ON loader.execution_history
             FOR EACH ROW WHEN (OLD.id > 1 / 0) EXECUTE FUNCTION public.see();
         ALTER TABLE loader.execution_history DISABLE TRIGGER broken",
    );
    record(&mut client, 1);
    alter(&mut dba, &format!("{TABLE} ENABLE TRIGGER broken"));
    start(&mut client, 1).error("22012");
}

#[test]
fn a_check_that_is_not_enforced_is_not() {
    let cluster = cluster_with_extension();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    record(&mut client, 1);
    let not_enforced = if has_unenforced_checks() { " NOT ENFORCED" } else { " NOT VALID" };
    alter(&mut dba, &format!("{TABLE} ADD CONSTRAINT mine CHECK (loader_id <> 8){not_enforced}"));
    if has_unenforced_checks() {
        record(&mut client, 8);
        alter(
            &mut dba,
            &format!(
                "{TABLE} DROP CONSTRAINT mine, ADD CONSTRAINT mine CHECK (loader_id <> 8) NOT VALID"
            ),
        );
    }
    assert_refused(&mut client, 8, "mine");
}

#[test]
fn the_worker_is_bound_by_them_too() {
    let cluster = preloaded_cluster();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    record(&mut client, 1);
    for loader in [2, 3, 2] {
        alter(
            &mut dba,
            &format!(
                "{TABLE} DROP CONSTRAINT IF EXISTS mine;
                 {TABLE} ADD CONSTRAINT mine CHECK (loader_id <> {loader}) NOT VALID"
            ),
        );
        // The worker declines the start, and the caller's own insert raises the error.
        assert_refused(&mut client, loader, "mine");
        record(&mut client, 5 - loader);
    }
    alter(&mut dba, &format!("{TABLE} DROP CONSTRAINT mine"));
    record(&mut client, 2);
}

#[test]
fn an_extension_that_is_created_again_records() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    for _ in 0..3 {
        record(&mut client, 1);
        client
            .batch_execute("DROP EXTENSION loader_history; CREATE EXTENSION loader_history")
            .unwrap();
        record(&mut client, 2);
        let statuses: Vec<String> =
            pg_test::column(&mut client, "SELECT status FROM loader.execution_history");
        assert_eq!(statuses, ["SUCCESS"]);
    }
}
