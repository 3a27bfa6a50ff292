-- Last, when all objects exist: the foreign key, if loader.loader exists.
DO $$
DECLARE
    state record;
BEGIN
    SELECT * INTO state FROM loader_history.foreign_key_state();
    IF state.obstacle IS NULL THEN
        PERFORM loader_history.add_foreign_key();
    ELSE
        -- CREATE EXTENSION silences the notices of its script.
        IF current_setting('client_min_messages') = 'warning' THEN
            PERFORM set_config('client_min_messages', 'notice', true);
        END IF;
        RAISE NOTICE 'loader.execution_history has no foreign key yet: %', state.obstacle
            USING HINT = 'It attaches itself when loader.loader gets a primary key on id.';
    END IF;
END
$$;
