//! Errors in the settings.

use super::ByteSize;
use crate::domain::time::Span;
use std::fmt;

/// Settings that can't be used, and why. Displays one line per error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// All errors found, at least one.
    pub faults: Vec<Fault>,
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, such as `store.batch.max_items`; empty for an error in a whole file.
    pub key: String,
    /// The source of the value: a file, an environment variable, a flag.
    pub origin: Option<String>,
    /// A sentence without its subject, which is the key.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.is_empty(), &self.origin) {
            (true, Some(origin)) => write!(f, "{origin}: {}", self.message),
            (true, None) => f.write_str(&self.message),
            (false, Some(origin)) => write!(f, "{} {} (from {origin})", self.key, self.message),
            (false, None) => write!(f, "{} {}", self.key, self.message),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Collects errors, so that one run of `config check` shows all of them.
#[derive(Debug, Default)]
pub(super) struct Checks {
    faults: Vec<Fault>,
}

impl Checks {
    /// Adds an error with `message` for the key unless `fine`.
    pub(super) fn that(&mut self, key: &str, fine: bool, message: impl Into<String>) {
        if !fine {
            self.faults.push(Fault { key: key.into(), origin: None, message: message.into() });
        }
    }

    /// A number from 1 to `most`.
    pub(super) fn count(&mut self, key: &str, value: usize, most: usize) {
        self.that(key, (1..=most).contains(&value), format!("must be from 1 to {most}, and is {value}"));
    }

    /// A size from `least` to `most`.
    pub(super) fn size(&mut self, key: &str, value: ByteSize, least: ByteSize, most: ByteSize) {
        let fine = (least..=most).contains(&value);
        self.that(key, fine, format!("must be from {least} to {most}, and is {value}"));
    }

    /// A duration from one millisecond to `most`.
    pub(super) fn duration(&mut self, key: &str, value: Span, most: Span) {
        self.that(key, value >= Span::millis(1), format!("must be at least 1ms, and is {value}"));
        self.at_most(key, value, most);
    }

    /// A duration up to `most`, zero included.
    pub(super) fn at_most(&mut self, key: &str, value: Span, most: Span) {
        self.that(key, value <= most, format!("must be at most {most}, and is {value}"));
    }

    pub(super) fn into_result(self) -> Result<(), ConfigError> {
        if self.faults.is_empty() { Ok(()) } else { Err(ConfigError { faults: self.faults }) }
    }
}
