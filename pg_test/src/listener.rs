//! A session that listens to the extension's events.

use std::collections::BTreeMap;

use fallible_iterator::FallibleIterator;
use postgres::Client;
use serde_json::Value;

use crate::{Cluster, TIMEOUT};

/// A session that listens, and keeps what it has received.
pub struct Listener {
    client: Client,
    /// The events, in their order.
    pub events: Vec<Value>,
}

impl Listener {
    /// Listens in database `postgres`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn new(cluster: &Cluster) -> Self {
        let mut client = cluster.connect();
        client.batch_execute("LISTEN loader_execution").expect("a listener");
        Self { client, events: Vec::new() }
    }

    /// Receives until `last` is true of an event.
    ///
    /// # Panics
    /// When no such event comes within [`TIMEOUT`], or one is no JSON or of another channel.
    #[track_caller]
    pub fn receive_until(&mut self, what: &str, last: impl Fn(&Value) -> bool) {
        let mut notifications = self.client.notifications();
        let mut arriving = notifications.timeout_iter(TIMEOUT);
        loop {
            let Some(notification) = arriving.next().expect("a connection") else {
                panic!("waited in vain for {what}; received {:#?}", self.events);
            };
            assert_eq!(notification.channel(), "loader_execution");
            assert!(notification.payload().len() < 8000);
            let event = serde_json::from_str(notification.payload()).expect("valid JSON");
            let found = last(&event);
            self.events.push(event);
            if found {
                return;
            }
        }
    }

    /// Receives everything that has been committed so far: up to the end of an execution that `session`
    /// now records for loader 10, which is left out.
    ///
    /// # Panics
    /// As [`Self::receive_until`].
    #[track_caller]
    pub fn receive_all(&mut self, session: &mut Client) {
        let query = "SELECT loader.record_execution_start(10)";
        let id: i64 = session.query_one(query, &[]).expect("a start").get(0);
        let end = format!("SELECT loader.record_execution_end({id}, 'SUCCESS')");
        session.batch_execute(&end).expect("an end");
        self.receive_until("the last execution's end", |event| {
            event["execution_id"] == id && event["event_type"] == "EXECUTION_SUCCESS"
        });
        self.events.retain(|event| event["execution_id"] != id);
    }

    /// What was received, for each execution in its order.
    pub fn by_execution(&self) -> BTreeMap<i64, Vec<String>> {
        let mut found = BTreeMap::<_, Vec<_>>::new();
        for event in &self.events {
            let kind = event["event_type"].as_str().unwrap_or_default();
            let kind = kind.strip_prefix("EXECUTION_").unwrap_or(kind).to_owned();
            found.entry(event["execution_id"].as_i64().unwrap_or_default()).or_default().push(kind);
        }
        found
    }
}
