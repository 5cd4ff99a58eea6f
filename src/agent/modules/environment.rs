//! The environment of the programs that the agent runs.
//!
//! Variables can make an allowed program run other code (`BASH_ENV`, `PYTHONPATH`, `LD_PRELOAD` and
//! many more), and no list of the dangerous ones is ever complete. So only named variables are
//! passed: a few harmless ones of the agent, and those that the agent's settings name. The agent's
//! secrets are not among them.

use crate::domain::time::Timestamp;
use tokio::process::Command;

/// The variable with the nominal time of the occurrence, as RFC 3339 in UTC, in programs of an
/// action that a schedule made.
pub(in crate::agent) const SCHEDULED_FOR: &str = "ODOSHI_SCHEDULED_FOR";

/// Variables of the agent that programs get, if they are set: for finding programs and files, the
/// user, language and time zone. `LC_…` as well.
const BASICS: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR"];

/// Gives the program only the basic variables and those of the agent that are named in `also`. The
/// program of a schedule's action gets its nominal time too.
pub(super) fn minimal(command: &mut Command, also: &[String], scheduled_for: Option<Timestamp>) {
    command.env_clear();
    for (name, value) in std::env::vars_os() {
        let is_passed = name.to_str().is_some_and(|name| {
            BASICS.contains(&name) || name.starts_with("LC_") || also.iter().any(|also| also == name)
        });
        if is_passed {
            command.env(name, value);
        }
    }
    if let Some(time) = scheduled_for {
        command.env(SCHEDULED_FOR, time.to_string());
    }
}
