//! Starts programs so that the kernel kills them when the agent dies.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that started a program ends. The threads of a runtime
//! do end: blocking ones when they are idle, workers with the runtime. So one thread that lives as
//! long as this process starts all programs.

use super::kill::kill;
use super::trace::Trace;
use super::tree::{Group, Tree};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpid, getppid, write};
use std::collections::HashSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How often to retry a program whose file is being written, and how long to wait each time.
const BUSY_ATTEMPTS: u32 = 100;
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// A program to start.
struct Job {
    command: Command,
    trace: Trace,
    runtime: Handle,
    reply: oneshot::Sender<(Command, io::Result<Program>)>,
}

/// The thread that starts all programs.
static THREAD: LazyLock<io::Result<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, inbox) = channel();
    std::thread::Builder::new().name("spawner".into()).spawn(move || work(&inbox))?;
    Ok(jobs)
});

/// The started programs that are not reaped yet, by pid. See [`super::orphans`].
static OWN: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// Locks the set of this process's own programs. No program is started while it is locked.
pub(super) fn own() -> MutexGuard<'static, Option<HashSet<i32>>> {
    // A panic can't leave the set half-changed.
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(inbox: &Receiver<Job>) {
    while let Ok(Job { mut command, trace, runtime, reply }) = inbox.recv() {
        // A panic here would end the thread, and with it all programs that it started.
        let started = catch_unwind(AssertUnwindSafe(|| {
            let _within = runtime.enter();
            start(&mut command, &trace)
        }));
        let started = started.unwrap_or_else(|_| Err(io::Error::other("starting it panicked")));
        // If the caller is gone, dropping the program kills it.
        let _ = reply.send((command, started));
    }
}

fn start(command: &mut Command, trace: &Trace) -> io::Result<Program> {
    let mut own = own();
    let child = command.spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    own.get_or_insert_default().extend(pid);
    drop(own);
    let group = pid.and_then(Group::led_by);
    let mut tree = trace.tree();
    tree.groups.extend(group.clone());
    Ok(Program { child, pid, group, tree })
}

/// Starts a program in its own process group.
pub(in crate::agent) async fn spawn(mut command: Command, trace: &Trace) -> io::Result<Program> {
    prepare(&mut command, trace);
    let jobs = THREAD.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    let mut attempts = 0;
    loop {
        let (reply, started) = oneshot::channel();
        let job = Job { command, trace: trace.clone(), runtime: Handle::current(), reply };
        jobs.send(job).map_err(|_| ended())?;
        let (again, started) = started.await.map_err(|_| ended())?;
        match started {
            // The file is still being written, or a process forked in the meantime holds it open
            // for a moment.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempts < BUSY_ATTEMPTS => {
                attempts += 1;
                tokio::time::sleep(BUSY_WAIT).await;
                command = again;
            }
            started => return started,
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that starts programs has ended")
}

/// What the new process does before it executes the program.
#[allow(unsafe_code, reason = "between fork and exec only calls that are safe there may be made")]
fn prepare(command: &mut Command, trace: &Trace) {
    let cgroup = trace.cgroup();
    let agent = getpid();
    let prepare = move || {
        if let Some(cgroup) = &cgroup {
            // If that is refused, mark and group remain.
            let _ = write(&cgroup.processes, b"0");
        }
        set_pdeathsig(Signal::SIGKILL)?;
        // The agent may have died before the line above.
        if getppid() == agent { Ok(()) } else { Err(io::Error::from_raw_os_error(nix::libc::ESRCH)) }
    };
    command.process_group(0).kill_on_drop(true);
    // SAFETY: the closure makes system calls that are async-signal-safe (write, prctl, getppid), and neither allocates nor
    // takes a lock; its file was opened before the fork.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// A started program. If it is dropped before its end, its whole run is killed.
#[derive(Debug)]
pub(in crate::agent) struct Program {
    child: Child,
    /// `None` once it is reaped, since its pid may then belong to another process.
    pid: Option<i32>,
    group: Option<Group>,
    tree: Tree,
}

impl Program {
    /// Its process group, for the journal.
    pub(in crate::agent) fn group(&self) -> Option<Group> {
        self.group.clone()
    }

    /// Its standard input, output and error. Each can be taken once.
    pub(in crate::agent) fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take())
    }

    /// Waits until it ends. Processes that it left running aren't touched, not even when this is
    /// dropped afterwards.
    pub(in crate::agent) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.forget();
        Ok(status)
    }

    /// Kills its process group at once, unless it has ended.
    pub(in crate::agent) fn kill_group(&self) {
        if let Some(pid) = self.pid {
            // An error means that the group is empty.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn forget(&mut self) {
        if let (Some(pid), Some(own)) = (self.pid.take(), own().as_mut()) {
            own.remove(&pid);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.pid.is_some() {
            self.kill_group();
            // Blocks for a moment. This happens only if a run's future is dropped, and not if a run
            // is stopped.
            kill(std::slice::from_ref(&self.tree), Duration::ZERO);
            self.forget();
        }
    }
}
