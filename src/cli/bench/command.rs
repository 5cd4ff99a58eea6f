//! The benchmarks.

use super::{connect, delay, idle, latency, metadata, pool, throughput, webhook};
use crate::cli::outcome::Outcome;
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Command {
    /// Time from an accepted action until all its commands are stored
    Create(throughput::Args),
    /// A command's whole life: stored, delivered, its result stored
    Life(throughput::Args),
    /// An idle server: time from POST /v1/actions until a connected agent has the command
    Latency(latency::Args),
    /// An idle server beside millions of waiting commands, on PostgreSQL: what it uses, and its latency
    Idle(idle::Args),
    /// Many agents' WebSockets: connecting them, an action to all, memory, and all back at once
    Connect(connect::Args),
    /// A server that only answers agents' frames, which `bench connect` starts
    #[command(hide = true)]
    BareServer(connect::BareArgs),
    /// What agents report all the time, on PostgreSQL: transactions, values a second, and an outage
    Metadata(metadata::Args),
    /// Webhooks to local receivers: throughput, and what a hanging host and a dead transport cost
    Webhook(webhook::Args),
    /// The delay queue compared with other implementations
    Delay(delay::Args),
    /// The worker pool compared with a bare chain of channels
    Pool(pool::Args),
}

pub(in crate::cli) fn run(command: Command) -> Outcome {
    let folder = tempfile::Builder::new().prefix("odoshi-bench-").tempdir()?;
    let ended = match command {
        Command::Delay(args) => return delay::run(&args),
        Command::Pool(args) => return pool::run(&args),
        Command::Create(args) => throughput::run(&args, false, folder.path())?,
        Command::Life(args) => throughput::run(&args, true, folder.path())?,
        Command::Latency(args) => {
            actix_rt::System::new().block_on(latency::run(&args, folder.path()))?;
            ExitCode::SUCCESS
        }
        Command::Idle(args) => {
            actix_rt::System::new().block_on(idle::run(&args, folder.path()))?;
            ExitCode::SUCCESS
        }
        Command::Connect(args) => {
            actix_rt::System::new().block_on(connect::run(&args, folder.path()))?;
            ExitCode::SUCCESS
        }
        Command::BareServer(args) => {
            actix_rt::System::new().block_on(connect::run_bare(&args))?;
            ExitCode::SUCCESS
        }
        Command::Metadata(args) => {
            actix_rt::System::new().block_on(metadata::run(&args, folder.path()))?;
            ExitCode::SUCCESS
        }
        Command::Webhook(args) => {
            actix_rt::System::new().block_on(webhook::run(&args, folder.path()))?;
            ExitCode::SUCCESS
        }
    };
    folder.close()?;
    Ok(ended)
}
