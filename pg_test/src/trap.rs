//! A trap for code that runs with more rights than it should.
//!
//! A role `attacker`, with all that an application's role may have, plants functions that note whether
//! they ran, and whether as a superuser. They note it in sequences, which no rollback takes back.

use crate::{Client, Cluster};

/// Makes the role `attacker` the database's owner, with the functions that note who runs them.
///
/// # Panics
/// When the trap does not work.
pub fn set_trap(cluster: &Cluster) -> Client {
    cluster
        .connect()
        .batch_execute(
            "CREATE ROLE attacker LOGIN;
             CREATE ROLE victim LOGIN;
             ALTER DATABASE postgres OWNER TO attacker",
        )
        .unwrap();
    let mut attacker = cluster.connect_to("postgres", "attacker");
    attacker
        .batch_execute(
            "CREATE SCHEMA trap;
             GRANT USAGE ON SCHEMA trap TO PUBLIC;
             CREATE SEQUENCE trap.ran;
             CREATE SEQUENCE trap.ran_as_superuser;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA trap TO PUBLIC;
             -- SECURITY INVOKER: it is whoever was caught.
             CREATE FUNCTION trap.spring() RETURNS bigint LANGUAGE plpgsql
                 SET search_path = pg_catalog
             AS $$
             BEGIN
                 PERFORM nextval('trap.ran');
                 IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                     PERFORM nextval('trap.ran_as_superuser');
                     RAISE WARNING 'pwned: runs as %', current_user;
                 END IF;
                 RETURN 0;
             END
             $$;
             -- What PostgreSQL works out at planning, and wherever it takes only such functions.
             CREATE FUNCTION trap.immutable(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE
             AS $$ BEGIN RETURN trap.spring(); END $$;
             CREATE FUNCTION trap.trigger() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN PERFORM trap.spring(); RETURN coalesce(NEW, OLD); END $$;",
        )
        .unwrap();

    // The trap works.
    attacker.batch_execute("SELECT trap.spring()").unwrap();
    assert_eq!(caught(cluster), (true, false));
    cluster.connect().batch_execute("SELECT trap.immutable(1)").unwrap();
    assert_eq!(caught(cluster), (true, true));
    forget(cluster);
    attacker
}

/// Whether a function of the attacker's ran, and whether as a superuser.
///
/// # Panics
/// When there is no trap.
pub fn caught(cluster: &Cluster) -> (bool, bool) {
    let row = cluster
        .connect()
        .query_one(
            "SELECT (SELECT is_called FROM trap.ran), (SELECT is_called FROM trap.ran_as_superuser)",
            &[],
        )
        .unwrap();
    (row.get(0), row.get(1))
}

/// Makes the trap ready again.
///
/// # Panics
/// When there is none.
pub fn forget(cluster: &Cluster) {
    cluster
        .connect()
        .batch_execute(
            "SELECT setval('trap.ran', 1, false), setval('trap.ran_as_superuser', 1, false)",
        )
        .unwrap();
}

/// Asserts that no function of the attacker's ran.
///
/// # Panics
/// When one did.
#[track_caller]
pub fn nothing_ran(cluster: &Cluster) {
    assert_eq!(caught(cluster), (false, false), "code of the attacker's ran");
}

/// Asserts that no function of the attacker's ran as a superuser.
///
/// # Panics
/// When one did.
#[track_caller]
pub fn nothing_ran_as_superuser(cluster: &Cluster) {
    assert!(!caught(cluster).1, "code of the attacker's ran as a superuser");
}
