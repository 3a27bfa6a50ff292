//! What requests share.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::cache::Cached;
use crate::database::{Database, Error, FailedLoaderCounts, FeedEvent, HistoryPage, LoaderSummary};
use crate::events::Hub;
use crate::filter::{ExecutionFilter, Status};

/// Rows of each list of the overview.
pub const OVERVIEW_ROWS: u16 = 50;

/// What requests share.
#[derive(Clone)]
pub struct State(Arc<Shared>);

/// See [`State`].
pub struct Shared {
    /// The database.
    pub database: Database,
    /// Live events.
    pub hub: Arc<Hub>,
    /// A permit for each stream of events.
    pub streams: Arc<Semaphore>,
    /// Becomes true when the console stops.
    pub stopping: watch::Receiver<bool>,
    counts: Cached<FailedLoaderCounts, Error>,
    failed: Cached<Vec<LoaderSummary>, Error>,
    running: Cached<HistoryPage, Error>,
    feed: Cached<Vec<FeedEvent>, Error>,
}

impl State {
    /// Over `database`, with the events of `hub`.
    pub fn new(
        database: Database,
        hub: Arc<Hub>,
        streams: usize,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self(Arc::new(Shared {
            database,
            hub,
            streams: Arc::new(Semaphore::new(streams)),
            stopping,
            counts: Cached::default(),
            failed: Cached::default(),
            running: Cached::default(),
            feed: Cached::default(),
        }))
    }
}

impl std::ops::Deref for State {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Shared {
    /// How many loaders fail. It looks at every loader, so all readers share it.
    pub async fn failed_loader_counts(&self) -> Result<Arc<FailedLoaderCounts>, Arc<Error>> {
        let database = self.database.clone();
        self.counts.get(&self.hub, async move { database.failed_loader_counts().await }).await
    }

    /// The loaders of the overview that fail.
    pub async fn failed_loaders(&self) -> Result<Arc<Vec<LoaderSummary>>, Arc<Error>> {
        let database = self.database.clone();
        let ask = async move { database.failed_loaders(OVERVIEW_ROWS.into()).await };
        self.failed.get(&self.hub, ask).await
    }

    /// The newest executions that run.
    pub async fn running(&self) -> Result<Arc<HistoryPage>, Arc<Error>> {
        let database = self.database.clone();
        let running =
            ExecutionFilter { status: Some(Status::Running), ..ExecutionFilter::default() };
        let ask = async move { database.history(None, &running, OVERVIEW_ROWS.into(), None).await };
        self.running.get(&self.hub, ask).await
    }

    /// The newest events.
    pub async fn newest_events(&self) -> Result<Arc<Vec<FeedEvent>>, Arc<Error>> {
        let database = self.database.clone();
        let ask = async move { database.activity_feed(OVERVIEW_ROWS.into(), None, None).await };
        self.feed.get(&self.hub, ask).await
    }
}
