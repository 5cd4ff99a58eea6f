//! The stream sender: hands commands to agents that are connected by WebSocket.
//!
//! Receives [`Deliver`] from the sender router, and [`Connect`]/[`Disconnect`] from the [`session`]s, one per connection.
//! It knows which session belongs to which agent, and passes each command on; what can't be passed on (the agent has gone,
//! or its session has no room) gets a `waiting` row, and the session reads it from the store later. Twice a minute it compares
//! its connections with what the store says of them.
//!
//! Dies: the sessions notice that their channel is closed, connect again and read their backlog from the store.

pub mod connection;
pub mod desk;
mod greeting;
pub(crate) mod records;
pub mod session;
pub mod sessions;

use super::SenderContext;
use crate::pipeline::batcher::Put;
use crate::pipeline::messages::{Backlog, Banned, Cancelled, Deliver, Delivery, Drain, Moved};
use crate::pipeline::presence::Presence;
use crate::store::{Opened, SessionHeld, SessionOpening, SessionState};
use actix::prelude::*;
use desk::hold_report;
use sessions::{SessionChange, SessionSink, Sessions};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// How often connections are compared with what the store knows of them and their agents.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// Connections per comparison.
const CHECK_PAGE: usize = 1_000;
/// Messages on their way to one session.
const TO_SESSION: usize = 64;

/// Stream sender → a session.
#[derive(Debug)]
pub enum ToSession {
    /// Hand these over.
    Commands(Vec<Delivery>),
    /// A user ended these.
    Cancelled(Arc<[(i64, Uuid)]>),
    /// A newer connection of this agent is here.
    Replaced,
    /// The server goes away.
    Leave,
    /// The agent is disabled or removed.
    Banned,
}

/// Session → stream sender: this agent is connected. Answered when the store knows; then the backlog can be read.
#[derive(Message)]
#[rtype(result = "Result<Connected, NotConnected>")]
pub struct Connect {
    /// The agent.
    pub agent_no: i64,
    /// The token that it has shown.
    pub token: Uuid,
    /// The same connection was signed on before, with this epoch.
    pub after: Option<i64>,
}

/// Why a connection is not signed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotConnected {
    /// This process stops, or the store could not be asked.
    Away,
    /// The agent is disabled or removed, or its token is not valid any more.
    NotAllowed,
    /// The agent has a newer connection.
    Replaced,
}

/// A session's end of its connection to the stream sender.
pub struct Connected {
    /// What is to be done.
    pub inbox: mpsc::Receiver<ToSession>,
    /// Set when something didn't fit into the inbox: the store has more.
    pub more: Arc<AtomicBool>,
    /// Set when a newer connection of the agent is here, also if the inbox had no room to say so.
    pub replaced: Arc<AtomicBool>,
    /// Which of the agent's connections it is, for the store.
    pub epoch: i64,
    /// Signs the connection off.
    _sign_off: SignOff,
}

/// Tells the stream sender that a connection is gone, however it went: its task may have panicked, or may never have
/// learned that it was signed on.
struct SignOff {
    sender: Addr<StreamSender>,
    agent_no: i64,
    serial: u64,
    epoch: Option<i64>,
}

impl Drop for SignOff {
    fn drop(&mut self) {
        let Self { agent_no, serial, epoch, .. } = *self;
        self.sender.do_send(Disconnect { agent_no, serial, epoch });
    }
}

/// Session → stream sender: this connection is gone, and all that it held is recorded, or is found in the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    /// The agent.
    pub agent_no: i64,
    /// Which of its connections to this process.
    pub serial: u64,
    /// The same for the store, if it has said so.
    pub epoch: Option<i64>,
}

struct Handle {
    serial: u64,
    token: Uuid,
    /// Which of the agent's connections it is; while the store has not said so, none before it is newer.
    epoch: Option<i64>,
    inbox: mpsc::Sender<ToSession>,
    more: Arc<AtomicBool>,
    replaced: Arc<AtomicBool>,
}

/// See the module.
pub struct StreamSender {
    context: SenderContext,
    presence: Presence,
    sessions: Addr<Sessions>,
    by_agent: HashMap<i64, Handle>,
    last_serial: u64,
    /// The connections are being compared with what the store knows.
    checking: bool,
    drained: Option<oneshot::Sender<()>>,
    leaving: bool,
}

impl StreamSender {
    /// With no agent connected.
    pub fn new(context: SenderContext, presence: Presence, sessions: Addr<Sessions>) -> Self {
        Self {
            context,
            presence,
            sessions,
            by_agent: HashMap::new(),
            last_serial: 0,
            checking: false,
            drained: None,
            leaving: false,
        }
    }

    /// Has a session end; if it has no room to be told, it finds its channel closed.
    fn close(&mut self, agent_no: i64, why: ToSession) {
        let Some(handle) = self.by_agent.get(&agent_no) else { return };
        if handle.inbox.try_send(why).is_err() {
            handle.replaced.store(true, Ordering::Release);
            self.by_agent.remove(&agent_no);
            self.presence.remove(agent_no);
        }
    }

    /// Has a session look at the store for more.
    fn wake(&self, agent_no: i64) {
        if let Some(handle) = self.by_agent.get(&agent_no) {
            handle.more.store(true, Ordering::Release);
            // It looks when it is woken; a full inbox wakes it anyway.
            handle.inbox.try_send(ToSession::Commands(Vec::new())).ok();
        }
    }

    /// Has a session end, since its agent has a newer connection.
    fn replace(&mut self, agent_no: i64) {
        if let Some(handle) = self.by_agent.get(&agent_no) {
            handle.replaced.store(true, Ordering::Release);
            self.close(agent_no, ToSession::Replaced);
        }
    }

    /// Compares all connections with what the store knows, a page at a time: an agent may be disabled or removed, or
    /// connected elsewhere, and nobody said so; and a row may be missing.
    fn check(&mut self, ctx: &mut Context<Self>) {
        if self.checking || self.leaving || self.by_agent.is_empty() {
            return;
        }
        self.checking = true;
        let held = self.by_agent.iter().filter_map(|(agent_no, handle)| {
            Some(SessionHeld { agent_no: *agent_no, token: Some(handle.token), epoch: handle.epoch? })
        });
        let mut held: Vec<SessionHeld> = held.collect();
        held.sort_unstable_by_key(|session| session.agent_no);
        let store = self.context.store.clone();
        let checked = async move {
            let mut checked = Vec::new();
            for page in held.chunks(CHECK_PAGE) {
                match store.session_check(page).await {
                    Ok(states) => {
                        let odd = page.iter().copied().zip(states).filter(|(_, state)| *state != SessionState::Current);
                        checked.extend(odd);
                    }
                    Err(error) => {
                        log::debug!(error = error.to_string().as_str(); "connections are compared again later");
                        break;
                    }
                }
            }
            checked
        };
        ctx.spawn(checked.into_actor(self).map(|checked, sender, _| {
            sender.checking = false;
            for (held, state) in checked {
                sender.act_on(held, state);
            }
        }));
    }

    fn act_on(&mut self, held: SessionHeld, state: SessionState) {
        let SessionHeld { agent_no, epoch, .. } = held;
        let serial = self.by_agent.get(&agent_no).filter(|handle| handle.epoch == Some(epoch)).map(|h| h.serial);
        match (state, serial) {
            (SessionState::Restored, None) => {
                // It went while it was written.
                let gone = SessionChange::Closed { agent_no, serial: 0, epoch: Some(epoch) };
                self.sessions.do_send(Put::<SessionSink>(vec![gone]));
            }
            (SessionState::Restored, Some(_)) => {
                log::warn!(agent = agent_no; "a connection was not written in the store, and is now");
                // What came meanwhile is in the store.
                self.wake(agent_no);
            }
            (SessionState::NotAllowed, Some(_)) => self.close(agent_no, ToSession::Banned),
            (SessionState::Replaced, Some(_)) => self.replace(agent_no),
            (SessionState::Current, _) | (_, None) => {}
        }
    }
}

impl Actor for StreamSender {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.presence.clear();
        ctx.run_interval(CHECK_EVERY, |sender, ctx| sender.check(ctx));
    }
}

impl Supervised for StreamSender {
    fn restarting(&mut self, _: &mut Self::Context) {
        // Dropping the handles closes the sessions' inboxes.
        self.by_agent.clear();
        self.presence.clear();
        self.checking = false;
    }
}

impl Handler<Deliver> for StreamSender {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Deliver(deliveries): Deliver, _: &mut Self::Context) -> Self::Result {
        crate::fault_point!("stream_sender");
        let mut by_agent: HashMap<i64, Vec<Delivery>> = HashMap::new();
        for delivery in deliveries {
            by_agent.entry(delivery.due.agent_no).or_default().push(delivery);
        }
        let mut held = Vec::new();
        for (agent_no, commands) in by_agent {
            let back = match self.by_agent.get(&agent_no) {
                Some(handle) => match handle.inbox.try_send(ToSession::Commands(commands)) {
                    Ok(()) => continue,
                    Err(error) => {
                        handle.more.store(true, Ordering::Release);
                        match error.into_inner() {
                            ToSession::Commands(commands) => commands,
                            _ => continue,
                        }
                    }
                },
                None => commands,
            };
            held.extend(back.iter().filter(|delivery| !delivery.due.open).map(hold_report));
        }
        let context = self.context.clone();
        Box::pin(async move {
            if !held.is_empty() && context.record(held).await.is_none() {
                log::warn!("commands of agents that have just gone are looked at again later");
            }
        })
    }
}

impl Handler<Cancelled> for StreamSender {
    type Result = ();

    fn handle(&mut self, Cancelled(actions): Cancelled, _: &mut Self::Context) {
        let actions: Arc<[(i64, Uuid)]> = actions.into();
        for handle in self.by_agent.values() {
            // Best effort: the outcome `cancelled` is final whatever the agent does.
            handle.inbox.try_send(ToSession::Cancelled(actions.clone())).ok();
        }
    }
}

impl Handler<Banned> for StreamSender {
    type Result = ();

    fn handle(&mut self, Banned(agent_no): Banned, _: &mut Self::Context) {
        // Without room to be told it is closed as if replaced, and isn't let in again.
        self.close(agent_no, ToSession::Banned);
    }
}

impl Handler<Moved> for StreamSender {
    type Result = ();

    fn handle(&mut self, Moved(moved): Moved, _: &mut Self::Context) {
        for (agent_no, epoch) in moved {
            if self.by_agent.get(&agent_no).and_then(|handle| handle.epoch).is_some_and(|here| here < epoch) {
                self.replace(agent_no);
            }
        }
    }
}

impl Handler<Backlog> for StreamSender {
    type Result = ();

    fn handle(&mut self, Backlog(agent_no): Backlog, _: &mut Self::Context) {
        self.wake(agent_no);
    }
}

impl Handler<Connect> for StreamSender {
    type Result = ResponseActFuture<Self, Result<Connected, NotConnected>>;

    fn handle(&mut self, Connect { agent_no, token, after }: Connect, ctx: &mut Self::Context) -> Self::Result {
        crate::fault_point!("stream_sender.connect");
        let refused = |why| Box::pin(actix::fut::ready(Err(why))) as Self::Result;
        if self.leaving {
            return refused(NotConnected::Away);
        }
        // Only one that was signed on before can meet a newer one.
        let newest = self.by_agent.get(&agent_no).map(|handle| handle.epoch.unwrap_or(i64::MAX));
        if after.zip(newest).is_some_and(|(after, newest)| newest > after) {
            return refused(NotConnected::Replaced);
        }
        self.last_serial += 1;
        let serial = self.last_serial;
        let (sender, inbox) = mpsc::channel(TO_SESSION);
        let more = Arc::new(AtomicBool::new(false));
        let replaced = Arc::new(AtomicBool::new(false));
        let handle =
            Handle { serial, token, epoch: None, inbox: sender, more: more.clone(), replaced: replaced.clone() };
        let mut sign_off = SignOff { sender: ctx.address(), agent_no, serial, epoch: None };
        if let Some(older) = self.by_agent.insert(agent_no, handle) {
            // If its inbox is full it finds out when it has read it: the channel closes behind it.
            older.replaced.store(true, Ordering::Release);
            older.inbox.try_send(ToSession::Replaced).ok();
        }
        self.presence.insert(agent_no);
        let opening = SessionOpening { agent_no, token: Some(token), after };
        let stored = self.sessions.send(Put::<SessionSink>(vec![SessionChange::Opened { opening, serial }]));
        Box::pin(stored.into_actor(self).map(move |stored, sender, _| {
            let opened = stored.ok().flatten().and_then(|answers| answers.into_iter().next()?.ok()?);
            let epoch = match opened {
                Some(Opened::As(epoch)) => epoch,
                Some(Opened::NotAllowed) => return Err(NotConnected::NotAllowed),
                Some(Opened::Replaced) => return Err(NotConnected::Replaced),
                None => return Err(NotConnected::Away),
            };
            sign_off.epoch = Some(epoch);
            if let Some(handle) = sender.by_agent.get_mut(&agent_no).filter(|handle| handle.serial == serial) {
                handle.epoch = Some(epoch);
            }
            Ok(Connected { inbox, more, replaced, epoch, _sign_off: sign_off })
        }))
    }
}

impl Handler<Disconnect> for StreamSender {
    type Result = ();

    fn handle(&mut self, Disconnect { agent_no, serial, epoch }: Disconnect, ctx: &mut Self::Context) {
        if self.by_agent.get(&agent_no).is_some_and(|handle| handle.serial == serial) {
            self.by_agent.remove(&agent_no);
            self.presence.remove(agent_no);
        }
        // Which one it was in the store isn't known if the answer to its opening was lost: then nothing of the agent is left,
        // unless it has another connection here, which has taken its place.
        if epoch.is_none() && self.by_agent.contains_key(&agent_no) {
            return;
        }
        let change = SessionChange::Closed { agent_no, serial, epoch };
        let stored = self.sessions.send(Put::<SessionSink>(vec![change]));
        // If it isn't stored, the next connection replaces it, or the next start forgets it.
        ctx.spawn(stored.into_actor(self).map(|_, sender, _| {
            if sender.by_agent.is_empty()
                && let Some(drained) = sender.drained.take()
            {
                drained.send(()).ok();
            }
        }));
    }
}

impl Handler<Drain> for StreamSender {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.leaving = true;
        let (sender, drained) = oneshot::channel();
        if self.by_agent.is_empty() {
            sender.send(()).ok();
        } else {
            self.drained = Some(sender);
            let leave = |sender: &mut Self| {
                sender.by_agent.values().for_each(|handle| {
                    handle.inbox.try_send(ToSession::Leave).ok();
                });
            };
            leave(self);
            // Inboxes that were full are told again.
            ctx.run_interval(Duration::from_millis(200), move |sender, _| leave(sender));
        }
        Box::pin(async move {
            drained.await.ok();
        })
    }
}
