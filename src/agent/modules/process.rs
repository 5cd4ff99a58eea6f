//! Runs one program in its own process group and collects its output.
//!
//! The processes that it started are handled by [`processes`](crate::agent::processes). All of them
//! are killed when the run is stopped or its future is dropped, and when a signal killed the
//! program. None is killed when the program exited. A program that stays in the background must not
//! hold the pipes: they are read for [`DRAIN`] after the exit, and then closed.

use super::{Stop, StopReason};
use crate::agent::config::{Bounds, LimitsConfig};
use crate::agent::processes::{MARK, Trace, spawner};
use crate::domain::text::text_of;
use nix::sys::resource::{getrlimit, setrlimit};
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};

/// How long to continue reading after the program ended or was killed, while other processes still hold the pipes.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed process may take to die. One that hangs in the kernel is left to the runtime's
/// reaper.
const REAP: Duration = Duration::from_secs(2);
/// The stored part of a program's output.
#[derive(Debug, Default)]
pub(super) struct Captured {
    pub(super) bytes: Vec<u8>,
    pub(super) truncated: bool,
}

impl Captured {
    /// Reads to the end. Bytes beyond `cap` are read and dropped, otherwise the writer would block.
    async fn fill(&mut self, from: Option<impl AsyncRead + Unpin>, cap: usize) {
        let Some(mut from) = from else { return };
        let mut chunk = vec![0; 8 * 1024];
        loop {
            match from.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(read) => {
                    let keep = read.min(cap - self.bytes.len());
                    self.bytes.extend_from_slice(&chunk[..keep]);
                    self.truncated |= keep < read;
                }
            }
        }
    }

    /// As text, and whether bytes of it were none. A character that the cap cut in two is left out.
    pub(super) fn text(&self) -> (String, bool) {
        text_of(&self.bytes, self.truncated)
    }
}

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// `None` if it was stopped.
    pub(super) status: Option<ExitStatus>,
    pub(super) stopped: Option<StopReason>,
    pub(super) stdout: Captured,
    pub(super) stderr: Captured,
}

impl Ended {
    /// Why it failed; `None` if it succeeded.
    pub(super) fn error(&self) -> Option<String> {
        match (self.stopped, self.status) {
            (Some(reason), _) => Some(reason.to_string()),
            (None, Some(status)) if status.success() => None,
            (None, Some(status)) => Some(match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("killed by {}", signal_name(signal)),
                (None, None) => status.to_string(),
            }),
            (None, None) => Some("its end could not be seen".into()),
        }
    }
}

fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// Runs `command` until it ends or `stop` resolves. Without `input`, its standard input is empty.
pub(super) async fn run(
    mut command: Command,
    input: Option<Vec<u8>>,
    bounds: Bounds,
    trace: &Trace,
    stop: &mut Stop,
) -> std::io::Result<Ended> {
    command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env(MARK, trace.tree().mark.to_string());
    let Bounds { output: caps, limits } = bounds;
    limit(&mut command, limits);
    let mut program = spawner::spawn(command, trace).await?;
    trace.started(program.group()).await;
    let (mut stdout, mut stderr) = (Captured::default(), Captured::default());
    let pipes = program.pipes();
    let (status, stopped) = {
        let io = async {
            tokio::join!(stdout.fill(pipes.1, caps.stdout), stderr.fill(pipes.2, caps.stderr), feed(pipes.0, input))
        };
        tokio::pin!(io);
        let mut read_all = false;
        let (status, stopped) = loop {
            tokio::select! {
                status = program.wait() => break (Some(status?), None),
                reason = stop.wait() => break (None, Some(reason)),
                _ = &mut io, if !read_all => read_all = true,
            }
        };
        program.kill_group();
        let exited = status.is_some_and(|status| status.code().is_some());
        let kill = async {
            if !exited {
                trace.kill().await;
            }
        };
        let drain = async {
            if !read_all {
                let _ = tokio::time::timeout(DRAIN, io).await;
            }
        };
        let reap = async {
            if stopped.is_some() {
                let _ = tokio::time::timeout(REAP, program.wait()).await;
            }
        };
        tokio::join!(kill, drain, reap);
        (status, stopped)
    };
    Ok(Ended { status, stopped, stdout, stderr })
}

/// Sets the limits before the program starts, so that it never runs without them.
#[allow(unsafe_code, reason = "between fork and exec only calls that are safe there may be made")]
fn limit(command: &mut Command, limits: LimitsConfig) {
    let resources = limits.resources();
    if resources.is_empty() {
        return;
    }
    let set = move || {
        for (resource, limit) in &resources {
            // A limit above the agent's own can't be set. The program then keeps the agent's.
            let (_, most) = getrlimit(*resource)?;
            let limit = (*limit).min(most);
            setrlimit(*resource, limit, limit)?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls that are async-signal-safe (getrlimit, setrlimit), and neither allocates nor
    // takes a lock; its vector was allocated before the fork.
    unsafe {
        command.pre_exec(set);
    }
}

async fn feed(pipe: Option<ChildStdin>, input: Option<Vec<u8>>) {
    if let (Some(mut pipe), Some(input)) = (pipe, input) {
        // A program need not read its input.
        let _ = pipe.write_all(&input).await;
    }
}
