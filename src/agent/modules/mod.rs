//! What an agent can do. A module is one impl of [`Module`] and one line in [`Modules::new`] (or [`Modules::with`] in
//! a program of one's own); any executable in the modules folder is one too ([`external`]).

mod environment;
pub mod exec;
pub mod external;
pub mod ping;
mod process;

use super::config::{AgentConfig, Bounds};
use super::processes::Trace;
use async_trait::async_trait;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// Why a run is stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its time was up.
    TimedOut,
    /// Its action was cancelled.
    Cancelled,
    /// A later run of the same command came.
    Superseded,
    /// The agent stops.
    Interrupted,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "timed out",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::Interrupted => "interrupted",
        })
    }
}

/// Tells a run when to stop: at its deadline or when it is told to.
#[derive(Clone, Debug)]
pub struct Stop {
    told: watch::Receiver<Option<StopReason>>,
    deadline: Instant,
}

impl Stop {
    /// Stops at `deadline`, or when the sender says why; a sender that is gone says nothing.
    pub fn new(told: watch::Receiver<Option<StopReason>>, deadline: Instant) -> Self {
        Self { told, deadline }
    }

    /// Why to stop now, if so.
    pub fn now(&self) -> Option<StopReason> {
        let told = *self.told.borrow();
        told.or_else(|| (Instant::now() >= self.deadline).then_some(StopReason::TimedOut))
    }

    /// Waits until it is time to stop.
    pub async fn wait(&mut self) -> StopReason {
        tokio::select! {
            reason = async {
                match self.told.wait_for(Option::is_some).await.map(|reason| *reason) {
                    Ok(Some(reason)) => reason,
                    _ => std::future::pending().await,
                }
            } => reason,
            () = tokio::time::sleep_until(self.deadline) => StopReason::TimedOut,
        }
    }
}

/// One operation, for its module.
#[derive(Debug)]
pub struct Call {
    /// What the action gives the module; any JSON.
    pub parameters: Option<Box<RawValue>>,
    /// When to stop. A module that doesn't is dropped a few seconds later.
    pub stop: Stop,
    /// Where the processes of this run are recorded.
    pub(in crate::agent) trace: Trace,
}

/// What came of an operation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Whether it went well.
    pub ok: bool,
    /// Any JSON.
    pub output: Option<Box<RawValue>>,
    /// Why it did not.
    pub error: Option<String>,
    /// Whether output was cut off.
    pub truncated: bool,
    /// Set when the operation was stopped and not at its end; the run ends with it.
    pub stopped: Option<StopReason>,
}

impl Outcome {
    /// It went well.
    pub fn done(output: Option<Box<RawValue>>) -> Self {
        Self { ok: true, output, ..Self::default() }
    }

    /// It did not.
    pub fn failed(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }

    /// It was stopped.
    pub fn stopped(reason: StopReason) -> Self {
        Self { error: Some(reason.to_string()), stopped: Some(reason), ..Self::default() }
    }

    /// Sets the output.
    fn output<T: Serialize>(mut self, output: &T) -> Self {
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

/// Something that an agent can do.
#[async_trait]
pub trait Module: Send + Sync {
    /// Carries out one operation. Wrong parameters are a failed outcome like any other.
    async fn call(&self, call: Call) -> Outcome;
}

/// The longest name of a module.
const MAX_NAME: usize = 128;

/// All modules of an agent, by name.
#[derive(Clone)]
pub struct Modules {
    built_in: BTreeMap<String, Arc<dyn Module>>,
    folder: Option<PathBuf>,
    bounds: Bounds,
    /// What programs in the folder get of the agent's environment, beyond the basics.
    env: Vec<String>,
}

impl Modules {
    /// The reference agent's modules.
    pub fn new(config: &AgentConfig) -> Self {
        let (folder, env) = (config.modules_dir.clone(), config.exec.env.clone());
        Self { built_in: BTreeMap::new(), folder, bounds: config.bounds(), env }
            .with("ping", ping::Ping)
            .with("exec", exec::Exec::new(config.exec.clone(), config.bounds()))
    }

    /// Adds a module, or replaces the one of that name.
    #[must_use]
    pub fn with(mut self, name: &str, module: impl Module + 'static) -> Self {
        self.built_in.insert(name.to_owned(), Arc::new(module));
        self
    }

    /// The module of that name; built-in ones go before the folder's. The error is a sentence for people.
    pub fn find(&self, name: &str) -> Result<Arc<dyn Module>, String> {
        if let Some(module) = self.built_in.get(name) {
            return Ok(module.clone());
        }
        let is_name = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if !is_name {
            return Err(format!("a module's name is 1 to {MAX_NAME} of A-Z a-z 0-9 _ -"));
        }
        let unknown = || format!("this agent has no module \"{name}\"");
        let folder = self.folder.as_ref().ok_or_else(unknown)?;
        match external::find(folder, name) {
            Ok(Some(program)) => Ok(Arc::new(external::External::new(program, self.bounds, self.env.clone()))),
            Ok(None) => Err(unknown()),
            Err(error) => Err(format!("the module \"{name}\" can't be used: {error}")),
        }
    }
}

impl std::fmt::Debug for Modules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Modules")
            .field("built_in", &self.built_in.keys().collect::<Vec<_>>())
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use std::time::Duration;

    /// A call, and what stops it.
    pub(in crate::agent) fn call(parameters: &str, timeout: Duration) -> (Call, watch::Sender<Option<StopReason>>) {
        let (tell, told) = watch::channel(None);
        let parameters = Some(RawValue::from_string(parameters.into()).expect("valid JSON"));
        let run = crate::domain::protocol::RunRef { action: uuid::Uuid::from_u128(1), run: 1 };
        let trace = Trace::new(run, uuid::Uuid::new_v4(), None);
        (Call { parameters, stop: Stop::new(told, Instant::now() + timeout), trace }, tell)
    }

    /// The output as a JSON value.
    pub(in crate::agent) fn output(outcome: &Outcome) -> serde_json::Value {
        let output = outcome.output.as_ref().expect("an output");
        serde_json::from_str(output.get()).expect("valid JSON")
    }
}
