//! What identifies the processes of a run.

use super::procfs::{Process, boot};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// The environment variable that holds a run's mark.
pub(in crate::agent) const MARK: &str = "ODOSHI_RUN";

/// A process group, and what distinguishes it from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its number, which is the pid of the program that the agent started.
    pub id: i32,
    /// Its session, which is the agent's.
    pub session: i32,
    /// When the program started, in the kernel's ticks since the boot (`/proc/PID/stat`, field 22).
    pub started: u64,
    /// The boot during which it started.
    pub boot: String,
}

impl Group {
    /// The group that `pid` leads. `None` without such a process, or without `/proc`.
    pub(super) fn led_by(pid: i32) -> Option<Self> {
        let process = Process::read(pid)?;
        Some(Self { id: pid, session: process.session, started: process.started, boot: boot()? })
    }
}

/// What identifies the processes of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The value of the mark in their environment.
    pub mark: Uuid,
    /// The groups of the programs that the agent started, at most one per operation.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// The run's own control group.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

impl Tree {
    /// A run of which only the mark is known.
    pub fn new(mark: Uuid) -> Self {
        Self { mark, groups: Vec::new(), cgroup: None }
    }

    pub(super) fn has_programs(&self) -> bool {
        !self.groups.is_empty() || self.cgroup.is_some()
    }
}
