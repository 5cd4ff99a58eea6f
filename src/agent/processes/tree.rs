//! Which processes belong to a run, read from `/proc`; and how they are killed.

use super::{MARK, cgroup};
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long to wait between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(5);

/// A process group, with what tells it from a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its number, which is the pid of the program that the agent started.
    pub id: i32,
    /// The session that it is in: the agent's.
    pub session: i32,
    /// When the program started, in the kernel's ticks since the boot (`/proc/PID/stat`, field 22).
    pub started: u64,
    /// The boot that this was in.
    pub boot: String,
}

impl Group {
    /// The group that `pid` leads; `None` when there is no such process, or no `/proc`.
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
    /// The groups of the programs that the agent started, one per operation at most.
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

/// What `/proc/PID/stat` says of a process.
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

    /// The program's name stands in parentheses and may itself contain any byte.
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

    /// Whether the environment that it was started with holds one of these entries.
    fn has_one_of(&self, entries: &HashSet<Vec<u8>>) -> bool {
        // Unreadable for processes of other users, which the agent couldn't kill either.
        fs::read(format!("/proc/{}/environ", self.pid))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entries.contains(entry)))
    }
}

/// All processes that can be seen.
pub(super) fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).collect()
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Kills all processes of these runs, until none is left or the time is over; gives the pids of those that are left.
/// A look that finds nothing must be followed by another, since a process that is about to become another program
/// has no environment for a moment. Blocks; with no time it makes a single pass.
pub(crate) fn kill(trees: &[Tree], within: Duration) -> Vec<i32> {
    let begun = Instant::now();
    let mut found_none = false;
    loop {
        let left = pass(trees);
        if left.is_empty() && found_none || begun.elapsed() >= within {
            trees.iter().filter_map(|tree| tree.cgroup.as_ref()).for_each(|folder| cgroup::remove(folder));
            return left;
        }
        found_none = left.is_empty();
        pause();
    }
}

#[allow(clippy::disallowed_methods, reason = "processes are killed where blocking is allowed")]
fn pause() {
    std::thread::sleep(PAUSE);
}

fn pass(trees: &[Tree]) -> Vec<i32> {
    let mut seeds = HashSet::new();
    for tree in trees {
        seeds.extend(cgroup::kill(tree));
    }
    let members = members(trees, &all(), boot().as_deref(), seeds, i32::try_from(std::process::id()).unwrap_or(0));
    for pid in &members {
        // Between the look and this a pid would have to end, be reaped and be given to another process.
        let _ = send(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    members
}

/// The living processes of these runs: marked, in one of their groups, in `seeds`, or descending from one of those.
/// Never `me`: the agent may have been started by a run of its predecessor.
fn members(trees: &[Tree], processes: &[Process], boot: Option<&str>, seeds: HashSet<i32>, me: i32) -> Vec<i32> {
    let marks: HashSet<Vec<u8>> = trees.iter().map(|tree| format!("{MARK}={}", tree.mark).into_bytes()).collect();
    let groups: HashMap<i32, &Group> =
        trees.iter().flat_map(|tree| &tree.groups).map(|group| (group.id, group)).collect();
    let leaders: HashMap<i32, u64> = processes.iter().map(|process| (process.pid, process.started)).collect();
    let is_in_group = |process: &Process| {
        groups.get(&process.group).is_some_and(|group| {
            // While a group has members the kernel gives its number to no new process. So if there is a process of that
            // number that started at another time, the old group is gone.
            Some(group.boot.as_str()) == boot
                && process.session == group.session
                && process.started >= group.started
                && leaders.get(&group.id).is_none_or(|started| *started == group.started)
        })
    };
    let alive = || processes.iter().filter(|process| !process.is_zombie && process.pid != me);
    let mut found = seeds;
    found.remove(&me);
    found.extend(
        alive().filter(|process| is_in_group(process) || process.has_one_of(&marks)).map(|process| process.pid),
    );
    loop {
        let descendants: Vec<i32> = alive()
            .filter(|process| found.contains(&process.parent) && !found.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if descendants.is_empty() {
            return found.into_iter().collect();
        }
        found.extend(descendants);
    }
}

#[cfg(test)]
pub(super) fn members_of(trees: &[Tree], processes: &[Process], boot: &str, me: i32) -> Vec<i32> {
    let mut members = members(trees, processes, Some(boot), HashSet::new(), me);
    members.sort_unstable();
    members
}
