//! Follows an action to its end and shows its results.

use super::client::{Client, ClientError};
use super::outcome::Outcome;
use super::output::{Format, print};
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often progress is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long to retry while the server can't be reached: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum number of commands in a table. More can be read as JSON or CSV.
const ROWS: usize = 1_000;

const COLUMNS: [&str; 6] = ["agent", "status", "runs", "took", "output", "error"];

/// Handles Ctrl-C from here on. Call it before the action is submitted: from then on, Ctrl-C always
/// prints that the action continues.
pub(super) fn interrupts() -> std::io::Result<Signal> {
    signal(SignalKind::interrupt())
}

/// Follows the action until it is final, and prints its commands. Ctrl-C stops following and not
/// the action.
pub(super) async fn follow(client: &Client, id: &str, format: Format, mut interrupts: Signal) -> Outcome {
    let followed = tokio::select! {
        followed = until_over(client, id) => followed?,
        _ = interrupts.recv() => {
            eprintln!("\nthe action goes on; to follow it again: odoshi actions follow {id}");
            return Ok(ExitCode::from(130));
        }
    };
    show(client, id, &followed, format).await?;
    Ok(exit_code(&followed))
}

/// 0: all commands succeeded, or there were none; 4: expired or cancelled; 1: otherwise.
fn exit_code(action: &Value) -> ExitCode {
    let counts = &action["counts"];
    match action["status"].as_str() {
        Some("expired" | "cancelled") => ExitCode::from(4),
        _ if counts["expired"].as_i64() > Some(0) && counts["expired"] == counts["total"] => ExitCode::from(4),
        _ if counts["succeeded"] == counts["total"] => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

async fn until_over(client: &Client, id: &str) -> Result<Value, ClientError> {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    // Drawn on a terminal only.
    let bar = ProgressBar::new(0).with_style(style);
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
                bar.set_message(told(&action));
                let is_final = matches!(action["status"].as_str(), Some("completed" | "cancelled" | "expired"));
                if is_final && over == total {
                    bar.finish_and_clear();
                    return Ok(action);
                }
            }
            Err(error) if may_pass(&error) && away.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                bar.set_message(format!("waiting: {}", error.chain()));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Refused(problem) => problem.status == 503,
        _ => false,
    }
}

/// The action's name, and its commands by state.
fn told(action: &Value) -> String {
    let states = ["succeeded", "failed", "timed_out", "undeliverable", "expired", "cancelled"];
    let counts = states.iter().filter_map(|state| match action["counts"][state].as_u64() {
        Some(number @ 1..) => Some(format!("{number} {state}")),
        _ => None,
    });
    let counts: Vec<String> = counts.collect();
    let name: String = action["name"].as_str().unwrap_or_default().chars().take(40).collect();
    if counts.is_empty() { name } else { format!("{name}: {}", counts.join(", ")) }
}

/// Prints an action's commands.
pub(super) async fn show(
    client: &Client,
    id: &str,
    action: &Value,
    format: Format,
) -> Result<(), Box<dyn std::error::Error>> {
    let path = format!("/v1/actions/{id}/commands");
    match format {
        Format::Csv => client.copy(&path, "text/csv", &mut std::io::stdout().lock()).await?,
        Format::Jsonl => client.copy(&path, "application/x-ndjson", &mut std::io::stdout().lock()).await?,
        Format::Json => {
            let mut whole = action.clone();
            whole["commands"] = client.all(&path, "", "commands").await?.into();
            say!("{}", serde_json::to_string_pretty(&whole)?);
        }
        Format::Table => {
            let page = client.get(&format!("{path}?limit={ROWS}")).await?;
            let mut rows: Vec<Value> = page["commands"].as_array().cloned().unwrap_or_default();
            for row in &mut rows {
                row["output"] = output(row).into();
                row["took"] = took(row).into();
            }
            print(&rows, &COLUMNS, Format::Table)?;
            if page["next"].is_string() {
                say!("… the rest: odoshi actions show {id} -o csv");
            }
            say!("{id} {}: {}", action["status"].as_str().unwrap_or_default(), told(action));
        }
    }
    Ok(())
}

/// The time from `sent_at` to the end.
fn took(command: &Value) -> Option<String> {
    let time = |key: &str| Timestamp::parse(command[key].as_str()?).ok();
    Some(format!("{:.1}s", time("finished_at")?.since(time("sent_at")?).as_secs_f64()))
}

/// The first line of the last operation's output or answer.
fn output(command: &Value) -> String {
    let last = command["results"].as_array().and_then(|results| results.last());
    let Some(output) = last.map(|result| &result["output"]).filter(|output| !output.is_null()) else {
        return String::new();
    };
    let text = output["stdout"].as_str().map_or_else(|| output.to_string(), str::to_owned);
    let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    if line.len() < text.trim_end().len() { format!("{line}…") } else { line }
}
