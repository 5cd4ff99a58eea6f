//! The subcommands, and the exit codes of the program.

use super::client::ClientError;
use super::listing::Listing;
use super::logging::{self, LogFormat};
use super::outcome::Usage;
use super::{
    actions, agent, agents, audit, bench, config, demo, hooks, migrate, nodes, output, preview, run, schedules, serve,
    token,
};
use crate::domain::text::escaped_lines;
use crate::error_chain::chain_of;
use clap::{CommandFactory, Parser, Subcommand};
use std::borrow::Cow;
use std::process::ExitCode;

/// A durable dispatcher for fleets: one action in, one command per agent out, exact results back.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    /// The format of the log on stderr; RUST_LOG chooses its levels
    #[arg(long, global = true, value_enum, default_value_t, env = "ODOSHI_LOG_FORMAT")]
    log_format: LogFormat,
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
    Nodes(Listing),
    /// List who changed what, newest first
    Audit(audit::Args),
    /// List the hooks, with the events that wait for them or were given up
    Hooks(Listing),
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let text = error.render().to_string();
            // With colours, unless somebody's arguments would drive the terminal.
            if matches!(escaped_lines(&text), Cow::Borrowed(_)) {
                error.exit();
            }
            eprint!("{}", escaped_lines(&text));
            return ExitCode::from(2);
        }
    };
    let is_service = matches!(cli.command, Command::Serve(_) | Command::Agent(_));
    logging::start(cli.log_format, is_service);
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
        Command::Audit(args) => audit::run(args),
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
        eprintln!("odoshi: {}", escaped_lines(&chain_of(&*error).to_string()));
        ExitCode::from(exit_code(&*error))
    })
}

/// 2: wrong usage; 3: the server can't be reached; 6: it refuses the call, or would refuse the document; 1: anything else.
fn exit_code(error: &(dyn std::error::Error + 'static)) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { .. } | ClientError::Strange { .. }) => 3,
        Some(ClientError::Refused(problem)) if problem.status == 503 => 3,
        Some(ClientError::Refused(_) | ClientError::Document { .. }) => 6,
        Some(
            ClientError::NoUrl(_)
            | ClientError::NoToken
            | ClientError::NoSuchToken
            | ClientError::TokenFile { .. }
            | ClientError::Tls(_),
        ) => 2,
        Some(ClientError::Output(_)) => 1,
        None if error.is::<Usage>() => 2,
        None => 1,
    }
}
