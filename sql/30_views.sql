-- The views for backends. They name no table of the application, and no function of this extension,
-- for which their readers would need EXECUTE.

-- Two simple subqueries and the condition outside: PostgreSQL then merges the ends of two indexes,
-- and finds the newest events at the same cost however long the history is.
CREATE VIEW loader.activity_feed AS
    SELECT event_time, event_type, severity, execution_id, loader_id, status, record_count,
           duration_seconds, error_message, message
      FROM (SELECT execution_end AS event_time,
                   concat('EXECUTION_', status) AS event_type,
                   CASE status WHEN 'SUCCESS' THEN 'success' ELSE 'error' END AS severity,
                   id AS execution_id,
                   loader_id,
                   status,
                   record_count,
                   duration_seconds,
                   error_message,
                   CASE status
                   WHEN 'SUCCESS' THEN
                       concat('Execution ', id, ' of loader ', loader_id, ' succeeded',
                              ': ' || CASE record_count WHEN 1 THEN '1 record'
                                      ELSE to_char(record_count, 'FM9,999,999,990') || ' records' END,
                              ' in ' || to_char(duration_seconds, 'FM9,999,999,990') || ' s')
                   ELSE
                       concat('Execution ', id, ' of loader ', loader_id, ' failed',
                              ' after ' || to_char(duration_seconds, 'FM9,999,999,990') || ' s',
                              ': ' || split_part(left(error_message, 200), E'\n', 1))
                   END AS message
              FROM loader.execution_history
            UNION ALL
            SELECT execution_start, 'EXECUTION_STARTED', 'info', id, loader_id,
                   'RUNNING'::varchar(50), NULL::integer, NULL::integer, NULL::text,
                   concat('Execution ', id, ' of loader ', loader_id, ' started')
              FROM loader.execution_history) AS event
     WHERE event_time IS NOT NULL;

COMMENT ON VIEW loader.activity_feed IS
    'A row an event: each start and each end of an execution. ORDER BY event_time DESC, execution_id DESC LIMIT n is quick however long the history is.';
COMMENT ON COLUMN loader.activity_feed.event_time IS 'When it happened';
COMMENT ON COLUMN loader.activity_feed.event_type IS
    'EXECUTION_STARTED, EXECUTION_SUCCESS or EXECUTION_FAILED';
COMMENT ON COLUMN loader.activity_feed.severity IS 'info, success or error';
COMMENT ON COLUMN loader.activity_feed.execution_id IS 'The execution''s id';
COMMENT ON COLUMN loader.activity_feed.loader_id IS 'The loader''s id';
COMMENT ON COLUMN loader.activity_feed.status IS 'The execution''s status after the event';
COMMENT ON COLUMN loader.activity_feed.record_count IS 'Records loaded; NULL for a start';
COMMENT ON COLUMN loader.activity_feed.duration_seconds IS 'Whole seconds it took; NULL for a start';
COMMENT ON COLUMN loader.activity_feed.error_message IS 'What went wrong; NULL for a start';
COMMENT ON COLUMN loader.activity_feed.message IS 'The event as a sentence';

-- Not clock_timestamp(): with a volatile function PostgreSQL would not flatten the view.
CREATE VIEW loader.execution_details AS
    SELECT id, loader_id, execution_start, execution_end, status, record_count, error_message,
           duration_seconds,
           greatest(coalesce(execution_end, statement_timestamp()) - execution_start, '0'::interval)
               AS duration,
           status = 'RUNNING' AS is_running
      FROM loader.execution_history;

COMMENT ON VIEW loader.execution_details IS
    'The executions with their exact durations: the table of a page about one loader';
COMMENT ON COLUMN loader.execution_details.id IS 'The execution''s id';
COMMENT ON COLUMN loader.execution_details.loader_id IS 'The loader''s id';
COMMENT ON COLUMN loader.execution_details.execution_start IS 'When it started';
COMMENT ON COLUMN loader.execution_details.execution_end IS 'When it ended; NULL while it runs';
COMMENT ON COLUMN loader.execution_details.status IS 'RUNNING, SUCCESS or FAILED';
COMMENT ON COLUMN loader.execution_details.record_count IS 'Records loaded';
COMMENT ON COLUMN loader.execution_details.error_message IS 'What went wrong';
COMMENT ON COLUMN loader.execution_details.duration_seconds IS 'Whole seconds it took; NULL while it runs';
COMMENT ON COLUMN loader.execution_details.duration IS 'How long it took, exactly; while it runs: so far';
COMMENT ON COLUMN loader.execution_details.is_running IS 'Whether it has not ended';

-- A row costs one or two index lookups for each group of columns. The conditions and the order name
-- the status as a range, since only execution_history_loader_status_idx has that order: with an
-- equality the planner could as well scan a loader's executions of any status. The two counts stop
-- at 1,000, so that a loader that never succeeds costs no more than another.
CREATE VIEW loader.loader_summary AS
    SELECT known.loader_id,
           newest.id AS last_execution_id,
           newest.status AS last_status,
           newest.execution_start AS last_execution_start,
           newest.execution_end AS last_execution_end,
           success.execution_end AS last_success_at,
           failure.execution_end AS last_failure_at,
           failure.error_message AS last_error_message,
           failure.id IS NOT NULL
               AND (success.id IS NULL
                    OR (failure.execution_start, failure.id) > (success.execution_start, success.id))
               AS is_failed,
           failures.consecutive AS consecutive_failures,
           executions.running AS running_executions
      FROM (SELECT DISTINCT loader_id FROM loader_history.recorded_loader) AS known
     CROSS JOIN LATERAL (
               SELECT id, status, execution_start, execution_end FROM loader.execution_history
                WHERE loader_id = known.loader_id
                ORDER BY execution_start DESC, id DESC LIMIT 1
           ) AS newest
      LEFT JOIN LATERAL (
               SELECT id, execution_start, execution_end FROM loader.execution_history
                WHERE loader_id = known.loader_id AND status BETWEEN 'SUCCESS' AND 'SUCCESS'
                ORDER BY status DESC, execution_start DESC, id DESC LIMIT 1
           ) AS success ON true
      LEFT JOIN LATERAL (
               SELECT id, execution_start, execution_end, error_message FROM loader.execution_history
                WHERE loader_id = known.loader_id AND status BETWEEN 'FAILED' AND 'FAILED'
                ORDER BY status DESC, execution_start DESC, id DESC LIMIT 1
           ) AS failure ON true
     CROSS JOIN LATERAL (
               SELECT count(*) AS consecutive
                 FROM (SELECT FROM loader.execution_history
                        WHERE loader_id = known.loader_id AND status <= 'FAILED'
                          AND (status, execution_start, id)
                              > ('FAILED', coalesce(success.execution_start, '-infinity'), coalesce(success.id, 0))
                        ORDER BY status, execution_start, id LIMIT 1000) AS counted
           ) AS failures
     CROSS JOIN LATERAL (
               SELECT count(*) AS running
                 FROM (SELECT FROM loader.execution_history
                        WHERE loader_id = known.loader_id AND status = 'RUNNING'
                        LIMIT 1000) AS counted
           ) AS executions;

COMMENT ON VIEW loader.loader_summary IS
    'One row per loader that has history. A loader is failed if its newest finished execution, by start, FAILED.';
COMMENT ON COLUMN loader.loader_summary.loader_id IS 'The loader''s id';
COMMENT ON COLUMN loader.loader_summary.last_execution_id IS 'Its newest execution, by start';
COMMENT ON COLUMN loader.loader_summary.last_status IS 'Status of its newest execution';
COMMENT ON COLUMN loader.loader_summary.last_execution_start IS 'When its newest execution started';
COMMENT ON COLUMN loader.loader_summary.last_execution_end IS
    'When its newest execution ended; NULL while that runs';
COMMENT ON COLUMN loader.loader_summary.last_success_at IS
    'When its newest success, by start, ended';
COMMENT ON COLUMN loader.loader_summary.last_failure_at IS
    'When its newest failure, by start, ended';
COMMENT ON COLUMN loader.loader_summary.last_error_message IS 'The error of its newest failure';
COMMENT ON COLUMN loader.loader_summary.is_failed IS
    'Whether its newest finished execution, by start, FAILED; one that runs changes nothing';
COMMENT ON COLUMN loader.loader_summary.consecutive_failures IS
    'Failures that started after its newest success, of the rows kept; 1,000 stands for 1,000 or more';
COMMENT ON COLUMN loader.loader_summary.running_executions IS
    'Executions that run now; 1,000 stands for 1,000 or more';

-- Loader by loader in the order of the index, so that each lookup finds in cache the pages that the
-- last one has read. Most loaders succeed within a day of a failure: a day is searched first, since
-- a scan reads all entries of a page that satisfy its condition, and a day has few. The failures of
-- two days are read once for the other three counts.
CREATE VIEW loader.failed_loader_counts AS
    SELECT loaders.failed AS failed_loaders,
           recent.loaders AS failed_loaders_24h,
           recent.loaders_before AS failed_loaders_previous_24h,
           recent.executions AS failed_executions_24h
      FROM (SELECT count(*) FILTER (WHERE is_failed) AS failed
              FROM (SELECT NOT EXISTS (
                               SELECT FROM loader.execution_history AS soon
                                WHERE soon.loader_id = known.loader_id AND soon.status = 'SUCCESS'
                                  AND (soon.execution_start, soon.id) > (failure.execution_start, failure.id)
                                  AND soon.execution_start < failure.next_day
                           ) AND NOT EXISTS (
                               SELECT FROM loader.execution_history AS later
                                WHERE later.loader_id = known.loader_id AND later.status = 'SUCCESS'
                                  AND (later.execution_start, later.id) > (failure.execution_start, failure.id)
                           ) AS is_failed
                      FROM (SELECT DISTINCT loader_id FROM loader_history.recorded_loader
                             ORDER BY loader_id) AS known
                     CROSS JOIN LATERAL (
                               SELECT id, execution_start,
                                      least(execution_start, '9999-01-01') + '24 hours'::interval AS next_day
                                 FROM loader.execution_history
                                WHERE loader_id = known.loader_id AND status BETWEEN 'FAILED' AND 'FAILED'
                                ORDER BY status DESC, execution_start DESC, id DESC LIMIT 1
                           ) AS failure
                   ) AS loaders
           ) AS loaders
     CROSS JOIN (
            SELECT count(DISTINCT loader_id) FILTER (WHERE is_today) AS loaders,
                   count(DISTINCT loader_id) FILTER (WHERE NOT is_today) AS loaders_before,
                   count(*) FILTER (WHERE is_today) AS executions
              FROM (SELECT loader_id, execution_end >= statement_timestamp() - '24 hours'::interval AS is_today
                      FROM loader.execution_history
                     WHERE status = 'FAILED' AND execution_end >= statement_timestamp() - '48 hours'::interval) AS failed
           ) AS recent;

COMMENT ON VIEW loader.failed_loader_counts IS 'One row: how many loaders fail, and the trend';
COMMENT ON COLUMN loader.failed_loader_counts.failed_loaders IS
    'Loaders whose newest finished execution, by start, FAILED';
COMMENT ON COLUMN loader.failed_loader_counts.failed_loaders_24h IS
    'Loaders with an execution that FAILED in the last 24 hours';
COMMENT ON COLUMN loader.failed_loader_counts.failed_loaders_previous_24h IS
    'Loaders with an execution that FAILED in the 24 hours before those';
COMMENT ON COLUMN loader.failed_loader_counts.failed_executions_24h IS
    'Executions that FAILED in the last 24 hours';
