-- The foreign key to loader.loader, which the application owns.
--
-- pg_dump writes CREATE EXTENSION before CREATE TABLE loader.loader, and never the key of an
-- extension's table. So the key cannot be part of CREATE TABLE: it is attached here if
-- loader.loader exists, and otherwise by an event trigger, once it does. That trigger is enabled
-- while the key is still to be attached. Attaching the key disables it, so that a key that a DBA
-- dropped is not added again, and other DDL is not slowed down. (A restore begins with it enabled.)
--
-- PL/pgSQL throughout, and catalog lookups by name: nothing here may require loader.loader to
-- exist.
--
-- The owner of the schema loader can drop it, and the extension with it, at any moment, and then
-- create objects of the same names. So a function that runs with a superuser's rights first locks a
-- table of the extension, and then verifies that it is a member of the extension. While the table
-- is locked the extension cannot be dropped, no member can be moved, and the names keep referring
-- to the same objects. LOCK TABLE itself runs no user-defined code.

-- The key is attached automatically, with a superuser's rights, to a table of another role.
-- Planning a query of that table, as validating the key does, evaluates expressions of its indexes,
-- constraints and statistics; only a superuser's code may be evaluated here.
CREATE FUNCTION loader_history.untrusted_code(target regclass) RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    WITH relation AS (
        SELECT target::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(target)
    ), expression AS (
        SELECT 'pg_class'::regclass AS classid, oid AS objid FROM relation
        UNION ALL
        SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index AS i JOIN relation ON i.indrelid = relation.oid
        UNION ALL
        SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint AS k JOIN relation ON k.conrelid = relation.oid
        UNION ALL
        SELECT 'pg_statistic_ext'::regclass, s.oid FROM pg_statistic_ext AS s JOIN relation ON s.stxrelid = relation.oid
    )
    SELECT pg_describe_object(d.refclassid, d.refobjid, 0)
      FROM expression AS e
      JOIN pg_depend AS d ON d.classid = e.classid AND d.objid = e.objid AND d.objsubid = 0
      LEFT JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
      LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
      -- An enum runs no code.
      LEFT JOIN pg_type AS t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid AND t.typtype <> 'e'
     WHERE coalesce(p.proowner, o.oprowner, t.typowner) IN (SELECT oid FROM pg_roles WHERE NOT rolsuper)
    UNION ALL
    -- The planner sees what an older snapshot hides.
    SELECT 'what this transaction''s snapshot may not show'
      FROM relation JOIN pg_class AS c ON c.oid = relation.oid
     WHERE current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
       AND c.relowner IN (SELECT oid FROM pg_roles WHERE NOT rolsuper)
     LIMIT 1
$$;
COMMENT ON FUNCTION loader_history.untrusted_code(regclass) IS
    'Internal: an object of a role that is not a superuser, which planning a query of a table would evaluate';

CREATE FUNCTION loader_history.foreign_key_state(OUT present boolean, OUT valid boolean, OUT obstacle text)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    history constant oid := 'loader.execution_history'::regclass;
    target record;
    id_column record;
BEGIN
    present := false;
    valid := false;

    SELECT c.oid, c.relkind, c.relpersistence INTO target
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
     WHERE n.nspname = 'loader' AND c.relname = 'loader';
    IF NOT FOUND THEN
        obstacle := 'table loader.loader does not exist';
        RETURN;
    END IF;

    SELECT true, bool_and(k.convalidated) INTO present, valid
      FROM pg_constraint AS k
      JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attname = 'loader_id'
     WHERE k.conrelid = history AND k.contype = 'f' AND k.confrelid = target.oid
       AND k.conkey = ARRAY[a.attnum]
    HAVING count(*) > 0;
    IF present THEN
        RETURN;
    END IF;
    present := false;
    valid := false;

    SELECT format('its constraint %I references %s, not loader.loader; drop that first', k.conname, k.confrelid::regclass)
      INTO obstacle
      FROM pg_constraint AS k
      JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attname = 'loader_id'
     WHERE k.conrelid = history AND k.contype = 'f' AND k.conkey = ARRAY[a.attnum]
     LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;

    IF target.relkind NOT IN ('r', 'p') THEN
        obstacle := 'loader.loader is not a table';
        RETURN;
    ELSIF target.relpersistence <> 'p' THEN
        obstacle := 'loader.loader is not a permanent table';
        RETURN;
    END IF;

    WITH RECURSIVE type AS (
        SELECT a.attnum, a.atttypid AS oid
          FROM pg_attribute AS a
         WHERE a.attrelid = target.oid AND a.attname = 'id' AND NOT a.attisdropped
        UNION ALL
        SELECT type.attnum, t.typbasetype FROM type JOIN pg_type AS t ON t.oid = type.oid AND t.typtype = 'd'
    )
    SELECT type.attnum, t.oid AS type INTO id_column
      FROM type JOIN pg_type AS t ON t.oid = type.oid AND t.typtype <> 'd';
    IF NOT FOUND THEN
        obstacle := 'loader.loader has no column id';
    ELSIF id_column.type NOT IN ('bigint'::regtype, 'integer'::regtype, 'smallint'::regtype, 'numeric'::regtype) THEN
        obstacle := format('loader.loader.id is of type %s, which a bigint cannot reference',
                           format_type(id_column.type, NULL));
    ELSIF NOT EXISTS (
        SELECT FROM pg_index AS i
         WHERE i.indrelid = target.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND i.indnkeyatts = 1 AND i.indkey[0] = id_column.attnum)
    THEN
        obstacle := 'loader.loader has no primary key or unique index on (id)';
    ELSIF target.relkind = 'p' AND loader_history.untrusted_code(target.oid::regclass) IS NOT NULL THEN
        obstacle := format('the partitioned table loader.loader depends on %s, which belongs to no superuser',
                           loader_history.untrusted_code(target.oid::regclass));
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.foreign_key_state() IS
    'Internal: whether the foreign key exists, whether it is valid, and what prevents it from being attached';

CREATE FUNCTION loader_history.validate_foreign_key() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key record;
    name text;
    untrusted text;
BEGIN
    FOR key IN
        SELECT k.conname AS name, k.confrelid::regclass AS target FROM pg_constraint AS k
         WHERE k.conrelid = 'loader.execution_history'::regclass AND k.contype = 'f' AND NOT k.convalidated
    LOOP
        -- Locked before it is looked at, so that nothing is added to it afterwards.
        name := key.target::text;
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', name);
        untrusted := loader_history.untrusted_code(key.target);
        IF to_regclass(name) IS DISTINCT FROM key.target THEN
            untrusted := 'a table that was renamed';
        END IF;
        IF untrusted IS NOT NULL THEN
            RAISE WARNING 'foreign key % is NOT VALID: to validate it would evaluate %', key.name, untrusted
                USING DETAIL = 'What belongs to no superuser is not evaluated with a superuser''s rights. New executions are checked all the same.',
                      HINT = format('Run SELECT loader_history.attach_foreign_key() in a READ COMMITTED transaction of its own or, if you trust it, ALTER TABLE loader.execution_history VALIDATE CONSTRAINT %I.', key.name);
            CONTINUE;
        END IF;
        BEGIN
            EXECUTE format('ALTER TABLE loader.execution_history VALIDATE CONSTRAINT %I', key.name);
        EXCEPTION WHEN foreign_key_violation THEN
            RAISE WARNING 'foreign key % is NOT VALID: the history names loaders that loader.loader does not have', key.name
                USING DETAIL = 'New executions are checked all the same.',
                      HINT = 'Add those loaders or delete their executions, then run SELECT loader_history.attach_foreign_key().';
        WHEN object_not_in_prerequisite_state THEN -- as PostgreSQL 18 and later say of one that is NOT ENFORCED
            RAISE WARNING 'foreign key % is NOT VALID: %', key.name, SQLERRM
                USING HINT = format('ALTER TABLE loader.execution_history ALTER CONSTRAINT %I ENFORCED enforces and validates it.', key.name);
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loader_history.validate_foreign_key() IS
    'Internal: validates a foreign key that is NOT VALID, or warns of the executions that prevent that';

CREATE FUNCTION loader_history.add_foreign_key() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    state record;
BEGIN
    LOCK TABLE loader.execution_history IN SHARE ROW EXCLUSIVE MODE;
    -- First, so that the trigger does not hear of what follows.
    ALTER EVENT TRIGGER loader_history_foreign_key DISABLE;
    ALTER TABLE loader.execution_history DISABLE TRIGGER request_foreign_key;
    LOCK TABLE loader.loader IN SHARE ROW EXCLUSIVE MODE;
    -- Looked at again: much may have happened while this session waited.
    SELECT * INTO state FROM loader_history.foreign_key_state();
    IF state.obstacle IS NOT NULL THEN
        RAISE EXCEPTION '%', state.obstacle USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF NOT state.present THEN
        ALTER TABLE loader.execution_history
            ADD CONSTRAINT execution_history_loader_id_fkey
            FOREIGN KEY (loader_id) REFERENCES loader.loader (id) NOT VALID;
        COMMENT ON CONSTRAINT execution_history_loader_id_fkey ON loader.execution_history IS
            'Every execution is one of a loader that exists';
        PERFORM loader_history.validate_foreign_key();
    END IF;
END
$$;
COMMENT ON FUNCTION loader_history.add_foreign_key() IS
    'Internal: adds the foreign key, and disables the triggers that attach it';

CREATE FUNCTION loader_history.attach_foreign_key() RETURNS boolean
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    state record;
BEGIN
    LOCK TABLE loader_history.foreign_key_request IN ACCESS SHARE MODE;
    IF NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
                      AND d.objid = 'loader_history.foreign_key_request'::regclass
                      AND d.deptype = 'e' AND e.extname = 'loader_history')
    THEN
        RAISE EXCEPTION 'extension loader_history was dropped meanwhile'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Try again.';
    END IF;
    PERFORM loader_history.require_writable();
    SELECT * INTO state FROM loader_history.foreign_key_state();
    IF state.obstacle IS NOT NULL THEN
        RAISE NOTICE 'the foreign key of loader.execution_history cannot be attached: %', state.obstacle
            USING HINT = 'It attaches itself when loader.loader gets a primary key on id.';
        RETURN false;
    ELSIF state.present THEN
        PERFORM loader_history.validate_foreign_key();
    ELSE
        BEGIN
            PERFORM loader_history.add_foreign_key();
        EXCEPTION WHEN duplicate_object THEN
            NULL; -- another session has added it, which this transaction's snapshot does not show
        END;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loader_history.attach_foreign_key() IS
    'Attaches the foreign key to loader.loader, or validates it, if that is possible; returns whether it exists';

CREATE FUNCTION loader_history.attach_foreign_key_on_ddl() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '200ms'
AS $$
DECLARE
    state record;
BEGIN
    IF EXISTS (
        SELECT
          FROM pg_event_trigger_ddl_commands() AS command
          LEFT JOIN pg_index AS i ON i.indexrelid = command.objid
          JOIN pg_class AS c ON c.oid = coalesce(i.indrelid, command.objid)
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE command.classid = 'pg_class'::regclass
           AND n.nspname = 'loader' AND c.relname IN ('loader', 'execution_history'))
    THEN
        LOCK TABLE loader_history.foreign_key_request IN ACCESS SHARE MODE;
        IF NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
                        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
                          AND d.objid = 'loader_history.foreign_key_request'::regclass
                          AND d.deptype = 'e' AND e.extname = 'loader_history')
        THEN
            RAISE EXCEPTION 'extension loader_history was dropped meanwhile'
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Try again.';
        END IF;
        SELECT * INTO state FROM loader_history.foreign_key_state();
        IF state.obstacle IS NULL THEN
            PERFORM loader_history.add_foreign_key();
        END IF;
    END IF;
-- The DDL is not to fail for this, not even of its own timeout.
EXCEPTION WHEN query_canceled OR OTHERS THEN
    RAISE WARNING 'the foreign key of loader.execution_history was not attached: %', SQLERRM
        USING HINT = 'Run SELECT loader_history.attach_foreign_key() when loader.loader is not in use.';
END
$$;
COMMENT ON FUNCTION loader_history.attach_foreign_key_on_ddl() IS
    'Internal: event trigger that attaches the foreign key when DDL has brought loader.loader or its key';

CREATE EVENT TRIGGER loader_history_foreign_key ON ddl_command_end
    WHEN TAG IN ('ALTER INDEX', 'ALTER TABLE', 'CREATE INDEX', 'CREATE TABLE')
    EXECUTE FUNCTION loader_history.attach_foreign_key_on_ddl();
COMMENT ON EVENT TRIGGER loader_history_foreign_key IS
    'Attaches the foreign key of loader.execution_history once loader.loader has its primary key; disabled from then on';

-- In a parallel restore the primary key of loader.loader may be created while another session still
-- copies the history, and the event trigger stops waiting for that. The copy then attaches the key,
-- when it commits. A trigger cannot alter the table that fires it, hence the request: a row of
-- another table, whose deferred trigger can. Starts, which have no end, request nothing.
CREATE TABLE loader_history.foreign_key_request (
    requested_in xid8 NOT NULL,
    CONSTRAINT foreign_key_request_pkey PRIMARY KEY (requested_in)
) USING heap;
COMMENT ON TABLE loader_history.foreign_key_request IS
    'Internal: transactions that attach the foreign key when they commit; empty otherwise';
COMMENT ON COLUMN loader_history.foreign_key_request.requested_in IS 'The transaction''s id';
COMMENT ON CONSTRAINT foreign_key_request_pkey ON loader_history.foreign_key_request IS
    'A transaction requests once';
COMMENT ON INDEX loader_history.foreign_key_request_pkey IS 'A transaction requests once';

CREATE FUNCTION loader_history.request_foreign_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    requested_in constant text := 'loader.foreign_key_requested_in';
    this_transaction constant text := pg_current_xact_id()::text;
BEGIN
    -- For the million rows of a restore: a setting is quicker to ask than a table.
    IF current_setting(requested_in, true) IS DISTINCT FROM this_transaction THEN
        PERFORM set_config(requested_in, this_transaction, true);
        -- ENABLE TRIGGER ALL, as a data-only restore ends with, does not mean that the key is wanted.
        IF EXISTS (SELECT FROM pg_event_trigger
                    WHERE evtname = 'loader_history_foreign_key' AND evtenabled <> 'D')
        THEN
            INSERT INTO loader_history.foreign_key_request VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING;
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loader_history.request_foreign_key() IS
    'Internal: trigger by which a transaction that copies history requests the foreign key';

CREATE TRIGGER request_foreign_key AFTER INSERT ON loader.execution_history
    FOR EACH ROW WHEN (NEW.execution_end IS NOT NULL) EXECUTE FUNCTION loader_history.request_foreign_key();
COMMENT ON TRIGGER request_foreign_key ON loader.execution_history IS
    'Requests the foreign key when history is copied; disabled once the key is there';

CREATE FUNCTION loader_history.attach_foreign_key_on_commit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '500ms' -- longer than DDL that has met this transaction still waits
AS $$
DECLARE
    state record;
    previous_role text := current_setting('session_replication_role');
BEGIN
    -- Foreign keys that refer to it would run their owners' code.
    PERFORM set_config('session_replication_role', 'replica', true);
    DELETE FROM loader_history.foreign_key_request WHERE requested_in = NEW.requested_in;
    PERFORM set_config('session_replication_role', previous_role, true);
    BEGIN
        IF EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                    WHERE n.nspname = 'loader' AND c.relname = 'loader' AND c.relkind IN ('r', 'p'))
        THEN
            -- Waits for DDL that is about to commit the primary key.
            LOCK TABLE loader.loader IN ACCESS SHARE MODE;
            SELECT * INTO state FROM loader_history.foreign_key_state();
            IF state.obstacle IS NULL THEN
                PERFORM loader_history.add_foreign_key();
            END IF;
        END IF;
    -- Nor is the copy.
    EXCEPTION WHEN query_canceled OR OTHERS THEN
        RAISE WARNING 'the foreign key of loader.execution_history was not attached: %', SQLERRM
            USING HINT = 'Run SELECT loader_history.attach_foreign_key() when loader.loader is not in use.';
    END;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loader_history.attach_foreign_key_on_commit() IS
    'Internal: trigger that attaches the foreign key when a transaction that requested it commits';

CREATE CONSTRAINT TRIGGER attach_foreign_key_on_commit AFTER INSERT ON loader_history.foreign_key_request
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION loader_history.attach_foreign_key_on_commit();
COMMENT ON TRIGGER attach_foreign_key_on_commit ON loader_history.foreign_key_request IS
    'Attaches the foreign key when the transaction commits';
