//! The processes of a run: how they are started, found again and killed.
//!
//! A run's processes are known by three things. A program can drop each of them, but hardly all:
//!
//! - the run's *mark*, a random id in the environment variable [`MARK`], which every descendant inherits and which the
//!   journal holds before the first program starts;
//! - the *process groups* of its programs, recorded in the journal with start time, session and boot id right after
//!   each start, so that a number that is in use again is never taken for the old group;
//! - a *control group* (cgroup v2) of the run, if the agent can create one. No process can leave
//!   it.
//!
//! A descendant of such a process belongs to the run as well ([`kill`](mod@kill)).
//!
//! # When they are killed
//!
//! When a run is stopped (timeout, cancel, a later run, the agent's stop), its whole tree is
//! killed. The same happens when a signal killed a program, because that program had no chance to
//! clean up. When a program *exits*, whatever its exit code, nothing is killed: it left those
//! processes running on purpose. Rejected: killing the rest of the group at that moment, which
//! races with daemons that have forked and not called `setsid` yet.
//!
//! When the agent itself is killed, the kernel kills the programs that it started
//! (`PR_SET_PDEATHSIG`, see [`spawner`]), but not the processes that those had started. The next
//! start of the agent kills the rest before the run is reported as `interrupted`.

pub(crate) mod cgroup;
mod kill;
pub(crate) mod orphans;
mod procfs;
pub(super) mod spawner;
#[cfg(test)]
mod tests;
mod trace;
mod tree;

pub(super) use kill::kill;
pub(super) use trace::Trace;
pub(super) use tree::MARK;
pub use tree::Tree;
