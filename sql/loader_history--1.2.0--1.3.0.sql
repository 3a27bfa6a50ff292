-- loader_history 1.2.0 to 1.3.0: starts that no rollback undoes, and outcomes that say what became of the
-- transaction.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- What the background worker remembers beside the history. None of these tables is dumped: transaction ids
-- mean nothing in another cluster.

-- Which transaction started an execution, while its end is not known.
CREATE TABLE loader.binding (
    execution_id bigint NOT NULL,
    xid          xid8   NOT NULL,
    subxid       xid8,
    CONSTRAINT binding_pkey PRIMARY KEY (execution_id)
)
-- To give back its last pages, vacuum locks a table against all others.
WITH (vacuum_truncate = off);
COMMENT ON TABLE loader.binding IS
    'Internal: the transactions that started executions and were open when the background worker last looked. Only the worker writes it.';
COMMENT ON COLUMN loader.binding.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader.binding.xid IS 'The transaction that started it';
COMMENT ON COLUMN loader.binding.subxid IS
    'The subtransaction of it that did; NULL where it was in none';
COMMENT ON CONSTRAINT binding_pkey ON loader.binding IS 'An execution was started once';
COMMENT ON INDEX loader.binding_pkey IS 'Finds the binding of an execution';

-- An execution that the server ended: the loader may still say how it ended. The end tells it from a
-- later execution of the same id, where somebody has started the sequence anew.
CREATE TABLE loader.derived_failure (
    execution_id  bigint      NOT NULL,
    execution_end timestamptz NOT NULL,
    CONSTRAINT derived_failure_pkey PRIMARY KEY (execution_id)
);
COMMENT ON TABLE loader.derived_failure IS
    'Internal: executions that the server ended as FAILED since the transaction that started them was rolled back, until the loader reports otherwise.';
COMMENT ON COLUMN loader.derived_failure.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader.derived_failure.execution_end IS 'When the server ended it';
COMMENT ON CONSTRAINT derived_failure_pkey ON loader.derived_failure IS
    'The server ends an execution once';
COMMENT ON INDEX loader.derived_failure_pkey IS 'Finds out whether the server ended an execution';

-- A start that the worker had taken and that its caller, tired of waiting, has recorded under another id.
CREATE TABLE loader.abandoned_start (
    execution_id bigint NOT NULL,
    xid          xid8   NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT abandoned_start_pkey PRIMARY KEY (execution_id)
);
COMMENT ON TABLE loader.abandoned_start IS
    'Internal: executions that the background worker may have recorded after their callers had recorded them otherwise. It removes them.';
COMMENT ON COLUMN loader.abandoned_start.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader.abandoned_start.xid IS 'The transaction that has recorded it otherwise';
COMMENT ON CONSTRAINT abandoned_start_pkey ON loader.abandoned_start IS
    'A start is given up once';
COMMENT ON INDEX loader.abandoned_start_pkey IS 'Finds out whether a start was given up';

-- A publication FOR ALL TABLES would bring another cluster's transaction ids.
CREATE FUNCTION loader.refuse_foreign_binding() RETURNS trigger
    LANGUAGE c
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'refuse_foreign_binding_wrapper';
COMMENT ON FUNCTION loader.refuse_foreign_binding() IS
    'Internal: trigger that drops rows of loader.binding that the background worker of this cluster did not write';
CREATE TRIGGER refuse_foreign_binding BEFORE INSERT ON loader.binding
    FOR EACH ROW EXECUTE FUNCTION loader.refuse_foreign_binding();
COMMENT ON TRIGGER refuse_foreign_binding ON loader.binding IS
    'Drops what the background worker of this cluster did not write';
ALTER TABLE loader.binding ENABLE ALWAYS TRIGGER refuse_foreign_binding;

CREATE FUNCTION loader.recorder_state(
    OUT preloaded boolean, OUT worker_pid integer, OUT queue_depth integer, OUT last_error text,
    OUT last_error_at timestamptz, OUT obstacle text
) RETURNS SETOF record
    LANGUAGE c VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'recorder_state_wrapper';
COMMENT ON FUNCTION loader.recorder_state() IS
    'Internal: how the background worker of this database is';

CREATE OR REPLACE FUNCTION loader.recorder_status(
    OUT preloaded boolean, OUT worker_pid integer, OUT queue_depth integer, OUT open_bindings bigint,
    OUT unbound_running bigint, OUT last_error text, OUT last_error_at timestamptz,
    OUT foreign_key boolean, OUT detail text
)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    recorder record;
    key record;
BEGIN
    SELECT * INTO recorder FROM loader.recorder_state();
    preloaded := recorder.preloaded;
    worker_pid := recorder.worker_pid;
    queue_depth := recorder.queue_depth;
    last_error := recorder.last_error;
    last_error_at := recorder.last_error_at;
    SELECT count(*) INTO open_bindings FROM loader.binding;
    SELECT count(*) INTO unbound_running
      FROM loader.execution_history AS running
     WHERE running.status = 'RUNNING'
       AND NOT EXISTS (SELECT FROM loader.binding WHERE execution_id = running.id);
    SELECT * INTO key FROM loader.foreign_key_state();
    foreign_key := key.present AND key.valid;
    IF recorder.obstacle IS NOT NULL THEN
        detail := 'Starts are recorded in the caller''s own transaction: ' || recorder.obstacle || '.';
    END IF;
    IF NOT key.present THEN
        detail := concat_ws(' ', detail, 'The foreign key to loader.loader is not there: '
            || coalesce(key.obstacle,
                        'it was dropped, or waits for SELECT loader.attach_foreign_key()') || '.');
    ELSIF NOT key.valid THEN
        detail := concat_ws(' ', detail, 'The foreign key to loader.loader is NOT VALID: the history may name loaders that it does not have. SELECT loader.attach_foreign_key() validates it, or says why not.');
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION loader.purge_execution_history(older_than interval, max_rows bigint DEFAULT 10000)
    RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cutoff timestamptz;
    deleted bigint;
BEGIN
    IF older_than IS NULL OR max_rows IS NULL THEN
        RAISE EXCEPTION '% must not be NULL',
            CASE WHEN older_than IS NULL THEN 'older_than' ELSE 'max_rows' END
            USING ERRCODE = 'null_value_not_allowed',
                  HINT = 'Pass an age such as ''90 days'', and a number of rows or nothing for 10000.';
    ELSIF older_than < '0'::interval THEN
        RAISE EXCEPTION 'older_than % is negative', older_than
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass an age such as ''90 days''.';
    ELSIF max_rows < 0 THEN
        RAISE EXCEPTION 'max_rows % is negative', max_rows
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Pass the number of rows to delete at most.';
    END IF;
    PERFORM loader.require_writable();

    BEGIN
        cutoff := least(clock_timestamp() - older_than, clock_timestamp());
    EXCEPTION WHEN datetime_field_overflow THEN
        RETURN 0; -- nothing is that old
    END;

    -- What is newer never goes before what is older, so a row that another session purges meanwhile
    -- cannot be the newer one that allows this one to go.
    WITH purged AS (
        DELETE FROM loader.execution_history
         WHERE id = ANY (ARRAY(
                   SELECT old.id
                     FROM loader.execution_history AS old
                    WHERE old.execution_end < cutoff
                      AND (old.status = 'SUCCESS'
                           AND EXISTS (SELECT FROM loader.execution_history AS newer
                                        WHERE newer.loader_id = old.loader_id AND newer.status = 'SUCCESS'
                                          AND (newer.execution_end, newer.id) > (old.execution_end, old.id))
                           OR old.status = 'FAILED'
                           AND EXISTS (SELECT FROM loader.execution_history AS newer
                                        WHERE newer.loader_id = old.loader_id AND newer.status = 'FAILED'
                                          AND (newer.execution_end, newer.id) > (old.execution_end, old.id)))
                      -- IS NOT FALSE keeps this a probe a row; a join would look at all rows first.
                      AND EXISTS (SELECT FROM loader.execution_history AS newer
                                   WHERE newer.loader_id = old.loader_id
                                     AND (newer.execution_start, newer.id) > (old.execution_start, old.id))
                          IS NOT FALSE
                    ORDER BY old.execution_end, old.id
                    LIMIT max_rows
                      FOR UPDATE SKIP LOCKED))
        RETURNING id
    ), unmarked AS (
        DELETE FROM loader.derived_failure WHERE execution_id = ANY (ARRAY(SELECT id FROM purged))
    )
    SELECT count(*) INTO deleted FROM purged;
    RETURN deleted;
END
$$;

REVOKE ALL ON TABLE loader.binding, loader.derived_failure, loader.abandoned_start FROM PUBLIC;
REVOKE ALL ON FUNCTION loader.refuse_foreign_binding(), loader.recorder_state() FROM PUBLIC;
