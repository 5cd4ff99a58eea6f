//! `odoshi actions`.

use super::client::{Client, ClientError, ServerArgs, encoded};
use super::follow::{EXIT_CODES, Following, follow, interrupts};
use super::outcome::{Outcome, Usage};
use super::output::{Format, print, say_table};
use super::run::say_id;
use super::show::{Extent, Which, show};
use crate::domain::time::Timestamp;
use reqwest::Method;
use serde_json::Value;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

const COLUMNS: [&str; 13] = [
    "id",
    "status",
    "created_at",
    "counts.total",
    "counts.pending",
    "counts.sent",
    "counts.succeeded",
    "counts.failed",
    "counts.timed_out",
    "counts.undeliverable",
    "counts.expired",
    "counts.cancelled",
    "name",
];

/// The counts in the table. Those that are zero everywhere are left out, but for the total.
const COUNTS: [(&str, &str); 9] = [
    ("total", "TOTAL"),
    ("pending", "PENDING"),
    ("sent", "SENT"),
    ("succeeded", "OK"),
    ("failed", "FAILED"),
    ("timed_out", "TIMED OUT"),
    ("undeliverable", "UNDELIVERABLE"),
    ("expired", "EXPIRED"),
    ("cancelled", "CANCELLED"),
];

/// The shortest beginning of an id that names an action, and of what is shown on a terminal: 48 bits, which are the
/// milliseconds of its time.
const SHORTEST: usize = 8;
const SHOWN: usize = 13;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List actions, newest first
    List {
        /// Only actions in this state
        #[arg(long, value_name = "STATE", value_parser = ["scheduled", "resolving", "running", "paused", "completed", "cancelled", "expired"])]
        status: Option<String>,
        /// Maximum number of actions to list
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show an action, and what each agent printed
    Show {
        /// The action's id, or its beginning
        #[arg(value_parser = beginning)]
        id: String,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        extent: Extent,
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Follow an action to its end
    #[command(after_help = EXIT_CODES)]
    Follow {
        /// The action's id, or its beginning
        #[arg(value_parser = beginning)]
        id: String,
        #[command(flatten)]
        following: Following,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Cancel every unfinished command of an action
    Cancel(Steer),
    /// Pause an action: deliver none of its commands until it is resumed
    Pause(Steer),
    /// Resume a paused action
    Resume(Steer),
    /// Create a new action for the agents that failed, and follow it
    #[command(after_help = EXIT_CODES)]
    Retry {
        /// The action's id, or its beginning
        #[arg(value_parser = beginning)]
        id: String,
        /// The states of the commands to retry, separated by commas; without it, all that neither
        /// succeeded nor were cancelled
        #[arg(long)]
        status: Option<String>,
        /// Print the new action's id and don't follow the action
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        following: Following,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Steer {
    /// The action's id, or its beginning
    #[arg(value_parser = beginning)]
    id: String,
    #[command(flatten)]
    server: ServerArgs,
}

/// Checks an id, or its beginning, and writes it as the server does.
fn beginning(text: &str) -> Result<String, String> {
    let is_fine = |letter: char| letter.is_ascii_hexdigit() || letter == '-';
    if !(SHORTEST..=36).contains(&text.len()) || !text.chars().all(is_fine) {
        return Err(format!("an id, or its first {SHORTEST} characters or more, is expected"));
    }
    let mut id = String::new();
    for digit in text.to_ascii_lowercase().chars().filter(|letter| *letter != '-') {
        if matches!(id.len(), 8 | 13 | 18 | 23) {
            id.push('-');
        }
        id.push(digit);
    }
    Ok(id)
}

/// The whole id of the action whose id begins so.
async fn whole(client: &Client, beginning: String) -> Result<String, Box<dyn std::error::Error>> {
    if beginning.len() == 36 {
        return Ok(beginning);
    }
    let page = client.get(&format!("/v1/actions?limit=2&id={beginning}")).await?;
    let actions = page["actions"].as_array().map_or(&[][..], Vec::as_slice);
    match actions {
        [action] => Ok(action["id"].as_str().unwrap_or_default().to_owned()),
        [] => Err(Usage(format!("no action has an id that begins with {beginning}")).into()),
        _ => Err(Usage(format!("several actions have ids that begin with {beginning}; give more of it")).into()),
    }
}

pub(super) fn run(command: Command) -> Outcome {
    actix_rt::System::new().block_on(async {
        match command {
            Command::List { status, limit, output, server } => {
                let status = status.map(|status| format!("&status={}", encoded(&status))).unwrap_or_default();
                let path = format!("/v1/actions?limit={limit}{status}");
                let (actions, _) = Client::new(&server)?.page(&path, "actions").await?;
                match output {
                    Format::Table => say_list(&actions.into_iter().map(|action| action.value).collect::<Vec<_>>()),
                    _ => print(&actions, &COLUMNS, output)?,
                }
            }
            Command::Show { id, which, extent, output, server } => {
                let client = Client::new(&server)?;
                let id = whole(&client, id).await?;
                let action = client.get(&format!("/v1/actions/{id}")).await?;
                show(&client, &action, &which, extent, output).await?;
            }
            Command::Follow { id, following, server } => {
                let client = Client::new(&server)?;
                let id = whole(&client, id).await?;
                return follow(&client, &id, following, interrupts()?).await;
            }
            Command::Cancel(to) => steer(to, "cancel").await?,
            Command::Pause(to) => steer(to, "pause").await?,
            Command::Resume(to) => steer(to, "resume").await?,
            Command::Retry { id, status, detach, following, server } => {
                let client = Client::new(&server)?;
                let id = whole(&client, id).await?;
                let status = status.map(|status| format!("?status={}", encoded(&status))).unwrap_or_default();
                let interrupts = if detach { None } else { Some(interrupts()?) };
                let made = client.call(Method::POST, &format!("/v1/actions/{id}/retry{status}"), None).await?;
                let id = made["id"].as_str().unwrap_or_default();
                match interrupts {
                    Some(interrupts) => return follow(&client, id, following, interrupts).await,
                    None => say_id(id, following.output),
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn steer(Steer { id, server }: Steer, what: &str) -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::new(&server)?;
    let id = whole(&client, id).await?;
    let action: Result<Value, ClientError> = client.call(Method::POST, &format!("/v1/actions/{id}/{what}"), None).await;
    say!("{id} is {}", action?["status"].as_str().unwrap_or_default());
    Ok(())
}

/// Prints actions, one a line. On a terminal, ids are shortened as far as they differ.
fn say_list(actions: &[Value]) {
    let text = |action: &Value, key: &str| action[key].as_str().unwrap_or_default().to_owned();
    let ids: Vec<String> = actions.iter().map(|action| text(action, "id")).collect();
    let length = if std::io::stdout().is_terminal() { distinct(&ids) } else { 36 };
    let count = |action: &Value, key: &str| action["counts"][key].as_i64().unwrap_or_default();
    let is_shown = |key: &str| matches!(key, "total") || actions.iter().any(|action| count(action, key) != 0);
    let counts: Vec<(&str, &str)> = COUNTS.into_iter().filter(|(key, _)| is_shown(key)).collect();
    let header = ["ID", "STATUS", "AGE"].into_iter().chain(counts.iter().map(|(_, name)| *name)).chain(["NAME"]);
    let now = Timestamp::of_this_machine();
    let row = |action: &Value| {
        let id = text(action, "id").chars().take(length).collect();
        let made = Timestamp::parse(&text(action, "created_at")).map(|made| age(now.since(made))).unwrap_or_default();
        let mut row = vec![id, text(action, "status"), made];
        row.extend(counts.iter().map(|(key, _)| count(action, key).to_string()));
        row.push(text(action, "name"));
        row
    };
    let header: Vec<String> = header.map(str::to_owned).collect();
    say_table(&header, &actions.iter().map(row).collect::<Vec<_>>());
}

/// The length at which the beginnings of these ids differ.
fn distinct(ids: &[String]) -> usize {
    let mut sorted: Vec<&String> = ids.iter().collect();
    sorted.sort();
    let common = |one: &str, other: &str| one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let pairs = sorted.windows(2).map(|pair| common(pair[0], pair[1]) + 1);
    pairs.max().unwrap_or(0).clamp(SHOWN, 36)
}

/// A duration in its largest unit.
fn age(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..100 => format!("{secs}s"),
        secs @ 100..6_000 => format!("{}m", secs / 60),
        secs @ 6_000..172_800 => format!("{}h", secs / 3_600),
        secs => format!("{}d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_be_shortened_and_written_in_other_ways() {
        let id = "018f0000-0000-7000-8000-00000000000a";
        for text in [id, "018F0000-0000-7000-8000-00000000000A", "018f00000000700080000000 0000000a".trim()] {
            let text = text.replace(' ', "");
            assert_eq!(beginning(&text).as_deref(), Ok(id), "{text}");
        }
        assert_eq!(beginning("018f0000").as_deref(), Ok("018f0000"));
        assert_eq!(beginning("018f00001").as_deref(), Ok("018f0000-1"));
        for wrong in ["", "018f000", "not-a-uuid", "018f0000-0000-7000-8000-00000000000a0"] {
            assert!(beginning(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shown_ids_differ_and_ages_are_short() {
        let ids = ["018f0000-0001-7a00", "018f0000-0001-7b00", "118f"].map(str::to_owned);
        assert_eq!((distinct(&ids), distinct(&ids[2..]), distinct(&[])), (16, 13, 13));
        let of = |secs| age(Duration::from_secs(secs));
        assert_eq!([of(5), of(100), of(7_200), of(864_000)], ["5s", "1m", "2h", "10d"]);
    }
}
