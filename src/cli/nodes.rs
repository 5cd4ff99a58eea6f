//! `odoshi nodes`.

use super::listing::Listing;
use super::outcome::Outcome;

const COLUMNS: [&str; 7] = ["name", "alive", "agents", "transports", "started_at", "heartbeat", "incarnation"];

pub(super) fn run(listing: Listing) -> Outcome {
    listing.print("/v1/nodes", "nodes", &COLUMNS)
}
