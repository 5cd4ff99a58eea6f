//! The processes of a run: how they are started, found again and killed.
//!
//! A run's processes are known by three things, because a program can drop each of them but hardly all:
//!
//! - the run's *mark*, a random id in the environment variable [`MARK`], which every descendant inherits and which the
//!   journal holds before the first program starts;
//! - the *process groups* of its programs, recorded in the journal with start time, session and boot id right after
//!   each start, so that a number that is in use again is never taken for the old group;
//! - a *control group* (cgroup v2) of the run's own, where the agent may create one. No process leaves that.
//!
//! What descends from such a process belongs to the run as well ([`tree`]).
//!
//! # When they are killed
//!
//! A run that is stopped (timeout, cancel, a later run, the agent's stop) takes its whole tree with it. So does a
//! program that a signal killed: it had no chance to clean up. A program that *exits* takes nothing with it, whatever
//! its exit code: what it left running was left on purpose. Killing the rest of the group at that moment, as an
//! earlier version did, raced with daemons that had forked and not called `setsid` yet.
//!
//! When the agent itself is killed, the kernel kills the programs that it started (`PR_SET_PDEATHSIG`, see
//! [`spawner`]), but not what those had started. The next start of the agent kills the rest before the run is reported
//! as `interrupted`.

pub(crate) mod cgroup;
pub(crate) mod orphans;
pub(super) mod spawner;
#[cfg(test)]
mod tests;
mod tree;

pub(super) use tree::kill;
pub use tree::{Group, Tree};

use super::outbox::SharedJournal;
use crate::domain::protocol::RunRef;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// The environment variable that holds a run's mark.
pub(super) const MARK: &str = "ODOSHI_RUN";
/// How long killed processes may take to disappear; one that hangs in the kernel is not waited for any longer.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of one run's processes while it runs. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    run: RunRef,
    tree: Arc<Mutex<Tree>>,
    journal: Option<SharedJournal>,
}

impl Trace {
    /// A run that has no processes yet; its mark is in the journal's `started` line.
    pub(super) fn new(run: RunRef, mark: Uuid, journal: Option<SharedJournal>) -> Self {
        Self { run, tree: Arc::new(Mutex::new(Tree::new(mark))), journal }
    }

    /// What is known up to now.
    pub(super) fn tree(&self) -> Tree {
        self.lock().clone()
    }

    /// Adds a program that was just started, in memory and in the journal.
    pub(super) async fn started(&self, group: Option<Group>) {
        let tree = {
            let mut tree = self.lock();
            tree.groups.extend(group);
            tree.clone()
        };
        let Some(journal) = &self.journal else { return };
        let run = self.run;
        let written = journal.with(move |journal| journal.spawned(run, tree)).await;
        if let Err(error) = written {
            log::warn!(action:% = self.run.action, run = self.run.run, error:%;
                "a program's process group could not be recorded; after a crash of the agent it is found by its mark");
        }
    }

    /// The control group of the run, created at the first call; `None` where the agent may not create any.
    fn cgroup(&self) -> Option<cgroup::Joining> {
        let mut tree = self.lock();
        let joining = cgroup::create(tree.mark)?;
        tree.cgroup = Some(joining.folder.clone());
        Some(joining)
    }

    /// Kills all processes of the run and waits until they are gone, for a bounded time.
    pub(super) async fn kill(&self) {
        let tree = self.tree();
        if !tree.has_programs() {
            return;
        }
        let left = tokio::task::spawn_blocking(move || tree::kill(&[tree], GONE_TIMEOUT)).await.unwrap_or_default();
        if !left.is_empty() {
            log::warn!(action:% = self.run.action, run = self.run.run, pids:? = left; "some processes of a run did not die");
        }
    }

    /// After the run's end: removes its control group, unless something was left running there.
    pub(super) fn ended(&self) {
        if let Some(folder) = &self.lock().cgroup {
            cgroup::remove(folder);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tree> {
        // Nothing that is done with it can panic half-way.
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
