//! One connection to a broker, from `hello` to its end: server → broker → session → runner, and
//! outbox → session → broker → server.

use super::held::{Held, MESSAGES};
use super::link::{Link, LinkError, Message};
use crate::agent::enroll::FACTS_FOR;
use crate::agent::journal::JournalError;
use crate::agent::metadata::Frame;
use crate::agent::outbox::{Fault, expired};
use crate::agent::runner::Input;
use crate::agent::server_clock::Moment;
use crate::agent::session::{REFS_PER_FRAME, RESULT_BYTES, RESULTS_PER_FRAME, SessionDeps, take_first};
use crate::agent::stop_signal::told_to;
use crate::domain::broker::{HEARTBEAT_EVERY, from_server};
use crate::domain::fit;
use crate::domain::protocol::{AgentFrame, Command, Rejected, RunRef, RunResult, ServerFrame, Stored};
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How often the broker hears that messages are still worked at. The server gives a message
/// three times as long.
const KEEP_EVERY: Duration = Duration::from_secs(20);
/// What a message holds beside its results or names.
const ENVELOPE: usize = 1024;

/// A message at the runner: its number, and whether the runner has written its commands.
type Handed = BoxFuture<'static, (u64, bool)>;

/// See the module.
pub(super) struct BrokerSession<L: Link> {
    link: L,
    name: String,
    deps: SessionDeps,
    /// The `clock` of the hello, which the answer repeats.
    clock: Timestamp,
    /// When it was sent.
    greeted: Moment,
    /// Commands that wait for room at the runner.
    held: Held<L::Ack>,
    handed: FuturesUnordered<Handed>,
    /// Of the messages at the runner: what acknowledges them, and how many commands they have.
    at_runner: HashMap<u64, (L::Ack, usize)>,
    last_number: u64,
    /// Runs that were answered as expired on arrival.
    expired: HashSet<RunRef>,
}

impl<L: Link> BrokerSession<L> {
    pub(super) fn new(link: L, name: String, deps: SessionDeps) -> Self {
        let greeted = deps.clock.moment();
        Self {
            link,
            name,
            deps,
            clock: Timestamp::of_this_machine(),
            greeted,
            held: Held::new(),
            handed: FuturesUnordered::new(),
            at_runner: HashMap::new(),
            last_number: 0,
            expired: HashSet::new(),
        }
    }

    /// Runs until the connection breaks, or until `stop` is true: then the outbox is sent first.
    pub(super) async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), LinkError> {
        self.hello().await?;
        let every = |period| {
            let mut ticks = interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut heartbeats, mut keeps) = (every(HEARTBEAT_EVERY), every(KEEP_EVERY));
        let (mut greetings, outbox) = (every(FACTS_FOR), self.deps.outbox.clone());
        let reports = self.deps.reports.clone();
        loop {
            self.hand_over().await?;
            let room = self.held.room().min(MESSAGES.saturating_sub(self.at_runner.len()));
            tokio::select! {
                message = self.link.next(room), if room > 0 => self.hear(message?).await?,
                () = outbox.news() => self.flush().await?,
                // Times are the server's, which it has told by now.
                () = reports.due(), if self.deps.clock.now().is_some() => self.report().await?,
                // The facts may have changed.
                _ = greetings.tick() => self.hello().await?,
                Some((number, written)) = self.handed.next() => self.written(number, written).await?,
                _ = heartbeats.tick() => self.publish(&AgentFrame::Heartbeat).await?,
                _ = keeps.tick() => self.keep().await?,
                () = told_to(stop) => {
                    self.flush().await?;
                    self.link.close().await;
                    return Ok(());
                }
            }
        }
    }

    async fn hello(&mut self) -> Result<(), LinkError> {
        let broken = |error: JournalError| LinkError::of("the journal", &error);
        let hello;
        (hello, self.clock, self.greeted) = self.deps.hello().await.map_err(broken)?;
        // What is not stored is all sent again.
        let unstored = self.deps.journal.with(|journal| Ok(journal.unstored())).await.map_err(broken)?;
        self.publish(&AgentFrame::Hello(hello)).await?;
        self.deps.outbox.post(|pending| pending.results.extend(unstored));
        Ok(())
    }

    /// Sends metadata, after everything that is more important.
    async fn report(&mut self) -> Result<(), LinkError> {
        self.flush().await?;
        let Some(now) = self.deps.clock.now() else { return Ok(()) };
        match self.deps.reports.take(now, self.deps.clock.moment()) {
            Some(Frame { seq, items }) => self.publish(&AgentFrame::Metadata { seq, items }).await,
            None => Ok(()),
        }
    }

    async fn publish(&mut self, frame: &AgentFrame) -> Result<(), LinkError> {
        self.link.publish(frame.to_text()).await
    }

    /// Passes messages to the runner while it has room.
    async fn hand_over(&mut self) -> Result<(), LinkError> {
        loop {
            let busy = self.deps.outbox.load() + self.at_runner.values().map(|(_, count)| count).sum::<usize>();
            if busy >= self.deps.capacity as usize {
                return Ok(());
            }
            let Some((commands, ack)) = self.held.take() else { return Ok(()) };
            let (tell, written) = oneshot::channel();
            self.last_number += 1;
            let number = self.last_number;
            self.at_runner.insert(number, (ack, commands.len()));
            self.handed.push(Box::pin(async move { (number, written.await.is_ok()) }));
            self.input(Input::Commands(commands)).await;
            self.input(Input::Written(tell)).await;
        }
    }

    /// If the runner is gone, the agent is stopping, and the session will be stopped too.
    async fn input(&mut self, input: Input) {
        let _ = self.deps.inputs.send(input).await;
    }

    /// The runner has written the commands of a message, or has failed to.
    async fn written(&mut self, number: u64, written: bool) -> Result<(), LinkError> {
        // The broker has `received` before the message is acknowledged.
        self.flush().await?;
        match self.at_runner.remove(&number) {
            Some((ack, _)) if written => self.link.ack(ack).await,
            // The message comes again.
            _ => Ok(()),
        }
    }

    async fn keep(&mut self) -> Result<(), LinkError> {
        for ack in self.held.acks().chain(self.at_runner.values().map(|(ack, _)| ack)) {
            self.link.keep(ack).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, message: Message<L::Ack>) -> Result<(), LinkError> {
        let Message { payload, ack } = message;
        let size = payload.len();
        let said = match from_server(&payload) {
            Ok(said) => said,
            Err(error) => {
                log::warn!(error, size; "a message is not a frame, and is dropped");
                return self.link.ack(ack).await;
            }
        };
        if said.agent.as_ref().is_some_and(|agent| *agent != self.name) {
            log::warn!(agent:? = said.agent; "a message is for another agent, and is dropped");
            return self.link.ack(ack).await;
        }
        match said.frame {
            Some(ServerFrame::Commands { commands }) => {
                return self.commands(commands, ack, size, said.server_time).await;
            }
            Some(ServerFrame::Welcome(welcome)) if welcome.clock == Some(self.clock) => {
                self.deps.reports.begin(welcome.metadata_interval);
                self.deps.clock.set_as_of(self.greeted, welcome.server_time);
            }
            Some(ServerFrame::Cancel { actions }) => {
                for ack in self.held.cancel(&actions) {
                    self.link.ack(ack).await?;
                }
                self.input(Input::Cancel(actions)).await;
            }
            Some(ServerFrame::Stored(stored)) => self.stored(stored).await?,
            Some(ServerFrame::Error(error)) => {
                log::warn!(code = error.code.as_str(), message = error.message.as_str(); "the server reports an error");
            }
            // The answer to an earlier hello has an old time.
            Some(ServerFrame::MetadataStored(stored)) => self.deps.reports.stored(&stored),
            Some(ServerFrame::Welcome(_)) | None => {}
        }
        self.link.ack(ack).await
    }

    async fn commands(
        &mut self,
        commands: Vec<Command>,
        ack: L::Ack,
        size: usize,
        server_time: Option<Timestamp>,
    ) -> Result<(), LinkError> {
        let Some(now) = self.deps.clock.now() else {
            // Whether they have expired is unknown. The answer to `hello` repeats them.
            log::debug!(commands = commands.len(); "commands from before the server's welcome are dropped");
            return self.link.ack(ack).await;
        };
        // A message can't come before it was sent: the server's clock is at least there.
        if let Some(sent) = server_time.filter(|sent| *sent > now) {
            self.deps.clock.set(sent);
        }
        if commands.is_empty() {
            return self.link.ack(ack).await;
        }
        self.held.put(commands, ack, size);
        Ok(())
    }

    async fn stored(&mut self, stored: Stored) -> Result<(), LinkError> {
        stored.commands.iter().for_each(|run| _ = self.expired.remove(run));
        let about = |rejected: &Rejected| RunRef { action: rejected.action, run: rejected.run };
        let wrong_time = stored.rejected.iter().find(|rejected| self.expired.contains(&about(rejected)));
        let wrong_time = wrong_time.map(|rejected| rejected.reason.clone());
        {
            let mut pending = self.deps.outbox.open();
            stored.commands.iter().for_each(|run| _ = pending.results.remove(run));
        }
        self.input(Input::Stored(stored)).await;
        match wrong_time {
            // One of the two clocks was set since `welcome`. The next connection gets the new time.
            Some(reason) => Err(LinkError(format!("a command was answered as expired, and the server says: {reason}"))),
            None => Ok(()),
        }
    }

    /// Publishes everything in the outbox.
    async fn flush(&mut self) -> Result<(), LinkError> {
        loop {
            let (received, late, results, fault) = {
                let mut pending = self.deps.outbox.open();
                let received = take_first(&mut pending.received, REFS_PER_FRAME);
                let late = take_first(&mut pending.expired, RESULTS_PER_FRAME);
                (received, late, take_first(&mut pending.results, RESULTS_PER_FRAME), pending.fault.take())
            };
            if received.is_empty() && late.is_empty() && results.is_empty() && fault.is_none() {
                return Ok(());
            }
            if !received.is_empty() {
                self.publish(&AgentFrame::Received { commands: received }).await?;
            }
            match fault {
                Some(Fault::Journal(error)) => return Err(LinkError(format!("the journal: {error}"))),
                Some(Fault::TooMany) => return Err(LinkError("too many unfinished commands".into())),
                None => {}
            }
            if !late.is_empty() {
                self.expired.extend(&late);
                self.publish(&AgentFrame::Results { results: late.into_iter().map(expired).collect() }).await?;
            }
            if !results.is_empty() {
                self.send_results(results).await?;
            }
        }
    }

    async fn send_results(&mut self, runs: Vec<RunRef>) -> Result<(), LinkError> {
        let limit = self.link.max_message().saturating_sub(ENVELOPE);
        let most = RESULT_BYTES.min(limit as u64);
        let read = self.deps.journal.with(move |journal| {
            let (results, done) = journal.results(&runs, most)?;
            Ok((results, runs[done..].to_vec()))
        });
        let (results, rest) = read.await.map_err(|error| LinkError(format!("the journal: {}", error.chain())))?;
        self.deps.outbox.open().results.extend(rest);
        if results.is_empty() {
            return Ok(());
        }
        let results: Vec<RunResult> = match results.len() {
            // A single result may be larger than what the broker takes.
            1 => results.into_iter().map(|result| fit::shrink(result, limit)).collect(),
            _ => results,
        };
        self.publish(&AgentFrame::Results { results }).await
    }
}
