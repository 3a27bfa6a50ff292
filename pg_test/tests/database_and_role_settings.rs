//! Promise: whatever a database, a role or the configuration sets, and whatever loader.loader is made
//! of, starts stay autonomous or give a WARNING with the reason, and code runs with its owner's rights only.

use pg_test::{
    APPLICATION_SQL, Client, Cluster, HasError, PRELOADED, Session, assert_autonomous,
    assert_autonomous_in, column, fallback_start, preloaded_cluster, preloaded_cluster_with,
    status_of, wait_for, wait_for_served, wait_for_worker, worker_of,
};

/// What a session of a test needs whatever the database sets; the worker has no such options.
const SANE: &str = "-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off \
                    -c idle_in_transaction_session_timeout=0 -c client_min_messages=notice \
                    -c loader_history.autonomous_start=on -c loader_history.worker_timeout=20s \
                    -c search_path=public";

/// Settings that have broken background processes of others.
const HOSTILE: [&str; 25] = [
    "default_transaction_read_only = on",
    "session_replication_role = replica",
    "session_replication_role = local",
    "default_transaction_isolation = serializable",
    "default_transaction_deferrable = on",
    "search_path = trap, nowhere, pg_catalog",
    "lock_timeout = '1ms'",
    "statement_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "synchronous_commit = off",
    "synchronous_commit = remote_apply",
    "row_security = off",
    "loader_history.autonomous_start = off",
    "loader_history.notify = off",
    "loader_history.worker_timeout = '1ms'",
    "default_tablespace = pg_default",
    "default_table_access_method = heap",
    "constraint_exclusion = on",
    "plan_cache_mode = force_generic_plan",
    "enable_indexscan = off",
    "bytea_output = escape",
    "client_min_messages = error",
    "DateStyle = 'SQL, DMY'",
    "jit_above_cost = 0",
    "exit_on_error = on",
];

fn session(cluster: &Cluster) -> Session {
    Session::with_options(cluster, "postgres", "postgres", SANE)
}

/// Has another worker come, which reads the settings of the database and the role.
fn replace_worker(cluster: &Cluster) {
    let mut client = Session::with_options(cluster, "template1", "postgres", SANE).client;
    let before = worker_of(&mut client, "postgres");
    client.batch_execute("ALTER DATABASE postgres CONNECTION LIMIT -1").unwrap();
    wait_for("another worker", || worker_of(&mut client, "postgres") != before);
    wait_for_served(&mut client, &["postgres"]);
}

/// A start that is rolled back becomes a failure, one that ends well a success, seen by others, and the
/// worker complains of nothing.
#[track_caller]
fn works(cluster: &Cluster, what: &str) {
    println!("{what}");
    assert_autonomous_in(session(cluster), session(cluster));
    let (mut loader, mut observer) = (session(cluster), session(cluster));
    loader.run("BEGIN");
    let id = loader.start();
    assert_eq!(status_of(&mut observer.client, id).as_deref(), Some("RUNNING"), "{what}");
    loader.run(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS', 3); COMMIT"));
    assert_eq!(status_of(&mut observer.client, id).as_deref(), Some("SUCCESS"), "{what}");
    let status: Vec<Option<String>> = column(
        &mut observer.client,
        "SELECT concat_ws(' ', detail, last_error) FROM loader.recorder_status()",
    );
    assert_eq!(status, [Some(String::new())], "{what}");
}

#[test]
fn settings_of_a_database_and_of_roles_change_nothing() {
    let cluster = preloaded_cluster();
    let mut dba = Session::with_options(&cluster, "template1", "postgres", SANE);
    session(&cluster).run(
        "CREATE SCHEMA trap;
         CREATE FUNCTION trap.trip(bigint) RETURNS bigint LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'a shadow ran'; END $$;
         CREATE TYPE trap.int8 AS (a integer);
         CREATE FUNCTION trap.equal(bigint, bigint) RETURNS boolean LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'a shadow ran'; END $$;
         CREATE OPERATOR trap.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = trap.equal);
         CREATE FUNCTION trap.unnest(bigint[]) RETURNS SETOF bigint LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'a shadow ran'; END $$;",
    );
    for setting in HOSTILE {
        dba.run(&format!("ALTER DATABASE postgres SET {setting}"));
        replace_worker(&cluster);
        works(&cluster, &format!("ALTER DATABASE SET {setting}"));
        let (name, _) = setting.split_once(' ').unwrap();
        dba.run(&format!("ALTER DATABASE postgres RESET {name}"));
    }
    // All of them at once, of the role that the worker runs as, and of all roles.
    for role in ["postgres IN DATABASE postgres", "ALL"] {
        for setting in HOSTILE {
            dba.run(&format!("ALTER ROLE {role} SET {setting}"));
        }
        replace_worker(&cluster);
        works(&cluster, role);
        dba.run(&format!("ALTER ROLE {role} RESET ALL"));
    }
    assert!(!cluster.log().contains("ERROR"), "{}", cluster.log());
}

#[test]
fn settings_of_the_configuration_change_nothing() {
    for settings in [
        "session_replication_role = replica\ndefault_transaction_read_only = on\nlock_timeout = 1\n",
        "session_replication_role = origin\ndefault_transaction_isolation = serializable\nstatement_timeout = 1\nsearch_path = nowhere\nsynchronous_commit = off\n",
    ] {
        let cluster = Cluster::start_with(PRELOADED);
        let mut setup = session(&cluster);
        setup.run(APPLICATION_SQL);
        setup.run("CREATE EXTENSION loader_history");
        wait_for_worker(&mut setup.client);
        drop(setup);
        let mut cluster = cluster;
        cluster.stop_server();
        let file = cluster.data().join("postgresql.conf");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{text}\n{settings}")).unwrap();
        cluster.start_server();
        let mut client = session(&cluster).client;
        wait_for_worker(&mut client);
        works(&cluster, settings);
        assert!(!cluster.log().contains("ERROR"), "{}", cluster.log());
    }
}

#[test]
fn a_session_in_role_replica_and_other_isolation_levels() {
    let cluster = preloaded_cluster();
    for options in [
        "-c session_replication_role=replica",
        "-c default_transaction_isolation=serializable",
        "-c default_transaction_isolation=repeatable\\ read",
        "-c row_security=off",
        "-c synchronous_commit=off",
        "-c search_path=",
        "-c lock_timeout=500ms -c statement_timeout=20s",
    ] {
        println!("{options}");
        let loader = Session::with_options(&cluster, "postgres", "postgres", options);
        assert_autonomous_in(loader, session(&cluster));
    }
}

// loader.loader, which is the application's, in many forms

/// A cluster whose loader.loader `table` makes.
fn cluster_with_table(table: &str) -> Cluster {
    let cluster = Cluster::start_with(PRELOADED);
    let mut client = cluster.connect();
    if let Err(error) = client.batch_execute(&format!("CREATE SCHEMA loader; {table}")) {
        panic!("{table}: {error:?}");
    }
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    wait_for("the worker", || {
        column::<bool>(&mut client, "SELECT worker_pid IS NOT NULL FROM loader.recorder_status()")
            == [true]
    });
    let key: Vec<bool> = column(&mut client, "SELECT foreign_key FROM loader.recorder_status()");
    assert_eq!(key, [true], "the key of {table}");
    cluster
}

#[test]
fn loader_loader_may_be_of_many_kinds() {
    let rows = "INSERT INTO loader.loader SELECT n FROM generate_series(1, 10) AS n";
    for (kind, table) in [
        ("integer", "CREATE TABLE loader.loader (id integer PRIMARY KEY);"),
        ("smallint", "CREATE TABLE loader.loader (id smallint PRIMARY KEY);"),
        ("numeric", "CREATE TABLE loader.loader (id numeric PRIMARY KEY);"),
        ("identity", "CREATE TABLE loader.loader (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY);"),
        ("unique index", "CREATE TABLE loader.loader (id bigint); CREATE UNIQUE INDEX ON loader.loader (id);"),
        (
            "partitioned by range",
            "CREATE TABLE loader.loader (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE loader.low PARTITION OF loader.loader FOR VALUES FROM (MINVALUE) TO (2);
             CREATE TABLE loader.high PARTITION OF loader.loader FOR VALUES FROM (2) TO (MAXVALUE);",
        ),
        (
            "partitioned by hash",
            "CREATE TABLE loader.loader (id bigint PRIMARY KEY) PARTITION BY HASH (id);
             CREATE TABLE loader.even PARTITION OF loader.loader FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE loader.odd PARTITION OF loader.loader FOR VALUES WITH (MODULUS 2, REMAINDER 1);",
        ),
        (
            "inherited from",
            "CREATE TABLE loader.loader (id bigint PRIMARY KEY); CREATE TABLE loader.child () INHERITS (loader.loader);",
        ),
        (
            "with row level security forced",
            "CREATE TABLE loader.loader (id bigint PRIMARY KEY);
             ALTER TABLE loader.loader ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;",
        ),
        (
            "of a role that cannot log in",
            "CREATE ROLE owner NOLOGIN; CREATE TABLE loader.loader (id bigint PRIMARY KEY);
             ALTER TABLE loader.loader OWNER TO owner; GRANT USAGE ON SCHEMA loader TO owner;",
        ),
        (
            "of a role that cannot log in, in row level security",
            "CREATE ROLE owner NOLOGIN; CREATE TABLE loader.loader (id bigint PRIMARY KEY);
             ALTER TABLE loader.loader ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
             ALTER TABLE loader.loader OWNER TO owner; GRANT USAGE ON SCHEMA loader TO owner;",
        ),
        ("another column's name", "CREATE TABLE loader.loader (\"ID\" text, id bigint PRIMARY KEY);"),
    ] {
        println!("{kind}");
        let rows = if kind.starts_with("another") { rows.replace("SELECT n", "SELECT 'x', n") } else { rows.to_owned() };
        let cluster = cluster_with_table(&format!("{table} {rows};"));
        assert_autonomous(&cluster, "postgres");
        // A recorder of no other right, and one that inserts the loader in the same transaction.
        let mut dba = Session::new(&cluster, "postgres");
        dba.run("CREATE ROLE recorder LOGIN; SELECT loader_history.grant_recorder('recorder')");
        let recorder = Session::with_options(&cluster, "postgres", "recorder", "");
        assert_autonomous_in(recorder, Session::new(&cluster, "postgres"));
        let state: Vec<Option<String>> = column(
            &mut dba.client,
            "SELECT concat_ws(' ', detail, last_error) FROM loader.recorder_status()",
        );
        assert_eq!(state, [Some(String::new())], "{kind}");
        dba.client.query("SELECT loader.record_execution_start(99)", &[]).error("23503");
        assert!(!cluster.log().contains("terminated by signal"), "{kind}");
    }
}

#[test]
fn a_start_of_a_loader_inserted_by_the_same_transaction_is_transactional_with_a_warning() {
    for table in [
        "CREATE TABLE loader.loader (id bigint PRIMARY KEY);",
        "CREATE TABLE loader.loader (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE loader.all PARTITION OF loader.loader DEFAULT;",
        "CREATE TABLE loader.loader (id bigint PRIMARY KEY);
         ALTER TABLE loader.loader ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;",
    ] {
        let cluster = cluster_with_table(table);
        let (mut session, mut observer) = (Session::new(&cluster, "postgres"), cluster.connect());
        session.run("BEGIN; INSERT INTO loader.loader VALUES (1)");
        let id = session.start();
        let warnings = session.warnings();
        assert_eq!(warnings.len(), 1, "{table}: {warnings:?}");
        assert!(warnings[0].contains("not committed"), "{warnings:?}");
        assert_eq!(status_of(&mut observer, id), None);
        session.run("COMMIT");
        assert_eq!(status_of(&mut observer, id).as_deref(), Some("RUNNING"));
        // Changed, but not made, by the same transaction: others see it.
        session.run("BEGIN; UPDATE loader.loader SET id = id");
        session.start();
        assert_eq!(session.warnings(), Vec::<String>::new(), "{table}");
        session.run("COMMIT");
    }
}

#[test]
fn a_loader_loader_that_became_a_view() {
    let cluster = preloaded_cluster();
    let mut dba = Session::new(&cluster, "postgres");
    dba.run(
        "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;
         DROP TABLE loader.loader;
         CREATE VIEW loader.loader AS SELECT 1::bigint AS id",
    );
    // There is no key, so nothing is checked.
    assert_autonomous(&cluster, "postgres");
    let detail: Vec<String> =
        column(&mut dba.client, "SELECT detail FROM loader.recorder_status()");
    assert!(detail[0].contains("not a table"), "{detail:?}");
    assert!(!cluster.log().contains("terminated by signal"));
}

#[test]
fn a_key_of_the_dbas_own_that_no_worker_can_lock_by_gives_one_warning_a_start() {
    let cluster = preloaded_cluster();
    let mut dba = Session::new(&cluster, "postgres");
    dba.run(
        "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;
         DROP TABLE loader.loader;
         CREATE TABLE loader.loader (id double precision PRIMARY KEY);
         INSERT INTO loader.loader VALUES (1);
         ALTER TABLE loader.execution_history ADD FOREIGN KEY (loader_id) REFERENCES loader.loader",
    );
    let mut observer = cluster.connect();
    let warning = fallback_start(&mut dba, &mut observer);
    assert!(warning.contains("cannot lock by the key"), "{warning}");
}

// Attackers: as in privileges.rs, a role `attacker` plants functions that note whether they ran as a
// superuser, in sequences, which no rollback takes back. Here the role tries harder to become one.

fn trapped_cluster(hostile: &str) -> (Cluster, Client) {
    let cluster = Cluster::start_with(PRELOADED);
    let mut dba = cluster.connect();
    dba.batch_execute(
        "CREATE ROLE attacker LOGIN; CREATE ROLE victim LOGIN; ALTER DATABASE postgres OWNER TO attacker",
    )
    .unwrap();
    let mut attacker = cluster.connect_to("postgres", "attacker");
    attacker
        .batch_execute(
            "CREATE SCHEMA trap; GRANT USAGE ON SCHEMA trap TO PUBLIC;
             CREATE SEQUENCE trap.ran; CREATE SEQUENCE trap.ran_as_superuser; CREATE SEQUENCE trap.ran_as_another;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA trap TO PUBLIC;
             CREATE FUNCTION trap.note() RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog AS $$
             BEGIN
                 PERFORM nextval('trap.ran');
                 IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                     PERFORM nextval('trap.ran_as_superuser');
                 ELSIF current_user <> 'attacker' THEN
                     PERFORM nextval('trap.ran_as_another');
                 END IF;
                 IF current_user <> 'attacker' THEN
                     RAISE WARNING 'pwned: runs as %', current_user;
                 END IF;
                 RETURN 0;
             END
             $$;
             CREATE FUNCTION trap.trigger() RETURNS trigger LANGUAGE plpgsql
                 AS $$ BEGIN PERFORM trap.note(); RETURN coalesce(NEW, OLD); END $$;
             -- What it inserts into is looked at when the transaction commits.
             CREATE TABLE trap.later (id integer);
             CREATE CONSTRAINT TRIGGER later AFTER INSERT ON trap.later DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION trap.trigger();
             CREATE FUNCTION trap.spring() RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog AS $$
             DECLARE
                 way text;
             BEGIN
                 PERFORM trap.note();
                 FOREACH way IN ARRAY ARRAY[
                     'SELECT set_config(''role'', ''none'', false)',
                     'SELECT set_config(''session_authorization'', ''postgres'', false)',
                     'RESET ROLE', 'SET ROLE NONE', 'RESET SESSION AUTHORIZATION',
                     'SET SESSION AUTHORIZATION DEFAULT', 'SET ROLE postgres',
                     'INSERT INTO trap.later VALUES (1)',
                     'DECLARE held CURSOR WITH HOLD FOR SELECT trap.note()',
                     'CREATE TEMPORARY TABLE pg_temp_trap (id integer DEFAULT trap.note())',
                     'ALTER ROLE attacker SUPERUSER'
                 ] LOOP
                     BEGIN
                         EXECUTE way;
                         PERFORM trap.note();
                     EXCEPTION WHEN OTHERS THEN NULL;
                     END;
                 END LOOP;
                 RETURN 0;
             END
             $$;
             CREATE FUNCTION trap.immutable(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE
                 AS $$ BEGIN RETURN trap.spring(); END $$;
             CREATE FUNCTION trap.spring_trigger() RETURNS trigger LANGUAGE plpgsql
                 AS $$ BEGIN PERFORM trap.spring(); RETURN coalesce(NEW, OLD); END $$;
             CREATE SCHEMA loader;
             CREATE TABLE loader.loader (id bigint NOT NULL);",
        )
        .unwrap();
    dba.batch_execute(
        "CREATE EXTENSION loader_history;
         SELECT loader_history.grant_recorder('victim'), loader_history.grant_recorder('attacker')",
    )
    .unwrap();
    attacker.batch_execute("SELECT trap.spring()").unwrap();
    assert_eq!(caught(&cluster), None, "the trap works");
    dba.batch_execute("SELECT trap.spring()").unwrap();
    assert_eq!(caught(&cluster), Some("a superuser"), "the trap works");
    dba.batch_execute("ALTER ROLE attacker NOSUPERUSER").unwrap();
    dba.batch_execute(
        "SELECT setval('trap.ran', 1, false), setval('trap.ran_as_superuser', 1, false)",
    )
    .unwrap();
    // Whatever cannot be added is not worth an attack.
    for statement in [
        "INSERT INTO loader.loader VALUES (1), (2)",
        "ALTER TABLE loader.loader ADD PRIMARY KEY (id)",
    ]
    .into_iter()
    .chain(hostile.split(";;"))
    {
        if let Err(error) = attacker.batch_execute(statement) {
            panic!("{statement}: {error:?}");
        }
    }
    (cluster, attacker)
}

/// As whom else than the attacker the attacker's code ran.
fn caught(cluster: &Cluster) -> Option<&'static str> {
    let row = cluster
        .connect()
        .query_one(
            "SELECT (SELECT is_called FROM trap.ran_as_superuser), (SELECT is_called FROM trap.ran_as_another)",
            &[],
        )
        .unwrap();
    match (row.get(0), row.get(1)) {
        (true, _) => Some("a superuser"),
        (_, true) => Some("another role"),
        _ => None,
    }
}

/// What [`attack`] runs while the worker cannot write `loader_history.watched_transaction`.
const FALLBACK: &str = "SELECT loader.record_execution_start(1) AS fallback";

/// Has everybody start, roll back, commit and end, with the loader's row committed, changed and new.
fn attack(hostile: &str) {
    let (cluster, attacker) = trapped_cluster(hostile);
    drop(attacker);
    let mut dba = Session::new(&cluster, "postgres");
    wait_for_served(&mut dba.client, &["postgres"]);
    let key: Vec<String> = column(
        &mut dba.client,
        "SELECT concat_ws(' ', foreign_key, detail) FROM loader.recorder_status()",
    );
    println!("{hostile}: {key:?}");
    assert_eq!(caught(&cluster), None, "when the key came");
    let mut violations = Vec::new();
    for work in [
        "SET loader_history.autonomous_start = off; SELECT loader.record_execution_start(1)",
        "BEGIN; SELECT loader.record_execution_start(1); COMMIT",
        "BEGIN; SELECT loader.record_execution_start(1); ROLLBACK",
        "BEGIN; SAVEPOINT s; SELECT loader.record_execution_start(1); ROLLBACK TO s; COMMIT",
        "SELECT loader.record_execution_end(loader.record_execution_start(1), 'SUCCESS')",
        // The worker itself must look at the loader's row.
        "BEGIN; UPDATE loader.loader SET id = id WHERE id = 1; SELECT loader.record_execution_start(1); COMMIT",
        "BEGIN; INSERT INTO loader.loader VALUES (3); SELECT loader.record_execution_start(3); ROLLBACK",
        "BEGIN; SELECT FROM loader.loader WHERE id = 1 FOR UPDATE; SELECT loader.record_execution_start(1); ROLLBACK",
        // PostgreSQL itself checks the key of a transactional start.
        FALLBACK,
    ] {
        for role in ["victim", "attacker", "postgres"] {
            let locked = work == FALLBACK;
            if locked {
                dba.run("BEGIN; LOCK TABLE loader_history.watched_transaction IN SHARE ROW EXCLUSIVE MODE");
            }
            if role != "attacker" && work.contains("loader.loader ") {
                // Whoever uses a table of others runs what they put there; that is not ours.
                continue;
            }
            let mut session = Session::with_options(&cluster, "postgres", role, "");
            // Some may well fail: by the trap's errors, or for want of rights to loader.loader.
            let _ = session.client.batch_execute(work);
            let _ = session.client.batch_execute("ROLLBACK");
            assert!(!session.client.is_closed(), "{hostile}: {work} as {role}");
            if locked {
                dba.run("COMMIT");
            }
            // The worker has done its part, whatever it is, before the trap is looked at.
            wait_for("all to have an outcome", || {
                let open = "SELECT watched_running FROM loader.recorder_status()";
                column::<i64>(&mut dba.client, open) == [0]
            });
            if let Some(whom) = caught(&cluster) {
                violations.push(format!("as {whom}: {work}, by {role}"));
                dba.run(
                    "SELECT setval('trap.ran_as_superuser', 1, false), setval('trap.ran_as_another', 1, false)",
                );
            }
        }
    }
    let failed = "SELECT count(*) FROM loader.execution_history WHERE status = 'FAILED'";
    assert!(column::<i64>(&mut dba.client, failed)[0] > 0, "{hostile}: none FAILED");
    assert!(violations.is_empty(), "the attacker's code ran\n{}", violations.join("\n"));
    let superuser: Vec<bool> =
        column(&mut dba.client, "SELECT rolsuper FROM pg_roles WHERE rolname = 'attacker'");
    assert_eq!(superuser, [false]);
    assert!(!cluster.log().contains("terminated by signal"), "{hostile}");
}

#[test]
fn indexes_on_loader_loader_run_with_nobody_elses_rights() {
    attack("CREATE INDEX ON loader.loader ((id + trap.immutable(0)))");
}

#[test]
fn partial_indexes_on_loader_loader_run_with_nobody_elses_rights() {
    attack("CREATE INDEX ON loader.loader (id) WHERE id > trap.immutable(0)");
}

#[test]
fn checks_and_policies_on_loader_loader_run_with_nobody_elses_rights() {
    attack(
        "ALTER TABLE loader.loader ADD CHECK (trap.immutable(id) = 0), ADD CHECK (trap.spring() = 0);;
         CREATE POLICY e ON loader.loader USING (trap.spring() = 0);;
         ALTER TABLE loader.loader ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    );
}

#[test]
fn statistics_on_loader_loader_run_with_nobody_elses_rights() {
    attack(
        "CREATE STATISTICS trap.statistics ON (id + trap.immutable(0)), (id - trap.immutable(0)) FROM loader.loader;;
         ANALYZE loader.loader",
    );
}

#[test]
fn triggers_and_rules_on_loader_loader_run_with_nobody_elses_rights() {
    attack(
        "CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON loader.loader
             FOR EACH ROW EXECUTE FUNCTION trap.spring_trigger();;
         CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON loader.loader
             FOR EACH STATEMENT EXECUTE FUNCTION trap.spring_trigger();;
         CREATE CONSTRAINT TRIGGER c AFTER INSERT OR UPDATE ON loader.loader DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION trap.spring_trigger();;
         CREATE RULE d AS ON INSERT TO loader.loader DO ALSO SELECT trap.spring()",
    );
}

#[test]
fn partitions_of_loader_loader_run_with_nobody_elses_rights() {
    attack(
        "ALTER TABLE loader.loader RENAME TO former;;
         CREATE TABLE loader.loader (id bigint PRIMARY KEY) PARTITION BY RANGE (id);;
         CREATE TABLE loader.low PARTITION OF loader.loader FOR VALUES FROM (MINVALUE) TO (2);;
         CREATE TABLE loader.high PARTITION OF loader.loader FOR VALUES FROM (2) TO (MAXVALUE);;
         INSERT INTO loader.loader VALUES (1), (2);;
         CREATE INDEX ON loader.low ((id + trap.immutable(0)));;
         CREATE INDEX ON loader.high (id) WHERE id > trap.immutable(0);;
         ALTER TABLE loader.low ADD CHECK (id > trap.immutable(0) - 1000)",
    );
}

#[test]
fn the_smallest_queue_is_enough_for_one() {
    let cluster = preloaded_cluster_with("loader_history.queue_size = 16\n");
    works(&cluster, "queue_size = 16");
}
