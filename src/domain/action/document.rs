//! The document that a user writes: its keys, its defaults, and its limits.

use super::new_action::NewAction;
use super::state::Membership;
use crate::domain::audit::Author;
use crate::domain::json::{self, JsonObject};
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::protocol::{MAX_FRAME, Operation};
use crate::domain::target::Target;
use crate::domain::text::{bytes_without_mark, has_nul};
use crate::domain::time::{Span, Timestamp};
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::time::Duration;
use utoipa::ToSchema;
use uuid::Uuid;

/// Maximum length of an action's name, in characters.
pub const MAX_NAME: usize = 2048;
/// Maximum number of operations of an action.
pub const MAX_OPERATIONS: usize = 64;
/// Maximum size of the operations as JSON, in bytes: a command must fit into one frame.
pub const MAX_OPERATIONS_JSON: usize = MAX_FRAME - 32 * 1024;

const DEFAULT_EXPIRES_AFTER: Span = Span::days(1);
const DEFAULT_TIMEOUT: Span = Span::secs(300);
/// Maximum of each duration in a document. With longer ones, times would no longer fit RFC 3339.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// A document's `id`: a UUID, or the number that MIG writes, which is ignored.
#[derive(Clone, Copy, Debug, Default)]
struct DocumentId {
    uuid: Option<Uuid>,
    is_given: bool,
}

impl<'de> Deserialize<'de> for DocumentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self::default()),
            Value::Number(_) => Ok(Self { uuid: None, is_given: true }),
            Value::String(text) => Uuid::parse_str(&text)
                .map(|id| Self { uuid: Some(id), is_given: true })
                .map_err(|error| D::Error::custom(format!("\"{text}\" is not a UUID: {error}"))),
            other => Err(D::Error::custom(format!("a UUID is expected, not {other}"))),
        }
    }
}

/// An action document as it is read. It has exactly the keys of the interface.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ActionDocument)]
pub(crate) struct Document {
    /// Submitting the same id again returns the same action.
    #[serde(default)]
    #[schema(value_type = Option<Uuid>)]
    id: DocumentId,
    /// A name for people.
    #[schema(min_length = 1, max_length = 2048, example = "uptime of the web tier")]
    name: String,
    /// A target expression: the agents of the action.
    #[schema(min_length = 1, example = "labels.role = 'web'")]
    target: String,
    /// Run in order until one fails.
    #[serde(deserialize_with = "json::objects")]
    #[schema(min_items = 1, max_items = 64)]
    operations: Vec<Operation>,
    /// Nothing is delivered before this time; by default, now.
    #[serde(default, alias = "validfrom")]
    valid_from: Option<Timestamp>,
    /// Instead of `valid_from`: the time from now.
    #[serde(default)]
    delay: Option<Span>,
    /// Nothing is delivered from this time on.
    #[serde(default, alias = "expireafter")]
    expires_at: Option<Timestamp>,
    /// Instead of `expires_at`: the time from `valid_from`.
    #[serde(default)]
    expires_after: Option<Span>,
    /// Due times are spread evenly over this time.
    #[serde(default)]
    spread: Option<Span>,
    /// Timeout of a run, counted from `received`.
    #[serde(default)]
    timeout: Option<Span>,
    /// Failed delivery attempts after which a command is undeliverable.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000)]
    max_deliveries: Option<i64>,
    /// Maximum number of runs of a command.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000)]
    max_runs: Option<i64>,
    /// Whether agents that match later belong to it.
    #[serde(default)]
    membership: Membership,
    /// Among the commands that wait for one agent, the highest priority is delivered first.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    priority: i64,
    /// Stored and shown, not used.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    description: Option<JsonObject>,
    /// Stored and shown, not used.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    threat: Option<JsonObject>,
    // MIG's own bookkeeping, accepted and ignored.
    #[serde(default, rename = "syntaxversion")]
    #[schema(value_type = Option<Value>)]
    _syntaxversion: IgnoredAny,
    #[serde(default, rename = "pgpsignatures")]
    #[schema(value_type = Option<Value>)]
    _pgpsignatures: IgnoredAny,
    #[serde(default, rename = "investigators")]
    #[schema(value_type = Option<Value>)]
    _investigators: IgnoredAny,
    #[serde(default, rename = "counters")]
    #[schema(value_type = Option<Value>)]
    _counters: IgnoredAny,
    #[serde(default, rename = "status")]
    #[schema(value_type = Option<Value>)]
    _status: IgnoredAny,
    #[serde(default, rename = "starttime")]
    #[schema(value_type = Option<Value>)]
    _starttime: IgnoredAny,
    #[serde(default, rename = "finishtime")]
    #[schema(value_type = Option<Value>)]
    _finishtime: IgnoredAny,
    #[serde(default, rename = "lastupdatetime")]
    #[schema(value_type = Option<Value>)]
    _lastupdatetime: IgnoredAny,
}

/// The document with its defaults filled in, as the API shows it.
#[derive(Serialize)]
struct Shown<'a> {
    id: Uuid,
    name: &'a str,
    target: &'a str,
    operations: &'a [Operation],
    valid_from: Timestamp,
    expires_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    spread: Option<Span>,
    timeout: Span,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_deliveries: Option<i32>,
    max_runs: i32,
    membership: Membership,
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<JsonObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threat: Option<JsonObject>,
}

impl NewAction {
    /// Reads and checks an action document. `id` is used if the document has none; `now` is the
    /// store's time.
    ///
    /// # Errors
    /// A problem that names the line and column, or the key, of the mistake.
    pub fn from_json(json: &[u8], id: Uuid, now: Timestamp) -> Result<Self, Problem> {
        Self::from_json_lasting(json, id, now, DEFAULT_EXPIRES_AFTER)
    }

    /// The same; without `expires_after` it lasts this long.
    ///
    /// # Errors
    /// As [`NewAction::from_json`].
    pub fn from_json_lasting(json: &[u8], id: Uuid, now: Timestamp, lasts: Span) -> Result<Self, Problem> {
        let document: Document = json::from_object(json)?;
        document.check(id, now, lasts, Sha256::digest(json::canonical(bytes_without_mark(json))?).to_vec())
    }
}

fn invalid(key: &str, what: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::InvalidDocument, format!("{key}: {what}"))
}

fn in_range(key: &str, value: i64, least: i64, most: i64) -> Result<i32, Problem> {
    i32::try_from(value)
        .ok()
        .filter(|_| (least..=most).contains(&value))
        .ok_or_else(|| invalid(key, format!("{value} is not between {least} and {most}")))
}

impl Document {
    /// The first of the keys that give it an identity or a time of its own, if there is one.
    pub(crate) fn given_time(&self) -> Option<&'static str> {
        [
            ("id", self.id.is_given),
            ("valid_from", self.valid_from.is_some()),
            ("delay", self.delay.is_some()),
            ("expires_at", self.expires_at.is_some()),
        ]
        .into_iter()
        .find_map(|(key, is_given)| is_given.then_some(key))
    }

    /// The time over which due times are spread.
    pub(crate) fn spread(&self) -> Span {
        self.spread.unwrap_or_default()
    }

    fn check(self, id: Uuid, now: Timestamp, lasts: Span, digest: Vec<u8>) -> Result<NewAction, Problem> {
        let length = self.name.chars().count();
        if length == 0 || length > MAX_NAME {
            return Err(invalid("name", format!("{length} characters, but 1 to {MAX_NAME} are allowed")));
        }
        if has_nul(&self.name) {
            return Err(invalid("name", "holds a NUL character"));
        }
        Target::parse(&self.target).map_err(|error| invalid("target", error))?;
        if self.operations.is_empty() || self.operations.len() > MAX_OPERATIONS {
            let given = self.operations.len();
            return Err(invalid("operations", format!("{given} given, but 1 to {MAX_OPERATIONS} are allowed")));
        }
        for (index, operation) in self.operations.iter().enumerate() {
            let module = &operation.module;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if module.is_empty() || module.len() > 128 || !module.chars().all(plain) {
                let key = format!("operations[{index}].module");
                return Err(invalid(&key, format!("{module:?} is not 1 to 128 of A-Z a-z 0-9 . _ -")));
            }
        }
        for (key, span) in [
            ("delay", self.delay),
            ("expires_after", self.expires_after),
            ("spread", self.spread),
            ("timeout", self.timeout),
        ] {
            if span.is_some_and(|span| span.0 > LONGEST) {
                return Err(invalid(key, "longer than 100 years"));
            }
        }
        let valid_from = match (self.valid_from, self.delay) {
            (Some(_), Some(_)) => return Err(invalid("delay", "valid_from is given too; only one of them is allowed")),
            (Some(time), None) => time,
            (None, Some(delay)) => now.plus(delay.0),
            (None, None) => now,
        };
        let expires_at = match (self.expires_at, self.expires_after) {
            (Some(_), Some(_)) => {
                return Err(invalid("expires_after", "expires_at is given too; only one of them is allowed"));
            }
            (Some(time), None) => time,
            (None, span) => valid_from.plus(span.unwrap_or(lasts).0),
        };
        if expires_at <= now {
            return Err(invalid("expires_at", format!("{expires_at} is in the past; it is {now}")));
        }
        if expires_at <= valid_from {
            return Err(invalid("expires_at", format!("{expires_at} is not after valid_from, {valid_from}")));
        }
        if let Some(spread) = self.spread
            && valid_from.plus(spread.0) > expires_at
        {
            return Err(invalid(
                "spread",
                format!(
                    "{spread} is longer than the {} from valid_from to expires_at",
                    Span(expires_at.since(valid_from))
                ),
            ));
        }
        let timeout = self.timeout.unwrap_or(DEFAULT_TIMEOUT);
        if timeout.0 < Duration::from_millis(1) {
            return Err(invalid("timeout", "must be longer than nothing"));
        }
        let max_deliveries = self.max_deliveries.map(|n| in_range("max_deliveries", n, 1, 1_000_000)).transpose()?;
        let max_runs = in_range("max_runs", self.max_runs.unwrap_or(1), 1, 1_000)?;
        let priority = in_range("priority", self.priority, -100, 100)?;
        let id = self.id.uuid.unwrap_or(id);
        let spread = self.spread.unwrap_or_default();
        let json = |what: serde_json::Result<String>| {
            what.map_err(|error| {
                Problem::new(ProblemKind::InvalidDocument, format!("cannot be written again: {error}"))
            })
        };
        let operations = json(serde_json::to_string(&self.operations))?;
        if operations.len() > MAX_OPERATIONS_JSON {
            let length = operations.len();
            return Err(invalid(
                "operations",
                format!("{length} bytes as JSON, but {MAX_OPERATIONS_JSON} fit into a frame"),
            ));
        }
        let document = json(serde_json::to_string(&Shown {
            id,
            name: &self.name,
            target: &self.target,
            operations: &self.operations,
            valid_from,
            expires_at,
            spread: self.spread,
            timeout,
            max_deliveries,
            max_runs,
            membership: self.membership,
            priority,
            description: self.description,
            threat: self.threat,
        }))?;
        Ok(NewAction {
            id,
            idempotency_key: None,
            scheduled_for: None,
            retry_of: None,
            author: Author::server("server"),
            document,
            digest,
            operations,
            name: self.name,
            target: self.target,
            valid_from,
            expires_at,
            spread,
            timeout,
            max_deliveries,
            max_runs,
            membership: self.membership,
            priority,
        })
    }
}
