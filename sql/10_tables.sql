-- The history. Its columns are the public contract: other data is stored in tables of its own.
CREATE TABLE loader.execution_history (
    id               bigserial   NOT NULL,
    loader_id        bigint      NOT NULL,
    execution_start  timestamptz NOT NULL,
    execution_end    timestamptz,
    status           varchar(50) NOT NULL,
    record_count     integer     DEFAULT 0,
    error_message    text,
    duration_seconds integer,
    CONSTRAINT execution_history_pkey PRIMARY KEY (id),
    CONSTRAINT execution_history_status_check
        CHECK (status IN ('RUNNING', 'SUCCESS', 'FAILED')),
    CONSTRAINT execution_history_running_check
        CHECK ((status = 'RUNNING') = (execution_end IS NULL)),
    CONSTRAINT execution_history_finite_check
        CHECK (isfinite(execution_start) AND isfinite(execution_end)),
    CONSTRAINT execution_history_order_check
        CHECK (execution_end >= execution_start),
    CONSTRAINT execution_history_record_count_check
        CHECK (record_count >= 0)
) USING heap;

COMMENT ON TABLE loader.execution_history IS
    'Every execution of every loader. Written by loader.record_execution_start() and loader.record_execution_end().';
COMMENT ON COLUMN loader.execution_history.id IS 'The execution''s id';
COMMENT ON COLUMN loader.execution_history.loader_id IS 'The loader that ran: an id of loader.loader';
COMMENT ON COLUMN loader.execution_history.execution_start IS 'When it started, by the server''s clock';
COMMENT ON COLUMN loader.execution_history.execution_end IS 'When it ended; NULL while it runs';
COMMENT ON COLUMN loader.execution_history.status IS 'RUNNING, SUCCESS or FAILED';
COMMENT ON COLUMN loader.execution_history.record_count IS 'Records loaded, as the loader reported them';
COMMENT ON COLUMN loader.execution_history.error_message IS 'What went wrong';
COMMENT ON COLUMN loader.execution_history.duration_seconds IS
    'Whole seconds from start to end, rounded down; NULL while it runs';
COMMENT ON SEQUENCE loader.execution_history_id_seq IS 'Ids of loader.execution_history';
COMMENT ON CONSTRAINT execution_history_pkey ON loader.execution_history IS 'An id identifies one execution';
COMMENT ON CONSTRAINT execution_history_status_check ON loader.execution_history IS
    'status is RUNNING, SUCCESS or FAILED';
COMMENT ON CONSTRAINT execution_history_running_check ON loader.execution_history IS
    'An execution is RUNNING if and only if it has no end';
COMMENT ON CONSTRAINT execution_history_finite_check ON loader.execution_history IS
    'Both times are finite';
COMMENT ON CONSTRAINT execution_history_order_check ON loader.execution_history IS
    'No execution ends before it starts';
COMMENT ON CONSTRAINT execution_history_record_count_check ON loader.execution_history IS
    'record_count is not negative';
COMMENT ON INDEX loader.execution_history_pkey IS 'Finds an execution by its id';

-- Ending an execution changes indexed columns, so it is not a HOT update: every start and every end
-- inserts into each index whose predicate its row satisfies, and evaluates the predicates of all.
-- Without any one of these indexes some read would become slower as the history grows. Those of
-- failures cost nothing unless a load fails. They are ascending, and scanned backward: an ascending
-- index fills its last page, a descending one splits its first page in half whenever that is full.
CREATE INDEX execution_history_loader_start_idx
    ON loader.execution_history (loader_id, execution_start, id);
COMMENT ON INDEX loader.execution_history_loader_start_idx IS
    'Pages of one loader; its newest execution; the foreign key';

CREATE INDEX execution_history_start_idx
    ON loader.execution_history (execution_start, id);
COMMENT ON INDEX loader.execution_history_start_idx IS
    'Pages of all loaders; starts in the activity feed';

CREATE INDEX execution_history_end_idx
    ON loader.execution_history (execution_end, id) WHERE execution_end IS NOT NULL;
COMMENT ON INDEX loader.execution_history_end_idx IS
    'Ends in the activity feed; what may be purged';

CREATE INDEX execution_history_running_idx
    ON loader.execution_history (loader_id, execution_start, id) WHERE status = 'RUNNING';
COMMENT ON INDEX loader.execution_history_running_idx IS
    'Running executions of one loader and of all';

CREATE INDEX execution_history_loader_status_idx
    ON loader.execution_history (loader_id, status, execution_start, id) WHERE status <> 'RUNNING';
COMMENT ON INDEX loader.execution_history_loader_status_idx IS
    'Pages of one loader''s successes or failures; the newest of each; failures since the last success';

CREATE INDEX execution_history_failed_start_idx
    ON loader.execution_history (execution_start, id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_failed_start_idx IS
    'Pages of all loaders'' failures';

CREATE INDEX execution_history_failed_end_idx
    ON loader.execution_history (execution_end, loader_id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_failed_end_idx IS
    'Failures of the last days';

-- The loaders that have history, at least once each, so that a summary need not scan all executions
-- for them. Not unique on purpose: with a unique key, two sessions that start a new loader at the
-- same time would wait for each other.
CREATE TABLE loader_history.recorded_loader (
    loader_id bigint NOT NULL
) USING heap;
CREATE INDEX recorded_loader_loader_id_idx ON loader_history.recorded_loader (loader_id);

COMMENT ON TABLE loader_history.recorded_loader IS
    'Internal: every loader that has history, once or more often. Maintained by a trigger.';
COMMENT ON COLUMN loader_history.recorded_loader.loader_id IS 'The loader''s id';
COMMENT ON INDEX loader_history.recorded_loader_loader_id_idx IS 'Finds out whether a loader is known';

-- One trigger for INSERT and one for UPDATE: a second one, or a WHEN condition, would cost each
-- start and each end more than the function does. It looks up no name by the search path, so none
-- is set.
CREATE FUNCTION loader_history.history_changed() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'history_changed_wrapper';
COMMENT ON FUNCTION loader_history.history_changed() IS
    'Internal: trigger that maintains loader_history.recorded_loader and emits NOTIFY loader_execution';

CREATE TRIGGER history_inserted AFTER INSERT ON loader.execution_history
    FOR EACH ROW EXECUTE FUNCTION loader_history.history_changed();
CREATE TRIGGER history_updated AFTER UPDATE ON loader.execution_history
    FOR EACH ROW EXECUTE FUNCTION loader_history.history_changed();
COMMENT ON TRIGGER history_inserted ON loader.execution_history IS
    'Maintains loader_history.recorded_loader; emits the event of an execution that starts';
COMMENT ON TRIGGER history_updated ON loader.execution_history IS
    'Maintains loader_history.recorded_loader; emits the event of an execution whose status changes';
-- Replicated rows have loaders too. They emit no events.
ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER history_inserted;
ALTER TABLE loader.execution_history ENABLE ALWAYS TRIGGER history_updated;

-- Without these a dump would not contain the history.
SELECT pg_extension_config_dump('loader.execution_history', '');
SELECT pg_extension_config_dump('loader.execution_history_id_seq', '');
SELECT pg_extension_config_dump('loader_history.recorded_loader',
    'WHERE ctid = (SELECT min(twin.ctid) FROM loader_history.recorded_loader AS twin WHERE twin.loader_id = recorded_loader.loader_id)');
