-- loader_history 1.3.0 to 1.4.0: events off the commit path, and retention.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- Events of transactions prepared for a two-phase commit, until they are committed. Without an index: the
-- background worker empties it.
CREATE SEQUENCE loader.prepared_event_id_seq;
CREATE TABLE loader.prepared_event (
    id      bigint NOT NULL,
    payload text   NOT NULL
)
WITH (vacuum_truncate = off);
-- Without a key, or a publication FOR ALL TABLES would make its deletion fail.
ALTER TABLE loader.prepared_event REPLICA IDENTITY FULL;
COMMENT ON SEQUENCE loader.prepared_event_id_seq IS 'Internal: ids of loader.prepared_event';
COMMENT ON TABLE loader.prepared_event IS
    'Internal: events of prepared transactions, which the background worker emits once they are committed. Only PREPARE TRANSACTION writes it.';
COMMENT ON COLUMN loader.prepared_event.id IS 'In which order they came';
COMMENT ON COLUMN loader.prepared_event.payload IS 'What NOTIFY is to carry';

COMMENT ON FUNCTION loader.refuse_foreign_binding() IS
    'Internal: trigger that drops rows that replication brings';
-- PREPARE TRANSACTION writes its events without firing triggers.
CREATE TRIGGER refuse_foreign_event BEFORE INSERT ON loader.prepared_event
    FOR EACH ROW EXECUTE FUNCTION loader.refuse_foreign_binding();
COMMENT ON TRIGGER refuse_foreign_event ON loader.prepared_event IS
    'Drops events that another cluster has emitted';
ALTER TABLE loader.prepared_event ENABLE ALWAYS TRIGGER refuse_foreign_event;

REVOKE ALL ON TABLE loader.prepared_event FROM PUBLIC;
REVOKE ALL ON SEQUENCE loader.prepared_event_id_seq FROM PUBLIC;

-- The rule of what may go is in the library, for the background worker too.
CREATE OR REPLACE FUNCTION loader.purge_execution_history(older_than interval, max_rows bigint DEFAULT 10000)
    RETURNS bigint
    LANGUAGE c
    SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'purge_execution_history_wrapper';
