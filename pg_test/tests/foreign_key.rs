//! Promise: the foreign key to loader.loader is there as soon as it can be, never against a DBA's
//! will, and never in the way of other DDL.

use std::sync::mpsc::{Receiver, channel};

use pg_test::{
    APPLICATION_SQL, Client, Cluster, HasError, cluster_with_extension, column, preloaded_cluster,
    version, wait_for,
};
use postgres::NoTls;
use postgres::error::DbError;

/// A client, and the notices that it gets.
fn client_with_notices(
    cluster: &Cluster,
    database: &str,
    user: &str,
) -> (Client, Receiver<DbError>) {
    let (sender, notices) = channel();
    let client = cluster
        .config(database, user)
        // The receiver may be gone when the last notices arrive.
        .notice_callback(move |notice| drop(sender.send(notice)))
        .connect(NoTls)
        .unwrap();
    (client, notices)
}

/// Severities and messages of `notices` that are about the key.
fn about_the_key(notices: &Receiver<DbError>) -> Vec<(String, String)> {
    notices
        .try_iter()
        .filter(|notice| notice.message().contains("foreign key"))
        .map(|notice| (notice.severity().to_owned(), notice.message().to_owned()))
        .collect()
}

/// "there", "not valid" or "missing".
fn key(client: &mut Client) -> String {
    client
        .query_one(
            "SELECT coalesce((SELECT CASE WHEN convalidated THEN 'there' ELSE 'not valid' END \
                              FROM pg_constraint \
                              WHERE contype = 'f' AND conrelid = 'loader.execution_history'::regclass \
                                AND confdeltype = 'a' AND confupdtype = 'a'), 'missing')",
            &[],
        )
        .unwrap()
        .get(0)
}

/// Whether the key is there and valid, and what there is to say of it.
fn status(client: &mut Client) -> (bool, Option<String>) {
    let query = "SELECT foreign_key, substring(detail FROM 'The foreign key.*') FROM loader.recorder_status()";
    let row = client.query_one(query, &[]).unwrap();
    (row.get(0), row.get(1))
}

fn attach(client: &mut Client) -> bool {
    client.query_one("SELECT loader_history.attach_foreign_key()", &[]).unwrap().get(0)
}

#[test]
fn it_is_there_when_create_extension_returns() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    assert_eq!(key(&mut client), "there");
    assert_eq!(status(&mut client), (true, None));
    assert!(attach(&mut client));
    client.execute("DELETE FROM loader.loader WHERE id = 2", &[]).unwrap();
    client.batch_execute("SELECT loader.record_execution_start(3)").unwrap();
    client.execute("DELETE FROM loader.loader WHERE id = 3", &[]).error("23503");
}

#[test]
fn it_attaches_itself_when_the_migrations_run_later() {
    let cluster = Cluster::start();
    let (mut client, notices) = client_with_notices(&cluster, "postgres", "postgres");
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    let said = about_the_key(&notices);
    assert!(said.len() == 1 && said[0].0 == "NOTICE", "{said:?}");
    assert!(!attach(&mut client));
    let (there, why) = status(&mut client);
    assert!(!there && why.unwrap().contains("does not exist"));

    client.batch_execute("CREATE TABLE unrelated (id bigint PRIMARY KEY)").unwrap();
    client.batch_execute(APPLICATION_SQL).unwrap();
    assert_eq!(key(&mut client), "there");
    assert_eq!(status(&mut client), (true, None));
}

#[test]
fn it_attaches_itself_by_whatever_ddl_brings_the_table_or_its_key() {
    let ways: [&[&str]; 7] = [
        &[
            "CREATE TABLE loader.loader (id bigint)",
            "ALTER TABLE loader.loader ADD PRIMARY KEY (id)",
        ],
        &["CREATE TABLE loader.loader (id bigint)", "CREATE UNIQUE INDEX ON loader.loader (id)"],
        &[
            "CREATE TABLE loader.loader (id bigint)",
            "CREATE UNIQUE INDEX CONCURRENTLY ON loader.loader (id)",
        ],
        &[
            "CREATE TABLE loader.loaders (id bigint PRIMARY KEY)",
            "ALTER TABLE loader.loaders RENAME TO loader",
        ],
        &[
            "CREATE TABLE public.loader (id bigint PRIMARY KEY)",
            "ALTER TABLE public.loader SET SCHEMA loader",
        ],
        &[
            "CREATE TABLE loader.loader (number bigint PRIMARY KEY)",
            "ALTER TABLE loader.loader RENAME number TO id",
        ],
        &["CREATE TABLE loader.loader (id bigint, PRIMARY KEY (id)) PARTITION BY RANGE (id)"],
    ];
    let cluster = Cluster::start();
    for (number, way) in ways.iter().enumerate() {
        let database = format!("d{number}");
        cluster.connect().batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
        let mut client = cluster.connect_to(&database, "postgres");
        client.batch_execute("CREATE EXTENSION loader_history").unwrap();
        for statement in *way {
            assert_eq!(key(&mut client), "missing", "{way:?}");
            client.batch_execute(statement).unwrap();
        }
        assert_eq!(key(&mut client), "there", "{way:?}");
    }
}

#[test]
fn an_integer_id_is_referenced_and_what_cannot_be_gets_a_notice() {
    let cases = [
        ("CREATE TABLE loader.loader (id integer PRIMARY KEY)", "there"),
        ("CREATE TABLE loader.loader (id bigint)", "missing"),
        ("CREATE TABLE loader.loader (id bigint, part text, PRIMARY KEY (id, part))", "missing"),
        (
            "CREATE TABLE loader.loader (id bigint); CREATE UNIQUE INDEX ON loader.loader (id) WHERE id > 0",
            "missing",
        ),
        ("CREATE TABLE loader.loader (id bigint UNIQUE DEFERRABLE)", "missing"),
        ("CREATE TABLE loader.loader (id text PRIMARY KEY)", "missing"),
        ("CREATE TABLE loader.loader (id uuid PRIMARY KEY)", "missing"),
        ("CREATE TABLE loader.loader (code bigint PRIMARY KEY)", "missing"),
        ("CREATE UNLOGGED TABLE loader.loader (id bigint PRIMARY KEY)", "missing"),
        ("CREATE VIEW loader.loader AS SELECT 1::bigint AS id", "missing"),
        ("CREATE MATERIALIZED VIEW loader.loader AS SELECT 1::bigint AS id", "missing"),
        ("CREATE SEQUENCE loader.loader", "missing"),
    ];
    let cluster = Cluster::start();
    for (number, (table, expected)) in cases.iter().enumerate() {
        for before in [true, false] {
            let database = format!("d{number}{before}");
            cluster.connect().batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
            let (mut client, notices) = client_with_notices(&cluster, &database, "postgres");
            client.batch_execute("CREATE SCHEMA loader").unwrap();
            if before {
                client.batch_execute(table).unwrap();
            }
            client.batch_execute("CREATE EXTENSION loader_history").unwrap();
            let said = about_the_key(&notices);
            if !before {
                client.batch_execute(table).unwrap();
            } else if *expected == "missing" {
                assert!(said.len() == 1 && said[0].0 == "NOTICE", "{table}: {said:?}");
            }
            assert_eq!(key(&mut client), *expected, "{table}");
            assert_eq!(attach(&mut client), *expected == "there", "{table}");
            let (there, why) = status(&mut client);
            assert_eq!(
                (there, why.is_none()),
                (*expected == "there", *expected == "there"),
                "{table}: {why:?}"
            );
            // Where there is no key, a start is recorded all the same.
            let recorded = client.query("SELECT loader.record_execution_start(1)", &[]);
            assert_eq!(recorded.is_ok(), *expected == "missing", "{table}");
        }
    }
}

#[test]
fn history_that_names_missing_loaders_gets_it_not_valid() {
    let cluster = Cluster::start();
    let (mut client, notices) = client_with_notices(&cluster, "postgres", "postgres");
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    client.batch_execute("SELECT loader.record_execution_start(99)").unwrap();
    notices.try_iter().for_each(drop);

    client.batch_execute(APPLICATION_SQL).unwrap();
    assert_eq!(key(&mut client), "not valid");
    let said = about_the_key(&notices);
    assert!(said.len() == 1 && said[0].0 == "WARNING", "{said:?}");
    let (there, why) = status(&mut client);
    assert!(!there && why.unwrap().contains("NOT VALID"));
    client.query("SELECT loader.record_execution_start(98)", &[]).error("23503");

    assert!(attach(&mut client), "it is there, though not valid");
    assert_eq!(about_the_key(&notices)[0].0, "WARNING");
    client.batch_execute("INSERT INTO loader.loader VALUES (99, 'found again')").unwrap();
    assert!(attach(&mut client));
    assert_eq!(key(&mut client), "there");
}

#[test]
fn a_dba_who_dropped_it_is_left_alone() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey",
        )
        .unwrap();
    for ddl in [
        "ALTER TABLE loader.loader ADD COLUMN note text",
        "CREATE INDEX ON loader.loader (note)",
        "ALTER TABLE loader.loader DROP CONSTRAINT loader_pkey, ADD PRIMARY KEY (id)",
        "SELECT loader.record_execution_start(77)",
    ] {
        client.batch_execute(ddl).unwrap();
        assert_eq!(key(&mut client), "missing", "{ddl}");
    }
    assert!(!status(&mut client).0);
    client.batch_execute("DELETE FROM loader.execution_history").unwrap();
    assert!(attach(&mut client), "unless asked to");
    assert_eq!(key(&mut client), "there");
}

#[test]
fn a_key_of_the_dbas_own_is_the_key() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;
             ALTER TABLE loader.execution_history ADD CONSTRAINT own FOREIGN KEY (loader_id)
                 REFERENCES loader.loader (id) ON DELETE CASCADE;",
        )
        .unwrap();
    assert!(attach(&mut client));
    assert_eq!(status(&mut client), (true, None));
    let keys: i64 = client
        .query_one(
            "SELECT count(*) FROM pg_constraint \
             WHERE contype = 'f' AND conrelid = 'loader.execution_history'::regclass",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(keys, 1);
}

#[test]
fn a_key_that_a_dba_no_longer_enforces_is_left_alone() {
    let cluster = preloaded_cluster();
    let (mut client, notices) = client_with_notices(&cluster, "postgres", "postgres");
    let unenforced = client.batch_execute(
        "ALTER TABLE loader.execution_history ALTER CONSTRAINT execution_history_loader_id_fkey NOT ENFORCED",
    );
    if !version::has_unenforced_keys() {
        unenforced.error("42601");
        return;
    }
    unenforced.unwrap();
    notices.try_iter().for_each(drop);
    // Autonomous, of a loader that is not there, as of one that is.
    for loader in [99, 1] {
        client
            .batch_execute(&format!(
                "BEGIN; SELECT loader.record_execution_start({loader}); ROLLBACK"
            ))
            .unwrap();
        assert_eq!(notices.try_iter().map(|notice| notice.to_string()).next(), None);
        let recorded =
            format!("SELECT count(*) FROM loader.execution_history WHERE loader_id = {loader}");
        assert_eq!(column::<i64>(&mut client, &recorded), [1]);
    }
    assert!(attach(&mut client), "it is there");
    let said = about_the_key(&notices);
    assert!(
        said.len() == 1 && said[0].0 == "WARNING" && said[0].1.contains("NOT ENFORCED"),
        "{said:?}"
    );
    assert!(!status(&mut client).0);
    client
        .batch_execute(
            "INSERT INTO loader.loader VALUES (99, 'found again');
             ALTER TABLE loader.execution_history ALTER CONSTRAINT execution_history_loader_id_fkey ENFORCED",
        )
        .unwrap();
    assert_eq!(status(&mut client), (true, None));
    client.query("SELECT loader.record_execution_start(98)", &[]).error("23503");
}

#[test]
fn the_event_trigger_rests_once_the_key_is_there() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    let enabled = |client: &mut Client| -> bool {
        client
            .query_one(
                "SELECT evtenabled <> 'D' FROM pg_event_trigger WHERE evtname = 'loader_history_foreign_key'",
                &[],
            )
            .unwrap()
            .get(0)
    };
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    assert!(enabled(&mut client));
    client.batch_execute(APPLICATION_SQL).unwrap();
    assert!(!enabled(&mut client));

    client.batch_execute("DROP EXTENSION loader_history; CREATE EXTENSION loader_history").unwrap();
    assert!(!enabled(&mut client), "nor does it wake where the key was there from the start");
}

#[test]
fn migrations_of_an_ordinary_role_bring_it() {
    let cluster = Cluster::start();
    cluster
        .connect()
        .batch_execute(
            "CREATE ROLE application LOGIN;
             CREATE SCHEMA loader AUTHORIZATION application;
             CREATE EXTENSION loader_history;",
        )
        .unwrap();
    let (mut application, notices) = client_with_notices(&cluster, "postgres", "application");
    application
        .batch_execute(
            "BEGIN;
             CREATE TABLE loader.loader (id bigserial, loader_code varchar NOT NULL);
             INSERT INTO loader.loader (loader_code) VALUES ('A'), ('B');
             ALTER TABLE loader.loader ADD CONSTRAINT loader_pkey PRIMARY KEY (id);
             COMMIT;",
        )
        .unwrap();
    assert_eq!(about_the_key(&notices), Vec::new());
    assert_eq!(key(&mut cluster.connect()), "there");
}

#[test]
fn ddl_that_is_rolled_back_takes_the_key_with_it() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client.batch_execute("CREATE EXTENSION loader_history").unwrap();
    client
        .batch_execute("BEGIN; CREATE TABLE loader.loader (id bigint PRIMARY KEY); ROLLBACK")
        .unwrap();
    assert_eq!(key(&mut client), "missing");
    client.batch_execute("CREATE TABLE loader.loader (id bigint PRIMARY KEY)").unwrap();
    assert_eq!(key(&mut client), "there", "and the next attempt brings it");
}

#[test]
fn it_never_makes_ddl_fail_or_wait_long() {
    let cluster = Cluster::start();
    let mut holder = cluster.connect();
    let (mut client, notices) = client_with_notices(&cluster, "postgres", "postgres");
    client
        .batch_execute("CREATE EXTENSION loader_history; CREATE TABLE loader.loader (id bigint)")
        .unwrap();
    notices.try_iter().for_each(drop);

    // Another session writes the history, and stays.
    let mut writing = holder.transaction().unwrap();
    writing.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    for (timeouts, ddl) in [
        (
            "SET lock_timeout = 0; SET statement_timeout = 0",
            "ALTER TABLE loader.loader ADD PRIMARY KEY (id)",
        ),
        ("SET statement_timeout = '180ms'", "CREATE UNIQUE INDEX ON loader.loader (id)"),
        ("SET lock_timeout = '1ms'", "ALTER TABLE loader.loader ADD COLUMN note text"),
    ] {
        client.batch_execute(timeouts).unwrap();
        client.batch_execute(ddl).unwrap();
        let said = about_the_key(&notices);
        assert!(said.len() == 1 && said[0].0 == "WARNING", "{ddl}: {said:?}");
        assert_eq!(key(&mut client), "missing", "{ddl}");
    }
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").unwrap();
    // DDL that is none of its business does not even hear of it.
    client.batch_execute("CREATE TABLE unrelated (id bigint PRIMARY KEY)").unwrap();
    assert_eq!(about_the_key(&notices), Vec::new());

    writing.rollback().unwrap();
    client.batch_execute("ALTER TABLE loader.loader ADD COLUMN remark text").unwrap();
    assert_eq!(key(&mut client), "there", "what did not work waits for the next such DDL");
}

#[test]
fn another_event_trigger_that_refuses_the_key_does_not_make_ddl_fail() {
    let cluster = Cluster::start();
    let (mut client, notices) = client_with_notices(&cluster, "postgres", "postgres");
    client
        .batch_execute(
            "CREATE EXTENSION loader_history;
             CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'loader.execution_history') THEN
                     RAISE EXCEPTION 'not on my watch';
                 END IF;
             END $$;
             CREATE EVENT TRIGGER refuse ON ddl_command_end EXECUTE FUNCTION refuse();",
        )
        .unwrap();
    notices.try_iter().for_each(drop);
    client.batch_execute(APPLICATION_SQL).unwrap();
    let said = about_the_key(&notices);
    assert!(said.len() == 1 && said[0].1.contains("not on my watch"), "{said:?}");
    assert_eq!(key(&mut client), "missing");
    client.batch_execute("DROP EVENT TRIGGER refuse").unwrap();
    assert!(attach(&mut client));
}

#[test]
fn a_copy_that_outlives_the_ddl_brings_it_when_it_commits() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client
        .batch_execute("CREATE EXTENSION loader_history; CREATE TABLE loader.loader (id bigint)")
        .unwrap();
    client.batch_execute("INSERT INTO loader.loader SELECT generate_series(1, 500)").unwrap();

    // As in a parallel restore: one session copies the history while another adds the primary key.
    let mut copying = cluster.connect();
    let mut copy = copying.transaction().unwrap();
    copy.batch_execute(
        "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             SELECT n % 500 + 1, now(), now(), 'SUCCESS' FROM generate_series(1, 5000) AS n",
    )
    .unwrap();
    client.batch_execute("ALTER TABLE loader.loader ADD PRIMARY KEY (id)").unwrap();
    assert_eq!(key(&mut client), "missing");
    copy.commit().unwrap();
    assert_eq!(key(&mut client), "there");
}

#[test]
fn a_copy_waits_for_the_ddl_that_is_about_to_commit() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client
        .batch_execute("CREATE EXTENSION loader_history; CREATE TABLE loader.loader (id bigint)")
        .unwrap();
    client.batch_execute("INSERT INTO loader.loader VALUES (1)").unwrap();
    let mut copying = cluster.connect();
    let mut copy = copying.transaction().unwrap();
    copy.batch_execute(
        "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
             VALUES (1, now(), now(), 'SUCCESS')",
    )
    .unwrap();
    // The DDL has given up waiting, and has not committed yet: its primary key is not to be seen.
    let mut adding = client.transaction().unwrap();
    adding.batch_execute("ALTER TABLE loader.loader ADD PRIMARY KEY (id)").unwrap();
    let mut observer = cluster.connect();
    std::thread::scope(|scope| {
        let committing = scope.spawn(move || copy.commit());
        // It waits for half a second.
        wait_for("the copy to wait for the DDL", || {
            let waits = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted";
            column::<bool>(&mut observer, waits) == [true]
        });
        adding.commit().unwrap();
        committing.join().unwrap().unwrap();
    });
    assert_eq!(key(&mut client), "there");
}

#[test]
fn no_code_of_the_tables_owner_runs_with_a_superusers_rights() {
    let traps = [
        "CREATE INDEX ON loader.loader (id) WHERE trap(1)",
        "CREATE INDEX ON loader.loader ((id + trap(1)::integer))",
        "ALTER TABLE loader.loader ADD CHECK (trap(1))",
        "CREATE STATISTICS loader.s ON (id + trap(1)::integer), (id + 1) FROM loader.loader",
        "CREATE INDEX ON loader.loader (id) WHERE 1 ?? 1",
    ];
    let cluster = Cluster::start();
    cluster.connect().batch_execute("CREATE ROLE application LOGIN").unwrap();
    for (number, trap) in traps.iter().enumerate() {
        for orphan in [true, false] {
            let database = format!("d{number}{orphan}");
            cluster
                .connect()
                .batch_execute(&format!("CREATE DATABASE {database} OWNER application"))
                .unwrap();
            let mut superuser = cluster.connect_to(&database, "postgres");
            superuser.batch_execute("CREATE SCHEMA loader AUTHORIZATION application; CREATE EXTENSION loader_history").unwrap();
            if orphan {
                superuser.batch_execute("SELECT loader.record_execution_start(99)").unwrap();
            }
            let mut application = cluster.connect_to(&database, "application");
            application
                .batch_execute(&format!(
                    "CREATE SCHEMA own; SET search_path = own; SET constraint_exclusion = on;
                     CREATE TABLE sprung (as_whom name);
                     CREATE FUNCTION note() RETURNS boolean LANGUAGE plpgsql VOLATILE SET search_path = own AS
                         'BEGIN INSERT INTO own.sprung VALUES (current_user); RETURN true; END';
                     -- Said to be immutable, so that the planner evaluates it.
                     CREATE FUNCTION trap(integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE SET search_path = own AS
                         'BEGIN PERFORM own.note(); RETURN true; END';
                     CREATE FUNCTION trap(integer, integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT own.trap(1)';
                     CREATE OPERATOR ?? (LEFTARG = integer, RIGHTARG = integer, FUNCTION = trap);
                     CREATE TABLE loader.loader (id bigint NOT NULL);
                     {trap};"
                ))
                .unwrap();
            application.batch_execute("ALTER TABLE loader.loader ADD PRIMARY KEY (id)").unwrap();
            superuser
                .batch_execute(
                    "SELECT loader_history.attach_foreign_key(), loader.recorder_status()",
                )
                .unwrap();
            assert_eq!(key(&mut superuser), "not valid", "{trap}");
            let sprung: i64 = superuser
                .query_one("SELECT count(*) FROM own.sprung WHERE as_whom <> 'application'", &[])
                .unwrap()
                .get(0);
            assert_eq!(sprung, 0, "{trap}");
        }
    }
}

#[test]
fn an_older_snapshot_finds_the_key_that_another_session_attached() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey",
        )
        .unwrap();
    let mut older = cluster.connect();
    let mut transaction = older.transaction().unwrap();
    transaction
        .batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        .unwrap();
    assert!(attach(&mut client));
    let there: bool =
        transaction.query_one("SELECT loader_history.attach_foreign_key()", &[]).unwrap().get(0);
    assert!(there);
}

#[test]
fn a_schema_of_the_applications_stays_its_own() {
    let cluster = Cluster::start();
    cluster.connect().batch_execute("CREATE ROLE application LOGIN; CREATE ROLE backend").unwrap();
    cluster.connect().batch_execute("CREATE DATABASE app OWNER application").unwrap();
    let mut application = cluster.connect_to("app", "application");
    application.batch_execute("CREATE SCHEMA loader").unwrap();
    application.batch_execute("CREATE TABLE loader.loader (id bigint PRIMARY KEY)").unwrap();
    let mut superuser = cluster.connect_to("app", "postgres");
    superuser.batch_execute("CREATE EXTENSION loader_history").unwrap();
    assert_eq!(key(&mut superuser), "there");

    application
        .batch_execute(
            "ALTER TABLE loader.loader ADD COLUMN note text;
             CREATE TABLE loader.more (id bigint REFERENCES loader.loader);
             CREATE FUNCTION loader.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1';
             GRANT USAGE ON SCHEMA loader TO backend;
             DROP TABLE loader.more;",
        )
        .unwrap();
    application.batch_execute("ALTER SCHEMA loader RENAME TO mine").error("42501");
}

#[test]
fn enabling_all_triggers_does_not_bring_a_dropped_key_back() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    // As a data-only restore with --disable-triggers ends.
    client
        .batch_execute(
            "ALTER TABLE loader.execution_history DISABLE TRIGGER ALL;
             ALTER TABLE loader.execution_history ENABLE TRIGGER ALL;
             ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey;",
        )
        .unwrap();
    client
        .batch_execute(
            "INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status)
                 VALUES (1, now(), now(), 'SUCCESS')",
        )
        .unwrap();
    assert_eq!(key(&mut client), "missing");
}

#[test]
fn a_key_to_a_table_that_was_renamed_is_not_taken_for_the_key() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "ALTER TABLE loader.loader RENAME TO loader_old;
             CREATE TABLE loader.loader (id bigint PRIMARY KEY);
             INSERT INTO loader.loader SELECT generate_series(1, 99);",
        )
        .unwrap();
    assert!(!attach(&mut client));
    let (there, why) = status(&mut client);
    assert!(!there && why.unwrap().contains("loader.loader_old"));
    client
        .batch_execute(
            "ALTER TABLE loader.execution_history DROP CONSTRAINT execution_history_loader_id_fkey",
        )
        .unwrap();
    assert!(attach(&mut client));
    assert_eq!(status(&mut client), (true, None));
}

#[test]
fn a_domain_over_a_domain_is_referenced() {
    let cluster = Cluster::start();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "CREATE EXTENSION loader_history;
             CREATE DOMAIN one AS bigint; CREATE DOMAIN two AS one;
             CREATE TABLE loader.loader (id two PRIMARY KEY);",
        )
        .unwrap();
    assert_eq!(key(&mut client), "there");
}
