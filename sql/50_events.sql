-- Events: NOTIFY on channel loader_execution. Only changes that are events queue a trigger call, so
-- that restoring a million ended executions costs none.

CREATE FUNCTION loader.notify_execution() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'notify_execution_wrapper';
COMMENT ON FUNCTION loader.notify_execution() IS
    'Internal: trigger that emits NOTIFY loader_execution with the execution as a JSON object';

CREATE TRIGGER notify_on_start AFTER INSERT ON loader.execution_history
    FOR EACH ROW WHEN (NEW.status = 'RUNNING') EXECUTE FUNCTION loader.notify_execution();
COMMENT ON TRIGGER notify_on_start ON loader.execution_history IS
    'Emits the event of an execution that starts';

CREATE TRIGGER notify_on_outcome AFTER UPDATE ON loader.execution_history
    FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION loader.notify_execution();
COMMENT ON TRIGGER notify_on_outcome ON loader.execution_history IS
    'Emits the event of an execution whose outcome changes';
