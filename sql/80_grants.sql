-- Who may do what: the owner everything, PUBLIC nothing, others what these two functions grant.

CREATE FUNCTION loader.grant_execute(role regrole, functions regprocedure[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function regprocedure;
BEGIN
    IF role IS NULL THEN
        RAISE EXCEPTION 'role must not be NULL'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'Pass the name of a role.';
    ELSIF NOT EXISTS (SELECT FROM pg_roles WHERE oid = role) THEN
        RAISE EXCEPTION 'role with OID % does not exist', role::oid
            USING ERRCODE = 'undefined_object', HINT = 'Pass the name of a role.';
    END IF;
    PERFORM loader.require_writable();
    -- Two sessions that grant at the same time would fail each other with an internal error.
    LOCK TABLE loader.foreign_key_request IN SHARE ROW EXCLUSIVE MODE;
    EXECUTE format('GRANT USAGE ON SCHEMA loader TO %s', role);
    FOREACH function IN ARRAY functions LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', function, role);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loader.grant_execute(regrole, regprocedure[]) IS
    'Internal: grants a role the schema''s USAGE and some functions';

CREATE FUNCTION loader.grant_recorder(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM loader.grant_execute(role, ARRAY[
        'loader.record_execution_start(bigint)',
        'loader.record_execution_end(bigint, text, bigint, text)']::regprocedure[]);
END
$$;
COMMENT ON FUNCTION loader.grant_recorder(regrole) IS
    'Grants a role what a loader needs: to record starts and ends';

CREATE FUNCTION loader.grant_reader(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM loader.grant_execute(role, ARRAY[
        'loader.get_execution_history(bigint, integer, text, text, timestamptz, timestamptz)',
        'loader.recorder_status()']::regprocedure[]);
    EXECUTE format('GRANT SELECT ON loader.activity_feed, loader.execution_details, loader.loader_summary, '
                   'loader.failed_loader_counts TO %s', role);
END
$$;
COMMENT ON FUNCTION loader.grant_reader(regrole) IS
    'Grants a role what a backend needs: the four views, get_execution_history and recorder_status';

-- Functions come with EXECUTE for PUBLIC, and default privileges may have given more.
DO $$
DECLARE
    object text;
BEGIN
    FOR object IN
        SELECT CASE d.classid WHEN 'pg_proc'::regclass THEN 'FUNCTION ' || d.objid::regprocedure
               ELSE CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || d.objid::regclass END
          FROM pg_depend AS d
          JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
          LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
         WHERE e.extname = 'loader_history' AND d.deptype = 'e'
           AND (d.classid = 'pg_proc'::regclass OR c.relkind IN ('r', 'v', 'S'))
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', object);
    END LOOP;
END
$$;
