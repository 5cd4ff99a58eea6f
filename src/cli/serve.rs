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
    /// The address to listen on, instead of http.listen
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// The folder of the server's data, instead of data_dir
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Outcome {
    let flags = [("http.listen", args.listen), ("data_dir", args.data_dir.map(|dir| dir.display().to_string()))];
    let flags = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let config = Config::load(args.config.as_deref(), &flags.collect::<Vec<_>>())?;
    super::limits::raise_open_files();
    actix_rt::System::new().block_on(Odoshi::builder(config).run())?;
    Ok(ExitCode::SUCCESS)
}
