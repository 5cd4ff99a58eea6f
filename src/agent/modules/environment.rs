//! The environment of the programs that the agent runs.
//!
//! Variables can make an allowed program run other code (`BASH_ENV`, `PYTHONPATH`, `LD_PRELOAD` and
//! many more), and no list of the dangerous ones is ever complete. So only named variables are
//! passed: a few harmless ones of the agent, and those that the agent's settings name. The agent's
//! secrets are not among them.

use tokio::process::Command;

/// Variables of the agent that programs get, if they are set: for finding programs and files, the
/// user, language and time zone. `LC_…` as well.
const BASICS: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR"];

/// Gives the program only the basic variables and those of the agent that are named in `also`.
pub(super) fn minimal(command: &mut Command, also: &[String]) {
    command.env_clear();
    for (name, value) in std::env::vars_os() {
        let is_passed = name.to_str().is_some_and(|name| {
            BASICS.contains(&name) || name.starts_with("LC_") || also.iter().any(|also| also == name)
        });
        if is_passed {
            command.env(name, value);
        }
    }
}
