//! Moves the objects of a bucket to `clients/<id>/assets/<name>`, and the rows that point to them, with a worker pool.
//!
//! `cargo run --release --example migrate_assets` makes 10,000 objects in a temporary folder with a SQLite database of
//! their rows, and moves them. With `--folder` both stay, and a run that was interrupted, even by `kill -9`, is continued
//! by the same command. `--bucket s3://NAME` takes an S3-compatible service, set up by the usual variables
//! (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, …).
//!
//! - An object is copied and its copy read back before a row points to it.
//! - The change of a row, and the note that its original is to be removed, are one transaction.
//! - An original is removed once `--grace` has passed, for readers that hold the old row, and if no row points to it.
//!
//! So at any time each row points to an object that is there, and what is left to do can be told from the database.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it tells what it does")]

mod database;
mod migration;
mod seed;

use clap::Parser;
use database::Database;
use indicatif::{ProgressBar, ProgressStyle};
use migration::{Migration, MoveError};
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use odoshi::error_chain::{ErrorChain, chain_of};
use odoshi::runtime::Pool;
use odoshi::runtime::pool::{Cause, StageSnapshot};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long jobs may go on after Ctrl-C.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// Maximum number of failures to print. The others are counted.
const FAILURES_SHOWN: u64 = 10;
const REDRAW: Duration = Duration::from_millis(100);

/// Moves the objects of a bucket, and the rows that point to them.
#[derive(Parser)]
struct Args {
    /// Folder of the database `assets.db` and of the objects (`bucket`). If not set, a temporary one
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Bucket on an S3-compatible service, such as s3://assets, instead of the folder `bucket`
    #[arg(long, requires = "folder")]
    bucket: Option<String>,
    /// Number of objects to make if the database has none
    #[arg(long, default_value_t = 10_000)]
    objects: u32,
    /// How long an original stays after its row was changed
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Number of workers that copy and verify
    #[arg(long, default_value_t = 100)]
    copies: usize,
    /// Number of workers that update rows
    #[arg(long, default_value_t = 10)]
    updates: usize,
    /// Number of workers that remove originals
    #[arg(long, default_value_t = 100)]
    removals: usize,
}

/// What became of the jobs.
#[derive(Default)]
struct Tally {
    done: u64,
    failed: u64,
    undone: usize,
    interrupted: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}", chain_of(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Whether everything is at its new place.
async fn run(args: Args) -> Result<bool, Box<dyn Error>> {
    // Removed when it is dropped.
    let mut temporary = None;
    let folder = match &args.folder {
        Some(folder) => folder.as_path(),
        None => temporary.insert(tempfile::tempdir()?).path(),
    };
    std::fs::create_dir_all(folder)?;
    let database = Database::open(&folder.join("assets.db"))?;
    let bucket = open_bucket(&args, folder)?;
    if let Some(seeded) = seed::run(&bucket, &database, args.objects).await? {
        println!("made {seeded} objects in {}", args.bucket.as_deref().unwrap_or(&folder.display().to_string()));
    }

    let migration = Migration { bucket, database };
    let begun = Instant::now();
    let tally = migrate(&migration, &args).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let (done, failed) = (tally.done, tally.failed);
    println!("moved {done} objects in {seconds:.1} s ({:.0}/s), {failed} failed", done as f64 / seconds);
    if tally.interrupted {
        println!("interrupted, {} undone: the same command goes on", tally.undone);
        return Ok(false);
    }

    let checked = migration.check_all(args.copies, FAILURES_SHOWN).await?;
    for problem in &checked.problems {
        eprintln!("{problem}");
    }
    let (rows, wrong, left) = (checked.rows, checked.wrong, checked.originals);
    println!("checked {rows} rows: {wrong} don't point to their object at its new place; {left} originals are left");
    Ok(failed == 0 && wrong == 0 && left == 0)
}

fn open_bucket(args: &Args, folder: &Path) -> Result<Arc<dyn ObjectStore>, Box<dyn Error>> {
    if let Some(url) = &args.bucket {
        // An error says that there is one already.
        rustls::crypto::ring::default_provider().install_default().ok();
        return Ok(Arc::new(AmazonS3Builder::from_env().with_url(url).build()?));
    }
    let folder = folder.join("bucket");
    std::fs::create_dir_all(&folder)?;
    // An original is removed only after its copy is on the disk.
    Ok(Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true)))
}

async fn migrate(migration: &Migration, args: &Args) -> Result<Tally, MoveError> {
    let style = ProgressStyle::with_template("[{bar:40}] {pos}/{len} {elapsed} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    // Drawn on a terminal only.
    let bar = ProgressBar::new(migration.database.rows().await?).with_style(style);
    let (pool, mut outcomes) = migration.pool(args.copies, args.updates, args.removals, args.grace);
    let feeder = tokio::spawn(feed(migration.clone(), pool.clone(), bar.clone()));

    let mut tally = Tally::default();
    let mut redraw = tokio::time::interval(REDRAW);
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            outcome = outcomes.next() => match outcome {
                None => break,
                Some(Ok(())) => {
                    tally.done += 1;
                    bar.inc(1);
                }
                Some(Err(error)) => {
                    tally.failed += 1;
                    if tally.failed <= FAILURES_SHOWN {
                        let path = &error.item.asset.path;
                        let cause = match &error.cause {
                            Cause::Failed(cause) => cause.chain().to_string(),
                            _ => error.to_string(),
                        };
                        bar.suspend(|| eprintln!("{path}: {}: {cause}", error.stage));
                    }
                }
            },
            _ = redraw.tick() => bar.set_message(told(&pool.snapshot())),
            _ = &mut interrupt, if !tally.interrupted => {
                tally.interrupted = true;
                tally.undone = pool.cancel(CANCEL_GRACE).await.len();
            }
        }
    }
    bar.finish_and_clear();
    match feeder.await {
        Ok(fed) => fed?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
    Ok(tally)
}

/// Submits what is left to do, page by page. The pool's bounds slow it down.
async fn feed(migration: Migration, pool: Pool<migration::Job, MoveError>, bar: ProgressBar) -> Result<(), MoveError> {
    // Also where a query fails: the outcomes would never end.
    let result = async {
        let mut after = i64::MIN;
        loop {
            let page = migration.database.page(after).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = last.id;
            for (asset, removal) in page {
                if removal.is_none() && migration::is_moved(&asset) {
                    bar.inc(1);
                } else if pool.submit(migration::Job::new(asset, removal)).await.is_err() {
                    // It was cancelled.
                    return Ok(());
                }
            }
        }
    }
    .await;
    pool.close();
    result
}

fn told(stages: &[StageSnapshot]) -> String {
    let told = |stage: &StageSnapshot| format!("{} {}+{}", stage.stage, stage.running, stage.waiting);
    stages.iter().map(told).collect::<Vec<_>>().join(", ")
}
