//! Where in the fleet the agents of a target can be, as far as its form says so. Of a target for a few hosts among a
//! million, or for the agents of an earlier action, only those are searched.

use super::expression::{Column, CompareOp, Target, Value};
use crate::domain::agent::STREAM;
use uuid::Uuid;

/// More names than this are searched for in the whole fleet.
const MAX_NAMES: usize = 1_000;

/// See the module. Every agent that matches the target is in this part of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Within {
    /// Among the agents with these names.
    Names(Vec<String>),
    /// Among the agents with a command of this action.
    Action(Uuid),
    /// Among the agents of this transport, which isn't `stream`.
    Transport(String),
    /// Anywhere.
    Fleet,
}

impl Within {
    /// The smaller parts first, as a rule.
    fn rank(&self) -> u8 {
        match self {
            Self::Names(_) => 0,
            Self::Action(_) => 1,
            Self::Transport(_) => 2,
            Self::Fleet => 3,
        }
    }

    /// The part in which the agents of both are.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Names(mut names), Self::Names(more)) => {
                names.extend(more);
                if names.len() > MAX_NAMES { Self::Fleet } else { Self::Names(names) }
            }
            (one, other) if one == other => one,
            _ => Self::Fleet,
        }
    }
}

impl Target {
    /// Where its agents can be.
    pub fn within(&self) -> Within {
        match self {
            Self::And(parts) => parts.iter().map(Self::within).min_by_key(Within::rank).unwrap_or(Within::Fleet),
            Self::Or(parts) => parts.iter().map(Self::within).reduce(Within::or).unwrap_or(Within::Fleet),
            Self::ActionState { action, .. } => Within::Action(*action),
            Self::Compare { column, op: CompareOp::Equal, value } => one_of(column, std::slice::from_ref(value)),
            Self::In { column, values, negated: false } => one_of(column, values),
            _ => Within::Fleet,
        }
    }
}

/// Where the agents are whose column is one of these values.
fn one_of(column: &Column, values: &[Value]) -> Within {
    let texts = values.iter().map(|value| match value {
        Value::Text(text) => Some(text.clone()),
        // As numbers, texts that are written in other ways are the same.
        Value::Number(_) | Value::Moment(_) => None,
    });
    match (column, texts.collect::<Option<Vec<String>>>()) {
        (Column::Name, Some(names)) if names.len() <= MAX_NAMES => Within::Names(names),
        (Column::Transport, Some(mut texts)) if texts.len() == 1 && texts[0] != STREAM => {
            texts.pop().map_or(Within::Fleet, Within::Transport)
        }
        _ => Within::Fleet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(target: &str) -> Within {
        Target::parse(target).expect("a target").within()
    }

    fn names(names: &[&str]) -> Within {
        Within::Names(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn what_a_target_says_of_names_bounds_the_search() {
        assert_eq!(within("name = 'a'"), names(&["a"]));
        assert_eq!(within("name IN ('a', 'b')"), names(&["a", "b"]));
        assert_eq!(within("name = 'a' OR name IN ('b')"), names(&["a", "b"]));
        assert_eq!(
            within("labels.role = 'x' AND (name = 'a' OR name = 'b') AND transport = 'nats'"),
            names(&["a", "b"])
        );
        for fleet in
            ["TRUE", "name = 5", "name <> 'a'", "NOT name = 'a'", "name NOT IN ('a')", "name = 'a' OR version = '1'"]
        {
            assert_eq!(within(fleet), Within::Fleet, "{fleet}");
        }
    }

    #[test]
    fn so_does_what_it_says_of_an_earlier_action_and_of_the_transport() {
        let id = Uuid::from_u128(7);
        let action = |state: &str| format!("action('{id}') = '{state}'");
        let retry = [action("failed"), action("timed_out")].join(" OR ");
        assert_eq!(within(&retry), Within::Action(id));
        assert_eq!(within(&format!("transport = 'amqp' AND ({retry})")), Within::Action(id));
        let other = format!("action('{}') = 'failed'", Uuid::from_u128(8));
        assert_eq!(within(&format!("{retry} OR {other}")), Within::Fleet);
        assert_eq!(within(&format!("NOT ({retry})")), Within::Fleet);
        assert_eq!(within("transport = 'nats' AND status = 'online'"), Within::Transport("nats".into()));
        assert_eq!(within("transport = 'nats' OR transport = 'amqp'"), Within::Fleet);
        assert_eq!(within("transport = 'stream'"), Within::Fleet, "most agents are");
    }

    #[test]
    fn too_many_names_are_looked_for_in_the_whole_fleet() {
        let names: Vec<String> = (0..=MAX_NAMES).map(|n| format!("'{n:x}'")).collect();
        assert_eq!(within(&format!("name IN ({})", names.join(","))), Within::Fleet);
        let halves = names.chunks(600).map(|names| format!("name IN ({})", names.join(","))).collect::<Vec<_>>();
        assert_eq!(within(&halves.join(" OR ")), Within::Fleet);
    }
}
