//! Runs a sender through what it must promise, in a real server on a temporary SQLite store.

use super::tap::{Seen, Tap};
use crate::config::Config;
use crate::domain::agent::Enrollment;
use crate::domain::command::CommandState;
use crate::domain::time::Span;
use crate::node::{Odoshi, Running};
use crate::runtime::Drain;
use crate::senders::{Cancelled, Deliver, SenderContext};
use crate::service::actions;
use crate::store::{AgentNames, CommandView, NewAgent};
use actix::prelude::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long nothing may be recorded after a drain.
const LATE: Duration = Duration::from_millis(500);

/// What a sender under test can reach.
#[derive(Clone, Debug)]
pub struct SenderContract {
    /// Its transport.
    pub transport: &'static str,
    /// The address of an agent to which commands can be delivered.
    pub address: Option<String>,
    /// The address of an agent to which nothing can be delivered at the moment, if there can be one.
    pub unreachable: Option<String>,
    /// The operations of the test's commands: a JSON list, as in an action.
    pub operations: Value,
    /// Whether a delivered command ends with the delivery. If not, its result comes from the agent,
    /// and the check is content when the agent has it, or a broker.
    pub ends: bool,
    /// Number of commands per check.
    pub commands: usize,
    /// How long anything may take before it counts as never happening.
    pub patience: Duration,
}

impl SenderContract {
    /// For a sender of this transport, with agents that have no address.
    pub fn new(transport: &'static str) -> Self {
        Self {
            transport,
            address: None,
            unreachable: None,
            operations: json!([{"module": "ping"}]),
            ends: true,
            commands: 50,
            patience: Duration::from_secs(60),
        }
    }
}

/// A promise that the sender broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The server didn't start, or its store failed. The text is in the log.
    #[error("the server of the test did not work")]
    Setup,
    /// `Deliver` was not answered in time. A sender answers when it has taken commands over, not
    /// when they are delivered, and never blocks.
    #[error("Deliver was not answered")]
    DeliverUnanswered,
    /// The sender crashed.
    #[error("the sender crashed")]
    Crashed,
    /// A command that the sender took over has no recorded outcome.
    #[error("a command that was taken over has no outcome")]
    NoOutcome,
    /// A command to a reachable agent failed.
    #[error("a command to an agent that can be reached failed")]
    NotDelivered,
    /// A failed attempt was not counted, or one was counted without being made.
    #[error("attempts are counted wrongly")]
    WrongAttempts,
    /// `Drain` was not answered in time.
    #[error("Drain was not answered")]
    DrainUnanswered,
    /// Something was recorded after `Drain` was answered.
    #[error("something was recorded after the drain")]
    RecordedAfterDrain,
    /// Commands were taken over after `Drain` was answered.
    #[error("commands were taken over after the drain")]
    TakenAfterDrain,
}

/// Runs the sender that `make` returns through its contract. Call it in an actix system, as in
/// `#[actix_rt::test]`.
///
/// It checks that `Deliver` is answered soon; that every command taken over gets an outcome, also
/// when it is offered while its agent can't be reached; that attempts are counted; that a cancel
/// does no harm; and that `Drain` is answered after everything in flight is recorded.
///
/// # Errors
/// The first broken promise.
pub async fn sender_contract<A, F>(contract: SenderContract, make: F) -> Result<(), Broken>
where
    A: Actor<Context = Context<A>> + Supervised + Unpin,
    A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
    F: Fn(SenderContext) -> A + Clone + Send + 'static,
{
    delivers(&contract, make.clone()).await?;
    if contract.unreachable.is_some() {
        tries_again(&contract, make.clone()).await?;
    }
    drains(&contract, make).await
}

/// A server with the sender, and a folder that lives as long.
struct Bench {
    running: Running,
    seen: Seen,
    transport: &'static str,
    patience: Duration,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start<A, F>(contract: &SenderContract, make: F) -> Result<Self, Broken>
    where
        A: Actor<Context = Context<A>> + Supervised + Unpin,
        A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
        F: Fn(SenderContext) -> A + Send + 'static,
    {
        let dir = tempfile::tempdir().map_err(setup)?;
        let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        config.http.listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        config.sender.enabled = Vec::new();
        config.shutdown_timeout = Span(contract.patience);
        let seen = Seen::default();
        let tap = seen.clone();
        let odoshi = Odoshi::builder(config).sender(contract.transport, move |context| Tap::new(context, make, tap));
        let mut running = odoshi.start().await.map_err(setup)?;
        running.ready().await.map_err(setup)?;
        Ok(Self { running, seen, transport: contract.transport, patience: contract.patience, _dir: dir })
    }

    /// Adds agents at an address, and an action for them.
    async fn submit(&self, contract: &SenderContract, address: Option<&String>, agents: usize) -> Result<Uuid, Broken> {
        let new = (0..agents).map(|n| {
            let enrollment = Enrollment { name: format!("agent-{n}"), ..Enrollment::default() };
            let (transport, address) = (contract.transport.to_owned(), address.cloned());
            NewAgent { enrollment, transport, address, secret: None }
        });
        self.running.store().agent_insert(new.collect()).await.map_err(setup)?;
        self.act(contract).await
    }

    /// Submits an action for all agents.
    async fn act(&self, contract: &SenderContract) -> Result<Uuid, Broken> {
        let document = json!({"name": "contract", "target": "TRUE", "operations": contract.operations}).to_string();
        let by = crate::domain::audit::Author::server("test");
        let submitted = actions::submit(self.running.node(), document.as_bytes(), None, by).await.map_err(setup)?;
        Ok(submitted.id)
    }

    async fn commands(&self, action: Uuid) -> Result<Vec<CommandView>, Broken> {
        self.running.store().command_list(action, None, AgentNames::ALL, usize::MAX).await.map_err(setup)
    }

    /// Waits until this is so for all commands of an action.
    async fn until(&self, action: Uuid, number: usize, is_so: impl Fn(&CommandView) -> bool) -> Result<bool, Broken> {
        let began = Instant::now();
        loop {
            let commands = self.commands(action).await?;
            if commands.len() == number && commands.iter().all(&is_so) {
                return Ok(true);
            }
            self.check_answers()?;
            if began.elapsed() > self.patience {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn check_answers(&self) -> Result<(), Broken> {
        let seen = self.seen.lock();
        if seen.crashes > 0 {
            return Err(Broken::Crashed);
        }
        let is_slow = seen.unanswered.iter().any(|since| since.elapsed() > self.patience);
        if is_slow || seen.slowest > self.patience { Err(Broken::DeliverUnanswered) } else { Ok(()) }
    }
}

fn setup(error: impl std::fmt::Display) -> Broken {
    log::error!(error:%; "a sender's contract could not be checked");
    Broken::Setup
}

async fn delivers<A, F>(contract: &SenderContract, make: F) -> Result<(), Broken>
where
    A: Actor<Context = Context<A>> + Supervised + Unpin,
    A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
    F: Fn(SenderContext) -> A + Send + 'static,
{
    let bench = Bench::start(contract, make).await?;
    let action = bench.submit(contract, contract.address.as_ref(), contract.commands).await?;
    let ends = contract.ends;
    let is_over = move |command: &CommandView| command.status.is_final() || (!ends && command.attempts > 0);
    if !bench.until(action, contract.commands, is_over).await? {
        return Err(if bench.seen.lock().unanswered.is_empty() {
            Broken::NoOutcome
        } else {
            Broken::DeliverUnanswered
        });
    }
    let commands = bench.commands(action).await?;
    if ends && commands.iter().any(|command| command.status != CommandState::Succeeded) {
        return Err(Broken::NotDelivered);
    }
    if commands.iter().any(|command| command.attempts < 1) {
        return Err(Broken::WrongAttempts);
    }
    // A cancel of what is over must do no harm.
    let by = crate::domain::audit::Author::server("test");
    actions::cancel(bench.running.node(), action, &by).await.map_err(setup)?;
    end(bench).await
}

/// A command whose agent can't be reached stays pending, and no more attempts are counted than the
/// command was offered.
async fn tries_again<A, F>(contract: &SenderContract, make: F) -> Result<(), Broken>
where
    A: Actor<Context = Context<A>> + Supervised + Unpin,
    A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
    F: Fn(SenderContext) -> A + Send + 'static,
{
    let bench = Bench::start(contract, make).await?;
    let action = bench.submit(contract, contract.unreachable.as_ref(), 1).await?;
    let began = Instant::now();
    let mut last = 0;
    // Three attempts, or a while without any: a sender may find out that a host is away without one.
    while last < 3 && began.elapsed() < Duration::from_secs(10).min(bench.patience) {
        bench.check_answers()?;
        if let [command] = &bench.commands(action).await?[..] {
            if command.status != CommandState::Pending {
                return Err(Broken::NotDelivered);
            }
            // Read before the offers, of which there may be more by now.
            let offers = bench.seen.lock().offers.values().sum::<i32>();
            if command.attempts < last || command.attempts > offers {
                return Err(Broken::WrongAttempts);
            }
            last = command.attempts;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    end(bench).await
}

/// What is in flight when a drain begins is recorded before it is answered.
async fn drains<A, F>(contract: &SenderContract, make: F) -> Result<(), Broken>
where
    A: Actor<Context = Context<A>> + Supervised + Unpin,
    A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
    F: Fn(SenderContext) -> A + Send + 'static,
{
    let bench = Bench::start(contract, make).await?;
    bench.submit(contract, contract.address.as_ref(), contract.commands).await?;
    let began = Instant::now();
    while bench.seen.lock().taken.is_empty() && began.elapsed() < bench.patience {
        bench.check_answers()?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    end(bench).await
}

/// Stops the server. Nothing may be recorded from then on.
async fn end(bench: Bench) -> Result<(), Broken> {
    let Bench { running, seen, transport, .. } = bench;
    let node = running.node().clone();
    let drained = running.drain().await;
    let is_answered = seen.lock().is_drained;
    if drained.is_err() || !is_answered {
        return Err(Broken::DrainUnanswered);
    }
    let status = node.metrics.senders().of(transport);
    let recorded = status.recorded();
    tokio::time::sleep(LATE).await;
    if status.recorded() != recorded {
        return Err(Broken::RecordedAfterDrain);
    }
    if seen.lock().taken_after_drain > 0 { Err(Broken::TakenAfterDrain) } else { Ok(()) }
}
