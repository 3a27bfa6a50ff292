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
pub struct Cached<T, E>(Mutex<Option<Entry<T, E>>>);

struct Entry<T, E> {
    answer: Result<Arc<T>, Arc<E>>,
    /// Changes that were known when it was asked for.
    generation: u64,
    asked: Instant,
    answered: Instant,
}

impl<T, E> Entry<T, E> {
    /// Whether it will do for somebody who came at `came`, knowing of the change `generation`. An error is
    /// only for those who waited for it: each asking anew would make the last wait for all.
    fn will_do(&self, came: Instant, generation: u64) -> bool {
        match self.answer {
            Ok(_) => self.generation >= generation && self.asked.elapsed() < MAX_AGE,
            Err(_) => self.answered >= came,
        }
    }
}

impl<T, E> Default for Cached<T, E> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T, E> Cached<T, E> {
    /// The last answer, if it is not older than the change `generation`, or that of `ask`. Whoever comes
    /// while one is asked for waits for it.
    pub async fn get(
        &self,
        generation: u64,
        ask: impl Future<Output = Result<T, E>>,
    ) -> Result<Arc<T>, Arc<E>> {
        let came = Instant::now();
        let mut entry = self.0.lock().await;
        if let Some(entry) = entry.as_ref().filter(|entry| entry.will_do(came, generation)) {
            return entry.answer.clone();
        }
        let asked = Instant::now();
        let answer = ask.await.map(Arc::new).map_err(Arc::new);
        let answered = Instant::now();
        *entry = Some(Entry { answer: answer.clone(), generation, asked, answered });
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;

    /// What ten readers get who ask at the same time, and how often it is worked out.
    async fn ten(
        cached: &Cached<u32, u32>,
        answer: Result<u32, u32>,
    ) -> (Vec<Result<u32, u32>>, u32) {
        let asked = AtomicU32::new(0);
        let ask = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(20)).await;
            answer
        };
        let readers = (0..10).map(|_| async {
            cached.get(1, ask()).await.map(|value| *value).map_err(|error| *error)
        });
        let got = futures_util::future::join_all(readers).await;
        (got, asked.into_inner())
    }

    #[tokio::test]
    async fn those_who_ask_together_share_answers_and_errors() {
        let cached = Cached::default();
        assert_eq!(ten(&cached, Err(7)).await, (vec![Err(7); 10], 1));
        // Who comes later asks again.
        assert_eq!(ten(&cached, Err(8)).await, (vec![Err(8); 10], 1));
        assert_eq!(ten(&cached, Ok(9)).await, (vec![Ok(9); 10], 1));
        assert_eq!(ten(&cached, Ok(10)).await, (vec![Ok(9); 10], 0));
    }

    #[tokio::test]
    async fn an_answer_is_not_older_than_the_change_that_its_reader_knows_of() {
        let cached = Cached::<u32, ()>::default();
        for (generation, answer, expected) in [(1, 1, 1), (1, 2, 1), (2, 3, 3), (1, 4, 3)] {
            let got = cached.get(generation, async { Ok(answer) }).await;
            assert_eq!(got, Ok(Arc::new(expected)), "{generation}");
        }
    }
}
