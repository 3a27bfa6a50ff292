-- What the background worker remembers beside the history. None of these tables is dumped: transaction ids
-- mean nothing in another cluster.

-- Which transaction started an execution, while its end is not known.
CREATE TABLE loader.binding (
    execution_id bigint NOT NULL,
    xid          xid8   NOT NULL,
    subxid       xid8,
    CONSTRAINT binding_pkey PRIMARY KEY (execution_id)
)
-- To give back its last pages, vacuum locks a table against all others.
WITH (vacuum_truncate = off);
COMMENT ON TABLE loader.binding IS
    'Internal: the transactions that started executions and were open when the background worker last looked. Only the worker writes it.';
COMMENT ON COLUMN loader.binding.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader.binding.xid IS 'The transaction that started it';
COMMENT ON COLUMN loader.binding.subxid IS
    'The subtransaction of it that did, and 2^62 more where the session wanted no events; NULL where it was in none';
COMMENT ON CONSTRAINT binding_pkey ON loader.binding IS 'An execution was started once';
COMMENT ON INDEX loader.binding_pkey IS 'Finds the binding of an execution';

-- An execution that the server ended: the loader may still say how it ended. The end tells it from a
-- later execution of the same id, where somebody has started the sequence anew.
CREATE TABLE loader.derived_failure (
    execution_id  bigint      NOT NULL,
    execution_end timestamptz NOT NULL,
    CONSTRAINT derived_failure_pkey PRIMARY KEY (execution_id)
);
COMMENT ON TABLE loader.derived_failure IS
    'Internal: executions that the server ended as FAILED since the transaction that started them was rolled back, until the loader reports otherwise.';
COMMENT ON COLUMN loader.derived_failure.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader.derived_failure.execution_end IS 'When the server ended it';
COMMENT ON CONSTRAINT derived_failure_pkey ON loader.derived_failure IS
    'The server ends an execution once';
COMMENT ON INDEX loader.derived_failure_pkey IS 'Finds out whether the server ended an execution';

-- Events of transactions prepared for a two-phase commit, until they are committed. Without an index: the
-- background worker empties it.
CREATE TABLE loader.prepared_event (
    id      bigint NOT NULL,
    payload text   NOT NULL
)
-- To give back its last pages, vacuum locks a table against all others: events would be overtaken, and
-- PREPARE TRANSACTION would wait.
WITH (vacuum_truncate = off);
-- Without a key, or a publication FOR ALL TABLES would make its deletion fail.
ALTER TABLE loader.prepared_event REPLICA IDENTITY FULL;
COMMENT ON TABLE loader.prepared_event IS
    'Internal: events of prepared transactions, which the background worker emits once they are committed. Only PREPARE TRANSACTION writes it, and a worker that could not emit its own.';
COMMENT ON COLUMN loader.prepared_event.id IS
    'In which order transactions made them';
COMMENT ON COLUMN loader.prepared_event.payload IS 'What NOTIFY is to carry';

-- A publication FOR ALL TABLES would bring another cluster's transaction ids.
-- Trigger functions in C look up no name by the search path. To set one would cost more than they do.
CREATE FUNCTION loader.refuse_foreign_binding() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'refuse_foreign_binding_wrapper';
COMMENT ON FUNCTION loader.refuse_foreign_binding() IS
    'Internal: trigger that drops rows that replication brings';
CREATE TRIGGER refuse_foreign_binding BEFORE INSERT ON loader.binding
    FOR EACH ROW EXECUTE FUNCTION loader.refuse_foreign_binding();
COMMENT ON TRIGGER refuse_foreign_binding ON loader.binding IS
    'Drops what the background worker of this cluster did not write';
ALTER TABLE loader.binding ENABLE ALWAYS TRIGGER refuse_foreign_binding;
-- PREPARE TRANSACTION writes its events without firing triggers.
CREATE TRIGGER refuse_foreign_event BEFORE INSERT ON loader.prepared_event
    FOR EACH ROW EXECUTE FUNCTION loader.refuse_foreign_binding();
COMMENT ON TRIGGER refuse_foreign_event ON loader.prepared_event IS
    'Drops events that another cluster has emitted';
ALTER TABLE loader.prepared_event ENABLE ALWAYS TRIGGER refuse_foreign_event;
