//! Keeps a connection to the broker for ever: connects, runs a session, waits, connects again.

use super::link::Broker;
use super::session::BrokerSession;
use crate::agent::backoff::{Backoff, HELD, Pause};
use crate::agent::config::AgentConfig;
use crate::agent::session::SessionDeps;
use crate::agent::stop_signal::told_to;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a session may take to send the rest when the agent stops.
const GOODBYE: Duration = Duration::from_secs(10);

/// The agent's connection to the broker.
pub(in crate::agent) struct BrokerConnection<B> {
    name: String,
    deps: SessionDeps,
    broker: B,
    backoff: Backoff,
}

impl<B: Broker> BrokerConnection<B> {
    pub(in crate::agent) fn new(config: &AgentConfig, deps: SessionDeps, broker: B) -> Self {
        Self { name: config.name.clone(), deps, broker, backoff: Backoff::new(config.backoff) }
    }

    /// Runs until `stop` is true.
    pub(in crate::agent) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let agent = self.name.as_str();
            let connected = tokio::select! {
                connected = timeout(CONNECT_TIMEOUT, self.broker.connect()) => connected,
                () = told_to(&mut stop) => return,
            };
            match connected {
                Ok(Ok(link)) => {
                    log::info!(agent; "connected to the broker");
                    let began = Instant::now();
                    let mut session = BrokerSession::new(link, self.name.clone(), self.deps.clone());
                    let (mut stop, mut late) = (stop.clone(), stop.clone());
                    let end = tokio::select! {
                        end = session.run(&mut stop) => end,
                        () = async { told_to(&mut late).await; tokio::time::sleep(GOODBYE).await } => return,
                    };
                    match end {
                        Ok(()) => return,
                        Err(error) => log::info!(agent, error:%; "the connection to the broker ended"),
                    }
                    if began.elapsed() >= HELD {
                        self.backoff.reset();
                    }
                }
                Ok(Err(error)) => log::info!(agent, error:%; "can't connect to the broker"),
                Err(_) => log::info!(agent; "connecting to the broker took too long"),
            }
            let wait = self.backoff.next(Pause::Backoff);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = told_to(&mut stop) => return,
            }
        }
    }
}
