-- The history as pages, and its purge.

CREATE FUNCTION loader.get_execution_history(
    loader_id bigint DEFAULT NULL, page_size integer DEFAULT 50, "cursor" text DEFAULT NULL,
    status text DEFAULT NULL, started_from timestamptz DEFAULT NULL, started_before timestamptz DEFAULT NULL
) RETURNS jsonb
    LANGUAGE c STABLE PARALLEL RESTRICTED
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'get_execution_history_wrapper';
COMMENT ON FUNCTION loader.get_execution_history(bigint, integer, text, text, timestamptz, timestamptz) IS
    'A page of executions, newest first, as {"executions": [...], "next_cursor": ...}; next_cursor leads to the next page';

CREATE FUNCTION loader.require_writable() RETURNS void
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
COMMENT ON FUNCTION loader.require_writable() IS
    'Internal: error 25006 where the transaction cannot write';

CREATE FUNCTION loader.purge_execution_history(older_than interval, max_rows bigint DEFAULT 10000)
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
COMMENT ON FUNCTION loader.purge_execution_history(interval, bigint) IS
    'Deletes at most max_rows executions that ended longer ago than older_than, oldest first, and returns how many. A RUNNING one stays, and each loader''s newest execution, newest SUCCESS and newest FAILED.';
