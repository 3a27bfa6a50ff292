-- loader_history 1.3.0 to 1.4.0: events off the commit path, and retention.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- Declared with the rule of what may go in src/purge.rs, which the worker goes by too.
CREATE FUNCTION loader.purge_before(cutoff timestamptz, max_rows bigint) RETURNS bigint
    LANGUAGE c
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'purge_before_wrapper';
COMMENT ON FUNCTION loader.purge_before(timestamptz, bigint) IS
    'Internal: deletes at most max_rows executions that ended before cutoff, of those that may go, and returns how many';

CREATE OR REPLACE FUNCTION loader.purge_execution_history(older_than interval, max_rows bigint DEFAULT 10000)
    RETURNS bigint
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cutoff timestamptz;
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

    RETURN loader.purge_before(cutoff, max_rows);
END
$$;

REVOKE ALL ON FUNCTION loader.purge_before(timestamptz, bigint) FROM PUBLIC;
