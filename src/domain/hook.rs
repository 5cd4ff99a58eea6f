//! Hooks: addresses that are told when something happened to an action, a schedule or a node.
//!
//! An *event* is written by the transaction of the change that it tells of, once for each hook that
//! listens to it (an outbox), and sent later, at least once. Its payload has the shape of Standard
//! Webhooks: `type`, `timestamp`, `data`.

use super::action::ActionState;
use super::counts::Counts;
use super::schedule::Dropped;
use super::time::Timestamp;
use serde::Serialize;
use std::time::Duration;
use uuid::Uuid;

/// The wait after the first failed attempt; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(5);
/// The longest wait between two attempts. Bounds what a receiver may ask for with `Retry-After`.
const BACKOFF_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// Maximum number of attempts for one event. With the waits above, these take about three days.
pub const MAX_ATTEMPTS: i32 = 30;
/// An event that is older is given up when an attempt fails: a weekend and a day.
pub const MAX_AGE: Duration = Duration::from_secs(3 * 24 * 60 * 60);
/// Maximum number of characters of an error that are kept.
const ERROR_LENGTH: usize = 500;

/// What a hook can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookEvent {
    /// An action has ended: completed, cancelled or expired.
    ActionEnded,
    /// A rollout has halted.
    ActionHalted,
    /// A schedule has missed an occurrence.
    ScheduleMissed,
    /// A node died, and another one has taken over its work.
    NodeLost,
}

impl HookEvent {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ActionEnded, Self::ActionHalted, Self::ScheduleMissed, Self::NodeLost];

    /// The word in the settings and in the payload.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ActionEnded => "action.ended",
            Self::ActionHalted => "action.halted",
            Self::ScheduleMissed => "schedule.missed",
            Self::NodeLost => "node.lost",
        }
    }

    /// The event with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == name)
    }
}

/// A hook as the store knows it: its name and its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The hook's name.
    pub name: String,
    /// The events that it listens to.
    pub on: Vec<HookEvent>,
}

/// The `data` of [`HookEvent::ActionEnded`].
#[derive(Clone, Debug, Serialize)]
pub struct ActionEnded {
    /// The action's id.
    pub id: Uuid,
    /// The action's name.
    pub name: String,
    /// `completed`, `cancelled` or `expired`.
    pub status: ActionState,
    /// The final counts.
    pub counts: Counts,
    /// The name of the token that created it, or `spool` or `server`. Unknown for actions that were
    /// created by versions without hooks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
}

/// The `data` of [`HookEvent::ScheduleMissed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScheduleMissed {
    /// The schedule's name.
    pub name: String,
    /// The first missed occurrence.
    pub from: Timestamp,
    /// The last one.
    pub to: Timestamp,
    /// How many were missed.
    pub count: u64,
    /// How many of them are made now, late.
    pub made: usize,
    /// The others, with their reasons.
    pub dropped: Vec<Dropped>,
}

/// The `data` of [`HookEvent::NodeLost`].
#[derive(Clone, Debug, Serialize)]
pub struct NodeLost {
    /// The node's name.
    pub name: String,
    /// Its process.
    pub incarnation: String,
    /// When that process started.
    pub started_at: Timestamp,
    /// Its last heartbeat.
    pub heartbeat: Timestamp,
}

#[derive(Serialize)]
struct Payload<'a, D> {
    r#type: &'static str,
    timestamp: Timestamp,
    data: &'a D,
}

/// An event as it is sent.
///
/// # Errors
/// When `data` can't be written as JSON.
pub fn payload(event: HookEvent, at: Timestamp, data: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Payload { r#type: event.as_str(), timestamp: at, data })
}

/// A new id of an event, the `webhook-id` of all its attempts.
pub fn new_id() -> String {
    format!("msg_{}", Uuid::now_v7().simple())
}

/// When an event is sent again after its `attempts`th attempt failed, `None` to give it up.
///
/// `retry_after` is what the receiver asked for, and `jitter` a random number from 0 to 1.
pub fn next_attempt(
    attempts: i32,
    created_at: Timestamp,
    now: Timestamp,
    retry_after: Option<Duration>,
    jitter: f64,
) -> Option<Timestamp> {
    if attempts >= MAX_ATTEMPTS || now.since(created_at) >= MAX_AGE {
        return None;
    }
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(16);
    let full = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    let wait = full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
    Some(now.plus(wait.max(retry_after.unwrap_or_default().min(BACKOFF_MAX))))
}

/// An error as it is kept: one line, without control characters, of bounded length. Part of it may
/// come from the receiver.
pub fn error_to_keep(error: &str) -> String {
    let mut kept = String::new();
    for (number, character) in error.chars().enumerate() {
        if number == ERROR_LENGTH {
            kept.push('…');
            break;
        }
        if character.is_control() {
            kept.extend(character.escape_default());
        } else {
            kept.push(character);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_payload_has_type_timestamp_and_data() {
        let data = ActionEnded {
            id: Uuid::nil(),
            name: "a".into(),
            status: ActionState::Completed,
            counts: Counts::default(),
            created_by: Some("ci".into()),
        };
        let text = payload(HookEvent::ActionEnded, Timestamp(0), &data).expect("JSON");
        let payload: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(payload["type"], "action.ended");
        assert_eq!(payload["timestamp"], "1970-01-01T00:00:00.000Z");
        assert_eq!(payload["data"]["status"], "completed");
        assert_eq!(payload["data"]["created_by"], "ci");
        assert_eq!(payload["data"]["counts"]["total"], 0);
    }

    #[test]
    fn events_are_found_by_their_names() {
        for event in HookEvent::ALL {
            assert_eq!(HookEvent::from_name(event.as_str()), Some(event));
        }
        assert_eq!(HookEvent::from_name("action.started"), None);
    }

    #[test]
    fn attempts_take_two_to_four_days_in_all() {
        for (jitter, least, most) in [(0.0, 2, 4), (1.0, 1, 4)] {
            let (mut now, mut attempts) = (Timestamp(0), 0);
            loop {
                attempts += 1;
                match next_attempt(attempts, Timestamp(0), now, None, jitter) {
                    Some(next) => now = next,
                    None => break,
                }
            }
            let days = now.since(Timestamp(0)).as_secs() / 86_400;
            assert!((least..=most).contains(&days), "{days} days, {attempts} attempts");
            assert!(attempts <= MAX_ATTEMPTS);
        }
    }

    #[test]
    fn an_error_is_kept_as_one_short_line() {
        assert_eq!(error_to_keep("a\nb\u{1b}[31m\0"), "a\\nb\\u{1b}[31m\\u{0}");
        assert_eq!(error_to_keep(&"x".repeat(10_000)).chars().count(), ERROR_LENGTH + 1);
    }

    proptest! {
        #[test]
        fn waits_are_bounded_and_the_receiver_can_only_lengthen_them(
            attempts in 1..MAX_ATTEMPTS, jitter in 0.0..=1.0, asked in proptest::option::of(0_u64..1_000_000),
        ) {
            let now = Timestamp(1_000);
            let asked = asked.map(Duration::from_secs);
            let plain = next_attempt(attempts, now, now, None, jitter).expect("another one").since(now);
            let wait = next_attempt(attempts, now, now, asked, jitter).expect("another one").since(now);
            prop_assert!(plain >= BACKOFF_MIN / 2 && wait <= BACKOFF_MAX && wait >= plain);
            prop_assert_eq!(next_attempt(MAX_ATTEMPTS, now, now, asked, jitter), None);
            prop_assert_eq!(next_attempt(attempts, now, now.plus(MAX_AGE), asked, jitter), None);
        }
    }
}
