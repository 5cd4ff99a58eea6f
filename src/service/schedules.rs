//! Create, change, pause, trigger, preview and remove schedules.

use super::error::{ServiceError, ServiceResult};
use crate::context::Node;
use crate::domain::audit::Author;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::schedule::{Calendar, Dropped, Schedule, Timing, Upcoming, ZoneInfo, Zones};
use crate::domain::time::Timestamp;
use crate::store::{Accepted, NewSchedule, NextOccurrence, OccurrenceView, Put, ScheduleTag, ScheduleView};
use uuid::Uuid;

/// How many occurrences, and how many ranges of dropped ones, are shown with a schedule.
const SHOWN: usize = 20;
/// How often a change is tried again when another one comes in between.
const TRIES: usize = 5;

/// A schedule, with what became of its occurrences.
pub struct Shown {
    /// The schedule.
    pub view: ScheduleView,
    /// The newest occurrences, newest first.
    pub occurrences: Vec<OccurrenceView>,
    /// The newest ranges of occurrences that were dropped, newest first.
    pub dropped: Vec<Dropped>,
}

/// The next occurrences.
pub struct Preview {
    /// The occurrences, and between them those that a clock change skips.
    pub occurrences: Vec<Upcoming>,
    /// The zone data by which they were computed.
    pub tzdata: ZoneInfo,
}

/// What `If-Match` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: a schedule of this name may exist or not.
    Any,
    /// There is a schedule of this name.
    Exists,
    /// There is one, and its state is this one; `None` is no state that a schedule ever has.
    Is(Option<ScheduleTag>),
}

/// Stores a new schedule.
///
/// # Errors
/// If the document isn't valid, or the name is taken.
pub async fn create(node: &Node, document: &[u8], by: &Author) -> ServiceResult<ScheduleView> {
    let new = new_schedule(node, document)?;
    let name = new.name.clone();
    let taken = || ServiceError::conflict(format!("name: there is a schedule {name:?} already"));
    let view = node.store.schedule_insert(new, by).await?.ok_or_else(taken)?;
    node.signals.schedules_changed();
    Ok(view)
}

/// Stores a schedule, in place of the one of its name. Returns whether there was none.
///
/// # Errors
/// If the document isn't valid or has another name, or the stored one is not as expected.
pub async fn put(
    node: &Node,
    name: &str,
    document: &[u8],
    expected: Expected,
    by: &Author,
) -> ServiceResult<(ScheduleView, bool)> {
    let new = new_schedule(node, document)?;
    if new.name != name {
        let detail = format!("name: {:?} is not the name in the path, {name:?}", new.name);
        return Err(ServiceError::invalid(detail));
    }
    let changed = || {
        let detail = format!("schedule {name} is not, or no longer, what If-Match says");
        ServiceError::from(Problem::new(ProblemKind::PreconditionFailed, detail))
    };
    for _ in 0..TRIES {
        let tag = match expected {
            Expected::Any => None,
            Expected::Exists => Some(node.store.schedule_view(name).await?.ok_or_else(changed)?.tag),
            Expected::Is(tag) => Some(tag.ok_or_else(changed)?),
        };
        let put = node.store.schedule_put(new.clone(), tag, by).await?;
        let result = match put {
            Put::Created(view) => (view, true),
            Put::Replaced(view) => (view, false),
            Put::Changed if matches!(expected, Expected::Is(_)) => return Err(changed()),
            Put::Changed => continue,
        };
        node.signals.schedules_changed();
        return Ok(result);
    }
    Err(busy(name))
}

fn new_schedule(node: &Node, document: &[u8]) -> ServiceResult<NewSchedule> {
    let (zones, now) = (node.zones.get(), node.store.now());
    let schedule = Schedule::from_json(document, &zones, now)?;
    let next = next(&schedule, &schedule.calendar(&zones)?, &zones, now);
    let document = schedule.document()?;
    let Schedule { name, digest, paused, .. } = schedule;
    Ok(NewSchedule { name, document, digest, paused, next })
}

/// When a schedule is due of which nothing before `now` matters.
fn next(schedule: &Schedule, calendar: &Calendar, zones: &Zones, now: Timestamp) -> NextOccurrence {
    let zone_data = matches!(schedule.timing, Timing::Cron { .. }).then(|| zones.info().version.clone());
    NextOccurrence { decided: now, at: calendar.next_after(now), zone_data }
}

async fn view(node: &Node, name: &str) -> ServiceResult<ScheduleView> {
    let missing = || ServiceError::not_found(format!("schedule {name} not found"));
    node.store.schedule_view(name).await?.ok_or_else(missing)
}

fn busy(name: &str) -> ServiceError {
    ServiceError::unavailable(format!("schedule {name} is being changed by others; try again"))
}

/// A schedule, with what became of its occurrences.
///
/// # Errors
/// If there is none of this name.
pub async fn show(node: &Node, name: &str) -> ServiceResult<Shown> {
    let view = view(node, name).await?;
    let occurrences = node.store.schedule_occurrences(view.tag.no, SHOWN).await?;
    let dropped = node.store.schedule_dropped(view.tag.no, SHOWN).await?;
    Ok(Shown { view, occurrences, dropped })
}

/// Pauses a schedule, or resumes it. The time while it was paused is not missed.
///
/// # Errors
/// If there is none of this name.
pub async fn set_paused(node: &Node, name: &str, paused: bool, by: &Author) -> ServiceResult<ScheduleView> {
    for _ in 0..TRIES {
        let view = view(node, name).await?;
        let next = if paused {
            None
        } else {
            let (zones, now) = (node.zones.get(), node.store.now());
            let schedule = Schedule::from_stored(&view.document)?;
            Some(next(&schedule, &schedule.calendar(&zones)?, &zones, now))
        };
        if let Some(view) = node.store.schedule_pause(view.tag, next, by).await? {
            node.signals.schedules_changed();
            return Ok(view);
        }
    }
    Err(busy(name))
}

/// Makes an occurrence now, whether the schedule is paused or its last action still runs. With the
/// same key again, it is the same occurrence.
///
/// # Errors
/// If there is none of this name, or its action is not valid now.
pub async fn trigger(node: &Node, name: &str, key: Option<String>, by: &Author) -> ServiceResult<Uuid> {
    for _ in 0..TRIES {
        let view = view(node, name).await?;
        let (zones, now) = (node.zones.get(), node.store.now());
        let schedule = Schedule::from_stored(&view.document)?;
        let lasts = schedule.lifetime(&schedule.calendar(&zones)?, now);
        let mut action = schedule.new_action(now, lasts, now)?;
        action.idempotency_key = key.clone();
        match node.store.schedule_trigger(view.tag, action, by).await? {
            Some(Accepted::Stored { id, .. }) => {
                node.signals.actions_submitted();
                return Ok(id);
            }
            Some(Accepted::Conflict | Accepted::KeyMismatch) => {
                let detail = "Idempotency-Key: it was used for another document";
                return Err(Problem::new(ProblemKind::IdempotencyMismatch, detail).into());
            }
            None => {}
        }
    }
    Err(busy(name))
}

/// Removes a schedule. Its actions stay.
///
/// # Errors
/// If there is none of this name.
pub async fn remove(node: &Node, name: &str, by: &Author) -> ServiceResult<()> {
    if node.store.schedule_remove(name, by).await? {
        return Ok(());
    }
    Err(ServiceError::not_found(format!("schedule {name} not found")))
}

/// The next occurrences of a document that is not stored, after a time or after now.
///
/// # Errors
/// If the document isn't valid.
pub fn preview(node: &Node, document: &[u8], after: Option<Timestamp>, count: usize) -> ServiceResult<Preview> {
    let (zones, now) = (node.zones.get(), node.store.now());
    upcoming(&Schedule::from_json(document, &zones, now)?, &zones, after.unwrap_or(now), count)
}

/// The next occurrences of a stored schedule, after a time or after now, as if it were not paused.
///
/// # Errors
/// If there is none of this name.
pub async fn preview_stored(node: &Node, name: &str, after: Option<Timestamp>, count: usize) -> ServiceResult<Preview> {
    let view = view(node, name).await?;
    let schedule = Schedule::from_stored(&view.document)?;
    upcoming(&schedule, &node.zones.get(), after.unwrap_or_else(|| node.store.now()), count)
}

fn upcoming(schedule: &Schedule, zones: &Zones, after: Timestamp, count: usize) -> ServiceResult<Preview> {
    let occurrences = schedule.calendar(zones)?.upcoming(after, count);
    Ok(Preview { occurrences, tzdata: zones.info().clone() })
}
