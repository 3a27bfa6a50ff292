-- What other roles must not do to the extension's objects, although PostgreSQL would allow it.

-- The functions that loaders call, and the background worker, write the history with a superuser's
-- rights, and triggers run with the rights of the role that writes. So the privilege TRIGGER, which
-- GRANT ALL ON loader.execution_history includes, would be equivalent to a superuser's. Only a
-- superuser may create triggers here, and only with functions that belong to superusers.

CREATE FUNCTION loader_history.refuse_foreign_trigger() RETURNS event_trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refused record;
BEGIN
    SELECT t.tgname AS name, t.tgrelid::regclass AS target, foreign_code.description AS code INTO refused
      FROM pg_event_trigger_ddl_commands() AS command
      JOIN pg_trigger AS t ON command.classid = 'pg_trigger'::regclass AND t.oid = command.objid
      JOIN pg_depend AS member ON member.classid = 'pg_class'::regclass AND member.objid = t.tgrelid
                              AND member.refclassid = 'pg_extension'::regclass AND member.deptype = 'e'
      JOIN pg_extension AS e ON e.oid = member.refobjid AND e.extname = 'loader_history'
      -- Its function, and what its condition calls.
      LEFT JOIN LATERAL (
               SELECT pg_describe_object(d.refclassid, d.refobjid, 0) AS description
                 FROM pg_depend AS d
                 LEFT JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
                 LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
                 LEFT JOIN pg_type AS y ON d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid
                WHERE d.classid = 'pg_trigger'::regclass AND d.objid = t.oid
                  AND coalesce(p.proowner, o.oprowner, y.typowner) IN (SELECT oid FROM pg_roles WHERE NOT rolsuper)
                LIMIT 1
           ) AS foreign_code ON true
     WHERE foreign_code.description IS NOT NULL
        OR NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'trigger % on % would run with a superuser''s rights', quote_ident(refused.name), refused.target
            USING ERRCODE = 'insufficient_privilege',
                  DETAIL = coalesce(format('It calls %s, which belongs to no superuser.', refused.code),
                                    'Only a superuser may create it.'),
                  HINT = 'A superuser who trusts its function may take that over with ALTER FUNCTION ... OWNER TO, and create the trigger.';
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.refuse_foreign_trigger() IS
    'Internal: event trigger that refuses triggers by which other roles would run code as a superuser';

CREATE EVENT TRIGGER loader_history_triggers ON ddl_command_end
    WHEN TAG IN ('CREATE TRIGGER')
    EXECUTE FUNCTION loader_history.refuse_foreign_trigger();
-- Also while session_replication_role is replica, which roles may be allowed to set.
ALTER EVENT TRIGGER loader_history_triggers ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER loader_history_triggers IS
    'Refuses triggers on the tables of loader_history by which other roles would run code as a superuser';

-- Functions that run with a superuser's rights find their tables by name. The schema loader may
-- belong to any role, which could rename it and create tables of the same names in a new one.
CREATE FUNCTION loader_history.refuse_schema_rename() RETURNS event_trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() AS command
                 JOIN pg_extension AS e ON e.extname = 'loader_history'
                 JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
                                    AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
                 JOIN pg_proc AS p ON p.oid = d.objid
                 JOIN pg_namespace AS n ON n.oid = p.pronamespace
                WHERE command.classid = 'pg_namespace'::regclass AND command.objid = n.oid
                  AND n.nspname NOT IN ('loader', 'loader_history'))
    THEN
        RAISE EXCEPTION 'the schemas of extension loader_history cannot be renamed'
            USING ERRCODE = 'insufficient_privilege',
                  DETAIL = 'Functions that run with a superuser''s rights rely on their names.',
                  HINT = 'DROP EXTENSION loader_history first; that drops the history.';
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.refuse_schema_rename() IS
    'Internal: event trigger that refuses to rename the schemas loader and loader_history';

CREATE EVENT TRIGGER loader_history_schemas ON ddl_command_end
    WHEN TAG IN ('ALTER SCHEMA')
    EXECUTE FUNCTION loader_history.refuse_schema_rename();
ALTER EVENT TRIGGER loader_history_schemas ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER loader_history_schemas IS
    'Refuses to rename the schemas of loader_history';
