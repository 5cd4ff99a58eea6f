//! `odoshi agents`.

use super::client::{Client, ServerArgs};
use super::outcome::{Outcome, Usage};
use super::output::{Format, print};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

const COLUMNS: [&str; 8] = ["name", "status", "transport", "labels", "version", "enrolled_at", "last_seen", "disabled"];

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List agents by name: all, or those that match a target
    List {
        /// A target expression
        #[arg(long, value_name = "EXPR")]
        target: Option<String>,
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Add an agent that does not connect to the server; prints its token and the secret that signs
    /// its webhooks, as JSON
    Add {
        /// The agent's name, unique in the fleet
        name: String,
        /// How commands reach it: webhook, smtp, nats, stream, or a transport of your own
        #[arg(long, value_name = "NAME")]
        transport: String,
        /// The agent's address; for webhook an http(s) URL, for smtp a mail address
        #[arg(long)]
        address: Option<String>,
        /// A label for targets; may be repeated
        #[arg(long = "label", value_name = "K=V", value_parser = super::agent::label)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Set labels of an agent (KEY=VALUE), or remove them (KEY=)
    Label {
        /// The agent's name
        name: String,
        /// The labels to set or remove
        #[arg(required = true, value_name = "K=V")]
        labels: Vec<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Disable an agent: it gets no commands, and its connection is closed
    Disable {
        /// The agent's name
        name: String,
        /// Enable the agent again
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Remove an agent: its commands become undeliverable, its token is no longer valid
    Remove {
        /// The agent's name
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show all that the server knows of an agent, as JSON
    Show {
        /// The agent's name
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
            Command::Add { name, transport, address, labels, server } => {
                let labels: BTreeMap<String, String> = labels.into_iter().collect();
                let body = json!({ "name": name, "transport": transport, "address": address, "labels": labels });
                let added = Client::new(&server)?.call(Method::POST, "/v1/agents", Some(body)).await?;
                say!("{}", serde_json::to_string_pretty(&added)?);
            }
            Command::Label { name, labels, server } => {
                let mut patch = serde_json::Map::new();
                for label in labels {
                    let Some((key, value)) = label.split_once('=') else {
                        return Err(Usage(format!("{label:?} is not KEY=VALUE")).into());
                    };
                    patch.insert(key.to_owned(), if value.is_empty() { Value::Null } else { value.into() });
                }
                let agent = change(&server, &name, json!({ "labels": patch })).await?;
                say!("{name}: {}", agent["labels"]);
            }
            Command::Disable { name, undo, server } => {
                let agent = change(&server, &name, json!({ "disabled": !undo })).await?;
                say!("{name} is {}", if agent["disabled"] == true { "disabled" } else { "not disabled" });
            }
            Command::Remove { name, server } => {
                let path = format!("/v1/agents/{}", super::client::encoded(&name));
                Client::new(&server)?.call(Method::DELETE, &path, None).await?;
                say!("{name} is removed");
            }
            Command::Show { name, server } => {
                let path = format!("/v1/agents/{}", super::client::encoded(&name));
                say!("{}", serde_json::to_string_pretty(&Client::new(&server)?.get(&path).await?)?);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn change(server: &ServerArgs, name: &str, patch: Value) -> Result<Value, super::client::ClientError> {
    let path = format!("/v1/agents/{}", super::client::encoded(name));
    Client::new(server)?.call(Method::PATCH, &path, Some(patch)).await
}
