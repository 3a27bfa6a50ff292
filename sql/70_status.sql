-- How the recorder is.

CREATE FUNCTION loader.recorder_state(
    OUT preloaded boolean, OUT worker_pid integer, OUT queue_depth integer, OUT last_error text,
    OUT last_error_at timestamptz, OUT obstacle text
) RETURNS SETOF record
    LANGUAGE c VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'recorder_state_wrapper';
COMMENT ON FUNCTION loader.recorder_state() IS
    'Internal: how the background worker of this database is';

CREATE FUNCTION loader.recorder_status(
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
COMMENT ON FUNCTION loader.recorder_status() IS
    'One row: whether the library is preloaded and its worker at work, the executions that run, and whether the foreign key is there and valid, or why not';
