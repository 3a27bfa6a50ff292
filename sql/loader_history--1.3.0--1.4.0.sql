-- loader_history 1.3.0 to 1.4.0: events off the commit path, and retention.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- Newest first is read backward: entries in ascending order fill their pages, and write less WAL.
DROP INDEX IF EXISTS loader.execution_history_loader_start_idx,
    loader.execution_history_start_idx,
    loader.execution_history_end_idx,
    loader.execution_history_loader_success_end_idx,
    loader.execution_history_loader_failed_end_idx,
    loader.execution_history_loader_failed_start_idx,
    loader.execution_history_failed_start_idx;

CREATE INDEX execution_history_loader_start_idx
    ON loader.execution_history (loader_id, execution_start, id);
COMMENT ON INDEX loader.execution_history_loader_start_idx IS
    'Pages of one loader, its newest execution; the foreign key';

CREATE INDEX execution_history_start_idx
    ON loader.execution_history (execution_start, id);
COMMENT ON INDEX loader.execution_history_start_idx IS
    'Pages of all loaders; starts in the activity feed';

CREATE INDEX execution_history_end_idx
    ON loader.execution_history (execution_end, id) WHERE execution_end IS NOT NULL;
COMMENT ON INDEX loader.execution_history_end_idx IS
    'Ends in the activity feed; what may be purged';

CREATE INDEX execution_history_loader_success_end_idx
    ON loader.execution_history (loader_id, execution_end, id) WHERE status = 'SUCCESS';
COMMENT ON INDEX loader.execution_history_loader_success_end_idx IS
    'A loader''s newest success';

CREATE INDEX execution_history_loader_failed_end_idx
    ON loader.execution_history (loader_id, execution_end, id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_loader_failed_end_idx IS
    'A loader''s newest failure, and its failures in a row or in a period';

CREATE INDEX execution_history_loader_failed_start_idx
    ON loader.execution_history (loader_id, execution_start, id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_loader_failed_start_idx IS
    'Pages of one loader''s failures';

CREATE INDEX execution_history_failed_start_idx
    ON loader.execution_history (execution_start, id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_failed_start_idx IS
    'Pages of all loaders'' failures';

-- However old the executions that run are, a page of them need not look at what has ended since.
CREATE INDEX execution_history_running_start_idx
    ON loader.execution_history (execution_start, id) WHERE status = 'RUNNING';
COMMENT ON INDEX loader.execution_history_running_start_idx IS
    'Pages of what runs';
COMMENT ON INDEX loader.execution_history_loader_running_idx IS
    'What runs of one loader';

-- Events of transactions prepared for a two-phase commit, until they are committed. Without an index: the
-- background worker empties it.
CREATE TABLE loader.prepared_event (
    id      bigint NOT NULL,
    payload text   NOT NULL
);
-- Without a key, or a publication FOR ALL TABLES would make its deletion fail.
ALTER TABLE loader.prepared_event REPLICA IDENTITY FULL;
COMMENT ON TABLE loader.prepared_event IS
    'Internal: events of prepared transactions, which the background worker emits once they are committed. Only PREPARE TRANSACTION writes it.';
COMMENT ON COLUMN loader.prepared_event.id IS
    'In which order transactions made them';
COMMENT ON COLUMN loader.prepared_event.payload IS 'What NOTIFY is to carry';

COMMENT ON FUNCTION loader.refuse_foreign_binding() IS
    'Internal: trigger that drops rows that replication brings';
-- PREPARE TRANSACTION writes its events without firing triggers.
CREATE TRIGGER refuse_foreign_event BEFORE INSERT ON loader.prepared_event
    FOR EACH ROW EXECUTE FUNCTION loader.refuse_foreign_binding();
COMMENT ON TRIGGER refuse_foreign_event ON loader.prepared_event IS
    'Drops events that another cluster has emitted';
ALTER TABLE loader.prepared_event ENABLE ALWAYS TRIGGER refuse_foreign_event;

REVOKE ALL ON TABLE loader.prepared_event FROM PUBLIC;

-- Triggers on these tables run with a superuser's rights. Only a superuser creates them from here on, and of
-- functions of superusers alone.
CREATE FUNCTION loader.refuse_foreign_trigger() RETURNS event_trigger
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
COMMENT ON FUNCTION loader.refuse_foreign_trigger() IS
    'Internal: event trigger that refuses triggers by which others would run code as a superuser';

CREATE EVENT TRIGGER loader_history_triggers ON ddl_command_end
    WHEN TAG IN ('CREATE TRIGGER')
    EXECUTE FUNCTION loader.refuse_foreign_trigger();
COMMENT ON EVENT TRIGGER loader_history_triggers IS
    'Refuses triggers on the tables of loader_history by which others would run code as a superuser';

REVOKE ALL ON FUNCTION loader.refuse_foreign_trigger() FROM PUBLIC;

-- Those that are there stay.
DO $$
DECLARE
    there record;
BEGIN
    FOR there IN
        SELECT t.tgname AS name, t.tgrelid::regclass AS target, p.oid::regprocedure AS function, p.proowner::regrole AS owner
          FROM pg_trigger AS t
          JOIN pg_depend AS member ON member.classid = 'pg_class'::regclass AND member.objid = t.tgrelid
                                  AND member.refclassid = 'pg_extension'::regclass AND member.deptype = 'e'
          JOIN pg_extension AS e ON e.oid = member.refobjid AND e.extname = 'loader_history'
          JOIN pg_proc AS p ON p.oid = t.tgfoid
         WHERE NOT t.tgisinternal AND p.proowner IN (SELECT oid FROM pg_roles WHERE NOT rolsuper)
    LOOP
        RAISE WARNING 'trigger % on % runs % of role % with a superuser''s rights',
            quote_ident(there.name), there.target, there.function, there.owner
            USING HINT = 'Drop it or, if you trust its function, give that to a superuser with ALTER FUNCTION ... OWNER TO.';
    END LOOP;
END
$$;

-- The rule of what may go is in the library, for the background worker too.
CREATE OR REPLACE FUNCTION loader.purge_execution_history(older_than interval, max_rows bigint DEFAULT 10000)
    RETURNS bigint
    LANGUAGE c
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'purge_execution_history_wrapper';

-- Loader by loader in the order of the indexes, so that each probe finds near it what the last one has
-- read. What failed in two days is read once for the three counts that need it. Most loaders succeed within
-- a day of a failure: a scan reads all matching entries of a page at once, and a day has few.
CREATE OR REPLACE VIEW loader.failed_loader_counts AS
    SELECT count(*) FILTER (WHERE is_failed) AS failed_loaders,
           count(*) FILTER (WHERE failures_24h > 0) AS failed_loaders_24h,
           count(*) FILTER (WHERE failed_previous_24h) AS failed_loaders_previous_24h,
           coalesce(sum(failures_24h), 0)::bigint AS failed_executions_24h
      FROM (SELECT NOT EXISTS (
                       SELECT FROM loader.execution_history AS soon
                        WHERE soon.loader_id = known.loader_id AND soon.status = 'SUCCESS'
                          AND (soon.execution_end, soon.id) > (failure.execution_end, failure.id)
                          AND soon.execution_end < failure.next_day
                   ) AND NOT EXISTS (
                       SELECT FROM loader.execution_history AS later
                        WHERE later.loader_id = known.loader_id AND later.status = 'SUCCESS'
                          AND (later.execution_end, later.id) > (failure.execution_end, failure.id)
                   ) AS is_failed, recent.failures_24h, recent.failed_previous_24h
              FROM (SELECT statement_timestamp() - '24 hours'::interval AS day,
                           statement_timestamp() - '48 hours'::interval AS two_days) AS period
             CROSS JOIN (SELECT DISTINCT loader_id FROM loader.recorded_loader
                          ORDER BY loader_id) AS known
             CROSS JOIN LATERAL (
                       SELECT id, execution_end,
                              least(execution_end, '9999-01-01') + '24 hours'::interval AS next_day
                         FROM loader.execution_history
                        WHERE loader_id = known.loader_id AND status = 'FAILED'
                        ORDER BY execution_end DESC, id DESC LIMIT 1
                   ) AS failure
             CROSS JOIN LATERAL (
                       SELECT count(*) FILTER (WHERE execution_end >= period.day) AS failures_24h,
                              bool_or(execution_end < period.day) AS failed_previous_24h
                         FROM loader.execution_history
                        WHERE failure.execution_end >= period.two_days
                          AND loader_id = known.loader_id AND status = 'FAILED'
                          AND execution_end >= period.two_days
                   ) AS recent
           ) AS loaders;

-- A key may be NOT ENFORCED from PostgreSQL 18 on.
CREATE OR REPLACE FUNCTION loader.validate_foreign_key() RETURNS void
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
        untrusted := loader.untrusted_code(key.target);
        IF to_regclass(name) IS DISTINCT FROM key.target THEN
            untrusted := 'a table that was renamed';
        END IF;
        IF untrusted IS NOT NULL THEN
            RAISE WARNING 'foreign key % is NOT VALID: to validate it would evaluate %', key.name, untrusted
                USING DETAIL = 'What belongs to no superuser is not evaluated with a superuser''s rights. New executions are checked all the same.',
                      HINT = format('Run SELECT loader.attach_foreign_key() in a READ COMMITTED transaction of its own or, if you trust it, ALTER TABLE loader.execution_history VALIDATE CONSTRAINT %I.', key.name);
            CONTINUE;
        END IF;
        BEGIN
            EXECUTE format('ALTER TABLE loader.execution_history VALIDATE CONSTRAINT %I', key.name);
        EXCEPTION WHEN foreign_key_violation THEN
            RAISE WARNING 'foreign key % is NOT VALID: the history names loaders that loader.loader does not have', key.name
                USING DETAIL = 'New executions are checked all the same.',
                      HINT = 'Add those loaders or delete their executions, then run SELECT loader.attach_foreign_key().';
        WHEN object_not_in_prerequisite_state THEN -- as PostgreSQL 18 and later say of one that is NOT ENFORCED
            RAISE WARNING 'foreign key % is NOT VALID: %', key.name, SQLERRM
                USING HINT = format('ALTER TABLE loader.execution_history ALTER CONSTRAINT %I ENFORCED enforces and validates it.', key.name);
        END;
    END LOOP;
END
$$;
