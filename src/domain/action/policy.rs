//! An action's limits for runs, delivery attempts and deadlines of its commands.

use std::time::Duration;

/// How long the server waits beyond a deadline before it decides without the agent, whose report
/// may be on its way.
pub const GRACE: Duration = Duration::from_secs(10);

/// The part of an action that decides how its commands are retried and when they time out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Maximum number of runs of a command.
    pub max_runs: i32,
    /// Failed delivery attempts after which a command is undeliverable; `None`: no limit.
    pub max_deliveries: Option<i32>,
    /// Timeout of a run, counted from `received`.
    pub timeout: Duration,
}
