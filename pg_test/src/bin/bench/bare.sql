-- The least that a client can do: an INSERT and an UPDATE, with a primary key, and with all that the
-- extension's table has of constraints and indexes.
CREATE TABLE public.bare (
    id               bigserial   PRIMARY KEY,
    loader_id        bigint      NOT NULL,
    execution_start  timestamptz NOT NULL,
    execution_end    timestamptz,
    status           varchar(50) NOT NULL,
    record_count     integer     DEFAULT 0,
    error_message    text,
    duration_seconds integer
);

CREATE TABLE public.bare_indexed
    (LIKE loader.execution_history INCLUDING CONSTRAINTS INCLUDING INDEXES);
CREATE SEQUENCE public.bare_indexed_id_seq OWNED BY public.bare_indexed.id;
ALTER TABLE public.bare_indexed
    ALTER COLUMN id SET DEFAULT nextval('public.bare_indexed_id_seq'),
    ALTER COLUMN record_count SET DEFAULT 0;
