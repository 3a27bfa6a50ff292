-- loader_history: run by CREATE EXTENSION, as a superuser, in a schema that any role may own.

-- No object in the schema loader may be found in place of PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
BEGIN
    IF pg_catalog.getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'loader_history needs a database in encoding UTF8, and this one is in %',
            pg_catalog.getdatabaseencoding()
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Create the database with CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0.';
    END IF;
    IF (SELECT extnamespace FROM pg_extension WHERE extname = 'loader_history')
       IS DISTINCT FROM to_regnamespace('loader')
    THEN
        RAISE EXCEPTION 'schema loader was renamed meanwhile' USING ERRCODE = 'invalid_schema_name',
            HINT = 'Try again.';
    END IF;
END
$$;

-- The schema loader is the application's: it keeps its owner. One that CREATE EXTENSION has just
-- created gets the owner that an application expects, the database's.
DO $$
DECLARE
    owner text;
BEGIN
    SELECT quote_ident(r.rolname) INTO owner
      FROM pg_namespace AS n
      JOIN pg_extension AS e ON e.extname = 'loader_history' AND e.xmin = n.xmin
                              AND e.extowner = n.nspowner
      JOIN pg_database AS d ON d.datname = current_database()
      JOIN pg_roles AS r ON r.oid = d.datdba AND r.oid <> n.nspowner
     WHERE n.nspname = 'loader' AND n.nspacl IS NULL
       AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid);
    IF FOUND THEN
        EXECUTE format('ALTER SCHEMA loader OWNER TO %s', owner);
    END IF;
END
$$;

CREATE SCHEMA loader_history;
COMMENT ON SCHEMA loader_history IS
    'Internal tables and functions of the extension loader_history, and its functions for DBAs';
