use super::*;
use crate::agent::broker::{Broker, BrokerConnection, Link, LinkError, Message};
use crate::agent::config::{AgentConfig, BackoffConfig};
use crate::agent::journal::{Journal, SharedJournal, State};
use crate::agent::modules::Modules;
use crate::agent::outbox::Outbox;
use crate::agent::runner::Runner;
use crate::agent::server_clock::ServerClock;
use crate::agent::session::SessionDeps;
use crate::domain::broker::to_agent;
use crate::domain::protocol::{AgentFrame, Hello, RunStatus, ServerFrame, Stored, Welcome};
use crate::domain::time::Span;
use tempfile::TempDir;
use tokio::sync::watch;

/// The broker's end of a connection.
struct Peer {
    /// What the agent published; answered when the broker has it.
    published: mpsc::UnboundedReceiver<(AgentFrame, oneshot::Sender<()>)>,
    messages: mpsc::UnboundedSender<(u32, String)>,
    acks: mpsc::UnboundedReceiver<u32>,
    last: u32,
}

struct FakeLink {
    published: mpsc::UnboundedSender<(AgentFrame, oneshot::Sender<()>)>,
    messages: mpsc::UnboundedReceiver<(u32, String)>,
    acks: mpsc::UnboundedSender<u32>,
    largest: usize,
}

fn gone() -> LinkError {
    LinkError("the broker is gone".into())
}

#[async_trait]
impl Link for FakeLink {
    type Ack = u32;

    fn max_message(&self) -> usize {
        self.largest
    }

    async fn publish(&mut self, message: String) -> Result<(), LinkError> {
        assert!(message.len() <= self.largest, "{} bytes", message.len());
        let frame = AgentFrame::parse(&message).expect("a frame").expect("a known one");
        let (tell, confirmed) = oneshot::channel();
        self.published.send((frame, tell)).map_err(|_| gone())?;
        confirmed.await.map_err(|_| gone())
    }

    async fn next(&mut self, room: usize) -> Result<Message<u32>, LinkError> {
        assert!(room > 0);
        let (ack, payload) = self.messages.recv().await.ok_or_else(gone)?;
        Ok(Message { payload: payload.into(), ack })
    }

    async fn ack(&mut self, ack: u32) -> Result<(), LinkError> {
        self.acks.send(ack).map_err(|_| gone())
    }

    async fn keep(&mut self, _: &u32) -> Result<(), LinkError> {
        Ok(())
    }

    async fn close(&mut self) {}
}

/// A broker that tells of every connection.
struct FakeBroker {
    peers: mpsc::UnboundedSender<Peer>,
    largest: usize,
}

#[async_trait]
impl Broker for FakeBroker {
    type Link = FakeLink;

    async fn connect(&mut self) -> Result<FakeLink, LinkError> {
        let (tell_published, published) = mpsc::unbounded_channel();
        let (send, messages) = mpsc::unbounded_channel();
        let (tell_acks, acks) = mpsc::unbounded_channel();
        self.peers.send(Peer { published, messages: send, acks, last: 0 }).map_err(|_| gone())?;
        Ok(FakeLink { published: tell_published, messages, acks: tell_acks, largest: self.largest })
    }
}

impl Peer {
    async fn hello(&mut self) -> Hello {
        match self.frame().await {
            AgentFrame::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    /// The next frame, which the broker confirms.
    async fn frame(&mut self) -> AgentFrame {
        let (frame, confirm) = self.unconfirmed().await;
        let _ = confirm.send(());
        frame
    }

    async fn unconfirmed(&mut self) -> (AgentFrame, oneshot::Sender<()>) {
        soon(self.published.recv()).await.expect("a frame")
    }

    async fn received(&mut self) -> Vec<RunRef> {
        match self.frame().await {
            AgentFrame::Received { commands } => commands,
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, frame: &ServerFrame) -> u32 {
        self.send_text(to_agent(frame, "a", Timestamp::of_this_machine()))
    }

    fn send_text(&mut self, text: String) -> u32 {
        self.last += 1;
        self.messages.send((self.last, text)).expect("the agent reads");
        self.last
    }

    fn command(&mut self, n: u128) -> u32 {
        self.send(&ServerFrame::Commands { commands: vec![command(n)] })
    }

    fn welcome(&mut self, hello: &Hello) -> u32 {
        let (agent, server_time) = ("a".into(), Timestamp::of_this_machine());
        self.send(&ServerFrame::Welcome(Welcome { agent, server_time, clock: hello.clock, metadata_interval: None }))
    }

    async fn acked(&mut self) -> u32 {
        soon(self.acks.recv()).await.expect("an acknowledgment")
    }
}

struct Rig {
    _dir: TempDir,
    peers: mpsc::UnboundedReceiver<Peer>,
    at_gate: mpsc::UnboundedReceiver<AtGate>,
    journal: SharedJournal,
    /// Ends the connection when dropped.
    _stop: watch::Sender<bool>,
}

impl Rig {
    fn start(capacity: u32, largest: usize) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (journal, recovered) = Journal::open(dir.path(), Timestamp::of_this_machine()).expect("a journal");
        let (journal, outbox) = (SharedJournal::new(journal), Arc::new(Outbox::default()));
        let clock = Arc::new(ServerClock::default());
        let (gate, at_gate, _) = Gate::new();
        let config = AgentConfig {
            name: "a".into(),
            backoff: BackoffConfig { min: Span::millis(1), max: Span::millis(2) },
            ..AgentConfig::default()
        };
        let modules = Modules::new(&config).with("gate", gate);
        let runner = Runner::new(capacity, modules, journal.clone(), recovered, outbox.clone(), clock.clone());
        let (inputs, inbox) = mpsc::channel(2);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(runner.run(inbox, stopped.clone()));
        let reports = Arc::default();
        let deps =
            SessionDeps { capacity, instance: Uuid::nil(), journal: journal.clone(), outbox, clock, inputs, reports };
        let (tell, peers) = mpsc::unbounded_channel();
        tokio::spawn(BrokerConnection::new(&config, deps, FakeBroker { peers: tell, largest }).run(stopped));
        Self { _dir: dir, peers, at_gate, journal, _stop: stop }
    }

    async fn connection(&mut self) -> Peer {
        soon(self.peers.recv()).await.expect("a connection")
    }

    /// A connection whose hello is answered.
    async fn welcomed(&mut self) -> Peer {
        let mut peer = self.connection().await;
        let hello = peer.hello().await;
        let welcome = peer.welcome(&hello);
        assert_eq!(peer.acked().await, welcome);
        peer
    }

    async fn next_at_gate(&mut self) -> AtGate {
        soon(self.at_gate.recv()).await.expect("somebody at the gate")
    }
}

#[tokio::test]
async fn commands_are_acknowledged_once_the_journal_has_them_and_the_broker_has_received() {
    let mut rig = Rig::start(4, usize::MAX);
    let mut peer = rig.welcomed().await;
    let message = peer.command(1);
    let (frame, confirm) = peer.unconfirmed().await;
    assert!(matches!(frame, AgentFrame::Received { commands } if commands == [run_ref(1)]));
    assert!(rig.journal.peek(|journal| journal.state(run_ref(1))).is_some());
    assert!(peer.acks.try_recv().is_err(), "`received` isn't at the broker yet");
    confirm.send(()).expect("the agent waits");
    assert_eq!(peer.acked().await, message);
    rig.next_at_gate().await.end(true);
    let AgentFrame::Results { results } = peer.frame().await else { panic!("no results") };
    assert_eq!((results[0].run_ref(), results[0].status), (run_ref(1), RunStatus::Succeeded));
    let stored = peer.send(&ServerFrame::Stored(Stored { commands: vec![run_ref(1)], rejected: vec![] }));
    assert_eq!(peer.acked().await, stored);
}

#[tokio::test]
async fn commands_from_before_the_first_welcome_are_dropped_and_old_welcomes_do_not_count() {
    let mut rig = Rig::start(4, usize::MAX);
    let mut peer = rig.connection().await;
    let hello = peer.hello().await;
    let old = Hello { clock: hello.clock.map(|clock| clock.minus(Duration::from_secs(3_600))), ..hello.clone() };
    for message in [peer.command(1), peer.welcome(&old), peer.command(2), peer.welcome(&hello)] {
        assert_eq!(peer.acked().await, message);
    }
    peer.command(3);
    assert_eq!(peer.received().await, [run_ref(3)]);
    // Another connection of the same process keeps the clock that it has.
    drop(peer);
    let mut peer = rig.connection().await;
    assert_eq!(peer.hello().await.running, [run_ref(3)]);
    peer.command(4);
    assert_eq!(peer.received().await, [run_ref(4)]);
}

#[tokio::test]
async fn a_command_that_has_expired_when_it_is_read_is_answered_so() {
    let mut rig = Rig::start(4, usize::MAX);
    let mut peer = rig.welcomed().await;
    let mut late = command(1);
    late.expires_at = Timestamp::of_this_machine().minus(Duration::from_secs(60));
    let message = peer.send(&ServerFrame::Commands { commands: vec![late] });
    let AgentFrame::Results { results } = peer.frame().await else { panic!("no results") };
    assert_eq!(results[0].status, RunStatus::Expired);
    assert_eq!(peer.acked().await, message);
}

#[tokio::test]
async fn a_busy_agent_holds_messages_takes_the_urgent_one_first_and_hears_cancels() {
    let mut rig = Rig::start(1, usize::MAX);
    let mut peer = rig.welcomed().await;
    let first = peer.command(1);
    assert_eq!(peer.received().await, [run_ref(1)]);
    assert_eq!(peer.acked().await, first);
    let _low = peer.command(2);
    let cancelled = peer.command(3);
    let urgent = Command { priority: 9, ..command(4) };
    let urgent = peer.send(&ServerFrame::Commands { commands: vec![urgent] });
    let cancel = peer.send(&ServerFrame::Cancel { actions: vec![Uuid::from_u128(3)] });
    assert_eq!([peer.acked().await, peer.acked().await], [cancelled, cancel]);
    rig.next_at_gate().await.end(true);
    assert!(matches!(peer.frame().await, AgentFrame::Results { .. }));
    assert_eq!(peer.received().await, [run_ref(4)]);
    assert_eq!(peer.acked().await, urgent);
    assert_eq!(rig.journal.peek(|journal| journal.state(run_ref(3))), None, "it never got that far");
}

#[tokio::test]
async fn what_is_no_message_for_this_agent_is_dropped() {
    let mut rig = Rig::start(4, usize::MAX);
    let mut peer = rig.welcomed().await;
    let other = ServerFrame::Commands { commands: vec![command(1)] };
    let other = to_agent(&other, "b", Timestamp::of_this_machine());
    for text in [other, "nonsense".into(), r#"{"type":"weather"}"#.into()] {
        let message = peer.send_text(text);
        assert_eq!(peer.acked().await, message);
    }
    peer.command(2);
    assert_eq!(peer.received().await, [run_ref(2)]);
}

#[tokio::test]
async fn results_that_the_broker_did_not_confirm_are_sent_again_by_the_next_connection() {
    let mut rig = Rig::start(4, usize::MAX);
    let mut peer = rig.welcomed().await;
    peer.command(1);
    peer.received().await;
    rig.next_at_gate().await.end(true);
    let (frame, _) = peer.unconfirmed().await;
    assert!(matches!(frame, AgentFrame::Results { .. }));
    drop(peer);
    let mut peer = rig.connection().await;
    assert_eq!(peer.hello().await.running, [run_ref(1)]);
    assert!(matches!(peer.frame().await, AgentFrame::Results { results } if results[0].run_ref() == run_ref(1)));
    assert_eq!(rig.journal.peek(|journal| journal.state(run_ref(1))), Some(State::Done));
}

#[tokio::test]
async fn a_result_is_cut_to_what_the_broker_takes() {
    let mut rig = Rig::start(4, 16 * 1024);
    let mut peer = rig.welcomed().await;
    let large = with_operations(1, &format!(r#"[{{"module":"gate","parameters":"{}"}}]"#, "x".repeat(100_000)));
    peer.send(&ServerFrame::Commands { commands: vec![large] });
    peer.received().await;
    rig.next_at_gate().await.end(true);
    let AgentFrame::Results { results } = peer.frame().await else { panic!("no results") };
    assert!(results[0].results[0].truncated && results[0].status == RunStatus::Succeeded);
}
