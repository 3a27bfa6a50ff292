-- The history as pages of JSON, and its purge.

CREATE FUNCTION loader.get_execution_history(
    loader_id bigint DEFAULT NULL, page_size integer DEFAULT 50, "cursor" text DEFAULT NULL,
    status text DEFAULT NULL, started_from timestamptz DEFAULT NULL, started_before timestamptz DEFAULT NULL
) RETURNS jsonb
    LANGUAGE c STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'get_execution_history_wrapper';
COMMENT ON FUNCTION loader.get_execution_history(bigint, integer, text, text, timestamptz, timestamptz) IS
    'A page of executions, newest first, as {"executions": [...], "next_cursor": ...}; pass next_cursor for the next page';

CREATE FUNCTION loader_history.require_writable() RETURNS void
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

-- The library decides which executions may be deleted, for the background worker too.
CREATE FUNCTION loader_history.purge_execution_history(older_than interval, max_rows bigint DEFAULT 10000)
    RETURNS bigint
    LANGUAGE c
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'purge_execution_history_wrapper';
COMMENT ON FUNCTION loader_history.purge_execution_history(interval, bigint) IS
    'Deletes at most max_rows executions that ended longer ago than older_than, oldest first, and returns how many. A RUNNING one stays, and each loader''s newest execution, newest SUCCESS and newest FAILED.';
