-- Privileges: PUBLIC has none, others have what these two functions grant.

CREATE FUNCTION loader_history.grant_execute(role regrole, functions regprocedure[]) RETURNS void
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
    PERFORM loader_history.require_writable();
    -- Two sessions that grant at the same time would fail each other with an internal error.
    LOCK TABLE loader_history.foreign_key_request IN SHARE ROW EXCLUSIVE MODE;
    EXECUTE format('GRANT USAGE ON SCHEMA loader TO %s', role);
    FOREACH function IN ARRAY functions LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', function, role);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loader_history.grant_execute(regrole, regprocedure[]) IS
    'Internal: grants a role the schema''s USAGE and some functions';

CREATE FUNCTION loader_history.grant_recorder(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
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
    PERFORM loader_history.grant_execute(role, ARRAY[
        'loader.record_execution_start(bigint)',
        'loader.record_execution_end(bigint, text, bigint, text)']::regprocedure[]);
END
$$;
COMMENT ON FUNCTION loader_history.grant_recorder(regrole) IS
    'Grants a role what a loader needs: to record starts and ends';

CREATE FUNCTION loader_history.grant_reader(role regrole) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
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
    PERFORM loader_history.grant_execute(role, ARRAY[
        'loader.get_execution_history(bigint, integer, text, text, timestamptz, timestamptz)',
        'loader.recorder_status()']::regprocedure[]);
    EXECUTE format('GRANT SELECT ON loader.activity_feed, loader.execution_details, loader.loader_summary, '
                   'loader.failed_loader_counts TO %s', role);
END
$$;
COMMENT ON FUNCTION loader_history.grant_reader(regrole) IS
    'Grants a role what a backend needs: the four views, get_execution_history and recorder_status';

-- Functions come with EXECUTE for PUBLIC, and default privileges may have granted more, to anybody. Then
-- the owners of the schema and of the database get what their migrations and dumps need, to grant it further.
DO $$
DECLARE
    member record;
    owners oid[] := ARRAY(
        SELECT r.oid FROM pg_roles AS r
         WHERE NOT r.rolsuper
           AND (r.oid = (SELECT nspowner FROM pg_namespace WHERE nspname = 'loader')
                OR r.oid = (SELECT datdba FROM pg_database WHERE datname = current_database())));
    role oid;
    privilege text;
BEGIN
    FOR member IN
        SELECT d.classid, d.objid,
               CASE WHEN p.oid IS NOT NULL THEN 'FUNCTION ' || p.oid::regprocedure
                    WHEN n.oid IS NOT NULL THEN 'SCHEMA ' || quote_ident(n.nspname)
                    WHEN c.relkind = 'S' THEN 'SEQUENCE ' || c.oid::regclass
                    ELSE 'TABLE ' || c.oid::regclass END AS object,
               CASE WHEN n.oid IS NOT NULL THEN 'USAGE'
                    WHEN c.oid IS NOT NULL THEN 'SELECT'
                    WHEN p.pronamespace = 'loader'::regnamespace THEN 'EXECUTE' END AS privilege,
               coalesce(p.proowner, n.nspowner, c.relowner) AS owner,
               coalesce(p.proacl, n.nspacl, c.relacl, acldefault('f', p.proowner)) AS acl
          FROM pg_depend AS d
          JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
          LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
                                 AND c.relkind IN ('r', 'v', 'S')
          LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
          LEFT JOIN pg_namespace AS n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
         WHERE e.extname = 'loader_history' AND d.deptype = 'e'
           AND (c.oid IS NOT NULL OR p.oid IS NOT NULL OR n.oid IS NOT NULL)
    LOOP
        FOR role IN SELECT DISTINCT grantee FROM aclexplode(member.acl) WHERE grantee <> member.owner LOOP
            EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', member.object,
                           CASE role WHEN 0 THEN 'PUBLIC' ELSE role::regrole::text END);
        END LOOP;
        IF member.privilege IS NOT NULL THEN
            FOREACH role IN ARRAY owners LOOP
                EXECUTE format('GRANT %s ON %s TO %s WITH GRANT OPTION', member.privilege, member.object,
                               role::regrole);
            END LOOP;
            -- What a script grants counts as the extension's own, which pg_dump leaves out. Neither are these: in
            -- another database others are the owners, and a role that is gone must not be left in it.
            UPDATE pg_init_privs
               SET initprivs = ARRAY(SELECT item FROM unnest(initprivs) AS item
                                      WHERE NOT EXISTS (SELECT FROM aclexplode(ARRAY[item]) AS a
                                                         WHERE a.grantee = ANY (owners)))
             WHERE classoid = member.classid AND objoid = member.objid AND privtype = 'e' AND owners <> '{}';
        END IF;
    END LOOP;
    FOREACH role IN ARRAY owners LOOP
        IF role <> (SELECT nspowner FROM pg_namespace WHERE nspname = 'loader') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA loader TO %s WITH GRANT OPTION', role::regrole);
        END IF;
    END LOOP;
    DELETE FROM pg_init_privs
     WHERE classoid = 'pg_namespace'::regclass AND objoid = 'loader'::regnamespace AND privtype = 'e';
END
$$;
