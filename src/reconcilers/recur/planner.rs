//! What is to be made of a schedule that is due.

use crate::domain::hook::error_to_keep;
use crate::domain::problem::Problem;
use crate::domain::schedule::{Calendar, Dropped, Overlap, Reason, Schedule, Timing, Zones, plan};
use crate::domain::time::Timestamp;
use crate::store::{DueSchedule, NextOccurrence, Planned, Planner, ScheduleTag};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Maximum bytes of the documents that are kept in memory, about.
const MAX_KEPT: usize = 32 * 1024 * 1024;
/// Maximum bytes of the actions that one plan makes of one schedule; at least one is made.
const MAX_MADE: usize = 64 * 1024;
/// When to try again what can't be planned.
const RETRY: Duration = Duration::from_secs(60);

/// Plans with the zone data of one moment, and keeps the schedules that it has read.
pub struct SchedulePlanner {
    zones: Arc<Zones>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    schedules: HashMap<i64, Arc<Known>>,
    bytes: usize,
}

/// A schedule that was read.
struct Known {
    tag: ScheduleTag,
    schedule: Schedule,
    calendar: Calendar,
    bytes: usize,
}

impl SchedulePlanner {
    /// A planner with these zone data.
    pub fn new(zones: Arc<Zones>) -> Self {
        Self { zones, kept: Mutex::default() }
    }

    fn known(&self, due: &DueSchedule) -> Result<Arc<Known>, Problem> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.schedules.get(&due.tag.no).filter(|known| known.tag == due.tag) {
            return Ok(known.clone());
        }
        let schedule = Schedule::from_stored(&due.document)?;
        let calendar = schedule.calendar(&self.zones)?;
        let known = Arc::new(Known { tag: due.tag, schedule, calendar, bytes: due.document.len() });
        if kept.bytes + known.bytes > MAX_KEPT {
            *kept = Kept::default();
        }
        kept.bytes += known.bytes;
        kept.schedules.insert(due.tag.no, known.clone());
        Ok(known)
    }
}

impl Planner for SchedulePlanner {
    fn plan(&self, due: &DueSchedule, now: Timestamp) -> Planned {
        match self.known(due) {
            Ok(known) => known.plan(due.decided, now, &self.zones),
            Err(problem) => Planned {
                make: Vec::new(),
                late: 0,
                overlap: Overlap::Allow,
                dropped: Vec::new(),
                next: NextOccurrence { decided: due.decided, at: Some(now.plus(RETRY)), zone_data: None },
                error: Some(error_to_keep(&problem.detail)),
            },
        }
    }
}

impl Known {
    fn plan(&self, decided: Timestamp, now: Timestamp, zones: &Zones) -> Planned {
        let Self { schedule, calendar, bytes, .. } = self;
        let most = MAX_MADE / (*bytes).max(1);
        let plan = plan(calendar, &schedule.misfire, decided, now, most);
        let (mut late, mut dropped, mut error) = (plan.late, plan.dropped, None);
        let mut make = Vec::with_capacity(plan.make.len());
        let lasts = schedule.lifetime(calendar, now);
        for (position, at) in plan.make.into_iter().enumerate() {
            match schedule.new_action(at, lasts, now) {
                Ok(action) => make.push((at, action)),
                Err(problem) => {
                    late -= usize::from(position < plan.late);
                    dropped.push(Dropped { from: at, to: at, count: 1, reason: Reason::Invalid });
                    error = Some(error_to_keep(&problem.detail));
                }
            }
        }
        let zone_data = matches!(schedule.timing, Timing::Cron { .. }).then(|| zones.info().version.clone());
        let next = NextOccurrence { decided: plan.decided, at: plan.next_at, zone_data };
        Planned { make, late, overlap: schedule.overlap, dropped, next, error }
    }
}
