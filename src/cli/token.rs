//! `odoshi token`.

use super::client::{Client, ServerArgs};
use super::outcome::Outcome;
use super::output::{Format, print};
use super::run::span;
use crate::config::Config;
use crate::node::reset_admin_token;
use reqwest::Method;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use uuid::Uuid;

const COLUMNS: [&str; 6] = ["id", "role", "name", "created_at", "expires_at", "revoked_at"];

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a token and print nothing else
    Create {
        /// The token's role
        #[arg(long, value_parser = ["viewer", "operator", "admin", "enroll"])]
        role: String,
        /// A name for people
        #[arg(long, default_value = "")]
        name: String,
        /// How long it is valid, such as 30d; without it, for ever
        #[arg(long, value_name = "D", value_parser = span)]
        expires_after: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List tokens, without their secrets
    List {
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
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
            Command::List { output, server } => {
                print(&Client::new(&server)?.all("/v1/tokens", "", "tokens").await?, &COLUMNS, output)?;
            }
            Command::Revoke { id, server } => {
                Client::new(&server)?.call(Method::DELETE, &format!("/v1/tokens/{id}"), None).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
