//! `odoshi schedules`.

use super::client::{Client, ClientError, ServerArgs, encoded};
use super::outcome::{Outcome, Usage};
use super::output::{Format, Item, print, say_json};
use super::run::{read, span, target, wrong};
use crate::domain::json;
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const COLUMNS: [&str; 7] = ["name", "when", "timezone", "next_at", "last_at", "paused", "error"];
const PREVIEW_COLUMNS: [&str; 3] = ["at", "local", "note"];

/// When, as in a schedule document.
#[derive(Debug, clap::Args)]
pub(super) struct When {
    /// A cron pattern of local times: five fields, or six with seconds first
    #[arg(long, value_name = "PATTERN")]
    cron: Option<String>,
    /// The time zone of the pattern, such as Europe/Stockholm; UTC by default
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// Instead of --cron: the elapsed time between two occurrences, such as 15m
    #[arg(long, value_name = "D", value_parser = span)]
    every: Option<String>,
    /// Instead of --cron: the time of the only occurrence (RFC 3339)
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Local times that a clock change skips: shift or skip
    #[arg(long, value_name = "POLICY")]
    on_gap: Option<String>,
    /// Local times that a clock change repeats: first, last or both
    #[arg(long, value_name = "POLICY")]
    on_repeat: Option<String>,
    /// No occurrence is before this time
    #[arg(long, value_name = "TIME")]
    starts_at: Option<String>,
    /// No occurrence is at this time or later
    #[arg(long, value_name = "TIME")]
    ends_at: Option<String>,
}

/// What, as in a schedule document.
#[derive(Debug, clap::Args)]
pub(super) struct What {
    /// A target expression: the agents of each occurrence
    #[arg(long, value_name = "EXPR", value_parser = target)]
    target: Option<String>,
    /// The name of the actions; without it, the program with its arguments
    #[arg(long, value_name = "NAME")]
    action_name: Option<String>,
    /// Time after which undelivered commands expire; by default, until the next occurrence
    #[arg(long, value_name = "D", value_parser = span)]
    expires_after: Option<String>,
    /// Timeout of a run
    #[arg(long, value_name = "D", value_parser = span)]
    timeout: Option<String>,
    /// When the previous occurrence still runs: allow, skip or cancel_previous
    #[arg(long, value_name = "POLICY")]
    overlap: Option<String>,
    /// Which missed occurrences to make: skip, latest or all
    #[arg(long, value_name = "POLICY")]
    misfire: Option<String>,
    /// An occurrence that isn't made within this time is missed
    #[arg(long, value_name = "D", value_parser = span)]
    grace: Option<String>,
    /// Missed occurrences that are older are dropped
    #[arg(long, value_name = "D", value_parser = span)]
    max_age: Option<String>,
    /// How many missed occurrences --misfire all makes at most
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Make no occurrences until it is resumed
    #[arg(long)]
    paused: bool,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List schedules by name
    List {
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Add a schedule from a file, or from flags and a program after --
    #[command(after_help = "Examples:\n  odoshi schedules add nightly.json\n  \
        odoshi schedules add nightly --cron '0 2 * * *' --timezone Europe/Stockholm --target \"labels.role = 'web'\" -- uptime")]
    Add {
        /// A schedule document (JSON), or - for standard input; with a program, the schedule's name
        #[arg(value_name = "FILE|NAME")]
        what: PathBuf,
        /// Replace the schedule of this name, if there is one
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        when: Box<When>,
        #[command(flatten)]
        action: Box<What>,
        #[command(flatten)]
        server: ServerArgs,
        /// The program and its arguments, after --
        #[arg(last = true, value_name = "ARGV")]
        argv: Vec<String>,
    },
    /// Show a schedule, its last occurrences and what was missed, as JSON
    Show {
        /// The schedule's name
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show the next occurrences, and what clock changes do to them
    Preview {
        /// The schedule's name; without it, --file or --cron says when
        #[arg(conflicts_with_all = ["file", "cron", "every", "at"])]
        name: Option<String>,
        /// A schedule document (JSON) that isn't stored, or - for standard input
        #[arg(long, value_name = "FILE", conflicts_with_all = ["cron", "every", "at"])]
        file: Option<PathBuf>,
        #[command(flatten)]
        when: Box<When>,
        /// How many occurrences
        #[arg(long, default_value_t = 10)]
        count: u32,
        /// Only occurrences after this time; now by default
        #[arg(long, value_name = "TIME")]
        after: Option<String>,
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Pause a schedule: it makes no occurrences until it is resumed
    Pause {
        /// The schedule's name
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Resume a schedule; what fell into the pause is not missed
    Resume {
        /// The schedule's name
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Make an occurrence now, and print the id of its action
    Trigger {
        /// The schedule's name
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Remove a schedule; its actions stay
    Remove {
        /// The schedule's name
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
}

pub(super) fn run(command: Command) -> Outcome {
    actix_rt::System::new().block_on(async {
        match command {
            Command::List { output, server } => {
                let mut schedules = Client::new(&server)?.all("/v1/schedules", "", "schedules").await?;
                if matches!(output, Format::Table | Format::Csv) {
                    schedules.iter_mut().for_each(|schedule| say_when(&mut schedule.value));
                }
                print(&schedules, &COLUMNS, output)?;
            }
            Command::Add { what, replace, when, action, server, argv } => {
                let is_file = argv.is_empty();
                let document = if is_file { read(&what)? } else { document(&what, &when, &action, &argv)?.to_string() };
                json::check(document.as_bytes()).map_err(|problem| wrong(&what, problem))?;
                let known = json::readable(&document).unwrap_or_default();
                let client = Client::new(&server)?;
                let (method, path) = match known["name"].as_str() {
                    Some(name) if replace => (Method::PUT, path(name)),
                    _ => (Method::POST, "/v1/schedules".to_owned()),
                };
                let added = client.submit(method, &path, document, None).await.map_err(|error| match error {
                    // The server's lines and columns are those of the file.
                    ClientError::Refused(problem) if is_file && matches!(problem.status, 400 | 422) => {
                        wrong(&what, *problem)
                    }
                    other => other,
                })?;
                let name = added["name"].as_str().unwrap_or_default();
                say!("{name}: {}", next_of(&added));
            }
            Command::Show { name, server } => {
                say_json(&json::pretty(&Client::new(&server)?.text(&path(&name)).await?));
            }
            Command::Preview { name, file, when, count, after, output, server } => {
                let client = Client::new(&server)?;
                let after = after.map_or_else(String::new, |after| format!("&after={}", encoded(&after)));
                let query = format!("preview?count={count}{after}");
                let preview = match (name, file) {
                    (Some(name), _) => client.get(&format!("{}/{query}", path(&name))).await?,
                    (None, file) => {
                        let document = match file {
                            Some(file) => read(&file)?,
                            None => previewed(&when)?.to_string(),
                        };
                        client.submit(Method::POST, &format!("/v1/schedules/{query}"), document, None).await?
                    }
                };
                show_preview(&preview, output)?;
            }
            Command::Pause { name, server } => {
                Client::new(&server)?.call(Method::POST, &format!("{}/pause", path(&name)), None).await?;
                say!("{name} is paused");
            }
            Command::Resume { name, server } => {
                let resumed =
                    Client::new(&server)?.call(Method::POST, &format!("{}/resume", path(&name)), None).await?;
                say!("{name} is not paused, {}", next_of(&resumed));
            }
            Command::Trigger { name, server } => {
                let made = Client::new(&server)?.call(Method::POST, &format!("{}/trigger", path(&name)), None).await?;
                say!("{}", made["action"].as_str().unwrap_or_default());
            }
            Command::Remove { name, server } => {
                Client::new(&server)?.call(Method::DELETE, &path(&name), None).await?;
                say!("{name} is removed");
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn path(name: &str) -> String {
    format!("/v1/schedules/{}", encoded(name))
}

/// When it is due next, for people.
fn next_of(schedule: &Value) -> String {
    match schedule["next_at"].as_str() {
        Some(next) => format!("next at {next}"),
        None if schedule["paused"] == true => "paused".into(),
        None => "no occurrence is left".into(),
    }
}

/// Adds what is shown as `when`.
fn say_when(schedule: &mut Value) {
    let of = |key: &str| schedule[key].as_str().map(str::to_owned);
    let when =
        of("cron").or_else(|| Some(format!("every {}", of("every")?))).or_else(|| Some(format!("at {}", of("at")?)));
    schedule["when"] = when.into();
}

fn show_preview(preview: &Value, output: Format) -> Result<(), Box<dyn std::error::Error>> {
    if output == Format::Json {
        say_json(&serde_json::to_string_pretty(preview)?);
        return Ok(());
    }
    let mut occurrences = preview["occurrences"].as_array().cloned().unwrap_or_default();
    if output == Format::Table {
        occurrences
            .iter_mut()
            .for_each(|line| line["local"] = readable(line["local"].as_str().unwrap_or_default()).into());
    }
    let occurrences: Vec<Item> = occurrences.into_iter().map(Item::from).collect();
    print(&occurrences, &PREVIEW_COLUMNS, output)?;
    if output == Format::Table {
        let of = |key: &str| preview["tzdata"][key].as_str().unwrap_or_default();
        eprintln!("time zones: {} ({})", of("version"), of("source"));
    }
    Ok(())
}

/// A local time with its offset, for people: `2027-03-28 03:00:00 +02:00`.
fn readable(local: &str) -> String {
    let (time, offset) = local.split_at(local.len().min(19));
    format!("{} {offset}", time.replacen('T', " ", 1)).trim_end().to_owned()
}

/// Puts the given values into an object.
fn put_given(object: &mut Map<String, Value>, values: [(&str, &Option<String>); 8]) {
    for (key, value) in values {
        if let Some(value) = value {
            object.insert(key.into(), value.clone().into());
        }
    }
}

fn put_when(document: &mut Map<String, Value>, when: &When) {
    let When { cron, timezone, every, at, on_gap, on_repeat, starts_at, ends_at } = when;
    put_given(
        document,
        [
            ("cron", cron),
            ("timezone", timezone),
            ("every", every),
            ("at", at),
            ("on_gap", on_gap),
            ("on_repeat", on_repeat),
            ("starts_at", starts_at),
            ("ends_at", ends_at),
        ],
    );
}

/// The document of flags.
fn document(name: &Path, when: &When, what: &What, argv: &[String]) -> Result<Value, Usage> {
    let Some(target) = &what.target else {
        return Err(Usage("which agents? give --target (TRUE is the whole fleet)".into()));
    };
    if when.cron.is_none() && when.every.is_none() && when.at.is_none() {
        return Err(Usage("when? give --cron, --every or --at".into()));
    }
    let action_name = what.action_name.clone().unwrap_or_else(|| argv.join(" ").chars().take(200).collect());
    let mut action = json!({ "name": action_name, "target": target,
        "operations": [{ "module": "exec", "parameters": { "argv": argv } }] });
    let mut misfire = Map::new();
    for (key, value) in [("policy", &what.misfire), ("grace", &what.grace), ("max_age", &what.max_age)] {
        if let Some(value) = value {
            misfire.insert(key.into(), value.clone().into());
        }
    }
    if let Some(limit) = what.limit {
        misfire.insert("limit".into(), limit.into());
    }
    for (key, value) in [("expires_after", &what.expires_after), ("timeout", &what.timeout)] {
        if let Some(value) = value {
            action[key] = value.clone().into();
        }
    }
    let mut document = Map::new();
    document.insert("name".into(), name.to_string_lossy().into());
    put_when(&mut document, when);
    if !misfire.is_empty() {
        document.insert("misfire".into(), misfire.into());
    }
    if let Some(overlap) = &what.overlap {
        document.insert("overlap".into(), overlap.clone().into());
    }
    if what.paused {
        document.insert("paused".into(), true.into());
    }
    document.insert("action".into(), action);
    Ok(document.into())
}

/// A document for a preview, of which only the times matter.
fn previewed(when: &When) -> Result<Value, Usage> {
    if when.cron.is_none() && when.every.is_none() && when.at.is_none() {
        return Err(Usage("of what? give a schedule's name, --file, --cron, --every or --at".into()));
    }
    let mut document = Map::new();
    document.insert("name".into(), "previewed".into());
    put_when(&mut document, when);
    document.insert(
        "action".into(),
        json!({ "name": "previewed", "target": "TRUE", "operations": [{ "module": "ping" }] }),
    );
    Ok(document.into())
}
