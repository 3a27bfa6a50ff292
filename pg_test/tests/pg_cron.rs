//! Promise: SQL that pg_cron runs records itself as any loader does, in whichever order the two libraries
//! are preloaded, and whether pg_cron's jobs are clients or background workers.
//!
//! Where no package of pg_cron is for the server's version, `scripts/environment` says so in `PG_CRON`, and
//! these tests are ignored.

use libtest_mimic::{Arguments, Failed, Trial};
use pg_test::{Site, column, wait_for, wait_for_equal};

/// The whole of a load in one statement's string, which is one transaction.
const STRING: &str = "
    SELECT set_config('planes.run', loader.record_execution_start(1)::text, true);
    INSERT INTO planes SELECT 'string ' || n, 2000, '', '', '', 1, 1, 1, '' FROM generate_series(1, 3) AS n;
    SELECT loader.record_execution_end(current_setting('planes.run')::bigint, 'SUCCESS', 3)";

/// The same where the data is bad.
const BAD_STRING: &str = "
    SELECT loader.record_execution_start(2);
    INSERT INTO planes VALUES ('bad', 'NA')";

const BLOCK: &str = "
    DO $$
    DECLARE
        run bigint := loader.record_execution_start(3);
        records bigint;
    BEGIN
        INSERT INTO planes SELECT 'block ' || n, 2000, '', '', '', 1, 1, 1, '' FROM generate_series(1, 4) AS n;
        GET DIAGNOSTICS records = ROW_COUNT;
        PERFORM loader.record_execution_end(run, 'SUCCESS', records);
    END
    $$";

/// Its error is caught, so that the loader's own word is what counts.
const CATCHING_BLOCK: &str = "
    DO $$
    DECLARE
        run bigint := loader.record_execution_start(4);
    BEGIN
        INSERT INTO planes VALUES (NULL);
        PERFORM loader.record_execution_end(run, 'SUCCESS', 1);
    EXCEPTION WHEN OTHERS THEN
        PERFORM loader.record_execution_end(run, 'FAILED', error_message => SQLERRM);
    END
    $$";

/// What it has committed before it fails stays; so does its start, which nobody watches any more.
const PROCEDURES: &str = "
    CREATE PROCEDURE load_in_portions(loader_id bigint, portions int) LANGUAGE plpgsql AS $$
    DECLARE
        run bigint := loader.record_execution_start(loader_id);
    BEGIN
        COMMIT;
        FOR n IN 1..portions LOOP
            INSERT INTO planes VALUES (loader_id || ' portion ' || n, 2000, '', '', '', 1, 1, 1, '');
            COMMIT;
        END LOOP;
        PERFORM loader.record_execution_end(run, 'SUCCESS', portions);
    END
    $$;
    CREATE PROCEDURE load_or_report(loader_id bigint) LANGUAGE plpgsql AS $$
    DECLARE
        run bigint := loader.record_execution_start(loader_id);
        error text;
    BEGIN
        COMMIT;
        BEGIN
            INSERT INTO planes VALUES (loader_id || ' is bad', 2000, '', '', '', 1 / 0);
            PERFORM loader.record_execution_end(run, 'SUCCESS', 1);
        EXCEPTION WHEN OTHERS THEN
            error := SQLERRM;
        END;
        IF error IS NOT NULL THEN
            PERFORM loader.record_execution_end(run, 'FAILED', error_message => error);
        END IF;
    END
    $$;";

const TERMINATED: &str = "
    SELECT loader.record_execution_start(7);
    SELECT pg_sleep(600)";

const RECORDED: &str = "
    SELECT concat_ws(' ', loader_id, status, NULLIF(record_count, 0),
                     -- A client is a connection to it, and a background worker its name.
                     regexp_replace(error_message, 'terminating .* due', 'terminating ... due'))
      FROM loader.execution_history ORDER BY loader_id";

const JOBS: &str = "
    SELECT concat_ws(' ', jobname, status)
      FROM cron.job_run_details JOIN cron.job USING (jobid) ORDER BY jobname";

fn run(libraries: &str, background_workers: bool) {
    let mut site = Site::start_with(&format!(
        "shared_preload_libraries = '{libraries}'
         max_worker_processes = 20
         cron.use_background_workers = {background_workers}"
    ));
    let socket = site.cluster.directory().display().to_string();
    site.observer.batch_execute(&format!("ALTER SYSTEM SET cron.host = '{socket}'")).unwrap();
    site.observer
        .batch_execute(
            "CREATE EXTENSION pg_cron;
             GRANT USAGE ON SCHEMA cron TO etl;
             GRANT CREATE ON SCHEMA public TO etl;",
        )
        .unwrap();
    let mut owner = site.cluster.connect_to("postgres", "etl");
    owner.batch_execute(PROCEDURES).unwrap();
    for (name, sql) in [
        ("1 string", STRING),
        ("2 bad string", BAD_STRING),
        ("3 block", BLOCK),
        ("4 catching block", CATCHING_BLOCK),
        ("5 procedure", "CALL load_in_portions(5, 6)"),
        ("6 procedure that reports", "CALL load_or_report(6)"),
        ("7 terminated", TERMINATED),
    ] {
        // Due once, when the server starts: it counts in minutes otherwise.
        owner.execute("SELECT cron.schedule($1, '@reboot', $2)", &[&name, &sql]).unwrap();
    }
    drop(owner);
    site.restart();
    wait_for("the last job to sleep", || {
        let query =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        column::<bool>(&mut site.observer, query) == [true]
    });
    let expected = [
        "1 SUCCESS 3",
        "2 FAILED 22P02: invalid input syntax for type integer: \"NA\"",
        "3 SUCCESS 4",
        "4 FAILED null value in column \"tailnum\" of relation \"planes\" violates not-null constraint",
        "5 SUCCESS 6",
        "6 FAILED division by zero",
        "7 FAILED 57P01: terminating ... due to administrator command",
    ];
    wait_for_equal("what is recorded", &expected.map(str::to_owned).to_vec(), || {
        column::<String>(&mut site.observer, RECORDED)
    });
    wait_for_equal("what runs", &Vec::new(), || {
        let query =
            "SELECT jobid FROM cron.job_run_details WHERE status NOT IN ('succeeded', 'failed')";
        column::<i64>(&mut site.observer, query)
    });
    // What a loader catches and reports is no failure of the job's.
    let expected = [
        "1 string succeeded",
        "2 bad string failed",
        "3 block succeeded",
        "4 catching block succeeded",
        "5 procedure succeeded",
        "6 procedure that reports succeeded",
        "7 terminated failed",
    ];
    assert_eq!(column::<String>(&mut site.observer, JOBS), expected);
}

fn main() {
    let missing = std::env::var("PG_CRON").is_ok_and(|package| package.is_empty());
    if missing {
        eprintln!("pg_cron: not covered, since there is no package of it for this PostgreSQL");
    }
    let trials = [
        ("jobs_that_are_clients", "pg_cron,loader_history", false),
        ("jobs_that_are_clients_in_the_other_order", "loader_history,pg_cron", false),
        ("jobs_that_are_background_workers", "pg_cron,loader_history", true),
    ];
    let trials = trials.map(|(name, libraries, background_workers)| {
        let test = move || -> Result<(), Failed> {
            run(libraries, background_workers);
            Ok(())
        };
        Trial::test(name, test).with_ignored_flag(missing)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}
