//! What requests share.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::cache::{Cached, CachedByKey};
use crate::database::{
    Database, Error, FailedLoaderCounts, FeedEvent, HistoryPage, LoaderSummary, Point, Recorder,
    Running,
};
use crate::events::Hub;
use crate::filter::{ExecutionFilter, Status};

/// Rows of each list of the overview.
pub const OVERVIEW_ROWS: u16 = 50;

/// Exports that may be under way at the same time: each holds a page in memory for as long as its client takes.
const EXPORTS: usize = 16;

/// Large pages of JSON that may be under way at the same time: each is in memory, up to 8 MB or four times that, for
/// as long as its client takes.
const LARGE_PAGES: usize = 8;

/// Executions of a page.
const PAGE_SIZE: i32 = 50;

/// Executions that the chart shows.
const CHART_SIZE: i64 = 200;

/// A page of the history: the loader's, or of all, what is left of it, and where it goes on.
type PageKey = (Option<i64>, ExecutionFilter, Option<String>);

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
    /// A permit for each export.
    pub exports: Arc<Semaphore>,
    /// A permit for each large page of JSON.
    pub large_pages: Arc<Semaphore>,
    /// Becomes true when the console stops.
    pub stopping: watch::Receiver<bool>,
    counts: Cached<FailedLoaderCounts, Error>,
    failed: Cached<Vec<LoaderSummary>, Error>,
    running: Cached<HistoryPage, Error>,
    feed: Cached<Vec<FeedEvent>, Error>,
    running_counts: Cached<Running, Error>,
    loader_count: Cached<i64, Error>,
    recorder: Cached<Recorder, Error>,
    loaders: CachedByKey<(i64, bool), Vec<LoaderSummary>, Error>,
    loader: CachedByKey<i64, Option<LoaderSummary>, Error>,
    points: CachedByKey<(i64, ExecutionFilter), Vec<Point>, Error>,
    pages: CachedByKey<PageKey, HistoryPage, Error>,
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
            exports: Arc::new(Semaphore::new(EXPORTS)),
            large_pages: Arc::new(Semaphore::new(LARGE_PAGES)),
            streams: Arc::new(Semaphore::new(streams)),
            stopping,
            counts: Cached::default(),
            failed: Cached::default(),
            running: Cached::default(),
            feed: Cached::default(),
            running_counts: Cached::default(),
            loader_count: Cached::default(),
            recorder: Cached::default(),
            loaders: CachedByKey::default(),
            loader: CachedByKey::default(),
            points: CachedByKey::default(),
            pages: CachedByKey::default(),
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
        let ask =
            async move { database.activity_feed(OVERVIEW_ROWS.into(), None, None, None).await };
        self.feed.get(&self.hub, ask).await
    }

    /// How much runs.
    pub async fn running_counts(&self) -> Result<Arc<Running>, Arc<Error>> {
        let database = self.database.clone();
        self.running_counts.get(&self.hub, async move { database.running().await }).await
    }

    /// How many loaders have history. It looks at every loader.
    pub async fn loader_count(&self) -> Result<Arc<i64>, Arc<Error>> {
        let database = self.database.clone();
        self.loader_count.get(&self.hub, async move { database.count_loaders().await }).await
    }

    /// How the recorder is.
    pub async fn recorder(&self) -> Result<Arc<Recorder>, Arc<Error>> {
        let database = self.database.clone();
        self.recorder.get(&self.hub, async move { database.recorder().await }).await
    }

    /// A page of the loaders with ids above `after`, and one more where others follow: all, or those that fail.
    pub async fn loaders(
        &self,
        after: i64,
        only_failed: bool,
    ) -> Result<Arc<Vec<LoaderSummary>>, Arc<Error>> {
        let (database, only) = (self.database.clone(), only_failed.then_some(true));
        let ask = async move { database.loaders(after, only, i64::from(OVERVIEW_ROWS) + 1).await };
        self.loaders.of((after, only_failed)).get(&self.hub, ask).await
    }

    /// What is said of a loader; nothing where it has no history.
    pub async fn loader(&self, id: i64) -> Result<Arc<Option<LoaderSummary>>, Arc<Error>> {
        let database = self.database.clone();
        self.loader.of(id).get(&self.hub, async move { database.loader(id).await }).await
    }

    /// What a loader's chart shows of the executions that `filter` leaves.
    pub async fn points(
        &self,
        loader: i64,
        filter: &ExecutionFilter,
    ) -> Result<Arc<Vec<Point>>, Arc<Error>> {
        let (database, filter) = (self.database.clone(), filter.clone());
        let cached = self.points.of((loader, filter.clone()));
        let ask = async move { database.points(loader, &filter, CHART_SIZE).await };
        cached.get(&self.hub, ask).await
    }

    /// A page of the history, for people.
    pub async fn history(
        &self,
        loader: Option<i64>,
        filter: &ExecutionFilter,
        cursor: Option<&str>,
    ) -> Result<Arc<HistoryPage>, Arc<Error>> {
        let (database, filter) = (self.database.clone(), filter.clone());
        let cursor = cursor.map(str::to_owned);
        let cached = self.pages.of((loader, filter.clone(), cursor.clone()));
        let ask =
            async move { database.history(loader, &filter, PAGE_SIZE, cursor.as_deref()).await };
        cached.get(&self.hub, ask).await
    }
}
