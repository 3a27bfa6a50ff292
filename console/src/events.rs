//! Live events: one LISTEN for all who watch.
//!
//! An event is a hint. Whoever was away, or too slow, is told of a gap, and reads the views again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep, sleep_until};

/// The channel of the extension's events.
const CHANNEL: &str = "loader_execution";

/// Events that a reader may be behind before it is told of a gap instead.
const BACKLOG: usize = 1024;

/// Pages are told of changes so often, at most.
const TICK: Duration = Duration::from_secs(1);

/// The waits between attempts to reach the database, the first and the longest.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

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
    /// Loaders with events since the last tick; `None` stands for all.
    changed: std::sync::Mutex<Option<HashSet<i64>>>,
    changes: Notify,
}

/// What the console reads of a payload.
#[derive(Deserialize)]
struct Payload {
    loader_id: i64,
}

impl Hub {
    /// Nobody watches yet.
    pub fn new() -> Self {
        Self {
            events: broadcast::Sender::new(BACKLOG),
            ticks: broadcast::Sender::new(16),
            generation: AtomicU64::new(1),
            live: AtomicBool::new(false),
            changed: std::sync::Mutex::new(Some(HashSet::new())),
            changes: Notify::new(),
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

    /// How many ticks there have been: what was read before the last one is old.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether events arrive.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Listens for ever, over a connection of its own, and connects again when it is lost.
    pub async fn listen(&self, options: PgConnectOptions) {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(RETRY[1])
            .connect_lazy_with(options);
        let mut wait = RETRY[0];
        let mut said = false;
        let mut number = 0;
        loop {
            let lost = match self.listen_once(&pool, &mut number).await {
                Ok(()) => "the connection was lost".to_owned(),
                Err(error) => error.to_string(),
            };
            if self.live.swap(false, Ordering::AcqRel) {
                (wait, said) = (RETRY[0], false);
                self.change(None);
            }
            // Said once: a database may be away for long.
            if !said {
                tracing::warn!("no live events until the database answers: {lost}");
                said = true;
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY[1]);
        }
    }

    /// Listens until the connection is lost.
    async fn listen_once(&self, pool: &sqlx::PgPool, number: &mut u64) -> sqlx::Result<()> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        tracing::info!("live events arrive");
        self.live.store(true, Ordering::Release);
        // What was committed before the LISTEN was told to nobody.
        let _ = self.events.send(Event::Gap);
        self.change(None);
        while let Some(notification) = listener.try_recv().await? {
            // Anyone may NOTIFY on a channel; what is no event of the extension's is no event.
            let Ok(Payload { loader_id }) = serde_json::from_str(notification.payload()) else {
                tracing::debug!("a notification that is no event of an execution");
                continue;
            };
            *number += 1;
            let payload = notification.payload().into();
            let _ = self.events.send(Event::Execution { number: *number, loader_id, payload });
            self.change(Some(loader_id));
        }
        Ok(())
    }

    /// Notes that something of `loader`, or of all, has changed.
    fn change(&self, loader: Option<i64>) {
        let mut changed = self.changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match (&mut *changed, loader) {
            (Some(loaders), Some(loader)) if loaders.len() < NAMED_LOADERS => {
                loaders.insert(loader);
            }
            _ => *changed = None,
        }
        drop(changed);
        self.changes.notify_one();
    }

    /// Tells pages of changes, at once where the last time is long ago and otherwise together.
    pub async fn tick(&self) {
        let mut next = Instant::now();
        loop {
            self.changes.notified().await;
            sleep_until(next).await;
            next = Instant::now() + TICK;
            let mut changed =
                self.changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let loaders = changed.replace(HashSet::new()).map(Arc::new);
            drop(changed);
            self.generation.fetch_add(1, Ordering::AcqRel);
            let _ = self.ticks.send(Tick { loaders });
        }
    }
}
