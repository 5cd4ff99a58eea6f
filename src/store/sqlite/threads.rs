//! Connections, each on a thread of its own.
//!
//! A call is one closure that goes to a thread and comes back as an answer: two hops between threads in all. The thread
//! that was used last is taken first, so that a quiet store works with one, whose caches are warm; threads are started
//! when all others are busy, up to the limit. A call that has begun runs to its end, even if the caller goes away.

use crate::error_chain::ErrorChain;
use crate::store::{StoreError, StoreResult};
use diesel::connection::{Connection, TransactionManager};
use diesel::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// How long a call waits for a thread before the store counts as busy.
const WAIT_FOR_THREAD: Duration = Duration::from_secs(10);

/// Opens a connection.
type Open = Box<dyn Fn() -> ConnectionResult<SqliteConnection> + Send + Sync>;

/// What a thread does with its connection; `None` before it is opened, and after a crash.
type Job = Box<dyn FnOnce(&mut Option<SqliteConnection>) + Send>;

/// A thread, which ends when its jobs do.
struct Thread {
    jobs: Sender<Job>,
    handle: JoinHandle<()>,
}

struct Shared {
    /// The threads without a job; the one that was used last is the last.
    idle: Mutex<Vec<Thread>>,
    open: Open,
}

impl Shared {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Thread>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some connections of the same kind. Idle ones are closed when this is dropped, the others after their call.
pub(super) struct Threads {
    shared: Arc<Shared>,
    /// One for each thread that may be busy.
    permits: Arc<Semaphore>,
}

impl Threads {
    /// Up to `size` connections, which are opened when they are needed.
    pub(super) fn new(
        size: usize,
        open: impl Fn() -> ConnectionResult<SqliteConnection> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared { idle: Mutex::default(), open: Box::new(open) });
        Self { shared, permits: Arc::new(Semaphore::new(size)) }
    }

    /// Runs a task on one of the connections.
    ///
    /// # Errors
    /// When all threads stay busy, when there is no connection, or what `failed` makes of the task's error.
    ///
    /// # Panics
    /// When the task does.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        during: &'static str,
        task: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
        failed: fn(&'static str, diesel::result::Error) -> StoreError,
    ) -> StoreResult<T> {
        let unavailable = |what: &str| StoreError::Unavailable(format!("{during}: {what}"));
        let permit = match timeout(WAIT_FOR_THREAD, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(unavailable("the store is closed")),
            Err(_) => return Err(unavailable("all connections are busy")),
        };
        let idle = self.shared.idle().pop();
        let thread = match idle {
            Some(thread) => thread,
            None => start().map_err(|error| unavailable(&format!("no thread: {error}")))?,
        };
        let jobs = thread.jobs.clone();
        let (answer, answered) = oneshot::channel();
        let shared = Arc::downgrade(&self.shared);
        let job: Job = Box::new(move |connection| {
            let done = catch_unwind(AssertUnwindSafe(|| call(connection, &shared, during, task, failed)));
            if done.is_err() {
                *connection = None;
            }
            if let Some(shared) = shared.upgrade() {
                shared.idle().push(thread);
            }
            drop(permit);
            answer.send(done).ok();
        });
        jobs.send(job).map_err(|_| unavailable("its thread has ended"))?;
        match answered.await {
            Ok(Ok(done)) => done,
            // A fault of the call's own code is its caller's.
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(unavailable("its thread has ended")),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut *self.shared.idle());
        for Thread { jobs, handle } in idle {
            drop(jobs);
            // The last connection brings the file up to date, and the next one to open it must find it so.
            handle.join().ok();
        }
    }
}

/// Runs a task, on a new connection if there is none that works.
fn call<T>(
    connection: &mut Option<SqliteConnection>,
    shared: &Weak<Shared>,
    during: &'static str,
    task: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
    failed: fn(&'static str, diesel::result::Error) -> StoreError,
) -> StoreResult<T> {
    type Manager = <SqliteConnection as Connection>::TransactionManager;
    // A transaction that could be neither committed nor rolled back.
    if connection.as_mut().is_some_and(Manager::is_broken_transaction_manager) {
        *connection = None;
    }
    let conn = match connection {
        Some(conn) => conn,
        None => {
            let unavailable = |what: &str| StoreError::Unavailable(format!("{during}: {what}"));
            let shared = shared.upgrade().ok_or_else(|| unavailable("the store is closed"))?;
            let opened = (shared.open)().map_err(|error| unavailable(&error.chain().to_string()))?;
            connection.insert(opened)
        }
    };
    task(conn).map_err(|error| failed(during, error))
}

fn start() -> std::io::Result<Thread> {
    let (jobs, received) = channel();
    let handle = std::thread::Builder::new().name("odoshi-sqlite".into()).spawn(move || work(&received))?;
    Ok(Thread { jobs, handle })
}

fn work(jobs: &Receiver<Job>) {
    let mut connection = None;
    while let Ok(job) = jobs.recv() {
        job(&mut connection);
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::sort;
    use super::*;
    use diesel::sql_query;
    use diesel::sql_types::Integer;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// `size` connections, and how often one was opened.
    fn threads(size: usize) -> (Threads, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let counter = opened.clone();
        let open = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            SqliteConnection::establish(":memory:")
        };
        (Threads::new(size, open), opened)
    }

    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        n: i32,
    }

    async fn one(threads: &Threads) -> StoreResult<i32> {
        let select = |conn: &mut SqliteConnection| Ok(sql_query("SELECT 1 AS n").get_result::<Row>(conn)?.n);
        threads.run("one", select, sort).await
    }

    #[actix_rt::test]
    async fn calls_one_after_the_other_use_one_connection() {
        let (threads, opened) = threads(4);
        for _ in 0..10 {
            assert_eq!(one(&threads).await.expect("it answers"), 1);
        }
        assert_eq!(opened.load(Ordering::Relaxed), 1);
    }

    #[actix_rt::test]
    async fn no_more_calls_run_at_a_time_than_there_may_be_connections() {
        let (threads, opened) = threads(3);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let calls = (0..30).map(|_| {
            let (running, most) = (running.clone(), most.clone());
            let task = move |_: &mut SqliteConnection| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            };
            threads.run("busy", task, sort)
        });
        for done in futures_util::future::join_all(calls).await {
            done.expect("it is done");
        }
        assert!(most.load(Ordering::SeqCst) <= 3 && opened.load(Ordering::Relaxed) <= 3);
    }

    #[actix_rt::test]
    async fn a_panic_is_the_callers_and_the_next_call_gets_a_new_connection() {
        let (threads, opened) = threads(1);
        let crash = |_: &mut SqliteConnection| -> QueryResult<()> { panic!("a fault of the call") };
        let crashed = AssertUnwindSafe(threads.run("crash", crash, sort));
        let panic = futures_util::FutureExt::catch_unwind(crashed).await.expect_err("it panics");
        assert_eq!(panic.downcast_ref(), Some(&"a fault of the call"));
        assert_eq!(one(&threads).await.expect("it answers"), 1);
        assert_eq!(opened.load(Ordering::Relaxed), 2);
    }

    #[actix_rt::test]
    async fn a_call_ends_whether_or_not_anybody_waits_for_it() {
        let (threads, _) = threads(1);
        let (begun, has_begun) = oneshot::channel();
        let (go_on, goes_on) = std::sync::mpsc::channel();
        let (ended, has_ended) = oneshot::channel();
        let task = move |_: &mut SqliteConnection| {
            begun.send(()).ok();
            goes_on.recv().ok();
            ended.send(()).ok();
            Ok(())
        };
        {
            let mut call = std::pin::pin!(threads.run("abandoned", task, sort));
            futures_util::future::select(&mut call, has_begun).await;
        }
        go_on.send(()).expect("it waits");
        has_ended.await.expect("it ends");
        assert_eq!(one(&threads).await.expect("it answers"), 1);
    }
}
