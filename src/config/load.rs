//! Reads settings from a file, the environment and flags, and remembers where each value came from.

use super::error::{ConfigError, Fault};
use super::{Config, CustomSections, Key, Kind};
use config::{File, FileFormat, Map, Source, Value, ValueKind};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::Path;

/// The prefix of environment variables that are settings.
const PREFIX: &str = "ODOSHI__";
/// What is said of lists of tables in the environment and in flags, which hold one value each.
const ONLY_IN_A_FILE: &str = "is a list of tables, which can be given in a file only";

impl Config {
    /// Loads and validates settings: defaults < `file` < environment < `overrides` (command-line
    /// flags, as (key, value)).
    ///
    /// The error lists everything that is wrong, each with its key and the source of the value.
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self, ConfigError> {
        Self::load_with(file, std::env::vars_os(), overrides)
    }

    /// The same as [`load`](Self::load), with the given environment.
    pub fn load_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::new();
        if let Some(path) = file {
            layers.add_file(path);
        }
        // Sorted, so that two errors always come in the same order.
        let variables: BTreeMap<OsString, OsString> = environment.into_iter().collect();
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let key = rest.to_ascii_lowercase().replace("__", ".");
            let origin = format!("environment variable {name}");
            match value.into_string() {
                Ok(text) => layers.add_text(&key, &text, origin),
                Err(_) => layers.fault(&key, origin, "is not UTF-8"),
            }
        }
        for (key, text) in overrides {
            layers.add_text(key, text, "the command line".into());
        }
        layers.into_config()
    }
}

/// The values so far; later sources override earlier ones.
struct Layers {
    known: HashMap<String, Key>,
    values: BTreeMap<String, Value>,
    origins: HashMap<String, String>,
    faults: Vec<Fault>,
}

impl Layers {
    fn new() -> Self {
        let known = Config::keys().into_iter().map(|key| (key.path.clone(), key)).collect();
        Self { known, values: BTreeMap::new(), origins: HashMap::new(), faults: Vec::new() }
    }

    fn fault(&mut self, key: &str, origin: String, message: impl Into<String>) {
        self.faults.push(Fault { key: key.into(), origin: Some(origin), message: message.into() });
    }

    fn add_file(&mut self, path: &Path) {
        let origin = path.display().to_string();
        let table = crate::text_file::read(path)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|text| File::from_str(&text, FileFormat::Toml).collect().map_err(|error| error.to_string()));
        match table {
            Ok(table) => self.add_table("", table, &origin),
            Err(message) => self.fault("", origin, message),
        }
    }

    fn add_table(&mut self, path: &str, table: Map<String, Value>, origin: &str) {
        let sorted: BTreeMap<String, Value> = table.into_iter().collect();
        for (name, value) in sorted {
            let key = if path.is_empty() { name } else { format!("{path}.{name}") };
            let kind = self.known.get(&pattern(&key)).map(|known| known.kind);
            match (kind, value.kind) {
                (Some(Kind::Section), ValueKind::Table(inner)) => self.add_table(&key, inner, origin),
                (Some(Kind::Tables), ValueKind::Array(items)) => self.add_tables(&key, items, origin),
                (Some(kind), value) if fits(kind, &value) => self.set(key, value, origin.into()),
                (Some(kind), value) => {
                    self.fault(&key, origin.into(), format!("must be {}, and is {}", needs(kind), what_it_is(&value)));
                }
                (None, ValueKind::Table(inner)) if self.is_custom(&key) => self.add_table(&key, inner, origin),
                (None, value) if self.is_custom_key(&key) => self.set(key, value, origin.into()),
                (None, _) => self.unknown(&key, origin.into()),
            }
        }
    }

    /// Adds a list of tables, each under `key[INDEX]`.
    fn add_tables(&mut self, key: &str, items: Vec<Value>, origin: &str) {
        for (index, item) in items.into_iter().enumerate() {
            let key = format!("{key}[{index}]");
            self.origins.insert(key.clone(), origin.into());
            match item.kind {
                ValueKind::Table(inner) if inner.is_empty() => self.fault(&key, origin.into(), "is empty"),
                ValueKind::Table(inner) => self.add_table(&key, inner, origin),
                other => self.fault(&key, origin.into(), format!("must be a table, and is {}", what_it_is(&other))),
            }
        }
    }

    fn add_text(&mut self, key: &str, text: &str, origin: String) {
        let value = match self.known.get(key).map(|known| known.kind) {
            None if self.is_custom_key(key) => Some(ValueKind::String(text.into())),
            None if self.is_in_tables(key) => return self.fault(key, origin, ONLY_IN_A_FILE),
            None => return self.unknown(key, origin),
            Some(Kind::Tables) => return self.fault(key, origin, ONLY_IN_A_FILE),
            Some(Kind::Section) => return self.fault(key, origin, "is a section: name a key in it"),
            Some(Kind::Text | Kind::Size) => Some(ValueKind::String(text.into())),
            Some(Kind::Integer) => text.trim().parse().map(ValueKind::I64).ok(),
            Some(Kind::Bool) => text.trim().parse().map(ValueKind::Boolean).ok(),
            Some(Kind::List) => Some(ValueKind::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| Value::new(None, ValueKind::String(item.into())))
                    .collect(),
            )),
        };
        match value {
            Some(value) => self.set(key.into(), value, origin),
            None => {
                let kind = self.known.get(key).map_or(Kind::Text, |known| known.kind);
                self.fault(key, origin, format!("must be {}, and is \"{text}\"", needs(kind)));
            }
        }
    }

    fn set(&mut self, key: String, value: ValueKind, origin: String) {
        self.values.insert(key.clone(), Value::new(Some(&origin), value));
        self.origins.insert(key, origin);
    }

    /// Whether this is, or is in, a section of a sender that this crate doesn't have.
    fn is_custom(&self, key: &str) -> bool {
        let name = key.strip_prefix("sender.").and_then(|rest| rest.split('.').next());
        name.is_some_and(|name| !name.is_empty() && !self.known.contains_key(&format!("sender.{name}")))
    }

    /// The same for a key in it.
    fn is_custom_key(&self, key: &str) -> bool {
        self.is_custom(key) && key.split('.').count() > 2 && key.split('.').all(|part| !part.is_empty())
    }

    /// Whether a key such as `hook.0.url` or `hook[0].url` is meant to be in a list of tables.
    fn is_in_tables(&self, key: &str) -> bool {
        let first = key.split(['.', '[']).next().unwrap_or(key);
        self.known.get(first).is_some_and(|known| known.kind == Kind::Tables)
    }

    fn unknown(&mut self, key: &str, origin: String) {
        let asked = pattern(key);
        let near = self.known.keys().min_by_key(|known| (distance(&asked, known), (*known).clone()));
        let hint = match near {
            Some(near) if distance(&asked, near) <= 3 => format!("; did you mean {}?", placed(near, key)),
            _ => String::new(),
        };
        self.fault(key, origin, format!("is not a setting{hint}"));
    }

    fn into_config(mut self) -> Result<Config, ConfigError> {
        if !self.faults.is_empty() {
            return Err(ConfigError { faults: self.faults });
        }
        let mut builder = config::Config::builder();
        let mut custom = CustomSections::default();
        for (key, value) in std::mem::take(&mut self.values) {
            if let Some(path) = key.strip_prefix("sender.").filter(|_| self.is_custom(&key)) {
                custom.set(path, value);
                continue;
            }
            builder = builder.set_override(&key, value).map_err(|error| self.read_error(&key, &error))?;
        }
        let merged = builder.build().map_err(|error| self.read_error("", &error))?;
        let mut loaded: Config = serde_path_to_error::deserialize(merged)
            .map_err(|error| self.read_error(&error.path().to_string(), error.inner()))?;
        loaded.sender.custom = custom;
        loaded.validate().map_err(|mut error| {
            for fault in &mut error.faults {
                fault.origin = self.origin(&fault.key);
            }
            error
        })?;
        Ok(loaded)
    }

    fn read_error(&self, key: &str, error: &config::ConfigError) -> ConfigError {
        let message = format!("cannot be used: {}", root_message(error));
        ConfigError { faults: vec![Fault { key: key.into(), origin: self.origin(key), message }] }
    }

    /// The source of a value, or of the table in which it is missing.
    fn origin(&self, key: &str) -> Option<String> {
        let table = || key.rsplit_once('.').and_then(|(table, _)| self.origins.get(table));
        self.origins.get(key).or_else(table).cloned()
    }
}

/// A key as the list of known keys has it: `hook[]` for `hook[3]`.
fn pattern(key: &str) -> String {
    let (mut pattern, mut inside) = (String::new(), false);
    for letter in key.chars() {
        inside &= letter != ']';
        if !inside {
            pattern.push(letter);
        }
        inside |= letter == '[';
    }
    pattern
}

/// A known key with the index that another key has: `hook[3].url` for `hook[]` beside `hook[3].ur`.
fn placed(known: &str, beside: &str) -> String {
    let index = beside.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(index, _)| index);
    known.replacen("[]", &format!("[{index}]"), 1)
}

/// The message without the key and the origin, which the crate adds and [`Fault`] has already.
fn root_message(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::At { error, .. } => root_message(error),
        config::ConfigError::Type { unexpected, expected, .. } => format!("{unexpected} is not {expected}"),
        other => other.to_string(),
    }
}

/// The crate would read `true` as 1 and round 8.7. The file has types, so they are checked here.
fn fits(kind: Kind, value: &ValueKind) -> bool {
    use ValueKind::{Array, Boolean, I64, String, U64};
    match kind {
        Kind::Section | Kind::Tables => false,
        Kind::Text => matches!(value, String(_)),
        Kind::Size => matches!(value, String(_) | I64(_) | U64(_)),
        Kind::Integer => matches!(value, I64(_) | U64(_)),
        Kind::Bool => matches!(value, Boolean(_)),
        Kind::List => matches!(value, Array(items) if items.iter().all(|item| matches!(item.kind, String(_)))),
    }
}

fn needs(kind: Kind) -> &'static str {
    match kind {
        Kind::Section => "a section",
        Kind::Tables => "a list of tables ([[…]])",
        Kind::Text => "a text in quotes",
        Kind::Size => "a size such as \"4MiB\"",
        Kind::Integer => "a whole number",
        Kind::Bool => "true or false",
        Kind::List => "a list of texts",
    }
}

fn what_it_is(value: &ValueKind) -> String {
    match value {
        ValueKind::Table(_) => "a section".into(),
        ValueKind::Array(_) => "a list".into(),
        ValueKind::String(text) => format!("\"{text}\""),
        other => other.to_string(),
    }
}

/// The edit distance between two words (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
