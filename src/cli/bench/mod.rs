//! `odoshi bench`: how fast this machine is, beside something raw in the same run.
//!
//! Only the ratio says something: machines differ, and so do hours of the day. Each figure is the median of the rounds.

mod delay;
mod fleet;
mod latency;
mod raw;

use super::Outcome;
use super::scratch_store::ScratchStore;
use comfy_table::Table;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// From an accepted action to the last of its commands stored
    Create(Args),
    /// A command's whole life: stored, delivered, its result stored
    Life(Args),
    /// An idle server: from POST /v1/actions to a connected agent having the command
    Latency(latency::Args),
    /// The queue of what is due, beside others of its kind
    Delay(delay::Args),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Agents, and so commands per round
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    agents: u32,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The database, in which it uses a schema of its own; without it, SQLite in a temporary folder
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Every round also while somebody else holds a transaction open (PostgreSQL)
    #[arg(long, requires = "store")]
    held_transaction: bool,
}

pub(super) fn run(command: Command) -> Outcome {
    let folder = tempfile::Builder::new().prefix("odoshi-bench-").tempdir()?;
    let (args, life) = match command {
        Command::Delay(args) => return delay::run(&args),
        Command::Create(args) => (args, false),
        Command::Life(args) => (args, true),
        Command::Latency(args) => {
            actix_rt::System::new().block_on(latency::run(&args, folder.path()))?;
            folder.close()?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let times = actix_rt::System::new().block_on(async {
        let place = ScratchStore::at(args.store.as_deref()).await?;
        let times = measure(&args, life, &place, folder.path()).await;
        place.leave().await?;
        times
    })?;
    folder.close()?;
    print(&args, life, times);
    Ok(ExitCode::SUCCESS)
}

/// What the rounds took.
#[derive(Default)]
struct Times {
    ours: Vec<Duration>,
    /// Beside a transaction that is held open.
    held: Vec<Duration>,
    bare: Vec<Duration>,
}

async fn measure(args: &Args, life: bool, place: &ScratchStore, folder: &Path) -> Result<Times, Box<dyn Error>> {
    let mut times = Times::default();
    let fleet = fleet::Fleet::start(folder, place.url(), args.agents).await?;
    // One after the other in each round, so that all see the same machine.
    for round in 0..args.rounds {
        times.ours.push(fleet.round(life).await?);
        if let (true, ScratchStore::Schema(scratch)) = (args.held_transaction, place) {
            let mut other = scratch.connect().await?;
            let begin = "SET idle_in_transaction_session_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ; \
                         SELECT pg_current_xact_id()";
            scratch.execute(&mut other, begin).await?;
            times.held.push(fleet.round(life).await?);
            scratch.execute(&mut other, "COMMIT").await?;
        }
        let (agents, batch) = (args.agents, fleet.batch());
        times.bare.push(match place {
            ScratchStore::Schema(scratch) => raw::postgres::round(scratch, agents, batch, life).await?,
            ScratchStore::File(_) => {
                let database = folder.join(format!("bare-{round}.db"));
                let raw = tokio::task::spawn_blocking(move || raw::sqlite::round(&database, agents, batch, life));
                raw.await?.map_err(|error| error as Box<dyn Error>)?
            }
        });
    }
    fleet.stop().await?;
    Ok(times)
}

fn print(args: &Args, life: bool, times: Times) {
    let (ours, bare) = (median(times.ours), median(times.bare));
    let rate = |time: Duration| f64::from(args.agents) / time.as_secs_f64();
    let (what, raw) = match life {
        true => ("odoshi: accepted → completed", "bare: both inserts, in batches"),
        false => ("odoshi: accepted → all stored", "bare: the same rows, in batches"),
    };
    let mut rows = vec![(what, ours), (raw, bare)];
    let held = (!times.held.is_empty()).then(|| median(times.held));
    if let Some(held) = held {
        rows.insert(1, ("the same, beside a held transaction", held));
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["", "commands/s", "seconds"]);
    for (name, time) in rows {
        table.add_row([name.to_owned(), format!("{:.0}", rate(time)), format!("{:.3}", time.as_secs_f64())]);
    }
    say!("{table}");
    let (agents, rounds) = (args.agents, args.rounds);
    say!("{agents} commands, median of {rounds} rounds: odoshi/bare = {:.2}", rate(ours) / rate(bare));
    if let Some(held) = held {
        say!("beside a held transaction/without = {:.2}", rate(held) / rate(ours));
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
