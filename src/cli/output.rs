//! How lists are printed: tables for people, JSON and CSV for programs.

use comfy_table::Table;
use serde_json::Value;
use std::io::Write;

/// The format of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Columns, for people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// A JSON object per line
    Jsonl,
    /// A header row, and a row each
    Csv,
}

/// Prints items, of which each column is a path of keys separated by dots.
pub(super) fn print(items: &[Value], columns: &[&str], format: Format) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Table => {
            let mut table = Table::new();
            table.load_style(comfy_table::presets::NOTHING);
            table.set_header(columns.iter().map(|column| column.rsplit('.').next().unwrap_or(column).to_uppercase()));
            for item in items {
                table.add_row(columns.iter().map(|column| cell(item, column)));
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

/// A value as a cell shows it: a text without its quotes, nothing for null.
fn cell(item: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(item, |value, key| value.get(key));
    match found {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
