-- The state of the recorder.

CREATE FUNCTION loader_history.recorder_state(
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
