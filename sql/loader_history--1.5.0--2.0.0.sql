-- loader_history 1.5.0 to 2.0.0.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- Waits for transactions that have written the history. The order is that in which loads lock the tables.
LOCK TABLE loader.execution_history IN ACCESS EXCLUSIVE MODE;
LOCK TABLE loader.binding, loader.derived_failure, loader.abandoned_start, loader.prepared_start,
    loader.prepared_event, loader.recorded_loader, loader.foreign_key_request IN ACCESS EXCLUSIVE MODE;

-- Version 1.5.0 took the schema over from an owner who was no superuser, and left that role the right to create in it
-- and to grant that.
DO $$
DECLARE
    former text[];
BEGIN
    SELECT array_agg(DISTINCT r.oid::regrole::text) INTO former
      FROM pg_namespace AS n
     CROSS JOIN aclexplode(n.nspacl) AS a
      JOIN pg_roles AS r ON r.oid = a.grantee AND NOT r.rolsuper
     WHERE n.nspname = 'loader' AND a.privilege_type = 'CREATE' AND a.is_grantable
       AND n.nspowner IN (SELECT oid FROM pg_roles WHERE rolsuper);
    IF cardinality(former) = 1 THEN
        EXECUTE format('ALTER SCHEMA loader OWNER TO %s', former[1]);
    END IF;
END
$$;

CREATE SCHEMA loader_history;
COMMENT ON SCHEMA loader_history IS
    'Internal tables and functions of the extension loader_history, and its functions for DBAs';

-- The tables that stay.
ALTER TABLE loader.recorded_loader SET SCHEMA loader_history;
ALTER TABLE loader.foreign_key_request SET SCHEMA loader_history;
ALTER TABLE loader.binding RENAME TO watched_transaction;
ALTER TABLE loader.watched_transaction RENAME CONSTRAINT binding_pkey TO watched_transaction_pkey;
ALTER TABLE loader.watched_transaction SET SCHEMA loader_history;
ALTER TABLE loader.derived_failure RENAME TO server_outcome;
ALTER TABLE loader.server_outcome RENAME CONSTRAINT derived_failure_pkey TO server_outcome_pkey;
ALTER TABLE loader.server_outcome SET SCHEMA loader_history;
-- PostgreSQL 18 and later name NOT NULL constraints.
DO $$
DECLARE
    constraint_ record;
BEGIN
    FOR constraint_ IN
        SELECT k.conrelid::regclass AS target, k.conname AS name,
               regexp_replace(regexp_replace(k.conname, '^binding_', 'watched_transaction_'),
                              '^derived_failure_', 'server_outcome_') AS new_name
          FROM pg_constraint AS k
         WHERE k.contype = 'n'
           AND k.conrelid IN ('loader_history.watched_transaction'::regclass,
                              'loader_history.server_outcome'::regclass)
           AND k.conname ~ '^(binding|derived_failure)_'
    LOOP
        EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I',
                       constraint_.target, constraint_.name, constraint_.new_name);
    END LOOP;
END
$$;

-- A start that its caller had abandoned and recorded itself. No triggers of other roles fire.
SET LOCAL session_replication_role = replica;
WITH abandoned AS (
    DELETE FROM loader_history.watched_transaction AS w USING loader.abandoned_start AS a
     WHERE w.execution_id = a.execution_id AND w.xid = a.xid
    RETURNING w.execution_id
)
DELETE FROM loader.execution_history WHERE id IN (SELECT execution_id FROM abandoned) AND status = 'RUNNING';
SET LOCAL session_replication_role = origin;
DROP TABLE loader.abandoned_start;
DROP TABLE loader.prepared_start;

-- Whether the session wanted events was a bit of the subtransaction's id.
ALTER TABLE loader_history.watched_transaction ADD COLUMN notify boolean;
UPDATE loader_history.watched_transaction
   SET notify = coalesce(subxid::text::bigint & (1::bigint << 62) = 0, true),
       subxid = NULLIF(subxid::text::bigint & ~(1::bigint << 62), 0)::text::xid8;
ALTER TABLE loader_history.watched_transaction ALTER COLUMN notify SET NOT NULL;
DROP TRIGGER refuse_foreign_binding ON loader_history.watched_transaction;

COMMENT ON TABLE loader_history.watched_transaction IS
    'Internal: the transactions that started executions and were open when the background worker last looked. Only the worker writes it.';
COMMENT ON COLUMN loader_history.watched_transaction.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader_history.watched_transaction.xid IS 'The transaction that started it';
COMMENT ON COLUMN loader_history.watched_transaction.subxid IS
    'The subtransaction that started it; NULL if there was none';
COMMENT ON COLUMN loader_history.watched_transaction.notify IS
    'Whether the session that started it had loader_history.notify on';
COMMENT ON CONSTRAINT watched_transaction_pkey ON loader_history.watched_transaction IS
    'An execution is started once';
COMMENT ON INDEX loader_history.watched_transaction_pkey IS 'Finds the transaction of an execution';

COMMENT ON TABLE loader_history.server_outcome IS
    'Internal: executions that the server ended as FAILED, since the transaction that started them was rolled back, until the loader reports otherwise';
COMMENT ON COLUMN loader_history.server_outcome.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader_history.server_outcome.execution_end IS 'When the server ended it';
COMMENT ON CONSTRAINT server_outcome_pkey ON loader_history.server_outcome IS
    'The server ends an execution once';
COMMENT ON INDEX loader_history.server_outcome_pkey IS 'Finds out whether the server ended an execution';

-- PREPARE TRANSACTION inserts into it within the transaction that it prepares. So its rows are visible as
-- soon as COMMIT PREPARED is done, and never if the transaction is rolled back.
CREATE TABLE loader_history.prepared_change (
    execution_id bigint      NOT NULL,
    xid          xid8        NOT NULL,
    status       varchar(50) NOT NULL,
    CONSTRAINT prepared_change_pkey PRIMARY KEY (execution_id, xid, status)
) USING heap
WITH (vacuum_truncate = off);
COMMENT ON TABLE loader_history.prepared_change IS
    'Internal: executions that prepared transactions have started or ended, until the background worker has emitted their events';
COMMENT ON COLUMN loader_history.prepared_change.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader_history.prepared_change.xid IS 'The prepared transaction';
COMMENT ON COLUMN loader_history.prepared_change.status IS 'The status that it gave the execution';
COMMENT ON CONSTRAINT prepared_change_pkey ON loader_history.prepared_change IS
    'A transaction gives an execution a status once';
COMMENT ON INDEX loader_history.prepared_change_pkey IS 'Finds the changes that have been emitted';

-- How far the worker has purged, under loader_history.retention. What it kept behind that stays.
CREATE TABLE loader_history.purge_position (
    is_only       boolean     NOT NULL DEFAULT true,
    execution_end timestamptz NOT NULL,
    id            bigint      NOT NULL,
    CONSTRAINT purge_position_pkey PRIMARY KEY (is_only),
    CONSTRAINT purge_position_is_only_check CHECK (is_only)
) USING heap
WITH (vacuum_truncate = off);
COMMENT ON TABLE loader_history.purge_position IS
    'Internal: one row: the execution up to which the background worker has purged';
COMMENT ON COLUMN loader_history.purge_position.is_only IS 'True: there is one row';
COMMENT ON COLUMN loader_history.purge_position.execution_end IS 'When the execution ended';
COMMENT ON COLUMN loader_history.purge_position.id IS 'The execution''s id';
COMMENT ON CONSTRAINT purge_position_pkey ON loader_history.purge_position IS 'There is one row';
COMMENT ON CONSTRAINT purge_position_is_only_check ON loader_history.purge_position IS 'There is one row';
COMMENT ON INDEX loader_history.purge_position_pkey IS 'There is one row';
INSERT INTO loader_history.purge_position (execution_end, id) VALUES ('-infinity', 0);

-- A sequence, since those are WAL-logged and no rollback undoes them.
CREATE SEQUENCE loader_history.last_timeline MINVALUE 0 START 0;
COMMENT ON SEQUENCE loader_history.last_timeline IS
    'Internal: the last timeline of the server for which ids were skipped that may have been assigned on the one before';

-- A publication FOR ALL TABLES would bring another cluster's transaction ids and position.
CREATE FUNCTION loader_history.drop_replicated_row() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'drop_replicated_row_wrapper';
COMMENT ON FUNCTION loader_history.drop_replicated_row() IS
    'Internal: trigger that drops replicated rows';
CREATE TRIGGER drop_replicated_row BEFORE INSERT ON loader_history.watched_transaction
    FOR EACH ROW EXECUTE FUNCTION loader_history.drop_replicated_row();
COMMENT ON TRIGGER drop_replicated_row ON loader_history.watched_transaction IS
    'Drops rows of another cluster';
ALTER TABLE loader_history.watched_transaction ENABLE ALWAYS TRIGGER drop_replicated_row;
CREATE TRIGGER drop_replicated_row BEFORE INSERT ON loader_history.prepared_change
    FOR EACH ROW EXECUTE FUNCTION loader_history.drop_replicated_row();
COMMENT ON TRIGGER drop_replicated_row ON loader_history.prepared_change IS
    'Drops rows of another cluster';
ALTER TABLE loader_history.prepared_change ENABLE ALWAYS TRIGGER drop_replicated_row;
CREATE TRIGGER drop_replicated_row BEFORE INSERT OR UPDATE ON loader_history.purge_position
    FOR EACH ROW EXECUTE FUNCTION loader_history.drop_replicated_row();
COMMENT ON TRIGGER drop_replicated_row ON loader_history.purge_position IS
    'Drops rows of another cluster';
ALTER TABLE loader_history.purge_position ENABLE ALWAYS TRIGGER drop_replicated_row;

-- Events of prepared transactions that were committed.
INSERT INTO loader_history.prepared_change (execution_id, xid, status)
    SELECT (payload::jsonb ->> 'execution_id')::bigint, pg_current_xact_id(), payload::jsonb ->> 'status'
      FROM loader.prepared_event
    ON CONFLICT DO NOTHING;
DROP TABLE loader.prepared_event;

-- The history.
DROP TRIGGER notify_on_start ON loader.execution_history;
DROP TRIGGER notify_on_outcome ON loader.execution_history;
DROP TRIGGER remember_loader_on_insert ON loader.execution_history;
DROP TRIGGER remember_loader_on_update ON loader.execution_history;
DROP FUNCTION loader.notify_execution();
DROP FUNCTION loader.remember_loader();
DROP FUNCTION loader.refuse_foreign_binding();
-- One trigger for INSERT and one for UPDATE: a second one, or a condition, would cost each start and each end
-- more than the function does. C functions look up no name by the search path, so none is set.
CREATE FUNCTION loader_history.history_changed() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'history_changed_wrapper';
COMMENT ON FUNCTION loader_history.history_changed() IS
    'Internal: trigger that maintains loader_history.recorded_loader and emits NOTIFY loader_execution';

CREATE TRIGGER history_inserted AFTER INSERT ON loader.execution_history
    FOR EACH ROW EXECUTE FUNCTION loader_history.history_changed();
CREATE TRIGGER history_updated AFTER UPDATE ON loader.execution_history
    FOR EACH ROW EXECUTE FUNCTION loader_history.history_changed();
COMMENT ON TRIGGER history_inserted ON loader.execution_history IS
    'Maintains loader_history.recorded_loader; emits the event of an execution that starts';
COMMENT ON TRIGGER history_updated ON loader.execution_history IS
    'Maintains loader_history.recorded_loader; emits the event of an execution whose status changes';
-- Rows that replication brings have loaders too. They emit no events.
ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER history_inserted;
ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER history_updated;

DROP INDEX IF EXISTS loader.execution_history_loader_running_idx;
DROP INDEX IF EXISTS loader.execution_history_running_start_idx;
DROP INDEX IF EXISTS loader.execution_history_loader_success_end_idx;
DROP INDEX IF EXISTS loader.execution_history_loader_failed_end_idx;
DROP INDEX IF EXISTS loader.execution_history_loader_failed_start_idx;
CREATE INDEX execution_history_running_idx
    ON loader.execution_history (loader_id, execution_start, id) WHERE status = 'RUNNING';
COMMENT ON INDEX loader.execution_history_running_idx IS
    'Running executions of one loader and of all';

CREATE INDEX execution_history_loader_status_idx
    ON loader.execution_history (loader_id, status, execution_start, id) WHERE status <> 'RUNNING';
COMMENT ON INDEX loader.execution_history_loader_status_idx IS
    'Pages of one loader''s successes or failures; the newest of each; failures since the last success';

CREATE INDEX execution_history_failed_end_idx
    ON loader.execution_history (execution_end, loader_id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_failed_end_idx IS
    'Failures of the last days';

COMMENT ON INDEX loader.execution_history_loader_start_idx IS
    'Pages of one loader; its newest execution; the foreign key';
COMMENT ON INDEX loader.execution_history_start_idx IS
    'Pages of all loaders; starts in the activity feed';
COMMENT ON INDEX loader.execution_history_end_idx IS
    'Ends in the activity feed; what may be purged';
COMMENT ON INDEX loader.execution_history_failed_start_idx IS
    'Pages of all loaders'' failures';
COMMENT ON CONSTRAINT execution_history_pkey ON loader.execution_history IS 'An id identifies one execution';
COMMENT ON CONSTRAINT execution_history_status_check ON loader.execution_history IS
    'status is RUNNING, SUCCESS or FAILED';
COMMENT ON CONSTRAINT execution_history_running_check ON loader.execution_history IS
    'An execution is RUNNING if and only if it has no end';
COMMENT ON CONSTRAINT execution_history_finite_check ON loader.execution_history IS
    'Both times are finite';
COMMENT ON CONSTRAINT execution_history_order_check ON loader.execution_history IS
    'No execution ends before it starts';
COMMENT ON CONSTRAINT execution_history_record_count_check ON loader.execution_history IS
    'record_count is not negative';
COMMENT ON TABLE loader_history.recorded_loader IS
    'Internal: every loader that has history, once or more often. Maintained by a trigger.';
SELECT pg_extension_config_dump('loader_history.recorded_loader',
    'WHERE ctid = (SELECT min(twin.ctid) FROM loader_history.recorded_loader AS twin WHERE twin.loader_id = recorded_loader.loader_id)');

-- The library of this version has not kept it for the SQL of the last one.
INSERT INTO loader_history.recorded_loader (loader_id)
    WITH RECURSIVE loader AS (
        SELECT min(loader_id) AS id FROM loader.execution_history
        UNION ALL
        SELECT (SELECT min(h.loader_id) FROM loader.execution_history AS h WHERE h.loader_id > loader.id)
          FROM loader WHERE loader.id IS NOT NULL
    )
    SELECT id FROM loader
     WHERE id IS NOT NULL
       AND NOT EXISTS (SELECT FROM loader_history.recorded_loader AS known WHERE known.loader_id = loader.id);

-- What backends read. The views name no table of the application's, and no function of this
-- extension's, which their readers would need the right to call.

-- Two plain selects and the condition outside: PostgreSQL merges the ends of two indexes then, and
-- finds the newest events at the same cost whatever the history holds.
CREATE OR REPLACE VIEW loader.activity_feed AS
    SELECT event_time, event_type, severity, execution_id, loader_id, status, record_count,
           duration_seconds, error_message, message
      FROM (SELECT execution_end AS event_time,
                   concat('EXECUTION_', status) AS event_type,
                   CASE status WHEN 'SUCCESS' THEN 'success' ELSE 'error' END AS severity,
                   id AS execution_id,
                   loader_id,
                   status,
                   record_count,
                   duration_seconds,
                   error_message,
                   CASE status
                   WHEN 'SUCCESS' THEN
                       concat('Execution ', id, ' of loader ', loader_id, ' succeeded',
                              ': ' || CASE record_count WHEN 1 THEN '1 record'
                                      ELSE to_char(record_count, 'FM9,999,999,990') || ' records' END,
                              ' in ' || to_char(duration_seconds, 'FM9,999,999,990') || ' s')
                   ELSE
                       concat('Execution ', id, ' of loader ', loader_id, ' failed',
                              ' after ' || to_char(duration_seconds, 'FM9,999,999,990') || ' s',
                              ': ' || split_part(left(error_message, 200), E'\n', 1))
                   END AS message
              FROM loader.execution_history
            UNION ALL
            SELECT execution_start, 'EXECUTION_STARTED', 'info', id, loader_id,
                   'RUNNING'::varchar(50), NULL::integer, NULL::integer, NULL::text,
                   concat('Execution ', id, ' of loader ', loader_id, ' started')
              FROM loader.execution_history) AS event
     WHERE event_time IS NOT NULL;

COMMENT ON VIEW loader.activity_feed IS
    'A row an event: each start and each end of an execution. ORDER BY event_time DESC, execution_id DESC LIMIT n is quick however long the history is.';
COMMENT ON COLUMN loader.activity_feed.event_time IS 'When it happened';
COMMENT ON COLUMN loader.activity_feed.event_type IS
    'EXECUTION_STARTED, EXECUTION_SUCCESS or EXECUTION_FAILED';
COMMENT ON COLUMN loader.activity_feed.severity IS 'info, success or error';
COMMENT ON COLUMN loader.activity_feed.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader.activity_feed.loader_id IS 'The loader''s id';
COMMENT ON COLUMN loader.activity_feed.status IS 'The execution''s status after the event';
COMMENT ON COLUMN loader.activity_feed.record_count IS 'Records loaded; NULL for a start';
COMMENT ON COLUMN loader.activity_feed.duration_seconds IS 'Whole seconds it took; NULL for a start';
COMMENT ON COLUMN loader.activity_feed.error_message IS 'What went wrong; NULL for a start';
COMMENT ON COLUMN loader.activity_feed.message IS 'The event as a sentence';

-- Not clock_timestamp(): with a volatile function PostgreSQL would work out the whole view first.
CREATE OR REPLACE VIEW loader.execution_details AS
    SELECT id, loader_id, execution_start, execution_end, status, record_count, error_message,
           duration_seconds,
           greatest(coalesce(execution_end, statement_timestamp()) - execution_start, '0'::interval)
               AS duration,
           status = 'RUNNING' AS is_running
      FROM loader.execution_history;

COMMENT ON VIEW loader.execution_details IS
    'The executions with their exact durations: the table of a page about one loader';
COMMENT ON COLUMN loader.execution_details.id IS 'The execution''s id';
COMMENT ON COLUMN loader.execution_details.loader_id IS 'The loader''s id';
COMMENT ON COLUMN loader.execution_details.execution_start IS 'When it started';
COMMENT ON COLUMN loader.execution_details.execution_end IS 'When it ended; NULL while it runs';
COMMENT ON COLUMN loader.execution_details.status IS 'RUNNING, SUCCESS or FAILED';
COMMENT ON COLUMN loader.execution_details.record_count IS 'Records loaded';
COMMENT ON COLUMN loader.execution_details.error_message IS 'What went wrong';
COMMENT ON COLUMN loader.execution_details.duration_seconds IS 'Whole seconds it took; NULL while it runs';
COMMENT ON COLUMN loader.execution_details.duration IS 'How long it took, exactly; while it runs: so far';
COMMENT ON COLUMN loader.execution_details.is_running IS 'Whether it has not ended';

-- A row is a descent or two of an index for each thing said of the loader. The conditions and the order name
-- the status as a range, since only execution_history_loader_status_idx has that order: with an equality
-- the planner could as well walk over a loader's executions of any status. The two counts stop at 1,000, so
-- that a loader that never succeeds costs no more than another.
CREATE OR REPLACE VIEW loader.loader_summary AS
    SELECT known.loader_id,
           newest.id AS last_execution_id,
           newest.status AS last_status,
           newest.execution_start AS last_execution_start,
           newest.execution_end AS last_execution_end,
           success.execution_end AS last_success_at,
           failure.execution_end AS last_failure_at,
           failure.error_message AS last_error_message,
           failure.id IS NOT NULL
               AND (success.id IS NULL
                    OR (failure.execution_start, failure.id) > (success.execution_start, success.id))
               AS is_failed,
           failures.consecutive AS consecutive_failures,
           executions.running AS running_executions
      FROM (SELECT DISTINCT loader_id FROM loader_history.recorded_loader) AS known
     CROSS JOIN LATERAL (
               SELECT id, status, execution_start, execution_end FROM loader.execution_history
                WHERE loader_id = known.loader_id
                ORDER BY execution_start DESC, id DESC LIMIT 1
           ) AS newest
      LEFT JOIN LATERAL (
               SELECT id, execution_start, execution_end FROM loader.execution_history
                WHERE loader_id = known.loader_id AND status BETWEEN 'SUCCESS' AND 'SUCCESS'
                ORDER BY status DESC, execution_start DESC, id DESC LIMIT 1
           ) AS success ON true
      LEFT JOIN LATERAL (
               SELECT id, execution_start, execution_end, error_message FROM loader.execution_history
                WHERE loader_id = known.loader_id AND status BETWEEN 'FAILED' AND 'FAILED'
                ORDER BY status DESC, execution_start DESC, id DESC LIMIT 1
           ) AS failure ON true
     CROSS JOIN LATERAL (
               SELECT count(*) AS consecutive
                 FROM (SELECT FROM loader.execution_history
                        WHERE loader_id = known.loader_id AND status <= 'FAILED'
                          AND (status, execution_start, id)
                              > ('FAILED', coalesce(success.execution_start, '-infinity'), coalesce(success.id, 0))
                        ORDER BY status, execution_start, id LIMIT 1000) AS counted
           ) AS failures
     CROSS JOIN LATERAL (
               SELECT count(*) AS running
                 FROM (SELECT FROM loader.execution_history
                        WHERE loader_id = known.loader_id AND status = 'RUNNING'
                        LIMIT 1000) AS counted
           ) AS executions;

COMMENT ON VIEW loader.loader_summary IS
    'One row per loader that has history. A loader is failed if its newest finished execution, by start, FAILED.';
COMMENT ON COLUMN loader.loader_summary.loader_id IS 'The loader''s id';
COMMENT ON COLUMN loader.loader_summary.last_execution_id IS 'Its newest execution, by start';
COMMENT ON COLUMN loader.loader_summary.last_status IS 'Status of its newest execution';
COMMENT ON COLUMN loader.loader_summary.last_execution_start IS 'When its newest execution started';
COMMENT ON COLUMN loader.loader_summary.last_execution_end IS
    'When its newest execution ended; NULL while that runs';
COMMENT ON COLUMN loader.loader_summary.last_success_at IS
    'When its newest success, by start, ended';
COMMENT ON COLUMN loader.loader_summary.last_failure_at IS
    'When its newest failure, by start, ended';
COMMENT ON COLUMN loader.loader_summary.last_error_message IS 'The error of its newest failure';
COMMENT ON COLUMN loader.loader_summary.is_failed IS
    'Whether its newest finished execution, by start, FAILED; one that runs changes nothing';
COMMENT ON COLUMN loader.loader_summary.consecutive_failures IS
    'Failures that started after its newest success, of the rows kept; 1,000 stands for 1,000 or more';
COMMENT ON COLUMN loader.loader_summary.running_executions IS
    'Executions that run now; 1,000 stands for 1,000 or more';

-- Loader by loader in the order of the index, so that each descent finds in cache what the last one has
-- read. Most loaders succeed within a day of a failure: that is looked for first, since a scan reads
-- all entries of a page that meet its condition, and a day has few. What failed in two days is
-- read once for the other three counts.
CREATE OR REPLACE VIEW loader.failed_loader_counts AS
    SELECT loaders.failed AS failed_loaders,
           recent.loaders AS failed_loaders_24h,
           recent.loaders_before AS failed_loaders_previous_24h,
           recent.executions AS failed_executions_24h
      FROM (SELECT count(*) FILTER (WHERE is_failed) AS failed
              FROM (SELECT NOT EXISTS (
                               SELECT FROM loader.execution_history AS soon
                                WHERE soon.loader_id = known.loader_id AND soon.status = 'SUCCESS'
                                  AND (soon.execution_start, soon.id) > (failure.execution_start, failure.id)
                                  AND soon.execution_start < failure.next_day
                           ) AND NOT EXISTS (
                               SELECT FROM loader.execution_history AS later
                                WHERE later.loader_id = known.loader_id AND later.status = 'SUCCESS'
                                  AND (later.execution_start, later.id) > (failure.execution_start, failure.id)
                           ) AS is_failed
                      FROM (SELECT DISTINCT loader_id FROM loader_history.recorded_loader
                             ORDER BY loader_id) AS known
                     CROSS JOIN LATERAL (
                               SELECT id, execution_start,
                                      least(execution_start, '9999-01-01') + '24 hours'::interval AS next_day
                                 FROM loader.execution_history
                                WHERE loader_id = known.loader_id AND status BETWEEN 'FAILED' AND 'FAILED'
                                ORDER BY status DESC, execution_start DESC, id DESC LIMIT 1
                           ) AS failure
                   ) AS loaders
           ) AS loaders
     CROSS JOIN (
            SELECT count(DISTINCT loader_id) FILTER (WHERE is_today) AS loaders,
                   count(DISTINCT loader_id) FILTER (WHERE NOT is_today) AS loaders_before,
                   count(*) FILTER (WHERE is_today) AS executions
              FROM (SELECT loader_id, execution_end >= statement_timestamp() - '24 hours'::interval AS is_today
                      FROM loader.execution_history
                     WHERE status = 'FAILED' AND execution_end >= statement_timestamp() - '48 hours'::interval) AS failed
           ) AS recent;

COMMENT ON VIEW loader.failed_loader_counts IS 'One row: how many loaders fail, and the trend';
COMMENT ON COLUMN loader.failed_loader_counts.failed_loaders IS
    'Loaders whose newest finished execution, by start, FAILED';
COMMENT ON COLUMN loader.failed_loader_counts.failed_loaders_24h IS
    'Loaders with an execution that FAILED in the last 24 hours';
COMMENT ON COLUMN loader.failed_loader_counts.failed_loaders_previous_24h IS
    'Loaders with an execution that FAILED in the 24 hours before those';
COMMENT ON COLUMN loader.failed_loader_counts.failed_executions_24h IS
    'Executions that FAILED in the last 24 hours';

-- The functions.
ALTER FUNCTION loader.require_writable() SET SCHEMA loader_history;
ALTER FUNCTION loader.purge_execution_history(interval, bigint) SET SCHEMA loader_history;
ALTER FUNCTION loader.untrusted_code(regclass) SET SCHEMA loader_history;
ALTER FUNCTION loader.foreign_key_state() SET SCHEMA loader_history;
ALTER FUNCTION loader.validate_foreign_key() SET SCHEMA loader_history;
ALTER FUNCTION loader.add_foreign_key() SET SCHEMA loader_history;
ALTER FUNCTION loader.attach_foreign_key() SET SCHEMA loader_history;
ALTER FUNCTION loader.attach_foreign_key_on_ddl() SET SCHEMA loader_history;
ALTER FUNCTION loader.request_foreign_key() SET SCHEMA loader_history;
ALTER FUNCTION loader.attach_foreign_key_on_commit() SET SCHEMA loader_history;
ALTER FUNCTION loader.refuse_foreign_trigger() SET SCHEMA loader_history;
ALTER FUNCTION loader.recorder_state() SET SCHEMA loader_history;
ALTER FUNCTION loader.grant_execute(regrole, regprocedure[]) SET SCHEMA loader_history;
ALTER FUNCTION loader.grant_recorder(regrole) SET SCHEMA loader_history;
ALTER FUNCTION loader.grant_reader(regrole) SET SCHEMA loader_history;

CREATE OR REPLACE FUNCTION loader_history.require_writable() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'cannot change the history on a standby server'
            USING ERRCODE = 'read_only_sql_transaction', HINT = 'Connect to the primary server.';
    ELSIF current_setting('transaction_read_only')::boolean THEN
        RAISE EXCEPTION 'cannot change the history in a read-only transaction'
            USING ERRCODE = 'read_only_sql_transaction', HINT = 'Use SET TRANSACTION READ WRITE.';
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.require_writable() IS
    'Internal: raises error 25006 if the transaction cannot write';

-- Which executions may be deleted is decided in the library, for the background worker too.
CREATE OR REPLACE FUNCTION loader_history.purge_execution_history(older_than interval, max_rows bigint DEFAULT 10000)
    RETURNS bigint
    LANGUAGE c
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'purge_execution_history_wrapper';
COMMENT ON FUNCTION loader_history.purge_execution_history(interval, bigint) IS
    'Deletes at most max_rows executions that ended longer ago than older_than, oldest first, and returns how many. A RUNNING one stays, and each loader''s newest execution, newest SUCCESS and newest FAILED.';
COMMENT ON FUNCTION loader.get_execution_history(bigint, integer, text, text, timestamptz, timestamptz) IS
    'A page of executions, newest first, as {"executions": [...], "next_cursor": ...}; pass next_cursor for the next page';

-- The key is attached, by itself, with a superuser's rights, to a table that others own. Planning a
-- query of that table, as validating the key does, evaluates what its indexes, constraints and
-- statistics say; the code of anybody but a superuser is not to be evaluated here.
CREATE OR REPLACE FUNCTION loader_history.untrusted_code(target regclass) RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH relation AS (
        SELECT target::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(target)
    ), expression AS (
        SELECT 'pg_class'::regclass AS classid, oid AS objid FROM relation
        UNION ALL
        SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index AS i JOIN relation ON i.indrelid = relation.oid
        UNION ALL
        SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint AS k JOIN relation ON k.conrelid = relation.oid
        UNION ALL
        SELECT 'pg_statistic_ext'::regclass, s.oid FROM pg_statistic_ext AS s JOIN relation ON s.stxrelid = relation.oid
    )
    SELECT pg_describe_object(d.refclassid, d.refobjid, 0)
      FROM expression AS e
      JOIN pg_depend AS d ON d.classid = e.classid AND d.objid = e.objid AND d.objsubid = 0
      LEFT JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
      LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
      -- An enum runs no code.
      LEFT JOIN pg_type AS t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid AND t.typtype <> 'e'
     WHERE coalesce(p.proowner, o.oprowner, t.typowner) IN (SELECT oid FROM pg_roles WHERE NOT rolsuper)
    UNION ALL
    -- The planner sees what an older snapshot hides.
    SELECT 'what this transaction''s snapshot may not show'
      FROM relation JOIN pg_class AS c ON c.oid = relation.oid
     WHERE current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
       AND c.relowner IN (SELECT oid FROM pg_roles WHERE NOT rolsuper)
     LIMIT 1
$$;
COMMENT ON FUNCTION loader_history.untrusted_code(regclass) IS
    'Internal: an object of a role that is not a superuser, which planning a query of a table would evaluate';

CREATE OR REPLACE FUNCTION loader_history.foreign_key_state(OUT present boolean, OUT valid boolean, OUT obstacle text)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    history constant oid := 'loader.execution_history'::regclass;
    target record;
    id_column record;
BEGIN
    present := false;
    valid := false;

    SELECT c.oid, c.relkind, c.relpersistence INTO target
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
     WHERE n.nspname = 'loader' AND c.relname = 'loader';
    IF NOT FOUND THEN
        obstacle := 'table loader.loader does not exist';
        RETURN;
    END IF;

    SELECT true, bool_and(k.convalidated) INTO present, valid
      FROM pg_constraint AS k
      JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attname = 'loader_id'
     WHERE k.conrelid = history AND k.contype = 'f' AND k.confrelid = target.oid
       AND k.conkey = ARRAY[a.attnum]
    HAVING count(*) > 0;
    IF present THEN
        RETURN;
    END IF;
    present := false;
    valid := false;

    SELECT format('its constraint %I references %s, not loader.loader; drop that first', k.conname, k.confrelid::regclass)
      INTO obstacle
      FROM pg_constraint AS k
      JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attname = 'loader_id'
     WHERE k.conrelid = history AND k.contype = 'f' AND k.conkey = ARRAY[a.attnum]
     LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;

    IF target.relkind NOT IN ('r', 'p') THEN
        obstacle := 'loader.loader is not a table';
        RETURN;
    ELSIF target.relpersistence <> 'p' THEN
        obstacle := 'loader.loader is not a permanent table';
        RETURN;
    END IF;

    WITH RECURSIVE type AS (
        SELECT a.attnum, a.atttypid AS oid
          FROM pg_attribute AS a
         WHERE a.attrelid = target.oid AND a.attname = 'id' AND NOT a.attisdropped
        UNION ALL
        SELECT type.attnum, t.typbasetype FROM type JOIN pg_type AS t ON t.oid = type.oid AND t.typtype = 'd'
    )
    SELECT type.attnum, t.oid AS type INTO id_column
      FROM type JOIN pg_type AS t ON t.oid = type.oid AND t.typtype <> 'd';
    IF NOT FOUND THEN
        obstacle := 'loader.loader has no column id';
    ELSIF id_column.type NOT IN ('bigint'::regtype, 'integer'::regtype, 'smallint'::regtype, 'numeric'::regtype) THEN
        obstacle := format('loader.loader.id is of type %s, which a bigint cannot reference',
                           format_type(id_column.type, NULL));
    ELSIF NOT EXISTS (
        SELECT FROM pg_index AS i
         WHERE i.indrelid = target.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND i.indnkeyatts = 1 AND i.indkey[0] = id_column.attnum)
    THEN
        obstacle := 'loader.loader has no primary key or unique index on (id)';
    ELSIF target.relkind = 'p' AND loader_history.untrusted_code(target.oid::regclass) IS NOT NULL THEN
        obstacle := format('the partitioned table loader.loader depends on %s, which belongs to no superuser',
                           loader_history.untrusted_code(target.oid::regclass));
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.foreign_key_state() IS
    'Internal: whether the foreign key exists, whether it is valid, and what prevents it from being attached';

CREATE OR REPLACE FUNCTION loader_history.validate_foreign_key() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key record;
    name text;
    untrusted text;
BEGIN
    FOR key IN
        SELECT k.conname AS name, k.confrelid::regclass AS target FROM pg_constraint AS k
         WHERE k.conrelid = 'loader.execution_history'::regclass AND k.contype = 'f' AND NOT k.convalidated
    LOOP
        -- Locked before it is looked at, so that nothing is added to it afterwards.
        name := key.target::text;
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', name);
        untrusted := loader_history.untrusted_code(key.target);
        IF to_regclass(name) IS DISTINCT FROM key.target THEN
            untrusted := 'a table that was renamed';
        END IF;
        IF untrusted IS NOT NULL THEN
            RAISE WARNING 'foreign key % is NOT VALID: to validate it would evaluate %', key.name, untrusted
                USING DETAIL = 'What belongs to no superuser is not evaluated with a superuser''s rights. New executions are checked all the same.',
                      HINT = format('Run SELECT loader_history.attach_foreign_key() in a READ COMMITTED transaction of its own or, if you trust it, ALTER TABLE loader.execution_history VALIDATE CONSTRAINT %I.', key.name);
            CONTINUE;
        END IF;
        BEGIN
            EXECUTE format('ALTER TABLE loader.execution_history VALIDATE CONSTRAINT %I', key.name);
        EXCEPTION WHEN foreign_key_violation THEN
            RAISE WARNING 'foreign key % is NOT VALID: the history names loaders that loader.loader does not have', key.name
                USING DETAIL = 'New executions are checked all the same.',
                      HINT = 'Add those loaders or delete their executions, then run SELECT loader_history.attach_foreign_key().';
        WHEN object_not_in_prerequisite_state THEN -- as PostgreSQL 18 and later say of one that is NOT ENFORCED
            RAISE WARNING 'foreign key % is NOT VALID: %', key.name, SQLERRM
                USING HINT = format('ALTER TABLE loader.execution_history ALTER CONSTRAINT %I ENFORCED enforces and validates it.', key.name);
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loader_history.validate_foreign_key() IS
    'Internal: validates a foreign key that is NOT VALID, or warns of the executions that prevent that';

CREATE OR REPLACE FUNCTION loader_history.add_foreign_key() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    state record;
BEGIN
    LOCK TABLE loader.execution_history IN SHARE ROW EXCLUSIVE MODE;
    -- First, so that the trigger does not hear of what follows.
    ALTER EVENT TRIGGER loader_history_foreign_key DISABLE;
    ALTER TABLE loader.execution_history DISABLE TRIGGER request_foreign_key;
    LOCK TABLE loader.loader IN SHARE ROW EXCLUSIVE MODE;
    -- Looked at again: much may have happened while this session waited.
    SELECT * INTO state FROM loader_history.foreign_key_state();
    IF state.obstacle IS NOT NULL THEN
        RAISE EXCEPTION '%', state.obstacle USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF NOT state.present THEN
        ALTER TABLE loader.execution_history
            ADD CONSTRAINT execution_history_loader_id_fkey
            FOREIGN KEY (loader_id) REFERENCES loader.loader (id) NOT VALID;
        COMMENT ON CONSTRAINT execution_history_loader_id_fkey ON loader.execution_history IS
            'Every execution is one of a loader that exists';
        PERFORM loader_history.validate_foreign_key();
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.add_foreign_key() IS
    'Internal: adds the foreign key, and disables the triggers that attach it';

CREATE OR REPLACE FUNCTION loader_history.attach_foreign_key() RETURNS boolean
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    state record;
BEGIN
    LOCK TABLE loader_history.foreign_key_request IN ACCESS SHARE MODE;
    IF NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
                      AND d.objid = 'loader_history.foreign_key_request'::regclass
                      AND d.deptype = 'e' AND e.extname = 'loader_history')
    THEN
        RAISE EXCEPTION 'extension loader_history was dropped meanwhile'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Try again.';
    END IF;
    PERFORM loader_history.require_writable();
    SELECT * INTO state FROM loader_history.foreign_key_state();
    IF state.obstacle IS NOT NULL THEN
        RAISE NOTICE 'the foreign key of loader.execution_history cannot be attached: %', state.obstacle
            USING HINT = 'It attaches itself when loader.loader gets a primary key on id.';
        RETURN false;
    ELSIF state.present THEN
        PERFORM loader_history.validate_foreign_key();
    ELSE
        BEGIN
            PERFORM loader_history.add_foreign_key();
        EXCEPTION WHEN duplicate_object THEN
            NULL; -- another session has added it, which this transaction's snapshot does not show
        END;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loader_history.attach_foreign_key() IS
    'Attaches the foreign key to loader.loader, or validates it, if that is possible; returns whether it exists';

CREATE OR REPLACE FUNCTION loader_history.attach_foreign_key_on_ddl() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '200ms'
AS $$
DECLARE
    state record;
BEGIN
    IF EXISTS (
        SELECT
          FROM pg_event_trigger_ddl_commands() AS command
          LEFT JOIN pg_index AS i ON i.indexrelid = command.objid
          JOIN pg_class AS c ON c.oid = coalesce(i.indrelid, command.objid)
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE command.classid = 'pg_class'::regclass
           AND n.nspname = 'loader' AND c.relname IN ('loader', 'execution_history'))
    THEN
        LOCK TABLE loader_history.foreign_key_request IN ACCESS SHARE MODE;
        IF NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
                          AND d.objid = 'loader_history.foreign_key_request'::regclass
                          AND d.deptype = 'e' AND e.extname = 'loader_history')
        THEN
            RAISE EXCEPTION 'extension loader_history was dropped meanwhile'
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Try again.';
        END IF;
        SELECT * INTO state FROM loader_history.foreign_key_state();
        IF state.obstacle IS NULL THEN
            PERFORM loader_history.add_foreign_key();
        END IF;
    END IF;
-- The DDL is not to fail for this, not even of its own timeout.
EXCEPTION WHEN query_canceled OR OTHERS THEN
    RAISE WARNING 'the foreign key of loader.execution_history was not attached: %', SQLERRM
        USING HINT = 'Run SELECT loader_history.attach_foreign_key() when loader.loader is not in use.';
END
$$;
COMMENT ON FUNCTION loader_history.attach_foreign_key_on_ddl() IS
    'Internal: event trigger that attaches the foreign key when DDL has brought loader.loader or its key';

CREATE OR REPLACE FUNCTION loader_history.request_foreign_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    requested_in constant text := 'loader.foreign_key_requested_in';
    this_transaction constant text := pg_current_xact_id()::text;
BEGIN
    -- For the million rows of a restore: a setting is quicker to ask than a table.
    IF current_setting(requested_in, true) IS DISTINCT FROM this_transaction THEN
        PERFORM set_config(requested_in, this_transaction, true);
        -- ENABLE TRIGGER ALL, as a data-only restore ends with, does not mean that the key is wanted.
        IF EXISTS (SELECT FROM pg_event_trigger
                    WHERE evtname = 'loader_history_foreign_key' AND evtenabled <> 'D')
        THEN
            INSERT INTO loader_history.foreign_key_request VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING;
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loader_history.request_foreign_key() IS
    'Internal: trigger by which a transaction that copies history requests the foreign key';

CREATE OR REPLACE FUNCTION loader_history.attach_foreign_key_on_commit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '500ms' -- longer than DDL that has met this transaction still waits
AS $$
DECLARE
    state record;
    previous_role text := current_setting('session_replication_role');
BEGIN
    -- Foreign keys that refer to it would run their owners' code.
    PERFORM set_config('session_replication_role', 'replica', true);
    DELETE FROM loader_history.foreign_key_request WHERE requested_in = NEW.requested_in;
    PERFORM set_config('session_replication_role', previous_role, true);
    BEGIN
        IF EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                    WHERE n.nspname = 'loader' AND c.relname = 'loader' AND c.relkind IN ('r', 'p'))
        THEN
            -- Waits for DDL that is about to commit the primary key.
            LOCK TABLE loader.loader IN ACCESS SHARE MODE;
            SELECT * INTO state FROM loader_history.foreign_key_state();
            IF state.obstacle IS NULL THEN
                PERFORM loader_history.add_foreign_key();
            END IF;
        END IF;
    -- Nor is the copy.
    EXCEPTION WHEN query_canceled OR OTHERS THEN
        RAISE WARNING 'the foreign key of loader.execution_history was not attached: %', SQLERRM
            USING HINT = 'Run SELECT loader_history.attach_foreign_key() when loader.loader is not in use.';
    END;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loader_history.attach_foreign_key_on_commit() IS
    'Internal: trigger that attaches the foreign key when a transaction that requested it commits';

COMMENT ON TABLE loader_history.foreign_key_request IS
    'Internal: transactions that attach the foreign key when they commit; empty otherwise';

CREATE OR REPLACE FUNCTION loader_history.refuse_foreign_trigger() RETURNS event_trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refused record;
BEGIN
    SELECT t.tgname AS name, t.tgrelid::regclass AS target, foreign_code.description AS code INTO refused
      FROM pg_event_trigger_ddl_commands() AS command
      JOIN pg_trigger AS t ON command.classid = 'pg_trigger'::regclass AND t.oid = command.objid
      JOIN pg_depend AS member ON member.classid = 'pg_class'::regclass AND member.objid = t.tgrelid
                              AND member.refclassid = 'pg_extension'::regclass AND member.deptype = 'e'
      JOIN pg_extension AS e ON e.oid = member.refobjid AND e.extname = 'loader_history'
      -- Its function, and what its condition calls.
      LEFT JOIN LATERAL (
               SELECT pg_describe_object(d.refclassid, d.refobjid, 0) AS description
                 FROM pg_depend AS d
                 LEFT JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
                 LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
                 LEFT JOIN pg_type AS y ON d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid
                WHERE d.classid = 'pg_trigger'::regclass AND d.objid = t.oid
                  AND coalesce(p.proowner, o.oprowner, y.typowner) IN (SELECT oid FROM pg_roles WHERE NOT rolsuper)
                LIMIT 1
           ) AS foreign_code ON true
     WHERE foreign_code.description IS NOT NULL
        OR NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'trigger % on % would run with a superuser''s rights', quote_ident(refused.name), refused.target
            USING ERRCODE = 'insufficient_privilege',
                  DETAIL = coalesce(format('It calls %s, which belongs to no superuser.', refused.code),
                                    'Only a superuser may create it.'),
                  HINT = 'A superuser who trusts its function may take that over with ALTER FUNCTION ... OWNER TO, and create the trigger.';
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.refuse_foreign_trigger() IS
    'Internal: event trigger that refuses triggers by which other roles would run code as a superuser';
COMMENT ON EVENT TRIGGER loader_history_triggers IS
    'Refuses triggers on the tables of loader_history by which other roles would run code as a superuser';

-- Functions that run with a superuser's rights find their tables by name. The schema loader may belong to
-- anybody, who could rename it and put tables of the same names into another one.
CREATE FUNCTION loader_history.refuse_schema_rename() RETURNS event_trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() AS command
                 JOIN pg_extension AS e ON e.extname = 'loader_history'
                 JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
                                    AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
                 JOIN pg_proc AS p ON p.oid = d.objid
                 JOIN pg_namespace AS n ON n.oid = p.pronamespace
                WHERE command.classid = 'pg_namespace'::regclass AND command.objid = n.oid
                  AND n.nspname NOT IN ('loader', 'loader_history'))
    THEN
        RAISE EXCEPTION 'the schemas of extension loader_history cannot be renamed'
            USING ERRCODE = 'insufficient_privilege',
                  DETAIL = 'Functions that run with a superuser''s rights rely on their names.',
                  HINT = 'DROP EXTENSION loader_history first; that drops the history.';
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.refuse_schema_rename() IS
    'Internal: event trigger that refuses to rename the schemas loader and loader_history';

CREATE EVENT TRIGGER loader_history_schemas ON ddl_command_end
    WHEN TAG IN ('ALTER SCHEMA')
    EXECUTE FUNCTION loader_history.refuse_schema_rename();
ALTER EVENT TRIGGER loader_history_schemas ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER loader_history_schemas IS
    'Refuses to rename the schemas of loader_history';

-- Its columns have other names, which makes it another function. Those who could call the last one can call it.
DO $$
BEGIN
    PERFORM set_config('loader.recorder_status_acl', proacl::text, true)
       FROM pg_proc WHERE oid = 'loader.recorder_status()'::regprocedure;
END
$$;
DROP FUNCTION loader.recorder_status();
CREATE OR REPLACE FUNCTION loader_history.recorder_state(
    OUT preloaded boolean, OUT worker_pid integer, OUT queue_depth integer, OUT last_error text,
    OUT last_error_at timestamptz, OUT obstacle text
) RETURNS SETOF record
    LANGUAGE c VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'recorder_state_wrapper';
COMMENT ON FUNCTION loader_history.recorder_state() IS
    'Internal: the state of this database''s background worker';

CREATE FUNCTION loader.recorder_status(
    OUT preloaded boolean, OUT worker_pid integer, OUT queue_depth integer, OUT watched_running bigint,
    OUT unwatched_running bigint, OUT last_error text, OUT last_error_at timestamptz,
    OUT foreign_key boolean, OUT detail text
)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    recorder record;
    key record;
BEGIN
    LOCK TABLE loader_history.foreign_key_request IN ACCESS SHARE MODE;
    IF NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
                      AND d.objid = 'loader_history.foreign_key_request'::regclass
                      AND d.deptype = 'e' AND e.extname = 'loader_history')
    THEN
        RAISE EXCEPTION 'extension loader_history was dropped meanwhile'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Try again.';
    END IF;
    SELECT * INTO recorder FROM loader_history.recorder_state();
    preloaded := recorder.preloaded;
    worker_pid := recorder.worker_pid;
    queue_depth := recorder.queue_depth;
    last_error := recorder.last_error;
    last_error_at := recorder.last_error_at;
    SELECT count(*) INTO watched_running FROM loader_history.watched_transaction;
    SELECT count(*) INTO unwatched_running
      FROM loader.execution_history AS running
     WHERE running.status = 'RUNNING'
       AND NOT EXISTS (SELECT FROM loader_history.watched_transaction WHERE execution_id = running.id);
    SELECT * INTO key FROM loader_history.foreign_key_state();
    foreign_key := key.present AND key.valid;
    IF recorder.obstacle IS NOT NULL THEN
        detail := 'Starts are recorded in the caller''s own transaction: ' || recorder.obstacle || '.';
    END IF;
    IF NOT key.present THEN
        detail := concat_ws(' ', detail, 'The foreign key to loader.loader is not there: '
            || coalesce(key.obstacle,
                        'it was dropped, or waits for SELECT loader_history.attach_foreign_key()') || '.');
    ELSIF NOT key.valid THEN
        detail := concat_ws(' ', detail, 'The foreign key to loader.loader is NOT VALID: the history may name loaders that it does not have. SELECT loader_history.attach_foreign_key() validates it, or says why not.');
    END IF;
END
$$;
COMMENT ON FUNCTION loader.recorder_status() IS
    'One row: whether the library is preloaded and its worker at work, the executions that run, and whether the foreign key is there and valid, or why not';

CREATE OR REPLACE FUNCTION loader_history.grant_execute(role regrole, functions regprocedure[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function regprocedure;
BEGIN
    IF role IS NULL THEN
        RAISE EXCEPTION 'role must not be NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Pass the name of a role.';
    ELSIF NOT EXISTS (SELECT FROM pg_roles WHERE oid = role) THEN
        RAISE EXCEPTION 'role with OID % does not exist', role::oid
            USING ERRCODE = 'undefined_object', HINT = 'Pass the name of a role.';
    END IF;
    PERFORM loader_history.require_writable();
    -- Two sessions that grant at the same time would fail each other with an internal error.
    LOCK TABLE loader_history.foreign_key_request IN SHARE ROW EXCLUSIVE MODE;
    EXECUTE format('GRANT USAGE ON SCHEMA loader TO %s', role);
    FOREACH function IN ARRAY functions LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', function, role);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loader_history.grant_execute(regrole, regprocedure[]) IS
    'Internal: grants a role the schema''s USAGE and some functions';

CREATE OR REPLACE FUNCTION loader_history.grant_recorder(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    LOCK TABLE loader_history.foreign_key_request IN ACCESS SHARE MODE;
    IF NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
                      AND d.objid = 'loader_history.foreign_key_request'::regclass
                      AND d.deptype = 'e' AND e.extname = 'loader_history')
    THEN
        RAISE EXCEPTION 'extension loader_history was dropped meanwhile'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Try again.';
    END IF;
    PERFORM loader_history.grant_execute(role, ARRAY[
        'loader.record_execution_start(bigint)',
        'loader.record_execution_end(bigint, text, bigint, text)']::regprocedure[]);
END
$$;
COMMENT ON FUNCTION loader_history.grant_recorder(regrole) IS
    'Grants a role what a loader needs: to record starts and ends';

CREATE OR REPLACE FUNCTION loader_history.grant_reader(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    LOCK TABLE loader_history.foreign_key_request IN ACCESS SHARE MODE;
    IF NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
                      AND d.objid = 'loader_history.foreign_key_request'::regclass
                      AND d.deptype = 'e' AND e.extname = 'loader_history')
    THEN
        RAISE EXCEPTION 'extension loader_history was dropped meanwhile'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Try again.';
    END IF;
    PERFORM loader_history.grant_execute(role, ARRAY[
        'loader.get_execution_history(bigint, integer, text, text, timestamptz, timestamptz)',
        'loader.recorder_status()']::regprocedure[]);
    EXECUTE format('GRANT SELECT ON loader.activity_feed, loader.execution_details, loader.loader_summary, '
                   'loader.failed_loader_counts TO %s', role);
END
$$;
COMMENT ON FUNCTION loader_history.grant_reader(regrole) IS
    'Grants a role what a backend needs: the four views, get_execution_history and recorder_status';

-- Of what is new. Functions come with EXECUTE for PUBLIC, and default privileges may have granted more, to anybody.
DO $$
DECLARE
    member record;
BEGIN
    FOR member IN
        SELECT CASE WHEN p.oid IS NOT NULL THEN 'FUNCTION ' || p.oid::regprocedure
                    WHEN n.oid IS NOT NULL THEN 'SCHEMA ' || n.oid::regnamespace
                    WHEN c.relkind = 'S' THEN 'SEQUENCE ' || c.oid::regclass
                    ELSE 'TABLE ' || c.oid::regclass END AS object,
               string_agg(DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, ', ') AS grantees
          FROM pg_depend AS d
          JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
          LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
          LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
          LEFT JOIN pg_namespace AS n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
         CROSS JOIN aclexplode(coalesce(c.relacl, n.nspacl, p.proacl, acldefault('f', p.proowner))) AS a
         WHERE e.extname = 'loader_history' AND d.deptype = 'e'
           AND a.grantee <> coalesce(c.relowner, n.nspowner, p.proowner)
           AND (n.oid IS NOT NULL
                OR c.oid IN ('loader_history.prepared_change'::regclass, 'loader_history.purge_position'::regclass,
                             'loader_history.last_timeline'::regclass)
                OR p.oid IN ('loader_history.history_changed()'::regprocedure,
                             'loader_history.drop_replicated_row()'::regprocedure,
                             'loader_history.refuse_schema_rename()'::regprocedure,
                             'loader.recorder_status()'::regprocedure))
         GROUP BY p.oid, n.oid, c.oid, c.relkind
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', member.object, member.grantees);
    END LOOP;
END
$$;

DO $$
DECLARE
    held record;
BEGIN
    FOR held IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS role, a.is_grantable
          FROM aclexplode(current_setting('loader.recorder_status_acl')::aclitem[]) AS a
         WHERE a.grantee <> (SELECT proowner FROM pg_proc WHERE oid = 'loader.recorder_status()'::regprocedure)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION loader.recorder_status() TO %s%s', held.role,
                       CASE WHEN held.is_grantable THEN ' WITH GRANT OPTION' END);
    END LOOP;
END
$$;

-- The owners of the schema and of the database get what their migrations and dumps need, to grant it further.
DO $$
DECLARE
    schema_owner oid := (SELECT nspowner FROM pg_namespace WHERE nspname = 'loader');
    database_owner oid := (SELECT datdba FROM pg_database WHERE datname = current_database());
    owner oid;
    privileges text;
BEGIN
    FOR owner IN SELECT oid FROM pg_roles WHERE oid IN (schema_owner, database_owner) AND NOT rolsuper LOOP
        FOREACH privileges IN ARRAY ARRAY[
            'USAGE ON SCHEMA loader_history',
            'SELECT ON ALL TABLES IN SCHEMA loader_history',
            'SELECT ON ALL SEQUENCES IN SCHEMA loader_history',
            'SELECT ON TABLE loader.execution_history, loader.activity_feed, loader.execution_details, '
            'loader.loader_summary, loader.failed_loader_counts',
            'SELECT ON SEQUENCE loader.execution_history_id_seq',
            'EXECUTE ON FUNCTION loader.record_execution_start(bigint), '
            'loader.record_execution_end(bigint, text, bigint, text), '
            'loader.get_execution_history(bigint, integer, text, text, timestamptz, timestamptz), '
            'loader.recorder_status()']
        LOOP
            EXECUTE format('GRANT %s TO %s WITH GRANT OPTION', privileges, owner::regrole);
        END LOOP;
        IF owner <> schema_owner THEN
            EXECUTE format('GRANT USAGE ON SCHEMA loader TO %s WITH GRANT OPTION', owner::regrole);
        END IF;
    END LOOP;
END
$$;

-- What a script grants counts as the extension's own, and pg_dump leaves it out. These grants it is to dump: a
-- restore may have other owners, and a role that is dropped must not be left behind. Nor is the schema
-- loader the extension's own.
UPDATE pg_init_privs AS i
   SET initprivs = ARRAY(SELECT item FROM unnest(i.initprivs) AS item, aclexplode(ARRAY[item]) AS a
                          GROUP BY item HAVING bool_and(a.grantee = m.owner))
  FROM (SELECT d.classid, d.objid, coalesce(c.relowner, n.nspowner, p.proowner) AS owner
          FROM pg_depend AS d
          JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
          LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
          LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
          LEFT JOIN pg_namespace AS n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
         WHERE e.extname = 'loader_history' AND d.deptype = 'e') AS m
 WHERE i.classoid = m.classid AND i.objoid = m.objid AND i.objsubid = 0 AND i.privtype = 'e';
DELETE FROM pg_init_privs
 WHERE classoid = 'pg_namespace'::regclass AND objoid = 'loader'::regnamespace AND privtype = 'e';
-- PostgreSQL 17 and later record a dependency for each role in initial privileges.
DELETE FROM pg_shdepend AS s
 WHERE s.deptype = 'i'
   AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND (s.classid = 'pg_namespace'::regclass AND s.objid = 'loader'::regnamespace
        OR EXISTS (SELECT FROM pg_depend AS d
                     JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
                    WHERE e.extname = 'loader_history' AND d.deptype = 'e'
                      AND d.classid = s.classid AND d.objid = s.objid));

-- The setting's new name, where it is set for a database or a role.
UPDATE pg_db_role_setting
   SET setconfig = ARRAY(SELECT regexp_replace(item, '^loader_history\.durable=', 'loader_history.autonomous_start=')
                           FROM unnest(setconfig) WITH ORDINALITY AS s (item, place) ORDER BY place)
 WHERE EXISTS (SELECT FROM unnest(setconfig) AS item WHERE item LIKE 'loader\_history.durable=%');
