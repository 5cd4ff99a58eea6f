//! What unit tests of actors are made of: a node on a temporary SQLite store, with a clock that they set and a signal board
//! that records who was woken by what.
//!
//! Nothing here starts an actor of the pipeline but the outcomes. A test starts the one that it is about, or calls
//! `run_once` of a reconciler, and then looks at the store ([`TestNode::states`]) and at the board ([`TestNode::heard`]).

use crate::config::Config;
use crate::context::Node;
use crate::domain::action::{Action, NewAction};
use crate::domain::agent::{Enrollment, Role, STREAM, Token};
use crate::domain::audit::Author;
use crate::domain::batch::Limits;
use crate::domain::command::{Answer, CommandState, Event, RunEnd};
use crate::domain::target::Target;
use crate::domain::time::{Span, Timestamp};
use crate::metrics::Metrics;
use crate::pipeline::metadata::MetadataSink;
use crate::pipeline::outcomes::OutcomeSink;
use crate::reconcilers::open_actions::ReadOpenActions;
use crate::runtime::{Batcher, Drain, Reconcile, Sink, Supervision, Unstarted, Wake, Writer};
use crate::senders::stream::DeliverToSessions;
use crate::senders::{Cancelled, Deliver, Delivery, DueCommand, Recorder, report_of};
use crate::signals::{
    ActionCache, AgentDisabled, BacklogChanged, Board, OpenActionsRead, PeerNews, Presence, Publish, ReportPace,
    Rescheduled, Resumed, SchedulerInbox, SessionSuperseded, Signals, StreamInbox,
};
use crate::store::sqlite::SqliteStore;
use crate::store::{
    Accepted, AgentNames, CommandPage, Due, Inserted, NewAgent, OpenAction, Opened, SessionOpening, Store,
};
use crate::zone_data::ZoneData;
use actix::prelude::*;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use serde_json::{Value, json};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc;
use uuid::Uuid;

/// A safety net: what a test waits for comes within milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(240);
/// Messages that one listener of the board has room for.
pub const MAILBOX: usize = 100;
/// A database's error that may pass, as [`TestNode::break_inserts`] wants it.
pub const AWAY: &str = "disk I/O error";
/// One that doesn't pass.
pub const REFUSED: &str = "it is not wanted";

/// Waits until something is so.
///
/// # Panics
/// When that takes too long.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The next message of a channel.
///
/// # Panics
/// When none comes.
pub async fn next<T>(channel: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(PATIENCE, channel.recv()).await.expect("it comes in time").expect("it is not closed")
}

/// Limits with which a batcher writes at once.
pub fn at_once() -> Limits {
    Limits { max_items: 1_000, max_wait: Duration::from_millis(2), idle: Duration::from_millis(1) }
}

/// Settings under which actors restart quickly.
pub fn supervision() -> Supervision {
    Supervision::new(crate::config::Supervision {
        backoff_min: Span::millis(1),
        backoff_max: Span::millis(2),
        ..Default::default()
    })
}

/// Starts a batcher over this sink.
pub fn batcher<S: Sink>(sink: S) -> Addr<Batcher<S>> {
    Unstarted::default().start(S::NAME, Batcher::new(sink, at_once()), &supervision())
}

/// One place of the board: it takes down what it hears.
struct Listener {
    name: &'static str,
    heard: Vec<String>,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

/// Test → listener: what was heard since the last time.
#[derive(Message)]
#[rtype(result = "Vec<String>")]
struct Heard;

impl Handler<Heard> for Listener {
    type Result = Vec<String>;

    fn handle(&mut self, _: Heard, _: &mut Self::Context) -> Vec<String> {
        std::mem::take(&mut self.heard)
    }
}

macro_rules! listens {
    ($($message:ty: $told:ident => $text:expr;)*) => {$(
        impl Handler<$message> for Listener {
            type Result = ();

            fn handle(&mut self, $told: $message, _: &mut Self::Context) {
                self.heard.push(format!("{}: {}", self.name, $text));
            }
        }
    )*};
}

listens! {
    Wake: _wake => "wake";
    Rescheduled: told => format!("rescheduled {:?}", told.0.iter().map(of_due).collect::<Vec<_>>());
    Cancelled: told => format!("cancelled {:?}", told.0.iter().map(|(no, _)| *no).collect::<Vec<_>>());
    Resumed: told => format!("resumed {:?}", told.0);
    PeerNews: told => format!("{told:?}");
    OpenActionsRead: told => format!("open actions {}", told.0.reading);
    AgentDisabled: told => format!("disabled {}", told.0);
    SessionSuperseded: told => format!("superseded {:?}", told.0);
    BacklogChanged: told => format!("backlog {:?}", told.0);
    Publish: told => format!("{:?}", told.0);
}

fn of_due(due: &Due) -> (i64, i64, i32) {
    (due.action_no, due.agent_no, due.run)
}

/// The listeners of a board, in the board's order.
struct Listeners(Vec<Addr<Listener>>);

impl Listeners {
    fn add(&mut self, name: &'static str) -> Addr<Listener> {
        let listener = Listener::create(|ctx: &mut Context<Listener>| {
            ctx.set_mailbox_capacity(MAILBOX);
            Listener { name, heard: Vec::new() }
        });
        self.0.push(listener.clone());
        listener
    }

    fn board(&mut self) -> Board {
        let resolver = self.add("resolver").recipient();
        let (scheduler, stream) = (self.add("scheduler"), self.add("stream"));
        Board {
            resolver,
            scheduler: SchedulerInbox::of(&scheduler),
            stream: StreamInbox::of(&stream),
            senders: vec![self.add("sender 1").recipient(), self.add("sender 2").recipient()],
            open_actions: self.add("open_actions").recipient(),
            after_open_actions: vec![self.add("after 1").recipient(), self.add("after 2").recipient()],
            complete: self.add("complete").recipient(),
            backlogs: self.add("backlogs").recipient(),
            live_join: self.add("live_join").recipient(),
            live_sweep: self.add("live_sweep").recipient(),
            hooks: self.add("hooks").recipient(),
            recur: self.add("recur").recipient(),
            watching: self.add("watching").recipient(),
            peers: self.add("peers").recipient(),
            listeners: Vec::new(),
        }
    }
}

/// A node of which nothing runs but the outcomes. See the module.
pub struct TestNode {
    pub node: Arc<Node>,
    pub store: Arc<dyn Store>,
    sqlite: Arc<SqliteStore>,
    /// The way into the outcomes, which are recorded at once.
    pub recorder: Recorder,
    listeners: Listeners,
    offset: Cell<i64>,
    dir: TempDir,
}

impl TestNode {
    /// With the default settings.
    pub async fn new() -> Self {
        Self::with(Config::default()).await
    }

    /// With these settings.
    pub async fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let sqlite = Arc::new(SqliteStore::open(&dir.path().join("test.db"), 2).await.expect("a store"));
        let store: Arc<dyn Store> = sqlite.clone();
        store.hook_register(config.hook_listeners());
        store.node_start("test", &[STREAM.to_owned(), "webhook".to_owned()]).await.expect("a node");
        let mut listeners = Listeners(Vec::new());
        let actions = ActionCache::new(store.clone());
        let signals = Signals::new(listeners.board(), actions.clone());
        let (presence, metrics) = (Presence::default(), Metrics::default());
        let zones = ZoneData::load();
        let metadata = Unstarted::default();
        let (reporter, pace) = (Writer::new(metadata.address()), ReportPace::default());
        let store_of = store.clone();
        let questions = tokio::sync::Semaphore::new(1);
        let node = Arc::new(Node {
            store: store_of,
            actions,
            presence,
            signals,
            reporter,
            pace,
            metrics,
            questions,
            zones,
            config,
        });
        metadata.start(MetadataSink::NAME, Batcher::new(MetadataSink::new(node.clone()), at_once()), &supervision());
        let recorder = Writer::new(batcher(OutcomeSink { node: node.clone() }));
        Self { node, store, sqlite, recorder, listeners, offset: Cell::new(0), dir }
    }

    /// A folder that is removed with the node.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Moves the store's clock on.
    pub fn pass(&self, time: Duration) {
        self.offset.set(self.offset.get() + i64::try_from(time.as_millis()).expect("a time that fits"));
        self.sqlite.set_offset(self.offset.get());
    }

    /// Who was told what since the last call, in the board's order, as `name: what`.
    pub async fn heard(&self) -> Vec<String> {
        let mut all = Vec::new();
        for listener in &self.listeners.0 {
            all.extend(listener.send(Heard).await.expect("a listener lives"));
        }
        all
    }

    /// Whether somebody was told this since the last call.
    pub async fn has_heard(&self, what: &str) -> bool {
        self.heard().await.iter().any(|heard| heard == what)
    }

    /// Runs SQL on the store's file, beside the store.
    pub fn sql(&self, text: &str) {
        let file = self.dir.path().join("test.db").display().to_string();
        let mut conn = SqliteConnection::establish(&file).expect("a connection");
        conn.batch_execute(&format!("PRAGMA busy_timeout = 10000; {text}")).expect("valid SQL");
    }

    /// From now on inserts into a table fail with this error ([`AWAY`], [`REFUSED`]) where a condition on `NEW` is true.
    pub fn break_inserts(&self, table: &str, condition: &str, error: &str) {
        self.sql(&format!(
            "CREATE TRIGGER broken_{table} BEFORE INSERT ON {table} WHEN {condition} \
             BEGIN SELECT RAISE(ABORT, '{error}'); END"
        ));
    }

    /// Inserts into a table work again.
    pub fn mend_inserts(&self, table: &str) {
        self.sql(&format!("DROP TRIGGER broken_{table}"));
    }

    /// Adds so many agents of a transport, `agent-00000` and on; answers their keys, in order.
    pub async fn agents_of(&self, transport: &str, number: usize) -> Vec<i64> {
        let known = self.store.agent_match(&Target::All, 0, usize::MAX).await.unwrap();
        let named = |n: usize| Enrollment { name: format!("agent-{n:05}"), ..Enrollment::default() };
        let agents = (known.len()..known.len() + number).map(|n| NewAgent {
            enrollment: named(n),
            transport: transport.into(),
            address: None,
            secret: None,
        });
        self.store.agent_insert(agents.collect()).await.unwrap();
        let last = known.last().map_or(0, |(no, _)| *no);
        let added = self.store.agent_match(&Target::All, last, usize::MAX).await.unwrap();
        assert_eq!(added.len(), number);
        added.into_iter().map(|(no, _)| no).collect()
    }

    /// Adds so many agents that connect by themselves.
    pub async fn agents(&self, number: usize) -> Vec<i64> {
        self.agents_of(STREAM, number).await
    }

    /// Adds an agent, and a live action for all but `agent-00002`, which was resolved when there was that one.
    pub async fn live_action(&self) -> Arc<Action> {
        let agents = self.agents(1).await;
        let document = json!({"membership": "live", "target": "name <> 'agent-00002'", "expires_after": "1h"});
        self.resolved(document, &agents).await
    }

    /// Gives an agent a token that is valid.
    pub async fn token(&self, agent_no: i64) -> Uuid {
        let token = Token {
            id: Uuid::now_v7(),
            role: Role::Agent,
            name: "test".into(),
            agent_no: Some(agent_no),
            created_at: self.store.now(),
            expires_at: None,
            revoked_at: None,
            is_unused: false,
        };
        self.store.token_insert(&token, token.id.as_bytes().to_vec(), &me()).await.unwrap();
        token.id
    }

    /// Writes that these agents are connected here; answers their epochs.
    pub async fn connect(&self, agents: &[i64]) -> Vec<i64> {
        let openings: Vec<_> = agents
            .iter()
            .map(|agent_no| SessionOpening { agent_no: *agent_no, token: None, after: None, instance: None })
            .collect();
        let opened = self.store.session_open(&openings).await.unwrap();
        agents.iter().for_each(|agent_no| self.node.presence.insert(*agent_no));
        let epochs = opened.into_iter().map(|opened| match opened {
            Opened::As(epoch) => epoch,
            refused => panic!("{refused:?}"),
        });
        epochs.collect()
    }

    /// Has an action accepted, with these keys of its document changed.
    pub async fn submit(&self, changes: Value) -> Arc<Action> {
        let accepted = self.store.action_insert(vec![new_action(changes, self.store.now())]).await.unwrap();
        let [Accepted::Stored { no, .. }] = accepted[..] else { panic!("{accepted:?}") };
        self.node.actions.get(no).await.unwrap().expect("it is stored")
    }

    /// Has an action accepted and all its commands written, one for each of these agents.
    pub async fn resolved(&self, changes: Value, agents: &[i64]) -> Arc<Action> {
        let action = self.submit(changes).await;
        self.commands(&action, 0, agents, true).await;
        action
    }

    /// Writes a page of commands that are due when their action is.
    pub async fn commands(&self, action: &Action, after: i64, agents: &[i64], last: bool) {
        let commands = agents.iter().map(|agent_no| (*agent_no, None)).collect();
        let through = agents.last().copied().unwrap_or(after);
        let page = CommandPage { action_no: action.no, after, through, commands, last };
        assert_eq!(self.store.command_insert(vec![page]).await.unwrap(), [Inserted::Written]);
    }

    /// Records what happened to a command, past the outcomes: no signal is given.
    pub async fn tell(&self, action: &Action, agent_no: i64, event: Event) -> Answer {
        self.store.outcome_record(&[report_of(action, agent_no, event)]).await.unwrap().remove(0)
    }

    /// Its agent has a command.
    pub async fn sent(&self, action: &Action, agent_no: i64) {
        let event = Event::Sent { run: 1, attempts: 0, at: self.store.now() };
        assert_eq!(self.tell(action, agent_no, event).await, Answer::Stored);
    }

    /// The first run of a command ends well.
    pub async fn succeed(&self, action: &Action, agent_no: i64) {
        let event = Event::Result(Box::new(end(1, CommandState::Succeeded, self.store.now())));
        assert_eq!(self.tell(action, agent_no, event).await, Answer::Stored);
    }

    /// The states of an action's commands, by agent name.
    pub async fn states(&self, action: &Action) -> Vec<CommandState> {
        let commands = self.store.command_list(action.id, None, AgentNames::ALL, usize::MAX).await.unwrap();
        commands.into_iter().map(|command| command.status).collect()
    }

    /// An action as the store lists it, while it has not ended.
    pub async fn open(&self, action: &Action) -> Option<OpenAction> {
        let open = self.store.action_list_open(0, usize::MAX).await.unwrap();
        open.into_iter().find(|open| open.no == action.no)
    }

    /// Reads the open actions, as their reconciler does.
    pub async fn read_open_actions(&self) {
        ReadOpenActions::new(self.node.clone()).run_once().await.unwrap();
    }

    /// Changes what was read of one open action, as another node's share or an older reading would have it.
    pub fn pretend(&self, no: i64, change: impl Fn(&mut OpenAction)) {
        let open_actions = self.node.signals.open_actions();
        let last = open_actions.last();
        let mut actions = last.actions.clone();
        actions.iter_mut().filter(|action| action.no == no).for_each(change);
        open_actions.set(crate::signals::Snapshot { reading: last.reading, actions });
    }
}

/// Who does what the tests do.
pub fn me() -> Author {
    Author::server("test")
}

/// A valid action, with these keys of its document changed.
pub fn new_action(changes: Value, now: Timestamp) -> NewAction {
    let mut document = json!({"name": "test", "target": "TRUE", "operations": [{"module": "ping"}]});
    for (key, value) in changes.as_object().expect("an object") {
        document[key] = value.clone();
    }
    NewAction::from_json(document.to_string().as_bytes(), Uuid::now_v7(), now).expect("a valid document")
}

/// An action that is in no store.
pub fn action(no: i64, changes: Value, now: Timestamp) -> Arc<Action> {
    Arc::new(Action::from_new(no, &new_action(changes, now), false, false).expect("a valid action"))
}

/// The first run of a command of `action`, due when the action is, on its way to its agent.
pub fn delivery(action: &Arc<Action>, agent_no: i64) -> DueCommand {
    let due = Due {
        action_no: action.no,
        agent_no,
        run: 1,
        attempts: 0,
        due_at: action.valid_from,
        priority: action.priority,
        open: false,
    };
    DueCommand { due, action: action.clone() }
}

/// How a run ended.
pub fn end(run: i32, status: CommandState, now: Timestamp) -> RunEnd {
    RunEnd {
        run,
        status,
        attempts: 0,
        sent_at: Some(now),
        started_at: Some(now),
        finished_at: now,
        results: Some("[]".into()),
        error: None,
    }
}

/// A sender that passes on what it is given, and crashes once when that is for an agent with the key `fatal`.
pub struct TestSender {
    pub delivered: mpsc::UnboundedSender<DueCommand>,
    pub fatal: Option<i64>,
}

impl TestSender {
    /// Starts one; answers where commands go, and where they come out.
    pub fn start(fatal: Option<i64>) -> (Addr<Self>, mpsc::UnboundedReceiver<DueCommand>) {
        let (delivered, deliveries) = mpsc::unbounded_channel();
        let sender = Unstarted::default().start("test_sender", Self { delivered, fatal }, &supervision());
        (sender, deliveries)
    }
}

impl Actor for TestSender {
    type Context = Context<Self>;
}

impl Supervised for TestSender {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.fatal = None;
    }
}

impl Handler<DeliverToSessions> for TestSender {
    type Result = ();

    fn handle(&mut self, DeliverToSessions(commands): DeliverToSessions, _: &mut Self::Context) {
        let is_fatal = commands.iter().any(|command| Some(command.due.agent_no) == self.fatal);
        assert!(!is_fatal, "a fatal delivery");
        for command in commands {
            self.delivered.send(command).ok();
        }
    }
}

impl Handler<Deliver> for TestSender {
    type Result = MessageResult<Deliver>;

    fn handle(&mut self, Deliver(deliveries): Deliver, ctx: &mut Self::Context) -> Self::Result {
        let commands = deliveries.into_iter().map(Delivery::into_command).collect();
        self.handle(DeliverToSessions(commands), ctx);
        MessageResult(Vec::new())
    }
}

impl Handler<Drain> for TestSender {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
}
