//! `odoshi bench`: how fast this machine is, beside something raw in the same run.
//!
//! Only the ratio says something: machines differ, and so do hours of the day. Each figure is the median of the rounds.

mod fleet;
mod raw;

use super::Outcome;
use comfy_table::Table;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// From an accepted action to the last of its commands stored
    Create(Args),
    /// A command's whole life: stored, handed over, its result stored
    Life(Args),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Agents, and so commands per round
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    agents: u32,
    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

pub(super) fn run(command: Command) -> Outcome {
    let (args, life) = match command {
        Command::Create(args) => (args, false),
        Command::Life(args) => (args, true),
    };
    let folder = tempfile::Builder::new().prefix("odoshi-bench-").tempdir()?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    actix_rt::System::new().block_on(async {
        let fleet = fleet::Fleet::start(folder.path(), args.agents).await?;
        for round in 0..args.rounds {
            // One after the other in each round, so that both see the same machine.
            ours.push(fleet.round(life).await?);
            let database = folder.path().join(format!("bare-{round}.db"));
            let (agents, batch) = (args.agents, fleet.batch());
            let raw = tokio::task::spawn_blocking(move || raw::round(&database, agents, batch, life));
            bare.push(raw.await?.map_err(|error| error as Box<dyn std::error::Error>)?);
        }
        fleet.stop().await
    })?;
    let (ours, bare) = (median(ours), median(bare));
    let rate = |time: Duration| f64::from(args.agents) / time.as_secs_f64();
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["", "commands/s", "seconds"]);
    let rows = if life {
        [("odoshi: accepted → completed", ours), ("bare: both inserts, in batches", bare)]
    } else {
        [("odoshi: accepted → all stored", ours), ("bare: the same rows, in batches", bare)]
    };
    for (name, time) in rows {
        table.add_row([name.to_owned(), format!("{:.0}", rate(time)), format!("{:.3}", time.as_secs_f64())]);
    }
    println!("{table}");
    println!(
        "{} commands, median of {} rounds: odoshi/bare = {:.2}",
        args.agents,
        args.rounds,
        rate(ours) / rate(bare)
    );
    folder.close()?;
    Ok(ExitCode::SUCCESS)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
