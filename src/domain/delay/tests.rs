//! The queue compared with a plain list.

use super::queue::SWEEP;
use super::*;
use proptest::prelude::*;

/// Capacity of the queues in these sequences: small, so that they are often full.
const CAPACITY: usize = 12;

#[derive(Clone, Debug)]
enum Step {
    Insert {
        key: u8,
        due: i64,
        priority: i32,
    },
    /// Many entries at once, more than are sorted at a time.
    Many {
        count: u16,
        due: i64,
        spread: i64,
    },
    Cancel {
        key: u8,
    },
    CancelWhere {
        parity: u8,
    },
    Reschedule {
        key: u8,
        due: i64,
    },
    Pause,
    Resume,
    Advance {
        by: i64,
    },
    Pop {
        limit: usize,
    },
    Stop {
        after: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u8..40, -2i64..25, -1i32..2).prop_map(|(key, due, priority)| Step::Insert { key, due, priority }),
        1 => (1u16..700, 0i64..30, 1i64..40).prop_map(|(count, due, spread)| Step::Many { count, due, spread }),
        3 => (0u8..40).prop_map(|key| Step::Cancel { key }),
        1 => (0u8..2).prop_map(|parity| Step::CancelWhere { parity }),
        4 => (0u8..40, 0i64..30).prop_map(|(key, due)| Step::Reschedule { key, due }),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        4 => (0i64..6).prop_map(|by| Step::Advance { by }),
        6 => (0usize..400).prop_map(|limit| Step::Pop { limit }),
        1 => (0i64..4).prop_map(|after| Step::Stop { after }),
    ]
}

/// A list that is searched and sorted at every call.
struct Model {
    /// (due, −priority, arrival), key, value.
    entries: Vec<((i64, i32, u64), u32, u64)>,
    arrival: u64,
    capacity: usize,
    when_full: WhenFull,
    paused: bool,
    stopped: Option<i64>,
    over: bool,
}

impl Model {
    fn arrive(&mut self) -> u64 {
        self.arrival += 1;
        self.arrival
    }

    fn insert(
        &mut self,
        key: u32,
        due: i64,
        priority: i32,
        value: u64,
    ) -> Result<Option<Entry<u32, u64, i64>>, InsertError<u64>> {
        if self.stopped.is_some() {
            return Err(InsertError::Stopped(value));
        }
        if self.entries.iter().any(|entry| entry.1 == key) {
            return Err(InsertError::Known(value));
        }
        let mut displaced = None;
        let new = (due, -priority, self.arrival + 1);
        if self.entries.len() >= self.capacity {
            let farthest = self.entries.iter().max().copied();
            match farthest {
                Some(farthest) if self.when_full == WhenFull::Displace && new < farthest.0 => {
                    self.entries.retain(|entry| *entry != farthest);
                    displaced = Some(left(farthest));
                }
                _ => return Err(InsertError::Full(value)),
            }
        }
        self.arrive();
        self.entries.push((new, key, value));
        Ok(displaced)
    }

    fn cancel(&mut self, key: u32) -> Option<u64> {
        let index = self.entries.iter().position(|entry| entry.1 == key)?;
        Some(self.entries.remove(index).2)
    }

    fn reschedule(&mut self, key: u32, due: i64) -> bool {
        let arrival = self.arrival + 1;
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.1 == key) else { return false };
        entry.0 = (due, entry.0.1, arrival);
        self.arrive();
        true
    }

    fn next_due(&self) -> Option<i64> {
        let next = self.entries.iter().min().map(|entry| entry.0.0).filter(|_| !self.paused && !self.over)?;
        self.stopped.is_none_or(|deadline| next < deadline).then_some(next)
    }

    fn pop_due(&mut self, now: i64, limit: usize) -> Vec<Entry<u32, u64, i64>> {
        self.over = self.over || self.stopped.is_some_and(|deadline| now >= deadline);
        if self.paused || self.over {
            return Vec::new();
        }
        self.entries.sort_unstable();
        let count = self.entries.iter().take(limit).take_while(|entry| entry.0.0 <= now).count();
        self.entries.drain(..count).map(left).collect()
    }
}

fn left(((due, rank, _), key, value): ((i64, i32, u64), u32, u64)) -> Entry<u32, u64, i64> {
    Entry { key, due, priority: -rank, value }
}

/// Runs a sequence against the model, in a queue of this capacity.
fn compare(steps: Vec<Step>, capacity: usize, when_full: WhenFull) -> Result<(), TestCaseError> {
    let mut queue: DelayQueue<u32, u64, i64> = DelayQueue::new(capacity, when_full);
    let mut model =
        Model { entries: Vec::new(), arrival: 0, capacity, when_full, paused: false, stopped: None, over: false };
    // Every value is different: each that goes in must come out once.
    let (mut now, mut value, mut inside) = (0, 0, std::collections::BTreeSet::new());
    let mut insert = |queue: &mut DelayQueue<u32, u64, i64>, model: &mut Model, key, due, priority| {
        value += 1;
        let got = queue.insert(key, due, priority, value);
        prop_assert_eq!(&got, &model.insert(key, due, priority, value));
        Ok((got, value))
    };
    for step in steps {
        let mut out: Vec<u64> = Vec::new();
        let mut took_in =
            |got: Result<Option<Entry<u32, u64, i64>>, InsertError<u64>>, value: u64, out: &mut Vec<u64>| {
                if let Ok(displaced) = got {
                    inside.insert(value);
                    out.extend(displaced.map(|entry| entry.value));
                }
            };
        match step {
            Step::Insert { key, due, priority } => {
                let (got, value) = insert(&mut queue, &mut model, u32::from(key), due, priority)?;
                took_in(got, value, &mut out);
            }
            Step::Many { count, due, spread } => {
                for n in 0..u32::from(count) {
                    let due = due + i64::from(n * 7_919) % spread;
                    let (got, value) = insert(&mut queue, &mut model, 1_000 + n, due, 0)?;
                    took_in(got, value, &mut out);
                }
            }
            Step::Cancel { key } => {
                let cancelled = queue.cancel(&u32::from(key));
                prop_assert_eq!(cancelled, model.cancel(u32::from(key)));
                out.extend(cancelled);
            }
            Step::CancelWhere { parity } => {
                let unwanted = |key: u32| key < 1_000 && key % 2 == u32::from(parity);
                out.extend(model.entries.iter().filter(|entry| unwanted(entry.1)).map(|entry| entry.2));
                model.entries.retain(|entry| !unwanted(entry.1));
                prop_assert_eq!(queue.cancel_where(|key, _| unwanted(*key)), out.len());
            }
            Step::Reschedule { key, due } => {
                let key = u32::from(key);
                prop_assert_eq!(queue.reschedule(&key, due), model.reschedule(key, due));
            }
            Step::Pause => (queue.pause(), model.paused = true).1,
            Step::Resume => (queue.resume(), model.paused = false).1,
            Step::Advance { by } => now += by,
            Step::Pop { limit } => {
                let popped = queue.pop_due(now, limit);
                prop_assert_eq!(&popped, &model.pop_due(now, limit));
                prop_assert!(popped.iter().all(|entry| entry.due <= now), "too early");
                out.extend(popped.iter().map(|entry| entry.value));
            }
            Step::Stop { after } => {
                queue.stop(now + after);
                model.stopped = Some(now + after);
            }
        }
        for value in out {
            prop_assert!(inside.remove(&value), "{} left twice", value);
        }
        prop_assert_eq!(queue.len(), model.entries.len());
        prop_assert!(queue.len() <= capacity);
        prop_assert_eq!(queue.next_due(), model.next_due());
        prop_assert_eq!(queue.contains(&7), model.entries.iter().any(|entry| entry.1 == 7));
    }
    model.entries.sort_unstable();
    let rest = queue.into_rest();
    prop_assert_eq!(&rest, &model.entries.into_iter().map(left).collect::<Vec<_>>());
    prop_assert_eq!(rest.iter().map(|entry| entry.value).collect::<std::collections::BTreeSet<_>>(), inside);
    Ok(())
}

/// Ten times as many sequences with `scripts/test --long`.
fn cases(default: u32) -> ProptestConfig {
    let long = std::env::var_os("ODOSHI_TEST_LONG").is_some();
    ProptestConfig::with_cases(if long { 10 * default } else { default })
}

proptest! {
    #![proptest_config(cases(1_000))]
    #[test]
    fn it_behaves_like_a_sorted_list_with_little_room(steps in proptest::collection::vec(step(), 0..60), displace: bool) {
        compare(steps, CAPACITY, if displace { WhenFull::Displace } else { WhenFull::Refuse })?;
    }
}

proptest! {
    #![proptest_config(cases(100))]
    #[test]
    fn it_behaves_like_a_sorted_list_with_much_room(
        steps in proptest::collection::vec(step(), 0..60),
        displace: bool,
        capacity in 300usize..2_000,
    ) {
        compare(steps, capacity, if displace { WhenFull::Displace } else { WhenFull::Refuse })?;
    }
}

#[test]
fn a_hundred_thousand_leave_in_order_whatever_comes_meanwhile() {
    // Enough entries that runs are divided at both ends, with equal times among them.
    let mut queue: DelayQueue<u64, u64, u64> = DelayQueue::new(100_000, WhenFull::Displace);
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut model, mut back) = (std::collections::BTreeMap::new(), 0);
    for n in 0..150_000_u64 {
        let due = random(20_000);
        match queue.insert(n, due, 0, n) {
            Ok(displaced) => {
                model.insert((due, n), n);
                if let Some(displaced) = displaced {
                    assert_eq!(model.pop_last().map(|((due, _), n)| (due, n)), Some((displaced.due, displaced.value)));
                    back += 1;
                }
            }
            Err(refused) => {
                assert_eq!(refused, InsertError::Full(n));
                assert!(model.last_key_value().is_some_and(|(last, _)| *last < (due, n)), "it was nearer");
            }
        }
    }
    assert!(back > 20_000, "only {back} were displaced");
    let mut now = 0;
    while !model.is_empty() {
        now += random(400);
        let popped = queue.pop_due(now, random(3_000) as usize);
        for entry in popped {
            assert_eq!(model.pop_first().map(|(_, n)| n), Some(entry.value));
        }
        let due = now + random(5_000);
        let n = 200_000 + now;
        if model.len() < 90_000 && now < 30_000 && queue.insert(n, due, 0, n).is_ok() {
            model.insert((due, n), n);
        }
    }
    assert!(queue.is_empty() && queue.next_due().is_none());
}

#[test]
fn every_priority_has_its_place() {
    let mut queue: DelayQueue<i32, (), u8> = DelayQueue::new(10, WhenFull::Refuse);
    for priority in [i32::MIN, 0, i32::MIN + 1, i32::MAX, -1, i32::MAX - 1] {
        queue.insert(priority, 0, priority, ()).expect("there is room");
    }
    let order: Vec<(i32, i32)> = queue.pop_due(0, 10).iter().map(|entry| (entry.key, entry.priority)).collect();
    let expected = [i32::MAX, i32::MAX - 1, 0, -1, i32::MIN + 1, i32::MIN];
    assert_eq!(order, expected.map(|priority| (priority, priority)));
}

#[test]
fn what_is_cancelled_over_and_over_takes_no_room() {
    let mut queue: DelayQueue<u32, (), u64> = DelayQueue::new(100, WhenFull::Refuse);
    for n in 0..1_000_000_u64 {
        queue.insert((n % 50) as u32, 1_000_000 - n, 0, ()).expect("there is room");
        assert!(queue.reschedule(&((n % 50) as u32), 2_000_000 + n));
        queue.cancel(&((n % 50) as u32)).expect("it is there");
    }
    assert!(queue.order.len() <= SWEEP + 1 && queue.slots.len() <= 100, "{} items", queue.order.len());
}
