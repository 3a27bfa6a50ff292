// Loads a file of planes in one transaction, and records it: load.js DSN LOADER_ID FILE

const { createReadStream } = require('node:fs');
const { pipeline } = require('node:stream/promises');
const { Client } = require('pg');
const { from: copyFrom } = require('pg-copy-streams');

const COPY = "COPY planes FROM STDIN (FORMAT csv, HEADER, NULL 'NA')";

async function load(dsn, loaderId, path) {
  const db = new Client({ connectionString: dsn });
  await db.connect();
  let run = null;
  try {
    await db.query('BEGIN');
    const start = await db.query('SELECT loader.record_execution_start($1) AS run', [loaderId]);
    run = start.rows[0].run;
    const copy = db.query(copyFrom(COPY));
    await pipeline(createReadStream(path), copy);
    await db.query("SELECT loader.record_execution_end($1, 'SUCCESS', $2)", [run, copy.rowCount]);
    await db.query('COMMIT');
  } catch (error) {
    await db.query('ROLLBACK');
    if (run !== null) {
      await db.query("SELECT loader.record_execution_end($1, 'FAILED', error_message => $2)",
        [run, String(error)]);
    }
    throw error;
  } finally {
    await db.end();
  }
}

const [dsn, loaderId, path] = process.argv.slice(2);
load(dsn, Number(loaderId), path);
