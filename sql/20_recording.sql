-- The functions for loaders. SECURITY DEFINER: a recorder needs no privilege on the table.

CREATE FUNCTION loader.record_execution_start(loader_id bigint) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'record_execution_start_wrapper';
COMMENT ON FUNCTION loader.record_execution_start(bigint) IS
    'Records that a loader starts, and returns the execution''s id';

CREATE FUNCTION loader.record_execution_end(
    execution_id bigint, status text, record_count bigint DEFAULT NULL, error_message text DEFAULT NULL
) RETURNS integer
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'record_execution_end_wrapper';
COMMENT ON FUNCTION loader.record_execution_end(bigint, text, bigint, text) IS
    'Records that an execution ended with SUCCESS or FAILED, and returns its duration in whole seconds';
