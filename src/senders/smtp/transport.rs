//! Delivers commands as mails.
//!
//! A command with several operations is several mails. When one of them isn't accepted for now, the
//! next attempt sends those before it once more, with the same `Message-ID`.

use super::mail::{MAX_MAILS, MODULE, mail, message_id, parameters};
use super::mailer::{Mailer, SendError};
use crate::domain::protocol::OperationResult;
use crate::senders::contract::{Delivery, Outcome};
use crate::senders::pooled::{Limits, Transport};
use crate::senders::run_id::run_id;
use async_trait::async_trait;
use lettre::message::Mailbox;
use serde_json::json;
use serde_json::value::to_raw_value;
use std::time::Duration;

/// How much later the machinery gives a delivery up than the mailer does, whose error says more.
const GRACE: Duration = Duration::from_secs(5);
/// Maximum number of commands that wait here. Others stay with the scheduler.
const QUEUE: usize = 2_000;

/// The transport of agents that are mailboxes.
pub(crate) struct Smtp {
    mailer: Mailer,
}

impl Smtp {
    pub(crate) fn new(mailer: Mailer) -> Self {
        Self { mailer }
    }
}

fn failed(error: String, mut results: Vec<OperationResult>) -> Outcome {
    results.push(OperationResult {
        module: MODULE.to_owned(),
        ok: false,
        output: None,
        error: Some(error.clone()),
        truncated: false,
        lossy: false,
    });
    Outcome::Failed { error, results }
}

#[async_trait]
impl Transport for Smtp {
    fn limits(&self) -> Limits {
        let mails = u32::try_from(MAX_MAILS).unwrap_or(u32::MAX);
        Limits {
            concurrency: self.mailer.concurrency,
            per_group: self.mailer.concurrency,
            queue: QUEUE,
            timeout: self.mailer.timeout * mails + GRACE,
        }
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let refused = |error: String| Outcome::Failed { error, results: Vec::new() };
        let agent = &delivery.agent;
        let Some(address) = &agent.address else { return refused("the agent has no address".to_owned()) };
        let to = match address.parse() {
            Ok(address) => Mailbox::new(None, address),
            Err(error) => return refused(format!("the agent's address is no mail address: {error}")),
        };
        let mails = match parameters(&delivery.action.operations) {
            Ok(mails) => mails,
            Err(error) => return refused(error),
        };
        let run = run_id(delivery.action.id, &agent.name, delivery.due.run);
        let mut results = Vec::with_capacity(mails.len());
        for (at, parameters) in mails.into_iter().enumerate() {
            let id = message_id(run, at, &self.mailer.from);
            let mail = match mail(&self.mailer.from, &to, id.clone(), parameters) {
                Ok(mail) => mail,
                Err(error) => return failed(error, results),
            };
            match self.mailer.send(&mail).await {
                Ok(answer) => results.push(OperationResult {
                    module: MODULE.to_owned(),
                    ok: true,
                    output: to_raw_value(&json!({ "message_id": id, "answer": answer })).ok(),
                    error: None,
                    truncated: false,
                    lossy: false,
                }),
                Err(SendError::Refused(error)) => return failed(error, results),
                Err(SendError::NotNow(error)) => return Outcome::AttemptFailed { error, retry_after: None },
                Err(SendError::Broken(error)) => return Outcome::Unreachable { error },
                Err(SendError::Away(error)) => return Outcome::Away { error },
            }
        }
        Outcome::Succeeded(results)
    }
}
