//! `odoshi agents`.

use super::client::{Client, ServerArgs};
use super::outcome::{Outcome, Usage};
use super::output::{Format, print, say_json};
use crate::domain::json::pretty;
use crate::domain::text::escaped;
use reqwest::Method;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

const COLUMNS: [&str; 9] =
    ["name", "status", "transport", "labels", "version", "enrolled_at", "last_seen", "disabled", "duplicate_at"];

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List agents by name: all, or those that match a target
    List {
        /// A target expression
        #[arg(long, value_name = "EXPR")]
        target: Option<String>,
        /// Only disabled agents, which match no target otherwise
        #[arg(long)]
        disabled: bool,
        /// Keys of metadata to show, separated by commas
        #[arg(long, value_name = "KEYS")]
        metadata: Option<String>,
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
        /// How commands reach it: webhook, smtp, nats, amqp, stream, or a transport of your own
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
    /// Watch what agents report of themselves (metadata), live; Ctrl-C ends it
    Watch(super::watch::Arguments),
    /// Show all that the server knows of an agent, its metadata included, as JSON
    Show {
        /// The agent's name
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// The values of an object, to the letter.
type Parts = BTreeMap<String, Box<RawValue>>;

fn cell(name: &Value) -> String {
    name.as_str().unwrap_or_default().to_owned()
}

/// Puts the values of keys, which may hold dots, into columns of their own: `metadata.KEY`.
fn flatten(agent: &mut Value, keys: &[String]) {
    for key in keys {
        let item = &agent["metadata"][key.trim_start_matches("metadata.")];
        let value = match item["error"].as_str() {
            Some(error) => format!("! {error}").into(),
            None => item["value"].clone(),
        };
        agent[key] = value;
    }
}

pub(super) fn run(command: Command) -> Outcome {
    actix_rt::System::new().block_on(async {
        match command {
            Command::List { target, disabled, metadata, output, server } => {
                let parameter = |name: &str, value: &Option<String>| {
                    value.as_ref().map(|value| format!("&{name}={}", super::client::encoded(value))).unwrap_or_default()
                };
                let disabled = if disabled { "&disabled=true" } else { "" };
                let query = format!("{}{disabled}{}", parameter("target", &target), parameter("metadata", &metadata));
                let mut agents =
                    Client::new(&server)?.all("/v1/agents", query.trim_start_matches('&'), "agents").await?;
                let keys = metadata.iter().flat_map(|keys| keys.split(','));
                let keys: Vec<String> = keys.map(|key| format!("metadata.{}", key.trim())).collect();
                if matches!(output, Format::Table | Format::Csv) {
                    agents.iter_mut().for_each(|agent| flatten(&mut agent.value, &keys));
                }
                // A table has only what tells agents apart.
                let is_told = |column: &&str| match (output, *column) {
                    (Format::Table, "enrolled_at") => false,
                    (Format::Table, "disabled") => agents.iter().any(|agent| agent.value["disabled"] == true),
                    (_, "duplicate_at") => agents.iter().any(|agent| !agent.value["duplicate_at"].is_null()),
                    _ => true,
                };
                let columns = COLUMNS.into_iter().filter(is_told).chain(keys.iter().map(String::as_str));
                let columns: Vec<&str> = columns.collect();
                print(&agents, &columns, output)?;
            }
            Command::Watch(arguments) => return super::watch::run(arguments).await,
            Command::Add { name, transport, address, labels, server } => {
                let labels: BTreeMap<String, String> = labels.into_iter().collect();
                let body = json!({ "name": name, "transport": transport, "address": address, "labels": labels });
                let client = Client::new(&server)?;
                let added = client.call(Method::POST, "/v1/agents", Some(body)).await?;
                say_json(&serde_json::to_string_pretty(&added)?);
                // The agent is added, whether this can be read or not.
                let nodes = client.get("/v1/nodes").await.unwrap_or_default();
                let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
                let serves = |node: &Value| {
                    node["alive"] == true && list(&node["transports"]).iter().any(|name| *name == transport.as_str())
                };
                let nodes = list(&nodes["nodes"]);
                if !nodes.is_empty() && !nodes.iter().any(serves) {
                    let mut known: Vec<String> =
                        nodes.iter().flat_map(|node| list(&node["transports"])).map(|name| cell(&name)).collect();
                    known.sort();
                    known.dedup();
                    let known = known.join(", ");
                    eprintln!(
                        "no node has a sender for {transport:?} (there are {}): commands to {name} wait until one has",
                        escaped(&known)
                    );
                }
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
                let client = Client::new(&server)?;
                // To the letter: facts and metadata may hold longer numbers than others can.
                let read = async |path: &str| -> Result<Parts, Box<dyn std::error::Error>> {
                    Ok(serde_json::from_str(&client.text(path).await?)?)
                };
                let mut agent = read(&path).await?;
                agent.extend(read(&format!("{path}/metadata")).await?);
                say_json(&pretty(&serde_json::to_string(&agent)?));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn change(server: &ServerArgs, name: &str, patch: Value) -> Result<Value, super::client::ClientError> {
    let path = format!("/v1/agents/{}", super::client::encoded(name));
    Client::new(server)?.call(Method::PATCH, &path, Some(patch)).await
}
