//! The lines of the journal.

use crate::agent::processes::Tree;
use crate::domain::protocol::{Command, RunRef, RunResult};
use crate::domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One line. Each line that can decide whether a run starts again contains all that its entry
/// needs. So the entry survives without the lines before it, and one unreadable line doesn't affect
/// the following ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A command that the agent is responsible for from now on.
    Received {
        /// The command.
        command: Command,
        /// When, by the agent's clock.
        at: Timestamp,
        /// How many milliseconds the server's clock was ahead of `at` on arrival. The timeout
        /// counts from that time.
        clock_ms: i64,
    },
    /// The run starts now. It is never started again.
    Started {
        /// The run.
        run: RunRef,
        /// Kept until a day after this.
        expires_at: Timestamp,
        /// The module of its operation, when it has exactly one.
        module: String,
        /// When, by the agent's clock.
        at: Timestamp,
        /// The mark in its processes' environment; missing in journals of earlier versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Uuid>,
    },
    /// The run started a program. Follows each start; the last one lists all programs.
    Spawned {
        /// The run.
        run: RunRef,
        /// How to find its processes if the agent is killed.
        tree: Tree,
    },
    /// The run ended.
    Result {
        /// Kept until a day after this.
        expires_at: Timestamp,
        /// The result for the server.
        result: RunResult,
    },
    /// The server has the result, or rejected it for good.
    Stored {
        /// The run.
        run: RunRef,
    },
    /// The run won't start and has no result: it expired or was cancelled while it waited.
    Forgotten {
        /// The run.
        run: RunRef,
        /// Kept until a day after this.
        expires_at: Timestamp,
    },
}

impl Record {
    /// The run of this record.
    pub fn run_ref(&self) -> RunRef {
        match self {
            Self::Received { command, .. } => command.run_ref(),
            Self::Result { result, .. } => result.run_ref(),
            Self::Started { run, .. } | Self::Spawned { run, .. } => *run,
            Self::Stored { run } | Self::Forgotten { run, .. } => *run,
        }
    }
}
