//! Answers that many readers share: worked out once for all who ask at the same time, and kept until
//! something has changed.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::events::Hub;

/// An answer is asked for again after this, even where no event tells that it changed: some depend on
/// the time, and events may be turned off.
const MAX_AGE: Duration = Duration::from_secs(5);

/// An answer is kept for so many times what it took, whatever changes: with ten thousand loaders the
/// database would do nothing else.
const REST: u32 = 9;

/// The longest that an answer is kept for what it took.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The last answer.
pub struct Cached<T, E>(Arc<Mutex<Option<Entry<T, E>>>>);

struct Entry<T, E> {
    answer: Result<Arc<T>, Arc<E>>,
    /// Changes that were known when it was asked for.
    generation: u64,
    asked: Instant,
    answered: Instant,
}

impl<T, E> Entry<T, E> {
    /// How long it is kept whatever changes; an error not at all.
    fn rest(&self) -> Duration {
        match self.answer {
            Ok(_) => ((self.answered - self.asked) * REST).min(LONGEST_REST),
            Err(_) => Duration::ZERO,
        }
    }

    /// Whether it answers a request that came at `came` and knows of the change `generation`. An error is only for
    /// the requests that waited for it: if each asked again, the last one would wait for all.
    fn is_new(&self, came: Instant, generation: u64) -> bool {
        match self.answer {
            Ok(_) => self.generation >= generation && self.asked.elapsed() < MAX_AGE,
            Err(_) => self.answered >= came,
        }
    }
}

impl<T, E> Default for Cached<T, E> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Send + Sync + 'static, E: Send + Sync + 'static> Cached<T, E> {
    /// The last answer, if it is new enough, or that of `ask`. Requests that come meanwhile wait for it.
    /// If it is older than the last change that `hub` knows of, pages are notified again when a newer one is
    /// to be had.
    pub async fn get(
        &self,
        hub: &Arc<Hub>,
        ask: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<Arc<T>, Arc<E>> {
        let (came, known) = (Instant::now(), hub.generation());
        let mut entry = self.0.clone().lock_owned().await;
        if let Some(entry) = &*entry {
            let rests = entry.rest().saturating_sub(entry.asked.elapsed());
            if !rests.is_zero() && entry.generation < known {
                hub.tell_again(rests);
            }
            if !rests.is_zero() || entry.is_new(came, known) {
                return entry.answer.clone();
            }
        }
        let generation = hub.generation();
        // To its end, though who asked first may leave: others wait for it.
        let asking = tokio::spawn(async move {
            let asked = Instant::now();
            let answer = ask.await.map(Arc::new).map_err(Arc::new);
            let answered = Instant::now();
            *entry = Some(Entry { answer: answer.clone(), generation, asked, answered });
            answer
        });
        asking.await.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()))
    }
}

/// Answers to questions that differ, so many of them at most that nobody waits for.
const KEPT: usize = 64;

/// The last answer to each question.
pub struct CachedByKey<K, T, E>(std::sync::Mutex<HashMap<K, Cached<T, E>>>);

impl<K, T, E> Default for CachedByKey<K, T, E> {
    fn default() -> Self {
        Self(std::sync::Mutex::default())
    }
}

impl<K: Eq + Hash, T, E> CachedByKey<K, T, E> {
    /// The last answer to `question`.
    pub fn of(&self, question: K) -> Cached<T, E> {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.len() >= KEPT && !kept.contains_key(&question) {
            kept.retain(|_, answer| Arc::strong_count(&answer.0) > 1);
        }
        Cached(kept.entry(question).or_default().0.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::{sleep, timeout};

    use super::*;

    /// A hub that ticks.
    fn hub() -> Arc<Hub> {
        let hub = Arc::new(Hub::new());
        let ticking = hub.clone();
        tokio::spawn(async move { ticking.tick().await });
        hub
    }

    /// Something of loader 1 changes, and it is known.
    async fn change(hub: &Hub) {
        let mut ticks = hub.watch_ticks();
        hub.change(1);
        ticks.recv().await.unwrap();
    }

    /// What ten readers get who ask at the same time, and how often it is worked out.
    async fn ten(
        cached: &Cached<u32, u32>,
        answer: Result<u32, u32>,
    ) -> (Vec<Result<u32, u32>>, u32) {
        let (hub, asked) = (hub(), Arc::new(AtomicU32::new(0)));
        let ask = || {
            let asked = asked.clone();
            async move {
                asked.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(20)).await;
                answer
            }
        };
        let readers = (0..10).map(|_| async {
            cached.get(&hub, ask()).await.map(|value| *value).map_err(|error| *error)
        });
        let got = futures_util::future::join_all(readers).await;
        (got, asked.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn those_who_ask_together_share_answers_and_errors() {
        let cached = Cached::default();
        assert_eq!(ten(&cached, Err(7)).await, (vec![Err(7); 10], 1));
        // Later requests ask again.
        assert_eq!(ten(&cached, Err(8)).await, (vec![Err(8); 10], 1));
        assert_eq!(ten(&cached, Ok(9)).await, (vec![Ok(9); 10], 1));
        assert_eq!(ten(&cached, Ok(10)).await, (vec![Ok(9); 10], 0));
    }

    #[tokio::test]
    async fn an_answer_is_not_older_than_the_change_that_its_reader_knows_of() {
        let (cached, hub) = (Cached::<u32, ()>::default(), hub());
        for (changes, answer, expected) in
            [(true, 1, 1), (false, 2, 1), (true, 3, 3), (false, 4, 3)]
        {
            if changes {
                change(&hub).await;
            }
            let got = cached.get(&hub, async move { Ok(answer) }).await;
            assert_eq!(got, Ok(Arc::new(expected)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_takes_longer_than_changes_do_is_for_all_who_waited() {
        let (cached, hub) = (Cached::<u32, ()>::default(), hub());
        let asked = Arc::new(AtomicU32::new(0));
        let readers = (0..600).map(|reader| {
            let (cached, hub, asked) = (&cached, &hub, asked.clone());
            async move {
                sleep(Duration::from_millis(reader * 100)).await;
                hub.change(1);
                let came = Instant::now();
                let ask = async move {
                    asked.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_secs(6)).await;
                    Ok(1)
                };
                cached.get(hub, ask).await.unwrap();
                assert!(came.elapsed() <= Duration::from_secs(6), "{:?}", came.elapsed());
            }
        });
        futures_util::future::join_all(readers).await;
        assert_eq!(asked.load(Ordering::Relaxed), 2, "one in 30 seconds of a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_took_long_is_kept_and_pages_are_told_when_it_is_old() {
        let (cached, hub) = (Cached::<u32, ()>::default(), hub());
        let slow = |answer| async move {
            sleep(Duration::from_millis(500)).await;
            Ok(answer)
        };
        assert_eq!(cached.get(&hub, slow(1)).await, Ok(Arc::new(1)));
        change(&hub).await;
        let (mut ticks, known) = (hub.watch_ticks(), hub.generation());
        assert_eq!(cached.get(&hub, slow(2)).await, Ok(Arc::new(1)));
        let tick = ticks.recv().await.unwrap();
        assert!(tick.concerns(None) && tick.concerns(Some(1)), "{tick:?}");
        assert_eq!(hub.generation(), known, "other answers are no older by that");
        assert_eq!(cached.get(&hub, slow(2)).await, Ok(Arc::new(2)));
    }

    #[tokio::test]
    async fn questions_that_nobody_waits_for_are_forgotten_when_there_are_many() {
        let (cached, hub) = (CachedByKey::<usize, usize, ()>::default(), hub());
        let waiting = cached.of(7);
        for question in 0..10 * KEPT {
            let answer = cached.of(question).get(&hub, async move { Ok(question) }).await;
            assert_eq!(answer, Ok(Arc::new(question)));
            assert!(cached.0.lock().unwrap().len() <= KEPT);
        }
        // Still the one that others ask for.
        assert!(Arc::ptr_eq(&waiting.0, &cached.of(7).0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_takes_the_answer_from_nobody() {
        let (cached, hub) = (Cached::<u32, ()>::default(), hub());
        let slow = |answer| async move {
            sleep(Duration::from_millis(200)).await;
            Ok(answer)
        };
        let left = timeout(Duration::from_millis(50), cached.get(&hub, slow(1))).await;
        assert!(left.is_err());
        assert_eq!(cached.get(&hub, slow(2)).await, Ok(Arc::new(1)));
    }
}
