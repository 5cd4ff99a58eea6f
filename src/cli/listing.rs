//! What `odoshi nodes`, `hooks` and `audit` have in common: they print a list of the API.

use super::client::{Client, ServerArgs};
use super::outcome::Outcome;
use super::output::{Format, print};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Listing {
    /// The output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: ServerArgs,
}

impl Listing {
    /// Prints the list that the API has at `path`, under `key`.
    pub(super) fn print(self, path: &str, key: &str, columns: &[&str]) -> Outcome {
        actix_rt::System::new().block_on(async {
            let (items, _) = Client::new(&self.server)?.page(path, key).await?;
            print(&items, columns, self.output)?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
