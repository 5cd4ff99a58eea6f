//! Create, change, pause, trigger, preview and remove schedules.

use super::error::{ServiceError, ServiceResult};
use crate::context::Node;
use crate::domain::audit::Author;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::schedule::{Calendar, Dropped, Overlap, Schedule, Timing, Upcoming, ZoneInfo, Zones};
use crate::domain::time::Timestamp;
use crate::store::{Accepted, NewSchedule, NextOccurrence, OccurrenceView, ScheduleTag, ScheduleView, Triggered};
use sha2::{Digest, Sha256};
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

/// What a caller expects of the schedule (`If-Match`, `If-None-Match`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: a schedule of this name may exist or not.
    Any,
    /// There is none of this name.
    Absent,
    /// There is a schedule of this name.
    Exists,
    /// There is one, and its state is this one; `None` is no state that a schedule ever has.
    Is(Option<ScheduleTag>),
}

impl Expected {
    /// Checks what is stored.
    fn check(self, name: &str, stored: Option<&ScheduleView>) -> ServiceResult<()> {
        let is_met = match self {
            Self::Any => true,
            Self::Absent => stored.is_none(),
            Self::Exists => stored.is_some(),
            Self::Is(tag) => tag.is_some() && tag == stored.map(|view| view.tag),
        };
        if is_met {
            return Ok(());
        }
        let detail = format!("schedule {name} is not what If-Match or If-None-Match says");
        Err(Problem::new(ProblemKind::PreconditionFailed, detail).into())
    }
}

/// Stores a new schedule.
///
/// # Errors
/// If the document isn't valid, or the name is taken.
pub async fn create(node: &Node, document: &[u8], by: &Author) -> ServiceResult<ScheduleView> {
    let new = new_schedule(node, document, None)?;
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
pub async fn put(node: &Node, name: &str, document: &[u8], expected: Expected, by: &Author) -> ServiceResult<bool> {
    let digest = Schedule::digest_of(document)?;
    for _ in 0..TRIES {
        let stored = node.store.schedule_view(name).await?;
        let new = new_schedule(node, document, stored.as_ref());
        // Of one that is stored already, the only occurrence may be over.
        let is_known = stored.as_ref().is_some_and(|stored| stored.digest == digest);
        let new = match new {
            Err(error) if !is_known => return Err(error),
            new => new.ok(),
        };
        if let Some(new) = new.as_ref().filter(|new| new.name != name) {
            let detail = format!("name: {:?} is not the name in the path, {name:?}", new.name);
            return Err(ServiceError::invalid(detail));
        }
        expected.check(name, stored.as_ref())?;
        let Some(new) = new else { return Ok(false) };
        let is_new = match stored {
            None => node.store.schedule_insert(new, by).await?.map(|_| true),
            Some(stored) => node.store.schedule_replace(stored.tag, new, by).await?.map(|_| false),
        };
        if let Some(is_new) = is_new {
            node.signals.schedules_changed();
            return Ok(is_new);
        }
    }
    Err(busy(name))
}

/// A schedule to be stored, perhaps in place of another one.
fn new_schedule(node: &Node, document: &[u8], replaced: Option<&ScheduleView>) -> ServiceResult<NewSchedule> {
    let (zones, now) = (node.zones.get(), node.store.now());
    let mut schedule = Schedule::from_json(document, &zones, now)?;
    if let Some(replaced) = replaced
        && let Ok(replaced) = Schedule::from_stored(&replaced.document)
    {
        schedule.keep_phase(&replaced);
    }
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
pub async fn set_paused(node: &Node, name: &str, paused: bool, expected: Expected, by: &Author) -> ServiceResult<()> {
    for _ in 0..TRIES {
        let view = view(node, name).await?;
        expected.check(name, Some(&view))?;
        let next = if paused {
            None
        } else {
            let (zones, now) = (node.zones.get(), node.store.now());
            let schedule = Schedule::from_stored(&view.document)?;
            Some(next(&schedule, &schedule.calendar(&zones)?, &zones, now))
        };
        if node.store.schedule_pause(view.tag, next, by).await?.is_some() {
            node.signals.schedules_changed();
            return Ok(());
        }
    }
    Err(busy(name))
}

/// Makes an occurrence now, whether the schedule is paused or its last action still runs. With the
/// same key again, it is the same occurrence.
///
/// # Errors
/// If there is none of this name, or its action is not valid now.
pub async fn trigger(
    node: &Node,
    name: &str,
    key: Option<String>,
    expected: Expected,
    by: &Author,
) -> ServiceResult<Uuid> {
    for _ in 0..TRIES {
        let view = view(node, name).await?;
        expected.check(name, Some(&view))?;
        let (zones, now) = (node.zones.get(), node.store.now());
        let schedule = Schedule::from_stored(&view.document)?;
        let lasts = schedule.lifetime(&schedule.calendar(&zones)?, now);
        let mut action = schedule.new_action(now, lasts, now)?;
        // The same key is for the same schedule.
        action.digest =
            Sha256::new().chain_update(view.tag.no.to_be_bytes()).chain_update(&action.digest).finalize().to_vec();
        action.idempotency_key = key.clone();
        let cancel_previous = schedule.overlap == Overlap::CancelPrevious;
        let Some(Triggered { accepted, cancelled }) =
            node.store.schedule_trigger(view.tag, action, cancel_previous, by).await?
        else {
            continue;
        };
        if let Some((no, id)) = cancelled {
            node.signals.action_cancelled(no, id);
        }
        return match accepted {
            Accepted::Stored { id, .. } => {
                node.signals.actions_submitted();
                Ok(id)
            }
            Accepted::Conflict | Accepted::KeyMismatch => {
                let detail = "Idempotency-Key: it was used for another request";
                Err(Problem::new(ProblemKind::IdempotencyMismatch, detail).into())
            }
        };
    }
    Err(busy(name))
}

/// Removes a schedule. Its actions stay.
///
/// # Errors
/// If there is none of this name.
pub async fn remove(node: &Node, name: &str, expected: Expected, by: &Author) -> ServiceResult<()> {
    for _ in 0..TRIES {
        let view = view(node, name).await?;
        expected.check(name, Some(&view))?;
        if node.store.schedule_remove(view.tag, by).await? {
            return Ok(());
        }
    }
    Err(busy(name))
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
