//! `odoshi preview`.

use super::client::{Client, ServerArgs};
use super::outcome::Outcome;
use reqwest::Method;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A target, such as "labels.role = 'web' AND facts.os = 'linux'"
    #[arg(value_name = "EXPR")]
    target: String,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    actix_rt::System::new().block_on(async {
        let body = json!({ "target": args.target });
        let preview = Client::new(&args.server)?.call(Method::POST, "/v1/targets/preview", Some(body)).await?;
        let count = preview["count"].as_i64().unwrap_or_default();
        say!("{count} {}", if count == 1 { "agent matches" } else { "agents match" });
        let names: Vec<&str> =
            preview["sample"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
        names.iter().for_each(|name| say!("{name}"));
        if names.len() < usize::try_from(count).unwrap_or(0) {
            say!("…");
        }
        Ok(ExitCode::SUCCESS)
    })
}
