//! How stages work together.

use super::super::Pool;
use super::{in_time, rest};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::sync::{Barrier, Mutex};
use tokio::task::yield_now;

/// Counts who is in at a time, and the most there were.
#[derive(Clone, Default)]
struct Meter(Arc<(AtomicUsize, AtomicUsize)>);

impl Meter {
    async fn visit(&self) {
        let now = self.0.0.fetch_add(1, SeqCst) + 1;
        self.0.1.fetch_max(now, SeqCst);
        yield_now().await;
        self.0.0.fetch_sub(1, SeqCst);
    }

    fn most(&self) -> usize {
        self.0.1.swap(0, SeqCst)
    }
}

/// `buffered(n)` hangs here: the job that has the lock is only polled while the consumer waits for the
/// next result, and the consumer waits for the lock.
#[tokio::test]
async fn jobs_that_share_an_async_mutex_with_the_consumer_end() {
    let shared = Arc::new(Mutex::new(0));
    let inside = shared.clone();
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("lock", 2, move |number| {
            let inside = inside.clone();
            async move {
                let mut held = inside.lock().await;
                // The lock is held where the consumer goes on.
                yield_now().await;
                *held += 1;
                Ok(number)
            }
        })
        .queue(1)
        .outcomes(1)
        .build();
    let feeder = tokio::spawn(async move {
        for number in 0..1_000 {
            pool.submit(number).await.unwrap();
        }
    });
    let mut seen = 0;
    while let Some(outcome) = in_time(outcomes.next()).await {
        outcome.unwrap();
        *in_time(shared.lock()).await += 1;
        seen += 1;
    }
    feeder.await.unwrap();
    assert_eq!((seen, *shared.lock().await), (1_000, 2_000));
}

#[tokio::test]
async fn stage_runs_as_many_jobs_as_it_has_workers() {
    let together = Arc::new(Barrier::new(7));
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("meet", 7, move |number| {
            let together = together.clone();
            async move {
                together.wait().await;
                Ok(number)
            }
        })
        .build();
    for number in 0..14 {
        in_time(pool.submit(number)).await.unwrap();
    }
    pool.close();
    assert_eq!(rest(&mut outcomes).await.len(), 14);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrency_changes_while_jobs_run() {
    let meter = Meter::default();
    let inside = meter.clone();
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("meter", 8, move |number| {
            let inside = inside.clone();
            async move {
                inside.visit().await;
                Ok(number)
            }
        })
        .build();
    let stage = pool.stage("meter").unwrap();
    assert!(pool.stage("other").is_none());
    for workers in [8, 2, 5, 1, 3, 16] {
        stage.set_concurrency(workers);
        assert_eq!(stage.concurrency(), workers);
        // Nothing runs now, and who is to end has ended before it takes the next job.
        meter.most();
        let feeding = async {
            for number in 0..500 {
                pool.submit(number).await.unwrap();
            }
        };
        let reading = async {
            for _ in 0..500 {
                outcomes.next().await.unwrap().unwrap();
            }
        };
        in_time(async { tokio::join!(feeding, reading) }).await;
        assert!(meter.most() <= workers);
    }
    stage.set_concurrency(0);
    assert_eq!(stage.concurrency(), 1, "a stage without workers would never end");
}

#[tokio::test]
async fn more_workers_help_a_stage_that_waits() {
    let together = Arc::new(Barrier::new(3));
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("meet", 1, move |number| {
            let together = together.clone();
            async move {
                together.wait().await;
                Ok(number)
            }
        })
        .queue(3)
        .build();
    for number in 0..3 {
        pool.submit(number).await.unwrap();
    }
    pool.stage("meet").unwrap().set_concurrency(3);
    pool.close();
    assert_eq!(rest(&mut outcomes).await.len(), 3);
}

#[tokio::test]
async fn reader_that_falls_behind_slows_the_submitter() {
    let (pool, mut outcomes) = Pool::<u32, ()>::builder()
        .stage("a", 1, |number| async move { Ok(number) })
        .then("b", 1, |number| async move { Ok(number) })
        .outcomes(1)
        .build();
    let mut taken = 0;
    // Two queues, two workers and one outcome. Yielding lets all of them move.
    for _ in 0..1_000 {
        taken += usize::from(pool.try_submit(0).is_ok());
        yield_now().await;
    }
    assert_eq!(taken, 5);
    pool.close();
    assert_eq!(rest(&mut outcomes).await.len(), 5);
}

#[tokio::test]
async fn pool_runs_on_threads_of_actix() {
    let local = tokio::task::LocalSet::new();
    let sum = local
        .run_until(async {
            let (pool, mut outcomes) =
                Pool::<u32, ()>::builder().blocking("square", 2, |number| Ok(number * number)).queue(10).build();
            for number in 1..=3 {
                pool.submit(number).await.unwrap();
            }
            pool.close();
            rest(&mut outcomes).await.into_iter().map(Result::unwrap).sum::<u32>()
        })
        .await;
    assert_eq!(sum, 14);
}
