-- loader_history 1.4.0 to 1.5.0.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- A start that was recorded in the transaction of its caller, which is prepared: if that is rolled back, the
-- worker records it as FAILED.
CREATE TABLE loader.prepared_start (
    execution_id    bigint      NOT NULL,
    loader_id       bigint      NOT NULL,
    execution_start timestamptz NOT NULL,
    xid             xid8        NOT NULL,
    abandoned_id    bigint,
    silent          boolean     NOT NULL,
    CONSTRAINT prepared_start_pkey PRIMARY KEY (execution_id)
);
COMMENT ON TABLE loader.prepared_start IS
    'Internal: executions whose start was recorded in a prepared transaction. Only the worker writes it.';
COMMENT ON COLUMN loader.prepared_start.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader.prepared_start.loader_id IS 'Its loader''s id';
COMMENT ON COLUMN loader.prepared_start.execution_start IS 'When it started';
COMMENT ON COLUMN loader.prepared_start.xid IS 'The prepared transaction';
COMMENT ON COLUMN loader.prepared_start.abandoned_id IS
    'The execution that the background worker may have recorded in its stead';
COMMENT ON COLUMN loader.prepared_start.silent IS 'Whether the session wanted no events';
COMMENT ON CONSTRAINT prepared_start_pkey ON loader.prepared_start IS 'An execution was started once';
COMMENT ON INDEX loader.prepared_start_pkey IS 'Finds the start of an execution';
CREATE TRIGGER refuse_foreign_start BEFORE INSERT ON loader.prepared_start
    FOR EACH ROW EXECUTE FUNCTION loader.refuse_foreign_binding();
COMMENT ON TRIGGER refuse_foreign_start ON loader.prepared_start IS
    'Drops what the background worker of this cluster did not write';
ALTER TABLE loader.prepared_start ENABLE ALWAYS TRIGGER refuse_foreign_start;
REVOKE ALL ON TABLE loader.prepared_start FROM PUBLIC;

-- No column more: it would wait for every open load, and all others for it.
COMMENT ON COLUMN loader.binding.subxid IS
    'The subtransaction of it that did, and 2^62 more where the session wanted no events; NULL where it was in none';

-- To give back its last pages, vacuum locks a table against all others: events would be overtaken. No
-- index: creating one would wait for transactions that are prepared.
ALTER TABLE loader.prepared_event SET (vacuum_truncate = off);
COMMENT ON TABLE loader.prepared_event IS
    'Internal: events of prepared transactions, which the background worker emits once they are committed. Only PREPARE TRANSACTION writes it, and a worker that could not emit its own.';

-- Trigger functions in C look up no name by the search path. To set one would cost more than they do.
ALTER FUNCTION loader.notify_execution() RESET search_path;
ALTER FUNCTION loader.refuse_foreign_binding() RESET search_path;
ALTER FUNCTION loader.remember_loader() RESET search_path;
-- It takes the right to its table by itself, where it needs that.
ALTER FUNCTION loader.remember_loader() SECURITY INVOKER;

-- In the role of replication, too, which may be granted.
ALTER EVENT TRIGGER loader_history_triggers ENABLE ALWAYS;

CREATE OR REPLACE FUNCTION loader.attach_foreign_key_on_commit() RETURNS trigger
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
    DELETE FROM loader.foreign_key_request WHERE requested_in = NEW.requested_in;
    PERFORM set_config('session_replication_role', previous_role, true);
    BEGIN
        IF EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                    WHERE n.nspname = 'loader' AND c.relname = 'loader' AND c.relkind IN ('r', 'p'))
        THEN
            -- Waits for DDL that is about to commit the primary key.
            LOCK TABLE loader.loader IN ACCESS SHARE MODE;
            SELECT * INTO state FROM loader.foreign_key_state();
            IF state.obstacle IS NULL THEN
                PERFORM loader.add_foreign_key();
            END IF;
        END IF;
    -- Nor is the copy.
    EXCEPTION WHEN query_canceled OR OTHERS THEN
        RAISE WARNING 'the foreign key of loader.execution_history was not attached: %', SQLERRM
            USING HINT = 'Run SELECT loader.attach_foreign_key() when loader.loader is not in use.';
    END;
    RETURN NULL;
END
$$;
