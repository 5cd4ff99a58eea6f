//! `odoshi actions`.

use super::client::{Client, ServerArgs, encoded};
use super::follow::{follow, interrupts, show};
use super::outcome::Outcome;
use super::output::{Format, print};
use reqwest::Method;
use std::process::ExitCode;
use uuid::Uuid;

const COLUMNS: [&str; 8] =
    ["id", "status", "created_at", "counts.total", "counts.pending", "counts.succeeded", "counts.failed", "name"];

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List actions, newest first
    List {
        /// Only actions in this state
        #[arg(long)]
        status: Option<String>,
        /// Maximum number of actions to list
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show an action and its commands
    Show(One),
    /// Follow an action to its end
    Follow(One),
    /// Cancel every unfinished command of an action
    Cancel(Steer),
    /// Pause an action: deliver none of its commands until it is resumed
    Pause(Steer),
    /// Resume a paused action
    Resume(Steer),
    /// Create a new action for the agents that failed, and follow it
    Retry {
        /// The action's id
        id: Uuid,
        /// The states of the commands to retry, separated by commas; without it, all that neither
        /// succeeded nor were cancelled
        #[arg(long)]
        status: Option<String>,
        /// Print the new action's id and don't follow the action
        #[arg(long)]
        detach: bool,
        /// The format of the final output
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// The action's id
    id: Uuid,
    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Steer {
    /// The action's id
    id: Uuid,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(command: Command) -> Outcome {
    actix_rt::System::new().block_on(async {
        match command {
            Command::List { status, limit, output, server } => {
                let status = status.map(|status| format!("&status={}", encoded(&status))).unwrap_or_default();
                let page = Client::new(&server)?.get(&format!("/v1/actions?limit={limit}{status}")).await?;
                print(page["actions"].as_array().map_or(&[], Vec::as_slice), &COLUMNS, output)?;
            }
            Command::Show(One { id, output, server }) => {
                let (client, id) = (Client::new(&server)?, id.to_string());
                let action = client.get(&format!("/v1/actions/{id}")).await?;
                show(&client, &id, &action, output).await?;
            }
            Command::Follow(One { id, output, server }) => {
                return follow(&Client::new(&server)?, &id.to_string(), output, interrupts()?).await;
            }
            Command::Cancel(to) => steer(to, "cancel").await?,
            Command::Pause(to) => steer(to, "pause").await?,
            Command::Resume(to) => steer(to, "resume").await?,
            Command::Retry { id, status, detach, output, server } => {
                let client = Client::new(&server)?;
                let status = status.map(|status| format!("?status={}", encoded(&status))).unwrap_or_default();
                let interrupts = if detach { None } else { Some(interrupts()?) };
                let made = client.call(Method::POST, &format!("/v1/actions/{id}/retry{status}"), None).await?;
                let id = made["id"].as_str().unwrap_or_default();
                match interrupts {
                    Some(interrupts) => return follow(&client, id, output, interrupts).await,
                    None => say!("{id}"),
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn steer(Steer { id, server }: Steer, what: &str) -> Result<(), super::client::ClientError> {
    let action = Client::new(&server)?.call(Method::POST, &format!("/v1/actions/{id}/{what}"), None).await?;
    say!("{id} is {}", action["status"].as_str().unwrap_or_default());
    Ok(())
}
