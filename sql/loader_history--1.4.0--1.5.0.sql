-- loader_history 1.4.0 to 1.5.0.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- What the worker reads of the events of prepared transactions is bounded, and vacuum does not lock them.
ALTER TABLE loader.prepared_event SET (vacuum_truncate = off);
CREATE INDEX prepared_event_id_idx ON loader.prepared_event (id);
COMMENT ON INDEX loader.prepared_event_id_idx IS 'Finds the first events';
COMMENT ON TABLE loader.prepared_event IS
    'Internal: events of prepared transactions, which the background worker emits once they are committed. Only PREPARE TRANSACTION writes it, and a worker that ends before it could emit its own.';
