//! Schedules, their occurrences, and what of these was dropped.
//!
//! An occurrence is made by [`Schedules::schedule_make`], in one transaction: its row, its action,
//! and the time from which the schedule is due next. So a crash leaves all of it or nothing.

use super::actions::Accepted;
use super::error::StoreResult;
use crate::domain::action::{ActionState, NewAction};
use crate::domain::audit::Author;
use crate::domain::hook::ScheduleMissed;
use crate::domain::schedule::{Dropped, Overlap, Reason};
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use std::sync::Arc;
use uuid::Uuid;

/// A schedule's state at a moment. It changes with each change by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleTag {
    /// The store's key, which is never used again.
    pub no: i64,
    /// Grows with each change.
    pub version: i64,
}

/// When a schedule is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextOccurrence {
    /// Every occurrence up to and including this time is decided.
    pub decided: Timestamp,
    /// The next one; `None`: never.
    pub at: Option<Timestamp>,
    /// The release of the zone data by which it was computed; `None` if it needs none.
    pub zone_data: Option<String>,
}

/// A schedule to be stored.
#[derive(Clone, Debug)]
pub struct NewSchedule {
    /// Its name.
    pub name: String,
    /// The document with defaults filled in, as JSON, without `paused`.
    pub document: String,
    /// SHA-256 of the submitted document with sorted keys.
    pub digest: Vec<u8>,
    /// Whether it makes no occurrences. `None`: as before, and not for a new one.
    pub paused: Option<bool>,
    /// When it is due, unless it is paused.
    pub next: NextOccurrence,
}

/// A schedule as users see it.
#[derive(Clone, Debug)]
pub struct ScheduleView {
    /// Its state.
    pub tag: ScheduleTag,
    /// Its name.
    pub name: String,
    /// Its document, as JSON, without `paused`.
    pub document: String,
    /// SHA-256 of the submitted document with sorted keys.
    pub digest: Vec<u8>,
    /// Whether it makes no occurrences.
    pub paused: bool,
    /// When it is due next; `None` while it is paused, and when it never is.
    pub next_at: Option<Timestamp>,
    /// The time of the last occurrence that was made.
    pub last_at: Option<Timestamp>,
    /// Why no occurrence can be made, if none can.
    pub error: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// The name of the token that created it.
    pub created_by: String,
    /// When an operator last changed it.
    pub changed_at: Timestamp,
}

/// An occurrence that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OccurrenceView {
    /// Its nominal time.
    pub at: Timestamp,
    /// Whether an operator triggered it.
    pub triggered: bool,
    /// When it was made.
    pub made_at: Timestamp,
    /// Its action and how that stands; `None` once the action is deleted.
    pub action: Option<(Uuid, ActionState)>,
}

/// A schedule that is due, or seems to be.
#[derive(Clone, Debug)]
pub struct DueSchedule {
    /// Its state.
    pub tag: ScheduleTag,
    /// Its name.
    pub name: String,
    /// Its document.
    pub document: String,
    /// Every occurrence up to and including this time is decided.
    pub decided: Timestamp,
}

/// What is to be made of a schedule.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The occurrences to make, earliest first, with their actions.
    pub make: Vec<(Timestamp, NewAction)>,
    /// How many of these, from the first on, were missed.
    pub late: usize,
    /// What to do if the action of the previous occurrence still runs.
    pub overlap: Overlap,
    /// What is dropped, earliest first.
    pub dropped: Vec<Dropped>,
    /// When it is due next.
    pub next: NextOccurrence,
    /// Why no occurrence can be made, if none can.
    pub error: Option<String>,
}

/// Says what is to be made of schedules. It is asked within a transaction, perhaps several times.
pub trait Planner: Send + Sync + 'static {
    /// What is to be made of a schedule at this time.
    fn plan(&self, due: &DueSchedule, now: Timestamp) -> Planned;
}

/// An occurrence that [`Schedules::schedule_make`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeOccurrence {
    /// The schedule's name.
    pub schedule: String,
    /// The nominal time.
    pub at: Timestamp,
    /// When it was made.
    pub made_at: Timestamp,
    /// Its action.
    pub action: Uuid,
}

/// What [`Schedules::schedule_make`] did.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// The occurrences.
    pub occurrences: Vec<MadeOccurrence>,
    /// Actions that were cancelled for later ones, as (key, public id).
    pub cancelled: Vec<(i64, Uuid)>,
    /// What was dropped, with the schedule's name.
    pub dropped: Vec<(String, Dropped)>,
    /// Schedules of which none can be made, by name, and why.
    pub errors: Vec<(String, String)>,
    /// Whether events for hooks were written.
    pub hooks_told: bool,
    /// Whether some of the schedules are due again already.
    pub has_more: bool,
}

/// What [`Schedules::schedule_trigger`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Triggered {
    /// What became of the action.
    pub accepted: Accepted,
    /// The action that was cancelled for it, as (key, public id).
    pub cancelled: Option<(i64, Uuid)>,
}

/// Schedules. The same on both databases.
#[async_trait]
pub trait Schedules {
    /// Inserts a schedule, with its entry in the audit log. `None` if the name is taken.
    async fn schedule_insert(&self, new: NewSchedule, by: &Author) -> StoreResult<Option<ScheduleView>>;

    /// Replaces a schedule. `None` if it is no longer in the state `tag`.
    ///
    /// What was due before and is not made yet is neither made nor missed. The same document again
    /// changes nothing.
    async fn schedule_replace(
        &self,
        tag: ScheduleTag,
        new: NewSchedule,
        by: &Author,
    ) -> StoreResult<Option<ScheduleView>>;

    /// The schedule of this name.
    async fn schedule_view(&self, name: &str) -> StoreResult<Option<ScheduleView>>;

    /// Lists schedules by name, after the name `after`.
    async fn schedule_list(&self, after: Option<&str>, limit: usize) -> StoreResult<Vec<ScheduleView>>;

    /// The newest occurrences of a schedule, newest first.
    async fn schedule_occurrences(&self, no: i64, limit: usize) -> StoreResult<Vec<OccurrenceView>>;

    /// The newest ranges of its occurrences that were dropped, newest first.
    async fn schedule_dropped(&self, no: i64, limit: usize) -> StoreResult<Vec<Dropped>>;

    /// Pauses a schedule (`next` is `None`), or resumes it. `None` if it is no longer in the state
    /// `tag`. One that is paused already, or not, stays as it is.
    async fn schedule_pause(
        &self,
        tag: ScheduleTag,
        next: Option<NextOccurrence>,
        by: &Author,
    ) -> StoreResult<Option<ScheduleView>>;

    /// Deletes a schedule. Its actions stay. False if it is no longer in the state `tag`.
    async fn schedule_remove(&self, tag: ScheduleTag, by: &Author) -> StoreResult<bool>;

    /// Makes an occurrence now, with this action. `None` if the schedule is no longer in the state
    /// `tag`. An action that is stored already is answered as by
    /// [`Actions::action_insert`](super::Actions::action_insert), and makes no other occurrence.
    /// With `cancel_previous`, the action of the previous occurrence is cancelled if it still runs.
    async fn schedule_trigger(
        &self,
        tag: ScheduleTag,
        action: NewAction,
        cancel_previous: bool,
        by: &Author,
    ) -> StoreResult<Option<Triggered>>;

    /// The keys of schedules that are due, earliest first, each with the bytes of its document.
    async fn schedule_due(&self, limit: usize) -> StoreResult<Vec<(i64, usize)>>;

    /// When the next schedule is due; `None` if none is.
    async fn schedule_next(&self) -> StoreResult<Option<Timestamp>>;

    /// The keys of schedules after the key `after` whose next time was computed by an older release
    /// of the zone data, each with the bytes of its document.
    async fn schedule_stale(&self, zone_data: &str, after: i64, limit: usize) -> StoreResult<Vec<(i64, usize)>>;

    /// Plans these schedules, and makes what is to be made of them. Those that another node plans at
    /// this moment, and paused ones, are passed over.
    async fn schedule_make(&self, nos: Vec<i64>, planner: Arc<dyn Planner>) -> StoreResult<Made>;

    /// Deletes up to `limit` occurrences, and ranges of dropped ones, that are older than `before`.
    /// Returns how many were deleted.
    async fn occurrence_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize>;
}

/// What is to be written for a schedule, now that it is known whether its previous action runs.
#[derive(Debug)]
pub(super) struct Settled {
    /// What is dropped, all of it before the first occurrence to make.
    pub(super) dropped: Vec<Dropped>,
    /// Occurrences to make.
    pub(super) make: Vec<(Timestamp, NewAction)>,
    /// Whether to cancel the previous action.
    pub(super) cancel_previous: bool,
    /// Whether each of the occurrences but the last is cancelled by the one after it.
    pub(super) cancel_each_other: bool,
    /// The occurrences that were missed, if there are any.
    pub(super) missed: Option<ScheduleMissed>,
}

impl Planned {
    /// Whether it matters if the previous action still runs.
    pub(super) fn asks_for_previous(&self) -> bool {
        self.overlap != Overlap::Allow && !self.make.is_empty()
    }

    /// Applies the overlap policy. Occurrences that are made together would overlap: of these, the
    /// newest is made.
    pub(super) fn settle(self, name: &str, previous_runs: bool) -> Settled {
        let Self { mut make, late, overlap, mut dropped, .. } = self;
        let all = make.len();
        let late_times: Vec<Timestamp> = make.iter().take(late).map(|(at, _)| *at).collect();
        let missed_ranges: Vec<Dropped> = dropped.iter().filter(|range| range.reason.is_missed()).cloned().collect();
        if overlap == Overlap::Skip {
            let kept = make.split_off(if previous_runs { all } else { all.saturating_sub(1) });
            let skipped = std::mem::replace(&mut make, kept);
            if let (Some((from, _)), Some((to, _))) = (skipped.first(), skipped.last()) {
                let count = skipped.len() as u64;
                dropped.push(Dropped { from: *from, to: *to, count, reason: Reason::Overlap });
            }
        }
        let cancels = overlap == Overlap::CancelPrevious;
        let made_late = late.saturating_sub(all - make.len());
        Settled {
            missed: missed(name, missed_ranges, &late_times, made_late),
            dropped,
            cancel_previous: cancels && previous_runs && !make.is_empty(),
            cancel_each_other: cancels,
            make,
        }
    }
}

/// The missed occurrences, for hooks: those that are dropped, and those that are made late.
fn missed(name: &str, dropped: Vec<Dropped>, late: &[Timestamp], made: usize) -> Option<ScheduleMissed> {
    let from = dropped.first().map(|range| range.from).into_iter().chain(late.first().copied()).min()?;
    let to = dropped.last().map(|range| range.to).into_iter().chain(late.last().copied()).max()?;
    let count = dropped.iter().map(|range| range.count).sum::<u64>() + late.len() as u64;
    Some(ScheduleMissed { name: name.to_owned(), from, to, count, made, dropped })
}
