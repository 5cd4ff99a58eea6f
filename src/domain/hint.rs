//! Hints between nodes that share a store: where there may be work. A hint may be lost, arrive
//! twice, or arrive late. The store is the truth, and every node polls it as well.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// An action has new commands beyond this agent key.
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
    /// There are new open rows of agents that no node has a connection with. One of them may be
    /// waiting in a check-in.
    Waiting,
    /// An agent has a newer connection elsewhere. Connections with an older epoch are no longer
    /// valid.
    Moved {
        /// The agent.
        agent_no: i64,
        /// The epoch of the newer connection.
        epoch: i64,
    },
    /// An agent's older connection has put its commands back into the store. The node with the
    /// newer connection reads the backlog.
    Backlog(i64),
    /// More changed than can be listed, or hints may have been lost.
    Everything,
}

impl Hint {
    /// The short text form of a hint.
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

    /// Parses that form. `None` for a hint of a later version.
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
