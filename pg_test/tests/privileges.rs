//! Promise: grant_recorder and grant_reader are enough and give no more, PUBLIC has nothing, and no
//! code of another role ever runs as a superuser, whoever owns the schema and loader.loader.

use std::collections::BTreeSet;
use std::thread;

use pg_test::{
    APPLICATION_SQL, Client, Cluster, HasError, caught, cluster_with_extension, forget,
    nothing_ran, nothing_ran_as_superuser, set_trap, sqlstate, wait_for,
};

/// The functions that each kind of role may call. Whatever else the extension has is the owner's.
const RECORDER_FUNCTIONS: [&str; 2] = [
    "loader.record_execution_end(bigint,text,bigint,text)",
    "loader.record_execution_start(bigint)",
];
const READER_FUNCTIONS: [&str; 2] = [
    "loader.get_execution_history(bigint,integer,text,text,timestamp with time zone,timestamp with time zone)",
    "loader.recorder_status()",
];
const VIEWS: [&str; 4] = [
    "loader.activity_feed",
    "loader.execution_details",
    "loader.failed_loader_counts",
    "loader.loader_summary",
];

/// What only the owner may do with the history, as statements that would succeed for the owner.
const OWNERS_STATEMENTS: [&str; 24] = [
    "SELECT count(*) FROM loader.execution_history",
    "SELECT id FROM loader.execution_history LIMIT 0",
    "SELECT FROM loader.execution_history FOR UPDATE",
    "INSERT INTO loader.execution_history (loader_id, execution_start, status) VALUES (1, now(), 'RUNNING')",
    "UPDATE loader.execution_history SET record_count = 0",
    "DELETE FROM loader.execution_history",
    "TRUNCATE loader.execution_history",
    "COPY loader.execution_history TO STDOUT",
    "LOCK TABLE loader.execution_history IN ACCESS SHARE MODE; SELECT",
    "COMMENT ON TABLE loader.execution_history IS 'mine'",
    "ALTER TABLE loader.execution_history DISABLE TRIGGER ALL",
    "CREATE INDEX ON loader.execution_history (status)",
    "CREATE TEMPORARY TABLE copy_of (LIKE loader.execution_history)",
    "CREATE RULE silence AS ON INSERT TO loader.execution_history DO INSTEAD NOTHING",
    "SELECT nextval('loader.execution_history_id_seq')",
    "SELECT setval('loader.execution_history_id_seq', 1)",
    "SELECT last_value FROM loader.execution_history_id_seq",
    "SELECT loader_id FROM loader_history.recorded_loader",
    "INSERT INTO loader_history.recorded_loader VALUES (99)",
    "SELECT loader_history.purge_execution_history('0 days')",
    "SELECT loader_history.attach_foreign_key()",
    "SELECT loader_history.grant_recorder('stranger')",
    "SELECT loader_history.grant_reader('stranger')",
    "CREATE VIEW loader.mine AS SELECT 1",
];

/// A cluster with the extension, the roles recorder, reader and stranger, and one execution.
fn cluster_with_roles() -> Cluster {
    let cluster = cluster_with_extension();
    cluster
        .connect()
        .batch_execute(
            "CREATE ROLE recorder LOGIN;
             CREATE ROLE reader LOGIN;
             CREATE ROLE stranger LOGIN;
             SELECT loader_history.grant_recorder('recorder');
             SELECT loader_history.grant_reader('reader');
             SELECT loader.record_execution_end(loader.record_execution_start(1), 'FAILED', 5, 'no')",
        )
        .unwrap();
    cluster
}

fn set_of(client: &mut Client, query: &str) -> BTreeSet<String> {
    pg_test::column(client, query).into_iter().collect()
}

/// The owner's view of all history, to tell that an attempt changed nothing.
fn history(cluster: &Cluster) -> Vec<String> {
    set_of(&mut cluster.connect(), "SELECT h::text FROM loader.execution_history AS h")
        .into_iter()
        .collect()
}

#[track_caller]
fn refused(client: &mut Client, statement: &str, sqlstates: &[&str]) {
    let state = sqlstate(&client.simple_query(statement));
    assert!(sqlstates.contains(&state.as_str()), "{statement}: {state}");
}

/// What PUBLIC has of the extension: an object and a privilege a line.
fn granted_to_public(client: &mut Client) -> BTreeSet<String> {
    set_of(
        client,
        "WITH member AS (
             SELECT d.classid, d.objid
               FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
              WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'loader_history'
                AND d.deptype = 'e')
         SELECT p.oid::regprocedure || ' ' || a.privilege_type
           FROM member JOIN pg_proc AS p ON classid = 'pg_proc'::regclass AND p.oid = objid,
                aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
          WHERE a.grantee = 0
         UNION ALL
         SELECT c.oid::regclass || ' ' || a.privilege_type
           FROM member JOIN pg_class AS c ON classid = 'pg_class'::regclass AND c.oid = objid,
                aclexplode(coalesce(c.relacl, acldefault(
                    CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", c.relowner))) AS a
          WHERE a.grantee = 0
         UNION ALL
         SELECT t.attrelid::regclass || '.' || t.attname || ' ' || a.privilege_type
           FROM member
           JOIN pg_attribute AS t ON classid = 'pg_class'::regclass AND t.attrelid = objid,
                aclexplode(t.attacl) AS a
          WHERE a.grantee = 0",
    )
}

/// Everything that `role` may do with what the extension has, or with its schema, be it as itself,
/// as PUBLIC, on a column, or as something to pass on.
fn rights(client: &mut Client, role: &str) -> BTreeSet<String> {
    set_of(
        client,
        &format!(
            "WITH member AS (
                 SELECT d.classid, d.objid
                   FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                  WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'loader_history'
                    AND d.deptype = 'e')
             SELECT 'EXECUTE' || o || ' ' || objid::regprocedure
               FROM member, unnest(ARRAY['', ' WITH GRANT OPTION']) AS o
              WHERE classid = 'pg_proc'::regclass
                AND has_function_privilege('{role}', objid, 'EXECUTE' || o)
             UNION ALL
             SELECT p || o || ' ' || objid::regclass
               FROM member JOIN pg_class AS c ON c.oid = objid,
                    unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES',
                                 'TRIGGER']) AS p,
                    unnest(ARRAY['', ' WITH GRANT OPTION']) AS o
              WHERE classid = 'pg_class'::regclass AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
                AND CASE WHEN p IN ('DELETE', 'TRUNCATE', 'TRIGGER')
                         THEN has_table_privilege('{role}', objid, p || o)
                         ELSE has_any_column_privilege('{role}', objid, p || o) END
             UNION ALL
             SELECT p || o || ' ' || objid::regclass
               FROM member JOIN pg_class AS c ON c.oid = objid,
                    unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS p,
                    unnest(ARRAY['', ' WITH GRANT OPTION']) AS o
              WHERE classid = 'pg_class'::regclass AND c.relkind = 'S'
                AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege('{role}', objid, p || o) END
             UNION ALL
             SELECT p || o || ' schema' || CASE s WHEN 'loader' THEN '' ELSE ' ' || s END
               FROM unnest(ARRAY['USAGE', 'CREATE']) AS p,
                    unnest(ARRAY['', ' WITH GRANT OPTION']) AS o,
                    unnest(ARRAY['loader', 'loader_history']) AS s
              WHERE has_schema_privilege('{role}', s, p || o)"
        ),
    )
}

#[test]
fn each_role_has_exactly_the_rights_of_its_kind_and_public_has_none() {
    let cluster = cluster_with_roles();
    let mut client = cluster.connect();
    let execute = |functions: &[&str]| {
        functions.iter().map(|function| format!("EXECUTE {function}")).collect::<BTreeSet<_>>()
    };
    let usage = || BTreeSet::from(["USAGE schema".to_owned()]);
    let select = VIEWS.iter().map(|view| format!("SELECT {view}")).collect();

    let recorder = &execute(&RECORDER_FUNCTIONS) | &usage();
    let reader = &(&execute(&READER_FUNCTIONS) | &select) | &usage();
    assert_eq!(rights(&mut client, "recorder"), recorder);
    assert_eq!(rights(&mut client, "reader"), reader);
    assert_eq!(rights(&mut client, "stranger"), BTreeSet::new());
    assert_eq!(granted_to_public(&mut client), BTreeSet::new());

    // Both grants, twice, are no more than their sum.
    client
        .batch_execute(
            "CREATE ROLE twice;
             SELECT loader_history.grant_recorder('twice'), loader_history.grant_reader('twice');
             SELECT loader_history.grant_recorder('twice'), loader_history.grant_reader('twice');",
        )
        .unwrap();
    assert_eq!(rights(&mut client, "twice"), &recorder | &reader);

    // The query does see what there is: the owner has all of it.
    let owner = rights(&mut client, "postgres");
    assert!(owner.is_superset(&(&recorder | &reader)), "{owner:?}");
    for right in [
        "DELETE loader.execution_history",
        "SELECT loader_history.recorded_loader",
        "USAGE loader.execution_history_id_seq",
        "EXECUTE loader_history.grant_reader(regrole)",
        "EXECUTE loader_history.history_changed()",
    ] {
        assert!(owner.contains(right), "{right} of {owner:?}");
    }
}

#[test]
fn a_recorder_records_and_does_nothing_else() {
    let cluster = cluster_with_roles();
    let mut recorder = cluster.connect_to("postgres", "recorder");
    let id: i64 =
        recorder.query_one("SELECT loader.record_execution_start(2)", &[]).unwrap().get(0);
    let seconds: i32 = recorder
        .query_one("SELECT loader.record_execution_end($1, 'SUCCESS', 3, 'fine')", &[&id])
        .unwrap()
        .get(0);
    assert_eq!(seconds, 0);

    let before = history(&cluster);
    for statement in OWNERS_STATEMENTS {
        refused(&mut recorder, statement, &["42501"]);
    }
    for view in VIEWS {
        refused(&mut recorder, &format!("SELECT * FROM {view}"), &["42501"]);
    }
    refused(&mut recorder, "SELECT loader.get_execution_history()", &["42501"]);
    refused(&mut recorder, "SELECT * FROM loader.recorder_status()", &["42501"]);
    assert_eq!(history(&cluster), before);
}

#[test]
fn a_reader_reads_and_records_nothing() {
    let cluster = cluster_with_roles();
    let mut reader = cluster.connect_to("postgres", "reader");
    for view in VIEWS {
        assert!(!reader.query(&format!("SELECT * FROM {view}"), &[]).unwrap().is_empty(), "{view}");
    }
    let page: serde_json::Value =
        reader.query_one("SELECT loader.get_execution_history()", &[]).unwrap().get(0);
    assert_eq!(page["executions"][0]["error_message"], "no");
    let status = reader.query_one("SELECT * FROM loader.recorder_status()", &[]).unwrap();
    assert!(status.get::<_, bool>("foreign_key"));

    let before = history(&cluster);
    for statement in OWNERS_STATEMENTS {
        refused(&mut reader, statement, &["42501"]);
    }
    refused(&mut reader, "SELECT loader.record_execution_start(1)", &["42501"]);
    refused(&mut reader, "SELECT loader.record_execution_end(1, 'SUCCESS')", &["42501"]);
    for view in VIEWS {
        // activity_feed and the two summaries can't be updated through by anybody.
        refused(&mut reader, &format!("DELETE FROM {view}"), &["42501", "55000"]);
    }
    refused(
        &mut reader,
        "UPDATE loader.execution_details SET status = 'SUCCESS' WHERE id = 1",
        &["42501"],
    );
    assert_eq!(history(&cluster), before);
}

#[test]
fn whoever_was_granted_nothing_stays_outside_the_schema() {
    let cluster = cluster_with_roles();
    let mut stranger = cluster.connect_to("postgres", "stranger");
    for statement in OWNERS_STATEMENTS {
        refused(&mut stranger, statement, &["42501"]);
    }
    for view in VIEWS {
        refused(&mut stranger, &format!("SELECT * FROM {view}"), &["42501"]);
    }
    for call in [
        "record_execution_start(1)",
        "record_execution_end(1, 'SUCCESS')",
        "get_execution_history()",
        "recorder_status()",
    ] {
        let error = stranger.simple_query(&format!("SELECT loader.{call}")).error("42501");
        assert_eq!(error.message(), "permission denied for schema loader");
    }
    // The schema's USAGE alone, which a DBA may have given for loader.loader, opens nothing.
    cluster.connect().batch_execute("GRANT USAGE ON SCHEMA loader TO stranger").unwrap();
    for statement in OWNERS_STATEMENTS {
        refused(&mut stranger, statement, &["42501"]);
    }
    refused(&mut stranger, "SELECT loader.record_execution_start(1)", &["42501"]);
    refused(&mut stranger, "SELECT * FROM loader.activity_feed", &["42501"]);
}

#[test]
fn what_was_granted_cannot_be_passed_on() {
    let cluster = cluster_with_roles();
    for (role, object) in [
        ("recorder", "FUNCTION loader.record_execution_start(bigint)"),
        ("reader", "TABLE loader.activity_feed"),
        ("reader", "FUNCTION loader.recorder_status()"),
        ("recorder", "SCHEMA loader"),
    ] {
        // PostgreSQL only warns that nothing was granted.
        let mut client = cluster.connect_to("postgres", role);
        client.batch_execute(&format!("GRANT ALL ON {object} TO stranger")).unwrap();
        assert_eq!(rights(&mut cluster.connect(), "stranger"), BTreeSet::new(), "{object}");
    }
}

#[test]
fn the_triggers_of_the_history_serve_no_table_of_others() {
    let cluster = cluster_with_roles();
    cluster.connect().batch_execute("GRANT CREATE ON SCHEMA public TO PUBLIC").unwrap();
    for role in ["recorder", "reader", "stranger"] {
        let mut client = cluster.connect_to("postgres", role);
        client.batch_execute(&format!("CREATE TABLE public.of_{role} (loader_id bigint)")).unwrap();
        for function in ["history_changed", "drop_replicated_row", "attach_foreign_key_on_commit"] {
            let statement = format!(
                "CREATE TRIGGER borrowed AFTER INSERT ON public.of_{role}
                     FOR EACH ROW EXECUTE FUNCTION loader_history.{function}()"
            );
            refused(&mut client, &statement, &["42501"]);
        }
    }
}

#[test]
fn roles_of_any_name_can_be_granted() {
    let cluster = cluster_with_roles();
    let mut client = cluster.connect();
    for (number, name) in [
        r#"Odd "Name"#,
        "current_user",
        "all",
        "12345",
        "-",
        "a, stranger",
        r#"x"; GRANT ALL ON loader.execution_history TO PUBLIC; --"#,
        "%s %I $1 \\ '",
        "Лоадер 😀",
        &"n".repeat(63),
    ]
    .into_iter()
    .enumerate()
    {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        client.batch_execute(&format!("CREATE ROLE {quoted} LOGIN")).unwrap();
        // Half of them by name, half by OID.
        let role = if number % 2 == 0 {
            client.query_one("SELECT quote_literal($1)", &[&quoted]).unwrap().get(0)
        } else {
            let oid: u32 = client
                .query_one("SELECT oid FROM pg_roles WHERE rolname = $1", &[&name])
                .unwrap()
                .get(0);
            oid.to_string()
        };
        client
            .batch_execute(&format!(
                "SELECT loader_history.grant_recorder({role}); SELECT loader_history.grant_reader({role})"
            ))
            .unwrap();
        let mut granted = cluster.connect_to("postgres", name);
        granted
            .batch_execute(
                "SELECT loader.record_execution_start(1); SELECT loader.get_execution_history();
                 TABLE loader.activity_feed",
            )
            .unwrap();
        refused(&mut granted, "TABLE loader.execution_history", &["42501"]);
        assert_eq!(rights(&mut client, "stranger"), BTreeSet::new(), "{name}");
        assert_eq!(granted_to_public(&mut client), BTreeSet::new(), "{name}");
    }
}

#[test]
fn roles_that_are_none_are_refused() {
    let cluster = cluster_with_roles();
    let mut client = cluster.connect();
    for function in ["grant_recorder", "grant_reader"] {
        let error =
            client.simple_query(&format!("SELECT loader_history.{function}(NULL)")).error("22004");
        assert!(error.hint().is_some(), "{error:?}");
        for oid in ["0", "99999999", "4294967295"] {
            let error = client
                .simple_query(&format!("SELECT loader_history.{function}('{oid}'::oid::regrole)"))
                .error("42704");
            assert!(error.hint().is_some(), "{error:?}");
        }
        for name in ["nobody_of_that_name", "public"] {
            client
                .simple_query(&format!("SELECT loader_history.{function}('{name}')"))
                .error("42704");
        }
    }
    assert_eq!(granted_to_public(&mut client), BTreeSet::new());
}

#[test]
fn every_function_that_looks_names_up_pins_its_search_path() {
    let cluster = cluster_with_extension();
    let functions = cluster
        .connect()
        .query(
            "SELECT p.oid::regprocedure::text,
                    ARRAY(SELECT s FROM unnest(p.proconfig) AS s WHERE s LIKE 'search_path=%')
               FROM pg_depend AS d
               JOIN pg_extension AS e ON e.oid = d.refobjid
               JOIN pg_proc AS p ON p.oid = d.objid
              WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
                AND d.deptype = 'e' AND e.extname = 'loader_history'
                AND NOT (p.prorettype = 'trigger'::regtype AND NOT p.prosecdef
                         AND p.prolang = (SELECT oid FROM pg_language WHERE lanname = 'c'))",
            &[],
        )
        .unwrap();
    assert!(functions.len() > 8);
    for function in functions {
        let name: String = function.get(0);
        let paths: Vec<String> = function.get(1);
        assert_eq!(paths, ["search_path=pg_catalog, pg_temp"], "{name}");
    }
}

#[test]
fn nobody_gets_anything_by_default_privileges() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client.batch_execute(APPLICATION_SQL).unwrap();
    client
        .batch_execute(
            "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
             ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC;
             ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC;
             ALTER DEFAULT PRIVILEGES IN SCHEMA loader GRANT ALL ON TABLES TO PUBLIC;
             ALTER DEFAULT PRIVILEGES IN SCHEMA loader GRANT ALL ON SEQUENCES TO PUBLIC;
             ALTER DEFAULT PRIVILEGES IN SCHEMA loader GRANT ALL ON FUNCTIONS TO PUBLIC;
             CREATE ROLE stranger LOGIN;
             ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO stranger;
             ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO stranger;
             ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO stranger;
             ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO stranger;
             GRANT USAGE ON SCHEMA loader TO stranger;
             CREATE EXTENSION loader_history",
        )
        .unwrap();
    // Nor is anybody left in what PostgreSQL takes for the extension's own, where DROP ROLE would not find it.
    let kept: Vec<String> = pg_test::column(
        &mut client,
        "SELECT DISTINCT a.grantee::regrole::text FROM pg_init_privs, aclexplode(initprivs) AS a
          WHERE privtype = 'e' AND a.grantee <> 10",
    );
    assert_eq!(kept, Vec::<String>::new());
    assert_eq!(granted_to_public(&mut client), BTreeSet::new());
    assert_eq!(rights(&mut client, "stranger"), BTreeSet::from(["USAGE schema".to_owned()]));
    let mut stranger = cluster.connect_to("postgres", "stranger");
    for statement in OWNERS_STATEMENTS {
        refused(&mut stranger, statement, &["42501"]);
    }
    // The trap works: what came by those defaults is PUBLIC's.
    client.batch_execute("CREATE TABLE loader.another ()").unwrap();
    stranger.batch_execute("SELECT FROM loader.another").unwrap();
}

#[test]
fn a_writer_of_the_table_needs_no_right_to_what_is_internal() {
    let cluster = cluster_with_roles();
    cluster
        .connect()
        .batch_execute(
            "CREATE ROLE writer LOGIN;
             GRANT USAGE ON SCHEMA loader TO writer;
             GRANT INSERT, SELECT, UPDATE ON loader.execution_history TO writer;
             GRANT USAGE ON SEQUENCE loader.execution_history_id_seq TO writer",
        )
        .unwrap();
    let mut writer = cluster.connect_to("postgres", "writer");
    let start = "INSERT INTO loader.execution_history (loader_id, execution_start, status)";
    let id: i64 = writer
        .query_one(&format!("{start} VALUES (7, now(), 'RUNNING') RETURNING id"), &[])
        .unwrap()
        .get(0);
    writer
        .execute(
            "UPDATE loader.execution_history
                SET status = 'SUCCESS', execution_end = now(), loader_id = 8 WHERE id = $1",
            &[&id],
        )
        .unwrap();
    refused(&mut writer, "SELECT loader_id FROM loader_history.recorded_loader", &["42501"]);
    for values in [
        "(7, now(), 'DONE')",
        "(7, now(), 'SUCCESS')",
        "(7, 'infinity', 'RUNNING')",
        "(7, '-infinity', 'RUNNING')",
    ] {
        refused(&mut writer, &format!("{start} VALUES {values}"), &["23514"]);
    }
    refused(&mut writer, &format!("{start} VALUES (11, now(), 'RUNNING')"), &["23503"]);
    for change in [
        "execution_end = execution_start - '1 s'::interval",
        "record_count = -1",
        "execution_end = NULL",
        "status = 'RUNNING'",
    ] {
        let statement = format!("UPDATE loader.execution_history SET {change} WHERE id = {id}");
        refused(&mut writer, &statement, &["23514"]);
    }
    // Both loaders that the writer named are in the summary, as far as they have history.
    let mut reader = cluster.connect_to("postgres", "reader");
    assert_eq!(
        set_of(&mut reader, "SELECT loader_id::text FROM loader.loader_summary"),
        BTreeSet::from(["1".to_owned(), "8".to_owned()]),
    );
}

#[test]
fn a_recorder_may_turn_events_off_and_make_up_no_setting() {
    let cluster = cluster_with_roles();
    let mut recorder = cluster.connect_to("postgres", "recorder");
    // Before the library is loaded PostgreSQL takes any name and value. Neither may break a load.
    recorder
        .batch_execute(
            "SET loader_history.made_up = 1;
             SET loader_history.notify = 'neither on nor off';
             SELECT loader.record_execution_start(1);",
        )
        .unwrap();
    refused(&mut recorder, "SHOW loader_history.made_up", &["42704"]);
    refused(&mut recorder, "SET loader_history.made_up = 1", &["42602"]);
    refused(&mut recorder, "SET loader_history.notify = 'neither on nor off'", &["22023"]);
    let notify: String = recorder.query_one("SHOW loader_history.notify", &[]).unwrap().get(0);
    assert_eq!(notify, "on");
    recorder
        .batch_execute(
            "SET loader_history.notify = off;
             LISTEN loader_execution;
             SELECT loader.record_execution_start(1);",
        )
        .unwrap();
    assert_eq!(events(&mut recorder), 0);
    recorder
        .batch_execute("RESET loader_history.notify; SELECT loader.record_execution_start(1)")
        .unwrap();
    assert_eq!(events(&mut recorder), 1);
}

/// Events that have arrived. A session's own arrive before the answer to its next statement.
fn events(client: &mut Client) -> usize {
    use fallible_iterator::FallibleIterator;
    client.batch_execute("SELECT 1").unwrap();
    client.notifications().iter().count().unwrap()
}

// From here on: attackers, as `pg_test::set_trap` makes them.

/// Fills schema `schema` with what could be taken for PostgreSQL's own: functions, aggregates,
/// operators, types and relations, all of which spring the trap.
fn shadow_postgresql(attacker: &mut Client, schema: &str) {
    let statement = r#"
        DO $do$
        DECLARE
            body constant text := 'LANGUAGE plpgsql AS
                $$ BEGIN PERFORM trap.spring(); RETURN NULL; END $$';
            name text;
            arguments text;
            r record;
        BEGIN
            FOR r IN
                SELECT p.proname, oidvectortypes(p.proargtypes) AS arguments,
                       format_type(p.prorettype, NULL) AS result
                  FROM pg_proc AS p
                 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
                   AND NOT p.proretset AND p.provariadic = 0
                   AND p.proname IN ('now', 'clock_timestamp', 'statement_timestamp', 'isfinite',
                       'left', 'split_part', 'to_char', 'format_type', 'current_setting',
                       'set_config', 'pg_current_xact_id', 'pg_is_in_recovery', 'pg_notify',
                       'getdatabaseencoding', 'nextval', 'quote_ident', 'length', 'int4', 'int8',
                       'text', 'numeric', 'pg_extension_config_dump', 'timezone', 'age')
                   AND NOT EXISTS (SELECT FROM pg_type AS t
                                    WHERE t.oid = ANY (p.proargtypes::oid[] || p.prorettype)
                                      AND t.typtype = 'p')
            LOOP
                EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s %s',
                               r.proname, r.arguments, r.result, body);
            END LOOP;

            FOR r IN
                SELECT row_number() OVER () AS number, oprname, lhs, rhs, result
                  FROM (SELECT o.oprname, format_type(o.oprleft, NULL) AS lhs,
                               format_type(o.oprright, NULL) AS rhs,
                               format_type(o.oprresult, NULL) AS result
                          FROM pg_operator AS o
                         WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft <> 0
                           AND o.oprname IN ('=', '<>', '<', '<=', '>', '>=', '||', '-', '+', '~~')
                           AND NOT EXISTS (SELECT FROM pg_type AS t
                                            WHERE t.oid IN (o.oprleft, o.oprright, o.oprresult)
                                              AND t.typtype = 'p')
                        -- Exact matches where PostgreSQL itself has none.
                        UNION ALL
                        SELECT o, 'varchar', t, 'boolean'
                          FROM unnest(ARRAY['=', '<>', '||']) AS o, unnest(ARRAY['varchar', 'text']) AS t) AS o
            LOOP
                EXECUTE format('CREATE FUNCTION {schema}.%I(%s, %s) RETURNS %s %s',
                               'operator_' || r.number, r.lhs, r.rhs, r.result, body);
                EXECUTE format('CREATE OPERATOR {schema}.%s (FUNCTION = {schema}.%I, LEFTARG = %s, RIGHTARG = %s)',
                               r.oprname, 'operator_' || r.number, r.lhs, r.rhs);
            END LOOP;

            -- What takes VARIADIC "any", by the types that it is called with.
            FOREACH arguments IN ARRAY ARRAY[
                'concat(text, bigint, text, bigint, text)',
                'concat(text, bigint, text, bigint, text, text)',
                'concat(text, bigint, text, bigint, text, text, text)',
                'concat(text, varchar)', 'concat(VARIADIC text[])', 'format(text, VARIADIC text[])',
                'format(text, text)', 'format(text, regrole)', 'format(text, regprocedure, regrole)']
            LOOP
                EXECUTE format('CREATE FUNCTION {schema}.%s RETURNS text %s', arguments, body);
            END LOOP;

            EXECUTE 'CREATE FUNCTION {schema}.step(bigint, anyelement) RETURNS bigint ' || body;
            EXECUTE 'CREATE FUNCTION {schema}.step(bigint) RETURNS bigint ' || body;
            EXECUTE 'CREATE FUNCTION {schema}.step(boolean, boolean) RETURNS boolean ' || body;
            CREATE AGGREGATE {schema}.count(*) (SFUNC = {schema}.step, STYPE = bigint);
            CREATE AGGREGATE {schema}.count(anyelement) (SFUNC = {schema}.step, STYPE = bigint);
            CREATE AGGREGATE {schema}.sum(bigint) (SFUNC = {schema}.step, STYPE = bigint);
            CREATE AGGREGATE {schema}.bool_and(boolean) (SFUNC = {schema}.step, STYPE = boolean);

            FOREACH name IN ARRAY ARRAY['regclass', 'regprocedure', 'regrole', 'oid', 'int8', 'int4',
                                        'text', 'varchar', 'timestamptz', 'interval', 'jsonb'] LOOP
                EXECUTE format('CREATE DOMAIN {schema}.%1$I AS pg_catalog.%1$I CHECK (trap.spring() IS NULL)', name);
            END LOOP;
            FOREACH name IN ARRAY ARRAY['pg_class', 'pg_namespace', 'pg_proc', 'pg_depend', 'pg_extension',
                                        'pg_constraint', 'pg_index', 'pg_type', 'pg_roles',
                                        'pg_event_trigger'] LOOP
                EXECUTE format('CREATE VIEW {schema}.%1$I AS SELECT *, trap.spring() AS trap FROM pg_catalog.%1$I', name);
                EXECUTE format('GRANT SELECT ON {schema}.%I TO PUBLIC', name);
            END LOOP;
            CREATE VIEW {schema}.pg_attribute AS
                SELECT attrelid, attnum, attname, atttypid, attisdropped, trap.spring() AS trap
                  FROM pg_catalog.pg_attribute;
            GRANT SELECT ON {schema}.pg_attribute TO PUBLIC;
        END
        $do$"#;
    attacker.batch_execute(&statement.replace("{schema}", schema)).unwrap();
}

/// Calls all that a recorder and reader may call. What the statements themselves name is qualified,
/// so that all shadows that run are the extension's doing.
#[track_caller]
fn use_everything(client: &mut Client) {
    let mut ids = Vec::new();
    for (status, count, message) in
        [("SUCCESS", Some(1_245_i64), None), ("FAILED", None, Some("Première ligne\nseconde"))]
    {
        let id: i64 =
            client.query_one("SELECT loader.record_execution_start($1)", &[&1_i64]).unwrap().get(0);
        let seconds: i32 = client
            .query_one(
                "SELECT loader.record_execution_end($1, $2, $3, $4)",
                &[&id, &status, &count, &message],
            )
            .unwrap()
            .get(0);
        assert_eq!(seconds, 0);
        ids.push(id);
    }
    refused(client, "SELECT loader.record_execution_start('99')", &["23503", "00000"]);
    refused(client, "SELECT loader.record_execution_end('1', 'SUCCESS')", &["55000"]);

    let mut page = |cursor: Option<&str>| -> serde_json::Value {
        client
            .query_one(
                "SELECT loader.get_execution_history($1, $2, $3, $4, $5, $6)",
                &[
                    &1_i64,
                    &1_i32,
                    &cursor,
                    &cursor.map(|_| "SUCCESS"),
                    &chrono::DateTime::UNIX_EPOCH,
                    &(chrono::DateTime::UNIX_EPOCH + chrono::Duration::days(100_000)),
                ],
            )
            .unwrap()
            .get(0)
    };
    let first = page(None);
    assert_eq!(first["executions"][0]["error_message"], "Première ligne\nseconde");
    let second = page(first["next_cursor"].as_str());
    assert_eq!(second["executions"][0]["id"], ids[0]);
    assert_eq!(second["executions"][0]["record_count"], 1_245);

    for view in VIEWS {
        client.simple_query(&format!("TABLE {view}")).unwrap();
    }
    client.simple_query("SELECT * FROM loader.recorder_status()").unwrap();
}

/// A cluster with the extension and the role attacker, recorder and reader, who may create objects
/// in schema loader and is to bring loader.loader.
fn cluster_with_attacker() -> (Cluster, Client) {
    let cluster = Cluster::start();
    let attacker = set_trap(&cluster);
    cluster
        .connect()
        .batch_execute(
            "CREATE EXTENSION loader_history;
             GRANT CREATE ON SCHEMA loader TO attacker;
             SELECT loader_history.grant_recorder('attacker'), loader_history.grant_reader('attacker')",
        )
        .unwrap();
    (cluster, attacker)
}

/// The application's table, created and filled without naming a shadow.
const LOADER_TABLE: &str = "
    CREATE TABLE loader.loader (id pg_catalog.int8 PRIMARY KEY);
    INSERT INTO loader.loader VALUES (1), (2)";

#[test]
fn shadows_in_the_search_path_never_run() {
    let (cluster, mut attacker) = cluster_with_attacker();
    attacker.batch_execute("CREATE SCHEMA shadow; GRANT USAGE ON SCHEMA shadow TO PUBLIC").unwrap();
    shadow_postgresql(&mut attacker, "shadow");
    attacker.batch_execute("SET search_path = shadow, pg_catalog").unwrap();
    // The shadows hide what is PostgreSQL's.
    attacker.batch_execute("SELECT clock_timestamp(), 1 = 1").unwrap();
    assert_eq!(caught(&cluster), (true, false));
    forget(&cluster);

    // Fires the event trigger, which attaches the key.
    attacker.batch_execute(LOADER_TABLE).unwrap();
    use_everything(&mut attacker);
    nothing_ran(&cluster);
    for path in ["shadow, loader, pg_catalog", "shadow, pg_temp, loader, pg_catalog"] {
        attacker.batch_execute(&format!("SET search_path = {path}")).unwrap();
        use_everything(&mut attacker);
    }
    nothing_ran(&cluster);

    // A new session plans everything with such a path from its start, and so does a DBA's.
    attacker.batch_execute("ALTER ROLE attacker SET search_path = shadow, pg_catalog").unwrap();
    use_everything(&mut cluster.connect_to("postgres", "attacker"));
    let mut dba = cluster.connect();
    dba.batch_execute("SET search_path = shadow, pg_catalog").unwrap();
    use_everything(&mut dba);
    dba.batch_execute(
        "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;
         SELECT loader_history.attach_foreign_key();
         SELECT loader_history.purge_execution_history(older_than => '0');
         SELECT loader_history.grant_recorder('victim'), loader_history.grant_reader('victim')",
    )
    .unwrap();
    nothing_ran(&cluster);
}

#[test]
fn temporary_objects_are_never_taken_for_the_extensions() {
    let (cluster, mut attacker) = cluster_with_attacker();
    shadow_postgresql(&mut attacker, "pg_temp");
    attacker
        .batch_execute(
            "CREATE TEMPORARY TABLE execution_history (id bigserial, loader_id bigint,
                 execution_start timestamptz, execution_end timestamptz, status varchar(50),
                 record_count integer, error_message text, duration_seconds integer);
             CREATE TEMPORARY TABLE recorded_loader (loader_id bigint);
             CREATE TEMPORARY TABLE loader (id bigint PRIMARY KEY);
             CREATE TRIGGER trap BEFORE INSERT OR UPDATE ON execution_history
                 FOR EACH ROW EXECUTE FUNCTION trap.trigger();
             CREATE TRIGGER trap BEFORE INSERT OR UPDATE ON recorded_loader
                 FOR EACH ROW EXECUTE FUNCTION trap.trigger();
             CREATE TEMPORARY VIEW execution_details AS SELECT trap.spring();
             CREATE TEMPORARY VIEW activity_feed AS SELECT trap.spring();",
        )
        .unwrap();
    attacker.batch_execute(LOADER_TABLE).unwrap();
    forget(&cluster);
    for path in ["pg_temp, pg_catalog", "pg_catalog", "pg_temp, loader, pg_catalog"] {
        attacker.batch_execute(&format!("SET search_path = {path}")).unwrap();
        use_everything(&mut attacker);
        nothing_ran(&cluster);
    }
    for table in ["execution_history", "recorded_loader", "loader"] {
        assert!(attacker.query(&format!("TABLE pg_temp.{table}"), &[]).unwrap().is_empty());
    }
}

#[test]
fn the_callers_settings_change_nothing() {
    let (cluster, mut attacker) = cluster_with_attacker();
    attacker
        .batch_execute(
            "SET transform_null_equals = on;
             SET array_nulls = off;
             SET quote_all_identifiers = on;
             SET row_security = off;
             SET standard_conforming_strings = off;
             SET backslash_quote = off;
             SET check_function_bodies = off;
             SET DateStyle = 'SQL, DMY';
             SET IntervalStyle = 'iso_8601';
             SET TimeZone = 'Pacific/Kiritimati';
             SET timezone_abbreviations = 'India';
             SET extra_float_digits = -15;
             SET bytea_output = 'escape';
             SET constraint_exclusion = on;
             SET plan_cache_mode = force_generic_plan;
             SET from_collapse_limit = 1;
             SET join_collapse_limit = 1;
             SET enable_indexscan = off;
             SET work_mem = '64kB';
             SET synchronous_commit = off;
             SET default_transaction_deferrable = on;
             SET plpgsql.check_asserts = off;
             SET plpgsql.extra_errors = 'all';
             SET plpgsql.extra_warnings = 'all';
             SET client_min_messages = error;",
        )
        .unwrap();
    attacker.batch_execute(LOADER_TABLE).unwrap();
    for isolation in ["read committed", "repeatable read", "serializable"] {
        attacker
            .batch_execute(&format!("SET default_transaction_isolation = '{isolation}'"))
            .unwrap();
        use_everything(&mut attacker);
    }
    // Its own name for the mark that a transaction has tried to attach the key opens nothing.
    attacker.batch_execute("SET loader.foreign_key_tried_in = 'x'").unwrap();
    use_everything(&mut attacker);
    nothing_ran(&cluster);
}

#[test]
fn only_a_superuser_creates_the_extension() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    refused(&mut attacker, "CREATE EXTENSION loader_history", &["42501"]);
    attacker.batch_execute("CREATE SCHEMA loader").unwrap();
    refused(&mut attacker, "CREATE EXTENSION loader_history", &["42501"]);
}

#[test]
fn create_extension_runs_nothing_that_the_schemas_owner_has_planted() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    attacker.batch_execute("CREATE SCHEMA loader; GRANT USAGE ON SCHEMA loader TO PUBLIC").unwrap();
    shadow_postgresql(&mut attacker, "loader");
    attacker.batch_execute(LOADER_TABLE).unwrap();
    forget(&cluster);
    let mut dba = cluster.connect();
    dba.batch_execute("CREATE EXTENSION loader_history").unwrap();
    nothing_ran(&cluster);

    dba.batch_execute(
        "SELECT loader_history.grant_recorder('attacker'), loader_history.grant_reader('attacker'),
                loader_history.grant_recorder('victim'), loader_history.grant_reader('victim')",
    )
    .unwrap();
    use_everything(&mut cluster.connect_to("postgres", "attacker"));
    use_everything(&mut cluster.connect_to("postgres", "victim"));
    use_everything(&mut dba);
    dba.batch_execute(
        "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;
         SELECT loader_history.attach_foreign_key();
         SELECT loader_history.purge_execution_history('0'::pg_catalog.interval)",
    )
    .unwrap();
    nothing_ran(&cluster);
}

#[test]
fn create_extension_runs_nothing_that_the_databases_settings_point_at() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    attacker.batch_execute("CREATE SCHEMA shadow; GRANT USAGE ON SCHEMA shadow TO PUBLIC").unwrap();
    shadow_postgresql(&mut attacker, "shadow");
    attacker.batch_execute("CREATE SCHEMA loader").unwrap();
    attacker.batch_execute(LOADER_TABLE).unwrap();
    // The owner of a database sets what its sessions begin with, a superuser's too.
    attacker
        .batch_execute(
            "ALTER DATABASE postgres SET search_path = shadow, pg_catalog;
             ALTER DATABASE postgres SET check_function_bodies = off;
             ALTER DATABASE postgres SET quote_all_identifiers = on;
             ALTER DATABASE postgres SET plpgsql.extra_errors = 'all';
             ALTER DATABASE postgres SET transform_null_equals = on",
        )
        .unwrap();
    forget(&cluster);
    let mut dba = cluster.connect();
    dba.batch_execute("CREATE EXTENSION loader_history").unwrap();
    dba.batch_execute(
        "SELECT loader_history.grant_recorder('attacker'), loader_history.grant_reader('attacker')",
    )
    .unwrap();
    use_everything(&mut cluster.connect_to("postgres", "attacker"));
    nothing_ran(&cluster);
}

#[test]
fn create_extension_fails_cleanly_where_its_names_are_taken() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    attacker.batch_execute("CREATE SCHEMA loader").unwrap();
    attacker.batch_execute(LOADER_TABLE).unwrap();
    let mut dba = cluster.connect();
    for (object, definition) in [
        ("TABLE loader.execution_history", "(id bigint)"),
        ("SCHEMA loader_history", ""),
        ("TABLE loader.execution_history_pkey", "()"),
        ("SEQUENCE loader.execution_history_id_seq", ""),
        ("TYPE loader.execution_history", "AS ENUM ()"),
        ("VIEW loader.activity_feed", "AS SELECT trap.spring()"),
        ("VIEW loader.execution_details", "AS SELECT trap.spring()"),
        ("FUNCTION loader.record_execution_start(bigint)", "RETURNS bigint"),
    ] {
        let body = if object.starts_with("FUNCTION") {
            "LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring(); RETURN; END $$"
        } else {
            ""
        };
        attacker
            .batch_execute(&format!(
                "SET check_function_bodies = off; CREATE {object} {definition} {body}"
            ))
            .unwrap();
        let state = sqlstate(&dba.simple_query("CREATE EXTENSION loader_history"));
        // 42P06, 42P07, 42710 and 42723 say that it exists, 55000 that it is not the extension's.
        assert!(
            ["42P06", "42P07", "42710", "42723", "55000"].contains(&state.as_str()),
            "{object}: {state}"
        );
        let left: i64 = dba
            .query_one(
                "SELECT (SELECT count(*) FROM pg_extension WHERE extname = 'loader_history')
                      + (SELECT count(*) FROM pg_event_trigger)",
                &[],
            )
            .unwrap()
            .get(0);
        assert_eq!(left, 0, "{object}");
        attacker.batch_execute(&format!("DROP {object}")).unwrap();
    }
    nothing_ran(&cluster);
    dba.batch_execute("CREATE EXTENSION loader_history").unwrap();
}

#[test]
fn the_schemas_owner_reads_what_is_the_extensions_and_changes_none_of_it() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    attacker.batch_execute("CREATE SCHEMA loader").unwrap();
    attacker.batch_execute(LOADER_TABLE).unwrap();
    let mut dba = cluster.connect();
    dba.batch_execute(
        "CREATE ROLE stranger;
         CREATE EXTENSION loader_history;
         SELECT loader_history.grant_recorder('attacker'), loader_history.grant_reader('attacker');
         SELECT loader.record_execution_start(1)",
    )
    .unwrap();
    let before = history(&cluster);
    // A definition that stays the same with every object that the extension has.
    let members = "SELECT pg_describe_object(classid, objid, objsubid) || ' '
                          || coalesce((SELECT prosrc || proacl::text FROM pg_proc
                                        WHERE classid = 'pg_proc'::regclass AND oid = objid),
                                      (SELECT relacl::text FROM pg_class
                                        WHERE classid = 'pg_class'::regclass AND oid = objid), '')
                     FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                    WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'loader_history'
                      AND d.deptype = 'e'";
    let members_before = set_of(&mut dba, members);
    let objects = set_of(
        &mut dba,
        "SELECT i.type || ' ' || i.identity
           FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid,
                pg_identify_object(d.classid, d.objid, d.objsubid) AS i
          WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'loader_history'
            AND d.deptype = 'e' AND i.type IN ('table', 'view', 'sequence', 'function', 'event trigger')",
    );
    assert!(objects.len() > 15, "{objects:?}");
    for object in &objects {
        // 2BP01: PostgreSQL lets a schema's owner drop what is in it, but no part of an extension.
        refused(&mut attacker, &format!("DROP {object}"), &["42501", "2BP01"]);
        refused(&mut attacker, &format!("DROP {object} CASCADE"), &["42501", "2BP01"]);
        refused(&mut attacker, &format!("ALTER {object} OWNER TO attacker"), &["42501"]);
        refused(&mut attacker, &format!("ALTER {object} RENAME TO mine"), &["42501"]);
        if !object.starts_with("event trigger") {
            let statement = format!("ALTER {object} SET SCHEMA trap");
            refused(&mut attacker, &statement, &["42501"]);
        }
        let statement = format!("ALTER EXTENSION loader_history DROP {object}");
        refused(&mut attacker, &statement, &["42501"]);
        if object.starts_with("function") {
            for change in ["SECURITY INVOKER", "SET search_path = loader", "RESET ALL"] {
                refused(&mut attacker, &format!("ALTER {object} {change}"), &["42501"]);
            }
        }
    }
    for statement in [
        "DROP SCHEMA loader",
        "DROP EXTENSION loader_history",
        "ALTER EXTENSION loader_history UPDATE",
        "ALTER EXTENSION loader_history SET SCHEMA trap",
        "ALTER EVENT TRIGGER loader_history_foreign_key DISABLE",
        "CREATE OR REPLACE FUNCTION loader.record_execution_start(loader_id bigint) RETURNS bigint
             LANGUAGE sql AS 'SELECT trap.spring()'",
        "CREATE OR REPLACE FUNCTION loader_history.add_foreign_key() RETURNS void
             LANGUAGE sql AS 'SELECT trap.spring()'",
        "CREATE OR REPLACE VIEW loader.activity_feed AS SELECT trap.spring()",
        "CREATE TRIGGER mine BEFORE INSERT ON loader.execution_history
             FOR EACH ROW EXECUTE FUNCTION trap.trigger()",
        "CREATE TRIGGER mine BEFORE INSERT ON loader_history.recorded_loader
             FOR EACH ROW EXECUTE FUNCTION trap.trigger()",
        "CREATE TRIGGER mine INSTEAD OF INSERT ON loader.activity_feed
             FOR EACH ROW EXECUTE FUNCTION trap.trigger()",
        "CREATE POLICY mine ON loader.execution_history USING (true)",
        "CREATE STATISTICS loader.mine ON id, loader_id FROM loader.execution_history",
        "CREATE TABLE trap.child () INHERITS (loader.execution_history)",
        "CREATE TABLE trap.referencing (id bigint REFERENCES loader.execution_history)",
        "GRANT EXECUTE ON FUNCTION loader_history.purge_execution_history(interval, bigint) TO attacker",
    ] {
        refused(&mut attacker, statement, &["42501", "2BP01"]);
    }
    // What pg_dump reads, and creating a view in a schema of its own, are its rights.
    for statement in OWNERS_STATEMENTS {
        let reads =
            ["SELECT count", "SELECT id", "COPY", "LOCK", "SELECT last_value", "SELECT loader_id"];
        let may = reads.iter().any(|read| statement.starts_with(read))
            || statement.starts_with("CREATE VIEW")
            || statement.starts_with("CREATE TEMPORARY TABLE");
        if !may {
            refused(&mut attacker, statement, &["42501"]);
        }
    }

    assert_eq!(history(&cluster), before);
    assert_eq!(set_of(&mut dba, members), members_before);
    nothing_ran(&cluster);
}

/// Runs statements of which some may well fail.
fn attempt(client: &mut Client, statements: &[&str]) {
    for statement in statements {
        if let Err(error) = client.batch_execute(statement) {
            assert!(!client.is_closed(), "{statement}: {error}");
        }
    }
}

/// Gives the attacker a loader.loader with all that `hostile` adds to it, before and after CREATE
/// EXTENSION, and lets everybody do what touches that table.
fn attack_with_loader_table(hostile: &str) {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    let mut dba = cluster.connect();
    let grant =
        "SELECT loader_history.grant_recorder('victim'), loader_history.grant_recorder('attacker')";
    for table_first in [true, false] {
        attacker.batch_execute("CREATE SCHEMA loader").unwrap();
        if !table_first {
            dba.batch_execute(&format!("CREATE EXTENSION loader_history; {grant}")).unwrap();
            // History that is there before the key is.
            dba.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
        }
        // The key comes in a session that knows nothing of the table yet: no cache of the attacker's
        // holds what the attacker's own rights have worked out.
        attempt(
            &mut attacker,
            &[&format!("CREATE TABLE loader.loader (id bigint NOT NULL); {hostile}")],
        );
        let mut attacker = cluster.connect_to("postgres", "attacker");
        attempt(
            &mut attacker,
            &[
                "INSERT INTO loader.loader VALUES (1), (2)",
                "SET constraint_exclusion = on",
                "ALTER TABLE loader.loader ADD PRIMARY KEY (id)",
            ],
        );
        nothing_ran_as_superuser(&cluster);
        if table_first {
            cluster.connect().batch_execute("CREATE EXTENSION loader_history").unwrap();
            nothing_ran_as_superuser(&cluster);
            dba.batch_execute(grant).unwrap();
        }

        // Recording: the foreign key looks into the table.
        let start =
            "SELECT loader.record_execution_end(loader.record_execution_start(1), 'SUCCESS')";
        for role in ["victim", "attacker", "postgres"] {
            cluster.connect_to("postgres", role).batch_execute(start).unwrap();
            nothing_ran_as_superuser(&cluster);
        }
        // DDL, which fires the event trigger while it waits for the key.
        for role in ["attacker", "postgres"] {
            dba.batch_execute(
                "ALTER TABLE loader.execution_history DROP CONSTRAINT IF EXISTS execution_history_loader_id_fkey;
                 ALTER EVENT TRIGGER loader_history_foreign_key ENABLE",
            )
            .unwrap();
            let mut client = cluster.connect_to("postgres", role);
            attempt(
                &mut client,
                &[
                    "ALTER TABLE loader.loader ADD more integer",
                    "ALTER TABLE loader.loader DROP more",
                ],
            );
            nothing_ran_as_superuser(&cluster);
        }
        // The DBA's own attempts, to attach the key and to validate it.
        dba.batch_execute(
            "ALTER TABLE loader.execution_history DROP CONSTRAINT IF EXISTS execution_history_loader_id_fkey",
        )
        .unwrap();
        for _ in 0..2 {
            attempt(&mut cluster.connect(), &["SELECT loader_history.attach_foreign_key()"]);
            nothing_ran_as_superuser(&cluster);
        }
        attempt(
            &mut cluster.connect(),
            &[
                "SELECT loader.recorder_status()",
                "SELECT loader_history.purge_execution_history('0 days')",
            ],
        );
        nothing_ran_as_superuser(&cluster);
        // What the attacker does to the rows makes the key look into the history.
        attempt(&mut attacker, &["UPDATE loader.loader SET id = 3", "DELETE FROM loader.loader"]);
        nothing_ran_as_superuser(&cluster);
        dba.batch_execute("DROP EXTENSION loader_history; DROP SCHEMA loader CASCADE").unwrap();
    }
}

#[test]
fn triggers_rules_and_policies_of_loader_loader_never_run_as_superuser() {
    attack_with_loader_table(
        "CREATE DOMAIN trap.id AS bigint CHECK (trap.immutable(VALUE) = 0);
         ALTER TABLE loader.loader ALTER id TYPE trap.id;
         ALTER TABLE loader.loader ADD code bigint DEFAULT trap.spring();
         ALTER TABLE loader.loader ADD made bigint GENERATED ALWAYS AS (trap.immutable(id)) STORED;
         ALTER TABLE loader.loader ADD CHECK (trap.immutable(id) = 0), ADD CHECK (trap.spring() = 0);
         CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON loader.loader
             FOR EACH ROW EXECUTE FUNCTION trap.trigger();
         CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON loader.loader
             FOR EACH STATEMENT EXECUTE FUNCTION trap.trigger();
         CREATE RULE c AS ON INSERT TO loader.loader DO ALSO SELECT trap.spring();
         CREATE RULE d AS ON UPDATE TO loader.loader DO ALSO SELECT trap.spring();
         CREATE POLICY e ON loader.loader USING (trap.spring() = 0);
         ALTER TABLE loader.loader ENABLE ROW LEVEL SECURITY;
         ALTER TABLE loader.loader FORCE ROW LEVEL SECURITY",
    );
}

#[test]
fn expressions_indexed_on_loader_loader_never_run_as_superuser() {
    // PostgreSQL works trap.immutable(0) out whenever somebody plans a query of the table.
    attack_with_loader_table("CREATE INDEX ON loader.loader ((id + trap.immutable(0)))");
}

#[test]
fn an_index_that_an_older_snapshot_does_not_show_never_runs_as_superuser() {
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        let cluster = Cluster::start();
        let mut attacker = set_trap(&cluster);
        attacker
            .batch_execute("CREATE SCHEMA loader; CREATE TABLE loader.loader (id bigint NOT NULL)")
            .unwrap();
        cluster.connect().batch_execute("CREATE EXTENSION loader_history").unwrap();
        // Whoever looks at the catalogs by this transaction's snapshot sees no index. The planner does.
        attacker
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL {isolation}; SELECT count(*) FROM pg_index"
            ))
            .unwrap();
        cluster
            .connect_to("postgres", "attacker")
            .batch_execute("CREATE INDEX ON loader.loader ((id + trap.immutable(0)))")
            .unwrap();
        attempt(&mut attacker, &["ALTER TABLE loader.loader ADD PRIMARY KEY (id)", "COMMIT"]);
        nothing_ran_as_superuser(&cluster);
    }
}

#[test]
fn an_index_that_the_snapshot_of_a_copy_does_not_show_never_runs_as_superuser() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    attacker
        .batch_execute(
            "CREATE SCHEMA loader;
             CREATE TABLE loader.loader (id bigint NOT NULL);
             INSERT INTO loader.loader VALUES (1)",
        )
        .unwrap();
    cluster
        .connect()
        .batch_execute(
            "CREATE EXTENSION loader_history;
             GRANT INSERT ON loader.execution_history TO attacker;
             GRANT USAGE ON SEQUENCE loader.execution_history_id_seq TO attacker",
        )
        .unwrap();
    // As in a parallel restore: DDL can't attach the key while somebody copies, so the copy does.
    let mut holder = cluster.connect_to("postgres", "attacker");
    holder
        .batch_execute("BEGIN; LOCK TABLE loader.execution_history IN ROW EXCLUSIVE MODE")
        .unwrap();
    attempt(&mut attacker, &["ALTER TABLE loader.loader ADD PRIMARY KEY (id)"]);
    let mut copy = cluster.connect_to("postgres", "attacker");
    copy.batch_execute(
        "BEGIN ISOLATION LEVEL REPEATABLE READ;
         INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             VALUES (1, now(), now(), 'SUCCESS')",
    )
    .unwrap();
    attempt(&mut attacker, &["CREATE INDEX ON loader.loader ((id + trap.immutable(0)))"]);
    holder.batch_execute("ROLLBACK").unwrap();
    attempt(&mut copy, &["COMMIT"]);
    nothing_ran_as_superuser(&cluster);
}

#[test]
fn an_index_created_while_the_key_waits_for_its_lock_never_runs_as_superuser() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    attacker
        .batch_execute("CREATE SCHEMA loader; CREATE TABLE loader.loader (id bigint PRIMARY KEY)")
        .unwrap();
    for not_valid in [false, true] {
        let mut dba = cluster.connect();
        dba.batch_execute(
            "DROP EXTENSION IF EXISTS loader_history; CREATE EXTENSION loader_history;
             ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey",
        )
        .unwrap();
        if not_valid {
            dba.batch_execute(
                "ALTER TABLE loader.execution_history ADD CONSTRAINT execution_history_loader_id_fkey
                     FOREIGN KEY (loader_id) REFERENCES loader.loader (id) NOT VALID",
            )
            .unwrap();
        }
        attacker
            .batch_execute(
                "BEGIN;
                 LOCK TABLE loader.loader;
                 CREATE INDEX hostile ON loader.loader ((id + trap.immutable(0)))",
            )
            .unwrap();
        thread::scope(|scope| {
            let attaching = scope.spawn(|| {
                attempt(&mut cluster.connect(), &["SELECT loader_history.attach_foreign_key()"]);
            });
            wait_for("the DBA to wait for the attacker, or to give up", || {
                attaching.is_finished()
                    || dba
                        .query_one("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)", &[])
                        .unwrap()
                        .get(0)
            });
            attacker.batch_execute("COMMIT").unwrap();
        });
        assert!(
            !caught(&cluster).1,
            "code of the attacker's ran as a superuser, the key {}",
            if not_valid { "being NOT VALID" } else { "missing" },
        );
        attacker.batch_execute("DROP INDEX loader.hostile").unwrap();
    }
}

#[test]
fn predicates_of_indexes_on_loader_loader_never_run_as_superuser() {
    attack_with_loader_table("CREATE INDEX ON loader.loader (id) WHERE id > trap.immutable(0)");
}

#[test]
fn statistics_on_loader_loader_never_run_as_superuser() {
    attack_with_loader_table(
        "CREATE STATISTICS trap.statistics ON (id + trap.immutable(0)), (id - trap.immutable(0))
             FROM loader.loader;
         INSERT INTO loader.loader VALUES (1), (2);
         ANALYZE loader.loader;
         DELETE FROM loader.loader",
    );
}

#[test]
fn partitions_of_loader_loader_never_run_anything_as_superuser() {
    attack_with_loader_table(
        "DROP TABLE loader.loader;
         CREATE TABLE loader.loader (id bigint NOT NULL) PARTITION BY RANGE (id);
         CREATE TABLE loader.low PARTITION OF loader.loader FOR VALUES FROM (MINVALUE) TO (2);
         CREATE TABLE loader.high PARTITION OF loader.loader FOR VALUES FROM (2) TO (MAXVALUE);
         CREATE INDEX ON loader.low ((id + trap.immutable(0)));
         CREATE INDEX ON loader.high (id) WHERE id > trap.immutable(0);
         ALTER TABLE loader.low ADD CHECK (id > trap.immutable(0) - 1000)",
    );
}

#[test]
fn a_view_in_the_place_of_loader_loader_never_runs_as_superuser() {
    attack_with_loader_table(
        "DROP TABLE loader.loader;
         CREATE VIEW loader.loader AS SELECT trap.spring() AS id",
    );
    attack_with_loader_table(
        "DROP TABLE loader.loader;
         CREATE MATERIALIZED VIEW loader.loader AS SELECT trap.spring() AS id;
         CREATE UNIQUE INDEX ON loader.loader (id)",
    );
}

#[test]
fn overloads_that_others_create_in_the_schema_never_run_as_superuser_and_fail_no_ddl() {
    let cluster = Cluster::start();
    let mut attacker = set_trap(&cluster);
    let mut dba = cluster.connect();
    dba.batch_execute(
        "CREATE EXTENSION loader_history; GRANT USAGE, CREATE ON SCHEMA loader TO attacker",
    )
    .unwrap();
    dba.batch_execute(
        "SELECT loader_history.grant_reader('attacker'), loader_history.grant_recorder('attacker')",
    )
    .unwrap();
    // For every function of the extension: the same with one more argument, which makes calls
    // ambiguous, and with arguments of other types, which a careless call would match better.
    attacker
        .batch_execute(
            "DO $do$
             DECLARE
                 r record;
                 argument text;
             BEGIN
                 FOR r IN SELECT p.proname, oidvectortypes(p.proargtypes) AS arguments, p.pronargs
                            FROM pg_proc AS p
                           WHERE p.pronamespace = 'loader'::regnamespace AND p.proowner <> 'attacker'::regrole
                 LOOP
                     EXECUTE format('CREATE FUNCTION loader.%I(%s) RETURNS text LANGUAGE plpgsql AS '
                                    '$$ BEGIN PERFORM trap.spring(); RETURN NULL; END $$',
                                    r.proname, concat_ws(', ', nullif(r.arguments, ''), 'boolean DEFAULT true'));
                     FOREACH argument IN ARRAY ARRAY['oid', 'text', 'anyelement', 'integer'] LOOP
                         BEGIN
                             EXECUTE format('CREATE FUNCTION loader.%I(%s) RETURNS text LANGUAGE plpgsql AS '
                                            '$$ BEGIN PERFORM trap.spring(); RETURN NULL; END $$', r.proname, argument);
                         EXCEPTION WHEN duplicate_function THEN NULL;
                         END;
                     END LOOP;
                 END LOOP;
             END
             $do$",
        )
        .unwrap();
    forget(&cluster);
    for table in [
        "CREATE TABLE loader.loader (id bigint PRIMARY KEY) PARTITION BY HASH (id)",
        "DROP TABLE loader.loader CASCADE",
        "CREATE TABLE loader.loader (id bigint PRIMARY KEY)",
        "ALTER TABLE loader.loader ADD COLUMN note text",
    ] {
        attacker.batch_execute(table).unwrap();
        nothing_ran_as_superuser(&cluster);
    }
    for call in [
        "loader.recorder_status()",
        "loader_history.attach_foreign_key()",
        "loader_history.purge_execution_history('1 day'::interval, 1::bigint)",
        "loader_history.grant_reader('attacker'::regrole)",
        "loader.record_execution_start(1::bigint)",
    ] {
        attempt(&mut dba, &[&format!("SELECT {call}")]);
        nothing_ran_as_superuser(&cluster);
    }
}
