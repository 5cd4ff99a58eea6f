//! `odoshi audit`.

use super::client::{Client, ServerArgs};
use super::outcome::Outcome;
use super::output::{Format, print};
use std::process::ExitCode;

const COLUMNS: [&str; 6] = ["at", "name", "role", "did", "subject", "detail"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Maximum number of entries to list
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    actix_rt::System::new().block_on(async {
        let page = Client::new(&args.server)?.get(&format!("/v1/audit?limit={}", args.limit)).await?;
        print(page["audit"].as_array().map_or(&[], Vec::as_slice), &COLUMNS, args.output)?;
        Ok(ExitCode::SUCCESS)
    })
}
