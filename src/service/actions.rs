//! Submit, cancel, pause, resume and retry actions.

use super::error::{ServiceError, ServiceResult};
use crate::context::Node;
use crate::domain::action::{Action, ActionState, NewAction};
use crate::domain::audit::Author;
use crate::domain::command::CommandState;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::time::{Span, Timestamp};
use crate::runtime::isolation::one_by_one;
use crate::store::{Accepted, ActionView, StoreResult};
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A durable action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Its public id.
    pub id: Uuid,
    /// Whether it was not known before.
    pub is_new: bool,
}

/// The result for one of several actions.
pub type Submission = StoreResult<Result<Submitted, Problem>>;

/// Stores a document as an action and has it resolved. Repeating the same id or key returns the
/// same action.
///
/// # Errors
/// If the document isn't valid, or its id or key belongs to another document.
pub async fn submit(node: &Node, document: &[u8], key: Option<String>, by: Author) -> ServiceResult<Submitted> {
    let action = NewAction::from_json(document, Uuid::now_v7(), node.store.now())?;
    submit_one(node, NewAction { idempotency_key: key, author: by, ..action }).await
}

async fn submit_one(node: &Node, action: NewAction) -> ServiceResult<Submitted> {
    match submit_all(node, vec![action]).await.pop().flatten() {
        Some(submission) => Ok(submission??),
        // A single action is always tried.
        None => Err(ServiceError::unavailable("the action was not stored; try again")),
    }
}

/// Actions that are accepted together and are logged one by one.
const LOGGED_ALONE: usize = 5;

/// Stores actions in one transaction and has them resolved. If that fails, it stores each alone, so
/// that only the bad one fails. Returns the results in their order; `None` for actions that were
/// not tried, because the store seems to be away.
pub async fn submit_all(node: &Node, actions: Vec<NewAction>) -> Vec<Option<Submission>> {
    if actions.is_empty() {
        return Vec::new();
    }
    let submissions: Vec<Option<Submission>> = match node.store.action_insert(actions.clone()).await {
        Ok(accepted) => {
            let accepted = accepted.into_iter().zip(&actions);
            let verdicts = accepted.map(|(accepted, action)| {
                keep(node, &accepted, action);
                Some(Ok(verdict(&accepted, action.id)))
            });
            verdicts.collect()
        }
        Err(error) if actions.len() == 1 => vec![Some(Err(error))],
        Err(_) => {
            one_by_one(&actions, async |action| {
                let accepted = node.store.action_insert(vec![action.clone()]).await?.pop();
                Ok(verdict(&accepted.unwrap_or(Accepted::Conflict), action.id))
            })
            .await
        }
    };
    if submissions.iter().any(|submission| matches!(submission, Some(Ok(Ok(_))))) {
        node.signals.actions_submitted();
    }
    let is_new = |submission: &Option<Submission>| matches!(submission, Some(Ok(Ok(accepted))) if accepted.is_new);
    let accepted = submissions.iter().zip(&actions).filter(|(submission, _)| is_new(submission));
    let accepted: Vec<&NewAction> = accepted.map(|(_, action)| action).collect();
    if accepted.len() > LOGGED_ALONE {
        log::info!(actions = accepted.len(); "actions were accepted");
    } else {
        for action in accepted {
            log::info!(action:% = action.id, name = action.name.as_str(), by = action.author.name.as_str();
                "an action was accepted");
        }
    }
    submissions
}

/// Keeps a new action in memory, where the resolver will look for it in a moment.
fn keep(node: &Node, accepted: &Accepted, action: &NewAction) {
    if let Accepted::Stored { no, is_new: true, .. } = accepted
        && action.valid_from <= node.store.now().plus(node.config.delay.horizon.0)
        && let Ok(action) = Action::from_new(*no, action, false, false)
    {
        node.actions.keep(action);
    }
}

fn verdict(accepted: &Accepted, asked: Uuid) -> Result<Submitted, Problem> {
    match accepted {
        Accepted::Stored { id, is_new, .. } => Ok(Submitted { id: *id, is_new: *is_new }),
        Accepted::KeyMismatch => {
            Err(Problem::new(ProblemKind::IdempotencyMismatch, "Idempotency-Key: it was used for another document"))
        }
        Accepted::Conflict => {
            let detail = format!("id: {asked} is taken by an action with other content");
            Err(Problem::new(ProblemKind::Conflict, detail))
        }
    }
}

/// The state of a submitted action. One that was known before may be in any state.
///
/// # Errors
/// If the store is away.
pub async fn state_of(node: &Node, submitted: Submitted) -> ServiceResult<ActionState> {
    let known = if submitted.is_new { None } else { node.store.action_view(submitted.id).await? };
    Ok(known.map_or(ActionState::Scheduled, |view| view.status))
}

/// An action as users see it.
///
/// # Errors
/// If no action has this id.
pub async fn show(node: &Node, id: Uuid) -> ServiceResult<ActionView> {
    node.store.action_view(id).await?.ok_or_else(|| not_found(id))
}

fn not_found(id: Uuid) -> ServiceError {
    ServiceError::not_found(format!("action {id} not found"))
}

/// Cancels every unfinished command of an action. Idempotent.
///
/// # Errors
/// If there is no such action.
pub async fn cancel(node: &Node, id: Uuid, by: &Author) -> ServiceResult<ActionView> {
    let view = node.store.action_cancel(id, by).await?.ok_or_else(|| not_found(id))?;
    node.signals.action_cancelled(view.no, view.id);
    Ok(view)
}

/// Pauses an action, or resumes it, unless it has ended. Idempotent.
///
/// # Errors
/// If there is no such action.
pub async fn set_paused(node: &Node, id: Uuid, paused: bool, by: &Author) -> ServiceResult<ActionView> {
    let view = node.store.action_pause(id, paused, by).await?.ok_or_else(|| not_found(id))?;
    if view.status == ActionState::Paused {
        node.signals.action_paused(view.no);
    } else {
        node.signals.action_resumed(view.no);
    }
    Ok(view)
}

/// Submits a copy of an action with new times, for the agents whose command is now in one of these
/// final states.
///
/// # Errors
/// If there is no such action, or as [`submit`].
pub async fn retry(
    node: &Node,
    id: Uuid,
    states: &[CommandState],
    key: Option<String>,
    by: Author,
) -> ServiceResult<Submitted> {
    let view = show(node, id).await?;
    let document = retry_document(&view.document, id, states)?;
    let action = NewAction::from_json(document.as_bytes(), Uuid::now_v7(), node.store.now())?;
    submit_one(node, NewAction { idempotency_key: key, author: by, retry_of: Some(id), ..action }).await
}

/// The document of a retry. It lasts as long as the first one, and its target is the commands in
/// these states.
fn retry_document(document: &RawValue, id: Uuid, states: &[CommandState]) -> Result<String, Problem> {
    let internal = |error: serde_json::Error| Problem::new(ProblemKind::Internal, error.to_string());
    // Everything else stays as it is, to the letter: parameters may hold numbers that no other type can.
    let mut document: BTreeMap<String, Box<RawValue>> = serde_json::from_str(document.get()).map_err(internal)?;
    let time = |key: &str| serde_json::from_str::<Timestamp>(document.get(key)?.get()).ok();
    let lasts = time("expires_at").zip(time("valid_from")).map(|(end, start)| Span(end.since(start)));
    ["id", "valid_from", "expires_at"].into_iter().for_each(|key| drop(document.remove(key)));
    if let Some(lasts) = lasts {
        document.insert("expires_after".into(), to_raw_value(&lasts).map_err(internal)?);
    }
    let targets: Vec<String> = states.iter().map(|state| format!("action('{id}') = '{}'", state.as_str())).collect();
    document.insert("target".into(), to_raw_value(&targets.join(" OR ")).map_err(internal)?);
    serde_json::to_string(&document).map_err(internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_keeps_the_duration_and_targets_the_commands_in_the_named_states() {
        let id = Uuid::nil();
        let document = format!(
            r#"{{"id":"{id}","name":"n","target":"TRUE","valid_from":"2026-01-01T00:00:00Z",
                "expires_at":"2026-01-01T02:00:00Z","operations":[{{"module":"ping","parameters":{{"b":1.10,"a":1e400}}}}]}}"#
        );
        let document = RawValue::from_string(document).expect("JSON");
        let states = [CommandState::Failed, CommandState::TimedOut];
        let retry = retry_document(&document, id, &states).expect("a document");
        assert!(retry.contains(r#""parameters":{"b":1.10,"a":1e400}"#), "{retry}");
        let retry: serde_json::Value = serde_json::from_str(&retry.replace("1e400", "1")).expect("JSON");
        assert_eq!(retry["target"], format!("action('{id}') = 'failed' OR action('{id}') = 'timed_out'"));
        assert_eq!(retry["expires_after"], "2h");
        assert!(["id", "valid_from", "expires_at"].iter().all(|key| retry.get(key).is_none()), "{retry}");
        assert_eq!(retry["operations"][0]["module"], "ping");
    }
}
