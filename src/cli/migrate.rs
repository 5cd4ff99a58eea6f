//! `odoshi migrate`.

use super::outcome::Outcome;
use crate::config::Config;
use crate::store;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE", env = "ODOSHI_CONFIG")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Outcome {
    let config = Config::load(args.config.as_deref(), &[])?;
    let url = config.store_url();
    actix_rt::System::new().block_on(async {
        let store = store::open(&config).await?;
        store.prepare().await?;
        // No server is started.
        store.node_stop().await
    })?;

    say!("{url} is up to date");
    Ok(ExitCode::SUCCESS)
}
