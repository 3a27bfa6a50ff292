-- loader_history 1.3.0 to 1.4.0: events off the commit path, and retention.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;
