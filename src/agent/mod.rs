//! The reference agent: receives commands over one WebSocket, runs each at most once, and reports
//! its result until the server has stored it.
//!
//! # One command through the agent
//!
//! 1. `connection` has enrolled (`enroll` keeps the token) and opened a socket. Its `session` has sent `hello` with the
//!    unfinished runs, and has got the server's time from `welcome`.
//! 2. A `commands` frame arrives. The session passes it to the `runner` over a short channel. While the channel is full,
//!    the session stops reading, and the backpressure reaches the server.
//! 3. The runner looks each command up in the `journal`. A repeat is answered from there. A new command joins the queue,
//!    and an older run of the same command is killed.
//! 4. The next turn of the runner writes `received` for all commands that arrived and `started` for those that have a
//!    free slot, as one group with one sync. Only then are their names added to the `outbox`, and the session sends
//!    `received`.
//! 5. A task runs the operations in order (`run`), each by its [module](modules). Outputs are cut
//!    (`fit`) to what a frame can hold. At the timeout, on cancel, or when the agent stops, the
//!    module is stopped and its processes are killed.
//! 6. The next turn of the runner writes the `result` and adds its name to the outbox. The session reads the result back
//!    from the journal and sends it. Memory holds no result for longer than that.
//! 7. The server answers `stored` (or `rejected`), and the runner records it. Until then every new connection sends the
//!    result again. Afterwards the journal still answers repeats, until a day after the command's expiry.
//!
//! ```text
//!   server ──▶ session ──Input──▶ runner ──▶ run ──▶ module
//!     ▲           ▲                │  ▲        │
//!     └───────────┴── outbox ◀─────┤  └────────┘
//!                       journal ◀──┘
//! ```
//!
//! Beside that, [`metadata`] runs the programs whose output is reported all the time, and the session sends it when there is
//! nothing else to send.
//!
//! No two parts wait for each other: the session waits for the runner, and the runner only for the journal.
//!
//! An agent holds three file descriptors (socket, journal, lock) and a few kilobytes, so thousands fit into one process.
//! Everything runs inside the future of [`Agent::run`], except runs and disk work, which are tasks of the tokio runtime
//! that polls it. A current-thread runtime is enough. Dropping the future kills the runs.

mod backoff;
#[cfg(any(feature = "nats", feature = "amqp"))]
mod broker;
mod config;
mod connection;
mod enroll;
mod error;
mod journal;
mod lifecycle;
mod metadata;
pub mod modules;
mod once;
mod outbox;
pub(crate) mod processes;
mod run;
mod runner;
mod server_clock;
mod session;
mod stop_signal;
#[cfg(test)]
mod tests;

pub use config::{AgentConfig, BackoffConfig, Bounds, ExecConfig, LimitsConfig, MetadataConfig, OutputConfig, Secret};
pub use error::AgentError;
pub use journal::JournalError;
pub use lifecycle::Agent;
pub use modules::{Module, Modules};
