//! Live events: one LISTEN for all who watch.
//!
//! An event is a hint. A client that was disconnected or too slow gets a gap, and reads the views again.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::Executor;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::database::{self, Database};
use crate::filter::Status;

/// The channel of the extension's events.
const CHANNEL: &str = "loader_execution";

/// Events that a client may be behind before it gets a gap instead.
const BACKLOG: usize = 1024;

/// Pages are told of changes so often, at most.
const TICK: Duration = Duration::from_secs(1);

/// The waits between attempts to reach the database, the first and the longest.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// The channel on which the console tells itself something, to see whether it arrives: through a pooler LISTEN
/// may work and bring nothing.
const OWN_CHANNEL: &str = "loader_history_console";

/// So often it does.
const PROBE: Duration = Duration::from_secs(15);

/// The longest that it may take to arrive, after what came before it.
const ARRIVAL: Duration = Duration::from_secs(10);

/// The longest that the database may take to answer when events are asked for.
const ANSWER: Duration = Duration::from_secs(5);

/// Loaders that a tick names, at most; with more it stands for all.
const NAMED_LOADERS: usize = 1000;

/// What a stream of events carries.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something happened to an execution: the extension's payload.
    Execution {
        /// Counts the events since the console started.
        number: u64,
        /// The loader whose execution it is.
        loader_id: i64,
        /// The JSON object that was notified.
        payload: Arc<str>,
    },
    /// Events may be missing: read again what matters.
    Gap,
}

/// What has changed within a second, for pages.
#[derive(Debug, Clone)]
pub struct Tick {
    /// The loaders that it concerns; `None` stands for all.
    loaders: Option<Arc<HashSet<i64>>>,
}

impl Tick {
    /// A change of everything.
    pub const ALL: Self = Self { loaders: None };

    /// Whether something of `loader` may have changed; of anything, where that is `None`.
    pub fn concerns(&self, loader: Option<i64>) -> bool {
        match (&self.loaders, loader) {
            (Some(loaders), Some(loader)) => loaders.contains(&loader),
            _ => true,
        }
    }
}

/// Takes events from the database and hands them to all who watch.
pub struct Hub {
    events: broadcast::Sender<Event>,
    ticks: broadcast::Sender<Tick>,
    generation: AtomicU64,
    live: AtomicBool,
    changed: std::sync::Mutex<Changed>,
    changes: Notify,
    /// Whether pages will be notified again of the last change.
    again: AtomicBool,
}

/// What has changed since the last tick.
#[derive(Default)]
struct Changed {
    /// Whether anything has.
    any: bool,
    /// Whether pages are notified again of an earlier change.
    again: bool,
    /// Whether it may concern all loaders, or too many to name.
    all: bool,
    loaders: HashSet<i64>,
}

/// What every event of the extension has.
#[derive(Deserialize)]
#[expect(dead_code, reason = "what is not read is checked")]
struct Payload {
    event_type: Kind,
    execution_id: i64,
    loader_id: i64,
    status: Status,
    event_time: DateTime<Utc>,
}

#[derive(Deserialize)]
enum Kind {
    #[serde(rename = "EXECUTION_STARTED")]
    Started,
    #[serde(rename = "EXECUTION_SUCCESS")]
    Success,
    #[serde(rename = "EXECUTION_FAILED")]
    Failed,
}

/// Why no events arrive.
#[derive(Debug, thiserror::Error)]
enum Silence {
    /// Of the connection that listens.
    #[error(transparent)]
    Listen(#[from] sqlx::Error),
    /// Of the connection that notifies.
    #[error(transparent)]
    Notify(#[from] database::Error),
    /// Nothing comes, though the database takes everything.
    #[error(
        "what is notified does not arrive: the network is cut, or a pooler in the mode of transactions takes no LISTEN"
    )]
    Swallowed,
    /// The extension emits no events: `loader_history.notify` is off.
    #[error("loader_history.notify is off")]
    Off,
}

impl Silence {
    /// Whether the database reported it, over a connection that works.
    fn is_of_database(&self) -> bool {
        match self {
            Self::Listen(error) | Self::Notify(database::Error::Database(error)) => {
                error.as_database_error().is_some()
            }
            Self::Notify(_) | Self::Swallowed => false,
            Self::Off => true,
        }
    }
}

fn lost() -> sqlx::Error {
    sqlx::Error::Io(io::ErrorKind::ConnectionAborted.into())
}

/// The database's answer, or that there was none.
async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let answer = timeout(ANSWER, answer).await;
    answer.unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

impl Hub {
    /// No client watches yet.
    pub fn new() -> Self {
        Self {
            events: broadcast::Sender::new(BACKLOG),
            ticks: broadcast::Sender::new(16),
            generation: AtomicU64::new(1),
            live: AtomicBool::new(false),
            changed: std::sync::Mutex::default(),
            changes: Notify::new(),
            again: AtomicBool::new(false),
        }
    }

    /// All events from now on.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// All ticks from now on.
    pub fn watch_ticks(&self) -> broadcast::Receiver<Tick> {
        self.ticks.subscribe()
    }

    /// How many ticks have told of changes: what was read before the last one is old.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether events arrive.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Listens for ever, over a connection of its own, and connects again when it is lost. What it tells itself goes
    /// through `database`.
    pub async fn listen(&self, options: PgConnectOptions, database: Database) {
        let connect = || {
            PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(ANSWER)
                .connect_lazy_with(options.clone())
        };
        let mut pool = connect();
        let mut wait = RETRY[0];
        let mut said = false;
        let mut number = 0;
        loop {
            let error = self.listen_once(&pool, &database, &mut number).await;
            if self.live.swap(false, Ordering::AcqRel) {
                (wait, said) = (RETRY[0], false);
                self.change_all();
            }
            // Said once: a database may be away for long.
            if !said {
                tracing::warn!("no live events until the database gives them: {error}");
                said = true;
            }
            // A connection that does not answer keeps its place in the pool for long.
            if !error.is_of_database() {
                pool = connect();
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY[1]);
        }
    }

    /// Listens until the connection is lost; returns why.
    async fn listen_once(
        &self,
        pool: &sqlx::PgPool,
        database: &Database,
        number: &mut u64,
    ) -> Silence {
        match self.receive(pool, database, number).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn receive(
        &self,
        pool: &sqlx::PgPool,
        database: &Database,
        number: &mut u64,
    ) -> Result<Infallible, Silence> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.eager_reconnect(false);
        in_time(listener.listen_all([CHANNEL, OWN_CHANNEL])).await?;
        // Other consoles may tell themselves something too.
        let token = format!("{} {}", std::process::id(), Utc::now().timestamp_micros());
        // Whether it waits for what it told itself, and until when it does that or waits to.
        let (mut waits, mut until) = (false, Instant::now());
        loop {
            let Ok(received) = timeout_at(until, listener.try_recv()).await else {
                if waits {
                    return Err(Silence::Swallowed);
                }
                waits = match database.notify(OWN_CHANNEL, &token).await {
                    Ok(true) => true,
                    Ok(false) => return Err(Silence::Off),
                    // Pages may keep all connections busy, and a network that is cut gives no error.
                    Err(database::Error::Busy) => {
                        in_time(listener.execute("SELECT")).await?;
                        false
                    }
                    Err(error) => return Err(error.into()),
                };
                until = Instant::now() + if waits { ARRIVAL } else { PROBE };
                continue;
            };
            let notification = received?.ok_or_else(lost)?;
            if notification.channel() == OWN_CHANNEL {
                if notification.payload() == token {
                    (waits, until) = (false, Instant::now() + PROBE);
                    self.become_live();
                }
                continue;
            }
            // It waits behind these.
            if waits {
                until = Instant::now() + ARRIVAL;
            }
            // Anyone may NOTIFY on a channel; what is no event of the extension's is no event.
            let Ok(Payload { loader_id, .. }) = serde_json::from_str(notification.payload()) else {
                tracing::debug!("a notification that is no event of an execution");
                continue;
            };
            *number += 1;
            // On one line, whatever whitespace another client has put between the values: JSON's strings contain none.
            let payload = notification.payload().replace(['\r', '\n'], " ").into();
            let _ = self.events.send(Event::Execution { number: *number, loader_id, payload });
            self.change(loader_id);
        }
    }

    /// Notes that events arrive.
    fn become_live(&self) {
        if !self.live.swap(true, Ordering::AcqRel) {
            tracing::info!("live events arrive");
            // Events committed before the LISTEN have reached no client.
            let _ = self.events.send(Event::Gap);
            self.change_all();
        }
    }

    fn changed(&self) -> std::sync::MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn note(&self, note: impl FnOnce(&mut Changed)) {
        let mut changed = self.changed();
        changed.any = true;
        note(&mut changed);
        drop(changed);
        self.changes.notify_one();
    }

    /// Notes that something of `loader` has changed.
    pub fn change(&self, loader: i64) {
        self.note(|changed| {
            if changed.loaders.len() < NAMED_LOADERS {
                changed.loaders.insert(loader);
            } else {
                changed.all = true;
            }
        });
    }

    /// Notes that everything may have changed.
    fn change_all(&self) {
        self.note(|changed| changed.all = true);
    }

    /// Tells pages of all loaders again after `wait`: they were given what is older than the last change.
    pub fn tell_again(self: &Arc<Self>, wait: Duration) {
        if !self.again.swap(true, Ordering::AcqRel) {
            let hub = self.clone();
            tokio::spawn(async move {
                sleep(wait).await;
                hub.again.store(false, Ordering::Release);
                // No change: the answers that are as new as the last one stay so.
                hub.changed().again = true;
                hub.changes.notify_one();
            });
        }
    }

    /// Tells pages of changes, at once where the last time is long ago and otherwise together.
    pub async fn tick(&self) {
        let mut next = Instant::now();
        loop {
            self.changes.notified().await;
            sleep_until(next).await;
            let Changed { any, again, all, loaders } = std::mem::take(&mut *self.changed());
            // Changes that the last tick told of already.
            if !any && !again {
                continue;
            }
            let loaders = (!all && !again).then(|| Arc::new(loaders));
            next = Instant::now() + TICK;
            if any {
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
            let _ = self.ticks.send(Tick { loaders });
        }
    }
}
