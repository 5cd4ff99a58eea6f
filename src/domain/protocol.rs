//! The messages between agents and servers (the agent protocol's JSON), shared by both sides.
//!
//! Frames are read in two steps, first the `type` and then the frame of that type. Serde's tagged enums would do it in
//! one, but they copy everything into an intermediate tree, in which raw JSON (operations, outputs) loses its form.

use super::json::{JsonObject, repaired, tidied};
use super::time::{Span, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;
use uuid::Uuid;

/// The largest frame that either side accepts, in bytes.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;
/// How often either side pings.
pub const PING_EVERY: std::time::Duration = std::time::Duration::from_secs(20);
/// The silence after which either side closes.
pub const SILENCE: std::time::Duration = std::time::Duration::from_secs(60);
/// How long the server waits for `hello`.
pub const HELLO_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// An agent's capacity for unfinished commands if its `hello` doesn't say.
pub const DEFAULT_CAPACITY: u32 = 16;

/// WebSocket close codes of the protocol.
pub mod close {
    /// The normal end.
    pub const DONE: u16 = 1000;
    /// The server stops: reconnect at once, elsewhere.
    pub const GOING_AWAY: u16 = 1012;
    /// A newer connection of the same agent replaced this one.
    pub const REPLACED: u16 = 4001;
    /// The agent isn't allowed (disabled, removed).
    pub const NOT_ALLOWED: u16 = 4003;
    /// The peer doesn't read, or doesn't say `hello` in time.
    pub const TOO_SLOW: u16 = 4008;
    /// A frame that is too large or malformed.
    pub const MALFORMED: u16 = 4009;
}

/// One run of one command, as agents name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct RunRef {
    /// The action's public id.
    pub action: Uuid,
    /// The number of the run: 1, and higher after a retry.
    pub run: i32,
}

/// One step of an action.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// The agent's module that executes it.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$", example = "ping")]
    pub module: String,
    /// The module's parameters; any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "tidied")]
    #[schema(value_type = Option<Value>)]
    pub parameters: Option<Box<RawValue>>,
}

/// The operations of an action as JSON text, written once per action and shared by all of its commands.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Box<RawValue>")]
pub struct Operations(Arc<RawValue>);

impl From<Box<RawValue>> for Operations {
    fn from(raw: Box<RawValue>) -> Self {
        Self(raw.into())
    }
}

impl Serialize for Operations {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}

impl Operations {
    /// Takes JSON text that is already known to be a list of operations.
    pub fn from_json(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(|raw| Self(raw.into()))
    }

    /// The single operations.
    pub fn parse(&self) -> Result<Vec<Operation>, serde_json::Error> {
        serde_json::from_str(self.0.get())
    }

    /// The JSON text.
    pub fn get(&self) -> &str {
        self.0.get()
    }
}

/// A command as it is sent to an agent.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Command {
    /// The action's public id.
    pub action: Uuid,
    /// The number of the run. An agent runs (action, run) once.
    pub run: i32,
    /// The number of the delivery attempt of this run, from 1.
    pub attempt: i32,
    /// The action's name.
    pub name: String,
    /// Run in order until one fails.
    #[schema(value_type = Vec<Operation>)]
    pub operations: Operations,
    /// Among the commands that wait at one agent, the highest priority runs first.
    #[serde(default)]
    pub priority: i32,
    /// Timeout of the whole run, from `received`, in milliseconds.
    pub timeout_ms: i64,
    /// Not started after this time (the server's clock).
    pub expires_at: Timestamp,
    /// The nominal time of the occurrence, if a schedule made the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_for: Option<Timestamp>,
}

impl Command {
    /// The key by which the agent runs it once.
    pub fn run_ref(&self) -> RunRef {
        RunRef { action: self.action, run: self.run }
    }
}

/// How a run ended, as reported by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// All operations succeeded.
    Succeeded,
    /// An operation failed.
    Failed,
    /// The agent killed it at its timeout.
    TimedOut,
    /// The agent killed it because its action was cancelled. If no user cancelled the action, it
    /// counts as failed.
    Cancelled,
    /// The agent didn't start it, because it had expired by the server's clock. Accepted only once
    /// that clock agrees.
    Expired,
}

/// The result of one operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct OperationResult {
    /// The module that ran.
    pub module: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// The output; any JSON. For `exec`: `{"exit_code","stdout","stderr"}`. What is nested more than 64 deep is a string
    /// of its JSON.
    #[serde(default, deserialize_with = "tidied")]
    #[schema(value_type = Option<Value>)]
    pub output: Option<Box<RawValue>>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// Whether the output was cut off.
    #[serde(default)]
    pub truncated: bool,
    /// Whether bytes of the output were no UTF-8, and U+FFFD stands in their place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lossy: bool,
}

/// The result of one run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunResult {
    /// The action's public id.
    pub action: Uuid,
    /// The number of the run.
    pub run: i32,
    /// How it ended.
    pub status: RunStatus,
    /// One per operation that was started.
    #[serde(default)]
    pub results: Vec<OperationResult>,
    /// By the agent's clock. It is shown and never used for a decision.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// By the agent's clock.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
}

impl RunResult {
    /// The run of this result.
    pub fn run_ref(&self) -> RunRef {
        RunRef { action: self.action, run: self.run }
    }
}

/// The first frame of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The agent program's version.
    #[serde(default)]
    pub version: String,
    /// The agent's facts. Without them, those that it reported before stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<JsonObject>,
    /// A random value of the agent's process. Two processes that use one agent's token differ in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Uuid>,
    /// The agent's capacity for unfinished commands.
    #[serde(default = "default_capacity")]
    pub capacity: u32,
    /// Its runs whose results are not stored yet.
    #[serde(default)]
    pub running: Vec<RunRef>,
    /// The agent's clock. Over a broker, `welcome` repeats it, so that the agent knows which of its
    /// hellos is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Timestamp>,
}

fn default_capacity() -> u32 {
    DEFAULT_CAPACITY
}

/// One reported value of a key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MetadataItem {
    /// The key.
    pub key: String,
    /// Its value; any JSON.
    #[serde(default, deserialize_with = "tidied")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub value: Option<Box<RawValue>>,
    /// Why there is no value.
    #[serde(default)]
    pub error: Option<String>,
    /// The time of the value, by the agent's clock. The newest of a key wins. Default: now.
    #[serde(default)]
    pub collected_at: Option<Timestamp>,
}

/// A key whose value is not stored, and why. Sending it again doesn't help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedKey {
    /// The key, cut if it is too long.
    pub key: String,
    /// The reason, for people.
    pub reason: String,
}

/// A result that can't be stored, and why. The agent stops sending it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rejected {
    /// The action's public id.
    pub action: Uuid,
    /// The number of the run.
    pub run: i32,
    /// The reason, for people.
    pub reason: String,
}

/// A frame from an agent.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentFrame {
    /// Always the first frame.
    Hello(Hello),
    /// The agent has stored these commands.
    Received {
        /// The runs.
        commands: Vec<RunRef>,
    },
    /// These runs ended.
    Results {
        /// One result per run.
        results: Vec<RunResult>,
    },
    /// The newest values.
    Metadata {
        /// Answered by `metadata_stored`.
        seq: i64,
        /// The values.
        items: Vec<MetadataItem>,
    },
    /// The agent is there (over brokers, once a minute).
    Heartbeat,
    /// An error; a close follows.
    Error(ErrorFrame),
}

/// A frame from a server.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// The answer to `hello`.
    Welcome(Welcome),
    /// Commands to run.
    Commands {
        /// At most as many as the agent has room for.
        commands: Vec<Command>,
    },
    /// These results are durable, or rejected for good.
    Stored(Stored),
    /// Stop the runs of these actions.
    Cancel {
        /// The actions' public ids.
        actions: Vec<Uuid>,
    },
    /// The values of a frame are durable, or newer ones of the same keys.
    MetadataStored(MetadataStored),
    /// An error; a close follows.
    Error(ErrorFrame),
}

/// The answer to `hello`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The agent's name.
    pub agent: String,
    /// The server's time, by which the agent judges expiry.
    pub server_time: Timestamp,
    /// Over a broker: the `clock` of the answered `hello`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Timestamp>,
    /// How often to report metadata, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_interval: Option<Span>,
}

/// The answer to metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataStored {
    /// The frame's number.
    pub seq: i64,
    /// Keys whose values are not stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<RefusedKey>,
    /// How often to report from now on, if that has changed since `welcome`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_interval: Option<Span>,
}

/// The answer to results.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Stored {
    /// The durable ones.
    pub commands: Vec<RunRef>,
    /// The ones that are rejected for good.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
}

/// An error, sent before a close.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorFrame {
    /// A short, stable code.
    pub code: String,
    /// A message for people.
    pub message: String,
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct ReceivedBody {
    commands: Vec<RunRef>,
}

#[derive(Deserialize)]
struct ResultsBody {
    results: Vec<RunResult>,
}

#[derive(Deserialize)]
struct MetadataBody {
    #[serde(default)]
    seq: i64,
    items: Vec<MetadataItem>,
}

#[derive(Deserialize)]
struct CommandsBody {
    commands: Vec<Command>,
}

#[derive(Deserialize)]
struct CancelBody {
    actions: Vec<Uuid>,
}

impl AgentFrame {
    /// Reads a frame. `None` for an unknown type, which is to be ignored. What is no text in it is
    /// [replaced](repaired).
    pub fn parse(text: &str) -> Result<Option<Self>, serde_json::Error> {
        let text = &repaired(text);
        let Kind { kind } = serde_json::from_str(text)?;
        Ok(Some(match kind.as_ref() {
            "hello" => Self::Hello(serde_json::from_str(text)?),
            "received" => Self::Received { commands: serde_json::from_str::<ReceivedBody>(text)?.commands },
            "results" => Self::Results { results: serde_json::from_str::<ResultsBody>(text)?.results },
            "metadata" => {
                let MetadataBody { seq, items } = serde_json::from_str(text)?;
                Self::Metadata { seq, items }
            }
            "heartbeat" => Self::Heartbeat,
            "error" => Self::Error(serde_json::from_str(text)?),
            _ => return Ok(None),
        }))
    }

    /// The frame as JSON text.
    pub fn to_text(&self) -> String {
        to_text(self)
    }
}

impl ServerFrame {
    /// Reads a frame. `None` for an unknown type, which is to be ignored.
    pub fn parse(text: &str) -> Result<Option<Self>, serde_json::Error> {
        let Kind { kind } = serde_json::from_str(text)?;
        Ok(Some(match kind.as_ref() {
            "welcome" => Self::Welcome(serde_json::from_str(text)?),
            "commands" => Self::Commands { commands: serde_json::from_str::<CommandsBody>(text)?.commands },
            "stored" => Self::Stored(serde_json::from_str(text)?),
            "cancel" => Self::Cancel { actions: serde_json::from_str::<CancelBody>(text)?.actions },
            "metadata_stored" => Self::MetadataStored(serde_json::from_str(text)?),
            "error" => Self::Error(serde_json::from_str(text)?),
            _ => return Ok(None),
        }))
    }

    /// The frame as JSON text.
    pub fn to_text(&self) -> String {
        to_text(self)
    }
}

fn to_text<T: Serialize>(frame: &T) -> String {
    serde_json::to_string(frame).expect("frames hold only strings, numbers and valid JSON text, which always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_frame_keeps_its_operations_to_the_letter() {
        let operations = r#"[{"module":"ping","parameters":{"n":12345678901234567890123,"x":1.10}}]"#;
        let frame = ServerFrame::Commands {
            commands: vec![Command {
                action: Uuid::nil(),
                run: 1,
                attempt: 2,
                name: "n".into(),
                operations: Operations::from_json(operations.into()).expect("valid JSON"),
                priority: 3,
                timeout_ms: 4,
                expires_at: Timestamp(0),
                scheduled_for: None,
            }],
        };
        let text = frame.to_text();
        assert!(text.contains(operations), "{text}");
        let Ok(Some(ServerFrame::Commands { commands })) = ServerFrame::parse(&text) else { panic!("{text}") };
        assert_eq!(commands[0].operations.get(), operations);
        assert_eq!(commands[0].operations.parse().expect("valid operations")[0].module, "ping");
    }

    #[test]
    fn unknown_types_are_ignored_and_garbage_is_an_error() {
        assert!(matches!(AgentFrame::parse(r#"{"type":"weather","sun":true}"#), Ok(None)));
        assert!(matches!(AgentFrame::parse(r#"{"type":"hello"}"#), Ok(Some(AgentFrame::Hello(h))) if h.capacity == 16));
        for garbage in ["", "[]", "{}", "nonsense", r#"{"type":"received"}"#, r#"{"type":7}"#, "{\"type\":\"hello\""] {
            assert!(AgentFrame::parse(garbage).is_err(), "{garbage}");
        }
    }
}
