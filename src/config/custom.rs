//! `[sender.NAME]` for senders that this crate doesn't have: any keys, which their sender reads typed.

use super::error::{Checks, ConfigError, Fault};
use config::{Value, ValueKind};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

/// The settings of senders that this crate doesn't have. `Debug` and the printed settings mask all
/// texts, since any of them may be a secret.
#[derive(Clone, Default, PartialEq)]
pub struct CustomSections {
    /// By path below `sender`: `slack.url`.
    values: BTreeMap<String, Value>,
}

impl CustomSections {
    /// Sets the value of a path below `sender`, such as `slack.url`.
    pub(super) fn set(&mut self, path: &str, value: Value) {
        self.values.insert(path.to_owned(), value);
    }

    /// The names of the sections, which are those of their transports.
    pub fn names(&self) -> BTreeSet<&str> {
        self.values.keys().map(|path| path.split('.').next().unwrap_or(path)).collect()
    }

    /// The section `[sender.NAME]`; as if it were empty if there is none.
    ///
    /// # Errors
    /// If it can't be read as `T`. The error names the key: `sender.slack.url`.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, ConfigError> {
        let section = format!("sender.{name}");
        let fault = |path: &str, error: &config::ConfigError| {
            let (key, message) = match innermost(error) {
                config::ConfigError::NotFound(field) => {
                    // The path ends at the table that lacks the field.
                    let field = field.rsplit('.').next().unwrap_or(field);
                    let table = path.strip_suffix(field).unwrap_or(path).trim_end_matches('.');
                    (joined(&[&section, table, field]), "is needed".to_owned())
                }
                config::ConfigError::Type { unexpected, expected, .. } => {
                    (joined(&[&section, path]), format!("cannot be used: {unexpected} is not {expected}"))
                }
                other => (joined(&[&section, path]), format!("cannot be used: {other}")),
            };
            let prefix = key.strip_prefix("sender.").unwrap_or(&key);
            let origin = self.values.get(prefix).and_then(Value::origin).map(str::to_owned);
            ConfigError { faults: vec![Fault { key, origin, message }] }
        };
        let mut builder = config::Config::builder();
        let inside = format!("{name}.");
        for (path, value) in &self.values {
            if let Some(key) = path.strip_prefix(&inside) {
                builder = builder.set_override(key, value.clone()).map_err(|error| fault(key, &error))?;
            }
        }
        let table = builder.build().map_err(|error| fault("", &error))?;
        serde_path_to_error::deserialize(table).map_err(|error| {
            let path = error.path().to_string();
            fault(if path == "." { "" } else { &path }, error.inner())
        })
    }

    pub(super) fn validate(&self, checks: &mut Checks) {
        for name in self.names() {
            let fine = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
            checks.that(&format!("sender.{name}"), fine, "is a name that is not made of a-z, 0-9, _ and -");
        }
    }

    /// The sections as TOML, with texts masked.
    pub(super) fn render(&self, text: &mut String) {
        for name in self.names() {
            let inside = format!("{name}.");
            write!(text, "\n[sender.{name}]\n").expect("writing to a string cannot fail");
            let keys = self.values.iter().filter_map(|(path, value)| Some((path.strip_prefix(&inside)?, value)));
            for (key, value) in keys {
                writeln!(text, "{key} = {}", masked(value)).expect("writing to a string cannot fail");
            }
        }
    }
}

fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".")
}

fn innermost(error: &config::ConfigError) -> &config::ConfigError {
    match error {
        config::ConfigError::At { error, .. } => innermost(error),
        other => other,
    }
}

fn masked(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil | ValueKind::Boolean(_) | ValueKind::I64(_) | ValueKind::U64(_) | ValueKind::Float(_) => {
            value.to_string()
        }
        ValueKind::Array(items) => format!("[{}]", items.iter().map(masked).collect::<Vec<_>>().join(", ")),
        _ => "\"***\"".to_owned(),
    }
}

impl fmt::Debug for CustomSections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.values.iter().map(|(path, value)| (path, masked(value)))).finish()
    }
}
