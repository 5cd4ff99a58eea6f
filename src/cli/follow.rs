//! Follows an action to its end, and shows what came of it.

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

/// How often it looks.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long a server that can't be reached is waited for: it may be started anew.
const PATIENCE: Duration = Duration::from_secs(30);
/// A table shows so many commands; the rest is for programs.
const ROWS: usize = 1_000;

const COLUMNS: [&str; 6] = ["agent", "status", "runs", "took", "output", "error"];

/// Ctrl-C from here on: before an action is submitted that is to be followed, so that there is no moment in which it
/// goes on and nobody says so.
pub(super) fn interrupts() -> std::io::Result<Signal> {
    signal(SignalKind::interrupt())
}

/// Follows until nothing will change any more, and prints the commands. Ctrl-C ends the following, not the action.
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

/// 0: all succeeded, or there were none; 4: it expired or was cancelled; 1: else.
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
    // It draws on a terminal only.
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

/// The name, and in which states its commands are.
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

/// From when the agent had it to its end.
fn took(command: &Value) -> Option<String> {
    let time = |key: &str| Timestamp::parse(command[key].as_str()?).ok();
    Some(format!("{:.1}s", time("finished_at")?.since(time("sent_at")?).as_secs_f64()))
}

/// The first line of what a command's last operation printed, or what it answered.
fn output(command: &Value) -> String {
    let last = command["results"].as_array().and_then(|results| results.last());
    let Some(output) = last.map(|result| &result["output"]).filter(|output| !output.is_null()) else {
        return String::new();
    };
    let text = output["stdout"].as_str().map_or_else(|| output.to_string(), str::to_owned);
    let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    if line.len() < text.trim_end().len() { format!("{line}…") } else { line }
}
