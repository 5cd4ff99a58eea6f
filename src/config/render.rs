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
        for key in Self::keys() {
            let value = lookup(&values, &key.path);
            let name = key.path.rsplit('.').next().unwrap_or(&key.path);
            match (key.kind, value) {
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
                        None if sample => push(&mut text, format_args!("# {name} = {}", example(&key))),
                        None => {}
                    }
                }
            }
        }
        self.sender.custom.render(&mut text);
        text
    }
}

fn example(key: &Key) -> toml::Value {
    toml::Value::String(key.example.unwrap_or_default().to_owned())
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
