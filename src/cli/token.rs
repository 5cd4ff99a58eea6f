//! `odoshi token`.

use super::client::{Client, ServerArgs};
use super::outcome::Outcome;
use crate::config::Config;
use crate::node::reset_admin_token;
use comfy_table::Table;
use reqwest::Method;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use uuid::Uuid;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a token and print nothing else
    Create {
        /// The token's role: viewer, operator, admin or enroll
        #[arg(long)]
        role: String,
        /// A name for people
        #[arg(long, default_value = "")]
        name: String,
        /// How long it is valid, such as 30d; without it, for ever
        #[arg(long, value_name = "D")]
        expires_after: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// On the server's machine, when all admin tokens are lost: write a new one into the store and
    /// print nothing else
    Reset {
        /// The server's settings file (TOML)
        #[arg(long, value_name = "FILE", env = "ODOSHI_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Revoke a token; the last admin token can't be revoked
    Revoke {
        /// The token's id, from the list
        id: Uuid,
        #[command(flatten)]
        server: ServerArgs,
    },
}

pub(super) fn run(command: Command) -> Outcome {
    actix_rt::System::new().block_on(async {
        match command {
            Command::Create { role, name, expires_after, server } => {
                let body = json!({ "role": role, "name": name, "expires_after": expires_after });
                let made = Client::new(&server)?.call(Method::POST, "/v1/tokens", Some(body)).await?;
                say!("{}", made["token"].as_str().unwrap_or_default());
            }
            Command::Reset { config } => {
                let config = Config::load(config.as_deref(), &[])?;
                say!("{}", reset_admin_token(&config).await?.reveal());
            }
            Command::List { server } => list(&Client::new(&server)?).await?,
            Command::Revoke { id, server } => {
                Client::new(&server)?.call(Method::DELETE, &format!("/v1/tokens/{id}"), None).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn list(client: &Client) -> Result<(), super::client::ClientError> {
    let columns = ["id", "role", "name", "created_at", "expires_at", "revoked_at"];
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(columns);
    let mut after = String::new();
    loop {
        let page = client.get(&format!("/v1/tokens?limit=1000{after}")).await?;
        for token in page["tokens"].as_array().into_iter().flatten() {
            table.add_row(columns.map(|column| token[column].as_str().unwrap_or_default().to_owned()));
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    say!("{table}");
    Ok(())
}
