//! What dumps, restores and upgrades must keep.

use postgres::Client;

use crate::{APPLICATION_SQL, Cluster};

/// Executions of every status, grants, and more rows than one page.
const HISTORY_SQL: &str = "
    INSERT INTO loader.execution_history (loader_id, execution_start, execution_end, status, record_count, error_message)
        SELECT n % 10 + 1, now() - make_interval(mins => n), now() - make_interval(mins => n), 'SUCCESS', n,
               repeat(E'\\\\ \\t \\n \"€😀', n % 50)
          FROM generate_series(1, 2000) AS n;
    SELECT loader.record_execution_start(3);
    SELECT loader_history.grant_recorder('recorder');
    SELECT loader_history.grant_reader('reader');
    GRANT SELECT ON loader.execution_history TO auditor;
";

/// Gives database `postgres` all that a dump, a restore or an upgrade must keep.
///
/// # Panics
/// When that fails.
pub fn application(cluster: &Cluster) -> Client {
    let mut client = cluster.connect();
    client
        .batch_execute(
            "CREATE ROLE recorder LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE auditor LOGIN",
        )
        .expect("a statement that succeeds");
    client.batch_execute(APPLICATION_SQL).expect("a statement that succeeds");
    client.batch_execute("CREATE EXTENSION loader_history").expect("a statement that succeeds");
    client.batch_execute(HISTORY_SQL).expect("a statement that succeeds");
    client
}

/// All that must be kept, in words that can be compared. It records a start.
///
/// # Panics
/// When a query fails.
pub fn state(client: &mut Client) -> Vec<String> {
    [
        "SELECT md5(string_agg(h::text, '|' ORDER BY id)) || count(*) FROM loader.execution_history AS h",
        "SELECT string_agg(s::text, '|' ORDER BY loader_id) FROM loader.loader_summary AS s",
        "SELECT string_agg(pg_get_constraintdef(oid) || convalidated || obj_description(oid, 'pg_constraint'), '|')
           FROM pg_constraint WHERE contype = 'f' AND conrelid = 'loader.execution_history'::regclass",
        "SELECT string_agg(d.objid || replace(coalesce(p.proacl, c.relacl,
                                  CASE WHEN p.oid IS NOT NULL THEN acldefault('f', 10)
                                                WHEN c.relkind = 'S' THEN acldefault('s', 10)
                                                ELSE acldefault('r', 10) END)::text,
                               -- An owner's right from PostgreSQL 17 on.
                               'Dxtm/', 'Dxt/'), '|' ORDER BY coalesce(p.proname, c.relname))
           FROM (SELECT classid, objid AS oid, '' AS objid FROM pg_depend
                  WHERE refobjid = (SELECT oid FROM pg_extension WHERE extname = 'loader_history') AND deptype = 'e'
                    AND classid IN ('pg_proc'::regclass, 'pg_class'::regclass)) AS d
           LEFT JOIN pg_proc AS p ON p.oid = d.oid AND d.classid = 'pg_proc'::regclass
           LEFT JOIN pg_class AS c ON c.oid = d.oid AND d.classid = 'pg_class'::regclass",
        "SELECT nspacl::text FROM pg_namespace WHERE nspname = 'loader'",
        "SELECT string_agg(format('%s %s', evtname, evtenabled), ', ' ORDER BY evtname) FROM pg_event_trigger",
        "SELECT extversion FROM pg_extension WHERE extname = 'loader_history'",
        "SELECT (foreign_key, detail)::text FROM loader.recorder_status()",
        // Last, since it moves the sequence on.
        "SELECT loader.record_execution_start(4)::text",
    ]
    .iter()
    .map(|query| client.query_one(*query, &[]).expect("a statement that succeeds").get::<_, Option<String>>(0).unwrap_or_default())
    .collect()
}
