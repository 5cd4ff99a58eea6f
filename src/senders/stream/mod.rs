//! The stream sender: hands commands to agents that are connected by WebSocket.
//!
//! Receives [`Deliver`] from the sender router, and [`Connect`]/[`Disconnect`] from the [`session`]s, one per connection.
//! It knows which session belongs to which agent, and passes each command on; what can't be passed on (the agent has gone,
//! or its session has no room) gets a `waiting` row, and the session reads it from the store later.
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
use actix::prelude::*;
use desk::hold_report;
use sessions::{SessionChange, SessionSink, Sessions};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

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
#[rtype(result = "Option<Connected>")]
pub struct Connect {
    /// The agent.
    pub agent_no: i64,
}

/// A session's end of its connection to the stream sender.
pub struct Connected {
    /// What is to be done.
    pub inbox: mpsc::Receiver<ToSession>,
    /// Set when something didn't fit into the inbox: the store has more.
    pub more: Arc<AtomicBool>,
    /// Set when a newer connection of the agent is here, also if the inbox had no room to say so.
    pub replaced: Arc<AtomicBool>,
    /// Signs the connection off.
    _sign_off: SignOff,
}

/// Tells the stream sender that a connection is gone, however it went: its task may have panicked, or may never have
/// learned that it was signed on.
struct SignOff {
    sender: Addr<StreamSender>,
    agent_no: i64,
    epoch: i64,
}

impl Drop for SignOff {
    fn drop(&mut self) {
        self.sender.do_send(Disconnect { agent_no: self.agent_no, epoch: self.epoch });
    }
}

/// Session → stream sender: this connection is gone, and all that it held is recorded, or is found in the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    /// The agent.
    pub agent_no: i64,
    /// Which of its connections.
    pub epoch: i64,
}

struct Handle {
    epoch: i64,
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
    last_epoch: i64,
    drained: Option<oneshot::Sender<()>>,
    leaving: bool,
}

impl StreamSender {
    /// With no agent connected.
    pub fn new(context: SenderContext, presence: Presence, sessions: Addr<Sessions>) -> Self {
        Self { context, presence, sessions, by_agent: HashMap::new(), last_epoch: 0, drained: None, leaving: false }
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

    /// Grows from connection to connection, and from process to process.
    fn next_epoch(&mut self) -> i64 {
        let micros = self.context.store.now().0.saturating_mul(1_000);
        self.last_epoch = micros.max(self.last_epoch + 1);
        self.last_epoch
    }
}

impl Actor for StreamSender {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.presence.clear();
    }
}

impl Supervised for StreamSender {
    fn restarting(&mut self, _: &mut Self::Context) {
        // Dropping the handles closes the sessions' inboxes.
        self.by_agent.clear();
        self.presence.clear();
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
            if let Some(handle) = self.by_agent.get(&agent_no)
                && handle.epoch < epoch
            {
                handle.replaced.store(true, Ordering::Release);
                self.close(agent_no, ToSession::Replaced);
            }
        }
    }
}

impl Handler<Backlog> for StreamSender {
    type Result = ();

    fn handle(&mut self, Backlog(agent_no): Backlog, _: &mut Self::Context) {
        if let Some(handle) = self.by_agent.get(&agent_no) {
            handle.more.store(true, Ordering::Release);
            // It looks when it is woken; a full inbox wakes it anyway.
            handle.inbox.try_send(ToSession::Commands(Vec::new())).ok();
        }
    }
}

impl Handler<Connect> for StreamSender {
    type Result = ResponseFuture<Option<Connected>>;

    fn handle(&mut self, Connect { agent_no }: Connect, ctx: &mut Self::Context) -> Self::Result {
        crate::fault_point!("stream_sender.connect");
        if self.leaving {
            return Box::pin(async { None });
        }
        let epoch = self.next_epoch();
        let (sender, inbox) = mpsc::channel(TO_SESSION);
        let more = Arc::new(AtomicBool::new(false));
        let replaced = Arc::new(AtomicBool::new(false));
        let handle = Handle { epoch, inbox: sender, more: more.clone(), replaced: replaced.clone() };
        let sign_off = SignOff { sender: ctx.address(), agent_no, epoch };
        if let Some(older) = self.by_agent.insert(agent_no, handle) {
            // If its inbox is full it finds out when it has read it: the channel closes behind it.
            older.replaced.store(true, Ordering::Release);
            older.inbox.try_send(ToSession::Replaced).ok();
        }
        self.presence.insert(agent_no);
        let stored = self.sessions.send(Put::<SessionSink>(vec![SessionChange::Opened { agent_no, epoch }]));
        Box::pin(async move {
            let stored = stored.await.ok().flatten()?.into_iter().all(|answer| answer.is_ok());
            stored.then_some(Connected { inbox, more, replaced, _sign_off: sign_off })
        })
    }
}

impl Handler<Disconnect> for StreamSender {
    type Result = ();

    fn handle(&mut self, Disconnect { agent_no, epoch }: Disconnect, ctx: &mut Self::Context) {
        if self.by_agent.get(&agent_no).is_some_and(|handle| handle.epoch == epoch) {
            self.by_agent.remove(&agent_no);
            self.presence.remove(agent_no);
        }
        let stored = self.sessions.send(Put::<SessionSink>(vec![SessionChange::Closed { agent_no, epoch }]));
        // If it isn't stored, the next connection's epoch replaces it, or the next start forgets it.
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
