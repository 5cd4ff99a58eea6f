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
    /// There are new open rows.
    Open,
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
            Self::Everything => "*".into(),
        }
    }

    /// The other way round; `None` for what a later version says.
    pub fn decode(text: &str) -> Option<Self> {
        let rest = text.get(1..)?;
        match text.as_bytes().first()? {
            b'c' => {
                let (action_no, after) = rest.split_once('.')?;
                Some(Self::Commands { action_no: action_no.parse().ok()?, after: after.parse().ok()? })
            }
            b'a' => rest.parse().ok().map(Self::Action),
            b'g' => rest.parse().ok().map(Self::Agent),
            b'o' if rest.is_empty() => Some(Self::Open),
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
            Hint::Everything,
        ];
        for hint in all {
            assert_eq!(Hint::decode(&hint.encode()), Some(hint));
        }
        for text in ["", "c12", "c.", "cx.1", "a", "axe", "g1.2", "oo", "z9", "ü"] {
            assert_eq!(Hint::decode(text), None, "{text}");
        }
    }
}
