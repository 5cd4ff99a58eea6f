//! `odoshi hooks`.

use super::listing::Listing;
use super::outcome::Outcome;

const COLUMNS: [&str; 8] = ["name", "url", "on", "pending", "oldest", "given_up", "last_failed_at", "last_error"];

pub(super) fn run(listing: Listing) -> Outcome {
    listing.print("/v1/hooks", "hooks", &COLUMNS)
}
