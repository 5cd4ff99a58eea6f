//! What becomes of a job.

use super::super::{Cause, Pool, SubmitError};
use super::{in_time, rest};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

#[tokio::test]
async fn result_of_a_stage_is_the_job_of_the_next() {
    let (pool, mut outcomes) = Pool::builder()
        .stage("parse", 2, |text: String| async move { text.parse::<u32>() })
        .then("print", 1, |number| async move { Ok(format!("<{number}>")) })
        .build();
    pool.submit("7".to_owned()).await.unwrap();
    pool.submit("x".to_owned()).await.unwrap();
    pool.close();
    let mut all = rest(&mut outcomes).await;
    all.sort_by_key(Result::is_err);
    assert_eq!(all[0].as_ref().unwrap(), "<7>");
    let error = all[1].as_ref().unwrap_err();
    assert_eq!((error.stage, error.item.as_str()), ("parse", "x"));
    assert!(matches!(error.cause, Cause::Failed(_)));
    assert_eq!(all.len(), 2);
}

#[tokio::test]
async fn panic_costs_its_item_and_no_worker() {
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("odd", 1, |number: u32| async move {
            assert!(number % 2 == 1, "{number} is even");
            Ok(number)
        })
        .build();
    let feeder = tokio::spawn(async move {
        for number in 0..100 {
            pool.submit(number).await.unwrap();
        }
    });
    let all = rest(&mut outcomes).await;
    feeder.await.unwrap();
    let lost: Vec<_> = all.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!((all.len(), lost.len()), (100, 50));
    for error in lost {
        assert_eq!(error.cause, Cause::Panicked(format!("{} is even", error.item)));
    }
}

#[tokio::test]
async fn panic_before_the_future_exists_costs_its_item() {
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("first", 1, |_| -> std::future::Ready<Result<(), ()>> { panic!("no future") })
        .build();
    pool.submit(1).await.unwrap();
    assert!(matches!(in_time(outcomes.next()).await, Some(Err(error)) if error.item == 1));
    pool.drain().await;
}

#[tokio::test]
async fn value_that_panics_when_dropped_costs_its_item() {
    #[derive(Clone)]
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("dropped");
            }
        }
    }
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("arm", 1, |number| async move { Ok((number, Bomb)) })
        .then("wait", 1, |(number, bomb)| async move {
            let _bomb = bomb;
            std::future::pending::<()>().await;
            Ok(number)
        })
        .timeout(Duration::from_millis(1))
        .build();
    for number in 0..3 {
        pool.submit(number).await.unwrap();
        let error = in_time(outcomes.next()).await.unwrap().unwrap_err();
        assert_eq!((error.item, error.cause), (number, Cause::Panicked("dropped".to_owned())));
    }
}

#[tokio::test]
async fn panic_of_the_key_costs_its_item() {
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("pass", 1, |number| async move { Ok(number) })
        .then("keyed", 2, |number| async move { Ok(number) })
        .ordered_by(|number| {
            assert!(*number != 3, "no key for 3");
            *number
        })
        .build();
    for number in 0..10 {
        pool.submit(number).await.unwrap();
        match in_time(outcomes.next()).await.unwrap() {
            Ok(out) => assert_eq!(out, number),
            Err(error) => assert_eq!((error.stage, error.item), ("keyed", 3)),
        }
    }
    assert_eq!(pool.stage("keyed").unwrap().snapshot().panicked, 1);
}

#[tokio::test]
async fn timeout_ends_a_job_and_no_other() {
    let limit = Duration::from_millis(5);
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("hang", 1, |number| async move {
            if number == 2 {
                std::future::pending::<()>().await;
            }
            Ok(number)
        })
        .timeout(limit)
        .queue(3)
        .build();
    for number in 1..4 {
        pool.submit(number).await.unwrap();
    }
    assert_eq!(in_time(outcomes.next()).await.unwrap().unwrap(), 1);
    let error = in_time(outcomes.next()).await.unwrap().unwrap_err();
    assert_eq!((error.item, error.cause), (2, Cause::TimedOut(limit)));
    assert_eq!(in_time(outcomes.next()).await.unwrap().unwrap(), 3);
}

#[tokio::test]
async fn timeout_of_a_blocking_job_is_told_while_it_blocks_its_worker() {
    let go_on = Arc::new(std::sync::Barrier::new(2));
    let (barrier, first) = (go_on.clone(), AtomicBool::new(true));
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .blocking("block", 1, move |number| {
            if first.swap(false, Ordering::SeqCst) {
                barrier.wait();
            }
            Ok(number)
        })
        .timeout(Duration::from_millis(20))
        .queue(4)
        .build();
    pool.submit(1).await.unwrap();
    let error = in_time(outcomes.next()).await.unwrap().unwrap_err();
    assert!(matches!(error.cause, Cause::TimedOut(_)));
    pool.submit(2).await.unwrap();
    assert_eq!(pool.stage("block").unwrap().snapshot().waiting, 1, "the thread is still busy");
    tokio::task::spawn_blocking(move || go_on.wait()).await.unwrap();
    // The second may also time out, on a slow machine.
    match in_time(outcomes.next()).await.unwrap() {
        Ok(number) => assert_eq!(number, 2),
        Err(error) => assert_eq!(error.item, 2),
    }
}

#[tokio::test]
async fn batch_answers_for_each_item() {
    let (pool, mut outcomes) = Pool::<u32, String>::builder()
        .batched("batch", 1, 10, |numbers: Vec<u32>| async move {
            assert!(numbers.len() <= 10);
            numbers.iter().map(|number| if number % 3 == 0 { Err(format!("{number}")) } else { Ok(*number) }).collect()
        })
        .queue(100)
        .build();
    for number in 0..50 {
        pool.submit(number).await.unwrap();
    }
    pool.close();
    let all = rest(&mut outcomes).await;
    assert_eq!(all.len(), 50);
    for error in all.into_iter().filter_map(Result::err) {
        assert_eq!(error.cause, Cause::Failed(error.item.to_string()));
    }
}

#[tokio::test]
async fn job_without_a_result_in_its_batch_counts_as_panicked() {
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .batched("short", 1, 10, |mut numbers: Vec<u32>| async move {
            numbers.truncate(1);
            numbers.into_iter().map(Ok).collect()
        })
        .queue(10)
        .build();
    for number in 0..4 {
        pool.submit(number).await.unwrap();
    }
    pool.close();
    let all = rest(&mut outcomes).await;
    assert_eq!(all.len(), 4);
    assert!(all.iter().flat_map(|outcome| outcome.as_ref().err()).all(|e| matches!(e.cause, Cause::Panicked(_))));
}

#[tokio::test]
async fn full_pool_gives_the_job_back() {
    let gate = Arc::new(Semaphore::new(0));
    let entry = gate.clone();
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("wait", 1, move |number| {
            let entry = entry.clone();
            async move {
                entry.acquire().await.map(|permit| permit.forget()).map_err(|_| ())?;
                Ok(number)
            }
        })
        .queue(2)
        .outcomes(1)
        .build();
    // One runs, two wait.
    for number in 0..3 {
        in_time(pool.submit(number)).await.unwrap();
    }
    assert_eq!(pool.try_submit(3), Err(SubmitError::Full(3)));
    assert_eq!(pool.open(), 3);
    gate.add_permits(9);
    assert_eq!(in_time(outcomes.next()).await.unwrap().unwrap(), 0);
    in_time(pool.submit(3)).await.unwrap();
    pool.close();
    assert_eq!(pool.try_submit(4), Err(SubmitError::Closed(4)));
    assert_eq!(in_time(pool.submit(5)).await, Err(SubmitError::Closed(5)));
    assert_eq!(rest(&mut outcomes).await.len(), 3);
}

#[tokio::test]
async fn debug_of_an_error_does_not_show_the_job() {
    let (pool, mut outcomes) =
        Pool::<&str, &str>::builder().stage("fail", 1, |_| async { Err::<(), _>("refused") }).build();
    pool.submit("secret").await.unwrap();
    let error = in_time(outcomes.next()).await.unwrap().unwrap_err();
    assert!(!format!("{error:?} {error} {:?}", SubmitError::Full("secret")).contains("secret"));
}
