//! The lines of the journal.

use crate::agent::processes::Tree;
use crate::domain::protocol::{Command, RunRef, RunResult};
use crate::domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One line. Each that can decide whether a run starts again carries what its entry needs to live on without the lines
/// before it, so that one unreadable line doesn't take the following ones with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A command that the agent answers for from now on.
    Received {
        /// The command.
        command: Command,
        /// When, by the agent's clock.
        at: Timestamp,
        /// How many milliseconds the server's clock was ahead of `at` when it came; its timeout counts from there.
        clock_ms: i64,
    },
    /// It starts now; from here on it is never started again.
    Started {
        /// Which.
        run: RunRef,
        /// Kept until a day after this.
        expires_at: Timestamp,
        /// The module of its operation, when it has exactly one.
        module: String,
        /// When, by the agent's clock.
        at: Timestamp,
        /// What its processes have in their environment; not in journals of earlier versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Uuid>,
    },
    /// It started a program. Follows each start; the last one holds all that is known.
    Spawned {
        /// Which.
        run: RunRef,
        /// How its processes are found, should the agent be killed.
        tree: Tree,
    },
    /// How it ended.
    Result {
        /// Kept until a day after this.
        expires_at: Timestamp,
        /// What the server gets.
        result: RunResult,
    },
    /// The server has the result, or will never take it.
    Stored {
        /// Which.
        run: RunRef,
    },
    /// It won't run and has no result: it expired or was cancelled while it waited.
    Forgotten {
        /// Which.
        run: RunRef,
        /// Kept until a day after this.
        expires_at: Timestamp,
    },
}

impl Record {
    /// The run that it is about.
    pub fn run_ref(&self) -> RunRef {
        match self {
            Self::Received { command, .. } => command.run_ref(),
            Self::Result { result, .. } => result.run_ref(),
            Self::Started { run, .. } | Self::Spawned { run, .. } => *run,
            Self::Stored { run } | Self::Forgotten { run, .. } => *run,
        }
    }
}
