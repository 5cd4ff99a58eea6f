//! `odoshi bench pool`: jobs that do nothing, through three stages of the worker pool, and through a
//! bare chain of `async-channel`s with as many workers and as much room. Then a full pool is cancelled.

use crate::cli::outcome::Outcome;
use crate::cli::output::say_table;
use crate::runtime::pool::{Outcomes, Pool};
use std::convert::Infallible;
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

/// Workers of the three stages: many deliver, few record.
const WORKERS: [usize; 3] = [100, 10, 100];
/// Room before each stage, and for outcomes.
const ROOM: usize = 1_024;

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Jobs
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    jobs: u32,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

pub(super) fn run(args: &Args) -> Outcome {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let (mut ours, mut bare, mut cancels, mut grown) = (Vec::new(), Vec::new(), Vec::new(), 0.0f64);
    // Threads, and what the allocator keeps.
    runtime.block_on(through_pool(args.jobs.min(100_000)))?;
    for _ in 0..args.rounds {
        let before = peak()?;
        ours.push(runtime.block_on(through_pool(args.jobs))?);
        grown = grown.max(peak()? - before);
        bare.push(runtime.block_on(through_channels(args.jobs))?);
        cancels.push(runtime.block_on(cancel_full())?);
    }
    let rate = |times: &mut Vec<Duration>| f64::from(args.jobs) / median(times).as_secs_f64();
    let (ours, bare) = (rate(&mut ours), rate(&mut bare));
    let row = |name: &str, rate: f64| vec![name.to_owned(), format!("{rate:.0}")];
    let rows = [row("odoshi: Pool", ours), row("async-channel: tasks between channels", bare)];
    say_table(&["", "jobs/s"].map(str::to_owned), &rows);
    say!(
        "{} jobs through stages of {WORKERS:?} workers, median of {} rounds; odoshi/async-channel = {:.2}; \
         peak memory grew by {:.1} MB; cancelling a full pool took {:.1} ms",
        args.jobs,
        args.rounds,
        ours / bare,
        grown / 1_048_576.0,
        median(&mut cancels).as_secs_f64() * 1e3,
    );
    Ok(ExitCode::SUCCESS)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

type Made<Out> = (Pool<u32, Infallible>, Outcomes<u32, Out, Infallible>);

async fn through_pool(jobs: u32) -> Result<Duration, Box<dyn Error>> {
    let (pool, mut outcomes): Made<u32> = Pool::builder()
        .stage("first", WORKERS[0], |job| async move { Ok(job) })
        .queue(ROOM)
        .then("second", WORKERS[1], |job| async move { Ok(job) })
        .queue(ROOM)
        .then("third", WORKERS[2], |job| async move { Ok(job) })
        .queue(ROOM)
        .outcomes(ROOM)
        .build();
    let begun = Instant::now();
    let feeder = tokio::spawn(async move {
        for job in 0..jobs {
            if pool.submit(job).await.is_err() {
                break;
            }
        }
    });
    let reader = tokio::spawn(async move {
        let mut seen = 0;
        while let Some(outcome) = outcomes.next().await {
            seen += u32::from(outcome.is_ok());
        }
        seen
    });
    feeder.await?;
    let seen = reader.await?;
    if seen != jobs {
        return Err(format!("{seen} of {jobs} jobs came out of the pool").into());
    }
    Ok(begun.elapsed())
}

async fn through_channels(jobs: u32) -> Result<Duration, Box<dyn Error>> {
    let (into, mut from) = async_channel::bounded::<u32>(ROOM);
    for workers in WORKERS {
        let (next, out) = async_channel::bounded(ROOM);
        for _ in 0..workers {
            let (from, next) = (from.clone(), next.clone());
            tokio::spawn(async move {
                while let Ok(job) = from.recv().await {
                    // As in the pool, a job is a future, and the channel's end is the only failure.
                    let done = async move { job }.await;
                    if next.send(done).await.is_err() {
                        break;
                    }
                }
            });
        }
        from = out;
    }
    let begun = Instant::now();
    let feeder = tokio::spawn(async move {
        for job in 0..jobs {
            if into.send(job).await.is_err() {
                break;
            }
        }
    });
    let reader = tokio::spawn(async move {
        let mut seen = 0;
        while from.recv().await.is_ok() {
            seen += 1;
        }
        seen
    });
    feeder.await?;
    let seen = reader.await?;
    if seen != jobs {
        return Err(format!("{seen} of {jobs} jobs came out of the channels").into());
    }
    Ok(begun.elapsed())
}

/// Fills a pool whose jobs never end, and cancels it. Returns the time until it has answered.
async fn cancel_full() -> Result<Duration, Box<dyn Error>> {
    let (pool, _outcomes): Made<()> = Pool::builder()
        .stage("first", WORKERS[0], |job: u32| async move { Ok(job) })
        .queue(ROOM)
        .then("second", WORKERS[1], |_| std::future::pending())
        .queue(ROOM)
        .build();
    // Full is full once it stays so: the first stage takes a while to fill the second one's queue.
    let (mut full, mut refused) = (0, 0);
    while refused < 1_000 {
        match pool.try_submit(0) {
            Ok(()) => (full, refused) = (full + 1, 0),
            Err(_) => refused += 1,
        }
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    let undone = pool.cancel(Duration::ZERO).await.len();
    let took = begun.elapsed();
    if undone != full {
        return Err(format!("{undone} of {full} jobs were given back").into());
    }
    Ok(took)
}

/// This process's peak memory, in bytes.
fn peak() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1_024.0)
}
