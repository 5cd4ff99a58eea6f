//! `odoshi agents`.

use super::Outcome;
use super::client::{Client, ServerArgs};
use super::output::{Format, print};
use std::process::ExitCode;

const COLUMNS: [&str; 8] = ["name", "status", "transport", "labels", "version", "enrolled_at", "last_seen", "disabled"];

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List agents by name: all, or those that a target picks
    List {
        /// Which
        #[arg(long, value_name = "EXPR")]
        target: Option<String>,
        /// The format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show all that is known of an agent, as JSON
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
}

pub(super) fn run(command: Command) -> Outcome {
    actix_rt::System::new().block_on(async {
        match command {
            Command::List { target, output, server } => {
                let target = target.map(|target| format!("target={}", super::client::encoded(&target)));
                let agents = Client::new(&server)?.all("/v1/agents", target.as_deref().unwrap_or(""), "agents").await?;
                print(&agents, &COLUMNS, output)?;
            }
            Command::Show { name, server } => {
                let path = format!("/v1/agents/{}", super::client::encoded(&name));
                println!("{}", serde_json::to_string_pretty(&Client::new(&server)?.get(&path).await?)?);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
