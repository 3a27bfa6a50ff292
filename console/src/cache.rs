//! Answers that many readers share: worked out once for all who ask at the same time, and kept until
//! something has changed.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// An answer is asked for again after this, even where no event tells that it changed: some depend on
/// the time, and events may be turned off.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The last answer.
pub struct Cached<T>(Mutex<Option<Entry<T>>>);

struct Entry<T> {
    value: Arc<T>,
    /// Changes that were known when it was asked for.
    generation: u64,
    asked: Instant,
}

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Cached<T> {
    /// The last answer, if it is not older than the change `generation`, or that of `ask`. Whoever comes
    /// while one is asked for waits for it.
    pub async fn get<E>(
        &self,
        generation: u64,
        ask: impl Future<Output = Result<T, E>>,
    ) -> Result<Arc<T>, E> {
        let mut entry = self.0.lock().await;
        if let Some(entry) = &*entry
            && entry.generation >= generation
            && entry.asked.elapsed() < MAX_AGE
        {
            return Ok(entry.value.clone());
        }
        let asked = Instant::now();
        let value = Arc::new(ask.await?);
        *entry = Some(Entry { value: value.clone(), generation, asked });
        Ok(value)
    }
}
