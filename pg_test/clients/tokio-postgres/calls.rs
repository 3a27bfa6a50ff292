//! Makes the calls with every type and in every way that tokio-postgres has, and prints what came of
//! each: `calls RECORDER_DSN READER_DSN`

use std::env;
use std::error::Error as StdError;
use std::future::poll_fn;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::types::{FromSqlOwned, ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Error, NoTls};

const START: &str = "SELECT loader.record_execution_start($1)";
const END: &str = "SELECT loader.record_execution_end($1, $2, $3, $4)";

type Parameter<'a> = &'a (dyn ToSql + Sync);

async fn call<T: FromSqlOwned>(
    db: &Client,
    query: &str,
    values: &[Parameter<'_>],
) -> Result<T, Error> {
    db.query_one(query, values).await?.try_get(0)
}

async fn start(db: &Client) -> Result<i64, Error> {
    call(db, START, &[&1_i64]).await
}

async fn end(db: &Client, status: &str, rest: [Parameter<'_>; 2]) -> Result<i32, Error> {
    let run = start(db).await?;
    call(db, END, &[&run, &status, rest[0], rest[1]]).await
}

fn show<T>(what: &str, result: Result<T, Error>) {
    match result {
        Ok(_) => println!("{what}: {}", std::any::type_name::<T>()),
        Err(error) => match error.code() {
            Some(code) => println!("{what}: {}", code.code()),
            None => println!("{what}: not sent: {error}"),
        },
    }
}

async fn parameters(db: &Client) {
    show("start, i64", start(db).await);
    show("start, i32", call::<i64>(db, START, &[&1_i32]).await);
    show("start, &str", call::<i64>(db, START, &[&"1"]).await);
    show("start, None", call::<i64>(db, START, &[&None::<i64>]).await);
    show("start, unknown loader", call::<i64>(db, START, &[&99_i64]).await);
    show("end, None", end(db, "SUCCESS", [&None::<i64>, &None::<&str>]).await);
    show("end, i64", end(db, "SUCCESS", [&12_i64, &None::<&str>]).await);
    show("end, i32", end(db, "SUCCESS", [&12_i32, &None::<&str>]).await);
    show("end, text", end(db, "FAILED", [&None::<i64>, &"naïve: ☃"]).await);
    show("end, text with NUL", end(db, "FAILED", [&None::<i64>, &"a\0b"]).await);
    show("result as i32", call::<i32>(db, START, &[&1_i64]).await);
}

async fn errors(db: &Client) -> Result<(), Error> {
    let run = start(db).await?;
    let none = None::<i64>;
    let _: i32 = call(db, END, &[&run, &"SUCCESS", &none, &None::<&str>]).await?;
    let ended = call::<i32>(db, END, &[&run, &"FAILED", &none, &"too late"]).await;
    let status = end(db, "DONE", [&none, &None::<&str>]).await;
    let count = end(db, "SUCCESS", [&-1_i64, &None::<&str>]).await;
    let unknown = call(db, END, &[&123_456_789_i64, &"SUCCESS", &none, &None::<&str>]).await;
    let loader = call(db, START, &[&99_i64]).await.map(|_: i64| 0);
    for (what, result) in [
        ("ended", ended),
        ("status", status),
        ("count", count),
        ("unknown", unknown),
        ("loader", loader),
    ] {
        let error = result.expect_err(what);
        let error = error.as_db_error().expect("an error of the server");
        println!(
            "error, {what}: {} {:?} {} {}",
            error.code().code(),
            error.constraint(),
            error.detail().is_some(),
            error.hint().is_some()
        );
    }
    Ok(())
}

async fn ways(db: &Client) -> Result<(), Box<dyn StdError>> {
    let prepared = db.prepare(START).await?;
    for _ in 0..2 {
        show("prepared", db.query_one(&prepared, &[&1_i64]).await?.try_get::<_, i64>(0));
    }
    let prepared = db.prepare_typed(START, &[Type::INT4]).await?;
    show("prepared with int4", db.query_one(&prepared, &[&1_i32]).await?.try_get::<_, i64>(0));
    let rows = db.query_typed(START, &[(&1_i64, Type::INT8)]).await?;
    show("not prepared", rows[0].try_get::<_, i64>(0));
    let messages = db.simple_query("SELECT loader.record_execution_start(1)").await?;
    println!("simple: {} messages", messages.len());
    show(
        "cast in the statement",
        call::<i64>(db, "SELECT loader.record_execution_start($1::int)", &[&1]).await,
    );
    show("large count", end(db, "SUCCESS", [&3_000_000_000_i64, &None::<&str>]).await);
    Ok(())
}

async fn read(db: &Client) -> Result<(), Box<dyn StdError>> {
    let query = "SELECT loader.get_execution_history(page_size => $1)";
    let page: Value = call(db, query, &[&2]).await?;
    let cursor = page["next_cursor"].as_str();
    println!("page: {} {}", page["executions"].as_array().map_or(0, Vec::len), cursor.is_some());
    let since: DateTime<Utc> = "2020-01-01T00:00:00Z".parse()?;
    let query = "SELECT loader.get_execution_history(page_size => $1, \"cursor\" => $2, started_from => $3)";
    show("next page", call::<Value>(db, query, &[&2, &cursor, &since]).await);
    let row = db
        .query_one("SELECT * FROM loader.execution_details WHERE NOT is_running LIMIT 1", &[])
        .await?;
    let columns =
        row.columns().iter().map(|column| format!("{}={}", column.name(), column.type_()));
    println!("row: {}", columns.collect::<Vec<_>>().join(" "));
    let time: DateTime<Utc> = row.try_get("execution_start")?;
    println!("time: {}", time.timestamp() > since.timestamp());
    let row = db.query_one("SELECT * FROM loader.recorder_status()", &[]).await?;
    println!(
        "status: {} {} {:?}",
        row.try_get::<_, bool>("preloaded")?,
        row.try_get::<_, i32>("worker_pid")? > 0,
        row.try_get::<_, Option<&str>>("detail")?
    );
    show("no right", start(db).await);
    Ok(())
}

/// Connects, and prints what kinds of notices come.
async fn connect(dsn: &str) -> Result<Client, Error> {
    let (db, mut connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message {
                println!("notice: {}", notice.severity());
            }
        }
    });
    Ok(db)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn StdError>> {
    let dsns: Vec<String> = env::args().skip(1).collect();
    let [recorder, reader] = dsns.as_slice() else { return Err("two arguments".into()) };
    let db = connect(recorder).await?;
    parameters(&db).await;
    errors(&db).await?;
    ways(&db).await?;
    read(&connect(reader).await?).await
}
