//! What agents and servers say to each other (the agent protocol's JSON), shared by both sides.
//!
//! Frames are read in two steps, first the `type` and then the frame of that type. Serde's tagged enums would do it in
//! one, but they copy everything into an intermediate tree, in which raw JSON (operations, outputs) loses its form.

use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;
use uuid::Uuid;

/// The largest frame that either side accepts, in bytes.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;
/// How often either side pings.
pub const PING_EVERY: std::time::Duration = std::time::Duration::from_secs(20);
/// After how much silence either side closes.
pub const SILENCE: std::time::Duration = std::time::Duration::from_secs(60);
/// How long the server waits for `hello`.
pub const HELLO_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// How many unfinished commands an agent takes at a time when its `hello` doesn't say.
pub const DEFAULT_CAPACITY: u32 = 16;

/// WebSocket close codes of the protocol.
pub mod close {
    /// The normal end.
    pub const DONE: u16 = 1000;
    /// The server goes away: reconnect at once, elsewhere.
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
    /// Which run of the command: 1, and more after a retry.
    pub run: i32,
}

/// One step of an action.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// The agent's module that carries it out.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$", example = "ping")]
    pub module: String,
    /// What the module gets; any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// A command as it goes to an agent.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Command {
    /// The action's public id.
    pub action: Uuid,
    /// Which run this is; an agent runs (action, run) once.
    pub run: i32,
    /// Which delivery attempt of this run this is, from 1.
    pub attempt: i32,
    /// The action's name.
    pub name: String,
    /// Run in order, stopped at the first that fails.
    #[schema(value_type = Vec<Operation>)]
    pub operations: Operations,
    /// Higher goes first among the commands that wait at one agent.
    #[serde(default)]
    pub priority: i32,
    /// For the whole run, from `received`, in milliseconds.
    pub timeout_ms: i64,
    /// Not started after this time (the server's clock).
    pub expires_at: Timestamp,
}

impl Command {
    /// What the agent runs once.
    pub fn run_ref(&self) -> RunRef {
        RunRef { action: self.action, run: self.run }
    }
}

/// How a run ended, as the agent says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// All operations went well.
    Succeeded,
    /// One did not.
    Failed,
    /// The agent killed it at its timeout.
    TimedOut,
    /// The agent killed it because its action was cancelled. For an action that nobody cancelled it counts as failed.
    Cancelled,
    /// The agent never started it, because it had expired by the server's clock. Believed only once that clock says so.
    Expired,
}

/// What came of one operation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationResult {
    /// The module that ran.
    pub module: String,
    /// Whether it went well.
    pub ok: bool,
    /// Any JSON; for `exec` `{"exit_code","stdout","stderr"}`.
    #[serde(default)]
    #[schema(value_type = Option<Value>)]
    pub output: Option<Box<RawValue>>,
    /// Why it did not.
    #[serde(default)]
    pub error: Option<String>,
    /// Whether output was cut off.
    #[serde(default)]
    pub truncated: bool,
}

/// What came of one run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunResult {
    /// The action's public id.
    pub action: Uuid,
    /// Which run it was.
    pub run: i32,
    /// How it ended.
    pub status: RunStatus,
    /// One per operation that was started.
    #[serde(default)]
    pub results: Vec<OperationResult>,
    /// By the agent's clock; shown, never used for a decision.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// By the agent's clock.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
}

impl RunResult {
    /// The run that this is the result of.
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
    /// A JSON object that the agent says of itself.
    #[serde(default)]
    pub facts: serde_json::Map<String, serde_json::Value>,
    /// How many unfinished commands it takes at a time.
    #[serde(default = "default_capacity")]
    pub capacity: u32,
    /// The runs that it has and whose results are not stored yet.
    #[serde(default)]
    pub running: Vec<RunRef>,
}

fn default_capacity() -> u32 {
    DEFAULT_CAPACITY
}

/// One reported value of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MetadataItem {
    /// What is reported.
    pub key: String,
    /// Its value; any JSON.
    #[serde(default)]
    pub value: Option<Box<RawValue>>,
    /// Why there is none.
    #[serde(default)]
    pub error: Option<String>,
    /// When it was so; the newest of a key wins.
    pub collected_at: Timestamp,
}

/// A result that won't be stored, and why. The agent stops sending it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rejected {
    /// The action's public id.
    pub action: Uuid,
    /// Which run.
    pub run: i32,
    /// A sentence for people.
    pub reason: String,
}

/// What an agent sends.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentFrame {
    /// First of all.
    Hello(Hello),
    /// It has these safe.
    Received {
        /// The runs.
        commands: Vec<RunRef>,
    },
    /// These ended.
    Results {
        /// One each.
        results: Vec<RunResult>,
    },
    /// Newest values.
    Metadata {
        /// Answered by `metadata_stored`.
        seq: i64,
        /// The values.
        items: Vec<MetadataItem>,
    },
    /// Something is wrong; a close follows.
    Error(ErrorFrame),
}

/// What a server sends.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// Answers `hello`.
    Welcome(Welcome),
    /// To run.
    Commands {
        /// At most as many as the agent has room for.
        commands: Vec<Command>,
    },
    /// These results are durable, or never will be.
    Stored(Stored),
    /// Stop what runs for these actions.
    Cancel {
        /// Public ids.
        actions: Vec<Uuid>,
    },
    /// Metadata up to here is durable.
    MetadataStored {
        /// The frame's number.
        seq: i64,
    },
    /// Something is wrong; a close follows.
    Error(ErrorFrame),
}

/// Answers `hello`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The agent's name.
    pub agent: String,
    /// The server's clock, by which the agent judges expiry.
    pub server_time: Timestamp,
}

/// Answers results.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Stored {
    /// Durable now.
    pub commands: Vec<RunRef>,
    /// Never accepted.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
}

/// Says what is wrong before a close.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorFrame {
    /// Stable and short.
    pub code: String,
    /// A sentence for people.
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

#[derive(Deserialize)]
struct MetadataStoredBody {
    seq: i64,
}

impl AgentFrame {
    /// Reads a frame; `None` for a type that is not known, which is to be ignored.
    pub fn parse(text: &str) -> Result<Option<Self>, serde_json::Error> {
        let Kind { kind } = serde_json::from_str(text)?;
        Ok(Some(match kind.as_ref() {
            "hello" => Self::Hello(serde_json::from_str(text)?),
            "received" => Self::Received { commands: serde_json::from_str::<ReceivedBody>(text)?.commands },
            "results" => Self::Results { results: serde_json::from_str::<ResultsBody>(text)?.results },
            "metadata" => {
                let MetadataBody { seq, items } = serde_json::from_str(text)?;
                Self::Metadata { seq, items }
            }
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
    /// Reads a frame; `None` for a type that is not known, which is to be ignored.
    pub fn parse(text: &str) -> Result<Option<Self>, serde_json::Error> {
        let Kind { kind } = serde_json::from_str(text)?;
        Ok(Some(match kind.as_ref() {
            "welcome" => Self::Welcome(serde_json::from_str(text)?),
            "commands" => Self::Commands { commands: serde_json::from_str::<CommandsBody>(text)?.commands },
            "stored" => Self::Stored(serde_json::from_str(text)?),
            "cancel" => Self::Cancel { actions: serde_json::from_str::<CancelBody>(text)?.actions },
            "metadata_stored" => Self::MetadataStored { seq: serde_json::from_str::<MetadataStoredBody>(text)?.seq },
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
