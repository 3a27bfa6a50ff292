//! Loads a file of planes in one transaction, and records it: `load DSN LOADER_ID FILE`

use std::env;
use std::error::Error;
use std::pin::pin;

use bytes::BytesMut;
use futures_util::SinkExt;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_postgres::{Client, NoTls};

const COPY: &str = "COPY planes FROM STDIN (FORMAT csv, HEADER, NULL 'NA')";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

async fn load(dsn: &str, loader_id: i64, path: &str) -> Result<()> {
    let (mut db, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(connection);
    let mut run = None;
    let loaded = load_and_commit(&mut db, loader_id, path, &mut run).await;
    if let (Err(error), Some(run)) = (&loaded, run) {
        // An error of the server's prints itself as "db error": its source says which.
        let text = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        let end = "SELECT loader.record_execution_end($1, 'FAILED', error_message => $2)";
        db.execute(end, &[&run, &text]).await?;
    }
    loaded
}

/// A transaction that is dropped is rolled back.
async fn load_and_commit(
    db: &mut Client,
    loader_id: i64,
    path: &str,
    run: &mut Option<i64>,
) -> Result<()> {
    let db = db.transaction().await?;
    let start = db.query_one("SELECT loader.record_execution_start($1)", &[&loader_id]).await?;
    let run = run.insert(start.get(0));
    let mut copy = pin!(db.copy_in(COPY).await?);
    let mut file = File::open(path).await?;
    let mut block = BytesMut::with_capacity(65536);
    while file.read_buf(&mut block).await? > 0 {
        copy.send(block.split().freeze()).await?;
    }
    let records = i64::try_from(copy.finish().await?)?;
    let end = "SELECT loader.record_execution_end($1, 'SUCCESS', $2)";
    db.execute(end, &[run, &records]).await?;
    Ok(db.commit().await?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [dsn, loader_id, path] = arguments.as_slice() else { return Err("three arguments".into()) };
    load(dsn, loader_id.parse()?, path).await
}
