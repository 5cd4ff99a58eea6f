//! `odoshi config`.

use super::outcome::Outcome;
use crate::config::Config;
use crate::node;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the settings in force, with secrets masked
    Show(Args),
    /// Check the settings, the files they name, and whether the address can be listened on
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE", env = "ODOSHI_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    settings: Args,
    /// Check the settings alone, not the files and not the address, which a running server uses
    #[arg(long)]
    settings_only: bool,
}

pub(super) fn run(command: Command) -> Outcome {
    match command {
        Command::Show(args) => say!("{}", Config::load(args.config.as_deref(), &[])?.to_toml().trim_end()),
        Command::Check(args) => {
            let config = Config::load(args.settings.config.as_deref(), &[])?;
            super::limits::raise_open_files();
            if args.settings_only {
                node::check_settings(&config)?;
            } else {
                node::check(&config)?;
            }
            say!("the settings are valid");
        }
    }
    Ok(ExitCode::SUCCESS)
}
