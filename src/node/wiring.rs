//! How the actors are wired.
//!
//! ```text
//!  spool/new ─▶ SpoolLoader ─┐
//!  POST /v1/actions ─────────┤
//!  recur (schedules) ────────┴▶ Resolver ─▶ CommandStore ─▶ DelayScheduler ─▶ SenderRouter ─▶ senders ─▶ agents
//!                                  pages       batches         due next                            │
//!                                                                                                  │ what happened
//!  reconcilers/: open actions, complete, advance, expire, overdue, leaving agents ────────▶ Outcomes ◀┘
//!                backlogs, live join, recur, hooks, watching, retention
//!
//!  what agents report (metadata) ─▶ sessions, check-ins, brokers ─▶ Metadata ─▶ watchers, here and at other nodes
//!
//!  Signals: whatever is committed wakes what waits for it, here (actors, watchers, long polls) and, through
//!           PeerNotifier, at other nodes
//! ```
//!
//! The wiring has two phases. [`Wiring::new`] makes all addresses, and from them the signals and
//! the [`Node`]. [`Wiring::start`] starts the actors, each with the node and its one downstream
//! address. So nothing is bound late. An actor that is never started is a compiler warning, since
//! the addresses are destructured without `..`.
//!
//! Actors are drained source first: intake stops, then each stage finishes its work, and the
//! outcomes come last. Work that isn't done by the deadline is still in the store. The pipeline
//! lives on one arbiter, because a message to another thread costs a wake-up. What users add has
//! threads of its own (`extension`).

use super::registration::Extensions;
use crate::config::Config;
use crate::context::Node;
use crate::domain::agent::STREAM;
use crate::domain::batch::Limits;
use crate::metrics;
use crate::pipeline::command_store::{CommandSink, CommandStore};
use crate::pipeline::delay_scheduler::DelayScheduler;
use crate::pipeline::metadata::{Metadata, MetadataSink};
use crate::pipeline::outcomes::{OutcomeSink, Outcomes};
use crate::pipeline::resolver::Resolver;
use crate::pipeline::sender_router::{Route, Routes, SenderRouter};
use crate::pipeline::spool::Spool;
use crate::pipeline::spool_loader::SpoolLoader;
use crate::reconcilers::Reconcilers;
use crate::runtime::{Batcher, Drain, Reconciler, Sink, Supervision, Unstarted, Waker, Writer};
use crate::senders::stream::{Opening, SessionDeps, SessionSink, Sessions, StreamSender};
use crate::senders::{HookSet, SenderContext};
use crate::signals::{ActionCache, Board, PeerNotifier, Presence, ReportPace, SchedulerInbox, Signals, StreamInbox};
use crate::store::Store;
use crate::zone_data::ZoneData;
use actix::prelude::*;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The addresses of all actors before they are started.
#[derive(Default)]
struct Addresses {
    spool_loader: Unstarted<Reconciler<SpoolLoader>>,
    resolver: Unstarted<Reconciler<Resolver>>,
    command_store: Unstarted<CommandStore>,
    delay_scheduler: Unstarted<DelayScheduler>,
    sender_router: Unstarted<SenderRouter>,
    stream_sender: Unstarted<StreamSender>,
    sessions: Unstarted<Sessions>,
    outcomes: Unstarted<Outcomes>,
    metadata: Unstarted<Metadata>,
    peers: Unstarted<PeerNotifier>,
    reconcilers: Reconcilers,
}

impl Addresses {
    /// The recipients of all signals.
    fn board(&self, extensions: &Extensions) -> Board {
        let Self { resolver, delay_scheduler, stream_sender, peers, reconcilers, .. } = self;
        let (scheduler, stream) = (delay_scheduler.address(), stream_sender.address());
        let own = stream.clone().recipient();
        Board {
            resolver: resolver.address().recipient(),
            scheduler: SchedulerInbox::of(&scheduler),
            stream: StreamInbox::of(&stream),
            senders: extensions.senders.iter().map(|sender| sender.cancelled.clone()).chain([own]).collect(),
            listeners: extensions.listeners.iter().map(|listener| listener.listener.clone()).collect(),
            open_actions: reconcilers.open_actions.address().recipient(),
            after_open_actions: vec![
                reconcilers.complete.address().recipient(),
                reconcilers.advance.address().recipient(),
                reconcilers.expire.address().recipient(),
            ],
            complete: reconcilers.complete.address().recipient(),
            backlogs: reconcilers.backlogs.address().recipient(),
            live_join: reconcilers.live_join.address().recipient(),
            live_sweep: reconcilers.live_sweep.address().recipient(),
            hooks: reconcilers.hooks.address().recipient(),
            recur: reconcilers.recur.address().recipient(),
            watching: reconcilers.watching.address().recipient(),
            peers: peers.address().recipient(),
        }
    }
}

/// The actors that are drained, source first.
pub(super) struct Stages {
    /// In sequence.
    before: Vec<Recipient<Drain>>,
    /// Concurrently.
    senders: Vec<Recipient<Drain>>,
    /// In sequence.
    after: Vec<Recipient<Drain>>,
    stream: Addr<StreamSender>,
}

impl Stages {
    /// Each actor finishes its work. A stopped one has nothing left.
    pub(super) async fn drain(&self) {
        for stage in &self.before {
            stage.send(Drain).await.ok();
        }
        futures_util::future::join_all(self.senders.iter().map(|sender| sender.send(Drain))).await;
        for stage in &self.after {
            stage.send(Drain).await.ok();
        }
    }

    /// Closes the agents' connections and nothing else.
    pub(super) async fn leave(&self) {
        self.stream.send(Drain).await.ok();
    }
}

/// Phase one: the addresses, and what is made from them.
pub(super) struct Wiring {
    node: Arc<Node>,
    addresses: Addresses,
    extensions: Extensions,
    serves_stream: bool,
}

/// The started actors.
pub(super) struct Wired {
    pub(super) node: Arc<Node>,
    pub(super) supervision: Supervision,
    pub(super) stages: Stages,
    pub(super) sessions: SessionDeps,
}

impl Wiring {
    /// Makes all addresses, the signals and the node.
    pub(super) fn new(store: Arc<dyn Store>, config: Config, serves_stream: bool, extensions: Extensions) -> Self {
        let addresses = Addresses::default();
        let actions = ActionCache::new(store.clone());
        let signals = Signals::new(addresses.board(&extensions), actions.clone());
        let (presence, metrics) = (Presence::default(), metrics::Metrics::default());
        let zones = ZoneData::load();
        let (reporter, pace) = (Writer::new(addresses.metadata.address()), ReportPace::default());
        let questions = Semaphore::new(1);
        let node =
            Arc::new(Node { store, actions, presence, signals, reporter, pace, metrics, questions, zones, config });
        Self { node, addresses, extensions, serves_stream }
    }

    /// Phase two: starts the actors, sink first.
    pub(super) fn start(self, spool: Spool, spool_files: usize, hooks: Option<HookSet>) -> Wired {
        let Self { node, addresses, extensions, serves_stream } = self;
        let Extensions { senders, actors, listeners } = extensions;
        let supervision = Supervision::new(node.config.supervision.clone());
        // Without `..`, so that an actor that is never started is an unused variable.
        let Addresses {
            spool_loader,
            resolver,
            command_store,
            delay_scheduler,
            sender_router,
            stream_sender,
            sessions,
            outcomes,
            metadata,
            peers,
            reconcilers,
        } = addresses;
        let outcomes = start_batcher(outcomes, OutcomeSink { node: node.clone() }, &node, &supervision);
        let metadata = start_metadata(metadata, &node, &supervision);
        let sink = SessionSink { node: node.clone(), opening: Opening::default() };
        let sessions = start_batcher(sessions, sink, &node, &supervision);
        let recorder = Writer::new(outcomes.clone());
        let context = SenderContext::new(node.clone(), recorder.clone(), STREAM);
        let stream = StreamSender::new(context.clone(), node.presence.clone(), Writer::new(sessions.clone()));
        let stream = stream_sender.start("stream_sender", stream, &supervision);
        let mut routes = Routes::new();
        let mut drained_senders = vec![stream.clone().recipient()];
        if serves_stream {
            routes.insert(STREAM.to_owned(), Route::Sessions(stream.clone().recipient()));
        }
        for sender in senders {
            routes.insert(sender.transport.to_owned(), Route::Sender(sender.deliver));
            drained_senders.push(sender.drain);
            let context = SenderContext::new(node.clone(), recorder.clone(), sender.transport);
            (sender.start)(context, &supervision);
        }
        let router = SenderRouter::new(node.clone(), routes, recorder.clone());
        let router = sender_router.start("sender_router", router, &supervision);
        let scheduler = DelayScheduler::new(node.clone(), router, recorder.clone());
        let scheduler = delay_scheduler.start("delay_scheduler", scheduler, &supervision);
        let notifier = PeerNotifier::new(node.store.clone(), node.signals.clone(), node.metrics.clone());
        let peers = peers.start("peers", notifier, &supervision);
        let sink = CommandSink { node: node.clone(), scheduler: scheduler.clone() };
        let commands = start_batcher(command_store, sink, &node, &supervision);
        let reconcilers = reconcilers.start(&node, &recorder, hooks, &supervision);
        let resolver = start_resolver(resolver, &node, Writer::new(commands.clone()), &supervision);
        let loader = start_spool_loader(spool_loader, &node, spool, spool_files, &supervision);

        let mut before = Vec::new();
        for actor in actors {
            before.push(actor.drain);
            (actor.start)(node.clone(), &supervision);
        }
        listeners.into_iter().for_each(|listener| (listener.start)(&supervision));
        before.extend([loader, resolver, commands.recipient(), peers.recipient(), scheduler.recipient()]);
        let after =
            reconcilers.into_iter().chain([outcomes.recipient(), metadata.recipient(), sessions.recipient()]).collect();
        let stages = Stages { before, senders: drained_senders, after, stream: stream.clone() };
        let sessions = SessionDeps::new(node.clone(), context, stream);
        Wired { node, supervision, stages, sessions }
    }
}

fn start_batcher<S: Sink>(
    unstarted: Unstarted<Batcher<S>>,
    sink: S,
    node: &Node,
    supervision: &Supervision,
) -> Addr<Batcher<S>> {
    let batch = &node.config.store.batch;
    let limits = Limits { max_items: batch.max_items, max_wait: batch.max_wait.0, idle: batch.idle.0 };
    unstarted.start(S::NAME, Batcher::new(sink, limits), supervision)
}

fn start_metadata(unstarted: Unstarted<Metadata>, node: &Arc<Node>, supervision: &Supervision) -> Addr<Metadata> {
    let settings = &node.config.metadata;
    // Agents report all the time: there is no pause to wait for.
    let (max_wait, idle) = (settings.flush_interval.0, settings.flush_interval.0);
    let batcher =
        Batcher::new(MetadataSink::new(node.clone()), Limits { max_items: settings.max_items, max_wait, idle });
    unstarted.start(MetadataSink::NAME, batcher, supervision)
}

fn start_resolver(
    unstarted: Unstarted<Reconciler<Resolver>>,
    node: &Arc<Node>,
    pages: crate::pipeline::command_store::PageWriter,
    supervision: &Supervision,
) -> Recipient<Drain> {
    let (progress, node) = (node.metrics.progress().clone(), node.clone());
    let resolver = Reconciler::new(progress, move || Resolver::new(node.clone(), pages.clone()));
    unstarted.start("resolver", resolver, supervision).recipient()
}

fn start_spool_loader(
    unstarted: Unstarted<Reconciler<SpoolLoader>>,
    node: &Arc<Node>,
    spool: Spool,
    files_per_round: usize,
    supervision: &Supervision,
) -> Recipient<Drain> {
    let waker = Waker::new(unstarted.address().recipient());
    let (progress, node) = (node.metrics.progress().clone(), node.clone());
    let loader = Reconciler::new(progress, move || {
        // The new instance must recover the files that the previous one held: each keeps its own
        // list.
        SpoolLoader::new(node.clone(), spool.reopened(), files_per_round, waker.clone())
    });
    unstarted.start("spool_loader", loader, supervision).recipient()
}
