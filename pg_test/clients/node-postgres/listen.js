// Prints events until one says that an execution has ended: listen.js DSN

const { Client } = require('pg');

async function listen(dsn) {
  const db = new Client({ connectionString: dsn });
  await db.connect();
  db.on('notification', ({ payload }) => {
    const event = JSON.parse(payload);
    console.log(event.event_type, event.execution_id, event.status);
    if (event.event_type !== 'EXECUTION_STARTED') db.end();
  });
  await db.query('LISTEN loader_execution');
  console.log('listening');
}

listen(process.argv[2]);
