//! The meaning of a target, evaluated on one agent in memory: the reference for the stores' SQL.

use super::{Column, CompareOp, Number, Target, Value};
use crate::domain::command::CommandState;
use crate::domain::json::{JsonObject, text_at};
use crate::domain::time::Timestamp;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use uuid::Uuid;

/// All attributes of one agent that a target can use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentRecord {
    /// Its unique name.
    pub name: String,
    /// Its transport.
    pub transport: String,
    /// Whether `status` is `online`.
    pub online: bool,
    /// Disabled agents never match.
    pub disabled: bool,
    /// The agent program's version, once reported.
    pub version: Option<String>,
    /// The last contact; NULL before the first.
    pub last_seen: Option<Timestamp>,
    /// When it was enrolled or added.
    pub enrolled_at: Timestamp,
    /// Labels, set by operators.
    pub labels: BTreeMap<String, String>,
    /// Facts, reported by the agent.
    pub facts: JsonObject,
    /// The newest metadata values, as JSON.
    pub metadata: BTreeMap<String, String>,
    /// The states of its commands, by the actions' public ids.
    pub commands: BTreeMap<Uuid, CommandState>,
}

/// A column's value.
enum Datum<'a> {
    Text(Cow<'a, str>),
    Time(Timestamp),
}

impl Target {
    /// Whether an action with this target includes this agent: it isn't disabled, and the condition
    /// is true.
    pub fn matches(&self, agent: &AgentRecord, now: Timestamp) -> bool {
        !agent.disabled && self.evaluate(agent, now) == Some(true)
    }

    /// Evaluates the condition in SQL's three-valued logic; `None` is unknown.
    pub fn evaluate(&self, agent: &AgentRecord, now: Timestamp) -> Option<bool> {
        match self {
            Self::All => Some(true),
            Self::Not(inner) => inner.evaluate(agent, now).map(|known| !known),
            Self::And(parts) => all(parts.iter().map(|part| part.evaluate(agent, now))),
            Self::Or(parts) => any(parts.iter().map(|part| part.evaluate(agent, now))),
            Self::Compare { column, op, value } => compare(&agent.datum(column)?, *op, value, now),
            Self::In { column, values, negated } => {
                let datum = agent.datum(column)?;
                let found = any(values.iter().map(|value| compare(&datum, CompareOp::Equal, value, now)))?;
                Some(found != *negated)
            }
            Self::Like { column, pattern, ignore_case, negated } => match agent.datum(column)? {
                Datum::Text(text) => Some(like(&text, pattern, *ignore_case) != *negated),
                Datum::Time(_) => None,
            },
            Self::Between { column, low, high, negated } => {
                let datum = agent.datum(column)?;
                let least = compare(&datum, CompareOp::GreaterOrEqual, low, now);
                let most = compare(&datum, CompareOp::LessOrEqual, high, now);
                Some(all([least, most].into_iter())? != *negated)
            }
            Self::IsNull { column, negated } => Some(agent.datum(column).is_none() != *negated),
            Self::ActionState { action, state } => Some(agent.commands.get(action) == Some(state)),
        }
    }
}

impl AgentRecord {
    /// `None` is NULL.
    fn datum(&self, column: &Column) -> Option<Datum<'_>> {
        let text = |text: &'_ str| Some(Cow::Owned(text.to_owned()));
        let found: Option<Cow<'_, str>> = match column {
            Column::LastSeen => return self.last_seen.map(Datum::Time),
            Column::EnrolledAt => return Some(Datum::Time(self.enrolled_at)),
            Column::Name => Some(Cow::Borrowed(&self.name)),
            Column::Transport => Some(Cow::Borrowed(&self.transport)),
            Column::Status => text(if self.online { "online" } else { "offline" }),
            Column::Version => self.version.as_deref().map(Cow::Borrowed),
            Column::Label(key) => self.labels.get(key).map(|value| Cow::Borrowed(value.as_str())),
            Column::Fact(path) => self.facts.text_at(path),
            Column::Metadata(key) => self.metadata.get(key).and_then(|value| text_at(value, &[])),
            Column::QueueLoc => {
                self.facts.text_at(&["os".to_owned()]).map(|system| Cow::Owned(format!("{system}.{}", self.name)))
            }
        };
        found.map(Datum::Text)
    }
}

fn compare(datum: &Datum<'_>, op: CompareOp, value: &Value, now: Timestamp) -> Option<bool> {
    let order = match (datum, value) {
        (Datum::Text(text), Value::Text(other)) => text.as_bytes().cmp(other.as_bytes()),
        (Datum::Text(text), Value::Number(number)) => Number::of(text)?.cmp(number),
        (Datum::Time(time), Value::Moment(moment)) => time.cmp(&moment.when(now)),
        // No expression is parsed into these.
        (Datum::Text(_), Value::Moment(_)) | (Datum::Time(_), Value::Text(_) | Value::Number(_)) => return None,
    };
    Some(match op {
        CompareOp::Equal => order == Ordering::Equal,
        CompareOp::NotEqual => order != Ordering::Equal,
        CompareOp::Less => order == Ordering::Less,
        CompareOp::LessOrEqual => order != Ordering::Greater,
        CompareOp::Greater => order == Ordering::Greater,
        CompareOp::GreaterOrEqual => order != Ordering::Less,
    })
}

/// AND: false if any is false, otherwise unknown if any is unknown.
fn all(parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut result = Some(true);
    for part in parts {
        match part {
            Some(false) => return Some(false),
            None => result = None,
            Some(true) => {}
        }
    }
    result
}

/// OR: true if any is true, otherwise unknown if any is unknown.
fn any(parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    all(parts.map(|part| part.map(|known| !known))).map(|none| !none)
}

/// One step of a pattern.
enum Step {
    /// `%`
    AnyText,
    /// `_`
    OneCharacter,
    Exactly(char),
}

/// SQL's LIKE with `\` as its escape. It is greedy and backtracks only to the last `%`. That is
/// enough, and avoids exponential time.
pub fn like(text: &str, pattern: &str, ignore_case: bool) -> bool {
    let mut letters = pattern.chars();
    let mut steps = Vec::new();
    while let Some(letter) = letters.next() {
        steps.push(match letter {
            '%' => Step::AnyText,
            '_' => Step::OneCharacter,
            '\\' => Step::Exactly(letters.next().unwrap_or('\\')),
            letter => Step::Exactly(letter),
        });
    }
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut step) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while at < text.len() {
        match steps.get(step) {
            Some(Step::AnyText) => {
                step += 1;
                back = Some((at, step));
                continue;
            }
            Some(Step::OneCharacter) => {
                (at, step) = (at + 1, step + 1);
                continue;
            }
            Some(Step::Exactly(c)) if *c == text[at] || (ignore_case && c.eq_ignore_ascii_case(&text[at])) => {
                (at, step) = (at + 1, step + 1);
                continue;
            }
            _ => {}
        }
        let Some((from, then)) = back else { return false };
        back = Some((from + 1, then));
        (at, step) = (from + 1, then);
    }
    steps[step..].iter().all(|step| matches!(step, Step::AnyText))
}
