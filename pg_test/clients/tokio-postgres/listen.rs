//! Prints events until one says that an execution has ended: `listen DSN`

use std::env;
use std::error::Error;
use std::future::poll_fn;

use serde_json::Value;
use tokio_postgres::{AsyncMessage, NoTls};

async fn listen(dsn: &str) -> Result<(), Box<dyn Error>> {
    let (db, mut connection) = tokio_postgres::connect(dsn, NoTls).await?;
    let (sender, mut messages) = tokio::sync::mpsc::unbounded_channel();
    // Whoever drives the connection gets its messages.
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            let _ = sender.send(message);
        }
    });
    db.batch_execute("LISTEN loader_execution").await?;
    println!("listening");
    while let Some(message) = messages.recv().await {
        let AsyncMessage::Notification(notification) = message else { continue };
        let event: Value = serde_json::from_str(notification.payload())?;
        println!("{} {} {}", event["event_type"], event["execution_id"], event["status"]);
        if event["event_type"] != "EXECUTION_STARTED" {
            return Ok(());
        }
    }
    Err("the connection is lost".into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    listen(&env::args().nth(1).ok_or("one argument")?).await
}
