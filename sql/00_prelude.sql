-- loader_history: run by CREATE EXTENSION, as a superuser, in a schema that others may own.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
BEGIN
    IF pg_catalog.getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'loader_history needs a database in encoding UTF8, and this one is in %',
            pg_catalog.getdatabaseencoding()
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Create the database with CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0.';
    END IF;
END
$$;

-- The functions of this extension that run with a superuser's rights name what they use, as
-- loader.something. Whoever owns the schema could rename it and put another in its place, so it must
-- not belong to anybody who is no superuser. Its owner keeps the right to create and to grant in it.
DO $$
DECLARE
    former text;
BEGIN
    SELECT quote_ident(r.rolname) INTO former
      FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner
     WHERE n.nspname = 'loader' AND NOT r.rolsuper;
    IF former IS NOT NULL THEN
        ALTER SCHEMA loader OWNER TO CURRENT_USER;
        EXECUTE format('GRANT USAGE, CREATE ON SCHEMA loader TO %s WITH GRANT OPTION', former);
        -- What an extension's script grants counts as the extension's own, and pg_dump leaves it out; the
        -- schema is no part of the extension, and its grants are to be dumped.
        DELETE FROM pg_init_privs
         WHERE classoid = 'pg_namespace'::regclass AND objoid = 'loader'::regnamespace AND privtype = 'e';
        -- CREATE EXTENSION silences the notices of its script.
        IF current_setting('client_min_messages') = 'warning' THEN
            PERFORM set_config('client_min_messages', 'notice', true);
        END IF;
        RAISE NOTICE 'schema loader belongs to % now, and no longer to %', quote_ident(current_user), former
            USING DETAIL = 'Functions that run with a superuser''s rights rely on the schema.',
                  HINT = format('%s may create objects in it as before, and grant these rights to others.', former);
    END IF;
    IF (SELECT extnamespace FROM pg_extension WHERE extname = 'loader_history')
       IS DISTINCT FROM to_regnamespace('loader')
    THEN
        RAISE EXCEPTION 'schema loader was renamed meanwhile' USING ERRCODE = 'invalid_schema_name',
            HINT = 'Try again.';
    END IF;
END
$$;
