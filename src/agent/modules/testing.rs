//! Calls modules in tests.

use super::module::{Call, Outcome};
use super::stop::{Stop, StopReason};
use crate::agent::processes::Trace;
use crate::domain::protocol::RunRef;
use serde_json::value::RawValue;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

/// A call, and the sender that stops it.
pub(in crate::agent) fn call(parameters: &str, timeout: Duration) -> (Call, watch::Sender<Option<StopReason>>) {
    let (tell, told) = watch::channel(None);
    let parameters = Some(RawValue::from_string(parameters.into()).expect("valid JSON"));
    let run = RunRef { action: Uuid::from_u128(1), run: 1 };
    let trace = Trace::new(run, Uuid::new_v4(), None);
    (Call { parameters, scheduled_for: None, stop: Stop::new(told, Instant::now() + timeout), trace }, tell)
}

/// The output as a JSON value.
pub(in crate::agent) fn output(outcome: &Outcome) -> serde_json::Value {
    let output = outcome.output.as_ref().expect("an output");
    serde_json::from_str(output.get()).expect("valid JSON")
}
