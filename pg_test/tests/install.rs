//! Promise: CREATE EXTENSION brings exactly what the contract says, and DROP EXTENSION takes it away.

use std::fs;
use std::process::Command;

use pg_test::{APPLICATION_SQL, Cluster, HasError, bindir, cluster_with_extension, column, run};

#[test]
fn the_table_has_exactly_the_columns_of_the_contract() {
    let cluster = cluster_with_extension();
    let columns: Vec<String> = column(
        &mut cluster.connect(),
        "SELECT concat_ws(' ', attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'not null' END,
                          'default ' || pg_get_expr(adbin, adrelid))
           FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
          WHERE attrelid = 'loader.execution_history'::regclass AND attnum > 0 ORDER BY attnum",
    );
    assert_eq!(
        columns,
        [
            "id bigint not null default nextval('loader.execution_history_id_seq'::regclass)",
            "loader_id bigint not null",
            "execution_start timestamp with time zone not null",
            "execution_end timestamp with time zone",
            "status character varying(50) not null",
            "record_count integer default 0",
            "error_message text",
            "duration_seconds integer",
        ]
    );
}

#[test]
fn the_functions_have_the_signatures_of_the_contract() {
    let cluster = cluster_with_extension();
    let functions: Vec<String> = column(
        &mut cluster.connect(),
        "SELECT format('%s.%s(%s) %s', pronamespace::regnamespace, proname, pg_get_function_arguments(oid),
                       pg_get_function_result(oid))
           FROM pg_proc WHERE pronamespace IN ('loader'::regnamespace, 'loader_history'::regnamespace)
            AND obj_description(oid, 'pg_proc') NOT LIKE 'Internal: %' ORDER BY pronamespace::regnamespace::text, proname",
    );
    assert_eq!(
        functions,
        [
            "loader.get_execution_history(loader_id bigint DEFAULT NULL::bigint, page_size integer DEFAULT 50, \
             cursor text DEFAULT NULL::text, status text DEFAULT NULL::text, \
             started_from timestamp with time zone DEFAULT NULL::timestamp with time zone, \
             started_before timestamp with time zone DEFAULT NULL::timestamp with time zone) jsonb",
            "loader.record_execution_end(execution_id bigint, status text, record_count bigint DEFAULT NULL::bigint, \
             error_message text DEFAULT NULL::text) integer",
            "loader.record_execution_start(loader_id bigint) bigint",
            "loader.recorder_status(OUT preloaded boolean, OUT worker_pid integer, OUT queue_depth integer, \
             OUT watched_running bigint, OUT unwatched_running bigint, OUT last_error text, \
             OUT last_error_at timestamp with time zone, OUT foreign_key boolean, OUT detail text) record",
            "loader_history.attach_foreign_key() boolean",
            "loader_history.grant_reader(role regrole) void",
            "loader_history.grant_recorder(role regrole) void",
            "loader_history.purge_execution_history(older_than interval, max_rows bigint DEFAULT 10000) bigint",
        ]
    );
}

#[test]
fn schema_loader_has_what_applications_use_and_nothing_else() {
    let cluster = cluster_with_extension();
    let objects: Vec<String> = column(
        &mut cluster.connect(),
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'loader'::regnamespace AND relkind <> 'i'
            AND relname <> 'loader'
         UNION ALL
         SELECT proname || '()' FROM pg_proc WHERE pronamespace = 'loader'::regnamespace
          ORDER BY 1",
    );
    assert_eq!(
        objects,
        [
            "activity_feed",
            "execution_details",
            "execution_history",
            "execution_history_id_seq",
            "failed_loader_counts",
            "get_execution_history()",
            "loader_summary",
            "record_execution_end()",
            "record_execution_start()",
            "recorder_status()",
        ]
    );
}

#[test]
fn the_views_have_the_columns_of_the_contract() {
    let cluster = cluster_with_extension();
    let views: Vec<String> = column(
        &mut cluster.connect(),
        "SELECT attrelid::regclass || ': ' || string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
           FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
          WHERE relnamespace = 'loader'::regnamespace AND relkind = 'v' AND attnum > 0
          GROUP BY attrelid ORDER BY attrelid::regclass::text",
    );
    assert_eq!(
        views,
        [
            "loader.activity_feed: event_time timestamp with time zone, event_type text, severity text, \
             execution_id bigint, loader_id bigint, status character varying(50), record_count integer, \
             duration_seconds integer, error_message text, message text",
            "loader.execution_details: id bigint, loader_id bigint, execution_start timestamp with time zone, \
             execution_end timestamp with time zone, status character varying(50), record_count integer, \
             error_message text, duration_seconds integer, duration interval, is_running boolean",
            "loader.failed_loader_counts: failed_loaders bigint, failed_loaders_24h bigint, \
             failed_loaders_previous_24h bigint, failed_executions_24h bigint",
            "loader.loader_summary: loader_id bigint, last_execution_id bigint, last_status character varying(50), \
             last_execution_start timestamp with time zone, last_execution_end timestamp with time zone, \
             last_success_at timestamp with time zone, last_failure_at timestamp with time zone, \
             last_error_message text, is_failed boolean, consecutive_failures bigint, running_executions bigint",
        ]
    );
}

#[test]
fn every_object_and_column_has_a_comment() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let bare: Vec<String> = column(
        &mut client,
        "WITH member AS (
             SELECT classid, objid FROM pg_depend
              WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
                AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'loader_history')
         ), object AS (
             SELECT classid, objid, 0 AS objsubid FROM member WHERE classid <> 'pg_type'::regclass
             UNION ALL
             SELECT classid, objid, attnum FROM member JOIN pg_attribute ON attrelid = objid JOIN pg_class AS c ON c.oid = objid
              WHERE classid = 'pg_class'::regclass AND attnum > 0 AND relkind IN ('r', 'v')
             UNION ALL
             SELECT 'pg_class'::regclass, indexrelid, 0 FROM member JOIN pg_index ON indrelid = objid
             UNION ALL
             SELECT 'pg_constraint'::regclass, k.oid, 0 FROM member JOIN pg_constraint AS k ON conrelid = objid
              WHERE contype NOT IN ('t', 'n')
             UNION ALL
             SELECT 'pg_trigger'::regclass, t.oid, 0 FROM member JOIN pg_trigger AS t ON tgrelid = objid
              WHERE NOT tgisinternal
         )
         SELECT pg_describe_object(classid, objid, objsubid) FROM object
          WHERE NOT EXISTS (SELECT FROM pg_description AS d
                             WHERE d.classoid = classid AND d.objoid = objid AND d.objsubid = object.objsubid)
          ORDER BY 1",
    );
    assert_eq!(bare, Vec::<String>::new());
    let objects: i64 = client
        .query_one("SELECT count(*) FROM pg_depend WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass", &[])
        .unwrap()
        .get(0);
    assert!(objects > 20);
}

#[test]
fn a_database_that_is_not_utf8_is_refused() {
    let cluster = Cluster::start();
    for encoding in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
        let name = encoding.to_lowercase();
        cluster
            .connect()
            .batch_execute(&format!(
                "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
            ))
            .unwrap();
        let mut client = cluster.connect_to(&name, "postgres");
        let error = client.batch_execute("CREATE EXTENSION loader_history").error("0A000");
        assert!(error.message().contains(encoding) && error.hint().is_some());
    }
}

#[test]
fn only_a_superuser_creates_it_and_only_in_its_schema() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client.batch_execute("CREATE ROLE owner LOGIN").unwrap();
    client.batch_execute("CREATE DATABASE owned OWNER owner").unwrap();
    cluster
        .connect_to("owned", "owner")
        .batch_execute("CREATE EXTENSION loader_history")
        .error("42501");
    client.batch_execute("CREATE SCHEMA other").unwrap();
    assert!(client.batch_execute("CREATE EXTENSION loader_history SCHEMA other").is_err());
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    assert!(client.batch_execute("ALTER EXTENSION loader_history SET SCHEMA other").is_err());
}

#[test]
fn it_comes_and_goes_and_leaves_the_application_alone() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client.batch_execute(APPLICATION_SQL).unwrap();
    let objects = "SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
                    WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'loader'::regnamespace ORDER BY 1";
    let before: Vec<String> = column(&mut client, objects);
    // One session throughout, as a pool would have it: what it has kept of the old one must not matter.
    for _ in 0..3 {
        client.batch_execute("CREATE EXTENSION loader_history").unwrap();
        client
            .batch_execute(
                "SELECT loader.record_execution_end(loader.record_execution_start(4), 'SUCCESS')",
            )
            .unwrap();
        let row = client
            .query_one("SELECT (SELECT count(*) FROM loader.loader_summary), (SELECT count(*) FROM loader.activity_feed)", &[])
            .unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 2));
        client.batch_execute("DROP EXTENSION loader_history").unwrap();
        assert_eq!(column::<String>(&mut client, objects), before);
        let schemas: i64 = client
            .query_one("SELECT count(*) FROM pg_namespace WHERE nspname = 'loader_history'", &[])
            .unwrap()
            .get(0);
        assert_eq!(schemas, 0);
        let triggers: i64 =
            client.query_one("SELECT count(*) FROM pg_event_trigger", &[]).unwrap().get(0);
        assert_eq!(triggers, 0);
    }
    let columns: Vec<String> = column(
        &mut client,
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'loader.loader'::regclass AND attnum > 0 ORDER BY attnum",
    );
    assert_eq!(columns, ["id", "loader_code"]);
}

#[test]
fn the_library_is_not_needed_for_other_sessions() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client.batch_execute("LOAD '$libdir/loader_history'").unwrap();
    client.batch_execute("SELECT 1").unwrap();
}

#[test]
fn a_released_install_script_is_what_the_sources_still_make() {
    let version = control("default_version");
    let released = concat!(env!("CARGO_MANIFEST_DIR"), "/released/");
    let frozen = fs::read_to_string(format!("{released}loader_history--{version}.sql"))
        .expect("the install script of this version (run `make schema` before its release)");
    let made =
        fs::read_to_string(extension_folder().join(format!("loader_history--{version}.sql")))
            .unwrap();
    assert_eq!(
        statements(&made),
        statements(&frozen),
        "a released script changes only by an upgrade script"
    );
}

/// The script without what pgrx says about where each part came from.
fn statements(script: &str) -> Vec<&str> {
    script
        .lines()
        .filter(|line| !line.starts_with("-- src/") && !line.starts_with("/* <"))
        .collect()
}

fn control(key: &str) -> String {
    let control = fs::read_to_string(extension_folder().join("loader_history.control")).unwrap();
    let line = control.lines().find(|line| line.starts_with(key)).unwrap();
    line.split('\'').nth(1).unwrap().to_owned()
}

fn extension_folder() -> std::path::PathBuf {
    let sharedir = run(Command::new(bindir().join("pg_config")).arg("--sharedir"));
    std::path::Path::new(sharedir.trim()).join("extension")
}
