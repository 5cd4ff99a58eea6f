//! The order of the items: a sorted head, followed by unsorted runs, each wholly after the one
//! before.
//!
//! Only the items that leave soon are sorted. The rest is divided coarsely, and each run is divided
//! again when it grows or its turn comes. So an insert is a search among a few hundred runs and a
//! push, a pop is a pop from a short vector, and no operation takes longer than a run is long. A
//! heap pays for its order with a cache miss per level, a timing wheel with moving entries from
//! wheel to wheel, and neither knows its farthest entry.

use std::cmp::Ordering;
use std::collections::VecDeque;

/// Number of items that are sorted at a time. The head holds at most twice as many.
const HEAD: usize = 128;
/// The lengths to which a long run is cut, step by step, before its beginning is sorted.
const CUTS: [usize; 2] = [1_024, HEAD];
/// A longer run is divided.
const RUN: usize = 8_192;

/// An entry's place in the order, and the slot with the rest of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<T> {
    pub due: T,
    /// Unique and growing, so that items with equal times leave in order of arrival.
    pub sequence: u64,
    /// The inverted priority, so that the highest comes first: bitwise, because every value has an
    /// inverse.
    pub rank: i32,
    pub slot: u32,
}

impl<T: Ord> Ord for Item<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.due.cmp(&other.due).then(self.rank.cmp(&other.rank)).then(self.sequence.cmp(&other.sequence))
    }
}

impl<T: Ord> PartialOrd for Item<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> PartialEq for Item<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Ord> Eq for Item<T> {}

/// See the module.
#[derive(Debug)]
pub(super) struct Order<T> {
    /// Descending: the last item is next.
    head: Vec<Item<T>>,
    /// Each run comes wholly after the head and the runs before it.
    runs: VecDeque<Vec<Item<T>>>,
    /// For each run, an item that all its items come after. No item before the run does.
    after: VecDeque<Item<T>>,
    /// The due times of `after`: searching plain times takes a third of the time.
    after_due: VecDeque<T>,
    len: usize,
}

impl<T: Copy + Ord> Order<T> {
    pub fn new() -> Self {
        let (runs, after, after_due) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { head: Vec::new(), runs, after, after_due, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn push(&mut self, item: Item<T>) {
        self.len += 1;
        let mut runs = self.after_due.partition_point(|due| *due < item.due);
        if self.after_due.get(runs) == Some(&item.due) {
            runs = self.after.partition_point(|after| *after < item);
        }
        // The item belongs to the last run that it comes after.
        let Some(index) = runs.checked_sub(1) else { return self.push_to_head(item) };
        self.runs[index].push(item);
        if self.runs[index].len() > RUN {
            self.divide(index, RUN / 2);
        }
    }

    fn push_to_head(&mut self, item: Item<T>) {
        let place = self.head.partition_point(|other| *other > item);
        self.head.insert(place, item);
        if self.head.len() >= 2 * HEAD {
            let items = self.head.drain(..HEAD).collect();
            self.insert_run(0, self.head[0], items);
        }
    }

    fn insert_run(&mut self, index: usize, after: Item<T>, items: Vec<Item<T>>) {
        self.runs.insert(index, items);
        self.after.insert(index, after);
        self.after_due.insert(index, after.due);
    }

    fn remove_run(&mut self, index: usize) -> Option<Vec<Item<T>>> {
        self.after.remove(index);
        self.after_due.remove(index);
        self.runs.remove(index)
    }

    /// Keeps the first `keep` items (at least one, not all) in this run, and makes the others a run
    /// behind it.
    fn divide(&mut self, index: usize, keep: usize) {
        let items = &mut self.runs[index];
        let (_, after, _) = items.select_nth_unstable(keep - 1);
        let after = *after;
        let others = items.split_off(keep);
        self.insert_run(index + 1, after, others);
    }

    /// Makes the first `keep` items of the first run a run before it. That run is more than twice
    /// as long.
    fn cut_off(&mut self, keep: usize) {
        let items = &mut self.runs[0];
        let (_, after, _) = items.select_nth_unstable(keep - 1);
        let after = *after;
        let first = items[..keep].to_vec();
        // The last items take their place: a run is unordered.
        let length = items.len() - keep;
        items.copy_within(length.., 0);
        items.truncate(length);
        let before = std::mem::replace(&mut self.after[0], after);
        self.after_due[0] = after.due;
        self.insert_run(0, before, first);
    }

    /// The next item. `None` if there is none, or [`settle`](Self::settle) was not called since the
    /// last change.
    pub fn first(&self) -> Option<&Item<T>> {
        self.head.last()
    }

    pub fn pop(&mut self) -> Option<Item<T>> {
        self.settle();
        let item = self.head.pop()?;
        self.len -= 1;
        Some(item)
    }

    /// Refills the head if it is empty and there are runs.
    pub fn settle(&mut self) {
        if !self.head.is_empty() || self.runs.is_empty() {
            return;
        }
        for part in CUTS {
            if self.runs[0].len() > 2 * part {
                self.cut_off(part);
            }
        }
        self.head = self.remove_run(0).unwrap_or_default();
        self.head.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// Removes the farthest item.
    pub fn pop_last(&mut self) -> Option<Item<T>> {
        let Some(last) = self.runs.len().checked_sub(1) else {
            if self.head.is_empty() {
                return None;
            }
            self.len -= 1;
            return Some(self.head.remove(0));
        };
        // The items before it will be taken next.
        let length = self.runs[last].len();
        if length > 2 * HEAD {
            self.divide(last, length - HEAD);
        }
        let last = self.runs.len() - 1;
        let items = &mut self.runs[last];
        let farthest = items.iter().enumerate().max_by_key(|(_, item)| **item).map(|(index, _)| index)?;
        let item = items.swap_remove(farthest);
        if items.is_empty() {
            self.remove_run(last);
        }
        self.len -= 1;
        Some(item)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&Item<T>) -> bool) {
        self.head.retain(&mut keep);
        for index in (0..self.runs.len()).rev() {
            self.runs[index].retain(&mut keep);
            if self.runs[index].is_empty() {
                self.remove_run(index);
            }
        }
        self.len = self.head.len() + self.runs.iter().map(Vec::len).sum::<usize>();
    }
}
