//! Prints lists: tables for people, JSON and CSV for programs.

use super::table::table;
use crate::domain::json::{on_one_line, pretty, readable};
use crate::domain::text::{csv_cell, escaped_json, escaped_lines};
use crate::domain::time::Timestamp;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Prints a line. When the reader is gone (`odoshi actions list | head`), the program ends without an error message.
macro_rules! say {
    ($($what:tt)*) => { $crate::cli::output::say(format_args!($($what)*)) };
}

/// The format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Columns, for people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// A JSON object per line
    Jsonl,
    /// A header row, then one row per item
    Csv,
}

/// The exit code of a program whose reader is gone, as if SIGPIPE had ended it.
pub(super) const CLOSED: u8 = 141;

/// Set when a line found no reader.
static READER_HAS_GONE: AtomicBool = AtomicBool::new(false);

/// Prints lines, in which control characters are escaped: names, outputs and errors may hold anything. Use the macro of
/// the same name.
pub(super) fn say(lines: std::fmt::Arguments<'_>) {
    write(format_args!("{}", escaped_lines(&lines.to_string())));
}

fn write(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => READER_HAS_GONE.store(true, Ordering::Relaxed),
            _ => eprintln!("odoshi: the output cannot be written: {error}"),
        }
    }
}

/// Whether the reader is gone: a line could not be printed, or `error` was caused by it.
pub(super) fn reader_has_gone(error: Option<&(dyn std::error::Error + 'static)>) -> bool {
    if READER_HAS_GONE.load(Ordering::Relaxed) {
        return true;
    }
    let mut cause = error;
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The bar that is drawn at present. Lines of the log go above it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// A progress bar with this template, drawn on stderr if that is a terminal.
pub(super) fn progress(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
    bar
}

/// Where the log goes: stderr, above the progress bar.
pub(super) struct AboveBar;

impl Write for AboveBar {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let write = || std::io::stderr().write(bytes);
        match bar {
            Some(bar) if !bar.is_finished() => bar.suspend(write),
            _ => write(),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// An item of a list: to the letter for programs, and as what columns are looked up in.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) json: String,
    pub(super) value: Value,
}

impl Item {
    pub(super) fn new(json: &str) -> Self {
        Self { json: json.to_owned(), value: readable(json).unwrap_or_default() }
    }
}

impl From<Value> for Item {
    fn from(value: Value) -> Self {
        Self { json: value.to_string(), value }
    }
}

/// Prints items. A column is a path of keys, separated by dots.
pub(super) fn print(items: &[Item], columns: &[&str], format: Format) -> Result<(), Box<dyn std::error::Error>> {
    match format {
        Format::Table => {
            let header = columns.iter().map(|column| column.rsplit('.').next().unwrap_or(column).to_uppercase());
            let row = |item: &Item| columns.iter().map(|column| for_people(cell(&item.value, column))).collect();
            say_table(&header.collect::<Vec<_>>(), &items.iter().map(row).collect::<Vec<_>>());
        }
        Format::Json => {
            let items: Vec<&str> = items.iter().map(|item| item.json.as_str()).collect();
            say_json(&pretty(&format!("[{}]", items.join(","))));
        }
        Format::Jsonl => items.iter().for_each(|item| say_json(&on_one_line(&item.json))),
        Format::Csv => {
            let mut rows = csv::Writer::from_writer(std::io::stdout().lock());
            rows.write_record(columns)?;
            for item in items {
                rows.write_record(columns.iter().map(|column| csv_cell(&cell(&item.value, column)).into_owned()))?;
            }
            rows.flush()?;
        }
    }
    Ok(())
}

/// Prints JSON.
pub(super) fn say_json(json: &str) {
    write(format_args!("{}", escaped_json(json)));
}

/// Prints a table.
pub(super) fn say_table(header: &[String], rows: &[Vec<String>]) {
    write(format_args!("{}", table(header, rows)));
}

/// Shortens a time to `2026-01-01 12:00:00`, in UTC; leaves other texts as they are.
fn for_people(cell: String) -> String {
    match Timestamp::parse(&cell) {
        Ok(_) => cell.chars().take(19).map(|c| if c == 'T' { ' ' } else { c }).collect(),
        Err(_) => cell,
    }
}

/// A value as a table cell: a text without quotes, nothing for null. A column that is itself a key is not a path.
fn cell(item: &Value, path: &str) -> String {
    let found = item.get(path).or_else(|| path.split('.').try_fold(item, |value, key| value.get(key)));
    match found {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells_are_values_at_a_path_as_people_read_them() {
        let item = json!({ "a": { "b": [1, "x"] }, "a.c": 2, "at": "2026-01-01T00:00:00.000Z", "no": null });
        let shown = |path: &str| for_people(cell(&item, path));
        assert_eq!([shown("a.b"), shown("a.c"), shown("no"), shown("none")], ["[1,\"x\"]", "2", "", ""]);
        assert_eq!(shown("at"), "2026-01-01 00:00:00");
    }
}
