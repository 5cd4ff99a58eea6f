//! `odoshi bench create` and `odoshi bench life`: commands per second, compared with inserting the
//! same rows without a server.

use super::{fleet, raw};
use crate::cli::outcome::Outcome;
use crate::cli::output::say_table;
use crate::cli::scratch_store::ScratchStore;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Number of agents, and so of commands per round
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    agents: u32,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The URL of a database, in which a separate schema is used; without it, SQLite in a temporary
    /// folder
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Repeat every round while another connection holds a transaction open (PostgreSQL)
    #[arg(long, requires = "store")]
    held_transaction: bool,
    /// Repeat every round while other nodes run on the same database: this many in all (PostgreSQL)
    #[arg(long, value_name = "N", requires = "store", value_parser = clap::value_parser!(u32).range(2..=20))]
    nodes: Option<u32>,
}

/// The durations of the rounds.
#[derive(Default)]
struct Times {
    ours: Vec<Duration>,
    /// The rounds with a transaction held open.
    held: Vec<Duration>,
    /// The rounds beside other nodes.
    beside: Vec<Duration>,
    bare: Vec<Duration>,
}

/// Measures and prints. With `life`, measures the whole life of the commands and not only their
/// creation.
pub(super) fn run(args: &Args, life: bool, folder: &Path) -> Outcome {
    let times = actix_rt::System::new().block_on(async {
        let place = ScratchStore::at(args.store.as_deref()).await?;
        let times = measure(args, life, &place, folder).await;
        place.leave().await?;
        times
    })?;
    print(args, life, times);
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args, life: bool, place: &ScratchStore, folder: &Path) -> Result<Times, Box<dyn Error>> {
    let mut times = Times::default();
    let fleet = fleet::Fleet::start(folder, place.url(), args.agents).await?;
    // In turns, so that all are measured in the same state of the machine.
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
        if let Some(nodes) = args.nodes {
            let others = fleet::Others::start(nodes - 1, folder, place.url())?;
            times.beside.push(fleet.round(life).await?);
            others.stop()?;
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
    let beside = (!times.beside.is_empty()).then(|| median(times.beside));
    if let Some(beside) = beside {
        rows.insert(1, ("the same, beside other nodes", beside));
    }
    let line = |(name, time): (&str, Duration)| {
        vec![name.to_owned(), format!("{:.0}", rate(time)), format!("{:.3}", time.as_secs_f64())]
    };
    let lines: Vec<Vec<String>> = rows.into_iter().map(line).collect();
    say_table(&["", "commands/s", "seconds"].map(str::to_owned), &lines);
    let (agents, rounds) = (args.agents, args.rounds);
    say!("{agents} commands, median of {rounds} rounds: odoshi/bare = {:.2}", rate(ours) / rate(bare));
    if let Some(held) = held {
        say!("beside a held transaction/without = {:.2}", rate(held) / rate(ours));
    }
    if let (Some(beside), Some(nodes)) = (beside, args.nodes) {
        say!("{nodes} nodes/one = {:.2}", rate(beside) / rate(ours));
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
