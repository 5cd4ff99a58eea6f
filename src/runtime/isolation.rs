//! Finds the item that keeps a batch from being written, so that the rest can be written: the part
//! that needs no runtime.
//!
//! If the store *refuses* an item, the batch is split at once, down to that item. A transient error
//! is harder: a store that is away fails every batch, and a bad item may fail with the same error.
//! Only other writes tell the two apart. So a batch that has failed [`SPLIT_AFTER`] times is tried
//! in halves, and parts take turns with new batches. A failure counts against a part only if
//! *something else was written* since its last failure. A part with such a failure is split. A
//! single item with [`GIVE_UP_AFTER`] such failures is given up with its error. While nothing at
//! all can be written, nothing is given up, however long that takes, and only one write is tried
//! per pause.

use crate::error_chain::ErrorChain;
use crate::store::{StoreError, StoreResult};
use rand::seq::SliceRandom;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The shortest pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// After this many failures, a batch is tried in halves.
const SPLIT_AFTER: u32 = 4;
/// An item is given up after this many failures while others were written. With the pauses, that
/// takes at least half a minute. A lock or a full disk that affects only some statements has mostly
/// passed by then.
const GIVE_UP_AFTER: u32 = 12;
/// After this many failures in a row, the store is considered away.
pub const MISSES: usize = 3;

/// A batch, or a part of one.
#[derive(Debug)]
pub struct Part<T> {
    /// The items to write together.
    pub items: Vec<T>,
    /// When the items were first tried.
    pub begun: Instant,
    failures: u32,
    /// Failures with another write since the failure before.
    beaten: u32,
    /// [`Retries::written`] at the last failure.
    seen: u64,
    at: Instant,
    error: String,
}

/// What to do next.
#[derive(Debug)]
pub enum Next<T> {
    /// Try this part again.
    Part(Part<T>),
    /// Write a new batch.
    Fresh,
    /// Ask again at this time.
    At(Instant),
    /// Nothing to do.
    Nothing,
}

/// Batches and parts that failed.
#[derive(Debug)]
pub struct Retries<T> {
    parts: VecDeque<Part<T>>,
    /// Writes that succeeded.
    written: u64,
    /// Writes that failed since the last one that succeeded.
    failures: u32,
    not_before: Option<Instant>,
    /// The next turn belongs to a new batch.
    fresh_next: bool,
}

fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX)
}

impl<T> Default for Retries<T> {
    fn default() -> Self {
        Self { parts: VecDeque::new(), written: 0, failures: 0, not_before: None, fresh_next: false }
    }
}

impl<T> Retries<T> {
    /// A batch that has not been tried yet.
    pub fn begin(&self, items: Vec<T>, now: Instant) -> Part<T> {
        Part { items, begun: now, failures: 0, beaten: 0, seen: self.written, at: now, error: String::new() }
    }

    /// Whether no failed part waits.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether the last write succeeded, and no part waits.
    pub fn is_clean(&self) -> bool {
        self.parts.is_empty() && self.failures == 0
    }

    /// What to do when no write is in flight. `fresh` is when a new batch is due, if there is one.
    pub fn next(&mut self, now: Instant, fresh: Option<Instant>) -> Next<T> {
        let earliest = self.parts.iter().map(|part| part.at).chain(fresh).min();
        let Some(earliest) = earliest else { return Next::Nothing };
        let at = self.not_before.map_or(earliest, |pause| pause.max(earliest));
        if at > now {
            return Next::At(at);
        }
        let is_fresh = fresh.is_some_and(|at| at <= now);
        let due = self.parts.iter().position(|part| part.at <= now);
        match due {
            Some(due) if !(is_fresh && self.fresh_next) => {
                self.fresh_next = true;
                self.parts.remove(due).map_or(Next::Nothing, Next::Part)
            }
            _ => {
                self.fresh_next = false;
                Next::Fresh
            }
        }
    }

    /// A part was written, so the store works.
    pub fn written(&mut self, now: Instant) {
        self.written += 1;
        self.failures = 0;
        self.not_before = None;
        // There is no evidence against these parts.
        self.parts.iter_mut().filter(|part| part.beaten == 0).for_each(|part| part.at = now);
    }

    /// A part was not written. Returns the item to give up, if any. The rest is tried again.
    pub fn failed(&mut self, mut part: Part<T>, error: &StoreError, now: Instant) -> Option<T> {
        part.error = error.chain().to_string();
        if !error.is_transient() {
            // The store has examined it: no reason to wait.
            if part.items.len() <= 1 {
                return part.items.pop();
            }
            let [first, second] = self.split(part, now);
            self.parts.push_front(second);
            self.parts.push_front(first);
            return None;
        }
        self.failures += 1;
        if self.failures > 1 {
            self.not_before = Some(now + pause(self.failures - 2));
        }
        part.failures += 1;
        part.beaten += u32::from(self.written > part.seen);
        part.seen = self.written;
        part.at = now + pause(part.failures - 1);
        if part.items.len() <= 1 {
            if part.beaten >= GIVE_UP_AFTER {
                return part.items.pop();
            }
            self.parts.push_back(part);
        } else if part.beaten > 0 || part.failures >= SPLIT_AFTER {
            let halves = self.split(part, now + PAUSE_MIN);
            self.parts.extend(halves);
        } else {
            self.parts.push_back(part);
        }
        None
    }

    fn split(&self, mut part: Part<T>, at: Instant) -> [Part<T>; 2] {
        let second = part.items.split_off(part.items.len() / 2);
        let of =
            |items, error| Part { items, begun: part.begun, failures: 0, beaten: 0, seen: self.written, at, error };
        [of(part.items, part.error.clone()), of(second, part.error)]
    }

    /// When the oldest waiting part was first tried, and its last error.
    pub fn oldest(&self) -> Option<(Instant, &str)> {
        self.parts.iter().min_by_key(|part| part.begun).map(|part| (part.begun, part.error.as_str()))
    }
}

/// Calls `call` for each item of a failed batch, so that a bad item doesn't stop the others. The
/// order is random. After [`MISSES`] transient errors in a row, the rest is not tried: those
/// results are `None`.
pub async fn one_by_one<T, R>(
    items: &[T],
    mut call: impl AsyncFnMut(&T) -> StoreResult<R>,
) -> Vec<Option<StoreResult<R>>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.shuffle(&mut rand::rng());
    let mut results: Vec<_> = items.iter().map(|_| None).collect();
    let mut misses = 0;
    for place in order {
        let result = call(&items[place]).await;
        misses = if result.as_ref().is_err_and(StoreError::is_transient) { misses + 1 } else { 0 };
        results[place] = Some(result);
        if misses >= MISSES {
            break;
        }
    }
    results
}

/// Calls `call` for each action, which the log shows as `shown`. A failing action is logged and doesn't stop the others. Returns
/// the first transient error.
pub async fn for_each_action<T>(
    items: &[T],
    shown: impl Fn(&T) -> String,
    call: impl AsyncFnMut(&T) -> StoreResult<()>,
) -> StoreResult<()> {
    let mut first = None;
    for (item, result) in items.iter().zip(one_by_one(items, call).await) {
        match result {
            None | Some(Ok(())) => {}
            Some(Err(error)) if error.is_transient() => {
                log::warn!(action = shown(item), error:% = error.chain(); "an action waits for the store");
                first.get_or_insert(error);
            }
            Some(Err(error)) => {
                log::error!(action = shown(item), error:% = error.chain(); "an action is passed over");
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// Calls `call` for all actions at once, and for each alone if that fails.
pub async fn for_all_actions(
    nos: &[i64],
    shown: impl Fn(&i64) -> String,
    mut call: impl AsyncFnMut(Vec<i64>) -> StoreResult<()>,
) -> StoreResult<()> {
    match call(nos.to_vec()).await {
        Err(_) if nos.len() > 1 => for_each_action(nos, shown, async |no| call(vec![*no]).await).await,
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn away() -> StoreError {
        StoreError::Unavailable("it is away".into())
    }

    /// A store in which some items fail in one of two ways, and which is away for a while.
    struct World {
        retries: Retries<usize>,
        now: Instant,
        away_until: Instant,
        poison: BTreeSet<usize>,
        transient: bool,
        fresh: VecDeque<Vec<usize>>,
        written: Vec<usize>,
        given_up: Vec<usize>,
        tries: usize,
    }

    impl World {
        fn new(poison: BTreeSet<usize>, transient: bool, fresh: Vec<Vec<usize>>) -> Self {
            let now = Instant::now();
            let (retries, fresh) = (Retries::default(), fresh.into());
            let (written, given_up) = (Vec::new(), Vec::new());
            Self { retries, now, away_until: now, poison, transient, fresh, written, given_up, tries: 0 }
        }

        /// One step. False when nothing is left to do.
        fn step(&mut self) -> bool {
            let fresh = (!self.fresh.is_empty()).then_some(self.now);
            let part = match self.retries.next(self.now, fresh) {
                Next::Nothing => return false,
                Next::At(at) => {
                    assert!(at > self.now);
                    self.now = at;
                    return true;
                }
                Next::Fresh => {
                    let items = self.fresh.pop_front().unwrap_or_default();
                    self.retries.begin(items, self.now)
                }
                Next::Part(part) => part,
            };
            self.tries += 1;
            self.now += Duration::from_millis(1);
            let error = if self.now < self.away_until {
                Some(away())
            } else if part.items.iter().any(|item| self.poison.contains(item)) {
                Some(if self.transient { away() } else { StoreError::Corrupt("poison".into()) })
            } else {
                None
            };
            match error {
                None => {
                    self.written.extend(&part.items);
                    self.retries.written(self.now);
                }
                Some(error) => self.given_up.extend(self.retries.failed(part, &error, self.now)),
            }
            true
        }

        fn waiting(&self) -> usize {
            let parts = self.retries.parts.iter().map(|part| part.items.len());
            parts.sum::<usize>() + self.fresh.iter().map(Vec::len).sum::<usize>()
        }
    }

    fn sorted(items: &[usize]) -> Vec<usize> {
        let mut items = items.to_vec();
        items.sort_unstable();
        items
    }

    proptest! {
        #[test]
        fn what_is_refused_is_found_and_everything_else_is_written_once(
            poison in prop::collection::btree_set(0usize..300, 0..6), transient: bool, outage in 0u64..300,
        ) {
            let mut world = World::new(poison.clone(), transient, vec![(0..150).collect(), (150..300).collect()]);
            world.away_until = world.now + Duration::from_secs(outage);
            let mut steady = 300;
            for _ in 0..200_000 {
                // Other batches come all the time.
                if world.fresh.is_empty() && !world.retries.is_empty() && world.now >= world.away_until {
                    world.fresh.push_back(vec![steady]);
                    steady += 1;
                }
                if !world.step() {
                    break;
                }
            }
            prop_assert_eq!(world.waiting(), 0);
            prop_assert_eq!(sorted(&world.given_up), poison.iter().copied().collect::<Vec<_>>());
            let expected: Vec<usize> = (0..steady).filter(|item| !poison.contains(item)).collect();
            prop_assert_eq!(sorted(&world.written), expected);
            prop_assert!(world.retries.oldest().is_none());
        }

        #[test]
        fn a_store_that_is_away_refuses_nothing_and_is_not_hammered(
            batches in prop::collection::vec(1usize..400, 1..6), outage in 60u64..10_000,
        ) {
            let fresh: Vec<Vec<usize>> = batches.iter().map(|size| (0..*size).collect()).collect();
            let all: usize = batches.iter().sum();
            let mut world = World::new(BTreeSet::new(), true, fresh);
            let began = world.now;
            world.away_until = world.now + Duration::from_secs(outage);
            while world.now < world.away_until {
                prop_assert!(world.step());
                prop_assert_eq!((world.waiting() + world.written.len(), world.given_up.len()), (all, 0));
            }
            let tries = world.tries as u64;
            prop_assert!(tries <= 12 + outage / PAUSE_MAX.as_secs() * 2, "{tries} tries in {outage} s");
            let since = world.retries.oldest().map(|(since, _)| since);
            prop_assert!(since.is_some_and(|since| since <= began + Duration::from_secs(1)), "it is seen");
            let back = world.now;
            while world.step() {}
            prop_assert_eq!((world.written.len(), world.given_up.len()), (all, 0));
            prop_assert!(world.now - back < PAUSE_MAX + Duration::from_secs(2));
        }
    }

    #[test]
    fn an_item_that_is_refused_alone_waits_while_nothing_else_is_written() {
        let mut world = World::new([0].into(), true, vec![vec![0]]);
        for _ in 0..10_000 {
            assert!(world.step());
        }
        assert_eq!((world.waiting(), world.given_up.len()), (1, 0));
        // Other batches come, and show that the store works.
        let mut others = 0;
        while world.given_up.is_empty() {
            if world.fresh.is_empty() {
                others += 1;
                world.fresh.push_back(vec![others]);
            }
            world.step();
        }
        assert_eq!(world.given_up, [0]);
        assert!(world.written.len() >= GIVE_UP_AFTER as usize - 1);
    }

    #[test]
    fn a_refused_item_is_found_in_few_tries() {
        let mut world = World::new([700].into(), false, vec![(0..1024).collect()]);
        while world.step() {}
        assert_eq!((world.given_up.as_slice(), world.written.len()), (&[700][..], 1023));
        assert!(world.tries <= 21, "{}", world.tries);
    }

    #[tokio::test]
    async fn one_at_fault_stops_no_other_and_a_store_that_is_away_is_left_alone() {
        let items: Vec<usize> = (0..50).collect();
        let results = one_by_one(&items, async |item| if *item == 7 { Err(away()) } else { Ok(*item) }).await;
        assert_eq!(results.iter().filter(|result| matches!(result, Some(Ok(_)))).count(), 49);
        assert!(matches!(results[7], Some(Err(_))));
        let results = one_by_one(&items, async |_| Err::<(), _>(away())).await;
        assert_eq!(results.iter().filter(|result| result.is_some()).count(), MISSES);
    }
}
