//! What the machine is like: figures to read the others by.

use std::fs;

use pg_test::Client;
use pg_test::measure::median_ms;

/// How often each is done.
const TIMES: u32 = 100;

/// The median of a transaction that inserts one row, in ms.
pub fn commit_ms(client: &mut Client) -> f64 {
    client.batch_execute("CREATE TABLE public.committed (n bigint)").expect("a table");
    let insert = client.prepare("INSERT INTO public.committed VALUES (1)").expect("an insert");
    let median = median_ms(TIMES, || {
        client.execute(&insert, &[]).expect("a row");
    });
    client.batch_execute("DROP TABLE public.committed").expect("no table");
    median
}

/// The median of SELECT 1, in ms.
pub fn round_trip_ms(client: &mut Client) -> f64 {
    let select = client.prepare("SELECT 1").expect("a query");
    median_ms(TIMES, || {
        client.query(&select, &[]).expect("a row");
    })
}

/// How many processes have been busy in the last minute, where the system says so.
pub fn load_average() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next().map(str::to_owned)
}
