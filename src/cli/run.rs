//! `odoshi run`.

use super::client::{Client, ClientError, ServerArgs};
use super::follow::{EXIT_CODES, Following, follow, interrupts};
use super::outcome::{Outcome, Usage};
use super::output::{Format, say_json};
use crate::domain::action::NewAction;
use crate::domain::json;
use crate::domain::problem::Problem;
use crate::domain::target::Target;
use crate::domain::text::bytes_without_mark;
use crate::domain::time::{Span, Timestamp};
use reqwest::Method;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use uuid::Uuid;

#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Args {
    /// An action document (JSON), or - for standard input
    file: Option<PathBuf>,
    /// The action's name; without it, the program with its arguments
    #[arg(long, conflicts_with = "file")]
    name: Option<String>,
    /// A target expression: the agents that run the program
    #[arg(long, value_name = "EXPR", conflicts_with = "file", value_parser = target)]
    target: Option<String>,
    /// Time from now before which nothing is delivered
    #[arg(long, value_name = "D", value_parser = span)]
    delay: Option<String>,
    /// Time after which undelivered commands expire
    #[arg(long, value_name = "D", value_parser = span)]
    expires_after: Option<String>,
    /// Timeout of a run
    #[arg(long, value_name = "D", value_parser = span)]
    timeout: Option<String>,
    /// Print the action's id and don't follow the action
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    following: Following,
    #[command(flatten)]
    server: ServerArgs,
    /// The program and its arguments, after --
    #[arg(last = true, value_name = "ARGV")]
    argv: Vec<String>,
}

/// Checks a target expression of a flag.
pub(super) fn target(text: &str) -> Result<String, String> {
    Target::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Checks a duration of a flag.
pub(super) fn span(text: &str) -> Result<String, String> {
    text.parse::<Span>().map(|_| text.to_owned())
}

pub(super) fn run(args: Args) -> Outcome {
    let document = document(&args)?;
    actix_rt::System::new().block_on(async {
        let client = Client::new(&args.server)?;
        let interrupts = if args.detach { None } else { Some(interrupts()?) };
        let accepted = client.submit(Method::POST, "/v1/actions", document, Some(Uuid::now_v7())).await?;
        let id = accepted["id"].as_str().unwrap_or_default();
        match interrupts {
            Some(interrupts) => follow(&client, id, args.following, interrupts).await,
            None => {
                say_id(id, args.following.output);
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

/// Prints the id of an action that isn't followed.
pub(super) fn say_id(id: &str, format: Format) {
    match format {
        Format::Json | Format::Jsonl => say_json(&serde_json::json!({ "id": id }).to_string()),
        Format::Table | Format::Csv => say!("{id}"),
    }
}

/// The document to submit. A file is sent to the letter, so that errors name its lines and numbers keep their digits.
fn document(args: &Args) -> Result<String, Box<dyn std::error::Error>> {
    let text = match (&args.file, args.argv.is_empty()) {
        (Some(_), false) => return Err(Usage("give a file or a program after --, not both".into()).into()),
        (Some(file), true) => {
            let text = read(file)?;
            // The server has its own clock: times are left to it.
            NewAction::from_json(text.as_bytes(), Uuid::nil(), Timestamp(0)).map_err(|problem| wrong(file, problem))?;
            text
        }
        (None, true) => {
            let example = "odoshi run --target \"labels.role = 'web'\" -- uptime";
            return Err(Usage(format!("nothing to run: give a file, or a target and a program ({example})")).into());
        }
        (None, false) => {
            let Some(target) = &args.target else {
                return Err(Usage("which agents? give --target (TRUE is the whole fleet)".into()).into());
            };
            let name = args.name.clone().unwrap_or_else(|| args.argv.join(" ").chars().take(200).collect());
            let operation = serde_json::json!({ "module": "exec", "parameters": { "argv": args.argv } });
            serde_json::json!({ "name": name, "target": target, "operations": [operation] }).to_string()
        }
    };
    let flags = [("delay", &args.delay), ("expires_after", &args.expires_after), ("timeout", &args.timeout)];
    if flags.iter().all(|(_, value)| value.is_none()) {
        return Ok(text);
    }
    let mut keys: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text)?;
    for (key, value) in flags {
        if let Some(value) = value {
            keys.insert(key.to_owned(), to_raw_value(value)?);
        }
    }
    Ok(serde_json::to_string(&keys)?)
}

/// A document from this file is wrong.
pub(super) fn wrong(file: &Path, problem: Problem) -> ClientError {
    ClientError::Document { file: file.display().to_string(), problem: Box::new(problem) }
}

/// Reads a document from a file, or from standard input.
///
/// # Errors
/// If it can't be read, or isn't JSON.
pub(super) fn read(file: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let unreadable = |error: std::io::Error| Usage(format!("{}: {error}", file.display()));
    let bytes = if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map_err(unreadable)?;
        bytes
    } else {
        std::fs::read(file).map_err(unreadable)?
    };
    Ok(json::check(bytes_without_mark(&bytes)).map_err(|problem| wrong(file, problem))?.to_owned())
}
