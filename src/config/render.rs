//! Settings as TOML text: the sample with its comments, and the settings in force.

use super::{Config, Key, Kind};
use std::fmt::Write;

impl Config {
    /// The sample file: every key with its documentation and its default.
    pub fn sample() -> String {
        let mut text = String::new();
        comment(&mut text, Self::ABOUT);
        text.push('\n');
        text + Self::default().render(true).trim_start_matches('\n')
    }

    /// These settings as TOML, with secrets masked.
    pub fn to_toml(&self) -> String {
        self.render(false).trim_start_matches('\n').to_owned()
    }

    fn render(&self, sample: bool) -> String {
        let values = toml::Value::try_from(self).expect("the settings hold only tables, texts, numbers and lists");
        let mut text = String::new();
        let (keys, mut table) = (Self::keys(), None);
        for key in &keys {
            let value = lookup(&values, &key.path);
            let name = key.path.rsplit('.').next().unwrap_or(&key.path);
            let is_inner = key.path.contains("[]");
            match (key.kind, value) {
                (Kind::Tables, _) if sample => {
                    text.push('\n');
                    comment(&mut text, key.docs);
                    push(&mut text, format_args!("# [[{}]]", key.path));
                    table = key.table.as_ref();
                }
                (Kind::Tables, value) => tables(&mut text, key, value, &keys),
                // Examples: a sample has no tables.
                (_, _) if is_inner && sample => {
                    comment(&mut text, key.docs);
                    let default = table.and_then(|table| table.get(name)).filter(|_| key.example.is_none());
                    let shown = default.cloned().unwrap_or_else(|| example(key));
                    push(&mut text, format_args!("# {name} = {shown}"));
                }
                (_, _) if is_inner => {}
                // A section without any key set is left out.
                (Kind::Section, Some(toml::Value::Table(table))) if !sample && table.is_empty() => {}
                (Kind::Section, _) => {
                    text.push('\n');
                    if sample {
                        comment(&mut text, key.docs);
                    }
                    push(&mut text, format_args!("[{}]", key.path));
                }
                (_, value) => {
                    if sample {
                        comment(&mut text, key.docs);
                    }
                    match value {
                        Some(value) => push(&mut text, format_args!("{name} = {value}")),
                        None if sample => push(&mut text, format_args!("# {name} = {}", example(key))),
                        None => {}
                    }
                }
            }
        }
        self.sender.custom.render(&mut text);
        text
    }
}

/// The tables of a list, as they are set.
fn tables(text: &mut String, key: &Key, value: Option<&toml::Value>, keys: &[Key]) {
    let prefix = format!("{}[].", key.path);
    for table in value.and_then(toml::Value::as_array).into_iter().flatten() {
        push(text, format_args!("\n[[{}]]", key.path));
        for name in keys.iter().filter_map(|inner| inner.path.strip_prefix(&prefix)) {
            if let Some(value) = table.get(name) {
                push(text, format_args!("{name} = {value}"));
            }
        }
    }
}

fn example(key: &Key) -> toml::Value {
    let example = key.example.unwrap_or_default();
    match key.kind {
        Kind::List => example.split(',').map(|item| toml::Value::String(item.to_owned())).collect::<Vec<_>>().into(),
        _ => toml::Value::String(example.to_owned()),
    }
}

fn lookup<'a>(values: &'a toml::Value, path: &str) -> Option<&'a toml::Value> {
    path.split('.').try_fold(values, |value, name| value.get(name))
}

fn comment(text: &mut String, lines: &[&str]) {
    for line in lines {
        push(text, format_args!("#{}", line.trim_end()));
    }
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string cannot fail");
}
