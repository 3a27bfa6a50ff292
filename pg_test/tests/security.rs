//! Promise: what the extension has is as a security review found it, object by object, and nobody reaches
//! more through views, JSON, cursors, events, settings, triggers or errors than was granted.
//!
//! `privileges.rs` holds the grants themselves, search paths and shadows; this, what else there is to try.

use std::collections::BTreeSet;

use pg_test::{
    APPLICATION_SQL, Client, Cluster, HasError, Listener, PRELOADED, Session,
    cluster_with_extension, column, forget, nothing_ran, nothing_ran_as_superuser,
    preloaded_cluster, set_trap, sqlstate, status_of, wait_for, wait_for_worker,
};
use serde_json::Value;

/// The objects of the extension, whatever their names.
const MEMBERS: &str = "
    WITH member AS (
        SELECT d.classid, d.objid
          FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
         WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'loader_history' AND d.deptype = 'e')";

/// Every function: with whose rights it runs, its volatility, parallel safety, language, and what it sets.
/// A function that is added comes here, reviewed.
///
/// DEFINER are those that others than the owner call, or that PostgreSQL calls for others: of these
/// recorder_status reads internal tables, and the rest write.
const FUNCTIONS: [&str; 22] = [
    // Reads the views as its caller, who needs the right to.
    "loader.get_execution_history(bigint,integer,text,text,timestamp with time zone,timestamp with time zone) \
     INVOKER stable restricted c",
    "loader.record_execution_end(bigint,text,bigint,text) DEFINER volatile unsafe c",
    "loader.record_execution_start(bigint) DEFINER volatile unsafe c",
    "loader.recorder_status() DEFINER volatile unsafe plpgsql",
    "loader_history.add_foreign_key() INVOKER volatile unsafe plpgsql",
    "loader_history.attach_foreign_key() INVOKER volatile unsafe plpgsql",
    "loader_history.attach_foreign_key_on_commit() DEFINER volatile unsafe plpgsql lock_timeout=500ms",
    "loader_history.attach_foreign_key_on_ddl() DEFINER volatile unsafe plpgsql lock_timeout=200ms",
    "loader_history.drop_replicated_row() INVOKER volatile unsafe c no search_path",
    "loader_history.foreign_key_state() INVOKER stable unsafe plpgsql",
    "loader_history.grant_execute(regrole,regprocedure[]) INVOKER volatile unsafe plpgsql",
    "loader_history.grant_reader(regrole) INVOKER volatile unsafe plpgsql",
    "loader_history.grant_recorder(regrole) INVOKER volatile unsafe plpgsql",
    "loader_history.history_changed() INVOKER volatile unsafe c no search_path",
    "loader_history.purge_execution_history(interval,bigint) INVOKER volatile unsafe c",
    "loader_history.recorder_state() INVOKER volatile unsafe c",
    // Asks who creates the trigger.
    "loader_history.refuse_foreign_trigger() INVOKER volatile unsafe plpgsql",
    "loader_history.refuse_schema_rename() INVOKER volatile unsafe plpgsql",
    "loader_history.request_foreign_key() DEFINER volatile unsafe plpgsql",
    "loader_history.require_writable() INVOKER volatile unsafe plpgsql",
    "loader_history.untrusted_code(regclass) INVOKER stable unsafe sql",
    "loader_history.validate_foreign_key() INVOKER volatile unsafe plpgsql",
];

/// Every trigger, and when it fires: O for origin, A always, D not at all. (The key is there.)
const TRIGGERS: [&str; 7] = [
    "execution_history.history_inserted A",
    "execution_history.history_updated A",
    "execution_history.request_foreign_key D",
    "foreign_key_request.attach_foreign_key_on_commit O",
    "prepared_change.drop_replicated_row A",
    "purge_position.drop_replicated_row A",
    "watched_transaction.drop_replicated_row A",
];

/// Every relation, with its kind and options. The views have no security_barrier: a reader may see all
/// that they select from, but the ids of loaders whose history is gone. And they run with their owner's
/// rights: readers have none on the tables.
const RELATIONS: [&str; 13] = [
    "loader.activity_feed v",
    "loader.execution_details v",
    "loader.execution_history r",
    "loader.execution_history_id_seq S",
    "loader.failed_loader_counts v",
    "loader.loader_summary v",
    "loader_history.foreign_key_request r",
    "loader_history.last_timeline S",
    "loader_history.prepared_change r vacuum_truncate=off",
    "loader_history.purge_position r vacuum_truncate=off",
    "loader_history.recorded_loader r",
    "loader_history.server_outcome r",
    "loader_history.watched_transaction r vacuum_truncate=off",
];

fn set_of(client: &mut Client, query: &str) -> BTreeSet<String> {
    column(client, query).into_iter().collect()
}

#[track_caller]
fn assert_members(client: &mut Client, query: &str, expected: &[&str]) {
    let found = set_of(client, &format!("{MEMBERS} {query}"));
    let expected: BTreeSet<_> = expected.iter().map(|&name| name.to_owned()).collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    let unknown: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "gone: {missing:#?}\nnew: {unknown:#?}");
}

/// A cluster with the extension, a recorder, a reader, and a stranger who was granted nothing.
fn cluster_with_roles() -> Cluster {
    let cluster = cluster_with_extension();
    grant_roles(&cluster);
    cluster
}

fn grant_roles(cluster: &Cluster) {
    cluster
        .connect()
        .batch_execute(
            "CREATE ROLE recorder LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE stranger LOGIN;
             SELECT loader_history.grant_recorder('recorder'), loader_history.grant_reader('reader')",
        )
        .unwrap();
}

#[track_caller]
fn refused(client: &mut Client, statement: &str, sqlstates: &[&str]) {
    let state = sqlstate(&client.simple_query(statement));
    assert!(sqlstates.contains(&state.as_str()), "{statement}: {state}");
}

#[test]
fn every_object_is_as_it_was_reviewed() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    assert_members(
        &mut client,
        "SELECT concat_ws(' ', p.oid::regprocedure::text,
                          CASE WHEN p.prosecdef THEN 'DEFINER' ELSE 'INVOKER' END,
                          CASE p.provolatile WHEN 'v' THEN 'volatile' WHEN 's' THEN 'stable' ELSE 'immutable' END,
                          CASE p.proparallel WHEN 'u' THEN 'unsafe' WHEN 'r' THEN 'restricted' ELSE 'safe' END,
                          l.lanname, CASE WHEN p.proleakproof THEN 'LEAKPROOF' END,
                          (SELECT string_agg(s, ' ') FROM unnest(p.proconfig) AS s
                            WHERE s <> 'search_path=pg_catalog, pg_temp'),
                          CASE WHEN 'search_path=pg_catalog, pg_temp' = ANY (p.proconfig) THEN NULL
                               ELSE 'no search_path' END)
           FROM member JOIN pg_proc AS p ON classid = 'pg_proc'::regclass AND p.oid = objid
           JOIN pg_language AS l ON l.oid = p.prolang",
        &FUNCTIONS,
    );
    assert_members(
        &mut client,
        "SELECT concat_ws(' ', c.oid::regclass, c.relkind, array_to_string(c.reloptions, ' '),
                          CASE WHEN c.relrowsecurity OR c.relforcerowsecurity THEN 'row security' END)
           FROM member JOIN pg_class AS c ON classid = 'pg_class'::regclass AND c.oid = objid",
        &RELATIONS,
    );
    assert_members(
        &mut client,
        "SELECT format('%s.%s %s', c.relname, t.tgname, t.tgenabled)
           FROM member JOIN pg_class AS c ON classid = 'pg_class'::regclass AND c.oid = objid
           JOIN pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal",
        &TRIGGERS,
    );
    assert_members(
        &mut client,
        "SELECT concat_ws(' ', evtname, evtevent, evtenabled, evttags::text)
           FROM member JOIN pg_event_trigger AS t ON classid = 'pg_event_trigger'::regclass AND t.oid = objid",
        &[
            // Disabled once the key is there.
            "loader_history_foreign_key ddl_command_end D {\"ALTER INDEX\",\"ALTER TABLE\",\"CREATE INDEX\",\"CREATE TABLE\"}",
            "loader_history_schemas ddl_command_end A {\"ALTER SCHEMA\"}",
            "loader_history_triggers ddl_command_end A {\"CREATE TRIGGER\"}",
        ],
    );
    // Nothing of another kind: no operator, cast, type of its own, or language.
    assert_members(
        &mut client,
        "SELECT DISTINCT classid::regclass::text FROM member
           LEFT JOIN pg_type AS t ON classid = 'pg_type'::regclass AND t.oid = objid
          WHERE t.oid IS NULL OR t.typrelid = 0 AND t.typelem = 0",
        &["pg_class", "pg_event_trigger", "pg_namespace", "pg_proc"],
    );
    // A rule would run with the rights of the table's owner. Views have theirs.
    assert_members(
        &mut client,
        "SELECT r.rulename::text FROM member JOIN pg_rewrite AS r ON r.ev_class = objid
          WHERE classid = 'pg_class'::regclass AND r.rulename <> '_RETURN'
         UNION ALL SELECT p.polname::text FROM member JOIN pg_policy AS p ON p.polrelid = objid",
        &[],
    );
}

#[test]
fn a_superuser_owns_all_of_it_and_nobody_else_has_rights_that_were_not_granted() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    assert_members(
        &mut client,
        "SELECT pg_describe_object(classid, objid, 0) || ' of ' || r.rolname
           FROM member
           LEFT JOIN pg_proc AS p ON classid = 'pg_proc'::regclass AND p.oid = objid
           LEFT JOIN pg_class AS c ON classid = 'pg_class'::regclass AND c.oid = objid
           LEFT JOIN pg_event_trigger AS t ON classid = 'pg_event_trigger'::regclass AND t.oid = objid
           JOIN pg_roles AS r ON r.oid = coalesce(p.proowner, c.relowner, t.evtowner)
          WHERE NOT r.rolsuper",
        &[],
    );
    // Grants to anybody but the owner, of columns too; and the schema's.
    assert_members(
        &mut client,
        "SELECT format('%s: %s to %s', pg_describe_object(classid, objid, 0), a.privilege_type, a.grantee::regrole)
           FROM member
           LEFT JOIN pg_proc AS p ON classid = 'pg_proc'::regclass AND p.oid = objid
           LEFT JOIN pg_class AS c ON classid = 'pg_class'::regclass AND c.oid = objid
           LEFT JOIN pg_attribute AS t ON t.attrelid = c.oid,
                unnest(coalesce(p.proacl, CASE WHEN p.oid IS NOT NULL THEN acldefault('f', p.proowner) END)
                       || coalesce(c.relacl, '{}') || coalesce(t.attacl, '{}')) AS item,
                aclexplode(ARRAY[item]) AS a
          WHERE a.grantee <> coalesce(p.proowner, c.relowner)",
        &[],
    );
    assert_eq!(
        column::<String>(
            &mut client,
            "SELECT concat_ws(' ', nspowner::regrole, nspacl::text) FROM pg_namespace WHERE nspname = 'loader'"
        ),
        ["postgres"]
    );
    // The views select from the history alone and the list of loaders, and call nothing of the extension's.
    assert_members(
        &mut client,
        "SELECT DISTINCT coalesce(d.refobjid::regclass::text, pg_describe_object(d.refclassid, d.refobjid, 0))
           FROM member JOIN pg_class AS c ON classid = 'pg_class'::regclass AND c.oid = objid AND c.relkind = 'v'
           JOIN pg_rewrite AS r ON r.ev_class = c.oid
           JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
          WHERE d.refobjid <> c.oid",
        &["loader.execution_history", "loader_history.recorded_loader"],
    );
}

#[test]
fn functions_that_postgresql_calls_are_called_by_nobody_else() {
    let cluster = cluster_with_roles();
    let triggers = format!(
        "{MEMBERS} SELECT p.oid::regprocedure::text
           FROM member JOIN pg_proc AS p ON classid = 'pg_proc'::regclass AND p.oid = objid
          WHERE p.prorettype IN ('trigger'::regtype, 'event_trigger'::regtype)"
    );
    let functions: Vec<String> = column(&mut cluster.connect(), &triggers);
    assert!(functions.len() >= 6, "{functions:?}");
    for function in functions {
        for user in ["recorder", "reader", "stranger", "postgres"] {
            let mut client = cluster.connect_to("postgres", user);
            for call in
                [format!("SELECT {function}"), format!("DO $$ BEGIN PERFORM {function}; END $$")]
            {
                // pgrx has no better word for it, and only a superuser hears it.
                let states: &[&str] =
                    if user == "postgres" { &["0A000", "XX000"] } else { &["42501"] };
                refused(&mut client, &call, states);
            }
        }
    }
}

/// Even a superuser, who may call them for any table, gets an error or nothing, and never a crash.
#[test]
fn trigger_functions_in_the_wrong_place_crash_nothing() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    for (number, columns) in [
        "",
        "id bigint, loader_id bigint",
        "id integer, loader_id text, execution_start text, execution_end date, status integer, \
         record_count text, error_message bigint, duration_seconds text",
        "id bigint, loader_id bigint, execution_start timestamptz, execution_end timestamptz, \
         status varchar(50), record_count integer, error_message bigint DEFAULT -1, duration_seconds integer",
        "id bigint, loader_id bigint, execution_start timestamptz, execution_end timestamptz, \
         status varchar(50), record_count integer, error_message double precision DEFAULT 1e300, duration_seconds integer",
        "id bigint, loader_id bigint, execution_start timestamptz, execution_end timestamptz, \
         status varchar(50), record_count integer, error_message name DEFAULT 'x', duration_seconds integer",
    ]
    .into_iter()
    .enumerate()
    {
        for kind in ["", "PARTITION BY LIST (more)"] {
            let table = format!("public.wrong_{number}_{}", kind.len());
            let comma = if columns.is_empty() { "" } else { "," };
            client
                .batch_execute(&format!(
                    "CREATE TABLE {table} (more integer DEFAULT 1{comma} {columns}) {kind}"
                ))
                .unwrap();
            if !kind.is_empty() {
                client
                    .batch_execute(&format!("CREATE TABLE {table}_part PARTITION OF {table} DEFAULT"))
                    .unwrap();
            }
            for function in ["history_changed", "drop_replicated_row"] {
                for when in [
                    "BEFORE INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW",
                    "AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW",
                    "BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} FOR EACH STATEMENT",
                    "AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} FOR EACH STATEMENT",
                ] {
                    let when = when.replace("{}", &table);
                    let create =
                        format!("CREATE TRIGGER wrong {when} EXECUTE FUNCTION loader_history.{function}()");
                    client.batch_execute(&create).unwrap_or_else(|e| panic!("{create}: {e:?}"));
                    let set = if columns.contains("status varchar") {
                        "more = 2, id = 1, loader_id = 1, status = 'FAILED', execution_end = now()"
                    } else {
                        "more = 2"
                    };
                    for statement in [
                        format!("INSERT INTO {table} DEFAULT VALUES"),
                        format!("SET session_replication_role = replica; INSERT INTO {table} DEFAULT VALUES"),
                        format!("SET session_replication_role = origin; UPDATE {table} SET {set}"),
                        format!("DELETE FROM {table}"),
                        format!("TRUNCATE {table}"),
                    ] {
                        let _may_fail = client.simple_query(&statement);
                        assert!(!client.is_closed(), "{create}; {statement}");
                    }
                    client.batch_execute(&format!("DROP TRIGGER wrong ON {table}")).unwrap();
                }
            }
        }
    }
    assert_eq!(client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get::<_, i32>(0), pid);
}

#[test]
fn what_a_reader_adds_to_a_query_of_the_views_runs_as_the_reader() {
    let cluster = cluster_with_extension();
    let mut attacker = set_trap(&cluster);
    cluster
        .connect()
        .batch_execute(
            "SELECT loader_history.grant_reader('attacker');
             SELECT loader.record_execution_end(loader.record_execution_start(n), 'FAILED', 1, 'secret')
               FROM generate_series(1, 3) AS n",
        )
        .unwrap();
    // Cheap, so that PostgreSQL asks it before the views' own conditions; and an operator, a cast to a
    // domain and an aggregate of the attacker's.
    attacker
        .batch_execute(
            "CREATE FUNCTION trap.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001
                 AS $$ BEGIN PERFORM trap.spring(); RETURN true; END $$;
             CREATE FUNCTION trap.leak(bigint, bigint) RETURNS boolean LANGUAGE plpgsql COST 0.0000001
                 AS $$ BEGIN PERFORM trap.spring(); RETURN true; END $$;
             CREATE OPERATOR trap.<<< (FUNCTION = trap.leak, LEFTARG = bigint, RIGHTARG = bigint);
             CREATE DOMAIN trap.wary AS text CHECK (trap.spring() = 0);
             CREATE FUNCTION trap.add(bigint, bigint) RETURNS bigint LANGUAGE plpgsql
                 AS $$ BEGIN RETURN trap.spring(); END $$;
             CREATE AGGREGATE trap.gather(bigint) (SFUNC = trap.add, STYPE = bigint)",
        )
        .unwrap();
    for query in [
        "SELECT * FROM loader.activity_feed WHERE trap.leak(error_message)",
        "SELECT * FROM loader.execution_details WHERE trap.leak(error_message) AND loader_id = 1",
        "SELECT * FROM loader.loader_summary WHERE trap.leak(loader_id)",
        "SELECT * FROM loader.loader_summary WHERE loader_id OPERATOR(trap.<<<) 2",
        "SELECT * FROM loader.failed_loader_counts WHERE trap.leak(failed_loaders)",
        "SELECT error_message::trap.wary FROM loader.execution_details",
        "SELECT trap.gather(execution_id) FROM loader.activity_feed",
        "SELECT * FROM loader.activity_feed ORDER BY trap.leak(message), event_time DESC",
        "SELECT loader.get_execution_history(1, \"cursor\" => NULL::trap.wary)",
        "SELECT loader.get_execution_history(status => 'FAILED'::trap.wary)",
    ] {
        forget(&cluster);
        attacker.simple_query(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
        nothing_ran_as_superuser(&cluster);
    }
    // What the views are made of stays out of reach, by any way of saying it.
    for query in [
        "SELECT * FROM loader_history.recorded_loader",
        "SELECT ctid FROM loader.execution_details",
        "SELECT xmin FROM loader.activity_feed",
        "SELECT tableoid FROM loader.loader_summary",
    ] {
        refused(&mut attacker, query, &["42501", "42703"]);
    }
    // Nor can anybody who is no superuser have PostgreSQL take a leaky function for a tight one.
    refused(&mut attacker, "ALTER FUNCTION trap.leak(anyelement) LEAKPROOF", &["42501"]);
    refused(
        &mut attacker,
        "CREATE OPERATOR CLASS trap.mine DEFAULT FOR TYPE bigint USING btree AS OPERATOR 1 trap.<<<",
        &["42501"],
    );
    for cast in ["text AS bigint", "bigint AS integer"] {
        let statement =
            format!("CREATE CAST ({cast}) WITH FUNCTION trap.leak(anyelement) AS IMPLICIT");
        refused(&mut attacker, &statement, &["42501", "42P17", "42710"]);
    }
}

/// Texts that would be more than text to whoever is careless with them.
const HOSTILE_TEXTS: [&str; 18] = [
    r#"","status":"SUCCESS","loader_id":1,"x":""#,
    r#"\","event_type":"EXECUTION_SUCCESS"#,
    r#"\u0000"#,
    r#"\ud800 \udfff \"#,
    "\u{1}\u{2}\u{8}\u{b}\u{1b}[2J\u{7f}\u{80}\u{9f}",
    "line\r\nfeed\ttab\u{c}",
    "\u{2028}\u{2029}\u{85}\u{feff}",
    "\u{fffe}\u{ffff}\u{10ffff}\u{d7ff}\u{e000}",
    "\u{202e}desrever\u{202c}",
    "'; DROP TABLE loader.execution_history; --",
    "$$; SELECT 1; $$",
    "\\'; SELECT pg_sleep(10); --",
    "%s %I %L %n %1$s",
    "</script><script>alert(1)</script>",
    "{{7*7}} ${jndi:ldap://x} `id` $(id)",
    "[]{}:,\"\"null true",
    "e\u{301}\u{300}\u{302} 👨‍👩‍👧‍👦",
    "",
];

#[test]
fn a_text_stays_a_text_in_json_feed_and_events() {
    let cluster = cluster_with_roles();
    let mut recorder = cluster.connect_to("postgres", "recorder");
    let mut reader = cluster.connect_to("postgres", "reader");
    let mut listener = Listener::new(&cluster);
    recorder.batch_execute("SET loader_history.notify_error_message = on").unwrap();
    for text in HOSTILE_TEXTS {
        let row = recorder.query_one("SELECT loader.record_execution_start(5)", &[]).unwrap();
        let id: i64 = row.get(0);
        recorder
            .execute("SELECT loader.record_execution_end($1, 'FAILED', 7, $2)", &[&id, &text])
            .unwrap();
        let page: Value =
            reader.query_one("SELECT loader.get_execution_history(5, 1)", &[]).unwrap().get(0);
        let execution = &page["executions"][0];
        let mut keys: Vec<_> = execution.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "duration_ms",
                "duration_seconds",
                "error_message",
                "error_truncated",
                "execution_end",
                "execution_start",
                "id",
                "loader_id",
                "record_count",
                "status"
            ]
        );
        assert_eq!(
            (&execution["error_message"], &execution["status"]),
            (&text.into(), &"FAILED".into())
        );
        let feed = reader
            .query_one(
                "SELECT error_message, message FROM loader.activity_feed
                  WHERE execution_id = $1 AND event_type = 'EXECUTION_FAILED'",
                &[&id],
            )
            .unwrap();
        assert_eq!(feed.get::<_, String>(0), text);
        let first_line = text.split('\n').next().unwrap_or_default();
        assert!(feed.get::<_, String>(1).ends_with(&format!(": {first_line}")), "{text:?}");

        listener.receive_until("the failure", |event| {
            event["execution_id"] == id && event["event_type"] == "EXECUTION_FAILED"
        });
        let event = listener.events.last().unwrap();
        assert_eq!(event.as_object().unwrap().len(), 11, "{event}");
        assert_eq!(event["message"], feed.get::<_, String>(1));
        assert_eq!(event["error_message"], text);
        assert_eq!((&event["loader_id"], &event["record_count"]), (&5.into(), &7.into()));
    }
    // What is no text at all does not get in.
    for bytes in [r"E'\xff'", r"E'\xed\xa0\x80'", r"E'\000'", r"U&'\D800'"] {
        let call = format!("SELECT loader.record_execution_end(1, 'FAILED', 0, {bytes})");
        refused(&mut recorder, &call, &["22021", "42601"]);
    }
}

#[test]
fn cursors_and_statuses_are_data_and_never_sql() {
    let cluster = cluster_with_roles();
    let mut reader = cluster.connect_to("postgres", "reader");
    let mut recorder = cluster.connect_to("postgres", "recorder");
    let id: i64 =
        recorder.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0);
    let more = [
        "0_0) OR true --",
        "0_0'::text); DELETE FROM loader.execution_history; --",
        "9223372036854775808_1",
        "-9223372036854775809_1",
        "1_99999999999999999999999999",
        "NaN_1",
        "infinity_1",
        "1e3_1",
        "0x10_1",
        " 1_1",
        "1_1\n",
        "1__1",
        "٣_١",
        "SUCCESS' OR 'a' = 'a",
        "success",
        "SUCCESS ",
        "SUCCESS\u{0301}",
        "ＳＵＣＣＥＳＳ",
        "RUNNING",
    ];
    let long = "1".repeat(10_000_000);
    for text in HOSTILE_TEXTS.into_iter().chain(more).chain([long.as_str()]) {
        let cursor =
            reader.query_opt("SELECT loader.get_execution_history(\"cursor\" => $1)", &[&text]);
        cursor.error("22023");
        if text != "RUNNING" {
            reader
                .query_opt("SELECT loader.get_execution_history(status => $1)", &[&text])
                .error("22023");
        }
        recorder
            .query_opt("SELECT loader.record_execution_end($1, $2)", &[&id, &text])
            .error("22023");
    }
    let page: Value =
        reader.query_one("SELECT loader.get_execution_history()", &[]).unwrap().get(0);
    assert_eq!(page["executions"][0]["status"], "RUNNING");
    // The largest cursors that parse find nothing, and break nothing.
    for cursor in
        ["9223371331199999999_9223372036854775807", "-211813488000000000_-9223372036854775808"]
    {
        reader
            .query_one("SELECT loader.get_execution_history(\"cursor\" => $1)", &[&cursor])
            .unwrap();
    }
}

#[test]
fn channels_are_everybodys_as_postgresql_has_them_and_off_is_off() {
    use fallible_iterator::FallibleIterator;
    let cluster = cluster_with_roles();
    let mut stranger = cluster.connect_to("postgres", "stranger");
    let mut recorder = cluster.connect_to("postgres", "recorder");
    let arrived = |client: &mut Client| -> Vec<(String, String)> {
        client.batch_execute("SELECT 1").unwrap();
        let mut notifications = client.notifications();
        notifications
            .iter()
            .map(|n| Ok((n.channel().to_owned(), n.payload().to_owned())))
            .collect()
            .unwrap()
    };
    // Every role that can connect can LISTEN. It sees no error text unless that is turned on.
    stranger.batch_execute("LISTEN loader_execution").unwrap();
    let fail = "SELECT loader.record_execution_end(loader.record_execution_start(1), 'FAILED', 0, 'secret')";
    recorder.batch_execute(fail).unwrap();
    let seen = arrived(&mut stranger);
    assert!(seen.len() == 2 && !seen[1].1.contains("secret"), "{seen:?}");
    recorder.batch_execute("SET loader_history.notify_error_message = on").unwrap();
    recorder.batch_execute(fail).unwrap();
    let seen = arrived(&mut stranger);
    assert!(seen.len() == 2 && seen[1].1.contains("secret"), "{seen:?}");
    // Turned off, nothing is sent.
    cluster.connect().batch_execute("ALTER ROLE recorder SET loader_history.notify = off").unwrap();
    cluster.connect_to("postgres", "recorder").batch_execute(fail).unwrap();
    assert_eq!(arrived(&mut stranger), []);

    // Whoever may connect may NOTIFY too, on any channel: an event is a hint, and the views are the truth.
    let forged =
        r#"{"event_type":"EXECUTION_FAILED","execution_id":1,"loader_id":1,"status":"FAILED"}"#;
    let mut forger = cluster.connect_to("postgres", "stranger");
    forger.execute("SELECT pg_notify('loader_execution', $1)", &[&forged]).unwrap();
    assert_eq!(arrived(&mut stranger), [("loader_execution".to_owned(), forged.to_owned())]);
    let mut reader = cluster.connect_to("postgres", "reader");
    let failures = "SELECT error_message FROM loader.execution_details WHERE status = 'FAILED'";
    assert_eq!(column::<String>(&mut reader, failures), ["secret", "secret", "secret"]);
}

/// Who may set what, and from where. The settings are those of a server that preloads the library.
#[test]
fn settings_are_set_by_whom_the_documentation_says() {
    let cluster = preloaded_cluster();
    grant_roles(&cluster);
    let mut dba = cluster.connect();
    for statement in [
        "CREATE ROLE owner LOGIN",
        "CREATE DATABASE owned OWNER owner",
        "ALTER DATABASE postgres OWNER TO owner",
    ] {
        dba.batch_execute(statement).unwrap();
    }
    // Everybody, for themselves.
    for user in ["stranger", "recorder", "reader", "owner"] {
        let mut client = cluster.connect_to("postgres", user);
        for (name, value) in [
            ("autonomous_start", "off"),
            ("notify", "off"),
            ("notify_error_message", "on"),
            ("worker_timeout", "5"),
        ] {
            for statement in [
                format!("SET loader_history.{name} = {value}"),
                format!("ALTER ROLE {user} SET loader_history.{name} = {value}"),
                format!("ALTER ROLE {user} RESET loader_history.{name}"),
            ] {
                client
                    .batch_execute(&statement)
                    .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
            }
        }
        // Nobody but a superuser what all have, nor what others have.
        for statement in [
            "SET loader_history.retention = '1min'",
            "SET LOCAL loader_history.retention = '1min'",
            "SELECT set_config('loader_history.retention', '1min', false)",
            "UPDATE pg_settings SET setting = 1 WHERE name = 'loader_history.retention'",
            "CREATE FUNCTION pg_temp.purging() RETURNS void LANGUAGE sql SET loader_history.retention = '1min' AS ''",
            "ALTER ROLE CURRENT_USER SET loader_history.retention = '1min'",
            "ALTER ROLE postgres SET loader_history.retention = '1min'",
            "ALTER ROLE ALL SET loader_history.retention = '1min'",
            "ALTER ROLE postgres SET loader_history.notify = off",
            "ALTER ROLE ALL SET loader_history.notify = off",
            "ALTER DATABASE postgres SET loader_history.retention = '1min'",
            "ALTER DATABASE owned SET loader_history.retention = '1min'",
            "ALTER SYSTEM SET loader_history.retention = '1min'",
            "ALTER SYSTEM SET loader_history.notify = off",
            "ALTER SYSTEM SET loader_history.queue_size = 16",
        ] {
            refused(&mut client, statement, &["42501"]);
        }
        for (name, value) in [("queue_size", "16"), ("retention", "1")] {
            let options = format!("-c loader_history.{name}={value}");
            let mut config = cluster.config("postgres", user);
            let state = sqlstate(&config.options(&options).connect(postgres::NoTls));
            assert!(["42501", "55P02"].contains(&state.as_str()), "{user}, {options}: {state}");
        }
        refused(&mut client, "SET loader_history.queue_size = 16", &["55P02"]);
        refused(&mut client, "SET loader_history.made_up = 1", &["42602"]);
    }
    dba.batch_execute("SET loader_history.retention = '1min'").unwrap();
    refused(&mut dba, "SET loader_history.queue_size = 16", &["55P02"]);

    // Without preloading a session that has not loaded the library takes any name, but keeps no value that
    // would reach others.
    let plain = Cluster::start();
    plain
        .connect()
        .batch_execute("CREATE ROLE owner LOGIN; ALTER DATABASE postgres OWNER TO owner")
        .unwrap();
    let mut owner = plain.connect_to("postgres", "owner");
    for statement in [
        "ALTER DATABASE postgres SET loader_history.retention = '1min'",
        "ALTER ROLE owner SET loader_history.retention = '1min'",
    ] {
        refused(&mut owner, statement, &["42501"]);
    }
}

#[test]
fn a_recorder_learns_of_others_executions_only_how_they_ended() {
    let cluster = cluster_with_roles();
    let mut dba = cluster.connect();
    dba.batch_execute(
        "SELECT loader.record_execution_end(loader.record_execution_start(1), 'FAILED', 918273645, 'top secret')",
    )
    .unwrap();
    let mut recorder = cluster.connect_to("postgres", "recorder");
    // Ids can be guessed. What is told of them: that they are there, how they ended, and when.
    for call in
        ["record_execution_end(1, 'SUCCESS')", "record_execution_end(1, 'FAILED', 5, 'mine')"]
    {
        let error = recorder.simple_query(&format!("SELECT loader.{call}")).error("55000");
        let told = format!("{error:?}");
        assert!(told.contains("It ended as FAILED at"), "{told}");
        assert!(!told.contains("secret") && !told.contains("918273645"), "{told}");
    }
    recorder.simple_query("SELECT loader.record_execution_end(2, 'SUCCESS')").error("P0002");
    // Nor does verbose logging, tracing or EXPLAIN show a recorder more.
    for setting in
        ["client_min_messages = debug5", "debug_print_plan = on", "debug_print_parse = on"]
    {
        let mut session = Session::new(&cluster, "postgres");
        session.run("SET SESSION AUTHORIZATION recorder");
        session.run(&format!("SET {setting}"));
        session
            .client
            .simple_query("SELECT loader.record_execution_end(1, 'SUCCESS')")
            .error("55000");
        assert!(!session.warnings().iter().any(|warning| warning.contains("secret")));
    }
    refused(&mut recorder, "SELECT loader.recorder_status()", &["42501"]);
    refused(
        &mut recorder,
        "SELECT pg_get_functiondef('loader.recorder_status'::regproc)",
        &["00000"],
    );
    // A recorder may end what another started: loaders of one application share a role, or do not.
    let id: i64 = dba.query_one("SELECT loader.record_execution_start(2)", &[]).unwrap().get(0);
    recorder.execute("SELECT loader.record_execution_end($1, 'FAILED')", &[&id]).unwrap();
}

#[test]
fn a_databases_owner_who_is_no_superuser_has_no_way_in() {
    let cluster = cluster_with_extension();
    let mut attacker = set_trap(&cluster);
    let mut dba = cluster.connect();
    dba.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    for statement in [
        "DROP EXTENSION loader_history",
        "DROP EXTENSION loader_history CASCADE",
        "ALTER EXTENSION loader_history UPDATE TO '1.5.0'",
        "ALTER EXTENSION loader_history ADD SCHEMA trap",
        "ALTER EXTENSION loader_history DROP FUNCTION loader_history.recorder_state()",
        "ALTER EXTENSION loader_history SET SCHEMA trap",
        "COMMENT ON EXTENSION loader_history IS 'mine'",
        "DROP SCHEMA loader CASCADE",
        "DROP SCHEMA loader_history CASCADE",
        "ALTER SCHEMA loader RENAME TO mine",
        "ALTER SCHEMA loader_history RENAME TO mine",
        "ALTER SCHEMA loader OWNER TO attacker",
        "GRANT CREATE ON SCHEMA loader TO attacker",
        "GRANT CREATE ON SCHEMA loader_history TO attacker",
        "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION trap.trigger()",
        "ALTER EVENT TRIGGER loader_history_triggers DISABLE",
        "DROP EVENT TRIGGER loader_history_foreign_key",
        "CREATE PUBLICATION mine FOR ALL TABLES",
        "CREATE PUBLICATION mine FOR TABLE loader.execution_history",
        "CREATE PUBLICATION mine FOR TABLES IN SCHEMA loader",
        "REASSIGN OWNED BY postgres TO attacker",
        "ALTER DEFAULT PRIVILEGES FOR ROLE postgres GRANT ALL ON TABLES TO attacker",
        "SET session_replication_role = replica",
        "LOAD '$libdir/loader_history'",
        "CREATE FUNCTION trap.c() RETURNS trigger LANGUAGE c AS '$libdir/loader_history', 'history_changed_wrapper'",
        "CREATE FUNCTION trap.c() RETURNS void LANGUAGE c AS '$libdir/loader_history', 'loader_history_worker_main'",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'loader_history%'",
        "CLUSTER loader.execution_history",
        "LOCK TABLE loader.execution_history IN ACCESS SHARE MODE; SELECT",
        "SELECT pg_read_file('PG_VERSION')",
    ] {
        let state = sqlstate(&attacker.simple_query(statement));
        let harmless =
            statement.starts_with("SELECT pg_terminate") || statement.starts_with("CLUSTER");
        assert!(
            ["42501", "2BP01", "42P17", "0A000"].contains(&state.as_str()) || harmless,
            "{statement}: {state}"
        );
    }
    let executions: i64 =
        dba.query_one("SELECT count(*) FROM loader.execution_details", &[]).unwrap().get(0);
    assert_eq!(executions, 1);
    nothing_ran(&cluster);
}

/// What `GRANT ALL ON ALL TABLES` allows, and PostgreSQL would run with the rights of whoever writes.
const TRIGGER_TARGETS: [(&str, &str); 5] = [
    ("loader.execution_history", "BEFORE INSERT OR UPDATE OR DELETE"),
    ("loader.execution_history", "AFTER INSERT OR UPDATE OR DELETE"),
    ("loader_history.recorded_loader", "BEFORE INSERT"),
    ("loader_history.server_outcome", "AFTER INSERT OR DELETE"),
    ("loader_history.prepared_change", "AFTER INSERT OR DELETE"),
];

/// A load that succeeds, which fires triggers on the extension's tables.
fn record_success(cluster: &Cluster) {
    let mut client = cluster.connect_to("postgres", "victim");
    client.batch_execute("BEGIN").unwrap();
    let id: i64 = client.query_one("SELECT loader.record_execution_start(1)", &[]).unwrap().get(0);
    client.execute("SELECT loader.record_execution_end($1, 'SUCCESS')", &[&id]).unwrap();
    client.batch_execute("COMMIT").unwrap();
}

/// A cluster that preloads the library, with the trap and a victim who records; sessions of an attacker, who was granted
/// all on the tables, and of the DBA.
fn cluster_of_an_attacker() -> (Cluster, Client, Client) {
    let cluster = Cluster::start_with(PRELOADED);
    let attacker = set_trap(&cluster);
    let mut dba = cluster.connect();
    dba.batch_execute(APPLICATION_SQL).unwrap();
    dba.batch_execute(
        "CREATE EXTENSION loader_history;
         GRANT ALL ON ALL TABLES IN SCHEMA loader, loader_history TO attacker;
         GRANT USAGE, CREATE ON SCHEMA loader, loader_history TO attacker;
         GRANT USAGE ON SEQUENCE loader.execution_history_id_seq TO victim;
         SELECT loader_history.grant_recorder('victim')",
    )
    .unwrap();
    wait_for_worker(&mut dba);
    (cluster, attacker, dba)
}

#[test]
fn triggers_of_others_are_refused_since_they_would_run_as_a_superuser() {
    let (cluster, mut attacker, mut dba) = cluster_of_an_attacker();

    let create = |table: &str, when: &str, condition: &str, function: &str| {
        format!(
            "CREATE TRIGGER planted {when} ON {table} FOR EACH ROW {condition} EXECUTE FUNCTION {function}()"
        )
    };
    for (table, when) in TRIGGER_TARGETS {
        let error = attacker.batch_execute(&create(table, when, "", "trap.trigger")).error("42501");
        assert!(error.message().contains("planted") && error.hint().is_some(), "{error:?}");
        for kind in ["OR REPLACE TRIGGER", "CONSTRAINT TRIGGER"] {
            let statement =
                create(table, "AFTER INSERT", "", "trap.trigger").replace("TRIGGER", kind);
            attacker.batch_execute(&statement).error("42501");
        }
    }
    // Nor one of PostgreSQL's own functions, nor one for statements or of a view.
    attacker
        .batch_execute(&create(
            "loader.execution_history",
            "BEFORE UPDATE",
            "",
            "pg_catalog.suppress_redundant_updates_trigger",
        ))
        .error("42501");
    attacker
        .batch_execute("CREATE TRIGGER planted AFTER INSERT ON loader.execution_history EXECUTE FUNCTION trap.trigger()")
        .error("42501");
    attacker
        .batch_execute(&create("loader.activity_feed", "INSTEAD OF INSERT", "", "trap.trigger"))
        .error("42501");
    // A superuser may not either, where the code is somebody else's: in the function, or in the condition.
    dba.batch_execute(
        "CREATE SCHEMA audit;
         CREATE FUNCTION audit.note() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog
             AS $$ BEGIN RETURN coalesce(NEW, OLD); END $$",
    )
    .unwrap();
    let error = dba
        .batch_execute(&create("loader.execution_history", "AFTER UPDATE", "", "trap.trigger"))
        .error("42501");
    assert!(error.detail().unwrap().contains("trap.trigger()"), "{error:?}");
    dba.batch_execute(&create(
        "loader.execution_history",
        "AFTER UPDATE",
        "WHEN (trap.immutable(NEW.id) = 0)",
        "audit.note",
    ))
    .error("42501");
    // A DBA's own are welcome, and so are everybody's on tables of their own.
    dba.batch_execute(&create(
        "loader.execution_history",
        "AFTER UPDATE",
        "WHEN (NEW.status = 'FAILED')",
        "audit.note",
    ))
    .unwrap();
    dba.batch_execute("DROP TRIGGER planted ON loader.execution_history").unwrap();
    attacker
        .batch_execute(
            "CREATE TABLE loader.of_attacker (id bigint);
             CREATE TRIGGER planted AFTER INSERT ON loader.of_attacker FOR EACH ROW EXECUTE FUNCTION trap.trigger()",
        )
        .unwrap();

    // Nothing planted, nothing runs: of a success, of a failure that the worker finds, of a purge.
    let exercise = |cluster: &Cluster| {
        record_success(cluster);
        let mut victim = cluster.connect_to("postgres", "victim");
        victim.batch_execute("BEGIN; SELECT loader.record_execution_start(2); ROLLBACK").unwrap();
        let mut dba = cluster.connect();
        wait_for("the worker to find the failure", || {
            let running = "SELECT id FROM loader.execution_details WHERE is_running";
            column::<i64>(&mut dba, running).is_empty()
        });
    };
    exercise(&cluster);
    nothing_ran(&cluster);

    // That is the event trigger's doing: without it each of them would have run as a superuser.
    dba.batch_execute("ALTER EVENT TRIGGER loader_history_triggers DISABLE").unwrap();
    attacker
        .batch_execute(&create("loader.execution_history", "AFTER UPDATE", "", "trap.trigger"))
        .unwrap();
    forget(&cluster);
    exercise(&cluster);
    assert_eq!(pg_test::caught(&cluster), (true, true));
}

/// What the right REFERENCES allows, which comes with GRANT ALL too: what a superuser's functions and the worker
/// delete is deleted in the attacker's tables.
#[test]
fn what_is_deleted_beside_the_history_runs_nothing_of_tables_that_refer_to_it() {
    let (cluster, mut attacker, mut dba) = cluster_of_an_attacker();
    for (table, kind) in [
        ("foreign_key_request", "xid8"),
        ("watched_transaction", "bigint"),
        ("server_outcome", "bigint"),
    ] {
        attacker
            .batch_execute(&format!(
                "CREATE TABLE trap.{table} (id {kind} REFERENCES loader_history.{table} ON DELETE CASCADE);
                 CREATE TRIGGER a AFTER DELETE ON trap.{table} FOR EACH ROW EXECUTE FUNCTION trap.trigger()"
            ))
            .unwrap();
    }
    let mut refer = |table: &str, id: i64| {
        attacker.batch_execute(&format!("INSERT INTO trap.{table} VALUES ({id})")).unwrap();
    };
    let mut victim = cluster.connect_to("postgres", "victim");
    let mut fail = |refer: &mut dyn FnMut(&str, i64)| -> i64 {
        victim.batch_execute("BEGIN").unwrap();
        let start = "SELECT loader.record_execution_start(1)";
        let id = victim.query_one(start, &[]).unwrap().get(0);
        refer("watched_transaction", id);
        victim.batch_execute("ROLLBACK").unwrap();
        id
    };
    // The worker deletes the transaction of a load that has failed; a loader's report the note of the failure.
    let id = fail(&mut refer);
    wait_for("the failure", || status_of(&mut dba, id).as_deref() == Some("FAILED"));
    refer("server_outcome", id);
    let call = "SELECT loader.record_execution_end($1, 'FAILED', 0, 'no such file')";
    cluster.connect_to("postgres", "victim").execute(call, &[&id]).unwrap();
    assert_eq!(column::<i64>(&mut dba, "SELECT count(*) FROM loader_history.server_outcome"), [0]);
    nothing_ran(&cluster);
    // A superuser's purge deletes that too.
    let id = fail(&mut refer);
    wait_for("the failure", || status_of(&mut dba, id).as_deref() == Some("FAILED"));
    refer("server_outcome", id);
    dba.batch_execute("SELECT loader_history.purge_execution_history('0')").error("42501");
    // And the trigger by which the foreign key is attached its request.
    attacker
        .batch_execute(
            "BEGIN;
             INSERT INTO loader_history.foreign_key_request VALUES (pg_current_xact_id());
             INSERT INTO trap.foreign_key_request VALUES (pg_current_xact_id());
             COMMIT",
        )
        .unwrap();
    assert_eq!(
        column::<i64>(&mut dba, "SELECT count(*) FROM loader_history.foreign_key_request"),
        [0]
    );
    nothing_ran(&cluster);
}

/// The event trigger fires in the role of replication, which may be granted, too.
#[test]
fn the_role_of_replication_lets_nobody_create_triggers() {
    let cluster = cluster_with_extension();
    let mut attacker = set_trap(&cluster);
    cluster
        .connect()
        .batch_execute(
            "GRANT SET ON PARAMETER session_replication_role TO attacker;
             GRANT ALL ON loader.execution_history TO attacker;
             GRANT USAGE ON SCHEMA loader TO attacker",
        )
        .unwrap();
    attacker.batch_execute("SET session_replication_role = replica").unwrap();
    attacker
        .batch_execute(
            "CREATE TRIGGER planted AFTER UPDATE ON loader.execution_history
                 FOR EACH ROW EXECUTE FUNCTION trap.trigger()",
        )
        .error("42501");
}

/// What the right REFERENCES allows, which comes with GRANT ALL too: a superuser's purge deletes from the
/// attacker's table, or looks into it.
#[test]
fn a_superusers_purge_runs_nothing_of_tables_that_refer_to_the_history() {
    let cluster = cluster_with_extension();
    let mut attacker = set_trap(&cluster);
    let mut dba = cluster.connect();
    dba.batch_execute(
        "GRANT ALL ON loader.execution_history TO attacker;
         GRANT USAGE ON SCHEMA loader TO attacker;
         INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT 1, now() - make_interval(days => n), now() - make_interval(days => n), 'SUCCESS'
               FROM generate_series(1, 5) AS n",
    )
    .unwrap();
    attacker
        .batch_execute(
            "CREATE TABLE trap.later (id integer);
             CREATE CONSTRAINT TRIGGER later AFTER INSERT ON trap.later DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION trap.trigger();
             -- Run where a query of the table is planned, and leaves something for the end of the transaction.
             CREATE FUNCTION trap.planned(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
             BEGIN
                 INSERT INTO trap.later VALUES (1);
                 RETURN 0;
             EXCEPTION WHEN OTHERS THEN RETURN 0;
             END
             $$",
        )
        .unwrap();
    let purge = "SELECT loader_history.purge_execution_history('2 days 12 hours')";
    for (action, sqlstates) in [
        ("ON DELETE CASCADE", &["42501"][..]),
        ("ON DELETE SET NULL", &["42501"]),
        ("ON DELETE SET DEFAULT", &["42501"]),
        ("DEFERRABLE INITIALLY DEFERRED", &["42501"]),
        ("", &["00000"]),
    ] {
        attacker
            .batch_execute(&format!(
                "CREATE TABLE trap.note (id bigint REFERENCES loader.execution_history {action});
                 CREATE INDEX ON trap.note ((id + trap.planned(0)));
                 CREATE INDEX ON trap.note (id);
                 CREATE TRIGGER a AFTER UPDATE OR DELETE ON trap.note FOR EACH ROW EXECUTE FUNCTION trap.trigger();
                 INSERT INTO trap.note SELECT id FROM loader.execution_history
                  WHERE '{action}' <> '' AND execution_end < now() - interval '3 days'"
            ))
            .unwrap();
        forget(&cluster);
        refused(&mut cluster.connect(), purge, sqlstates);
        nothing_ran_as_superuser(&cluster);
        attacker.batch_execute("DROP TABLE trap.note").unwrap();
    }
    // Another role's purge is its own affair.
    dba.batch_execute(
        "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT 1, now() - make_interval(days => n), now() - make_interval(days => n), 'SUCCESS'
               FROM generate_series(3, 5) AS n;
         GRANT USAGE ON SCHEMA loader_history TO attacker;
         GRANT SELECT, DELETE ON loader_history.server_outcome TO attacker;
         GRANT EXECUTE ON FUNCTION loader_history.purge_execution_history(interval, bigint) TO attacker",
    )
    .unwrap();
    attacker
        .batch_execute(
            "CREATE TABLE trap.note (id bigint REFERENCES loader.execution_history ON DELETE CASCADE);
             INSERT INTO trap.note SELECT id FROM loader.execution_history",
        )
        .unwrap();
    assert_eq!(column::<i64>(&mut attacker, purge), [3]);
}
