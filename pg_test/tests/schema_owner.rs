//! Promise: schema loader keeps its owner, whose migrations, grants and dumps work as without the extension, and
//! so do those of the database's owner; and neither gets at more than was granted.

use pg_test::{
    APPLICATION_SQL, Client, Cluster, HasError, PRELOADED, caught, column, forget,
    nothing_ran_as_superuser, set_trap, sqlstate, wait_for, wait_for_served,
};

/// A cluster whose database `app` belongs to role dbo, with the extension in a schema that belongs to `owner`, or that
/// CREATE EXTENSION creates.
fn cluster(owner: Option<&str>) -> Cluster {
    let cluster = Cluster::start();
    let mut dba = cluster.connect();
    dba.batch_execute("CREATE ROLE dbo LOGIN; CREATE ROLE migrator LOGIN; CREATE ROLE app LOGIN")
        .unwrap();
    dba.batch_execute("CREATE DATABASE app OWNER dbo").unwrap();
    let mut dba = cluster.connect_to("app", "postgres");
    dba.batch_execute("GRANT CREATE ON DATABASE app TO migrator").unwrap();
    if let Some(owner) = owner {
        dba.batch_execute(&format!("CREATE SCHEMA loader AUTHORIZATION {owner}")).unwrap();
    }
    dba.batch_execute("CREATE EXTENSION loader_history").unwrap();
    cluster
}

fn owner_of_schema(client: &mut Client) -> String {
    column::<String>(
        client,
        "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'loader'",
    )
    .concat()
}

#[test]
fn the_schema_keeps_its_owner_and_one_that_is_created_gets_the_databases() {
    for (owner, expected) in
        [(None, "dbo"), (Some("migrator"), "migrator"), (Some("postgres"), "postgres")]
    {
        let cluster = cluster(owner);
        let mut dba = cluster.connect_to("app", "postgres");
        assert_eq!(owner_of_schema(&mut dba), expected);
        // The extension's own is a superuser's.
        let internal =
            "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'loader_history'";
        assert_eq!(column::<String>(&mut dba, internal), ["postgres"]);
    }
}

#[test]
fn migrations_of_the_owner_apply_before_and_after_create_extension() {
    const MIGRATIONS: [&str; 8] = [
        "CREATE SCHEMA IF NOT EXISTS loader",
        "COMMENT ON SCHEMA loader IS 'Loaders'",
        "CREATE TABLE loader.loader (id bigint PRIMARY KEY, loader_code text)",
        "GRANT USAGE ON SCHEMA loader TO app",
        "GRANT SELECT ON ALL TABLES IN SCHEMA loader TO app",
        "GRANT SELECT ON ALL SEQUENCES IN SCHEMA loader TO app",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA loader GRANT SELECT ON TABLES TO app",
        "ALTER TABLE loader.loader ADD COLUMN enabled boolean; DROP TABLE loader.loader CASCADE",
    ];
    for first in [true, false] {
        let cluster = Cluster::start();
        let mut dba = cluster.connect();
        dba.batch_execute("CREATE ROLE dbo LOGIN; CREATE ROLE app LOGIN").unwrap();
        dba.batch_execute("CREATE DATABASE app OWNER dbo").unwrap();
        let mut dba = cluster.connect_to("app", "postgres");
        if first {
            dba.batch_execute("CREATE EXTENSION loader_history").unwrap();
        }
        for (number, migration) in MIGRATIONS.into_iter().enumerate() {
            // In a session of its own each, as tools do.
            let mut session = cluster.connect_to("app", "dbo");
            session.batch_execute(migration).unwrap_or_else(|e| panic!("{migration}: {e:?}"));
            if number == 3 && !first {
                dba.batch_execute("CREATE EXTENSION loader_history").unwrap();
            }
        }
        assert_eq!(owner_of_schema(&mut dba), "dbo");
    }
}

#[test]
fn grants_on_all_objects_in_the_schema_raise_no_error_and_reach_nothing_internal() {
    let cluster = cluster(Some("migrator"));
    for owner in ["migrator", "dbo"] {
        let mut client = cluster.connect_to("app", owner);
        for kind in ["TABLES", "SEQUENCES", "FUNCTIONS"] {
            for verb in [
                "GRANT ALL ON ALL {} IN SCHEMA loader TO app",
                "REVOKE ALL ON ALL {} IN SCHEMA loader FROM app",
            ] {
                let statement = verb.replace("{}", kind);
                client
                    .batch_execute(&statement)
                    .unwrap_or_else(|e| panic!("{owner}: {statement}: {e:?}"));
            }
        }
        client
            .batch_execute(
                "GRANT USAGE ON SCHEMA loader TO app;
                 GRANT SELECT ON ALL TABLES IN SCHEMA loader TO app;
                 GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA loader TO app",
            )
            .unwrap();
        let mut app = cluster.connect_to("app", "app");
        app.batch_execute(
            "TABLE loader.activity_feed; TABLE loader.execution_history;
             SELECT loader.record_execution_start(1); SELECT loader.get_execution_history();
             SELECT * FROM loader.recorder_status()",
        )
        .unwrap();
        for statement in [
            "DELETE FROM loader.execution_history",
            "TABLE loader_history.recorded_loader",
            "SELECT loader_history.purge_execution_history('0')",
        ] {
            assert_eq!(sqlstate(&app.simple_query(statement)), "42501", "{owner}: {statement}");
        }
        client.batch_execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA loader FROM app").unwrap();
    }
}

#[test]
fn either_owner_dumps_and_a_dump_is_restored_with_its_grants() {
    for owner in [None, Some("migrator")] {
        let cluster = cluster(owner);
        let mut dba = cluster.connect_to("app", "postgres");
        dba.batch_execute(APPLICATION_SQL).unwrap();
        dba.batch_execute(
            "GRANT SELECT ON loader.loader TO dbo, migrator;
             SELECT loader_history.grant_recorder('app');
             SELECT loader.record_execution_end(loader.record_execution_start(4), 'SUCCESS', 3)",
        )
        .unwrap();
        let file = cluster.directory().join("dump");
        let dump = |role: &str, more: &[&str]| {
            let mut dump = cluster.program("pg_dump");
            dump.args(["-d", "app", "-U", role, "-f"]).arg(&file).args(more);
            pg_test::run(&mut dump)
        };
        for role in owner.into_iter().chain(["dbo"]) {
            for more in [&[][..], &["-n", "loader"], &["--data-only"]] {
                dump(role, more);
                let text = std::fs::read_to_string(&file).unwrap();
                assert!(text.contains("COPY loader.execution_history ("), "{role} {more:?}");
            }
        }
        dump("postgres", &[]);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("\"1638"), "a role that is a number: {text}");
        cluster
            .connect()
            .batch_execute("CREATE DATABASE again OWNER dbo TEMPLATE template0")
            .unwrap();
        pg_test::run(
            cluster
                .program("psql")
                .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "again", "-f"])
                .arg(&file),
        );
        let mut again = cluster.connect_to("again", "postgres");
        assert_eq!(owner_of_schema(&mut again), owner_of_schema(&mut dba));
        let grants = "SELECT string_agg(o, ' ' ORDER BY o)
                        FROM (SELECT relname || relacl::text AS o FROM pg_class
                               WHERE relnamespace::regnamespace::text LIKE 'loader%' AND relkind IN ('r', 'v', 'S')
                                 AND relname <> 'loader'
                              UNION ALL SELECT proname || proacl::text FROM pg_proc
                               WHERE pronamespace::regnamespace::text LIKE 'loader%'
                              UNION ALL SELECT nspname || nspacl::text FROM pg_namespace
                               WHERE nspname LIKE 'loader%') AS objects";
        assert_eq!(column::<String>(&mut again, grants), column::<String>(&mut dba, grants));
        assert_eq!(column::<i64>(&mut again, "SELECT count(*) FROM loader.execution_history"), [1]);
    }
}

#[test]
fn an_owner_who_is_gone_is_in_no_dump() {
    let cluster = cluster(Some("migrator"));
    let mut dba = cluster.connect_to("app", "postgres");
    dba.batch_execute("REASSIGN OWNED BY migrator TO dbo; DROP OWNED BY migrator").unwrap();
    dba.batch_execute("DROP ROLE migrator").unwrap();
    let file = cluster.directory().join("dump");
    pg_test::run(cluster.program("pg_dump").args(["-d", "app", "-f"]).arg(&file));
    cluster.connect().batch_execute("CREATE DATABASE again TEMPLATE template0").unwrap();
    pg_test::run(
        cluster
            .program("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "again", "-f"])
            .arg(&file),
    );
}

#[test]
fn the_schemas_cannot_be_renamed_while_the_extension_is_there() {
    let cluster = cluster(Some("migrator"));
    let mut migrator = cluster.connect_to("app", "migrator");
    let error = migrator.batch_execute("ALTER SCHEMA loader RENAME TO former").error("42501");
    assert!(error.hint().is_some(), "{error:?}");
    // Nor in passing, nor in the role of replication, nor by a superuser.
    migrator
        .batch_execute(
            "DO $$ BEGIN
                 ALTER SCHEMA loader RENAME TO former;
                 CREATE SCHEMA loader;
                 ALTER SCHEMA loader RENAME TO other;
                 ALTER SCHEMA former RENAME TO loader;
             END $$",
        )
        .error("42501");
    let mut dba = cluster.connect_to("app", "postgres");
    dba.batch_execute("SET session_replication_role = replica").unwrap();
    for schema in ["loader", "loader_history"] {
        dba.batch_execute(&format!("ALTER SCHEMA {schema} RENAME TO former")).error("42501");
    }
    // Other schemas can be renamed.
    migrator
        .batch_execute(
            "CREATE SCHEMA one; ALTER SCHEMA one RENAME TO two; DROP SCHEMA two;
             GRANT dbo TO migrator",
        )
        .err();
    dba.batch_execute("ALTER SCHEMA loader OWNER TO dbo; ALTER SCHEMA loader OWNER TO migrator")
        .unwrap();
    dba.batch_execute("DROP EXTENSION loader_history; ALTER SCHEMA loader RENAME TO former")
        .unwrap();
}

#[test]
fn the_owner_can_drop_the_schema_and_the_extension_with_it() {
    let cluster = cluster(Some("migrator"));
    let mut migrator = cluster.connect_to("app", "migrator");
    migrator.batch_execute("DROP SCHEMA loader").error("2BP01");
    migrator.batch_execute("DROP SCHEMA loader CASCADE").unwrap();
    let left = "SELECT (SELECT count(*) FROM pg_extension WHERE extname = 'loader_history')
                     + (SELECT count(*) FROM pg_event_trigger)
                     + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'loader%')";
    assert_eq!(column::<i64>(&mut migrator, left), [0]);
}

/// What a schema's owner, who may create schemas, puts in the place of an extension that is gone.
const IMPOSTORS: &str = "
    CREATE SCHEMA loader;
    CREATE SCHEMA loader_history;
    GRANT ALL ON SCHEMA loader, loader_history TO PUBLIC;
    CREATE TABLE loader.loader (id bigint PRIMARY KEY);
    INSERT INTO loader.loader VALUES (1), (2);
    CREATE TABLE loader.execution_history (id bigserial, loader_id bigint, execution_start timestamptz,
        execution_end timestamptz, status varchar(50), record_count integer, error_message text,
        duration_seconds integer, trap bigint DEFAULT trap.spring());
    INSERT INTO loader.execution_history VALUES (1, 1, now(), NULL, 'RUNNING');
    CREATE TABLE loader_history.recorded_loader (loader_id bigint, trap bigint DEFAULT trap.spring());
    CREATE TABLE loader_history.watched_transaction (execution_id bigint, xid xid8, subxid xid8, notify boolean,
        trap bigint DEFAULT trap.spring());
    INSERT INTO loader_history.watched_transaction VALUES (1, '3', NULL, true);
    CREATE TABLE loader_history.server_outcome (execution_id bigint, execution_end timestamptz,
        trap bigint DEFAULT trap.spring());
    CREATE TABLE loader_history.prepared_change (execution_id bigint, xid xid8, status varchar(50),
        trap bigint DEFAULT trap.spring());
    INSERT INTO loader_history.prepared_change VALUES (1, '3', 'RUNNING');
    CREATE TABLE loader_history.purge_position (is_only boolean, execution_end timestamptz, id bigint,
        trap bigint DEFAULT trap.spring());
    CREATE TABLE loader_history.foreign_key_request (requested_in xid8);
    CREATE SEQUENCE loader_history.last_timeline;
    CREATE VIEW loader.execution_details AS SELECT *, trap.spring() AS more FROM loader.execution_history;
    DO $do$
    DECLARE
        name text;
    BEGIN
        FOREACH name IN ARRAY ARRAY['loader.execution_history', 'loader_history.recorded_loader',
            'loader_history.watched_transaction', 'loader_history.server_outcome', 'loader_history.prepared_change',
            'loader_history.purge_position', 'loader_history.foreign_key_request', 'loader.loader']
        LOOP
            EXECUTE format('CREATE TRIGGER trap BEFORE INSERT OR UPDATE OR DELETE ON %s
                                FOR EACH ROW EXECUTE FUNCTION trap.trigger()', name);
            EXECUTE format('GRANT ALL ON %s TO PUBLIC', name);
        END LOOP;
        FOREACH name IN ARRAY ARRAY['foreign_key_state(OUT present boolean, OUT valid boolean, OUT obstacle text)',
            'require_writable() RETURNS void', 'add_foreign_key() RETURNS void', 'validate_foreign_key() RETURNS void',
            'untrusted_code(regclass) RETURNS text', 'recorder_state(OUT preloaded boolean, OUT obstacle text)',
            'grant_execute(regrole, regprocedure[]) RETURNS void']
        LOOP
            EXECUTE format('CREATE FUNCTION loader_history.%s LANGUAGE plpgsql AS
                                $$ BEGIN PERFORM trap.spring(); END $$', name);
        END LOOP;
    END
    $do$;
";

/// Runs statements of which some may well fail.
fn attempt(client: &mut Client, statements: &[&str]) {
    for statement in statements {
        if let Err(error) = client.batch_execute(statement) {
            assert!(!client.is_closed(), "{statement}: {error}");
        }
    }
}

const CALLS: [&str; 8] = [
    "SELECT loader.record_execution_start(1)",
    "SELECT loader.record_execution_end(1, 'SUCCESS')",
    "SELECT loader.get_execution_history()",
    "SELECT * FROM loader.recorder_status()",
    "SELECT loader_history.attach_foreign_key()",
    "SELECT loader_history.purge_execution_history('0')",
    "SELECT loader_history.grant_recorder('victim')",
    "SELECT loader_history.grant_reader('victim')",
];

#[test]
fn what_is_put_in_the_place_of_a_dropped_extension_captures_no_session_and_no_worker() {
    for settings in [PRELOADED, ""] {
        let cluster = Cluster::start_with(settings);
        let mut attacker = set_trap(&cluster);
        attacker
            .batch_execute(
                "CREATE SCHEMA loader; CREATE TABLE loader.loader (id bigint PRIMARY KEY)",
            )
            .unwrap();
        attacker.batch_execute("INSERT INTO loader.loader VALUES (1), (2)").unwrap();
        let mut dba = cluster.connect();
        dba.batch_execute("CREATE EXTENSION loader_history").unwrap();
        dba.batch_execute(
            "SELECT loader_history.grant_recorder('victim'), loader_history.grant_reader('victim')",
        )
        .unwrap();
        if !settings.is_empty() {
            wait_for_served(&mut dba, &["postgres"]);
        }
        // Sessions that have plans of everything.
        let mut victims: Vec<_> =
            ["victim", "postgres"].map(|role| cluster.connect_to("postgres", role)).into();
        for victim in &mut victims {
            attempt(victim, &CALLS);
        }
        forget(&cluster);
        let drop_and_replace = format!("BEGIN; DROP SCHEMA loader CASCADE; {IMPOSTORS} COMMIT");
        attacker.batch_execute(&drop_and_replace).unwrap();
        forget(&cluster);
        for victim in &mut victims {
            attempt(victim, &CALLS);
        }
        for ddl in [
            "ALTER TABLE loader.loader ADD more integer",
            "CREATE INDEX ON loader.execution_history (id)",
        ] {
            attempt(&mut attacker, &[ddl]);
        }
        if !settings.is_empty() {
            wait_for("the worker to leave", || {
                let workers = "SELECT count(*) FROM pg_stat_activity
                                WHERE datname = 'postgres' AND backend_type LIKE 'loader_history%'";
                column::<i64>(&mut dba, workers) == [0]
            });
        }
        // (A superuser who calls the attacker's own functions, under the names that were the extension's, runs them.)
        nothing_ran_as_superuser(&cluster);
        let log = cluster.log();
        assert!(!log.contains("terminated by signal") && !log.contains("XX000"), "{log}");
    }
}

#[test]
fn a_drop_that_races_with_privileged_functions_captures_none() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    let mut dba = cluster.connect();
    for round in 0..10 {
        attacker
            .batch_execute(
                "CREATE SCHEMA loader; CREATE TABLE loader.loader (id bigint PRIMARY KEY);
                 INSERT INTO loader.loader VALUES (1), (2)",
            )
            .unwrap();
        dba.batch_execute("CREATE EXTENSION loader_history").unwrap();
        dba.batch_execute(
            "SELECT loader_history.grant_recorder('victim'), loader_history.grant_reader('victim');
             ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;
             ALTER EVENT TRIGGER loader_history_foreign_key ENABLE",
        )
        .unwrap();
        forget(&cluster);
        std::thread::scope(|scope| {
            // The function runs, and waits for the lock that the attacker holds on something that it needs.
            attacker
                .batch_execute("BEGIN; LOCK TABLE loader.loader; DROP SCHEMA loader CASCADE")
                .unwrap();
            let waiting: Vec<_> = [
                ("victim", "SELECT loader.record_execution_start(1)"),
                ("victim", "SELECT loader.record_execution_end(1, 'SUCCESS')"),
                ("victim", "SELECT * FROM loader.recorder_status()"),
                ("postgres", "SELECT loader_history.attach_foreign_key()"),
                ("postgres", "SELECT loader_history.purge_execution_history('0')"),
                ("postgres", "SELECT loader_history.grant_reader('victim')"),
                ("attacker", "CREATE TABLE trap.other (id bigint); ALTER TABLE loader.loader ADD more integer"),
            ]
            .map(|(role, statement)| {
                let mut client = cluster.connect_to("postgres", role);
                scope.spawn(move || attempt(&mut client, &[statement]))
            })
            .into();
            wait_for("them to wait", || {
                let blocked = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted";
                let blocked = column::<i64>(&mut dba, blocked)[0];
                let done = waiting.iter().filter(|thread| thread.is_finished()).count();
                blocked + i64::try_from(done).unwrap() >= 7
            });
            attacker.batch_execute(IMPOSTORS).unwrap();
            attacker.batch_execute("COMMIT").unwrap();
        });
        assert!(!caught(&cluster).1, "round {round}: code of the attacker's ran as a superuser");
        attacker
            .batch_execute("DROP SCHEMA loader CASCADE; DROP SCHEMA loader_history CASCADE; DROP TABLE IF EXISTS trap.other")
            .unwrap();
    }
}

#[test]
fn a_table_that_is_no_superusers_is_refused_with_its_owner_and_the_remedy() {
    for settings in [PRELOADED, ""] {
        let cluster = Cluster::start_with(settings);
        let mut dba = cluster.connect();
        dba.batch_execute(APPLICATION_SQL).unwrap();
        dba.batch_execute("CREATE EXTENSION loader_history; CREATE ROLE app LOGIN").unwrap();
        if !settings.is_empty() {
            wait_for_served(&mut dba, &["postgres"]);
        }
        let id = column::<i64>(&mut dba, "SELECT loader.record_execution_start(1)")[0];
        dba.batch_execute("ALTER TABLE loader.execution_history OWNER TO app").unwrap();
        for call in [
            "SELECT loader.record_execution_start(1)".to_owned(),
            format!("SELECT loader.record_execution_end({id}, 'SUCCESS')"),
            "SELECT loader_history.purge_execution_history('0')".to_owned(),
        ] {
            let error = dba.batch_execute(&call).error("55000");
            assert!(error.message().contains("loader.execution_history"), "{call}: {error:?}");
            assert!(error.detail().unwrap().contains("app"), "{call}: {error:?}");
            assert!(error.hint().unwrap().contains("OWNER TO"), "{call}: {error:?}");
        }
        dba.batch_execute("ALTER TABLE loader.execution_history OWNER TO postgres").unwrap();
        dba.batch_execute(&format!("SELECT loader.record_execution_end({id}, 'SUCCESS')")).unwrap();
    }
}
