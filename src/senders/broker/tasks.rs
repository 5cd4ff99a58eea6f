//! The tasks of a carrier: they run until it is closed.

use futures_util::future::join_all;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The wait before a task that ended is started again.
const RESTART_WAIT: Duration = Duration::from_millis(250);
/// How long a task has to finish what it is doing.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(crate) struct Tasks {
    stopping: watch::Sender<bool>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Tasks {
    /// Starts a task that runs until [`Tasks::stop`]. It is restarted when it panics or ends.
    pub(crate) fn start<F>(&self, name: &'static str, task: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = forever(name, self.stopping(), task);
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Becomes true when the tasks are to end.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Ends the tasks.
    pub(crate) async fn stop(&self) {
        self.stopping.send_replace(true);
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        join_all(handles).await;
    }
}

/// Waits until the value is true, or its sender is gone.
pub(crate) async fn told_to(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Runs a task until `stop`, and again after a panic or an end. A task that handles `stop` itself
/// gets some time for that.
fn forever<F>(
    name: &'static str,
    mut stop: watch::Receiver<bool>,
    task: impl Fn() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        while !*stop.borrow() {
            let mut running = tokio::spawn(task());
            tokio::select! {
                ended = &mut running => {
                    if let Err(error) = ended {
                        log::error!(task = name, error:%; "a task of a broker's sender panicked, and is restarted");
                    }
                    tokio::time::sleep(RESTART_WAIT).await;
                }
                () = told_to(&mut stop) => {
                    if tokio::time::timeout(CLOSE_TIMEOUT, &mut running).await.is_err() {
                        running.abort();
                    }
                }
            }
        }
    })
}
