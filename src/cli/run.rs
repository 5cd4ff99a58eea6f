//! `odoshi run`.

use super::client::{Client, ServerArgs};
use super::follow::{follow, interrupts};
use super::outcome::{Outcome, Usage};
use super::output::Format;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use uuid::Uuid;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An action document (JSON), or - for standard input
    file: Option<PathBuf>,
    /// The action's name; without it, the program with its arguments
    #[arg(long, conflicts_with = "file")]
    name: Option<String>,
    /// A target expression: the agents that run the program
    #[arg(long, value_name = "EXPR", conflicts_with = "file")]
    target: Option<String>,
    /// Time from now before which nothing is delivered
    #[arg(long, value_name = "D")]
    delay: Option<String>,
    /// Time after which undelivered commands expire
    #[arg(long, value_name = "D")]
    expires_after: Option<String>,
    /// Timeout of a run
    #[arg(long, value_name = "D")]
    timeout: Option<String>,
    /// Print the action's id and don't follow the action
    #[arg(long)]
    detach: bool,
    /// The format of the final output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: ServerArgs,
    /// The program and its arguments, after --
    #[arg(last = true, value_name = "ARGV")]
    argv: Vec<String>,
}

pub(super) fn run(args: Args) -> Outcome {
    let document = document(&args)?;
    actix_rt::System::new().block_on(async {
        let client = Client::new(&args.server)?;
        let interrupts = if args.detach { None } else { Some(interrupts()?) };
        let accepted = client.call(Method::POST, "/v1/actions", Some(document)).await?;
        let id = accepted["id"].as_str().unwrap_or_default();
        match interrupts {
            Some(interrupts) => follow(&client, id, args.output, interrupts).await,
            None => {
                say!("{id}");
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

/// The document to submit. It has an id, so that submitting it twice is harmless.
fn document(args: &Args) -> Result<Value, Box<dyn std::error::Error>> {
    let mut document = match (&args.file, args.argv.is_empty()) {
        (Some(_), false) => return Err(Usage("give a file or a program after --, not both".into()).into()),
        (Some(file), true) => read(file)?,
        (None, true) => {
            let example = "odoshi run --target \"labels.role = 'web'\" -- uptime";
            return Err(Usage(format!("nothing to run: give a file, or a target and a program ({example})")).into());
        }
        (None, false) => {
            let Some(target) = &args.target else {
                return Err(Usage("which agents? give --target (TRUE is the whole fleet)".into()).into());
            };
            let name = args.name.clone().unwrap_or_else(|| args.argv.join(" ").chars().take(200).collect());
            json!({ "name": name, "target": target,
                "operations": [{ "module": "exec", "parameters": { "argv": args.argv } }] })
        }
    };
    let Some(keys) = document.as_object_mut() else {
        return Err(Usage("the file does not hold a JSON object".into()).into());
    };
    for (key, value) in [("delay", &args.delay), ("expires_after", &args.expires_after), ("timeout", &args.timeout)] {
        if let Some(value) = value {
            keys.insert(key.into(), value.clone().into());
        }
    }
    keys.entry("id").or_insert_with(|| Uuid::now_v7().to_string().into());
    Ok(document)
}

/// Reads a JSON document from a file, or from standard input.
pub(super) fn read(file: &PathBuf) -> Result<Value, Box<dyn std::error::Error>> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())?
    } else {
        std::fs::read_to_string(file).map_err(|error| Usage(format!("{}: {error}", file.display())))?
    };
    Ok(serde_json::from_str(&text).map_err(|error| Usage(format!("{}: not valid JSON: {error}", file.display())))?)
}
