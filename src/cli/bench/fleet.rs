//! A server with a fleet that is simulated by a sender. It takes commands over, and answers them at
//! once if the benchmark needs results.

use crate::Odoshi;
use crate::config::Config;
use crate::domain::action::NewAction;
use crate::domain::agent::Enrollment;
use crate::domain::audit::Author;
use crate::domain::protocol::OperationResult;
use crate::node::Running;
use crate::senders::{Cancelled, Deferred, Deliver, Drain, Outcome, SenderContext};
use crate::store::{ActionView, NewAgent};
use actix::prelude::*;
use serde_json::json;
use serde_json::value::RawValue;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use uuid::Uuid;

/// The fleet's transport.
const TRANSPORT: &str = "bench";
/// An output, with which a result has about 150 bytes.
const OUTPUT: &str = r#"{"exit_code":0,"stdout":" 12:00:00 up 42 days, load average: 0.00","stderr":""}"#;
/// The longest that a round may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A server, and the agents in its store.
pub(super) struct Fleet {
    running: Running,
    answering: Arc<AtomicBool>,
    batch: usize,
}

impl Fleet {
    /// Starts a server in `folder`, and puts `count` agents into its store.
    pub(super) async fn start(folder: &Path, store: Option<&str>, count: u32) -> Result<Self, Box<dyn Error>> {
        let mut flags = vec![
            ("data_dir".to_owned(), folder.join("server").display().to_string()),
            ("http.listen".to_owned(), "127.0.0.1:0".to_owned()),
        ];
        flags.extend(store.map(|url| ("store.url".to_owned(), url.to_owned())));
        let config = Config::load_with(None, std::iter::empty(), &flags)?;
        let batch = config.store.batch.max_items;
        let answering = Arc::new(AtomicBool::new(false));
        let shared = answering.clone();
        let make = move |context| BenchSender { context, answering: shared };
        let mut running = Odoshi::builder(config).sender(TRANSPORT, make).start().await?;
        running.ready().await?;
        for start in (0..count).step_by(10_000) {
            let agents = (start..count.min(start + 10_000)).map(|number| NewAgent {
                enrollment: Enrollment {
                    name: format!("agent-{number:07}"),
                    labels: None,
                    facts: None,
                    version: String::new(),
                },
                transport: TRANSPORT.into(),
                address: None,
                secret: None,
            });
            running.store().agent_insert(agents.collect()).await?;
        }
        Ok(Self { running, answering, batch })
    }

    /// Commands per transaction.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// Runs one action over the whole fleet. Returns the time until all its commands are stored or,
    /// with `life`, the action is completed.
    pub(super) async fn round(&self, life: bool) -> Result<Duration, Box<dyn Error>> {
        self.answering.store(life, Ordering::Release);
        let store = self.running.store();
        let document = json!({ "name": "bench", "target": "TRUE", "operations": [{ "module": "ping" }] });
        let id = Uuid::now_v7();
        let action = NewAction::from_json(document.to_string().as_bytes(), id, store.now())?;
        let started = Instant::now();
        store.action_insert(vec![action]).await?;
        self.running.actions_submitted();
        let done = |view: &ActionView| if life { view.status.is_final() } else { view.counts.resolved };
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            if store.action_view(id).await?.is_some_and(|view| done(&view)) {
                let took = started.elapsed();
                if !life {
                    store.action_cancel(id, &Author::server("bench")).await?;
                }
                self.settle(id).await?;
                return Ok(took);
            }
            if started.elapsed() > PATIENCE {
                return Err("the round did not end".into());
            }
        }
    }

    /// Waits until the action no longer affects the next round.
    async fn settle(&self, id: Uuid) -> Result<(), Box<dyn Error>> {
        let started = Instant::now();
        loop {
            let view = self.running.store().action_view(id).await?;
            if view.is_none_or(|view| view.counts.finished() == view.counts.total) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err("the round could not be put away".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the server.
    pub(super) async fn stop(self) -> Result<(), Box<dyn Error>> {
        Ok(self.running.drain().await?)
    }
}

/// More nodes on the same store, each on a thread of its own.
pub(super) struct Others(Vec<Other>);

/// What stops one, and its thread.
type Other = (oneshot::Sender<()>, JoinHandle<Result<(), String>>);

impl Others {
    /// Starts them. Returns when all are ready.
    pub(super) fn start(count: u32, folder: &Path, store: Option<&str>) -> Result<Self, Box<dyn Error>> {
        let mut others = Self(Vec::new());
        for number in 0..count {
            let (folder, store) = (folder.join(format!("other-{number}")), store.map(str::to_owned));
            let ((stop, stopped), (ready, is_ready)) = (oneshot::channel(), std::sync::mpsc::channel());
            let thread = std::thread::spawn(move || {
                let node = async {
                    let fleet = Fleet::start(&folder, store.as_deref(), 0).await?;
                    fleet.answering.store(true, Ordering::Release);
                    ready.send(()).ok();
                    stopped.await.ok();
                    fleet.stop().await
                };
                actix_rt::System::new().block_on(node).map_err(|error: Box<dyn Error>| error.to_string())
            });
            others.0.push((stop, thread));
            // If it can't be started, stopping says why.
            if is_ready.recv().is_err() {
                others.stop()?;
                return Err("another node ended".into());
            }
        }
        Ok(others)
    }

    /// Stops them.
    pub(super) fn stop(self) -> Result<(), Box<dyn Error>> {
        for (stop, thread) in self.0 {
            stop.send(()).ok();
            thread.join().map_err(|_| "another node crashed")??;
        }
        Ok(())
    }
}

struct BenchSender {
    context: SenderContext,
    answering: Arc<AtomicBool>,
}

impl Actor for BenchSender {
    type Context = Context<Self>;
}

impl Supervised for BenchSender {}

impl Handler<Deliver> for BenchSender {
    type Result = ResponseFuture<Vec<Deferred>>;

    fn handle(&mut self, Deliver(deliveries): Deliver, _: &mut Self::Context) -> Self::Result {
        let (context, now) = (self.context.clone(), self.context.store.now());
        let answering = self.answering.load(Ordering::Acquire);
        Box::pin(async move {
            if answering {
                let succeeded = || Outcome::Succeeded(vec![result()]);
                let reports = deliveries.iter().map(|delivery| delivery.report(succeeded(), now)).collect();
                // Unrecorded commands are delivered again.
                context.record(reports).await.ok();
            }
            Vec::new()
        })
    }
}

impl Handler<Cancelled> for BenchSender {
    type Result = ();

    fn handle(&mut self, _: Cancelled, _: &mut Self::Context) {}
}

impl Handler<Drain> for BenchSender {
    type Result = ();

    // Nothing is in flight when a `Deliver` has been answered.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
}

/// What an agent answers.
fn result() -> OperationResult {
    let output = RawValue::from_string(OUTPUT.to_owned()).ok();
    OperationResult { module: "exec".into(), ok: true, output, error: None, truncated: false, lossy: false }
}
