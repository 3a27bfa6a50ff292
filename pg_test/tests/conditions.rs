//! Promise: constraints hold for every writer. What the functions keep of a table's CHECKs, triggers and indexes
//! from one call to the next is what these are now: whatever a DBA adds, changes or takes away counts at once,
//! in sessions that have recorded before.

use pg_test::version::has_unenforced_checks;
use pg_test::{Client, HasError, cluster_with_extension, preloaded_cluster, say_left_out};

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
    // More of them, one after another, than anybody keeps.
    for loader in (4..=9).cycle().take(80) {
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

    // Of an end as of a start, and what it refuses is not recorded.
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
fn checks_of_functions_that_are_replaced_hold_as_they_are() {
    let cluster = cluster_with_extension();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    let refuse = |dba: &mut Client, language: &str, loader: i64| {
        let body = match language {
            "sql" => format!("SELECT loader_id <> {loader}"),
            _ => format!("BEGIN RETURN loader_id <> {loader}; END"),
        };
        alter(
            dba,
            &format!(
                "CREATE OR REPLACE FUNCTION public.allows_{language}(loader_id bigint) RETURNS boolean
                     LANGUAGE {language} IMMUTABLE AS $$ {body} $$"
            ),
        );
    };
    record(&mut client, 1);
    for language in ["sql", "plpgsql"] {
        refuse(&mut dba, language, 4);
        alter(
            &mut dba,
            &format!(
                "{TABLE} ADD CONSTRAINT by_{language} CHECK (public.allows_{language}(loader_id)) NOT VALID"
            ),
        );
        let constraint = format!("by_{language}");
        assert_refused(&mut client, 4, &constraint);
        record(&mut client, 5);
        refuse(&mut dba, language, 5);
        record(&mut client, 4);
        assert_refused(&mut client, 5, &constraint);
        alter(&mut dba, &format!("{TABLE} DROP CONSTRAINT {constraint}"));
        record(&mut client, 5);
    }
}

#[test]
fn checks_by_constant_functions_and_domains_that_are_changed_hold_as_they_are() {
    let cluster = cluster_with_extension();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    record(&mut client, 1);
    let forbid = |loader: i64| {
        format!(
            "CREATE OR REPLACE FUNCTION public.forbidden() RETURNS bigint LANGUAGE plpgsql IMMUTABLE
                 AS $$ BEGIN RETURN {loader}; END $$"
        )
    };
    alter(&mut dba, &forbid(4));
    alter(
        &mut dba,
        &format!("{TABLE} ADD CONSTRAINT mine CHECK (loader_id <> public.forbidden()) NOT VALID"),
    );
    assert_refused(&mut client, 4, "mine");
    record(&mut client, 5);
    alter(&mut dba, &forbid(5));
    record(&mut client, 4);
    assert_refused(&mut client, 5, "mine");
    alter(&mut dba, &format!("{TABLE} DROP CONSTRAINT mine"));

    alter(
        &mut dba,
        &format!(
            "CREATE DOMAIN public.known AS bigint CONSTRAINT known CHECK (VALUE <> 4);
             {TABLE} ADD CONSTRAINT mine CHECK (loader_id::public.known IS NOT NULL) NOT VALID"
        ),
    );
    start(&mut client, 4).error("23514");
    record(&mut client, 5);
    alter(
        &mut dba,
        "ALTER DOMAIN public.known DROP CONSTRAINT known;
         ALTER DOMAIN public.known ADD CONSTRAINT known CHECK (VALUE <> 5) NOT VALID",
    );
    record(&mut client, 4);
    start(&mut client, 5).error("23514");
}

/// What is prepared for a whole row is described in the memory of the statement.
#[test]
fn conditions_on_whole_rows_hold_again_and_again() {
    let cluster = cluster_with_extension();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    record(&mut client, 1);
    alter(
        &mut dba,
        &format!(
            "CREATE TABLE public.seen (id bigint);
             CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO public.seen VALUES (NEW.id); RETURN NULL; END $$;
             CREATE TRIGGER mine AFTER UPDATE ON loader.execution_history
                 FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION public.see();
             {TABLE} ADD CONSTRAINT mine CHECK (execution_history IS DISTINCT FROM NULL),
                     ADD CONSTRAINT mine_too
                         CHECK (execution_history::text <> '' AND (loader_id, id) > (0, 0))"
        ),
    );
    for round in 1..=50 {
        record(&mut client, round % 10 + 1);
    }
    let seen: i64 = pg_test::column(&mut dba, "SELECT count(DISTINCT id) FROM public.seen")[0];
    assert_eq!(seen, 50);
    // Columns come and go.
    alter(&mut dba, &format!("{TABLE} ADD COLUMN mine text DEFAULT 'x' CHECK (mine <> 'y')"));
    record(&mut client, 2);
    alter(&mut dba, &format!("{TABLE} DROP COLUMN mine"));
    record(&mut client, 3);
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
fn conditions_of_triggers_hold_as_they_are() {
    let cluster = cluster_with_extension();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    record(&mut client, 1);
    alter(
        &mut dba,
        "CREATE TABLE public.seen (loader_id bigint, status text);
         CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.seen VALUES (NEW.loader_id, NEW.status); RETURN NULL; END $$",
    );
    let watch = |dba: &mut Client, loader: i64| {
        alter(
            dba,
            &format!(
                "DROP TRIGGER IF EXISTS mine ON loader.execution_history;
                 DROP TRIGGER IF EXISTS mine_too ON loader.execution_history;
                 CREATE TRIGGER mine AFTER INSERT ON loader.execution_history
                     FOR EACH ROW WHEN (NEW.loader_id = {loader}) EXECUTE FUNCTION public.see();
                 CREATE TRIGGER mine_too AFTER UPDATE ON loader.execution_history
                     FOR EACH ROW WHEN (OLD.status <> NEW.status AND OLD.loader_id = {loader})
                     EXECUTE FUNCTION public.see()"
            ),
        );
    };
    let seen = |dba: &mut Client| {
        let query = "SELECT concat(loader_id, ' ', status) FROM public.seen ORDER BY ctid";
        let rows: Vec<String> = pg_test::column(dba, query);
        alter(dba, "TRUNCATE public.seen");
        rows
    };
    for watched in [6, 7, 6] {
        watch(&mut dba, watched);
        for loader in 5..=8 {
            record(&mut client, loader);
        }
        assert_eq!(seen(&mut dba), [format!("{watched} RUNNING"), format!("{watched} SUCCESS")]);
    }
}

#[test]
fn predicates_of_indexes_hold_as_they_are() {
    let cluster = cluster_with_extension();
    let (mut client, mut dba) = (cluster.connect(), cluster.connect());
    record(&mut client, 1);
    for (limit, refused) in [(8, 9), (9, 10)] {
        alter(
            &mut dba,
            &format!(
                "DROP INDEX IF EXISTS loader.one_at_a_time;
                 CREATE UNIQUE INDEX one_at_a_time ON loader.execution_history (loader_id)
                     WHERE status = 'RUNNING' AND loader_id > {limit}"
            ),
        );
        let first = start(&mut client, refused).unwrap();
        start(&mut client, refused).error("23505");
        let others = [start(&mut client, limit).unwrap(), start(&mut client, limit).unwrap()];
        for id in others.into_iter().chain([first]) {
            end(&mut client, id, 1).unwrap();
        }
        record(&mut client, refused);
    }
    // Whoever reads by it finds what was recorded.
    alter(
        &mut dba,
        "CREATE INDEX mine ON loader.execution_history (record_count) WHERE record_count > 100",
    );
    let id = start(&mut client, 2).unwrap();
    end(&mut client, id, 101).unwrap();
    alter(&mut dba, "SET enable_seqscan = off");
    let query = "SELECT id FROM loader.execution_history WHERE record_count > 100";
    assert_eq!(pg_test::column::<i64>(&mut dba, query), [id]);
    let amcheck = "SELECT name::text FROM pg_available_extensions WHERE name = 'amcheck'";
    if pg_test::column::<String>(&mut dba, amcheck).is_empty() {
        say_left_out("the check of the indexes: this server has no amcheck");
        return;
    }
    alter(
        &mut dba,
        "CREATE EXTENSION amcheck;
         SELECT bt_index_check(indexrelid, true) FROM pg_index
          WHERE indrelid = 'loader.execution_history'::regclass",
    );
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
fn the_worker_keeps_to_them_too() {
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
        // The worker declines, and the caller's own attempt says why.
        assert_refused(&mut client, loader, "mine");
        record(&mut client, 5 - loader);
        // What the server finds must keep to them, too.
        let open = start(&mut client, 5 - loader).unwrap();
        end(&mut client, open, 1).unwrap();
    }
    alter(&mut dba, &format!("{TABLE} DROP CONSTRAINT mine"));
    record(&mut client, 2);
}

#[test]
fn an_extension_that_is_made_anew_is_recorded_into() {
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
