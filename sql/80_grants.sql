-- Privileges: PUBLIC has none, other roles have those that these two functions grant.

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

-- By default PUBLIC has EXECUTE on functions, and default privileges may have granted more, to any
-- role.
DO $$
DECLARE
    member record;
BEGIN
    FOR member IN
        SELECT CASE WHEN p.oid IS NOT NULL THEN 'FUNCTION ' || p.oid::regprocedure
                    WHEN n.oid IS NOT NULL THEN 'SCHEMA ' || n.oid::regnamespace
                    WHEN c.relkind = 'S' THEN 'SEQUENCE ' || c.oid::regclass
                    ELSE 'TABLE ' || c.oid::regclass END AS object,
               string_agg(DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, ', ') AS grantees
          FROM pg_depend AS d
          JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
          LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
          LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
          LEFT JOIN pg_namespace AS n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
         CROSS JOIN aclexplode(coalesce(c.relacl, n.nspacl, p.proacl, acldefault('f', p.proowner))) AS a
         WHERE e.extname = 'loader_history' AND d.deptype = 'e'
           AND a.grantee <> coalesce(c.relowner, n.nspowner, p.proowner)
         GROUP BY p.oid, n.oid, c.oid, c.relkind
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', member.object, member.grantees);
    END LOOP;
END
$$;

-- The owners of the schema and of the database get the privileges that their migrations and dumps
-- need, with grant option.
DO $$
DECLARE
    schema_owner oid := (SELECT nspowner FROM pg_namespace WHERE nspname = 'loader');
    database_owner oid := (SELECT datdba FROM pg_database WHERE datname = current_database());
    owner oid;
    privileges text;
BEGIN
    FOR owner IN SELECT oid FROM pg_roles WHERE oid IN (schema_owner, database_owner) AND NOT rolsuper LOOP
        FOREACH privileges IN ARRAY ARRAY[
            'USAGE ON SCHEMA loader_history',
            'SELECT ON ALL TABLES IN SCHEMA loader_history',
            'SELECT ON ALL SEQUENCES IN SCHEMA loader_history',
            'SELECT ON TABLE loader.execution_history, loader.activity_feed, loader.execution_details, '
            'loader.loader_summary, loader.failed_loader_counts',
            'SELECT ON SEQUENCE loader.execution_history_id_seq',
            'EXECUTE ON FUNCTION loader.record_execution_start(bigint), '
            'loader.record_execution_end(bigint, text, bigint, text), '
            'loader.get_execution_history(bigint, integer, text, text, timestamptz, timestamptz), '
            'loader.recorder_status()']
        LOOP
            EXECUTE format('GRANT %s TO %s WITH GRANT OPTION', privileges, owner::regrole);
        END LOOP;
        IF owner <> schema_owner THEN
            EXECUTE format('GRANT USAGE ON SCHEMA loader TO %s WITH GRANT OPTION', owner::regrole);
        END IF;
    END LOOP;
END
$$;

-- Privileges that a script grants are initial privileges of the extension, which pg_dump does not
-- dump. It is to dump these: a restore may have other owners, and a role that was dropped must not
-- remain in them. Nor are those of the schema loader initial privileges of the extension.
UPDATE pg_init_privs AS i
   SET initprivs = ARRAY(SELECT item FROM unnest(i.initprivs) AS item, aclexplode(ARRAY[item]) AS a
                          GROUP BY item HAVING bool_and(a.grantee = m.owner))
  FROM (SELECT d.classid, d.objid, coalesce(c.relowner, n.nspowner, p.proowner) AS owner
          FROM pg_depend AS d
          JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
          LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
          LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
          LEFT JOIN pg_namespace AS n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
         WHERE e.extname = 'loader_history' AND d.deptype = 'e') AS m
 WHERE i.classoid = m.classid AND i.objoid = m.objid AND i.objsubid = 0 AND i.privtype = 'e';
DELETE FROM pg_init_privs
 WHERE classoid = 'pg_namespace'::regclass AND objoid = 'loader'::regnamespace AND privtype = 'e';
-- PostgreSQL 17 and later record a dependency for each role in initial privileges.
DELETE FROM pg_shdepend AS s
 WHERE s.deptype = 'i'
   AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND (s.classid = 'pg_namespace'::regclass AND s.objid = 'loader'::regnamespace
        OR EXISTS (SELECT FROM pg_depend AS d
                     JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
                    WHERE e.extname = 'loader_history' AND d.deptype = 'e'
                      AND d.classid = s.classid AND d.objid = s.objid));
