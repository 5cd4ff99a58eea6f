//! Knows which agents are connected here, and passes commands to their sessions.
//!
//! Receives [`DeliverToSessions`] from the sender router, and [`Connect`]/[`Disconnect`] from the sessions,
//! one per connection. If the agent has gone or its session has no room, the command gets a
//! `waiting` row, and the session reads it from the store later. Twice a minute the sender compares
//! its connections with the store.
//!
//! Crash: the sessions notice that their channel is closed, connect again and read their backlog
//! from the store.

use crate::error_chain::ErrorChain;
use crate::runtime::Drain;
use crate::senders::contract::SenderContext;
use crate::senders::due_command::{DueCommand, hold_report};
use crate::senders::stream::messages::{
    Connect, Connected, DeliverToSessions, Disconnect, Handle, NotConnected, SignOff, ToSession,
};
use crate::senders::stream::sessions::{SessionChange, SessionWriter};
use crate::signals::{AgentDisabled, BacklogChanged, Cancelled, Presence, SessionSuperseded};
use crate::store::{Opened, SessionHeld, SessionOpening, SessionState};
use actix::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

#[cfg(test)]
mod tests;

/// How often connections are compared with what the store says of them and their agents.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// Connections per store call of that comparison.
const CHECK_PAGE: usize = 1_000;
/// Messages that a session's inbox holds.
const SESSION_INBOX: usize = 64;

/// See the module.
pub struct StreamSender {
    context: SenderContext,
    presence: Presence,
    sessions: SessionWriter,
    by_agent: HashMap<i64, Handle>,
    last_serial: u64,
    /// The connections are being compared with the store.
    checking: bool,
    drained: Option<oneshot::Sender<()>>,
    leaving: bool,
}

impl StreamSender {
    /// With no agent connected.
    pub fn new(context: SenderContext, presence: Presence, sessions: SessionWriter) -> Self {
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

    /// Ends a session. If its inbox is full, the session finds its channel closed instead.
    fn close(&mut self, agent_no: i64, why: ToSession) {
        let Some(handle) = self.by_agent.get(&agent_no) else { return };
        if handle.inbox.try_send(why).is_err() {
            handle.replaced.store(true, Ordering::Release);
            self.by_agent.remove(&agent_no);
            self.presence.remove(agent_no);
        }
    }

    /// Makes a session read the store for more commands.
    fn wake(&self, agent_no: i64) {
        if let Some(handle) = self.by_agent.get(&agent_no) {
            handle.more.store(true, Ordering::Release);
            // The session looks at `more` when a message wakes it. A full inbox wakes it anyway.
            handle.inbox.try_send(ToSession::Commands(Vec::new())).ok();
        }
    }

    /// Ends a session because its agent has a newer connection.
    fn replace(&mut self, agent_no: i64) {
        if let Some(handle) = self.by_agent.get(&agent_no) {
            handle.replaced.store(true, Ordering::Release);
            self.close(agent_no, ToSession::Replaced);
        }
    }

    /// Compares all connections with the store, a page at a time. Lost hints are found this way: an
    /// agent may be disabled, removed or connected elsewhere. A session's row may also be missing.
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
                        log::debug!(error:% = error.chain(); "connections are compared again later");
                        break;
                    }
                }
            }
            checked
        };
        ctx.spawn(checked.into_actor(self).map(|checked, sender, ctx| {
            sender.checking = false;
            for (held, state) in checked {
                sender.act_on(held, state, ctx);
            }
        }));
    }

    fn act_on(&mut self, held: SessionHeld, state: SessionState, ctx: &mut Context<Self>) {
        let SessionHeld { agent_no, epoch, .. } = held;
        let serial = self.by_agent.get(&agent_no).filter(|handle| handle.epoch == Some(epoch)).map(|h| h.serial);
        match (state, serial) {
            (SessionState::Restored, None) => {
                // The connection ended while its row was written.
                let gone = SessionChange::Closed { agent_no, serial: 0, epoch: Some(epoch) };
                ctx.spawn(self.sessions.put(vec![gone]).into_actor(self).map(|_, _, _| ()));
            }
            (SessionState::Restored, Some(_)) => {
                log::warn!(agent = agent_no; "a connection was not written in the store, and is now");
                // Commands that came in the meantime are in the store.
                self.wake(agent_no);
            }
            (SessionState::NotAllowed, Some(_)) => self.close(agent_no, ToSession::Disabled),
            (SessionState::Replaced, Some(_)) => self.replace(agent_no),
            (SessionState::Current, _) | (_, None) => {}
        }
    }
}

impl Actor for StreamSender {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.presence.clear();
        ctx.run_interval(CHECK_INTERVAL, |sender, ctx| sender.check(ctx));
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

impl Handler<DeliverToSessions> for StreamSender {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, DeliverToSessions(deliveries): DeliverToSessions, _: &mut Self::Context) -> Self::Result {
        crate::fault_point!("stream_sender");
        let mut by_agent: HashMap<i64, Vec<DueCommand>> = HashMap::new();
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
            if !held.is_empty() && context.record(held).await.is_err() {
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

impl Handler<AgentDisabled> for StreamSender {
    type Result = ();

    fn handle(&mut self, AgentDisabled(agent_no): AgentDisabled, _: &mut Self::Context) {
        // If the inbox is full, the channel closes as if replaced, and the agent isn't allowed to
        // connect again.
        self.close(agent_no, ToSession::Disabled);
    }
}

impl Handler<SessionSuperseded> for StreamSender {
    type Result = ();

    fn handle(&mut self, SessionSuperseded(moved): SessionSuperseded, _: &mut Self::Context) {
        for (agent_no, epoch) in moved {
            if self.by_agent.get(&agent_no).and_then(|handle| handle.epoch).is_some_and(|here| here < epoch) {
                self.replace(agent_no);
            }
        }
    }
}

impl Handler<BacklogChanged> for StreamSender {
    type Result = ();

    fn handle(&mut self, BacklogChanged(agents): BacklogChanged, _: &mut Self::Context) {
        agents.into_iter().for_each(|agent_no| self.wake(agent_no));
    }
}

impl StreamSender {
    /// Puts a connection in the place of the agent's older one.
    fn displace(&mut self, agent_no: i64, handle: Handle) {
        if let Some(older) = self.by_agent.insert(agent_no, handle) {
            // If its inbox is full, the older session finds the channel closed after reading it.
            older.replaced.store(true, Ordering::Release);
            older.inbox.try_send(ToSession::Replaced).ok();
        }
        self.presence.insert(agent_no);
    }
}

impl Handler<Connect> for StreamSender {
    type Result = ResponseActFuture<Self, Result<Connected, NotConnected>>;

    fn handle(
        &mut self,
        Connect { agent_no, token, after, instance }: Connect,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        crate::fault_point!("stream_sender.connect");
        let refused = |why| Box::pin(actix::fut::ready(Err(why))) as Self::Result;
        if self.leaving {
            return refused(NotConnected::Away);
        }
        // Only a connection that was signed on before can meet a newer one.
        let newest = self.by_agent.get(&agent_no).map(|handle| handle.epoch.unwrap_or(i64::MAX));
        if after.zip(newest).is_some_and(|(after, newest)| newest > after) {
            return refused(NotConnected::Replaced);
        }
        self.last_serial += 1;
        let serial = self.last_serial;
        let (sender, inbox) = mpsc::channel(SESSION_INBOX);
        let more = Arc::new(AtomicBool::new(false));
        let replaced = Arc::new(AtomicBool::new(false));
        let (inbox_end, flags) = (sender, (more.clone(), replaced.clone()));
        let handle =
            Handle { serial, token, instance, epoch: None, inbox: inbox_end, more: flags.0, replaced: flags.1 };
        let mut sign_off = SignOff { sender: ctx.address().recipient(), agent_no, serial, epoch: None };
        // The store knows which of two processes is the one that was replaced.
        let other = self.by_agent.get(&agent_no).and_then(|older| older.instance);
        let mut waiting = None;
        if other.zip(instance).is_some_and(|(other, instance)| other != instance) {
            waiting = Some(handle);
        } else {
            self.displace(agent_no, handle);
        }
        let opening = SessionOpening { agent_no, token: Some(token), after, instance };
        let stored = self.sessions.put(vec![SessionChange::Opened { opening, serial }]);
        Box::pin(stored.into_actor(self).map(move |stored, sender, _| {
            let opened = stored.ok().and_then(|answers| answers.into_iter().next()?.ok()?);
            let epoch = match opened {
                Some(Opened::As(epoch)) => epoch,
                Some(Opened::NotAllowed) => return Err(NotConnected::NotAllowed),
                Some(Opened::Replaced) => return Err(NotConnected::Replaced),
                Some(Opened::Duplicate) => return Err(NotConnected::Duplicate),
                None => return Err(NotConnected::Away),
            };
            sign_off.epoch = Some(epoch);
            if let Some(handle) = waiting {
                let newest = sender.by_agent.get(&agent_no).map(|handle| handle.epoch.unwrap_or(i64::MAX));
                if newest.is_some_and(|newest| newest > epoch) {
                    return Err(NotConnected::Replaced);
                }
                sender.displace(agent_no, handle);
            }
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
        // Without an epoch, the answer to its opening was lost. All of the agent's sessions here
        // are then closed in the store, unless another connection has taken its place.
        if epoch.is_none() && self.by_agent.contains_key(&agent_no) {
            return;
        }
        let change = SessionChange::Closed { agent_no, serial, epoch };
        let stored = self.sessions.put(vec![change]);
        // If this isn't stored, the next connection replaces the row, or the next start of a node
        // removes it.
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
            // Inboxes that were full get the message again.
            ctx.run_interval(Duration::from_millis(200), move |sender, _| leave(sender));
        }
        Box::pin(async move {
            drained.await.ok();
        })
    }
}
