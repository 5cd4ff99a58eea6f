//! Each job has exactly one outcome, whatever happens.

use super::super::{Cause, Pool, SubmitError};
use super::PATIENCE;
use proptest::prelude::*;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What a job does at a stage.
#[derive(Clone, Copy, Debug)]
enum Does {
    Pass,
    Yield(u8),
    Sleep(u8),
    Fail,
    Panic,
    PanicLater,
    Hang,
    WaitForToken,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Drain,
    Drop,
    Stop,
    Cancel(u8),
    /// A stop that turns out to take too long.
    StopThenCancel,
    /// Two at the same time.
    CancelTwice,
}

#[derive(Clone, Debug)]
struct Plan {
    jobs: Vec<[Does; 3]>,
    workers: [usize; 3],
    queues: [usize; 3],
    outcomes: usize,
    is_ordered: [bool; 3],
    /// Of the second stage.
    has_timeout: bool,
    /// After so many submitted jobs, the stage gets so many workers.
    changes: Vec<(usize, usize, usize)>,
    end: End,
    /// Submitted jobs before the end; it comes while others are being submitted.
    end_at: usize,
    /// Outcomes after which the reader goes.
    reads: Option<usize>,
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![
        8 => Just(Does::Pass),
        2 => (1..4u8).prop_map(Does::Yield),
        1 => (0..4u8).prop_map(Does::Sleep),
        1 => Just(Does::Fail),
        1 => Just(Does::Panic),
        1 => Just(Does::PanicLater),
    ]
}

/// Jobs that never end by themselves: for plans that end by a cancel.
fn stubborn() -> impl Strategy<Value = Does> {
    prop_oneof![12 => does(), 1 => Just(Does::Hang), 1 => Just(Does::WaitForToken)]
}

fn plan() -> impl Strategy<Value = Plan> {
    let end = prop_oneof![
        Just(End::Drain),
        Just(End::Drop),
        Just(End::Stop),
        (0..6u8).prop_map(End::Cancel),
        Just(End::StopThenCancel),
        Just(End::CancelTwice),
    ];
    end.prop_flat_map(|end| {
        let is_cancelled = matches!(end, End::Cancel(_) | End::StopThenCancel | End::CancelTwice);
        let does = if is_cancelled { stubborn().boxed() } else { does().boxed() };
        (
            prop::collection::vec([does.clone(), does.clone(), does], 1..60),
            [1..6usize, 1..6, 1..6],
            [1..5usize, 1..5, 1..5],
            (1..4usize, any::<[bool; 3]>(), any::<bool>()),
            prop::collection::vec((0..80usize, 0..3usize, 1..8usize), 0..6),
            0..80usize,
            prop::option::weighted(if is_cancelled { 0.01 } else { 0.1 }, 0..40usize),
        )
            .prop_map(
                move |(jobs, workers, queues, (outcomes, is_ordered, has_timeout), changes, end_at, reads)| Plan {
                    jobs,
                    workers,
                    queues,
                    outcomes,
                    is_ordered,
                    has_timeout,
                    changes,
                    end,
                    end_at,
                    reads,
                },
            )
    })
}

async fn act(does: Does, token: &CancellationToken) -> Result<(), ()> {
    match does {
        Does::Pass => {}
        Does::Yield(times) => {
            for _ in 0..times {
                yield_now().await;
            }
        }
        Does::Sleep(millis) => sleep(Duration::from_millis(millis.into())).await,
        Does::Fail => return Err(()),
        // As a panic, without its message on the screen.
        Does::Panic => resume_unwind(Box::new("a job's panic")),
        Does::PanicLater => {
            yield_now().await;
            resume_unwind(Box::new("a job's panic, later"));
        }
        Does::Hang => std::future::pending().await,
        Does::WaitForToken => token.cancelled().await,
    }
    Ok(())
}

/// Runs a plan, and returns how often each job had an outcome.
async fn outcomes_per_job(plan: Plan) -> Vec<usize> {
    let token = CancellationToken::new();
    let stage = |number: usize| {
        let (jobs, token) = (plan.jobs.clone(), token.clone());
        move |job: usize| {
            let (does, token) = (jobs[job][number], token.clone());
            async move {
                act(does, &token).await?;
                Ok(job)
            }
        }
    };
    let single = stage(1);
    let key = |divisor: usize| move |job: &usize| if divisor == 0 { *job } else { job % divisor };
    let group = |is_ordered| key(if is_ordered { 3 } else { 0 });
    let first = Pool::<usize, ()>::builder()
        .cancel_token(token.clone())
        .stage("0", plan.workers[0], stage(0))
        .queue(plan.queues[0])
        .ordered_by(group(plan.is_ordered[0]))
        .batched("1", plan.workers[1], 3, move |jobs: Vec<usize>| {
            let futures: Vec<_> = jobs.into_iter().map(&single).collect();
            async move { futures_util::future::join_all(futures).await }
        })
        .queue(plan.queues[1])
        .outcomes(plan.outcomes);
    let first = if plan.has_timeout { first.timeout(Duration::from_millis(3)) } else { first };
    let last = first.then("2", plan.workers[2], stage(2)).queue(plan.queues[2]);
    let last = if plan.is_ordered[2] { last.ordered_by(key(2)) } else { last };
    let (pool, mut outcomes) = last.build();

    let counts: Arc<Vec<AtomicUsize>> = Arc::new(plan.jobs.iter().map(|_| AtomicUsize::new(0)).collect());
    let count = |jobs: &[usize]| {
        for job in jobs {
            counts[*job].fetch_add(1, SeqCst);
        }
    };
    let submitted = AtomicUsize::new(0);
    let reading = async {
        let mut seen = 0;
        while plan.reads.is_none_or(|most| seen < most) {
            match outcomes.next().await {
                Some(Ok(job)) => count(&[job]),
                Some(Err(error)) => {
                    assert!(!matches!(error.cause, Cause::NotStarted | Cause::Cancelled), "these are given back");
                    count(&[error.item]);
                }
                None => return true,
            }
            seen += 1;
        }
        drop(outcomes);
        false
    };
    let ending = pool.clone();
    let feeding = async {
        let pool = pool;
        for job in 0..plan.jobs.len() {
            for (_, stage, workers) in plan.changes.iter().filter(|(after, ..)| *after == job) {
                pool.stage(&stage.to_string()).unwrap().set_concurrency(*workers);
            }
            let answer = if job % 3 == 0 { pool.try_submit(job) } else { pool.submit(job).await };
            match answer {
                Ok(()) => {}
                // What isn't taken has its outcome here.
                Err(SubmitError::Full(job) | SubmitError::Closed(job)) => count(&[job]),
            }
            submitted.store(job + 1, SeqCst);
        }
    };
    let ended = async {
        // Comes to an end also if the submitter waits for ever.
        for _ in 0..40 {
            if submitted.load(SeqCst) >= plan.end_at.min(plan.jobs.len()) {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        let items = |errors: Vec<super::super::StageError<usize, ()>>| -> Vec<usize> {
            errors.into_iter().map(|error| error.item).collect()
        };
        match plan.end {
            End::Drop => drop(ending),
            End::Drain => ending.drain().await,
            End::Stop => {
                count(&items(ending.stop()));
                ending.finished().await;
            }
            End::Cancel(grace) => count(&items(ending.cancel(Duration::from_millis(grace.into())).await)),
            End::StopThenCancel => {
                count(&items(ending.stop()));
                timeout(Duration::from_millis(5), ending.finished()).await.ok();
                count(&items(ending.cancel(Duration::ZERO).await));
            }
            End::CancelTwice => {
                let (one, two) =
                    tokio::join!(ending.cancel(Duration::from_millis(5)), ending.cancel(Duration::from_millis(1)));
                count(&items(one));
                count(&items(two));
            }
        }
    };
    let (was_read, (), ()) = tokio::join!(reading, feeding, ended);
    if !was_read {
        // Whoever doesn't read doesn't know.
        for count in counts.iter() {
            count.compare_exchange(0, 1, SeqCst, SeqCst).ok();
        }
    }
    counts.iter().map(|count| count.load(SeqCst)).collect()
}

fn check(plan: Plan, mut runtime: tokio::runtime::Builder) -> Result<(), TestCaseError> {
    let runtime = runtime.worker_threads(3).enable_all().build().unwrap();
    let counts = runtime.block_on(async { timeout(PATIENCE, outcomes_per_job(plan)).await });
    let counts = counts.map_err(|_| TestCaseError::fail("it hangs"))?;
    prop_assert!(counts.iter().all(|count| *count == 1), "outcomes per job: {:?}", counts);
    Ok(())
}

/// More cases in long runs.
fn cases() -> ProptestConfig {
    ProptestConfig::with_cases(if std::env::var_os("ODOSHI_TEST_LONG").is_some() { 3_000 } else { 150 })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn each_job_has_one_outcome_on_one_thread(plan in plan()) {
        check(plan, tokio::runtime::Builder::new_current_thread())?;
    }

    #[test]
    fn each_job_has_one_outcome_on_many_threads(plan in plan()) {
        check(plan, tokio::runtime::Builder::new_multi_thread())?;
    }
}
