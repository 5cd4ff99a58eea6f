//! What nodes that share a store tell each other: that there is something to be looked at. A hint may be lost, come twice,
//! or come late; the store is the truth, and everybody looks at it now and then without being told.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// An action has new commands, beyond this agent key.
    Commands {
        /// The action's key.
        action_no: i64,
        /// The agent key after which they begin.
        after: i64,
    },
    /// A user cancelled, paused or resumed an action.
    Action(i64),
    /// An agent was disabled or removed.
    Agent(i64),
    /// There are new open rows that are due.
    Open,
    /// There are new open rows of agents that no node has a connection with: one that asks may be waiting for them.
    Waiting,
    /// An agent has a newer connection elsewhere: one that is older than this epoch is none any more.
    Moved {
        /// The agent.
        agent_no: i64,
        /// Its newer connection.
        epoch: i64,
    },
    /// What an agent's older connection had is in the store again: who has a newer one reads its backlog.
    Backlog(i64),
    /// More happened than can be told one by one; or hints may have been lost.
    Everything,
}

impl Hint {
    /// As short as it can be said.
    pub fn encode(self) -> String {
        match self {
            Self::Commands { action_no, after } => format!("c{action_no}.{after}"),
            Self::Action(no) => format!("a{no}"),
            Self::Agent(no) => format!("g{no}"),
            Self::Open => "o".into(),
            Self::Waiting => "w".into(),
            Self::Moved { agent_no, epoch } => format!("m{agent_no}.{epoch}"),
            Self::Backlog(agent_no) => format!("b{agent_no}"),
            Self::Everything => "*".into(),
        }
    }

    /// The other way round; `None` for what a later version says.
    pub fn decode(text: &str) -> Option<Self> {
        let rest = text.get(1..)?;
        let two = || rest.split_once('.').and_then(|(one, two)| Some((one.parse().ok()?, two.parse().ok()?)));
        match text.as_bytes().first()? {
            b'c' => two().map(|(action_no, after)| Self::Commands { action_no, after }),
            b'm' => two().map(|(agent_no, epoch)| Self::Moved { agent_no, epoch }),
            b'b' => rest.parse().ok().map(Self::Backlog),
            b'a' => rest.parse().ok().map(Self::Action),
            b'g' => rest.parse().ok().map(Self::Agent),
            b'o' if rest.is_empty() => Some(Self::Open),
            b'w' if rest.is_empty() => Some(Self::Waiting),
            b'*' if rest.is_empty() => Some(Self::Everything),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_and_nothing_else() {
        let all = [
            Hint::Commands { action_no: 12, after: 345 },
            Hint::Action(i64::MAX),
            Hint::Agent(7),
            Hint::Open,
            Hint::Waiting,
            Hint::Moved { agent_no: 6, epoch: i64::MAX },
            Hint::Backlog(8),
            Hint::Everything,
        ];
        for hint in all {
            assert_eq!(Hint::decode(&hint.encode()), Some(hint));
        }
        for text in ["", "c12", "c.", "cx.1", "a", "axe", "g1.2", "m1", "b", "w1", "oo", "z9", "ü"] {
            assert_eq!(Hint::decode(text), None, "{text}");
        }
    }
}
