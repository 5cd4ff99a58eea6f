//! Processes as `/proc` shows them.

use std::collections::HashSet;
use std::fs;

/// A process, from `/proc/PID/stat`.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    pub(super) started: u64,
    pub(super) is_zombie: bool,
}

impl Process {
    pub(super) fn read(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The program's name is in parentheses and may contain any byte.
    pub(super) fn parse(pid: i32, stat: &[u8]) -> Option<Self> {
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
        // The first one is field 3 of proc(5).
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self {
            pid,
            parent: number(4)?,
            group: number(5)?,
            session: number(6)?,
            started: fields.get(22 - 3)?.parse().ok()?,
            is_zombie: matches!(fields.first(), Some(&("Z" | "X"))),
        })
    }

    /// Whether its initial environment contains one of these entries.
    pub(super) fn has_one_of(&self, entries: &HashSet<Vec<u8>>) -> bool {
        // Unreadable for other users' processes, which the agent couldn't kill either.
        fs::read(format!("/proc/{}/environ", self.pid))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entries.contains(entry)))
    }
}

/// All visible processes.
pub(super) fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).collect()
}

/// The id of the current boot.
pub(super) fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}
