//! Hints between nodes that share a store: where there may be work. A hint may be lost, arrive
//! twice, or arrive late. The store is the truth, and every node polls it as well.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::sync::Arc;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// There are new open rows that are due, of agents that don't connect.
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
    /// The store has commands for an agent that its connection may not know of: its older connection has put them back, or
    /// it has joined a live action.
    Backlog(i64),
    /// Values of metadata of these agents were written, or of many. The keys are in ascending order.
    Metadata(Option<Arc<[i64]>>),
    /// More changed than can be listed, or hints may have been lost.
    Everything,
}

impl Hint {
    /// The short text form of a hint.
    pub fn encode(&self) -> String {
        match self {
            Self::Commands { action_no, after } => format!("c{action_no}.{after}"),
            Self::Action(no) => format!("a{no}"),
            Self::Agent(no) => format!("g{no}"),
            Self::Open => "o".into(),
            Self::Waiting => "w".into(),
            Self::Moved { agent_no, epoch } => format!("m{agent_no}.{epoch}"),
            Self::Backlog(agent_no) => format!("b{agent_no}"),
            Self::Metadata(None) => "r*".into(),
            Self::Metadata(Some(agents)) => format!("r{}", STANDARD_NO_PAD.encode(packed(agents))),
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
            b'r' if rest == "*" => Some(Self::Metadata(None)),
            b'r' => unpacked(&STANDARD_NO_PAD.decode(rest).ok()?).map(|agents| Self::Metadata(Some(agents.into()))),
            b'*' if rest.is_empty() => Some(Self::Everything),
            _ => None,
        }
    }
}

/// Splits a list of agents so that the short form of each part has at most `longest` bytes.
pub fn split_agents(agents: &[i64], longest: usize) -> Vec<Hint> {
    // Four characters are three bytes, and one names the kind of hint.
    let room = longest.saturating_sub(1) / 4 * 3;
    let mut parts = Vec::new();
    let (mut begin, mut size, mut last) = (0, 0, 0);
    for (at, agent) in agents.iter().enumerate() {
        let needs = varint_size(agent.wrapping_sub(last) as u64);
        if at > begin && size + needs > room {
            parts.push(Hint::Metadata(Some(agents[begin..at].into())));
            (begin, size) = (at, varint_size(*agent as u64));
        } else {
            size += needs;
        }
        last = *agent;
    }
    if begin < agents.len() {
        parts.push(Hint::Metadata(Some(agents[begin..].into())));
    }
    parts
}

fn varint_size(number: u64) -> usize {
    (64 - number.leading_zeros()).div_ceil(7).max(1) as usize
}

/// The differences between keys as variable-length numbers (LEB128): neighbours take a byte each.
fn packed(agents: &[i64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * agents.len());
    let mut last = 0_i64;
    for agent in agents {
        let mut rest = agent.wrapping_sub(last) as u64;
        while rest >= 0x80 {
            bytes.push((rest as u8 & 0x7f) | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        last = *agent;
    }
    bytes
}

fn unpacked(bytes: &[u8]) -> Option<Vec<i64>> {
    let (mut agents, mut last) = (Vec::new(), 0_i64);
    let (mut number, mut shift) = (0_u64, 0);
    for byte in bytes {
        number |= u64::from(byte & 0x7f).checked_shl(shift).filter(|_| shift < 64)?;
        shift += 7;
        if byte & 0x80 == 0 {
            last = last.wrapping_add(number as i64);
            agents.push(last);
            (number, shift) = (0, 0);
        }
    }
    (shift == 0).then_some(agents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lists_of_agents_come_back_and_their_parts_are_short_enough(
            agents in prop::collection::btree_set(prop_oneof![1..100_000_i64, 1..i64::MAX], 0..300),
            longest in 20..500_usize,
        ) {
            let agents: Vec<i64> = agents.into_iter().collect();
            let parts = split_agents(&agents, longest);
            let mut heard = Vec::new();
            for part in parts {
                let text = part.encode();
                prop_assert!(text.len() <= longest, "{} of {longest}", text.len());
                let Some(Hint::Metadata(Some(list))) = Hint::decode(&text) else { panic!("{text}") };
                heard.extend(list.iter().copied());
            }
            prop_assert_eq!(heard, agents);
        }

        #[test]
        fn nothing_that_is_heard_is_too_much(text in "r[A-Za-z0-9+/]{0,40}") {
            Hint::decode(&text);
        }
    }

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
            Hint::Metadata(None),
            Hint::Metadata(Some([1, 2, 300, i64::MAX].into())),
            Hint::Everything,
        ];
        for hint in all {
            assert_eq!(Hint::decode(&hint.encode()), Some(hint));
        }
        for text in ["", "c12", "c.", "cx.1", "a", "axe", "g1.2", "m1", "b", "w1", "oo", "r!", "rgA", "z9", "ü"] {
            assert_eq!(Hint::decode(text), None, "{text}");
        }
    }
}
