//! `odoshi agents watch`: what agents report, live.

use super::client::{Client, ClientError, ServerArgs, encoded};
use super::outcome::Outcome;
use super::output::{Format, say_json};
use super::table::table;
use crate::domain::json::readable;
use crate::domain::text::{csv_cell, escaped};
use crate::error_chain::ErrorChain;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often the table on a terminal is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(500);
/// Agents and keys in that table. A terminal shows no more.
const ROWS: usize = 200;
const KEYS: usize = 8;
/// Agents that are remembered for it.
const MOST: usize = 100_000;
/// How long to retry while the server can't be reached: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(30);
/// The wait between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A target expression: the agents to watch
    #[arg(value_name = "EXPR", default_value = "TRUE")]
    target: String,
    /// Show these keys alone; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// The output format: a live table on a terminal, else a line for each value
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: ServerArgs,
}

/// Watches until Ctrl-C.
pub(super) async fn run(arguments: Arguments) -> Outcome {
    let Arguments { target, keys, output, server } = arguments;
    let client = Client::new(&server)?;
    let path = format!("/v1/metadata/events?target={}", encoded(&target));
    let mut shown = Shown::new(keys, output);
    let mut interrupts = super::follow::interrupts()?;
    tokio::select! {
        ended = watch(&client, &path, &mut shown) => ended,
        _ = interrupts.recv() => {
            shown.draw();
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn watch(client: &Client, path: &str, shown: &mut Shown) -> Outcome {
    let (mut last_id, mut away) = (None, Instant::now());
    loop {
        let mut events = EventReader::default();
        let lost = match client.events(path, last_id.as_deref()).await {
            Ok(mut answer) => loop {
                match tokio::time::timeout(DRAW_INTERVAL, answer.chunk()).await {
                    Err(_) => shown.draw(),
                    Ok(Ok(Some(chunk))) => {
                        away = Instant::now();
                        for event in events.push(&chunk) {
                            last_id = event.id.or(last_id);
                            shown.take(&event.data);
                        }
                        if super::output::reader_has_gone(None) {
                            return Ok(ExitCode::from(super::output::CLOSED));
                        }
                    }
                    Ok(Ok(None)) => break None,
                    Ok(Err(source)) => break Some(client.unreachable(&source)),
                }
            },
            Err(error @ ClientError::Unreachable { .. }) => Some(error),
            Err(error) => return Err(error.into()),
        };
        match lost {
            Some(error) if away.elapsed() >= PATIENCE => return Err(error.into()),
            Some(error) => log::debug!(error:% = error.chain(); "the server is called again"),
            None => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// A server-sent event.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    id: Option<String>,
    data: String,
}

/// Reads events from their bytes (WHATWG HTML, "Server-sent events").
#[derive(Default)]
struct EventReader {
    rest: Vec<u8>,
    id: Option<String>,
    data: Vec<String>,
}

impl EventReader {
    /// The events that these bytes complete. One without data has the last id alone.
    fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    let (id, data) = (self.id.take(), std::mem::take(&mut self.data).join("\n"));
                    if id.is_some() || !data.is_empty() {
                        events.push(Event { id, data });
                    }
                }
                "id" => self.id = Some(value.to_owned()),
                "data" => self.data.push(value.to_owned()),
                _ => {}
            }
        }
        events
    }
}

/// The data of an event.
#[derive(serde::Deserialize, serde::Serialize)]
struct Reported {
    agent: String,
    /// To the letter.
    items: Vec<Box<RawValue>>,
}

/// What is on the screen.
struct Shown {
    keys: BTreeSet<String>,
    output: Format,
    is_live: bool,
    agents: BTreeMap<String, BTreeMap<String, Value>>,
    seen_keys: BTreeSet<String>,
    drawn: Option<Instant>,
    has_changed: bool,
}

impl Shown {
    fn new(keys: Vec<String>, output: Format) -> Self {
        let is_live = output == Format::Table && std::io::stdout().is_terminal();
        if output == Format::Csv {
            say!("agent,key,value,error,collected_at");
        }
        let (keys, agents, seen_keys) = (keys.into_iter().collect(), BTreeMap::new(), BTreeSet::new());
        Self { keys, output, is_live, agents, seen_keys, drawn: None, has_changed: false }
    }

    /// Takes the data of an event.
    fn take(&mut self, data: &str) {
        let Ok(Reported { agent, items: raw }) = serde_json::from_str(data) else { return };
        let wanted =
            |item: &Value| self.keys.is_empty() || item["key"].as_str().is_some_and(|key| self.keys.contains(key));
        let items = raw.into_iter().map(|item| (readable(item.get()).unwrap_or_default(), item));
        let (items, raw): (Vec<Value>, Vec<Box<RawValue>>) = items.filter(|(item, _)| wanted(item)).unzip();
        if items.is_empty() {
            return;
        }
        match self.output {
            Format::Json | Format::Jsonl => {
                if let Ok(json) = serde_json::to_string(&Reported { agent, items: raw }) {
                    say_json(&json);
                }
            }
            Format::Csv => items.iter().for_each(|item| say!("{}", row(&agent, item))),
            Format::Table if self.is_live => self.keep(agent, items),
            Format::Table => items.iter().for_each(|item| say!("{}", line(&agent, item))),
        }
    }

    fn keep(&mut self, agent: String, items: Vec<Value>) {
        if self.agents.len() >= MOST && !self.agents.contains_key(&agent) {
            return;
        }
        let values = self.agents.entry(agent).or_default();
        for item in items {
            let key = item["key"].as_str().unwrap_or_default().to_owned();
            if self.seen_keys.len() < MOST {
                self.seen_keys.insert(key.clone());
            }
            values.insert(key, item);
        }
        self.has_changed = true;
        if self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_INTERVAL) {
            self.draw();
        }
    }

    /// Draws the table on a terminal, if it has changed.
    fn draw(&mut self) {
        if !self.is_live || !std::mem::take(&mut self.has_changed) {
            return;
        }
        self.drawn = Some(Instant::now());
        let keys: Vec<&String> = self.seen_keys.iter().take(KEYS).collect();
        let header = std::iter::once("AGENT".to_owned()).chain(keys.iter().map(|key| (*key).clone()));
        let row = |(agent, values): (&String, &BTreeMap<String, Value>)| {
            let cells = keys.iter().map(|key| values.get(*key).map(cell).unwrap_or_default());
            std::iter::once(agent.clone()).chain(cells).collect()
        };
        let rows: Vec<Vec<String>> = self.agents.iter().take(ROWS).map(row).collect();
        let table = table(&header.collect::<Vec<_>>(), &rows);
        let more = self.agents.len().saturating_sub(ROWS);
        let mut out = std::io::stdout().lock();
        // Home, and clear what was there.
        let drawn = writeln!(out, "\x1b[H\x1b[2J{table}");
        let drawn = drawn.and_then(|()| if more > 0 { writeln!(out, "and {more} more agents") } else { Ok(()) });
        if let Err(error) = drawn.and_then(|()| out.flush()) {
            log::debug!(error:%; "the table cannot be drawn");
        }
    }
}

/// A value, or its error, as text.
fn cell(item: &Value) -> String {
    match (&item["value"], item["error"].as_str()) {
        (Value::Null, Some(error)) => format!("! {error}"),
        (Value::String(text), _) => text.clone(),
        (value, _) => value.to_string(),
    }
}

fn line(agent: &str, item: &Value) -> String {
    let text = |key: &str| item[key].as_str().unwrap_or_default();
    escaped(&format!("{} {agent} {}={}", text("collected_at"), text("key"), cell(item))).into_owned()
}

fn row(agent: &str, item: &Value) -> String {
    let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
    let value = if item["value"].is_null() { String::new() } else { cell(item) };
    let mut rows = csv::Writer::from_writer(Vec::new());
    let cells = [agent.to_owned(), text("key"), value, text("error"), text("collected_at")];
    let written = rows.write_record(cells.iter().map(|cell| csv_cell(cell).into_owned()));
    let bytes = written.ok().and_then(|()| rows.into_inner().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_read_in_whatever_pieces_they_come() {
        let text =
            ": hello\n\nid: 7\nevent: metadata\ndata: {\"ä\":\ndata: 1}\n\ndata: x\r\n\r\n: that is all\nid: 9\n\n";
        let event = |id: Option<&str>, data: &str| Event { id: id.map(str::to_owned), data: data.into() };
        let expected = [event(Some("7"), "{\"ä\":\n1}"), event(None, "x"), event(Some("9"), "")];
        assert_eq!(EventReader::default().push(text.as_bytes()), expected);
        let mut reader = EventReader::default();
        let one_by_one: Vec<Event> = text.as_bytes().iter().flat_map(|byte| reader.push(&[*byte])).collect();
        assert_eq!(one_by_one, expected);
    }

    #[test]
    fn values_are_shown_as_they_are_and_control_characters_escaped() {
        let item =
            |value: Value, error: Value| json!({"key": "k", "value": value, "error": error, "collected_at": "t"});
        assert_eq!(line("a", &item(json!("x\u{1b}[31m"), Value::Null)), "t a k=x\\u{1b}[31m");
        assert_eq!(line("a", &item(json!({"b": 1}), Value::Null)), "t a k={\"b\":1}");
        assert_eq!(line("a", &item(Value::Null, json!("no\nsensor"))), "t a k=! no\\nsensor");
        assert_eq!(row("a", &item(json!("1,2"), Value::Null)), "a,k,\"1,2\",,t");
    }
}
