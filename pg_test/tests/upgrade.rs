//! Promise: ALTER EXTENSION UPDATE from each released version leaves what a fresh install makes, and
//! every row and grant as they were; until then the new library serves the old SQL as it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pg_test::{
    APPLICATION_SQL, Client, Cluster, Listener, PRELOADED, Session, Signal, assert_autonomous,
    catch_up, column, current_version, released_versions, send_signal, status_of, wait_for,
    wait_for_equal, wait_for_served, worker_of,
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
    SELECT loader.purge_execution_history('100 days', 50);
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
           FROM pg_proc AS p WHERE p.pronamespace = 'loader'::regnamespace",
    ),
    (
        "views",
        "SELECT c.oid::regclass::text, concat_ws(' | ', pg_get_viewdef(c.oid), c.reloptions, c.relowner::regrole)
           FROM pg_class AS c WHERE c.relnamespace = 'loader'::regnamespace AND c.relkind = 'v'",
    ),
    (
        "columns",
        "SELECT c.oid::regclass || '.' || a.attname,
                concat_ws(' | ', c.relkind, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                          pg_get_expr(d.adbin, d.adrelid), a.attstorage, a.attidentity, a.attacl, c.relpersistence,
                          c.reloptions, c.relrowsecurity, c.relreplident, c.relowner::regrole)
           FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
          WHERE c.relnamespace = 'loader'::regnamespace",
    ),
    (
        "constraints",
        "SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) || convalidated
           FROM pg_constraint WHERE connamespace = 'loader'::regnamespace",
    ),
    (
        "indexes",
        "SELECT indexrelid::regclass::text, concat_ws(' | ', pg_get_indexdef(indexrelid), indisvalid, indisunique, indisprimary)
           FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid WHERE c.relnamespace = 'loader'::regnamespace",
    ),
    (
        "triggers",
        "SELECT tgrelid::regclass || '.' || CASE WHEN tgisinternal THEN tgfoid::regproc::text ELSE tgname END,
                concat_ws(' | ', CASE WHEN NOT tgisinternal THEN pg_get_triggerdef(t.oid) END, tgenabled, tgisinternal)
           FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid WHERE c.relnamespace = 'loader'::regnamespace",
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
                   FROM pg_proc AS p WHERE pronamespace = 'loader'::regnamespace
                 UNION ALL
                 SELECT c.oid::regclass::text,
                        coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner))
                   FROM pg_class AS c WHERE relnamespace = 'loader'::regnamespace AND relkind IN ('r', 'v', 'S', 'p')
                 UNION ALL
                 SELECT 'schema', coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace WHERE nspname = 'loader') AS o,
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
                AND objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'loader'::regnamespace)
             OR classoid = 'pg_constraint'::regclass
                AND objoid IN (SELECT oid FROM pg_constraint WHERE connamespace = 'loader'::regnamespace)
             OR classoid = 'pg_trigger'::regclass
                AND objoid IN (SELECT t.oid FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid
                                WHERE c.relnamespace = 'loader'::regnamespace)
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
        "SELECT string_agg(loader_id::text, '|' ORDER BY loader_id) FROM (SELECT DISTINCT loader_id FROM loader.recorded_loader) AS r",
        "SELECT string_agg(s::text, '|' ORDER BY loader_id) FROM loader.loader_summary AS s",
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
            "SELECT has_function_privilege('auditor', 'loader.purge_execution_history(interval, bigint)', 'EXECUTE')",
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
            column(&mut client, "SELECT loader.purge_execution_history('50 days')");
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

/// Dumps a database, and restores that into a new one.
fn restored(cluster: &Cluster, from: &str, to: &str) -> Client {
    let file = cluster.directory().join("dump");
    pg_test::run(cluster.program("pg_dump").args(["-d", from, "-f"]).arg(&file));
    let create = format!("CREATE DATABASE {to} TEMPLATE template0");
    cluster.connect().batch_execute(&create).unwrap();
    pg_test::run(
        cluster
            .program("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", to, "-f"])
            .arg(&file),
    );
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
        for database in [&mut instead, &mut target] {
            assert_eq!(data(&mut source), data(database), "{version}");
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
fn preloaded_a_version_with_a_worker_keeps_it_before_the_update() {
    for version in released_versions() {
        let cluster = Cluster::start_with(PRELOADED);
        let mut session = Session::new(&cluster, "postgres");
        session.run(APPLICATION_SQL);
        session.run(&format!("CREATE EXTENSION loader_history VERSION '{version}'"));
        let mut observer = cluster.connect();
        wait_for_served(&mut observer, &["postgres"]);
        let mut listener = Listener::new(&cluster);
        assert_autonomous(&cluster, "postgres");
        let id = session.start();
        session.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', 3)"));
        listener.receive_until("the end", |event| {
            event["execution_id"] == id && event["event"] == "EXECUTION_SUCCESS"
        });
        assert_eq!(listener.by_execution()[&id], ["STARTED", "SUCCESS"]);
        session.run("ALTER EXTENSION loader_history UPDATE");
        session.run("BEGIN");
        let id = session.start();
        session.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', 3)"));
        session.run("PREPARE TRANSACTION 'load'");
        session.run("COMMIT PREPARED 'load'");
        listener.receive_until("the end of a prepared load", |event| {
            event["execution_id"] == id && event["event"] == "EXECUTION_SUCCESS"
        });
        assert_autonomous(&cluster, "postgres");
        let log = cluster.log();
        assert!(!log.contains("loader_history worker:"), "{log}");
    }
}

/// A cluster that preloads the library, whose database `postgres` has the extension in an older version with a
/// worker.
fn worked_by(version: &str, settings: &str) -> Cluster {
    let cluster = Cluster::start_with(&format!("{PRELOADED}{settings}"));
    let mut session = Session::new(&cluster, "postgres");
    session.run(APPLICATION_SQL);
    session.run(&format!("CREATE EXTENSION loader_history VERSION '{version}'"));
    wait_for_served(&mut session.client, &["postgres"]);
    drop(session);
    assert_autonomous(&cluster, "postgres");
    cluster
}

const SERVER_STOPPED: &str =
    "The server stopped before the transaction that started the execution had committed.";

/// The status of an execution and its text.
fn outcome(client: &mut Client, id: i64) -> String {
    let said = format!(
        "SELECT concat_ws(' ', status, error_message) FROM loader.execution_history WHERE id = {id}"
    );
    column::<String>(client, &said).concat()
}

#[test]
fn loads_that_run_while_the_extension_is_updated_are_recorded_right() {
    let mut random = StdRng::seed_from_u64(pg_test::seed());
    for version in released_versions() {
        let cluster = worked_by(&version, "");
        let mut observer = cluster.connect();
        let mut other = Session::new(&cluster, "postgres");
        // What the server has found, and what nobody has ended.
        other.run("BEGIN");
        let derived = other.start();
        other.run("ROLLBACK");
        wait_for("the failure", || status_of(&mut observer, derived).as_deref() == Some("FAILED"));
        let committed = other.start();
        // What is open when the update comes.
        let mut open: Vec<_> = (0..5).map(|_| Session::new(&cluster, "postgres")).collect();
        let ids: Vec<_> = open
            .iter_mut()
            .map(|session| {
                session.run("SET loader_history.notify = off; BEGIN; SAVEPOINT one");
                session.start()
            })
            .collect();
        for place in [1, 4] {
            open[place]
                .run(&format!("SELECT loader.record_execution_end({}, 'SUCCESS', 1)", ids[place]));
        }
        // And what comes meanwhile.
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
            // Where a panic drops them, nobody waits for their locks.
            let mut open = open;
            let mut dba = Session::new(&cluster, "postgres");
            let pid: i32 = column(&mut dba.client, "SELECT pg_backend_pid()")[0];
            let update = scope.spawn(move || dba.run("ALTER EXTENSION loader_history UPDATE"));
            let waits = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'"
            );
            wait_for("the update to be done, or to wait for a load", || {
                update.is_finished() || column::<i64>(&mut observer, &waits) == [1]
            });
            open[0].run("ROLLBACK");
            open[1].run("COMMIT");
            open[2].run("ROLLBACK TO one; COMMIT");
            open[3].run("COMMIT");
            open[4].run("PREPARE TRANSACTION 'load'");
            open[4].run("COMMIT PREPARED 'load'");
            wait_for("the update", || update.is_finished());
            update.join().expect("the update");
            drop(stops);
            loaders.into_iter().flat_map(|loader| loader.join().expect("a loader")).collect()
        });
        other.run(&format!(
            "SELECT loader.record_execution_end({derived}, 'SUCCESS', 2);
             SELECT loader.record_execution_end({committed}, 'SUCCESS', 3)"
        ));
        let bound = "SELECT count(*) FROM loader.binding";
        wait_for_equal("nothing is open", &vec![0], || column::<i64>(&mut observer, bound));
        let expected = ids.into_iter().zip(["FAILED", "SUCCESS", "FAILED", "RUNNING", "SUCCESS"]);
        let words = [(derived, "SUCCESS"), (committed, "SUCCESS")];
        // What a start with a warning had not committed is gone with its load.
        let warned = |id: i64| known.iter().any(|&(of, status)| of == id && status == "FAILED");
        for (id, status) in expected.chain(words).chain(known.iter().copied()) {
            match status_of(&mut observer, id) {
                None if warned(id) => {}
                found => assert_eq!(found.as_deref(), Some(status), "{version}: execution {id}"),
            }
        }
        assert_autonomous(&cluster, "postgres");
        // The worker does not wait long for the tables that are being changed, and tries again.
        let log = cluster.log();
        let complaints: Vec<_> = log
            .lines()
            .filter(|line| line.contains("ERROR") || line.contains("loader_history worker:"))
            .filter(|line| !line.ends_with("canceling statement due to lock timeout"))
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
fn preloaded_an_old_version_outlives_what_kills_servers_before_the_update() {
    for version in released_versions() {
        let mut cluster = worked_by(&version, "");
        let mut failed = Vec::new();
        for kill in ["the server", "the worker"] {
            let mut session = Session::new(&cluster, "postgres");
            session.run("BEGIN");
            failed.push(session.start());
            let mut other = Session::new(&cluster, "postgres");
            let committed = other.start();
            other.run("BEGIN");
            other.run(&format!("SELECT loader.record_execution_end({committed}, 'SUCCESS', 1)"));
            other.run("COMMIT");
            if kill == "the server" {
                cluster.crash_server();
                cluster.start_server();
            } else {
                let worker = worker_of(&mut other.client, "postgres");
                send_signal(worker, Signal::SIGKILL);
                // Which crashes all others.
                wait_for("the crash", || session.client.batch_execute("SELECT 1").is_err());
                wait_for("the server", || {
                    cluster.config("postgres", "postgres").connect(postgres::NoTls).is_ok()
                });
            }
            let mut observer = cluster.connect();
            let text = format!("FAILED {SERVER_STOPPED}");
            let id = failed[failed.len() - 1];
            wait_for_equal(&format!("{version}: {kill}"), &text, || outcome(&mut observer, id));
            assert_eq!(outcome(&mut observer, committed), "SUCCESS");
            assert_autonomous(&cluster, "postgres");
        }
        // Two-phase loads, without events: there is not yet a table for those in the first of these versions.
        let mut observer = cluster.connect();
        let mut session = Session::new(&cluster, "postgres");
        session.run("SET loader_history.notify = off");
        for (end, expected) in [("COMMIT", "SUCCESS"), ("ROLLBACK", "FAILED")] {
            session.run("BEGIN");
            let id = session.start();
            session.run(&format!(
                "SELECT loader.record_execution_end({id}, 'SUCCESS', 1); PREPARE TRANSACTION 'load'"
            ));
            assert_eq!(outcome(&mut observer, id), "RUNNING", "{version}");
            session.run(&format!("{end} PREPARED 'load'"));
            wait_for(&format!("{version}: {end} PREPARED"), || {
                status_of(&mut observer, id).as_deref() == Some(expected)
            });
        }
        // Its primary dies with an open load, and one that is prepared.
        let standby = cluster.start_standby();
        session.run("BEGIN");
        let prepared = session.start();
        session.run(&format!(
            "SELECT loader.record_execution_end({prepared}, 'SUCCESS', 1); PREPARE TRANSACTION 'load'"
        ));
        session.run("BEGIN");
        let open = session.start();
        catch_up(&mut observer, &mut standby.connect());
        cluster.kill_server();
        standby.promote();
        let mut client = standby.connect();
        wait_for_served(&mut client, &["postgres"]);
        let text = format!("FAILED {SERVER_STOPPED}");
        wait_for_equal(&format!("{version}: the promotion"), &text, || outcome(&mut client, open));
        assert_eq!(outcome(&mut client, prepared), "RUNNING");
        client.batch_execute("COMMIT PREPARED 'load'").unwrap();
        assert_eq!(outcome(&mut client, prepared), "SUCCESS");
        assert_autonomous(&standby, "postgres");
        let log = standby.log();
        assert!(!log.contains("loader_history worker:"), "{log}");
        // And there it is updated.
        client.batch_execute("ALTER EXTENSION loader_history UPDATE").unwrap();
        assert_autonomous(&standby, "postgres");
        assert_eq!(outcome(&mut client, open), text);
    }
}

#[test]
fn an_update_of_the_last_version_waits_for_no_open_load() {
    // What came before has to: it changes tables that loads use.
    for version in released_versions() {
        let cluster = worked_by(&version, "max_prepared_transactions = 5\n");
        let mut loads: Vec<_> = ["ROLLBACK", "COMMIT", "PREPARE TRANSACTION 'load'"]
            .into_iter()
            .map(|last| {
                let mut load = Session::new(&cluster, "postgres");
                load.run("BEGIN");
                let id = load.start();
                if last != "ROLLBACK" {
                    load.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', 3)"));
                }
                (load, id, last)
            })
            .collect();
        let (mut prepared, id, prepare) = loads.pop().unwrap();
        prepared.run(prepare);
        let mut dba = Session::new(&cluster, "postgres");
        dba.run("SET lock_timeout = '2s'; ALTER EXTENSION loader_history UPDATE");
        prepared.run("COMMIT PREPARED 'load'");
        let mut expected = vec![(id, "SUCCESS")];
        for (load, id, last) in &mut loads {
            load.run(last);
            expected.push((*id, if *last == "COMMIT" { "SUCCESS" } else { "FAILED" }));
        }
        for (id, status) in expected {
            wait_for("the outcome", || status_of(&mut dba.client, id).as_deref() == Some(status));
        }
    }
}
