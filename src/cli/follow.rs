//! Follows an action to its end and shows its results.

use super::client::{Client, ClientError};
use super::outcome::Outcome;
use super::output::{Format, progress};
use super::show::{Extent, Which, show, standing};
use crate::domain::text::escaped;
use crate::error_chain::ErrorChain;
use serde_json::Value;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often progress is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long to retry while the server can't be reached: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(30);

/// The exit codes of a command that follows an action.
pub(super) const EXIT_CODES: &str = "Exit codes:
  0  all commands succeeded
  1  some did not
  2  wrong usage
  3  the server can't be reached
  4  nothing failed, but something expired or was cancelled
  5  no agent matched the target (with --allow-empty: 0)
  6  the server refused it: the token, its role, or the document
  130  Ctrl-C: the action goes on";

/// How an action is followed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Following {
    /// The format of the final output
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Format,
    #[command(flatten)]
    extent: Extent,
    /// Exit with 0 if no agent matches the target
    #[arg(long)]
    allow_empty: bool,
}

/// Handles Ctrl-C from here on. Call it before the action is submitted: from then on, Ctrl-C always
/// prints that the action continues.
pub(super) fn interrupts() -> std::io::Result<Signal> {
    signal(SignalKind::interrupt())
}

/// Follows the action until it is final, and prints its commands. Ctrl-C stops following and not
/// the action.
pub(super) async fn follow(client: &Client, id: &str, how: Following, mut interrupts: Signal) -> Outcome {
    let again = || eprintln!("the action goes on; to follow it again: odoshi actions follow {id}");
    let followed = tokio::select! {
        followed = until_over(client, id) => followed.inspect_err(|_| again())?,
        _ = interrupts.recv() => {
            eprintln!();
            again();
            return Ok(ExitCode::from(130));
        }
    };
    show(client, &followed, &Which::default(), how.extent, how.output).await?;
    if is_empty(&followed) {
        eprintln!(
            "no agent matches the target: {}",
            escaped(followed["action"]["target"].as_str().unwrap_or_default())
        );
    }
    Ok(ExitCode::from(exit_code(&followed, how.allow_empty)))
}

/// The exit code if no agent matched.
const EMPTY: u8 = 5;

fn is_empty(action: &Value) -> bool {
    action["status"] == "completed" && action["counts"]["total"] == 0
}

/// See [`EXIT_CODES`].
fn exit_code(action: &Value, allow_empty: bool) -> u8 {
    let count = |state: &str| action["counts"][state].as_i64().unwrap_or_default();
    let is_cut_short = matches!(action["status"].as_str(), Some("expired" | "cancelled"));
    match () {
        () if count("failed") + count("timed_out") + count("undeliverable") > 0 => 1,
        () if is_cut_short || count("expired") + count("cancelled") > 0 => 4,
        () if is_empty(action) => {
            if allow_empty {
                0
            } else {
                EMPTY
            }
        }
        () if count("succeeded") == count("total") => 0,
        () => 1,
    }
}

async fn until_over(client: &Client, id: &str) -> Result<Value, ClientError> {
    let bar = progress("[{bar:20}] {pos}/{len} {elapsed} {wide_msg}");
    let mut away: Option<Instant> = None;
    loop {
        match client.get(&format!("/v1/actions/{id}")).await {
            Ok(action) => {
                away = None;
                let count = |key: &str| action["counts"][key].as_u64().unwrap_or(0);
                let total = count("total");
                let over = total - (count("pending") + count("sent")).min(total);
                bar.set_length(total);
                bar.set_position(over);
                let left = if over > 0 && over < total { format!("{} left, ", eta(&bar)) } else { String::new() };
                bar.set_message(format!("{left}{}", escaped(&standing(&action))));
                let is_final = matches!(action["status"].as_str(), Some("completed" | "cancelled" | "expired"));
                if is_final && over == total {
                    bar.finish_and_clear();
                    return Ok(action);
                }
            }
            Err(error) if may_pass(&error) && away.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                bar.set_message(format!("waiting: {}", escaped(&error.chain().to_string())));
            }
            Err(error) => {
                bar.finish_and_clear();
                return Err(error);
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The time that is left at the present pace.
fn eta(bar: &indicatif::ProgressBar) -> String {
    humantime::format_duration(Duration::from_secs(bar.eta().as_secs().max(1))).to_string()
}

fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Refused(problem) => problem.status == 503,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_exit_code_says_how_it_went() {
        let code = |status: &str, counts: Value| {
            let total: i64 = counts.as_object().expect("counts").values().filter_map(Value::as_i64).sum();
            let mut action = json!({ "status": status, "counts": counts });
            action["counts"]["total"] = total.into();
            exit_code(&action, false)
        };
        assert_eq!(code("completed", json!({ "succeeded": 2 })), 0);
        assert_eq!(code("completed", json!({ "succeeded": 2, "undeliverable": 1, "expired": 1 })), 1);
        assert_eq!(code("completed", json!({ "succeeded": 2, "expired": 1 })), 4);
        assert_eq!(code("cancelled", json!({ "timed_out": 1, "cancelled": 1 })), 1);
        assert_eq!((code("cancelled", json!({})), code("expired", json!({}))), (4, 4));
        assert_eq!(code("completed", json!({})), 5);
        assert_eq!(exit_code(&json!({ "status": "completed", "counts": { "total": 0 } }), true), 0);
    }
}
