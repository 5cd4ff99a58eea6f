//! `odoshi audit`.

use super::listing::Listing;
use super::outcome::Outcome;

const COLUMNS: [&str; 8] = ["at", "by.name", "by.role", "by.address", "did", "subject", "detail", "target"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Maximum number of entries to list
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
    #[command(flatten)]
    listing: Listing,
}

pub(super) fn run(Args { limit, listing }: Args) -> Outcome {
    listing.print(&format!("/v1/audit?limit={limit}"), "audit", &COLUMNS)
}
