//! Messages between server and agents over a broker, shared by both sides: names, subjects, and how
//! a frame becomes a message.
//!
//! A message is one frame of the agent protocol as JSON. Those from the server say for which agent
//! they are and when the server sent them: `"agent"` and `"server_time"`. An agent ignores what is
//! for another one: on some brokers an agent can make the broker forward messages that were meant
//! for itself.

use super::protocol::ServerFrame;
use super::time::Timestamp;
use serde::Deserialize;

/// The largest message that the server takes, in bytes.
pub const MAX_MESSAGE: usize = super::protocol::MAX_FRAME;
/// How often an agent sends `heartbeat`.
pub const HEARTBEAT_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

/// The JetStream stream of the commands, and the prefix of the streams beside it.
pub const STREAM_NAME: &str = "ODOSHI";

/// The AMQP exchange for what agents say.
pub const RESULTS_EXCHANGE: &str = "odoshi.results";

/// The longest name of a queue in AMQP, in bytes.
pub const MAX_QUEUE_NAME: usize = 255;

/// An agent's name as one token of a subject or a queue name: `.` is written `~2E`, and `~` `~7E`.
pub fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            '.' => token.push_str("~2E"),
            '~' => token.push_str("~7E"),
            letter => token.push(letter),
        }
    }
    token
}

/// The name behind a [`token`]. `None` if it is none.
pub fn name_of(token: &str) -> Option<String> {
    if token.contains('.') {
        return None;
    }
    let mut parts = token.split('~');
    let mut name = parts.next()?.to_owned();
    for part in parts {
        let (letter, rest) = match part.get(..2)? {
            "2E" => ('.', &part[2..]),
            "7E" => ('~', &part[2..]),
            _ => return None,
        };
        name.push(letter);
        name.push_str(rest);
    }
    (!name.is_empty()).then_some(name)
}

/// The subject, or queue, of the messages to an agent.
pub fn commands_to(name: &str) -> String {
    format!("odoshi.commands.{}", token(name))
}

/// The subject of the messages from an agent.
pub fn results_of(name: &str) -> String {
    format!("odoshi.results.{}", token(name))
}

/// A frame as a message to an agent.
pub fn to_agent(frame: &ServerFrame, agent: &str, server_time: Timestamp) -> String {
    let text = frame.to_text();
    // `welcome` has both keys already. Others are JSON objects that begin with their type.
    match frame {
        ServerFrame::Welcome(_) => text,
        _ => format!(r#"{{"agent":"{agent}","server_time":"{server_time}",{}"#, &text[1..]),
    }
}

/// A message from the server.
#[derive(Debug)]
pub struct FromServer {
    /// The agent that it is for, if it says so.
    pub agent: Option<String>,
    /// When it was sent, if it says so.
    pub server_time: Option<Timestamp>,
    /// The frame; `None` for an unknown type, which is to be ignored.
    pub frame: Option<ServerFrame>,
}

#[derive(Deserialize)]
struct Stamps {
    #[serde(default)]
    agent: Option<String>,
    #[serde(default)]
    server_time: Option<Timestamp>,
}

/// Reads a message from the server.
///
/// # Errors
/// If it is not a frame.
pub fn from_server(message: &[u8]) -> Result<FromServer, String> {
    let text = std::str::from_utf8(message).map_err(|error| error.to_string())?;
    let Stamps { agent, server_time } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let frame = ServerFrame::parse(text).map_err(|error| error.to_string())?;
    Ok(FromServer { agent, server_time, frame })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::protocol::{Command, Operations, Welcome};
    use proptest::prelude::*;
    use uuid::Uuid;

    #[test]
    fn a_name_is_one_token() {
        for (name, written) in [("web-1", "web-1"), ("a.b", "a~2Eb"), (".", "~2E"), ("a~b..", "a~7Eb~2E~2E")] {
            assert_eq!(token(name), written);
            assert_eq!(name_of(written).as_deref(), Some(name));
        }
        for wrong in ["", "~", "~2", "a~41", "a.b", "a~2eb", "~2E.x"] {
            assert_eq!(name_of(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn tokens_are_unique_and_lead_back(name in "[A-Za-z0-9._~-]{1,64}") {
            let token = token(&name);
            prop_assert!(!token.contains('.'));
            prop_assert_eq!(name_of(&token), Some(name));
        }

        #[test]
        fn what_is_no_token_does_not_panic(text in "\\PC{0,20}") {
            if let Some(name) = name_of(&text) {
                prop_assert_eq!(token(&name), text);
            }
        }
    }

    #[test]
    fn a_message_says_for_whom_it_is_and_when_it_was_sent_and_keeps_its_operations() {
        let operations = r#"[{"module":"ping","parameters":1.10}]"#;
        let command = Command {
            action: Uuid::nil(),
            run: 1,
            attempt: 1,
            name: "n".into(),
            operations: Operations::from_json(operations.into()).expect("valid JSON"),
            priority: 0,
            timeout_ms: 4,
            expires_at: Timestamp(0),
            scheduled_for: None,
        };
        let text = to_agent(&ServerFrame::Commands { commands: vec![command] }, "web.1", Timestamp(7));
        let message = from_server(text.as_bytes()).expect("a message");
        assert_eq!((message.agent.as_deref(), message.server_time), (Some("web.1"), Some(Timestamp(7))));
        let Some(ServerFrame::Commands { commands }) = message.frame else { panic!("{text}") };
        assert_eq!(commands[0].operations.get(), operations);

        let welcome = Welcome {
            agent: "a".into(),
            server_time: Timestamp(7),
            clock: Some(Timestamp(9)),
            metadata_interval: None,
        };
        let message = from_server(to_agent(&ServerFrame::Welcome(welcome), "a", Timestamp(8)).as_bytes());
        let message = message.expect("a message");
        assert_eq!((message.agent.as_deref(), message.server_time), (Some("a"), Some(Timestamp(7))));
    }

    #[test]
    fn garbage_is_an_error_and_unknown_types_are_ignored() {
        assert!(from_server(br#"{"type":"weather"}"#).is_ok_and(|message| message.frame.is_none()));
        for garbage in [&b"\xff"[..], b"", b"[]", b"{}", br#"{"type":"commands"}"#] {
            assert!(from_server(garbage).is_err(), "{garbage:?}");
        }
    }
}
