-- What people write today: the contract's eight columns, a primary key, a foreign key, and two
-- functions. {schema} is replaced.
CREATE SCHEMA {schema};

CREATE TABLE {schema}.execution_history (
    id               bigserial   PRIMARY KEY,
    loader_id        bigint      NOT NULL REFERENCES loader.loader (id),
    execution_start  timestamptz NOT NULL,
    execution_end    timestamptz,
    status           varchar(50) NOT NULL,
    record_count     integer     DEFAULT 0,
    error_message    text,
    duration_seconds integer
);

CREATE FUNCTION {schema}.record_execution_start(loader bigint) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    execution bigint;
BEGIN
    INSERT INTO {schema}.execution_history (loader_id, execution_start, status)
    VALUES (loader, clock_timestamp(), 'RUNNING')
    RETURNING id INTO execution;
    RETURN execution;
END
$$;

CREATE FUNCTION {schema}.record_execution_end(
    execution bigint, outcome text, records integer DEFAULT NULL, error text DEFAULT NULL
) RETURNS integer
    LANGUAGE plpgsql
AS $$
DECLARE
    ended timestamptz := clock_timestamp();
    duration integer;
BEGIN
    UPDATE {schema}.execution_history
       SET execution_end = ended,
           status = outcome,
           record_count = coalesce(records, record_count),
           error_message = error,
           duration_seconds = floor(extract(epoch FROM ended - execution_start))
     WHERE id = execution
    RETURNING duration_seconds INTO duration;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'execution % does not exist', execution;
    END IF;
    RETURN duration;
END
$$;
