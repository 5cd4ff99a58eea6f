//! The document that a user writes: its keys, its defaults, and its limits.

use super::calendar::Calendar;
use super::timing::{Misfire, MisfirePolicy, OnGap, OnRepeat, Overlap, Timing};
use super::zones::Zones;
use crate::domain::action::{self, NewAction};
use crate::domain::agent::check_name;
use crate::domain::audit::Author;
use crate::domain::json;
use crate::domain::problem::{Problem, ProblemKind, check_is_object};
use crate::domain::text::bytes_without_mark;
use crate::domain::time::{Span, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::time::Duration;
use utoipa::ToSchema;
use uuid::Uuid;

/// The largest document, in bytes.
pub const MAX_DOCUMENT: usize = 1024 * 1024;
/// The shortest time between two occurrences of `every`, and the shortest `grace`.
const SHORTEST: Span = Span::secs(1);
/// Maximum of each duration. With longer ones, times would no longer fit RFC 3339.
const LONGEST: Span = Span::days(100 * 366);
/// Maximum of `misfire.limit`.
const MAX_LIMIT: i64 = 1_000;
/// The lifetime of an action when no other occurrence comes before.
const LIFETIME: Duration = Duration::from_secs(86_400);
/// No schedule has this name, since a call has its path.
const RESERVED: &str = "preview";
/// The time zone of a cron pattern without one.
const UTC: &str = "UTC";

/// What to do with missed occurrences.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Misfire)]
struct MisfireDocument {
    /// Which missed occurrences are made: none, the newest, or the newest `limit`.
    #[serde(default)]
    policy: MisfirePolicy,
    /// An occurrence is missed when it isn't made within this time; 60s by default.
    #[serde(default)]
    grace: Option<Span>,
    /// Missed ones that are older are dropped; 6h by default.
    #[serde(default)]
    max_age: Option<Span>,
    /// How many `all` makes at most; 100 by default.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
}

/// A schedule document as it is read. It has exactly the keys of the interface.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ScheduleDocument)]
pub(crate) struct Document {
    /// Its name: 1 to 128 of A-Z a-z 0-9 . _ -
    #[schema(min_length = 1, max_length = 128, example = "nightly-scan")]
    name: String,
    /// A cron pattern of local times: five fields, or six with seconds first. Either this, or
    /// `every`, or `at`.
    #[serde(default)]
    #[schema(example = "0 2 * * *")]
    cron: Option<String>,
    /// The IANA time zone of `cron`; UTC by default.
    #[serde(default)]
    #[schema(example = "Europe/Stockholm")]
    timezone: Option<String>,
    /// The elapsed time between two occurrences, at least a second. The first one is at `starts_at`;
    /// without it, after this time from now.
    #[serde(default)]
    every: Option<Span>,
    /// The time of the only occurrence.
    #[serde(default)]
    at: Option<Timestamp>,
    /// What to do with local times that a clock change skips.
    #[serde(default)]
    on_gap: Option<OnGap>,
    /// Which instants of local times that a clock change repeats count.
    #[serde(default)]
    on_repeat: Option<OnRepeat>,
    /// What to do with missed occurrences.
    #[serde(default, deserialize_with = "json::optional_object")]
    #[schema(value_type = Option<MisfireDocument>)]
    misfire: Option<MisfireDocument>,
    /// What to do when the action of the previous occurrence still runs.
    #[serde(default)]
    overlap: Overlap,
    /// No occurrence is before this time.
    #[serde(default)]
    starts_at: Option<Timestamp>,
    /// No occurrence is at this time or later.
    #[serde(default)]
    ends_at: Option<Timestamp>,
    /// Whether it makes no occurrences. Without it, a new schedule isn't paused, and one that is
    /// replaced stays as it is.
    #[serde(default)]
    paused: Option<bool>,
    /// What each occurrence does: an action document without `id`, `valid_from`, `delay` and
    /// `expires_at`. By default, an action expires at the next occurrence, after 24 h at most.
    #[serde(deserialize_with = "json::object")]
    action: action::Document,
}

/// The part of the document that is kept as it was written.
#[derive(Deserialize)]
struct Verbatim {
    action: Box<RawValue>,
}

/// A [`Misfire`] as the API shows it.
#[derive(Serialize)]
struct ShownMisfire {
    policy: MisfirePolicy,
    grace: Span,
    max_age: Span,
    limit: usize,
}

/// The document with its defaults filled in, as the API shows it. `paused` is kept apart.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    every: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_gap: Option<OnGap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_repeat: Option<OnRepeat>,
    misfire: ShownMisfire,
    overlap: Overlap,
    #[serde(skip_serializing_if = "Option::is_none")]
    starts_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_at: Option<Timestamp>,
    action: &'a RawValue,
}

/// A valid schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// When its occurrences are.
    pub timing: Timing,
    /// No occurrence is before.
    pub starts_at: Option<Timestamp>,
    /// No occurrence is at this time or later.
    pub ends_at: Option<Timestamp>,
    /// About missed occurrences.
    pub misfire: Misfire,
    /// About occurrences whose predecessor still runs.
    pub overlap: Overlap,
    /// Whether it makes none, if the document says so.
    pub paused: Option<bool>,
    /// Whether the document says when it starts.
    is_start_given: bool,
    /// The action's document, as it was written.
    action: Box<RawValue>,
    /// The action's spread.
    spread: Span,
    /// SHA-256 of the document with sorted keys.
    pub digest: Vec<u8>,
}

fn invalid(key: &str, what: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::InvalidDocument, format!("{key}: {what}"))
}

impl Schedule {
    /// Reads and checks a schedule document. `now` is the store's time.
    ///
    /// # Errors
    /// A problem that names the line and column, or the key, of the mistake. One that never takes
    /// place after `now` is refused too.
    pub fn from_json(json: &[u8], zones: &Zones, now: Timestamp) -> Result<Self, Problem> {
        let json = bytes_without_mark(json);
        if json.len() > MAX_DOCUMENT {
            let detail = format!("a schedule of {} bytes is larger than {MAX_DOCUMENT} bytes", json.len());
            return Err(Problem::new(ProblemKind::TooLarge, detail));
        }
        let digest = Self::digest_of(json)?;
        check_is_object(json)?;
        let schedule = Self::read(json::check(json)?, digest, Some(now))?;
        let calendar = schedule.calendar(zones)?;
        let Some(first) = calendar.next_after(now) else {
            return Err(match &schedule.timing {
                Timing::At(at) if *at <= now => invalid("at", format!("{at} is in the past")),
                _ if schedule.ends_at.is_some() => invalid("ends_at", "there is no occurrence before it"),
                _ => invalid("cron", "it never takes place in the next 60 years"),
            });
        };
        schedule.new_action(first, schedule.lifetime(&calendar, now), now)?;
        Ok(schedule)
    }

    /// What identifies the content of a document: SHA-256 of it with sorted keys.
    ///
    /// # Errors
    /// If it isn't JSON.
    pub fn digest_of(json: &[u8]) -> Result<Vec<u8>, Problem> {
        Ok(Sha256::digest(json::canonical(bytes_without_mark(json))?).to_vec())
    }

    /// Keeps the phase of the schedule that this one replaces: unless its document says when it
    /// starts, the same interval goes on.
    pub fn keep_phase(&mut self, replaced: &Self) {
        if let (Timing::Every { from, every }, Timing::Every { from: old, every: before }) =
            (&mut self.timing, &replaced.timing)
            && !self.is_start_given
            && every == before
        {
            *from = *old;
        }
    }

    /// Reads a document that is stored.
    ///
    /// # Errors
    /// If a later version of the document's rules refuses it.
    pub fn from_stored(document: &str) -> Result<Self, Problem> {
        Self::read(document, Vec::new(), None)
    }

    /// Reads a document; `now` is filled in for a new one.
    fn read(json: &str, digest: Vec<u8>, now: Option<Timestamp>) -> Result<Self, Problem> {
        let document: Document = json::from_text(json)?;
        let Verbatim { action } = serde_json::from_str(json).map_err(|error| invalid("action", error))?;
        document.check(action, digest, now)
    }

    /// Its times.
    ///
    /// # Errors
    /// If its zone is unknown or its pattern can't be read.
    pub fn calendar(&self, zones: &Zones) -> Result<Calendar, Problem> {
        Calendar::new(&self.timing, self.starts_at, self.ends_at, zones).map_err(|(key, error)| invalid(key, error))
    }

    /// How long an action lasts that is made now, unless its document says so: until the next
    /// occurrence, 24 h at most, and over its spread in any case.
    pub fn lifetime(&self, calendar: &Calendar, now: Timestamp) -> Span {
        let until_next = calendar.next_after(now).map_or(LIFETIME, |next| next.since(now)).min(LIFETIME);
        Span(until_next.max(self.spread.0))
    }

    /// The action of an occurrence that is made now. It lasts for `lasts` unless its document says
    /// how long.
    ///
    /// # Errors
    /// If its document isn't valid now.
    pub fn new_action(&self, at: Timestamp, lasts: Span, now: Timestamp) -> Result<NewAction, Problem> {
        let in_action = |problem: Problem| Problem { detail: format!("action.{}", problem.detail), ..problem };
        let json = self.action.get().as_bytes();
        let mut action = NewAction::from_json_lasting(json, Uuid::now_v7(), now, lasts).map_err(in_action)?;
        action.author = Author::server(&format!("schedule:{}", self.name));
        action.scheduled_for = Some(at);
        Ok(action)
    }

    /// The document with its defaults filled in, as it is stored and shown.
    ///
    /// # Errors
    /// If it can't be written as JSON.
    pub fn document(&self) -> Result<String, Problem> {
        let Misfire { policy, grace, max_age, limit } = self.misfire;
        let mut shown = Shown {
            name: &self.name,
            cron: None,
            timezone: None,
            every: None,
            at: None,
            on_gap: None,
            on_repeat: None,
            misfire: ShownMisfire { policy, grace, max_age, limit },
            overlap: self.overlap,
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            action: &self.action,
        };
        match &self.timing {
            Timing::Cron { pattern, timezone, on_gap, on_repeat } => {
                (shown.cron, shown.timezone) = (Some(pattern.as_str()), Some(timezone.as_str()));
                (shown.on_gap, shown.on_repeat) = (Some(*on_gap), Some(*on_repeat));
            }
            Timing::Every { from, every } => (shown.starts_at, shown.every) = (Some(*from), Some(*every)),
            Timing::At(at) => shown.at = Some(*at),
        }
        serde_json::to_string(&shown).map_err(|error| invalid("action", error))
    }
}

impl Document {
    fn check(self, action: Box<RawValue>, digest: Vec<u8>, now: Option<Timestamp>) -> Result<Schedule, Problem> {
        check_name(&self.name)?;
        if self.name == RESERVED {
            return Err(invalid("name", format!("{RESERVED:?} is a path of the API")));
        }
        let timing = self.timing(now)?;
        if let (Some(start), Some(end)) = (self.starts_at, self.ends_at)
            && end <= start
        {
            return Err(invalid("ends_at", format!("{end} is not after starts_at, {start}")));
        }
        if let Some(key) = self.action.given_time() {
            let what = "a schedule's action can't have it: each occurrence gets its own";
            return Err(invalid(&format!("action.{key}"), what));
        }
        Ok(Schedule {
            name: self.name,
            timing,
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            misfire: self.misfire.unwrap_or_default().check()?,
            overlap: self.overlap,
            paused: self.paused,
            is_start_given: self.starts_at.is_some(),
            spread: self.action.spread(),
            action,
            digest,
        })
    }

    fn timing(&self, now: Option<Timestamp>) -> Result<Timing, Problem> {
        let given = [("cron", self.cron.is_some()), ("every", self.every.is_some()), ("at", self.at.is_some())];
        let given: Vec<&str> = given.into_iter().filter(|(_, is_given)| *is_given).map(|(key, _)| key).collect();
        if let [_, second, ..] = given.as_slice() {
            return Err(invalid(
                second,
                format!("{} is given too; only one of cron, every and at is allowed", given[0]),
            ));
        }
        if self.cron.is_none() {
            let of_cron = [
                ("timezone", self.timezone.is_some()),
                ("on_gap", self.on_gap.is_some()),
                ("on_repeat", self.on_repeat.is_some()),
            ];
            if let Some((key, _)) = of_cron.into_iter().find(|(_, is_given)| *is_given) {
                return Err(invalid(key, "it is for cron alone"));
            }
        }
        if let Some(pattern) = &self.cron {
            return Ok(Timing::Cron {
                pattern: pattern.clone(),
                timezone: self.timezone.clone().unwrap_or_else(|| UTC.to_owned()),
                on_gap: self.on_gap.unwrap_or_default(),
                on_repeat: self.on_repeat.unwrap_or_default(),
            });
        }
        if let Some(every) = self.every {
            if every < SHORTEST || every > LONGEST {
                return Err(invalid("every", format!("{every} is not between {SHORTEST} and {LONGEST}")));
            }
            let next = now.map(|now| now.plus(every.0));
            let from = self.starts_at.or(next).ok_or_else(|| invalid("starts_at", "it is missing"))?;
            return Ok(Timing::Every { from, every });
        }
        match self.at {
            Some(at) => Ok(Timing::At(at)),
            None => Err(Problem::new(ProblemKind::InvalidDocument, "one of cron, every and at is missing")),
        }
    }
}

impl MisfireDocument {
    fn check(self) -> Result<Misfire, Problem> {
        let default = Misfire::default();
        let grace = self.grace.unwrap_or(default.grace);
        if grace < SHORTEST || grace > LONGEST {
            return Err(invalid("misfire.grace", format!("{grace} is not between {SHORTEST} and {LONGEST}")));
        }
        let max_age = self.max_age.unwrap_or(default.max_age);
        if max_age > LONGEST {
            return Err(invalid("misfire.max_age", format!("{max_age} is longer than {LONGEST}")));
        }
        let limit = match self.limit {
            None => default.limit,
            Some(limit) => usize::try_from(limit)
                .ok()
                .filter(|_| (1..=MAX_LIMIT).contains(&limit))
                .ok_or_else(|| invalid("misfire.limit", format!("{limit} is not between 1 and {MAX_LIMIT}")))?,
        };
        Ok(Misfire { policy: self.policy, grace, max_age, limit })
    }
}
