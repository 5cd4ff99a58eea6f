//! `odoshi config`.

use super::Outcome;
use crate::config::Config;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the settings in force, with secrets masked
    Show(Args),
    /// Check the settings
    Check(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Settings (TOML)
    #[arg(long, value_name = "FILE", env = "ODOSHI_CONFIG")]
    config: Option<PathBuf>,
}

pub(super) fn run(command: Command) -> Outcome {
    match command {
        Command::Show(args) => say!("{}", Config::load(args.config.as_deref(), &[])?.to_toml().trim_end()),
        Command::Check(args) => {
            Config::load(args.config.as_deref(), &[])?;
            say!("the settings are valid");
        }
    }
    Ok(ExitCode::SUCCESS)
}
