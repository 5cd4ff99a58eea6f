//! A stored action in memory.

use super::new_action::NewAction;
use super::policy::Policy;
use crate::domain::protocol::Operations;
use crate::domain::time::Timestamp;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// A stored action as the pipeline holds it in memory, shared by its commands.
#[derive(Debug)]
pub struct Action {
    /// The store's key; grows in order of arrival.
    pub no: i64,
    /// The public id.
    pub id: Uuid,
    /// A name for people.
    pub name: String,
    /// The nominal time of the occurrence, if a schedule made it.
    pub scheduled_for: Option<Timestamp>,
    /// The target expression.
    pub target: String,
    /// What agents do.
    pub operations: Operations,
    /// Nothing is delivered before this time.
    pub valid_from: Timestamp,
    /// Nothing is delivered from this time on.
    pub expires_at: Timestamp,
    /// The time over which due times are spread.
    pub spread: Duration,
    /// The limits for runs and attempts.
    pub policy: Policy,
    /// Among the commands that wait for one agent, the highest priority is delivered first.
    pub priority: i32,
    /// A user cancelled it. Set as soon as this node learns of it; the store is authoritative.
    cancelled: AtomicBool,
    /// A user paused it: none of its commands is delivered. Set like `cancelled`.
    paused: AtomicBool,
}

impl Action {
    /// Builds one from what the store holds.
    pub fn from_new(no: i64, new: &NewAction, cancelled: bool, paused: bool) -> Result<Self, serde_json::Error> {
        Ok(Self {
            no,
            id: new.id,
            name: new.name.clone(),
            scheduled_for: new.scheduled_for,
            target: new.target.clone(),
            operations: Operations::from_json(new.operations.clone())?,
            valid_from: new.valid_from,
            expires_at: new.expires_at,
            spread: new.spread.0,
            policy: Policy { max_runs: new.max_runs, max_deliveries: new.max_deliveries, timeout: new.timeout.0 },
            priority: new.priority,
            cancelled: AtomicBool::new(cancelled),
            paused: AtomicBool::new(paused),
        })
    }

    /// When the command at `position` (from 0, in key order) of `total` is due: `valid_from + spread·position/total`.
    pub fn due_at(&self, position: i64, total: i64) -> Timestamp {
        if self.spread.is_zero() || total <= 0 {
            return self.valid_from;
        }
        // Agents that join after the count was taken would be due after the span. They are due at its end.
        let position = i128::from(position.clamp(0, total));
        let offset = self.spread.as_millis() as i128 * position / i128::from(total);
        Timestamp(self.valid_from.0.saturating_add(i64::try_from(offset).unwrap_or(i64::MAX)))
    }

    /// Whether a user cancelled it.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Marks it as cancelled in all its users.
    pub fn set_cancelled(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether a user paused it.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Marks it as paused or resumed in all its users.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
}
