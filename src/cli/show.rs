//! Shows an action's commands: as a table, agent by agent, or equal outputs together.

use super::client::{Client, ClientError, encoded};
use super::outcome::Usage;
use super::output::{Format, Item, say_json, say_table};
use crate::domain::text::escaped;
use crate::domain::time::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;

/// Maximum number of commands that are shown without `--full` or `--group`.
const ROWS: usize = 1_000;
/// Lines that outputs take on the screen without `--full`, and those of one agent.
const SCREEN: usize = 200;
const LINES: usize = 10;
/// Characters of a line without `--full`.
const LINE: usize = 400;
/// Different outputs that `--group` tells apart.
const GROUPS: usize = 1_000;
/// Agents that a group names.
const NAMED: usize = 20;

const HEADER: [&str; 6] = ["AGENT", "STATUS", "RUNS", "TOOK", "OUTPUT", "ERROR"];

/// How much of the outputs.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct Extent {
    /// Show all that each agent printed
    #[arg(long)]
    full: bool,
    /// Show equal outputs once, with the agents that gave them
    #[arg(long, conflicts_with = "full")]
    group: bool,
}

/// Which commands.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Which {
    /// Only the command of this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only commands in this state
    #[arg(long, value_name = "STATE", value_parser = ["pending", "sent", "succeeded", "failed", "timed_out", "undeliverable", "expired", "cancelled"])]
    status: Option<String>,
}

impl Which {
    fn query(&self) -> String {
        let given = [("agent", &self.agent), ("status", &self.status)];
        let given = given.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", encoded(value.as_deref()?))));
        given.collect::<Vec<_>>().join("&")
    }
}

/// Prints an action's commands, and how it stands.
pub(super) async fn show(
    client: &Client,
    action: &Value,
    which: &Which,
    extent: Extent,
    format: Format,
) -> Result<(), Box<dyn Error>> {
    let id = action["id"].as_str().unwrap_or_default();
    let (path, query) = (format!("/v1/actions/{id}/commands"), which.query());
    if let Some(agent) = &which.agent {
        let (commands, _) = client.page(&format!("{path}?limit=1&agent={}", encoded(agent)), "commands").await?;
        if commands.is_empty() {
            return Err(Usage(format!("the action has no command for {agent:?}")).into());
        }
    }
    match format {
        Format::Csv => client.copy(&format!("{path}?{query}"), "text/csv", &mut std::io::stdout().lock()).await?,
        Format::Jsonl => {
            client.copy(&format!("{path}?{query}"), "application/x-ndjson", &mut std::io::stdout().lock()).await?;
        }
        Format::Json => {
            // To the letter: the agents' numbers may be longer than others can hold.
            let mut whole: BTreeMap<String, Box<RawValue>> =
                serde_json::from_str(&client.text(&format!("/v1/actions/{id}")).await?)?;
            let lines = client.lines(&format!("{path}?{query}")).await?;
            let commands = lines.lines().collect::<Vec<_>>().join(",\n    ");
            let commands = if commands.is_empty() { "[]".to_owned() } else { format!("[\n    {commands}\n  ]") };
            whole.insert("commands".to_owned(), RawValue::from_string(commands)?);
            let entries =
                whole.iter().map(|(key, value)| format!("  {}: {value}", serde_json::Value::from(key.as_str())));
            say_json(&format!("{{\n{}\n}}", entries.collect::<Vec<_>>().join(",\n")));
        }
        Format::Table => {
            let mut pages = Pages { client, path, query, after: Some(String::new()) };
            if extent.full {
                while let Some(page) = pages.next().await? {
                    page.iter().for_each(|command| say_agent(command, usize::MAX));
                }
            } else if extent.group {
                say_groups(&mut pages).await?;
            } else {
                let page = pages.next().await?.unwrap_or_default();
                say_page(id, &page, pages.after.is_some());
            }
            let status = action["status"].as_str().unwrap_or_default();
            say!("{id} {status}: {}", escaped(&standing(action)));
        }
    }
    Ok(())
}

/// The commands of an action, page by page.
struct Pages<'a> {
    client: &'a Client,
    path: String,
    query: String,
    /// The place after which the next one begins; none after the last one.
    after: Option<String>,
}

impl Pages<'_> {
    async fn next(&mut self) -> Result<Option<Vec<Value>>, ClientError> {
        let Some(after) = self.after.take() else { return Ok(None) };
        let path = format!("{}?limit={ROWS}&{}{after}", self.path, self.query);
        let (commands, next) = self.client.page(&path, "commands").await?;
        self.after = next.map(|next| format!("&after={}", encoded(&next)));
        Ok(Some(commands.into_iter().map(with_outputs).collect()))
    }
}

/// A command whose outputs are shown to the letter, except for those of programs.
fn with_outputs(command: Item) -> Value {
    #[derive(serde::Deserialize)]
    struct Outputs {
        #[serde(default)]
        results: Option<Vec<Output>>,
    }
    #[derive(serde::Deserialize)]
    struct Output {
        output: Option<Box<RawValue>>,
    }
    let Item { json, mut value } = command;
    let outputs = serde_json::from_str(&json).ok().and_then(|Outputs { results }| results);
    let Some(results) = value["results"].as_array_mut() else { return value };
    for (result, Output { output }) in results.iter_mut().zip(outputs.unwrap_or_default()) {
        let is_program = result["output"]["stdout"].is_string();
        if let Some(output) = output.filter(|output| !is_program && output.get().starts_with(['{', '['])) {
            result["output"] = output.get().into();
        }
    }
    value
}

/// A table if each agent printed at most a line, or if there are many; else agent by agent.
fn say_page(id: &str, page: &[Value], has_more: bool) {
    if page.is_empty() {
        return;
    }
    let room = (SCREEN / page.len().max(1)).clamp(1, LINES);
    let has_long = page.iter().any(|command| printed(command).len() > 1);
    if has_long && room > 1 {
        page.iter().for_each(|command| say_agent(command, room));
    } else {
        let rows: Vec<_> = page.iter().map(row).collect();
        say_table(&HEADER.map(str::to_owned), &rows);
        if has_long {
            say!("whole outputs: odoshi actions show {id} --full; equal ones together: --group");
        }
    }
    if has_more {
        say!("… these are the first {ROWS}; all of them: --full, --group, or -o jsonl");
    }
}

fn row(command: &Value) -> Vec<String> {
    let last =
        results(command).iter().rev().map(|result| stdout_of(&result["output"])).find(|output| !output.is_empty());
    let mut lines = Vec::new();
    split(&last.unwrap_or_default(), &mut lines);
    let more = lines.len().saturating_sub(1);
    let output = lines.into_iter().next().unwrap_or_default();
    let output = if more > 0 { format!("{output} (+{more} lines)") } else { output };
    let error = error_of(command).or_else(|| stderr_of(command)).unwrap_or_default();
    vec![
        text(&command["agent"]),
        text(&command["status"]),
        command["runs"].to_string(),
        took(command).unwrap_or_default(),
        output,
        error,
    ]
}

/// Prints what one agent printed, up to so many lines.
fn say_agent(command: &Value, most: usize) {
    let runs = match command["runs"].as_i64() {
        Some(runs @ 2..) => format!("  {runs} runs"),
        _ => String::new(),
    };
    let took = took(command).map(|took| format!("  {took}")).unwrap_or_default();
    say!("{}  {}{runs}{took}", text(&command["agent"]), text(&command["status"]));
    say_lines(&printed(command), most);
}

/// Prints lines: if there are too many, the first ones and the last ones, among which the error is.
fn say_lines(lines: &[String], most: usize) {
    let (first, last) = match lines.len() > most {
        true => (most - most * 2 / 5, most * 2 / 5),
        false => (lines.len(), 0),
    };
    let (begin, end) = (&lines[..first], &lines[lines.len() - last..]);
    let say_line = |line: &String| match most {
        usize::MAX => say!("    {line}"),
        _ => say!("    {}", beginning(line)),
    };
    begin.iter().for_each(say_line);
    if begin.len() + end.len() < lines.len() {
        say!("    … {} lines (--full)", lines.len() - begin.len() - end.len());
    }
    end.iter().for_each(say_line);
}

/// A line, cut if it is long.
fn beginning(line: &str) -> String {
    match line.char_indices().nth(LINE) {
        Some((end, _)) => format!("{}… {} characters (--full)", &line[..end], line.chars().count()),
        None => line.to_owned(),
    }
}

/// Agents that ended in the same state with the same output.
#[derive(Default)]
struct Group {
    agents: usize,
    names: Vec<String>,
}

async fn say_groups(pages: &mut Pages<'_>) -> Result<(), ClientError> {
    let (mut groups, mut others) = (HashMap::<(String, Vec<String>), Group>::new(), 0);
    while let Some(page) = pages.next().await? {
        for command in &page {
            let key = (text(&command["status"]), printed(command));
            if groups.len() >= GROUPS && !groups.contains_key(&key) {
                others += 1;
                continue;
            }
            let group = groups.entry(key).or_default();
            group.agents += 1;
            if group.names.len() < NAMED {
                group.names.push(text(&command["agent"]));
            }
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|(one, a), (other, b)| b.agents.cmp(&a.agents).then_with(|| one.cmp(other)));
    for ((status, lines), Group { agents, names }) in &groups {
        let more = match agents - names.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let agents = if *agents == 1 { "1 agent".to_owned() } else { format!("{agents} agents") };
        say!("{agents}  {status}: {}{more}", names.join(", "));
        say_lines(lines, usize::MAX);
    }
    if others > 0 {
        say!("{others} more agents gave other outputs; {GROUPS} are told apart");
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn results(command: &Value) -> &[Value] {
    command["results"].as_array().map_or(&[], Vec::as_slice)
}

/// What a command printed, line by line: the outputs of its operations, and its error.
fn printed(command: &Value) -> Vec<String> {
    let (results, mut lines) = (results(command), Vec::new());
    let mut said = String::new();
    for (number, result) in (1..).zip(results) {
        if results.len() > 1 {
            lines.push(format!("[{number}] {}", text(&result["module"])));
        }
        split(&stdout_of(&result["output"]), &mut lines);
        if let Some(stderr) = result["output"]["stderr"].as_str().filter(|text| !text.trim().is_empty()) {
            lines.push("stderr:".to_owned());
            split(stderr, &mut lines);
        }
        if result["truncated"] == true {
            lines.push("(the output was cut)".to_owned());
        }
        if result["lossy"] == true {
            lines.push("(some bytes are not UTF-8: \u{FFFD} stands for them)".to_owned());
        }
        if let Some(error) = result["error"].as_str() {
            error.clone_into(&mut said);
            lines.push(format!("error: {}", escaped(error)));
        }
    }
    // The command's error is mostly that of an operation, with its module before it.
    let is_new = |error: &String| said.is_empty() || !error.ends_with(&said);
    if let Some(error) = error_of(command).filter(is_new) {
        lines.push(format!("error: {}", escaped(&error)));
    }
    lines
}

/// What an operation returned, without what it wrote to stderr.
fn stdout_of(output: &Value) -> String {
    match (output, output["stdout"].as_str()) {
        (Value::Null, _) => String::new(),
        (_, Some(stdout)) => stdout.to_owned(),
        (Value::String(text), _) => text.clone(),
        (other, _) => other.to_string(),
    }
}

fn split(output: &str, lines: &mut Vec<String>) {
    let output = output.trim_end_matches(['\n', '\r']);
    if !output.is_empty() {
        lines.extend(output.split('\n').map(str::to_owned));
    }
}

/// Why a command did not go well.
fn error_of(command: &Value) -> Option<String> {
    let of_operation = || results(command).iter().rev().find_map(|result| result["error"].as_str());
    let is_over = command["status"] == "expired";
    let error = command["error"].as_str().or_else(of_operation);
    error.map(str::to_owned).or_else(|| is_over.then(|| "no agent had taken it when it expired".to_owned()))
}

/// The first line that the last operation wrote to stderr.
fn stderr_of(command: &Value) -> Option<String> {
    let stderr = results(command).last()?["output"]["stderr"].as_str()?;
    stderr.lines().next().map(str::to_owned)
}

/// How long the agent took, or, if it didn't say, how long it had the command.
fn took(command: &Value) -> Option<String> {
    let time = |key: &str| Timestamp::parse(command[key].as_str()?).ok();
    let began = time("started_at").or_else(|| time("sent_at"))?;
    Some(format!("{:.1}s", time("finished_at")?.since(began).as_secs_f64()))
}

/// The action's name, and its commands by state.
pub(super) fn standing(action: &Value) -> String {
    let states = ["succeeded", "failed", "timed_out", "undeliverable", "expired", "cancelled"];
    let counts = states.iter().filter_map(|state| match action["counts"][state].as_u64() {
        Some(number @ 1..) => Some(format!("{number} {state}")),
        _ => None,
    });
    let counts: Vec<String> = counts.collect();
    let name: String = action["name"].as_str().unwrap_or_default().to_owned();
    let name =
        if name.chars().count() > 40 { format!("{}…", name.chars().take(39).collect::<String>()) } else { name };
    if counts.is_empty() { name } else { format!("{name}: {}", counts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn command(status: &str, results: Value, error: Option<&str>) -> Value {
        json!({ "agent": "web-1", "status": status, "runs": 1, "results": results, "error": error,
            "sent_at": "2026-01-01T00:00:00.000Z", "started_at": "2026-01-01T00:00:02.000Z",
            "finished_at": "2026-01-01T00:00:02.500Z" })
    }

    fn exec(stdout: &str, stderr: &str, error: Option<&str>) -> Value {
        let output = json!({ "exit_code": 0, "stdout": stdout, "stderr": stderr });
        json!({ "module": "exec", "ok": error.is_none(), "output": output, "error": error, "truncated": false })
    }

    #[test]
    fn both_outputs_and_the_error_are_shown() {
        let failed = command("failed", json!([exec("a\nb\n", "oh\n", Some("exit code 3"))]), Some("exec: exit code 3"));
        assert_eq!(printed(&failed), ["a", "b", "stderr:", "oh", "error: exit code 3"]);
        assert_eq!(row(&failed)[3..], ["0.5s", "a (+1 lines)", "exec: exit code 3"]);
        let several =
            command("succeeded", json!([exec("", "", None), { "module": "ping", "output": { "x": [1] } }]), None);
        assert_eq!(printed(&several), ["[1] exec", "[2] ping", "{\"x\":[1]}"]);
        let silent = command("failed", json!([exec("", "no such file\n", Some("exit code 2"))]), None);
        assert_eq!(row(&silent)[4..], ["", "exit code 2"]);
        let odd = command("succeeded", json!([exec("error: none\n", "", None)]), None);
        assert_eq!(row(&odd)[4..], ["error: none", ""]);
        let expired = json!({ "agent": "a", "status": "expired", "runs": 0 });
        assert_eq!(printed(&expired), ["error: no agent had taken it when it expired"]);
        assert_eq!(row(&expired)[3..5], ["", ""]);
    }

    #[test]
    fn an_action_is_told_by_its_name_and_its_counts() {
        let action = json!({ "name": "n".repeat(50), "counts": { "succeeded": 2, "failed": 0, "expired": 1 } });
        assert_eq!(standing(&action), format!("{}…: 2 succeeded, 1 expired", "n".repeat(39)));
        assert_eq!(standing(&json!({ "name": "n", "counts": {} })), "n");
    }
}
