-- And the trigger that tells a dashboard.
CREATE FUNCTION {schema}.notify_execution() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_notify('{schema}_execution', json_build_object(
        'execution_id', NEW.id,
        'loader_id', NEW.loader_id,
        'status', NEW.status,
        'event_time', coalesce(NEW.execution_end, NEW.execution_start),
        'record_count', NEW.record_count,
        'duration_seconds', NEW.duration_seconds,
        'error_message', left(NEW.error_message, 1000))::text);
    RETURN NULL;
END
$$;

CREATE TRIGGER notify_execution AFTER INSERT OR UPDATE ON {schema}.execution_history
    FOR EACH ROW EXECUTE FUNCTION {schema}.notify_execution();
