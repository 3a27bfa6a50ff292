//! Promise: ALTER EXTENSION UPDATE from each released version leaves what a fresh install makes, and
//! every row and grant as they were; until then the new library serves the old SQL as it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pg_test::{
    APPLICATION_SQL, Client, Cluster, HasError, Listener, PRELOADED, Session, assert_autonomous,
    column, current_version, released_versions, status_of, wait_for, wait_for_equal,
    wait_for_served,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Executions of every status, of some age, grants of every kind, a purge.
const DATA: &str = "
    CREATE ROLE recorder LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE auditor LOGIN;
    INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, record_count, error_message)
        SELECT n % 10 + 1, now() - make_interval(days => n), now() - make_interval(days => n),
               CASE n % 3 WHEN 0 THEN 'FAILED' ELSE 'SUCCESS' END, n, repeat(E'\\\\ \\t \"€😀', n % 50)
          FROM generate_series(1, 500) AS n;
    SELECT loader.record_execution_start(3);
    SELECT loader.record_execution_end(loader.record_execution_start(4), 'FAILED', 4, 'no');
    SELECT loader.grant_recorder('recorder'), loader.grant_reader('reader');
    GRANT SELECT ON loader.execution_history TO auditor;
";

/// What pg_class, pg_proc and the like say of the extension's objects, one query a kind: a name and a
/// definition a row.
const DEFINITIONS: [(&str, &str); 11] = [
    (
        "members",
        "SELECT pg_describe_object(classid, objid, objsubid), deptype::text FROM pg_depend
          WHERE refclassid = 'pg_extension'::regclass
            AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'loader_history')",
    ),
    (
        "functions",
        "SELECT p.oid::regprocedure::text,
                concat_ws(' | ', pg_get_functiondef(p.oid), p.proowner::regrole, p.prosecdef, p.provolatile,
                          p.proparallel, p.proleakproof, p.proisstrict, p.proconfig, p.procost, p.prorows)
           FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text IN ('loader', 'loader_history')",
    ),
    (
        "views",
        "SELECT c.oid::regclass::text, concat_ws(' | ', pg_get_viewdef(c.oid), c.reloptions, c.relowner::regrole)
           FROM pg_class AS c WHERE c.relnamespace::regnamespace::text IN ('loader', 'loader_history') AND c.relkind = 'v'",
    ),
    (
        "columns",
        "SELECT c.oid::regclass || '.' || a.attname,
                concat_ws(' | ', c.relkind, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                          pg_get_expr(d.adbin, d.adrelid), a.attstorage, a.attidentity, a.attacl, c.relpersistence,
                          c.reloptions, c.relrowsecurity, c.relreplident, c.relowner::regrole)
           FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
          WHERE c.relnamespace::regnamespace::text IN ('loader', 'loader_history')",
    ),
    (
        "constraints",
        "SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) || convalidated
           FROM pg_constraint WHERE connamespace::regnamespace::text IN ('loader', 'loader_history')",
    ),
    (
        "indexes",
        "SELECT indexrelid::regclass::text, concat_ws(' | ', pg_get_indexdef(indexrelid), indisvalid, indisunique, indisprimary)
           FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid WHERE c.relnamespace::regnamespace::text IN ('loader', 'loader_history')",
    ),
    (
        "triggers",
        "SELECT tgrelid::regclass || '.' || CASE WHEN tgisinternal THEN tgfoid::regproc::text ELSE tgname END,
                concat_ws(' | ', CASE WHEN NOT tgisinternal THEN pg_get_triggerdef(t.oid) END, tgenabled, tgisinternal)
           FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid WHERE c.relnamespace::regnamespace::text IN ('loader', 'loader_history')",
    ),
    (
        "event triggers",
        "SELECT evtname::text, concat_ws(' | ', evtevent, evtenabled, evtfoid::regproc, evttags, evtowner::regrole)
           FROM pg_event_trigger",
    ),
    (
        "rights",
        "SELECT o.name, string_agg(concat_ws(' ', a.grantee::regrole, a.privilege_type, a.is_grantable), ', '
                                   ORDER BY a.grantee::regrole::text, a.privilege_type)
           FROM (SELECT p.oid::regprocedure::text AS name, coalesce(proacl, acldefault('f', proowner)) AS acl
                   FROM pg_proc AS p WHERE pronamespace::regnamespace::text IN ('loader', 'loader_history')
                 UNION ALL
                 SELECT c.oid::regclass::text,
                        coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner))
                   FROM pg_class AS c WHERE relnamespace::regnamespace::text IN ('loader', 'loader_history') AND relkind IN ('r', 'v', 'S', 'p')
                 UNION ALL
                 SELECT 'schema ' || nspname, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
                  WHERE nspname IN ('loader', 'loader_history')) AS o,
                aclexplode(o.acl) AS a
          GROUP BY o.name",
    ),
    (
        "comments",
        "SELECT pg_describe_object(classoid, objoid, objsubid), description FROM pg_description
          WHERE (classoid, objoid) IN (
                    SELECT classid, objid FROM pg_depend
                     WHERE refclassid = 'pg_extension'::regclass
                       AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'loader_history'))
             OR classoid = 'pg_class'::regclass
                AND objoid IN (SELECT oid FROM pg_class WHERE relnamespace::regnamespace::text IN ('loader', 'loader_history'))
             OR classoid = 'pg_constraint'::regclass
                AND objoid IN (SELECT oid FROM pg_constraint WHERE connamespace::regnamespace::text IN ('loader', 'loader_history'))
             OR classoid = 'pg_trigger'::regclass
                AND objoid IN (SELECT t.oid FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid
                                WHERE c.relnamespace::regnamespace::text IN ('loader', 'loader_history'))
             OR classoid IN ('pg_extension'::regclass, 'pg_event_trigger'::regclass)",
    ),
    (
        "the extension",
        // What pg_dump writes of its tables, by name.
        "SELECT coalesce(config.oid::regclass::text, 'version'), coalesce(config.condition, e.extversion)
           FROM pg_extension AS e
           CROSS JOIN (SELECT NULL::oid UNION ALL SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'loader_history')
                      AS wanted (oid)
           LEFT JOIN LATERAL unnest(e.extconfig, e.extcondition) AS config (oid, condition) ON config.oid = wanted.oid
          WHERE e.extname = 'loader_history'",
    ),
];

type Definitions = BTreeMap<(String, String), Vec<String>>;

fn definitions(client: &mut Client) -> Definitions {
    let mut found = Definitions::new();
    for (kind, query) in DEFINITIONS {
        for row in client.query(query, &[]).unwrap_or_else(|error| panic!("{kind}: {error:?}")) {
            let definition = row.get::<_, Option<String>>(1).unwrap_or_default();
            found.entry((kind.to_owned(), row.get(0))).or_default().push(definition);
        }
        assert!(found.keys().any(|(of, _)| of == kind), "no {kind}");
    }
    found.values_mut().for_each(|definitions| definitions.sort());
    found
}

/// Compares what an update made with what an install makes, and names every difference.
#[track_caller]
fn assert_same(updated: &Definitions, installed: &Definitions) {
    let mut differences = Vec::new();
    for key in updated.keys().chain(installed.keys()) {
        let (one, other) = (updated.get(key), installed.get(key));
        if one != other {
            let difference = format!("{key:?}\n  updated:   {one:?}\n  installed: {other:?}");
            if !differences.contains(&difference) {
                differences.push(difference);
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

/// Every row of the history and what is made of it, and who may do what.
fn data(client: &mut Client) -> Vec<String> {
    [
        "SELECT string_agg(h::text, '|' ORDER BY id) FROM loader.execution_history AS h",
        "SELECT string_agg(loader_id::text, '|' ORDER BY loader_id) FROM (SELECT DISTINCT loader_id FROM loader.execution_history) AS r",
        "SELECT last_value || ' ' || is_called FROM loader.execution_history_id_seq",
        "SELECT string_agg(format('%s %s %s', r, has_function_privilege(r, 'loader.record_execution_start(bigint)', 'EXECUTE'),
                                  has_table_privilege(r, 'loader.execution_history', 'SELECT')), '|')
           FROM unnest(ARRAY['recorder', 'reader', 'auditor']) AS r",
        "SELECT string_agg(loader::text, '|' ORDER BY id) FROM loader.loader",
    ]
    .iter()
    .map(|query| client.query_one(*query, &[]).unwrap().get::<_, Option<String>>(0).unwrap_or_default())
    .collect()
}

#[test]
fn an_updated_extension_is_what_a_fresh_one_is() {
    let cluster = Cluster::start();
    for version in released_versions() {
        for table_first in [true, false] {
            let names = ["updated", "installed"];
            let mut clients = names.map(|name| {
                let mut client = cluster.connect();
                client.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
                cluster.connect_to(name, "postgres")
            });
            for (client, version) in clients.iter_mut().zip([version.clone(), current_version()]) {
                if table_first {
                    client.batch_execute(APPLICATION_SQL).unwrap();
                }
                let create = format!("CREATE EXTENSION loader_history VERSION '{version}'");
                client.batch_execute(&create).unwrap();
            }
            let [mut updated, mut installed] = clients;
            updated.batch_execute("ALTER EXTENSION loader_history UPDATE").unwrap();
            assert_same(&definitions(&mut updated), &definitions(&mut installed));
            if !table_first {
                // The key still comes by itself.
                for client in [&mut updated, &mut installed] {
                    client.batch_execute(APPLICATION_SQL).unwrap();
                }
                assert_same(&definitions(&mut updated), &definitions(&mut installed));
            }
            drop((updated, installed));
            for name in names {
                pg_test::wait_for_no_clients(&cluster, name);
                cluster.connect().batch_execute(&format!("DROP DATABASE {name}")).unwrap();
            }
        }
    }
}

#[test]
fn an_update_keeps_the_data_the_grants_and_what_a_dba_changed() {
    for version in released_versions() {
        let cluster = Cluster::start();
        let mut client = cluster.connect();
        client.batch_execute(APPLICATION_SQL).unwrap();
        client
            .batch_execute(&format!("CREATE EXTENSION loader_history VERSION '{version}'"))
            .unwrap();
        client.batch_execute(DATA).unwrap();
        // A key dropped on purpose stays away; a comment of the DBA's on the table stays.
        client
            .batch_execute(
                "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;
                 GRANT EXECUTE ON FUNCTION loader.purge_execution_history(interval, bigint) TO auditor;
                 COMMENT ON TABLE loader.execution_history IS 'Ask Ada before you touch it'",
            )
            .unwrap();
        let before = data(&mut client);
        // A session that is open, with plans of the old version.
        let mut old_session = cluster.connect_to("postgres", "recorder");
        let start_and_end =
            "SELECT loader.record_execution_end(loader.record_execution_start(5), 'SUCCESS', 1)";
        client.batch_execute("ALTER EXTENSION loader_history UPDATE").unwrap();
        assert_eq!(before, data(&mut client), "from {version}");
        let rights: Vec<bool> = column(
            &mut client,
            "SELECT has_function_privilege('auditor', 'loader_history.purge_execution_history(interval, bigint)', 'EXECUTE')",
        );
        assert_eq!(rights, [true], "a grant of the DBA's own");
        let comment: Vec<String> = column(
            &mut client,
            "SELECT obj_description('loader.execution_history'::regclass, 'pg_class')",
        );
        assert_eq!(comment, ["Ask Ada before you touch it"], "from {version}");
        let keys: Vec<i64> = column(
            &mut client,
            "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'loader.execution_history'::regclass",
        );
        assert_eq!(keys, [0]);
        // A reader of the old version reads all of the new status.
        let mut reader = cluster.connect_to("postgres", "reader");
        reader.batch_execute("SELECT * FROM loader.recorder_status()").unwrap();
        reader.batch_execute("SELECT loader.get_execution_history()").unwrap();
        old_session.batch_execute(start_and_end).unwrap();
        let purged: Vec<i64> =
            column(&mut client, "SELECT loader_history.purge_execution_history('50 days')");
        assert!(purged[0] > 0);
        assert_eq!(
            column::<String>(
                &mut client,
                "SELECT extversion FROM pg_extension WHERE extname = 'loader_history'"
            ),
            [current_version()]
        );
    }
}

/// Dumps a database, and restores that into a new one. The list of loaders of version 1.5.0 was a table in another
/// schema, whose rows a trigger brings.
fn restored(cluster: &Cluster, from: &str, to: &str) -> Client {
    let file = cluster.directory().join("dump");
    pg_test::run(cluster.program("pg_dump").args(["-d", from, "-f"]).arg(&file));
    let create = format!("CREATE DATABASE {to} TEMPLATE template0");
    cluster.connect().batch_execute(&create).unwrap();
    let restore =
        cluster.program("psql").args(["-X", "-q", "-d", to, "-f"]).arg(&file).output().unwrap();
    let errors = String::from_utf8(restore.stderr).unwrap();
    let errors: Vec<_> = errors
        .lines()
        .filter(|line| line.contains("ERROR") && !line.contains("\"loader.recorded_loader\""))
        .collect();
    assert_eq!(errors, Vec::<&str>::new());
    cluster.connect_to(to, "postgres")
}

/// `pg_dump` names no version: what an old one has recorded is restored into the new one.
#[test]
fn a_dump_of_an_old_version_is_restored_into_the_new_and_an_update_survives_a_dump() {
    let cluster = Cluster::start();
    for version in released_versions() {
        let mut client = cluster.connect();
        client.batch_execute("CREATE DATABASE source").unwrap();
        let mut source = cluster.connect_to("source", "postgres");
        source.batch_execute(APPLICATION_SQL).unwrap();
        source
            .batch_execute(&format!("CREATE EXTENSION loader_history VERSION '{version}'"))
            .unwrap();
        source.batch_execute(DATA).unwrap();
        let mut instead = restored(&cluster, "source", "instead");
        source.batch_execute("ALTER EXTENSION loader_history UPDATE").unwrap();
        let mut target = restored(&cluster, "source", "target");
        let summary =
            "SELECT string_agg(s::text, '|' ORDER BY loader_id) FROM loader.loader_summary AS s";
        for database in [&mut instead, &mut target] {
            assert_eq!(data(&mut source), data(database), "{version}");
            assert_eq!(column::<String>(&mut source, summary), column::<String>(database, summary));
            assert_same(&definitions(database), &definitions(&mut source));
        }
        for (role, read) in [
            ("reader", "SELECT * FROM loader.recorder_status()"),
            ("reader", "SELECT loader.get_execution_history()"),
            ("reader", "SELECT * FROM loader.failed_loader_counts"),
            ("recorder", "SELECT loader.record_execution_start(1)"),
        ] {
            for database in ["instead", "target"] {
                let done = cluster.connect_to(database, role).batch_execute(read);
                assert!(done.is_ok(), "{version}, {database}, {role}: {done:?}");
            }
        }
        drop((source, target, instead));
        for name in ["source", "target", "instead"] {
            pg_test::wait_for_no_clients(&cluster, name);
            client.batch_execute(&format!("DROP DATABASE {name}")).unwrap();
        }
        client.batch_execute("DROP ROLE recorder, reader, auditor").unwrap();
    }
}

#[test]
fn preloaded_the_old_sql_records_in_the_callers_transaction_until_the_update_brings_a_worker() {
    for version in released_versions() {
        let cluster = Cluster::start_with(PRELOADED);
        let mut session = Session::new(&cluster, "postgres");
        session.run(APPLICATION_SQL);
        session.run(&format!("CREATE EXTENSION loader_history VERSION '{version}'"));
        let mut observer = cluster.connect();
        let mut listener = Listener::new(&cluster);
        let _earlier = session.warnings();
        session.run("BEGIN");
        let id = session.start();
        let warnings = session.warnings();
        assert!(
            warnings.len() == 1 && warnings[0].contains("ALTER EXTENSION loader_history UPDATE"),
            "{warnings:?}"
        );
        assert_eq!(status_of(&mut observer, id), None, "in the caller's transaction");
        session.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', 3); COMMIT"));
        assert_eq!(status_of(&mut observer, id).as_deref(), Some("SUCCESS"));
        listener.receive_until("the end", |event| {
            event["execution_id"] == id && event["event_type"] == "EXECUTION_SUCCESS"
        });
        assert_eq!(listener.by_execution()[&id], ["STARTED", "SUCCESS"]);
        session.run("SELECT loader.recorder_status(), loader.get_execution_history(); TABLE loader.loader_summary");
        let purge = session.client.batch_execute("SELECT loader.purge_execution_history('0')");
        let error = purge.error("55000");
        assert!(
            error.hint().unwrap().contains("ALTER EXTENSION loader_history UPDATE"),
            "{error:?}"
        );

        session.run("BEGIN; ALTER EXTENSION loader_history UPDATE; ROLLBACK");
        session.run("ALTER EXTENSION loader_history UPDATE");
        wait_for_served(&mut observer, &["postgres"]);
        let _earlier = session.warnings();
        session.run("BEGIN");
        let id = session.start();
        assert_eq!(session.warnings(), Vec::<String>::new());
        assert_eq!(status_of(&mut observer, id).as_deref(), Some("RUNNING"), "at once");
        session.run("ROLLBACK");
        assert_autonomous(&cluster, "postgres");
        // Loaders that the old SQL did not note are known.
        let known: Vec<i64> = column(&mut observer, "SELECT count(*) FROM loader.loader_summary");
        assert!(known[0] > 0);
        let log = cluster.log();
        assert!(!log.contains("loader_history worker:"), "{log}");
    }
}

/// What the worker of version 1.5.0 knew when the server was stopped for the new library.
#[test]
fn what_the_old_worker_knew_is_recorded_right_by_the_new_one() {
    for version in released_versions() {
        let cluster = Cluster::start_with(&format!("{PRELOADED}max_prepared_transactions = 5\n"));
        let mut dba = Session::new(&cluster, "postgres");
        dba.run(APPLICATION_SQL);
        dba.run(&format!("CREATE EXTENSION loader_history VERSION '{version}'"));
        let mut listener = Listener::new(&cluster);
        // Executions whose transactions are open, with a bit of the subtransaction for those that want no events.
        let mut start = |client: &mut Client, subxid: &str| -> (i64, i64) {
            let xid = column::<i64>(client, "SELECT pg_current_xact_id()::text::bigint")[0];
            let id = column::<i64>(
                &mut dba.client,
                "INSERT INTO loader.execution_history (loader_id, execution_start, status)
                     VALUES (1, clock_timestamp(), 'RUNNING') RETURNING id",
            )[0];
            dba.run(&format!("INSERT INTO loader.binding VALUES ({id}, '{xid}', {subxid})"));
            (id, xid)
        };
        let mut open: Vec<_> = (0..5).map(|_| cluster.connect()).collect();
        open.iter_mut().for_each(|client| client.batch_execute("BEGIN").unwrap());
        let silent = format!("'{}'", 1_u64 << 62);
        let (rolled_back, _) = start(&mut open[0], "NULL");
        let (committed, _) = start(&mut open[1], "NULL");
        let (quiet, _) = start(&mut open[2], &silent);
        let (prepared, _) = start(&mut open[3], "NULL");
        let (abandoned, xid) = start(&mut open[4], "NULL");
        open[3].batch_execute("PREPARE TRANSACTION 'load'").unwrap();
        dba.run(&format!("INSERT INTO loader.abandoned_start VALUES ({abandoned}, '{xid}')"));
        dba.run(
            "INSERT INTO loader.execution_history
                    (id, loader_id, execution_start, execution_end, status, error_message)
             VALUES (101, 1, '2026-01-01', '2026-01-02', 'FAILED', 'server'),
                    (102, 2, '2026-01-01', '2026-01-02', 'SUCCESS', NULL);
             INSERT INTO loader.derived_failure VALUES (101, '2026-01-02');
             INSERT INTO loader.prepared_event VALUES (1, '{\"execution_id\": 102, \"status\": \"SUCCESS\"}')",
        );

        dba.run("SET lock_timeout = '5s'; ALTER EXTENSION loader_history UPDATE");
        for end in ["ROLLBACK", "COMMIT", "ROLLBACK"].into_iter().zip(&mut open) {
            end.1.batch_execute(end.0).unwrap();
        }
        dba.run("ROLLBACK PREPARED 'load'");
        for (id, status) in [(rolled_back, "FAILED"), (quiet, "FAILED"), (prepared, "FAILED")] {
            wait_for(&format!("{version}: execution {id}"), || {
                status_of(&mut dba.client, id).as_deref() == Some(status)
            });
        }
        assert_eq!(status_of(&mut dba.client, committed).as_deref(), Some("RUNNING"));
        assert_eq!(status_of(&mut dba.client, abandoned), None);
        dba.run("SELECT loader.record_execution_end(101, 'SUCCESS', 5)");
        assert_eq!(status_of(&mut dba.client, 101).as_deref(), Some("SUCCESS"));
        listener.receive_until("the event of a prepared transaction", |event| {
            event["execution_id"] == 102 && event["event_type"] == "EXECUTION_SUCCESS"
        });
        listener.receive_all(&mut cluster.connect());
        // Its start was inserted by hand.
        assert_eq!(listener.by_execution()[&quiet], ["STARTED"]);
        assert_autonomous(&cluster, "postgres");
    }
}

#[test]
fn loads_that_run_while_the_extension_is_updated_are_recorded_right() {
    let mut random = StdRng::seed_from_u64(pg_test::seed());
    for version in released_versions() {
        let cluster = Cluster::start_with(PRELOADED);
        let mut other = Session::new(&cluster, "postgres");
        other.run(APPLICATION_SQL);
        other.run(&format!("CREATE EXTENSION loader_history VERSION '{version}'"));
        let mut observer = cluster.connect();
        // A load that is open when the update comes: it waits for that, and then loads for the update.
        let mut open = Session::new(&cluster, "postgres");
        open.run("BEGIN");
        let id = open.start();
        let stop = AtomicBool::new(false);
        let known: Vec<(i64, &str)> = thread::scope(|scope| {
            let loaders: Vec<_> = (0..3)
                .map(|_| {
                    let (mut session, stop) = (Session::new(&cluster, "postgres"), &stop);
                    let mut random = StdRng::seed_from_u64(random.random());
                    scope.spawn(move || {
                        let mut known = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            session.run("BEGIN");
                            let id = session.start();
                            if random.random() {
                                session.run(&format!(
                                    "SELECT loader.record_execution_end({id}, 'SUCCESS', 1); COMMIT"
                                ));
                                known.push((id, "SUCCESS"));
                            } else {
                                session.run("ROLLBACK");
                                known.push((id, "FAILED"));
                            }
                        }
                        known
                    })
                })
                .collect();
            let stops = Stop(&stop);
            // Where a panic drops it, nobody waits for its locks.
            let mut open = open;
            let mut dba = Session::new(&cluster, "postgres");
            let pid: i32 = column(&mut dba.client, "SELECT pg_backend_pid()")[0];
            let update = scope.spawn(move || dba.run("ALTER EXTENSION loader_history UPDATE"));
            let waits = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'"
            );
            wait_for("the update to wait for a load", || {
                column::<i64>(&mut observer, &waits) == [1]
            });
            open.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', 1); COMMIT"));
            wait_for("the update", || update.is_finished());
            update.join().expect("the update");
            wait_for_served(&mut observer, &["postgres"]);
            drop(stops);
            loaders.into_iter().flat_map(|loader| loader.join().expect("a loader")).collect()
        });
        let none = "SELECT count(*) FROM loader_history.watched_transaction";
        wait_for_equal("nothing is open", &vec![0], || column::<i64>(&mut observer, none));
        for (id, status) in known.iter().copied().chain([(id, "SUCCESS")]) {
            match status_of(&mut observer, id) {
                // What was in the caller's transaction is gone with it.
                None if status == "FAILED" => {}
                found => assert_eq!(found.as_deref(), Some(status), "{version}: execution {id}"),
            }
        }
        assert_autonomous(&cluster, "postgres");
        let log = cluster.log();
        let complaints: Vec<_> = log
            .lines()
            .filter(|line| line.contains("ERROR") || line.contains("loader_history worker:"))
            .collect();
        assert_eq!(complaints, Vec::<&str>::new());
    }
}

/// Has the threads of a scope stop, also where a panic drops it.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_update_gives_the_schema_back_to_the_owner_it_was_taken_from() {
    for (change, expected) in [
        ("SELECT 1", "app"),
        ("REVOKE GRANT OPTION FOR CREATE ON SCHEMA loader FROM app", "postgres"),
        ("REVOKE ALL ON SCHEMA loader FROM app CASCADE", "postgres"),
    ] {
        let cluster = Cluster::start();
        let mut client = cluster.connect();
        client
            .batch_execute("CREATE ROLE app LOGIN; CREATE ROLE recorder; CREATE SCHEMA loader AUTHORIZATION app")
            .unwrap();
        assert_eq!(released_versions(), ["1.5.0"], "what CREATE EXTENSION finds");
        client.batch_execute("CREATE EXTENSION loader_history VERSION '1.5.0'").unwrap();
        client.batch_execute("SELECT loader.grant_recorder('recorder')").unwrap();
        client.batch_execute(change).unwrap();
        client.batch_execute("ALTER EXTENSION loader_history UPDATE").unwrap();
        let owner = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'loader'";
        assert_eq!(column::<String>(&mut client, owner), [expected], "{change}");
        let usage = "SELECT has_schema_privilege('recorder', 'loader', 'USAGE')
                        AND has_function_privilege('recorder', 'loader.record_execution_start(bigint)', 'EXECUTE')";
        assert_eq!(column::<bool>(&mut client, usage), [true], "{change}");
        if expected == "app" {
            cluster
                .connect_to("postgres", "app")
                .batch_execute("COMMENT ON SCHEMA loader IS 'mine'; GRANT SELECT ON ALL TABLES IN SCHEMA loader TO recorder")
                .unwrap();
        }
    }
}

#[test]
fn an_update_renames_the_setting_where_a_database_or_role_has_it() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "CREATE ROLE app LOGIN;
             ALTER ROLE app SET loader_history.durable = off;
             ALTER ROLE app SET work_mem = '1MB';
             ALTER DATABASE postgres SET loader_history.durable = 'on'",
        )
        .unwrap();
    assert_eq!(released_versions(), ["1.5.0"], "what CREATE EXTENSION finds");
    cluster
        .connect()
        .batch_execute(
            "CREATE EXTENSION loader_history VERSION '1.5.0'; ALTER EXTENSION loader_history UPDATE",
        )
        .unwrap();
    let settings = "SELECT unnest(setconfig) FROM pg_db_role_setting ORDER BY 1";
    assert_eq!(
        column::<String>(&mut client, settings),
        [
            "loader_history.autonomous_start=off",
            "loader_history.autonomous_start=on",
            "work_mem=1MB"
        ]
    );
    let mut app = cluster.connect_to("postgres", "app");
    assert_eq!(
        column::<String>(&mut app, "SELECT current_setting('loader_history.autonomous_start')"),
        ["off"]
    );
}
