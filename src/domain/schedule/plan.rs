//! What is to be made of a schedule that is due.

use super::calendar::Calendar;
use super::timing::{Misfire, MisfirePolicy};
use crate::domain::time::Timestamp;
use serde::Serialize;
use std::ops::Range;
use utoipa::ToSchema;

/// Occurrences that one plan makes in time, at most. The schedule is due again at once with the rest.
pub const MOST_IN_TIME: usize = 100;

/// Why occurrences were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// They were missed, and the policy makes none or only newer ones of them.
    Missed,
    /// They were missed longer ago than `max_age`.
    TooOld,
    /// The action of the previous occurrence still ran.
    Overlap,
    /// The action's document was not valid at that time.
    Invalid,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Missed, Self::TooOld, Self::Overlap, Self::Invalid];

    /// The word in the interface.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::TooOld => "too_old",
            Self::Overlap => "overlap",
            Self::Invalid => "invalid",
        }
    }

    /// Whether it is about occurrences that were missed.
    pub fn is_missed(self) -> bool {
        matches!(self, Self::Missed | Self::TooOld)
    }

    /// The reason with this name in the interface.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// A range of occurrences that were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Dropped {
    /// The first one.
    pub from: Timestamp,
    /// The last one.
    pub to: Timestamp,
    /// How many there were.
    pub count: u64,
    /// Why.
    pub reason: Reason,
}

/// What is to be made of a schedule that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The occurrences to make, earliest first.
    pub make: Vec<Timestamp>,
    /// How many of these, from the first on, were missed.
    pub late: usize,
    /// What is dropped.
    pub dropped: Vec<Dropped>,
    /// Every occurrence up to and including this time is decided.
    pub decided: Timestamp,
    /// When it is due next; `None`: never again.
    pub next_at: Option<Timestamp>,
}

/// Decides about the occurrences after `decided`, up to and including `now`, and makes at most
/// `most`; the rest is due again at once. It costs milliseconds, however many there are.
pub fn plan(calendar: &Calendar, misfire: &Misfire, decided: Timestamp, now: Timestamp, most: usize) -> Plan {
    let mut plan = Plan { make: Vec::new(), late: 0, dropped: Vec::new(), decided, next_at: None };
    let Some(first) = calendar.next_after(decided).filter(|first| *first <= now) else {
        plan.next_at = calendar.next_after(decided);
        return plan;
    };
    let in_time = now.minus(misfire.grace.0).max(first);
    let young = now.minus(misfire.max_age.0).clamp(first, in_time);
    plan.drop(calendar, first..young, Reason::TooOld);
    let kept = match misfire.policy {
        MisfirePolicy::Skip => 0,
        MisfirePolicy::Latest => 1,
        MisfirePolicy::All => misfire.limit,
    };
    plan.make = calendar.newest(young..in_time, kept);
    plan.late = plan.make.len();
    let first_made = plan.make.first().copied().unwrap_or(in_time);
    plan.drop(calendar, young..first_made, Reason::Missed);

    let mut after = in_time.minus(std::time::Duration::from_millis(1));
    for _ in 0..MOST_IN_TIME {
        match calendar.next_after(after).filter(|at| *at <= now) {
            Some(at) => {
                plan.make.push(at);
                after = at;
            }
            None => {
                after = now;
                break;
            }
        }
    }
    if let Some(unmade) = plan.make.get(most.max(1)).copied() {
        plan.make.truncate(most.max(1));
        plan.late = plan.late.min(plan.make.len());
        after = unmade.minus(std::time::Duration::from_millis(1));
    }
    plan.decided = after;
    plan.next_at = calendar.next_after(after);
    plan
}

impl Plan {
    fn drop(&mut self, calendar: &Calendar, range: Range<Timestamp>, reason: Reason) {
        let count = calendar.count(range.clone());
        let before = range.start.minus(std::time::Duration::from_millis(1));
        let last = calendar.newest(range, 1).pop();
        if let (Some(from), Some(to)) = (calendar.next_after(before), last) {
            self.dropped.push(Dropped { from, to, count, reason });
        }
    }
}
