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

/// A range of occurrences that were dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// What is dropped.
    pub dropped: Vec<Dropped>,
    /// When it is due next; `None`: never again.
    pub next_at: Option<Timestamp>,
}

/// Decides about the occurrences from `next_at`, which is one of them, up to and including `now`. It
/// costs milliseconds, however many there are.
pub fn plan(calendar: &Calendar, misfire: &Misfire, next_at: Timestamp, now: Timestamp) -> Plan {
    let in_time = now.minus(misfire.grace.0).max(next_at);
    let young = now.minus(misfire.max_age.0).clamp(next_at, in_time);
    let mut plan = Plan { make: Vec::new(), dropped: Vec::new(), next_at: None };
    plan.drop(calendar, next_at..young, Reason::TooOld);
    let most = match misfire.policy {
        MisfirePolicy::Skip => 0,
        MisfirePolicy::Latest => 1,
        MisfirePolicy::All => misfire.limit,
    };
    plan.make = calendar.newest(young..in_time, most);
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
