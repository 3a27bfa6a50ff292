// Makes the calls with every type and in every way that node-postgres has, and prints what came of each:
// calls.js RECORDER_DSN READER_DSN

const { Client, Pool } = require('pg');

const START = 'SELECT loader.record_execution_start($1) AS value';
const END = 'SELECT loader.record_execution_end($1, $2, $3, $4) AS value';

const typeName = (value) => (value === null ? 'null' : typeof value === 'object' ? value.constructor.name : typeof value);

async function show(what, call) {
  try {
    console.log(`${what}: ${typeName(await call())}`);
  } catch (error) {
    console.log(`${what}: ${error.code}`);
  }
}

const value = async (db, query, values) => (await db.query(query, values)).rows[0].value;
const start = (db, loaderId = 1) => value(db, START, [loaderId]);
const end = (db, run, status, count = null, text = null) => value(db, END, [run, status, count, text]);
const startAndEnd = async (db, ...outcome) => end(db, await start(db), ...outcome);

async function parameters(db) {
  await show('start, number', () => start(db, 1));
  await show('start, BigInt', () => start(db, 1n));
  await show('start, string', () => start(db, '1'));
  await show('start, null', () => start(db, null));
  await show('start, fraction', () => start(db, 1.5));
  await show('start, unknown loader', () => start(db, 99));
  await show('end, undefined', () => value(db, END, [null, 'SUCCESS', undefined, undefined]));
  await show('end, no count', () => startAndEnd(db, 'SUCCESS'));
  await show('end, number', () => startAndEnd(db, 'SUCCESS', 12));
  await show('end, large number', () => startAndEnd(db, 'SUCCESS', 3_000_000_000));
  await show('end, BigInt', () => startAndEnd(db, 'SUCCESS', 12n));
  await show('end, NaN', () => startAndEnd(db, 'SUCCESS', NaN));
  await show('end, text', () => startAndEnd(db, 'FAILED', null, 'naïve: ☃'));
  await show('end, half a surrogate', () => startAndEnd(db, 'FAILED', null, 'a\ud83db'));
  await show('end, text with NUL', () => startAndEnd(db, 'FAILED', null, 'a\0b'));
  await show('end, Error', () => startAndEnd(db, 'FAILED', null, String(new Error('bad'))));
}

async function errors(db) {
  const run = await start(db);
  await end(db, run, 'SUCCESS', 1);
  const calls = {
    ended: () => end(db, run, 'FAILED', null, 'too late'),
    status: () => startAndEnd(db, 'DONE'),
    count: () => startAndEnd(db, 'SUCCESS', -1),
    unknown: () => end(db, 123456789, 'SUCCESS'),
    loader: () => start(db, 99),
  };
  for (const [what, call] of Object.entries(calls)) {
    await call().catch((error) => console.log(
      `error, ${what}: ${error.code} ${error.constraint} ${Boolean(error.detail)} ${Boolean(error.hint)}`));
  }
}

async function ways(db, dsn) {
  const prepared = { name: 'start', text: START, values: [1] };
  for (let i = 0; i < 2; i++) await show('prepared', () => value(db, prepared));
  await show('binary', () => value(db, { text: START, values: [1], binary: true }));
  await show('simple protocol', () => value(db, 'SELECT loader.record_execution_start(1) AS value'));
  const severities = [];
  db.on('notice', (notice) => severities.push(notice.severity));
  await startAndEnd(db, 'SUCCESS', 3_000_000_000);
  console.log('notices:', ...severities);
  // Each query of a pool may take another connection: this start is a transaction of its own.
  const pool = new Pool({ connectionString: dsn });
  await show('pool', () => start(pool));
  await pool.end();
}

async function read(db) {
  const page = await value(db, 'SELECT loader.get_execution_history(page_size => $1) AS value', [2]);
  console.log('page:', typeName(page), page.executions.length, typeof page.executions[0].id,
    typeof page.next_cursor);
  await show('next page', () => value(db,
    'SELECT loader.get_execution_history(page_size => $1, "cursor" => $2, started_from => $3) AS value',
    [2, page.next_cursor, new Date('2020-01-01')]));
  let { rows: [row] } = await db.query('SELECT * FROM loader.execution_details WHERE NOT is_running LIMIT 1');
  console.log('row:', ...Object.entries(row).map(([name, column]) => `${name}=${typeName(column)}`));
  ({ rows: [row] } = await db.query(`SELECT event_time, message,
      event_time = $1::timestamptz AS exact FROM loader.activity_feed
    ORDER BY event_time DESC, execution_id DESC LIMIT 1`, [new Date()]));
  console.log('feed:', typeName(row.event_time), typeName(row.message));
  // A Date has milliseconds: it is earlier than the event that it was read from.
  ({ rows: [row] } = await db.query(`SELECT count(*)::int AS later FROM loader.activity_feed
    WHERE event_time >= $1 AND event_time > date_trunc('milliseconds', event_time)`, [row.event_time]));
  console.log('microseconds that a Date loses:', row.later > 0);
  ({ rows: [row] } = await db.query('SELECT * FROM loader.recorder_status()'));
  console.log('status:', row.preloaded, typeName(row.worker_pid), row.detail);
  await show('no right', () => start(db));
}

async function main([recorder, reader]) {
  const sessions = await Promise.all([recorder, reader].map(async (connectionString) => {
    const session = new Client({ connectionString });
    await session.connect();
    return session;
  }));
  await parameters(sessions[0]);
  await errors(sessions[0]);
  await ways(sessions[0], recorder);
  await read(sessions[1]);
  await Promise.all(sessions.map((session) => session.end()));
}

main(process.argv.slice(2));
