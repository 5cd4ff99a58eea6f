//! The arguments, and how figures are printed.

use crate::cli::output::say_table;

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Agents of the load test
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(600..=1_000_000))]
    pub(super) agents: u32,
    /// Keys of each agent
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) keys: u32,
    /// Seconds of each phase of the steady fleet
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(5..=600))]
    pub(super) seconds: u32,
    /// Rounds of the load test; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(super) rounds: u32,
    /// The URL of a PostgreSQL database, in which a separate schema is used
    #[arg(long, value_name = "URL")]
    pub(super) store: String,
    /// Repeat the load test while another connection holds a transaction open
    #[arg(long)]
    pub(super) held_transaction: bool,
}

/// Prints rows under a header.
pub(super) fn print(header: &[&str], rows: Vec<Vec<String>>) {
    let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    say_table(&header, &rows);
    say!("");
}
