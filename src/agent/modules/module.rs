//! The interface of a module: one call per operation, with one outcome.

use super::stop::{Stop, StopReason};
use crate::agent::processes::Trace;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

/// One operation, as passed to its module.
#[derive(Debug)]
pub struct Call {
    /// The parameters from the action; any JSON.
    pub parameters: Option<Box<RawValue>>,
    /// The nominal time of the occurrence, if a schedule made the action.
    pub scheduled_for: Option<Timestamp>,
    /// When to stop. The call of a module that does not stop is dropped a few seconds later.
    pub stop: Stop,
    /// Records the processes of this run.
    pub(in crate::agent) trace: Trace,
}

/// The outcome of an operation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Whether it succeeded.
    pub ok: bool,
    /// Any JSON.
    pub output: Option<Box<RawValue>>,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether output was cut off.
    pub truncated: bool,
    /// Whether bytes of the output were no UTF-8, and U+FFFD stands in their place.
    pub lossy: bool,
    /// Set when the operation was stopped before its end. The run ends with it.
    pub stopped: Option<StopReason>,
}

impl Outcome {
    /// A successful outcome.
    pub fn done(output: Option<Box<RawValue>>) -> Self {
        Self { ok: true, output, ..Self::default() }
    }

    /// A failed outcome.
    pub fn failed(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }

    /// The outcome of an operation that was stopped.
    pub fn stopped(reason: StopReason) -> Self {
        Self { error: Some(reason.to_string()), stopped: Some(reason), ..Self::default() }
    }

    /// Sets the output.
    pub(super) fn output<T: Serialize>(mut self, output: &T) -> Self {
        match to_raw_value(output) {
            Ok(output) => self.output = Some(output),
            Err(error) => {
                self.ok = false;
                self.error = Some(format!("the output is not JSON: {error}"));
            }
        }
        self
    }
}

/// A capability of the agent.
#[async_trait]
pub trait Module: Send + Sync {
    /// Executes one operation. Wrong parameters are a failed outcome like any other.
    async fn call(&self, call: Call) -> Outcome;
}
