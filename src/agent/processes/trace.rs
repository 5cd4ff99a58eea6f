//! Records a run's processes while it runs.

use super::cgroup;
use super::kill;
use super::tree::{Group, Tree};
use crate::agent::journal::SharedJournal;
use crate::domain::protocol::RunRef;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How long killed processes may take to disappear. A process that hangs in the kernel is not
/// waited for any longer.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);

/// The known processes of one run. Clones share them.
#[derive(Clone, Debug)]
pub(in crate::agent) struct Trace {
    run: RunRef,
    tree: Arc<Mutex<Tree>>,
    journal: Option<SharedJournal>,
}

impl Trace {
    /// A run that has no processes yet; its mark is in the journal's `started` line.
    pub(in crate::agent) fn new(run: RunRef, mark: Uuid, journal: Option<SharedJournal>) -> Self {
        Self { run, tree: Arc::new(Mutex::new(Tree::new(mark))), journal }
    }

    /// The processes known so far.
    pub(in crate::agent) fn tree(&self) -> Tree {
        self.lock().clone()
    }

    /// Records a program that was just started, in memory and in the journal.
    pub(in crate::agent) async fn started(&self, group: Option<Group>) {
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

    /// The control group of the run, created at the first call. `None` if the agent can't create
    /// one.
    pub(super) fn cgroup(&self) -> Option<cgroup::Joining> {
        let mut tree = self.lock();
        let joining = cgroup::create(tree.mark)?;
        tree.cgroup = Some(joining.folder.clone());
        Some(joining)
    }

    /// Kills all processes of the run and waits until they are gone, for a bounded time.
    pub(in crate::agent) async fn kill(&self) {
        let tree = self.tree();
        if !tree.has_programs() {
            return;
        }
        let left = tokio::task::spawn_blocking(move || kill::kill(&[tree], GONE_TIMEOUT)).await.unwrap_or_default();
        if !left.is_empty() {
            log::warn!(action:% = self.run.action, run = self.run.run, pids:? = left; "some processes of a run did not die");
        }
    }

    /// After the run's end: removes its control group, unless processes were left running there.
    pub(in crate::agent) fn ended(&self) {
        if let Some(folder) = &self.lock().cgroup {
            cgroup::remove(folder);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tree> {
        // A panic can't leave the tree half-changed.
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
