//! The subcommands, and the exit codes of the program.

use super::client::ClientError;
use super::outcome::Usage;
use super::{
    actions, agent, agents, bench, config, demo, hooks, migrate, nodes, output, preview, run, schedules, serve, token,
};
use crate::error_chain::chain_of;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// A durable dispatcher for fleets: one action in, one command per agent out, exact results back.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try everything in a temporary folder: a server, real agents, actions through the spool
    Demo(demo::Args),
    /// Run a server
    Serve(serve::Args),
    /// Run the reference agent
    Agent(agent::Args),
    /// Submit an action, follow it to its end, and show its results
    Run(run::Args),
    /// Count the agents that match a target, and show some of them
    Preview(preview::Args),
    /// List, show, follow and control actions
    #[command(subcommand)]
    Actions(actions::Command),
    /// List, show, add, change and remove agents
    #[command(subcommand)]
    Agents(agents::Command),
    /// List, show, add, preview and control schedules
    #[command(subcommand)]
    Schedules(schedules::Command),
    /// List the servers that share the store, with their state
    Nodes(nodes::Args),
    /// List the hooks, with the events that wait for them or were given up
    Hooks(hooks::Args),
    /// Create, list and revoke tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Show or check the settings
    #[command(subcommand)]
    Config(config::Command),
    /// Migrate the store's tables, and exit
    Migrate(migrate::Args),
    /// Measure this machine, with a bare baseline in the same run
    #[command(subcommand)]
    Bench(bench::Command),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command line, and returns the exit code of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = !matches!(cli.command, Command::Serve(_) | Command::Agent(_));
    // The output of most commands is for people, who don't need the routine log lines of a demo's
    // server.
    let default = if quiet { "warn" } else { "info,actix_server=warn,async_nats=warn,lapin=off,tracing=warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
        .format_timestamp_millis()
        // It logs whole messages, and a command may hold secrets. What becomes of them is logged elsewhere.
        .filter_module("lapin::returned_messages", log::LevelFilter::Off)
        .init();
    let outcome = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Run(args) => run::run(args),
        Command::Preview(args) => preview::run(args),
        Command::Actions(command) => actions::run(command),
        Command::Agents(command) => agents::run(command),
        Command::Schedules(command) => schedules::run(command),
        Command::Nodes(args) => nodes::run(args),
        Command::Hooks(args) => hooks::run(args),
        Command::Token(command) => token::run(command),
        Command::Config(command) => config::run(command),
        Command::Migrate(args) => migrate::run(args),
        Command::Bench(command) => bench::run(command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "odoshi", &mut script);
            say!("{}", String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::SUCCESS)
        }
    };
    if output::reader_has_gone(outcome.as_ref().err().map(|error| &**error)) {
        return ExitCode::from(output::CLOSED);
    }
    outcome.unwrap_or_else(|error| {
        eprintln!("odoshi: {}", chain_of(&*error));
        ExitCode::from(exit_code(&*error))
    })
}

/// 2: wrong usage; 3: the server cannot be reached; 1: anything else.
fn exit_code(error: &(dyn std::error::Error + 'static)) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { .. }) => 3,
        _ if error.is::<Usage>() => 2,
        _ => 1,
    }
}
