//! Reaps orphans of programs, if that is the agent's duty.
//!
//! As PID 1 of a container, or as a subreaper, the agent becomes the parent of every process whose
//! own parent ended. A zombie stays until its parent waits for it. The runtime waits for the
//! agent's own programs, so these are left alone. They are known by their pids
//! ([`super::spawner`]).

use super::procfs::{self, Process};
use super::spawner;
use nix::sys::prctl::get_child_subreaper;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long exits are collected before the next look.
const DEBOUNCE: Duration = Duration::from_secs(1);

/// Reaps orphans while it is polled. Returns at once in a process that gets none.
pub(crate) async fn reap() {
    if getpid() != Pid::from_raw(1) && !get_child_subreaper().unwrap_or(false) {
        return;
    }
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => return log::error!(error:%; "ended processes can't be noticed; zombies will stay"),
    };
    loop {
        // A child may have exited before the signal was listened to.
        if let Err(error) = tokio::task::spawn_blocking(reap_now).await {
            log::error!(error:%; "looking for orphaned processes panicked");
        }
        ended.recv().await;
        tokio::time::sleep(DEBOUNCE).await;
    }
}

fn reap_now() {
    // While this is locked, no program is started, so each zombie that isn't listed is an orphan.
    let own = spawner::own();
    let me = getpid().as_raw();
    let is_orphan = |process: &Process| {
        process.is_zombie && process.parent == me && own.as_ref().is_none_or(|own| !own.contains(&process.pid))
    };
    for orphan in procfs::all().iter().filter(|process| is_orphan(process)) {
        // An error means that it was reaped in the meantime.
        let _ = waitpid(Pid::from_raw(orphan.pid), Some(WaitPidFlag::WNOHANG));
    }
}
