//! `odoshi hooks`.

use super::client::{Client, ServerArgs};
use super::outcome::Outcome;
use super::output::{Format, print};
use serde_json::Value;
use std::process::ExitCode;

const COLUMNS: [&str; 8] = ["name", "url", "on", "pending", "oldest", "given_up", "last_failed_at", "last_error"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    actix_rt::System::new().block_on(async {
        let answer = Client::new(&args.server)?.get("/v1/hooks").await?;
        let hooks: Vec<Value> = answer["hooks"].as_array().cloned().unwrap_or_default();
        print(&hooks, &COLUMNS, args.output)?;
        Ok(ExitCode::SUCCESS)
    })
}
