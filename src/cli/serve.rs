//! `odoshi serve`.

use super::outcome::Outcome;
use crate::Odoshi;
use crate::config::Config;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Settings file (TOML); config/odoshi.toml documents all settings
    #[arg(long, value_name = "FILE", env = "ODOSHI_CONFIG")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Outcome {
    let config = Config::load(args.config.as_deref(), &[])?;
    super::limits::raise_open_files();
    actix_rt::System::new().block_on(Odoshi::builder(config).run())?;
    Ok(ExitCode::SUCCESS)
}
