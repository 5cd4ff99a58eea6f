//! When a batch is written: the part of batching that needs no runtime.
//!
//! A batch fills with groups of items. It is written when it holds `max_items`, when the oldest
//! group has waited `max_wait`, or when no group came for `idle`. After a quiet time the first
//! group is written at once: waiting would cost latency and collect nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The limits of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of items in a batch, unless one group alone has more.
    pub max_items: usize,
    /// The longest that the oldest group waits.
    pub max_wait: Duration,
    /// The quiet time after which the batch stops waiting for more.
    pub idle: Duration,
}

/// Why a batch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The group came alone, after a quiet time.
    Quiet,
    /// The batch is full.
    Full,
    /// The oldest group has waited long enough.
    Waited,
    /// No more groups come.
    Idle,
}

impl Reason {
    /// The word in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Full => "full",
            Self::Waited => "waited",
            Self::Idle => "idle",
        }
    }
}

/// What to do with a batch now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tip {
    /// Write it.
    Now(Reason),
    /// Ask again at this time.
    At(Instant),
    /// It is empty.
    Never,
}

struct Group<T> {
    group: T,
    weight: usize,
    came: Instant,
}

/// Groups of items that wait for a write.
pub struct Filling<T> {
    limits: Limits,
    groups: VecDeque<Group<T>>,
    weight: usize,
    newest: Option<Instant>,
    /// When the last write ended, and whether it left groups waiting.
    last_tip: Option<Instant>,
}

impl<T> Filling<T> {
    /// An empty batch.
    pub fn new(limits: Limits) -> Self {
        Self { limits, groups: VecDeque::new(), weight: 0, newest: None, last_tip: None }
    }

    /// Adds a group of `weight` items.
    pub fn push(&mut self, group: T, weight: usize, now: Instant) {
        self.groups.push_back(Group { group, weight, came: now });
        self.weight += weight;
        self.newest = Some(now);
    }

    /// The number of waiting items.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Whether no item waits.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether nothing was written within `idle`, so that there is no burst to wait for.
    pub fn is_quiet(&self, now: Instant) -> bool {
        self.last_tip.is_none_or(|tip| now.saturating_duration_since(tip) >= self.limits.idle)
    }

    /// What to do when no write is in flight.
    pub fn next(&self, now: Instant) -> Tip {
        let (Some(oldest), Some(newest)) = (self.groups.front(), self.newest) else { return Tip::Never };
        if self.weight >= self.limits.max_items {
            return Tip::Now(Reason::Full);
        }
        let (waited, idle) = (oldest.came + self.limits.max_wait, newest + self.limits.idle);
        match now {
            now if waited <= now => Tip::Now(Reason::Waited),
            now if idle <= now => Tip::Now(Reason::Idle),
            _ => Tip::At(waited.min(idle)),
        }
    }

    /// Takes the groups of the next write: whole groups, at most `max_items` items unless the first
    /// has more.
    pub fn take(&mut self) -> Vec<T> {
        let mut taken = Vec::new();
        let mut weight = 0;
        while let Some(group) = self.groups.front() {
            if !taken.is_empty() && weight + group.weight > self.limits.max_items {
                break;
            }
            weight += group.weight;
            self.weight -= group.weight;
            if let Some(group) = self.groups.pop_front() {
                taken.push(group.group);
            }
        }
        taken
    }

    /// Records that a write is finished.
    pub fn tipped(&mut self, now: Instant) {
        self.last_tip = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits =
        Limits { max_items: 10, max_wait: Duration::from_millis(20), idle: Duration::from_millis(2) };

    #[test]
    fn it_tips_when_full_when_old_and_when_nothing_comes() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut filling = Filling::new(LIMITS);
        assert_eq!(filling.next(start), Tip::Never);
        filling.push("a", 3, start);
        assert_eq!(filling.next(start), Tip::At(ms(2)));
        assert_eq!(filling.next(ms(2)), Tip::Now(Reason::Idle));
        for n in 1..20 {
            filling.push("b", 0, ms(n));
        }
        assert_eq!(filling.next(ms(19)), Tip::At(ms(20)));
        assert_eq!(filling.next(ms(20)), Tip::Now(Reason::Waited));
        filling.push("c", 7, ms(19));
        assert_eq!(filling.next(ms(19)), Tip::Now(Reason::Full));
    }

    #[test]
    fn quiet_means_that_no_write_ended_just_now() {
        let start = Instant::now();
        let mut filling = Filling::<()>::new(LIMITS);
        assert!(filling.is_quiet(start));
        filling.tipped(start);
        assert!(!filling.is_quiet(start + Duration::from_millis(1)));
        assert!(filling.is_quiet(start + Duration::from_millis(2)));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_reordered_or_over_the_limit(weights in proptest::collection::vec(0usize..15, 0..60)) {
            let now = Instant::now();
            let mut filling = Filling::new(LIMITS);
            for (n, weight) in weights.iter().enumerate() {
                filling.push((n, *weight), *weight, now);
            }
            prop_assert_eq!(filling.weight(), weights.iter().sum::<usize>());
            let mut seen = Vec::new();
            while !filling.is_empty() {
                let batch = filling.take();
                let weight: usize = batch.iter().map(|(_, weight)| weight).sum();
                prop_assert!(weight <= LIMITS.max_items || batch.len() == 1);
                seen.extend(batch);
            }
            prop_assert_eq!(filling.weight(), 0);
            prop_assert_eq!(seen, weights.into_iter().enumerate().collect::<Vec<_>>());
        }
    }
}
