-- How the recorder is. This version records in the caller's own transaction: it has no worker, no
-- queue and no bindings.

CREATE FUNCTION loader.recorder_status(
    OUT preloaded boolean, OUT worker_pid integer, OUT queue_depth integer, OUT open_bindings bigint,
    OUT unbound_running bigint, OUT last_error text, OUT last_error_at timestamptz,
    OUT foreign_key boolean, OUT detail text
)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    state record;
BEGIN
    SELECT * INTO state FROM loader.foreign_key_state();
    preloaded := false;
    queue_depth := 0;
    open_bindings := 0;
    SELECT count(*) INTO unbound_running FROM loader.execution_history WHERE status = 'RUNNING';
    foreign_key := state.present AND state.valid;
    IF NOT state.present THEN
        detail := 'The foreign key to loader.loader is not there: '
            || coalesce(state.obstacle,
                        'it was dropped, or waits for SELECT loader.attach_foreign_key()') || '.';
    ELSIF NOT state.valid THEN
        detail := 'The foreign key to loader.loader is NOT VALID: the history may name loaders that it does not have. SELECT loader.attach_foreign_key() validates it, or says why not.';
    END IF;
END
$$;
COMMENT ON FUNCTION loader.recorder_status() IS
    'One row: whether the library is preloaded and its worker at work, the executions that run, and whether the foreign key is there and valid, or why not';
