-- The data of the background worker beside the history. None of it is dumped: transaction ids and
-- timelines have no meaning in another cluster.

-- The transaction that started an execution, until the worker has seen its end.
CREATE TABLE loader_history.watched_transaction (
    execution_id bigint  NOT NULL,
    xid          xid8    NOT NULL,
    subxid       xid8,
    notify       boolean NOT NULL,
    CONSTRAINT watched_transaction_pkey PRIMARY KEY (execution_id)
) USING heap
-- To truncate a table, vacuum takes an ACCESS EXCLUSIVE lock.
WITH (vacuum_truncate = off);
COMMENT ON TABLE loader_history.watched_transaction IS
    'Internal: the transactions that started executions and were open when the background worker last looked. Only the worker writes it.';
COMMENT ON COLUMN loader_history.watched_transaction.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader_history.watched_transaction.xid IS 'The transaction that started it';
COMMENT ON COLUMN loader_history.watched_transaction.subxid IS
    'The subtransaction that started it; NULL if there was none';
COMMENT ON COLUMN loader_history.watched_transaction.notify IS
    'Whether the session that started it had loader_history.notify on';
COMMENT ON CONSTRAINT watched_transaction_pkey ON loader_history.watched_transaction IS
    'An execution is started once';
COMMENT ON INDEX loader_history.watched_transaction_pkey IS 'Finds the transaction of an execution';

-- The loader's report replaces such an outcome. Its time distinguishes it from a later execution of
-- the same id, which may exist after TRUNCATE ... RESTART IDENTITY.
CREATE TABLE loader_history.server_outcome (
    execution_id  bigint      NOT NULL,
    execution_end timestamptz NOT NULL,
    CONSTRAINT server_outcome_pkey PRIMARY KEY (execution_id)
) USING heap;
COMMENT ON TABLE loader_history.server_outcome IS
    'Internal: executions that the server ended as FAILED, since the transaction that started them was rolled back, until the loader reports otherwise';
COMMENT ON COLUMN loader_history.server_outcome.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader_history.server_outcome.execution_end IS 'When the server ended it';
COMMENT ON CONSTRAINT server_outcome_pkey ON loader_history.server_outcome IS
    'The server ends an execution once';
COMMENT ON INDEX loader_history.server_outcome_pkey IS 'Finds out whether the server ended an execution';

-- PREPARE TRANSACTION inserts into it within the transaction that it prepares. So its rows are
-- visible as soon as COMMIT PREPARED is done, and never if the transaction is rolled back.
CREATE TABLE loader_history.prepared_change (
    execution_id bigint      NOT NULL,
    xid          xid8        NOT NULL,
    status       varchar(50) NOT NULL,
    CONSTRAINT prepared_change_pkey PRIMARY KEY (execution_id, xid, status)
) USING heap
WITH (vacuum_truncate = off);
COMMENT ON TABLE loader_history.prepared_change IS
    'Internal: executions that prepared transactions have started or ended, until the background worker has emitted their events';
COMMENT ON COLUMN loader_history.prepared_change.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader_history.prepared_change.xid IS 'The prepared transaction';
COMMENT ON COLUMN loader_history.prepared_change.status IS 'The status that it gave the execution';
COMMENT ON CONSTRAINT prepared_change_pkey ON loader_history.prepared_change IS
    'A transaction gives an execution a status once';
COMMENT ON INDEX loader_history.prepared_change_pkey IS 'Finds the changes that have been emitted';

-- How far the worker has purged, under loader_history.retention. Executions that remain before it
-- are kept.
CREATE TABLE loader_history.purge_position (
    is_only       boolean     NOT NULL DEFAULT true,
    execution_end timestamptz NOT NULL,
    id            bigint      NOT NULL,
    CONSTRAINT purge_position_pkey PRIMARY KEY (is_only),
    CONSTRAINT purge_position_is_only_check CHECK (is_only)
) USING heap
WITH (vacuum_truncate = off);
COMMENT ON TABLE loader_history.purge_position IS
    'Internal: one row: the execution up to which the background worker has purged';
COMMENT ON COLUMN loader_history.purge_position.is_only IS 'True: there is one row';
COMMENT ON COLUMN loader_history.purge_position.execution_end IS 'When the execution ended';
COMMENT ON COLUMN loader_history.purge_position.id IS 'The execution''s id';
COMMENT ON CONSTRAINT purge_position_pkey ON loader_history.purge_position IS 'There is one row';
COMMENT ON CONSTRAINT purge_position_is_only_check ON loader_history.purge_position IS 'There is one row';
COMMENT ON INDEX loader_history.purge_position_pkey IS 'There is one row';
INSERT INTO loader_history.purge_position (execution_end, id) VALUES ('-infinity', 0);

-- A sequence, since those are WAL-logged and no rollback undoes them.
CREATE SEQUENCE loader_history.last_timeline MINVALUE 0 START 0;
COMMENT ON SEQUENCE loader_history.last_timeline IS
    'Internal: the last timeline of the server for which ids were skipped that may have been assigned on the one before';

-- A publication FOR ALL TABLES would replicate another cluster's transaction ids and position.
CREATE FUNCTION loader_history.drop_replicated_row() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'drop_replicated_row_wrapper';
COMMENT ON FUNCTION loader_history.drop_replicated_row() IS
    'Internal: trigger that drops replicated rows';
CREATE TRIGGER drop_replicated_row BEFORE INSERT ON loader_history.watched_transaction
    FOR EACH ROW EXECUTE FUNCTION loader_history.drop_replicated_row();
COMMENT ON TRIGGER drop_replicated_row ON loader_history.watched_transaction IS
    'Drops rows of another cluster';
ALTER TABLE loader_history.watched_transaction ENABLE ALWAYS TRIGGER drop_replicated_row;
CREATE TRIGGER drop_replicated_row BEFORE INSERT ON loader_history.prepared_change
    FOR EACH ROW EXECUTE FUNCTION loader_history.drop_replicated_row();
COMMENT ON TRIGGER drop_replicated_row ON loader_history.prepared_change IS
    'Drops rows of another cluster';
ALTER TABLE loader_history.prepared_change ENABLE ALWAYS TRIGGER drop_replicated_row;
CREATE TRIGGER drop_replicated_row BEFORE INSERT OR UPDATE ON loader_history.purge_position
    FOR EACH ROW EXECUTE FUNCTION loader_history.drop_replicated_row();
COMMENT ON TRIGGER drop_replicated_row ON loader_history.purge_position IS
    'Drops rows of another cluster';
ALTER TABLE loader_history.purge_position ENABLE ALWAYS TRIGGER drop_replicated_row;
