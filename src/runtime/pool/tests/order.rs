//! Order per key.

use super::super::Pool;
use super::super::ordered::{Keyed, Lanes};
use super::rest;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::task::yield_now;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_a_key_keep_their_order_while_workers_change() {
    let seen: Arc<Mutex<HashMap<u32, Vec<u32>>>> = Arc::default();
    let log = seen.clone();
    let key = |job: &(u32, u32)| job.0;
    let wander = |job: (u32, u32)| async move {
        for _ in 0..(job.1 * 7 + job.0 * 3) % 5 {
            yield_now().await;
        }
        Ok(job)
    };
    let (pool, mut outcomes) = Pool::<(u32, u32), ()>::builder()
        .stage("a", 8, wander)
        .ordered_by(key)
        .then("b", 8, move |job: (u32, u32)| {
            let log = log.clone();
            async move {
                yield_now().await;
                log.lock().unwrap().entry(job.0).or_default().push(job.1);
                Ok(job)
            }
        })
        .ordered_by(key)
        .build();
    let feeder = tokio::spawn(async move {
        for number in 0..200 {
            for key in 0..10 {
                pool.submit((key, number)).await.unwrap();
            }
            for stage in ["a", "b"] {
                pool.stage(stage).unwrap().set_concurrency(1 + number as usize * 5 % 9);
            }
        }
    });
    let mut last: HashMap<u32, u32> = HashMap::new();
    for outcome in rest(&mut outcomes).await {
        let (key, number) = outcome.unwrap();
        if let Some(before) = last.insert(key, number) {
            assert!(before < number, "outcomes of a key are in order");
        }
    }
    feeder.await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 10);
    assert!(seen.values().all(|numbers| numbers.iter().copied().eq(0..200)));
}

#[tokio::test]
async fn failure_does_not_stop_the_later_jobs_of_its_key() {
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("one key", 3, |number| async move {
            assert!(number != 1, "a panic");
            if number == 2 { Err(()) } else { Ok(number) }
        })
        .ordered_by(|_| "same")
        .queue(5)
        .build();
    for number in 0..5 {
        pool.submit(number).await.unwrap();
    }
    pool.close();
    let order: Vec<u32> = rest(&mut outcomes).await.into_iter().map(|o| o.unwrap_or_else(|e| e.item)).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn stop_gives_back_what_waits_for_its_key() {
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("one key", 3, |number| async move {
            yield_now().await;
            Ok(number)
        })
        .ordered_by(|_| 0)
        .queue(10)
        .build();
    for number in 0..10 {
        pool.submit(number).await.unwrap();
    }
    yield_now().await;
    let mut all: Vec<u32> = pool.stop().into_iter().map(|error| error.item).collect();
    all.extend(rest(&mut outcomes).await.into_iter().map(Result::unwrap));
    all.sort_unstable();
    assert!(all.into_iter().eq(0..10));
}

proptest! {
    /// Steps: take one out, bring one back, or put one in with a key.
    #[test]
    fn lanes_yield_each_item_once_and_keys_one_at_a_time(steps in prop::collection::vec((0..4u8, 0..4u64), 0..200)) {
        let mut lanes = Lanes::default();
        let (mut ready, mut number, mut out) = (0, 0u64, Vec::<Keyed<u64>>::new());
        let mut last: HashMap<u64, u64> = HashMap::new();
        let mut taken = 0;
        let mut take = |lanes: &mut Lanes<u64>, out: &mut Vec<Keyed<u64>>, ready: &mut usize| {
            let Some(entry) = lanes.pop() else {
                assert_eq!(*ready, 0);
                return;
            };
            *ready -= 1;
            taken += 1;
            if let Some(key) = entry.key {
                assert!(out.iter().all(|other| other.key != Some(key)));
                assert!(last.insert(key, entry.item).is_none_or(|before| before < entry.item));
            }
            out.push(entry);
        };
        for (step, key) in steps {
            match step {
                0 => take(&mut lanes, &mut out, &mut ready),
                1 if !out.is_empty() => {
                    let entry = out.swap_remove(key as usize % out.len());
                    ready += usize::from(entry.key.is_some_and(|key| lanes.release(key)));
                }
                _ => {
                    let key = (key > 0).then_some(key);
                    ready += usize::from(lanes.push(Keyed { key, item: number }));
                    number += 1;
                }
            }
        }
        while lanes.len() + out.len() > 0 {
            take(&mut lanes, &mut out, &mut ready);
            if let Some(entry) = out.pop() {
                ready += usize::from(entry.key.is_some_and(|key| lanes.release(key)));
            }
        }
        prop_assert_eq!(taken, number);
    }
}
