-- loader_history 1.4.0 to 1.5.0.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- To give back its last pages, vacuum locks a table against all others: events would be overtaken. No
-- index: creating one would wait for transactions that are prepared.
ALTER TABLE loader.prepared_event SET (vacuum_truncate = off);
COMMENT ON TABLE loader.prepared_event IS
    'Internal: events of prepared transactions, which the background worker emits once they are committed. Only PREPARE TRANSACTION writes it, and a worker that ends before it could emit its own.';
