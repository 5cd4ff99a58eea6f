//! A control group (cgroup v2) for each run, below the agent's own. The agent can create one as
//! root, or if a service manager delegated its group (`Delegate=yes`). Otherwise runs have none.

use super::tree::Tree;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use uuid::Uuid;

/// Prefix of the runs' control groups.
const PREFIX: &str = "odoshi-run-";

/// A control group that a program is about to join.
pub(super) struct Joining {
    pub(super) folder: PathBuf,
    /// A process that writes `0` here joins the group, with all processes that it starts later.
    pub(super) processes: File,
}

/// Creates the group of the run with this mark, if it doesn't exist yet.
pub(super) fn create(mark: Uuid) -> Option<Joining> {
    static OWN: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = OWN.get_or_init(own).as_ref()?.join(format!("{PREFIX}{mark}"));
    match fs::create_dir(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(_) => return None,
    }
    match OpenOptions::new().write(true).open(folder.join("cgroup.procs")) {
        Ok(processes) => Some(Joining { folder, processes }),
        Err(_) => {
            remove(&folder);
            None
        }
    }
}

/// The folder of this process's own control group.
fn own() -> Option<PathBuf> {
    let (groups, mounts) = (fs::read_to_string("/proc/self/cgroup"), fs::read_to_string("/proc/self/mountinfo"));
    let mount = mount_point(&mounts.ok()?)?;
    let folder = mount.join(own_path(&groups.ok()?)?.trim_start_matches('/'));
    folder.join("cgroup.procs").exists().then_some(folder)
}

pub(super) fn own_path(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The mount point of the version 2 hierarchy, from proc_pid_mountinfo(5).
pub(super) fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let root = mount.split(' ').nth(3)?;
        // A root other than `/` would have to be cut off the path. Containers with their own
        // namespace have `/`.
        (kind.starts_with("cgroup2 ") && root == "/").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Has the kernel kill all processes in this run's group, and returns those that it still lists.
pub(super) fn kill(tree: &Tree) -> HashSet<i32> {
    let Some(folder) = tree.cgroup.as_deref().filter(|folder| is_of(folder, tree.mark)) else { return HashSet::new() };
    // An agent that was started by a run of its predecessor may live in that run's group.
    if own().is_none_or(|own| !own.starts_with(folder)) {
        // Kernels before 5.14 don't have this file. There, the processes are killed one by one.
        let _ = fs::write(folder.join("cgroup.kill"), "1");
    }
    let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process of another pid namespace.
    listed.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// The path comes from a file, so it is accepted only if it contains the run's name.
fn is_of(folder: &Path, mark: Uuid) -> bool {
    folder.file_name().is_some_and(|name| name == format!("{PREFIX}{mark}").as_str())
}

/// Groups of ended runs that left something running there. There are as many as such programs.
static LEFT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the group of an ended run, now or when the processes that it left have ended.
pub(super) fn remove(folder: &Path) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.push(folder.to_path_buf());
    left.retain(|folder| fs::remove_dir(folder).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy));
}

/// Removes the empty groups of earlier agents. Called at the start of the process: later, it could
/// remove a group that a program is about to join.
pub(crate) fn sweep() {
    let Some(entries) = own().and_then(|own| fs::read_dir(own).ok()) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        // Busy: a process lives in it.
        let _ = fs::remove_dir(entry.path());
    }
}
