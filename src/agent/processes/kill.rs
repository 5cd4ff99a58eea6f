//! Kills the processes of runs: finds them by mark, group, control group and descent, until none is left.

use super::cgroup;
use super::procfs::{Process, all, boot};
use super::tree::{Group, MARK, Tree};
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long to wait between two passes.
const PAUSE: Duration = Duration::from_millis(5);

/// Kills all processes of these runs until none is left or the time is over, and returns the pids
/// of the remaining ones. A pass that finds nothing must be followed by another, because a process
/// that is executing a new program has no environment for a moment. Blocks. If `within` is zero, it
/// makes a single pass.
/// environment for a moment. Blocks; if `within` is zero it makes a single pass.
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
        // Another process is hit only if this one was reaped and its pid reused since the pass read
        // `/proc`.
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
            // While a group has members, the kernel gives its number to no new process. So if a
            // process with that number started at another time, the old group is gone.
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
