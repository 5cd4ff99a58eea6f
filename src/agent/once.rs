//! One check-in over plain HTTP, for an agent that isn't always connected. Runner, journal and
//! outbox are the same as with a [`Session`](super::session::Session); only the connection to the
//! server differs.

use super::config::AgentConfig;
use super::enroll::{self, Credentials, EnrollError};
use super::error::AgentError;
use super::metadata::collect_once;
use super::outbox::{Fault, expired};
use super::runner::Input;
use super::session::{RESULT_BYTES, RESULTS_PER_FRAME, SessionDeps, take_first};
use crate::domain::protocol::{Command, MAX_FRAME, MetadataStored, RunRef, Stored};
use crate::domain::time::Timestamp;
use crate::unreached::why;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::HashSet;
use tokio::sync::oneshot;

#[derive(Deserialize)]
struct Due {
    commands: Vec<Command>,
    server_time: Timestamp,
}

struct Http<'a> {
    config: &'a AgentConfig,
    client: reqwest::Client,
    base: &'a str,
    token: String,
    deps: &'a SessionDeps,
    stored: usize,
}

/// Reports, fetches and runs commands until none is due. Returns the number of results that the
/// server stored.
pub(super) async fn check_in(
    config: &AgentConfig,
    deps: &SessionDeps,
    mut credentials: Credentials,
) -> Result<usize, AgentError> {
    match credentials.enroll(config).await? {
        Ok(()) => {}
        Err(EnrollError::NotNow(error)) => return Err(AgentError::CheckIn(error)),
        Err(error) => return Err(AgentError::Enroll { name: config.name.clone(), reason: error.to_string() }),
    }
    let client = enroll::client(config).map_err(|error| failed(&error))?;
    let base = config.server.trim_end_matches('/');
    let token = credentials.token.clone();
    let done = Http { config, client, base, token, deps, stored: 0 }.run().await?;
    // All calls were answered, so the token is valid.
    credentials.used(&config.state_dir).await?;
    Ok(done)
}

impl Http<'_> {
    async fn run(mut self) -> Result<usize, AgentError> {
        let unstored = self.deps.journal.with(|journal| Ok(journal.unstored())).await?;
        self.deps.outbox.post(|pending| pending.results.extend(unstored));
        self.report().await?;
        self.report_metadata().await?;
        let mut seen = HashSet::new();
        loop {
            let url = format!("{}/v1/agent/commands?limit={}", self.base, self.deps.capacity.min(1000));
            let asked = self.deps.clock.moment();
            let due: Due = self.answer(self.client.get(url)).await?;
            // From here on the runner knows which commands from the journal have expired, and runs
            // the rest.
            self.deps.clock.set_as_of(asked, due.server_time);
            // The agent has a reason not to run a command that comes again.
            let fresh: Vec<_> = due.commands.into_iter().filter(|command| seen.insert(command.run_ref())).collect();
            let is_last = fresh.is_empty();
            if !is_last {
                self.input(Input::Commands(fresh)).await?;
            }
            self.settle().await?;
            if is_last {
                return Ok(self.stored);
            }
        }
    }

    /// Reports to the server until the runner is idle.
    async fn settle(&mut self) -> Result<(), AgentError> {
        let (tell, mut settled) = oneshot::channel();
        self.input(Input::Settle(tell)).await?;
        loop {
            tokio::select! {
                _ = &mut settled => break,
                () = self.deps.outbox.news() => self.report().await?,
            }
        }
        self.report().await?;
        // Makes sure that `stored` is written before the agent ends.
        let (tell, settled) = oneshot::channel();
        self.input(Input::Settle(tell)).await?;
        let _ = settled.await;
        Ok(())
    }

    /// Collects every value once, and reports them.
    async fn report_metadata(&mut self) -> Result<(), AgentError> {
        let (reports, clock) = (&self.deps.reports, &self.deps.clock);
        collect_once(self.config, reports, clock).await;
        while let Some(frame) = reports.take(Timestamp::of_this_machine(), clock.moment()) {
            let body = serde_json::to_string(&frame).map_err(|error| failed(&error))?;
            let stored: MetadataStored = self.post("metadata", body).await?;
            reports.stored(&stored);
        }
        Ok(())
    }

    async fn report(&mut self) -> Result<(), AgentError> {
        loop {
            let (received, late, results, fault) = {
                let mut pending = self.deps.outbox.open();
                let received: Vec<RunRef> = std::mem::take(&mut pending.received).into_iter().collect();
                let late = std::mem::take(&mut pending.expired);
                (received, late, take_first(&mut pending.results, RESULTS_PER_FRAME), pending.fault.take())
            };
            if let Some(Fault::Journal(error)) = fault {
                return Err(AgentError::CheckIn(error));
            }
            if !received.is_empty() {
                let body = json!({"commands": received}).to_string();
                let _: serde::de::IgnoredAny = self.post("received", body).await?;
            }
            if !late.is_empty() {
                let results = late.into_iter().map(expired).collect();
                let body = serde_json::to_string(&Results { results }).map_err(|error| failed(&error))?;
                let _: Stored = self.post("results", body).await?;
            }
            if results.is_empty() {
                return Ok(());
            }
            let (results, rest) = self
                .deps
                .journal
                .with(move |journal| {
                    let (read, done) = journal.results(&results, RESULT_BYTES)?;
                    Ok((read, results[done..].to_vec()))
                })
                .await?;
            self.deps.outbox.open().results.extend(rest);
            let body = serde_json::to_string(&Results { results }).map_err(|error| failed(&error))?;
            debug_assert!(body.len() <= MAX_FRAME, "the journal gave at most RESULT_BYTES");
            let stored: Stored = self.post("results", body).await?;
            self.stored += stored.commands.len();
            self.input(Input::Stored(stored)).await?;
        }
    }

    async fn input(&self, input: Input) -> Result<(), AgentError> {
        self.deps.inputs.send(input).await.map_err(|error| failed(&error))
    }

    async fn post<T: DeserializeOwned>(&self, what: &str, body: String) -> Result<T, AgentError> {
        let url = format!("{}/v1/agent/{what}", self.base);
        self.answer(self.client.post(url).header("content-type", "application/json").body(body)).await
    }

    async fn answer<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, AgentError> {
        let answer = request.bearer_auth(&self.token).send().await.map_err(|error| failed(&error))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| failed(&error))?;
        if !status.is_success() {
            return Err(AgentError::CheckIn(format!("the server answered {status}: {}", enroll::detail(&text))));
        }
        // Some answers are empty.
        let text = if text.trim().is_empty() { "null" } else { &text };
        serde_json::from_str(text).map_err(|error| AgentError::CheckIn(format!("the server's answer: {error}")))
    }
}

#[derive(serde::Serialize)]
struct Results {
    results: Vec<crate::domain::protocol::RunResult>,
}

fn failed(error: &(dyn std::error::Error + 'static)) -> AgentError {
    AgentError::CheckIn(why(error))
}
