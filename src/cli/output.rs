//! Prints lists: tables for people, JSON and CSV for programs.

use crate::domain::time::Timestamp;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Prints a line; use the macro of the same name.
pub(super) fn say(line: std::fmt::Arguments<'_>) {
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

/// Prints items. A column is a path of keys, separated by dots.
pub(super) fn print(items: &[Value], columns: &[&str], format: Format) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Table => {
            let mut table = Table::new();
            // On a terminal, rows fit its width and long cells wrap.
            table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header(columns.iter().map(|column| column.rsplit('.').next().unwrap_or(column).to_uppercase()));
            for item in items {
                table.add_row(columns.iter().map(|column| for_people(cell(item, column))));
            }
            writeln!(out, "{table}")?;
        }
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(items)?)?,
        Format::Jsonl => {
            for item in items {
                writeln!(out, "{item}")?;
            }
        }
        Format::Csv => {
            let mut rows = csv::Writer::from_writer(out);
            rows.write_record(columns)?;
            for item in items {
                rows.write_record(columns.iter().map(|column| cell(item, column)))?;
            }
            rows.flush()?;
        }
    }
    Ok(())
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
