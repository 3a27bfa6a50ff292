-- loader_history 1.3.0 to 1.4.0: events off the commit path, and retention.

-- Nothing in the schema loader may be taken for PostgreSQL's own while this script runs.
SET LOCAL search_path = pg_catalog, pg_temp;

-- Newest first is read backward: entries in ascending order fill their pages, and write less WAL.
DROP INDEX loader.execution_history_loader_start_idx,
    loader.execution_history_start_idx,
    loader.execution_history_end_idx,
    loader.execution_history_loader_success_end_idx,
    loader.execution_history_loader_failed_end_idx,
    loader.execution_history_loader_failed_start_idx,
    loader.execution_history_failed_start_idx;

CREATE INDEX execution_history_loader_start_idx
    ON loader.execution_history (loader_id, execution_start, id);
COMMENT ON INDEX loader.execution_history_loader_start_idx IS
    'Pages of one loader, its newest execution; the foreign key';

CREATE INDEX execution_history_start_idx
    ON loader.execution_history (execution_start, id);
COMMENT ON INDEX loader.execution_history_start_idx IS
    'Pages of all loaders; starts in the activity feed';

CREATE INDEX execution_history_end_idx
    ON loader.execution_history (execution_end, id) WHERE execution_end IS NOT NULL;
COMMENT ON INDEX loader.execution_history_end_idx IS
    'Ends in the activity feed; what may be purged';

CREATE INDEX execution_history_loader_success_end_idx
    ON loader.execution_history (loader_id, execution_end, id) WHERE status = 'SUCCESS';
COMMENT ON INDEX loader.execution_history_loader_success_end_idx IS
    'A loader''s newest success';

CREATE INDEX execution_history_loader_failed_end_idx
    ON loader.execution_history (loader_id, execution_end, id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_loader_failed_end_idx IS
    'A loader''s newest failure, and its failures in a row or in a period';

CREATE INDEX execution_history_loader_failed_start_idx
    ON loader.execution_history (loader_id, execution_start, id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_loader_failed_start_idx IS
    'Pages of one loader''s failures';

CREATE INDEX execution_history_failed_start_idx
    ON loader.execution_history (execution_start, id) WHERE status = 'FAILED';
COMMENT ON INDEX loader.execution_history_failed_start_idx IS
    'Pages of all loaders'' failures';

-- However old the executions that run are, a page of them need not look at what has ended since.
CREATE INDEX execution_history_running_start_idx
    ON loader.execution_history (execution_start, id) WHERE status = 'RUNNING';
COMMENT ON INDEX loader.execution_history_running_start_idx IS
    'Pages of what runs';
COMMENT ON INDEX loader.execution_history_loader_running_idx IS
    'What runs of one loader';
