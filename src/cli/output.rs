//! Prints lists: tables for people, JSON and CSV for programs.

use crate::domain::json::{pretty, readable};
use crate::domain::text::{csv_cell, escaped, escaped_json, escaped_lines};
use crate::domain::time::Timestamp;
use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Row, Table, Width};
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
    json: String,
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
            say!("{}", table(header.collect(), items.iter().map(row).collect()));
        }
        Format::Json => {
            let items: Vec<&str> = items.iter().map(|item| item.json.as_str()).collect();
            say_json(&pretty(&format!("[{}]", items.join(","))));
        }
        Format::Jsonl => items.iter().for_each(|item| say_json(&item.json)),
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

/// The narrowest terminal that a table is fitted to.
const NARROW: u16 = 40;
/// What a name is cut to at most, if it is longer.
const SHORTEST_NAME: u16 = 10;

/// Rows under a header, each on one line. On a terminal, long cells are cut; ids never are.
pub(super) fn table(header: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    let width = table.width().filter(|width| *width > 0);
    // comfy_table writes colours to terminals alone.
    let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let one_line = |cells: &[String]| {
        let shown = cells.iter().zip(&header).map(|(cell, name)| {
            let shown = Cell::new(escaped(cell));
            match colour(cell).filter(|_| name == "STATUS" && has_colours) {
                Some(colour) => shown.fg(colour),
                None => shown,
            }
        });
        let mut row = Row::from(shown.collect::<Vec<_>>());
        row.max_height(1);
        row
    };
    // With no character that cells could be broken at, they are cut anywhere.
    table.load_style(comfy_table::presets::NOTHING).set_delimiter('\0').set_header(one_line(&header));
    table.add_rows(rows.iter().map(|row| one_line(row)));
    for (place, (column, name)) in table.column_iter_mut().zip(&header).enumerate() {
        column.set_padding((0, 2));
        let is_long =
            |row: &Vec<String>| row.get(place).is_some_and(|cell| cell.chars().count() >= usize::from(SHORTEST_NAME));
        match name.as_str() {
            "ID" => column.set_constraint(ColumnConstraint::ContentWidth),
            "NAME" | "AGENT" if width.is_some() && rows.iter().any(is_long) => {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(SHORTEST_NAME)))
            }
            _ => column,
        };
    }
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width.max(NARROW));
    }
    table.trim_fmt()
}

/// The colour of a state.
fn colour(state: &str) -> Option<Color> {
    match state {
        "succeeded" | "completed" | "online" => Some(Color::Green),
        "failed" | "timed_out" | "undeliverable" => Some(Color::Red),
        "expired" | "cancelled" | "paused" | "offline" => Some(Color::Yellow),
        _ => None,
    }
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
    fn a_row_is_one_line_without_spaces_at_its_end() {
        let rows = [["1", "a\nb\u{1b}[2J"], ["22", ""]].map(|row| row.map(str::to_owned).to_vec());
        let table = table(vec!["ID".into(), "NAME".into()], rows.to_vec());
        assert_eq!(table, "ID  NAME\n1   a\\nb\\u{1b}[2J\n22");
    }

    #[test]
    fn cells_are_values_at_a_path_as_people_read_them() {
        let item = json!({ "a": { "b": [1, "x"] }, "a.c": 2, "at": "2026-01-01T00:00:00.000Z", "no": null });
        let shown = |path: &str| for_people(cell(&item, path));
        assert_eq!([shown("a.b"), shown("a.c"), shown("no"), shown("none")], ["[1,\"x\"]", "2", "", ""]);
        assert_eq!(shown("at"), "2026-01-01 00:00:00");
    }
}
