//! Drain, stop, cancel, and handles that go.

use super::super::{Cause, Outcomes, Pool};
use super::{PATIENCE, in_time, rest};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

type Gated = (Pool<u32, ()>, Outcomes<u32, u32, ()>, Arc<Semaphore>);

/// Two stages; jobs of the second wait for the gate.
fn gated(token: &CancellationToken) -> Gated {
    let gate = Arc::new(Semaphore::new(0));
    let entry = gate.clone();
    let (pool, outcomes) = Pool::builder()
        .cancel_token(token.clone())
        .stage("pass", 2, |number| async move { Ok(number) })
        .queue(4)
        .then("wait", 3, move |number| {
            let entry = entry.clone();
            async move {
                entry.acquire().await.map(|permit| permit.forget()).map_err(|_| ())?;
                Ok(number)
            }
        })
        .queue(5)
        .build();
    (pool, outcomes, gate)
}

/// Fills it: 3 run, 5 wait for the second stage, 2 have a result that finds no room, 4 wait for the first.
async fn fill(pool: &Pool<u32, ()>) {
    for number in 0..14 {
        in_time(pool.submit(number)).await.unwrap();
    }
    while pool.snapshot()[1].waiting < 5 || pool.snapshot()[1].running < 3 || pool.snapshot()[0].done < 10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn drain_finishes_all() {
    let (pool, mut outcomes, gate) = gated(&CancellationToken::new());
    fill(&pool).await;
    gate.add_permits(14);
    let (reading, ()) = in_time(async { tokio::join!(rest(&mut outcomes), pool.drain()) }).await;
    assert_eq!(reading.into_iter().map(Result::unwrap).sum::<u32>(), (0..14).sum::<u32>());
    assert!(pool.is_closed() && pool.open() == 0);
}

#[tokio::test]
async fn stop_finishes_what_has_begun_and_gives_back_the_rest() {
    let (pool, mut outcomes, gate) = gated(&CancellationToken::new());
    fill(&pool).await;
    let back = pool.stop();
    assert_eq!(back.iter().map(|error| error.item).collect::<Vec<_>>(), [10, 11, 12, 13]);
    assert!(back.iter().all(|error| error.stage == "pass" && error.cause == Cause::NotStarted));
    gate.add_permits(14);
    assert_eq!(rest(&mut outcomes).await.into_iter().map(Result::unwrap).sum::<u32>(), (0..10).sum::<u32>());
    in_time(pool.finished()).await;
    assert!(pool.stop().is_empty());
}

#[tokio::test]
async fn cancel_gives_back_everything_undone() {
    let token = CancellationToken::new();
    let (pool, mut outcomes, _gate) = gated(&token);
    fill(&pool).await;
    let begun = Instant::now();
    let mut back = pool.cancel(Duration::ZERO).await;
    // It takes a millisecond. The limit is for machines that do other things.
    assert!(begun.elapsed() < PATIENCE);
    assert!(token.is_cancelled());
    back.sort_by_key(|error| error.item);
    assert_eq!(back.iter().map(|error| error.item).collect::<Vec<_>>(), (0..14).collect::<Vec<_>>());
    let count = |stage, cause| back.iter().filter(|error| (error.stage, &error.cause) == (stage, &cause)).count();
    assert_eq!(count("wait", Cause::Cancelled), 3);
    assert_eq!(count("wait", Cause::NotStarted), 7);
    assert_eq!(count("pass", Cause::NotStarted), 4);
    for mut error in back {
        let input = error.input::<u32>();
        assert_eq!(input, (error.cause == Cause::NotStarted).then_some(error.item), "what was made is given back");
    }
    assert!(rest(&mut outcomes).await.is_empty());
    assert!(pool.cancel(Duration::ZERO).await.is_empty());
}

#[tokio::test]
async fn cancel_keeps_results_that_nobody_reads() {
    let (pool, mut outcomes) =
        Pool::<u32, ()>::builder().stage("pass", 4, |number| async move { Ok(number) }).outcomes(1).build();
    for number in 0..9 {
        in_time(pool.submit(number)).await.unwrap();
    }
    while pool.snapshot()[0].done < 5 {
        tokio::task::yield_now().await;
    }
    let back = in_time(pool.cancel(Duration::ZERO)).await;
    let done = rest(&mut outcomes).await;
    assert_eq!((back.len(), done.len()), (4, 5));
    assert!(done.iter().all(Result::is_ok));
}

#[tokio::test]
async fn jobs_that_heed_the_token_end_within_the_grace() {
    let token = CancellationToken::new();
    let heard = token.clone();
    let (pool, mut outcomes) = Pool::<u32, &str>::builder()
        .cancel_token(token)
        .stage("heed", 2, move |_| {
            let heard = heard.clone();
            async move {
                heard.cancelled().await;
                Err::<(), _>("ended in order")
            }
        })
        .build();
    for number in 0..4 {
        in_time(pool.submit(number)).await.unwrap();
    }
    while pool.snapshot()[0].running < 2 {
        tokio::task::yield_now().await;
    }
    let back = in_time(pool.cancel(PATIENCE)).await;
    assert_eq!(back.len(), 2);
    let done = rest(&mut outcomes).await;
    assert!(done.iter().all(|outcome| outcome.as_ref().is_err_and(|e| e.cause == Cause::Failed("ended in order"))));
    assert_eq!(done.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_does_not_wait_for_what_cannot_be_interrupted() {
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .blocking("block", 1, move |number| {
            wait.lock().unwrap().recv().ok();
            Ok(number)
        })
        .build();
    in_time(pool.submit(1)).await.unwrap();
    while pool.snapshot()[0].running < 1 {
        tokio::task::yield_now().await;
    }
    let back = in_time(pool.cancel(Duration::ZERO)).await;
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].cause, Cause::Cancelled);
    assert!(rest(&mut outcomes).await.is_empty());
    drop(go_on);
}

#[tokio::test]
async fn dropped_pool_drains() {
    let (pool, mut outcomes, gate) = gated(&CancellationToken::new());
    fill(&pool).await;
    drop(pool.clone());
    assert!(!pool.is_closed());
    drop(pool);
    gate.add_permits(14);
    assert_eq!(rest(&mut outcomes).await.len(), 14);
}

#[tokio::test]
async fn jobs_go_on_when_nobody_reads_outcomes() {
    let (pool, outcomes, gate) = gated(&CancellationToken::new());
    fill(&pool).await;
    drop(outcomes);
    gate.add_permits(100);
    for number in 0..50 {
        in_time(pool.submit(number)).await.unwrap();
    }
    in_time(pool.drain()).await;
    assert_eq!(pool.snapshot()[1].done, 64);
}

#[tokio::test]
async fn submitter_that_waits_hears_that_the_pool_closes() {
    let (pool, _outcomes, _gate) = gated(&CancellationToken::new());
    fill(&pool).await;
    let other = pool.clone();
    let waiting = tokio::spawn(async move { other.submit(99).await });
    tokio::task::yield_now().await;
    pool.close();
    assert_eq!(in_time(waiting).await.unwrap().unwrap_err().into_job(), 99);
}

/// What the pool holds goes with it: its workers end, whatever the end was.
#[tokio::test]
async fn workers_and_stages_are_freed_after_the_end() {
    for end in 0..4 {
        let alive = Arc::new(());
        let inside = alive.clone();
        let (pool, mut outcomes) = Pool::<u32, ()>::builder()
            .stage("hold", 5, move |number| {
                let _inside = inside.clone();
                async move { Ok(number) }
            })
            .build();
        pool.submit(1).await.unwrap();
        match end {
            0 => pool.close(),
            1 => drop(pool.stop()),
            2 => drop(pool.cancel(Duration::ZERO).await),
            _ => {}
        }
        drop(pool);
        rest(&mut outcomes).await;
        in_time(async {
            while Arc::strong_count(&alive) > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}
