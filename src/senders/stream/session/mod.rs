//! One agent's connection, from `hello` to the close.
//!
//! A loop over the next event: the socket takes a frame, the agent sends something, the stream
//! sender has commands, a record is durable, or a deadline has passed. Everything in flight is
//! bounded. While a bound is reached, the socket isn't read, so that the agent feels backpressure.
//! Results are answered `stored` after their commit.
//!
//! If the store's actors crash, records are tried again a few times. Then the connection is closed
//! with 1012, and the agent reconnects with all results that were not stored.

use super::deps::SessionDeps;
use super::done::Done;
use super::greeting::End;
use super::in_flight::{InFlight, MAX_CAPACITY, QUEUE};
use super::messages::{Connect, Connected, NotConnected, ToSession};
use super::outbox::Outbox;
use super::records::Backlog;
use super::records::{actions_of, record, store_results};
use super::reports::{Reports, report};
use super::room::{Asking, asked};
use crate::domain::agent::AgentRef;
use crate::domain::command::{Answer, Event};
use crate::domain::metadata::AgentClock;
use crate::domain::protocol::{
    AgentFrame, ErrorFrame, Hello, PING_EVERY, RunRef, RunResult, SILENCE, ServerFrame, Welcome, close,
};
use crate::domain::time::Span;
use crate::error_chain::ErrorChain;
use crate::senders::due_command::{hold_report, report_of};
use crate::store::Report;
use actix_ws::{AggregatedMessage, AggregatedMessageStream, ProtocolError};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

/// Maximum number of records in flight. At this number the agent isn't read.
const RECORDS: usize = 16;

mod delivery;

/// One connected agent.
pub(super) struct Session {
    deps: SessionDeps,
    agent: AgentRef,
    token: Uuid,
    instance: Option<Uuid>,
    connected: Connected,
    in_flight: InFlight,
    outbox: Outbox,
    /// Room for what is on its way to the agent.
    room: Option<OwnedSemaphorePermit>,
    /// It was given just now, and nothing was delivered yet.
    room_is_new: bool,
    /// Room for the next command, which is being waited for.
    asking: Asking,
    working: FuturesUnordered<LocalBoxFuture<'static, Done>>,
    /// Results that wait for room in the memory budget.
    parked: Option<(Vec<RunResult>, u32)>,
    reports: Reports,
    reading_backlog: bool,
    /// No backlog is read before this time, because the store was away.
    backlog_after: Instant,
    /// At this time the backlog has more that is due.
    backlog_again: Option<Instant>,
    last_heard: Instant,
    last_ping: Instant,
}

impl Session {
    pub(super) fn new(deps: SessionDeps, agent: AgentRef, token: Uuid, hello: &Hello, connected: Connected) -> Self {
        let now = Instant::now();
        let clock = AgentClock::new(hello.clock, deps.node.store.now());
        let reports = Reports::new(agent.no, clock, deps.node.pace.interval());
        Self {
            instance: hello.instance,
            in_flight: InFlight::new(agent.no, hello.capacity),
            deps,
            agent,
            token,
            connected,
            outbox: Outbox::default(),
            room: None,
            room_is_new: false,
            asking: None,
            working: FuturesUnordered::new(),
            parked: None,
            reports,
            reading_backlog: false,
            backlog_after: now,
            backlog_again: None,
            last_heard: now,
            last_ping: now,
        }
    }

    pub(super) async fn run(
        &mut self,
        hello: Hello,
        socket: &mut actix_ws::Session,
        stream: &mut AggregatedMessageStream,
    ) -> End {
        let node = &self.deps.node;
        let (agent, server_time) = (self.agent.name.clone(), node.store.now());
        let metadata_interval = Some(Span(node.pace.interval()));
        self.push(&ServerFrame::Welcome(Welcome { agent, server_time, clock: None, metadata_interval }));
        if hello.running.is_empty() {
            self.read_backlog();
        } else {
            // Adopt the agent's runs first, so that they are not delivered again.
            self.adopt(hello.running);
        }
        loop {
            self.deliver();
            self.report();
            if self.connected.more.load(Ordering::Acquire) && self.in_flight.queued() < QUEUE / 4 {
                self.read_backlog();
            }
            let deadline = self.deadline();
            let has_room = self.outbox.has_room() && self.working.len() < RECORDS;
            let listening = has_room && self.parked.is_none() && !self.reports.is_full();
            if !listening {
                // An agent that isn't read can't be called silent, nor one that doesn't read.
                self.last_heard = Instant::now();
                self.in_flight.is_not_read(self.last_heard);
            }
            let (next_frame, parked) = (self.outbox.next(), self.parked.as_ref().map_or(0, |(_, size)| *size));
            let budget = self.deps.budget.clone();
            let end = tokio::select! {
                sent = socket.text(next_frame.unwrap_or_default()), if !self.outbox.is_empty() => {
                    self.outbox.sent(Instant::now());
                    sent.err().map(|_| End::with(close::DONE))
                }
                message = stream.recv(), if listening => self.heard(message, socket).await,
                input = self.connected.inbox.recv() => self.told(input).await,
                Some(done) = self.working.next(), if !self.working.is_empty() => self.done(done),
                room = asked(&mut self.asking), if self.asking.is_some() => {
                    self.take_room(room);
                    None
                }
                permit = budget.acquire_many_owned(parked), if parked > 0 => {
                    if let (Some((results, _)), Ok(permit)) = (self.parked.take(), permit) {
                        self.record_results(results, permit);
                    }
                    None
                }
                () = tokio::time::sleep_until(deadline.into()) => self.clock(socket).await,
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn push(&mut self, frame: &ServerFrame) {
        self.outbox.push(frame, Instant::now());
    }

    fn deadline(&self) -> Instant {
        let fixed = (self.last_ping + PING_EVERY).min(self.last_heard + SILENCE);
        // After this time, a backlog that could not be read is read again.
        let backlog = Some(self.backlog_after).filter(|at| *at > Instant::now());
        let next = [self.in_flight.next_deadline(), self.outbox.deadline(), backlog, self.backlog_again];
        next.into_iter().flatten().fold(fixed, Instant::min)
    }

    async fn clock(&mut self, socket: &mut actix_ws::Session) -> Option<End> {
        let now = Instant::now();
        if self.outbox.deadline().is_some_and(|deadline| now >= deadline) {
            return Some(End::error(close::TOO_SLOW, "too-slow", "the agent does not read"));
        }
        if now >= self.last_heard + SILENCE {
            return Some(End::error(close::TOO_SLOW, "silent", "nothing was heard for 60 seconds"));
        }
        if now >= self.last_ping + PING_EVERY {
            self.last_ping = now;
            // A full socket is detected by the outbox.
            tokio::time::timeout(Duration::from_millis(100), socket.ping(b"")).await.ok();
        }
        if self.in_flight.take_early(now) || self.backlog_again.take_if(|at| *at <= now).is_some() {
            self.connected.more.store(true, Ordering::Release);
        }
        let is_unread = self.in_flight.is_unread(now);
        let reports = self.in_flight.look_at_clock(now);
        self.record_reports(reports);
        is_unread.then(|| End::error(close::TOO_SLOW, "too-slow", "the agent does not read"))
    }

    async fn heard(
        &mut self,
        message: Option<Result<AggregatedMessage, ProtocolError>>,
        socket: &mut actix_ws::Session,
    ) -> Option<End> {
        self.last_heard = Instant::now();
        self.reports.seen(&self.deps.node);
        match message {
            Some(Ok(AggregatedMessage::Text(text))) => self.frame(&text),
            Some(Ok(AggregatedMessage::Ping(bytes))) => {
                tokio::time::timeout(Duration::from_millis(100), socket.pong(&bytes)).await.ok();
                None
            }
            Some(Ok(AggregatedMessage::Pong(_))) => None,
            Some(Ok(AggregatedMessage::Binary(_))) => {
                Some(End::error(close::MALFORMED, "binary", "frames are JSON text"))
            }
            // The connection broke: no error frame can be sent.
            Some(Ok(AggregatedMessage::Close(_)) | Err(ProtocolError::Io(_))) | None => Some(End::with(close::DONE)),
            Some(Err(error)) => Some(End::error(close::MALFORMED, "bad-frame", error.to_string())),
        }
    }

    fn frame(&mut self, text: &str) -> Option<End> {
        let frame = match AgentFrame::parse(text) {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(error) => {
                return Some(End::error(close::MALFORMED, "malformed", format!("not a valid frame: {error}")));
            }
        };
        match frame {
            AgentFrame::Hello(_) => Some(End::error(close::MALFORMED, "second-hello", "hello was said before")),
            AgentFrame::Received { commands } => {
                let (now, clock) = (self.deps.node.store.now(), Instant::now());
                let (known, unknown): (Vec<_>, Vec<_>) =
                    commands.into_iter().partition(|run| self.in_flight.received(*run, now, clock));
                let late =
                    known.into_iter().filter_map(|run| self.in_flight.late_received(run).map(|r| (Some(run), r)));
                let late = late.collect();
                self.record_reports(late);
                if !unknown.is_empty() {
                    self.adopt(unknown);
                }
                None
            }
            AgentFrame::Results { results } => {
                let size = u32::try_from(text.len()).unwrap_or(u32::MAX);
                match self.deps.budget.clone().try_acquire_many_owned(size) {
                    Ok(permit) => self.record_results(results, permit),
                    Err(_) => self.parked = Some((results, size)),
                }
                None
            }
            AgentFrame::Metadata { seq, items } => {
                let size = u32::try_from(text.len()).unwrap_or(u32::MAX);
                let permit = self.deps.metadata_budget.clone().try_acquire_many_owned(size).ok();
                self.reports.take(&self.deps.node, seq, items, permit);
                None
            }
            AgentFrame::Heartbeat => None,
            AgentFrame::Error(ErrorFrame { code, message }) => {
                let message: String = message.chars().take(500).collect();
                log::warn!(agent = self.agent.name.as_str(), code = code.as_str(), message = message.as_str();
                    "an agent reports an error");
                Some(End::with(close::DONE))
            }
        }
    }

    async fn told(&mut self, input: Option<ToSession>) -> Option<End> {
        match input {
            Some(ToSession::Commands(deliveries)) => {
                self.offer(deliveries, false);
                None
            }
            Some(ToSession::Cancelled(actions)) => {
                let nos: Vec<i64> = actions.iter().map(|(no, _)| *no).collect();
                let actions = self.in_flight.cancel(&nos);
                if !actions.is_empty() {
                    self.push(&ServerFrame::Cancel { actions });
                }
                None
            }
            Some(ToSession::Replaced) => Some(End::refused(NotConnected::Replaced)),
            Some(ToSession::Disabled) => Some(End::refused(NotConnected::NotAllowed)),
            Some(ToSession::Leave) => Some(End::with(close::GOING_AWAY)),
            None if self.connected.replaced.load(Ordering::Acquire) => Some(End::refused(NotConnected::Replaced)),
            None => {
                // The stream sender was restarted.
                let (agent_no, token, after) = (self.agent.no, self.token, Some(self.connected.epoch));
                let again = self.deps.sender.send(Connect { agent_no, token, after, instance: self.instance });
                match tokio::time::timeout(Duration::from_secs(10), again).await {
                    Ok(Ok(Ok(connected))) => {
                        self.connected = connected;
                        self.connected.more.store(true, Ordering::Release);
                        None
                    }
                    Ok(Ok(Err(why))) => Some(End::refused(why)),
                    _ => Some(End::with(close::GOING_AWAY)),
                }
            }
        }
    }

    fn adopt(&mut self, runs: Vec<RunRef>) {
        let actions = self.deps.node.actions.clone();
        // An agent can't run more than its capacity. Looking up more would be wasted.
        let runs: HashSet<RunRef> = runs.into_iter().take(2 * MAX_CAPACITY).collect();
        self.working.push(Box::pin(async move {
            let (adopted, unknown) = actions_of(&actions, runs).await;
            Done::Adopted(adopted, unknown)
        }));
    }

    /// Has the next report stored.
    fn report(&mut self) {
        if let Some(next) = self.reports.next() {
            let (node, agent_no) = (self.deps.node.clone(), self.agent.no);
            self.working.push(Box::pin(async move { Done::Metadata(report(&node, agent_no, next).await) }));
        }
    }

    fn record_results(&mut self, results: Vec<RunResult>, permit: OwnedSemaphorePermit) {
        let now = self.deps.node.store.now();
        let reports: Vec<_> = results
            .into_iter()
            .map(|result| match self.in_flight.ended(&result, now) {
                Some(report) => (result.run_ref(), Ok(report)),
                None => (result.run_ref(), Err(result)),
            })
            .collect();
        let (actions, context, agent_no) = (self.deps.node.actions.clone(), self.deps.context.clone(), self.agent.no);
        self.working.push(Box::pin(async move {
            let _permit = permit;
            Done::Results(store_results(&actions, &context, agent_no, reports, now).await)
        }));
    }

    fn record_reports(&mut self, reports: Vec<(Option<RunRef>, Report)>) {
        if reports.is_empty() {
            return;
        }
        let context = self.deps.context.clone();
        self.working.push(Box::pin(async move {
            let (runs, reports): (Vec<_>, Vec<_>) = reports.into_iter().unzip();
            let answers = record(&context, reports).await;
            Done::Reports(answers.map(|answers| {
                let about = runs.into_iter().zip(answers);
                about.filter_map(|(run, answer)| Some((run?, answer.ok()?))).collect()
            }))
        }));
    }

    fn done(&mut self, done: Done) -> Option<End> {
        match done {
            Done::Results(None) | Done::Reports(None) => return Some(End::with(close::GOING_AWAY)),
            Done::Results(Some(stored)) => {
                crate::fault_point!("session.stored");
                let now = Instant::now();
                stored.commands.iter().for_each(|run| self.in_flight.finish(*run, now));
                stored.rejected.iter().for_each(|r| self.in_flight.forget(RunRef { action: r.action, run: r.run }));
                self.push(&ServerFrame::Stored(stored));
            }
            Done::Reports(Some(answers)) => {
                let mut over = Vec::new();
                for (run, answer) in answers {
                    match answer {
                        // The row says `sent`, and the result is awaited; or the command is
                        // undeliverable.
                        Answer::Stored => self.in_flight.settled(run),
                        // The attempt failed. The scheduler delivers the command again.
                        Answer::Again { .. } => self.in_flight.forget(run),
                        // The run was decided while the agent was away. Its result is not awaited.
                        Answer::Decided | Answer::Rejected(_) => {
                            self.in_flight.finish(run, Instant::now());
                            // A later run kills this one when it arrives. A cancel would hit both.
                            if !self.in_flight.has(run.action) {
                                over.push(run.action);
                            }
                        }
                    }
                }
                if !over.is_empty() {
                    self.push(&ServerFrame::Cancel { actions: over });
                }
            }
            Done::Metadata(reported) => {
                for stored in self.reports.stored(reported, self.deps.node.pace.interval()) {
                    self.push(&ServerFrame::MetadataStored(stored));
                }
            }
            Done::Backlog(Ok(Backlog { commands, more_in })) => {
                self.reading_backlog = false;
                match more_in {
                    Some(Duration::ZERO) => self.connected.more.store(true, Ordering::Release),
                    later => self.backlog_again = later.map(|wait| Instant::now() + wait),
                }
                self.offer(commands, true);
            }
            Done::Backlog(Err(error)) => {
                log::warn!(agent = self.agent.name.as_str(), error:% = error.chain();
                    "an agent's backlog cannot be read now");
                self.reading_backlog = false;
                self.backlog_after = Instant::now() + Duration::from_secs(1);
                self.connected.more.store(true, Ordering::Release);
            }
            Done::Adopted(adopted, unknown) => {
                let (now, clock) = (self.deps.node.store.now(), Instant::now());
                let mut reports = Vec::with_capacity(adopted.len());
                for (action, run) in adopted {
                    let event = Event::Sent { run, attempts: 0, at: now };
                    let about = RunRef { action: action.id, run };
                    reports.push((Some(about), report_of(&action, self.agent.no, event)));
                    self.in_flight.adopt(action, run, now, clock);
                }
                self.record_reports(reports);
                if !unknown.is_empty() {
                    self.push(&ServerFrame::Cancel { actions: unknown });
                }
                self.connected.more.store(true, Ordering::Release);
            }
        }
        None
    }

    /// Finishes what is in flight and hands all unfinished commands back to the store.
    pub(super) async fn leave(&mut self) {
        // Others may need it.
        (self.asking, self.room) = (None, None);
        while let Some(done) = self.working.next().await {
            if let Done::Results(Some(stored)) = done {
                stored.commands.iter().for_each(|run| self.in_flight.forget(*run));
            }
        }
        // Commands that were still in the inbox.
        self.connected.inbox.close();
        let mut reports = Vec::new();
        while let Some(input) = self.connected.inbox.recv().await {
            if let ToSession::Commands(deliveries) = input {
                reports.extend(deliveries.iter().filter(|d| !d.due.open).map(hold_report));
            }
        }
        reports.extend(self.in_flight.close());
        if reports.is_empty() {
            return;
        }
        if record(&self.deps.context, reports).await.is_none() {
            log::warn!(agent = self.agent.name.as_str(); "what an agent left behind is looked at again later");
        } else if self.connected.replaced.load(Ordering::Acquire) {
            // The newer connection, here or elsewhere, may have read its backlog before this.
            self.deps.node.signals.backlog_changed(self.agent.no);
        }
    }
}
