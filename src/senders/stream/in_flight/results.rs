//! What is reported of a result. Tested in `tests.rs`.

use crate::domain::action::Action;
use crate::domain::command::{Event, RunEnd};
use crate::domain::protocol::{RunResult, RunStatus};
use crate::domain::time::Timestamp;
use crate::senders::due_command::report_of;
use crate::store::Report;

/// When a run that has ended `now` began, by the server's clock: the agent says how long it took, by a clock of its own.
fn began(result: &RunResult, now: Timestamp) -> Option<Timestamp> {
    let (start, end) = (result.started_at?, result.finished_at?);
    Some(now.minus(end.since(start)))
}

/// The report for a result.
pub fn result_report(
    action: &Action,
    agent_no: i64,
    result: &RunResult,
    attempts: i32,
    sent_at: Option<Timestamp>,
    skip_lookup: bool,
    now: Timestamp,
) -> Report {
    if result.status == RunStatus::Expired {
        let event = Event::FoundExpired { run: result.run, expires_at: action.expires_at };
        return report_of(action, agent_no, event);
    }
    let error = result.results.iter().find(|operation| !operation.ok).map(|operation| {
        let why = operation.error.as_deref().unwrap_or("it failed without saying why");
        format!("{}: {why}", operation.module)
    });
    let end = RunEnd {
        run: result.run,
        status: result.status.into(),
        attempts,
        sent_at,
        started_at: began(result, now),
        finished_at: now,
        // The results were just read from JSON, so this can't fail. An empty list would still keep
        // the outcome.
        results: Some(serde_json::to_string(&result.results).unwrap_or_else(|_| "[]".into())),
        error,
    };
    let event = Event::Result(Box::new(end));
    Report { skip_lookup, ..report_of(action, agent_no, event) }
}
