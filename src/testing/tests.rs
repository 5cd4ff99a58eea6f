use super::fixture::{next, until};
use super::{Broken, SenderContract, sender_contract};
use crate::config::Config;
use crate::domain::agent::Enrollment;
use crate::domain::audit::Author;
use crate::domain::command::{CommandState, Event};
use crate::domain::protocol::OperationResult;
use crate::node::Odoshi;
use crate::senders::pooled::{Limits, PooledSender, Transport};
use crate::senders::{Cancelled, Deferred, Deliver, Delivery, Drain, Outcome, SenderContext, report_of};
use crate::service::actions;
use crate::store::{AgentNames, NewAgent};
use actix::prelude::*;
use async_trait::async_trait;
use serde_json::json;
use std::time::Duration;

fn succeeded() -> Outcome {
    let result =
        OperationResult { module: "ping".into(), ok: true, output: None, error: None, truncated: false, lossy: false };
    Outcome::Succeeded(vec![result])
}

fn contract() -> SenderContract {
    SenderContract { commands: 20, ..SenderContract::new("test") }
}

/// Delivers to every address but `nowhere`.
struct Sound;

#[async_trait]
impl Transport for Sound {
    fn limits(&self) -> Limits {
        Limits { concurrency: 2, ..Limits::default() }
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        tokio::time::sleep(Duration::from_millis(1)).await;
        match delivery.agent.address.as_deref() {
            Some("nowhere") => Outcome::AttemptFailed { error: "nobody is there".into(), retry_after: None },
            _ => succeeded(),
        }
    }
}

#[actix_rt::test]
async fn a_sound_sender_keeps_the_contract() {
    let contract = SenderContract { unreachable: Some("nowhere".into()), ..contract() };
    assert_eq!(sender_contract(contract, |context| PooledSender::new(context, Sound)).await, Ok(()));
}

/// Blocks its thread, as a user's code may.
#[allow(clippy::disallowed_methods, reason = "this is what is tested")]
fn block() {
    std::thread::sleep(Duration::from_secs(3600));
}

/// The ways in which a sender is wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    NeverRecords,
    NeverAnswers,
    ForgetsWhatIsInFlight,
    CountsByItself,
    Blocks,
    Crashes,
    FailsAll,
}

struct Faulty {
    context: SenderContext,
    fault: Fault,
}

impl Actor for Faulty {
    type Context = Context<Self>;
}

impl Supervised for Faulty {}

impl Handler<Deliver> for Faulty {
    type Result = ResponseFuture<Vec<Deferred>>;

    fn handle(&mut self, Deliver(deliveries): Deliver, _: &mut Self::Context) -> Self::Result {
        assert!(self.fault != Fault::Crashes, "as the test wants it");
        let (context, fault) = (self.context.clone(), self.fault);
        if fault == Fault::Blocks {
            block();
        }
        let now = context.now();
        let reports: Vec<_> = deliveries
            .iter()
            .map(|delivery| match fault {
                Fault::CountsByItself if delivery.agent.address.is_some() => {
                    let (run, error) = (delivery.due.run, "no".to_owned());
                    let event = Event::AttemptFailed { run, attempts: 7, error, retry_after: None };
                    report_of(&delivery.action, delivery.due.agent_no, event)
                }
                Fault::FailsAll => delivery.report(Outcome::Failed { error: "no".into(), results: vec![] }, now),
                _ => delivery.report(succeeded(), now),
            })
            .collect();
        Box::pin(async move {
            match fault {
                Fault::NeverRecords => {}
                Fault::NeverAnswers => std::future::pending().await,
                Fault::ForgetsWhatIsInFlight => {
                    actix_rt::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        context.record(reports).await.ok();
                    });
                }
                _ => drop(context.record(reports).await),
            }
            Vec::new()
        })
    }
}

impl Handler<Cancelled> for Faulty {
    type Result = ();

    fn handle(&mut self, _: Cancelled, _: &mut Self::Context) {}
}

impl Handler<Drain> for Faulty {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
}

async fn verdict(fault: Fault, contract: SenderContract) -> Result<(), Broken> {
    sender_contract(contract, move |context| Faulty { context, fault }).await
}

#[actix_rt::test]
async fn a_sender_that_breaks_a_promise_is_found_out() {
    let short = || SenderContract { patience: Duration::from_secs(2), ..contract() };
    assert_eq!(verdict(Fault::NeverRecords, short()).await, Err(Broken::NoOutcome));
    assert_eq!(verdict(Fault::NeverAnswers, short()).await, Err(Broken::DeliverUnanswered));
    assert_eq!(verdict(Fault::Blocks, short()).await, Err(Broken::DeliverUnanswered));
    assert_eq!(verdict(Fault::ForgetsWhatIsInFlight, contract()).await, Err(Broken::RecordedAfterDrain));
    assert_eq!(verdict(Fault::Crashes, contract()).await, Err(Broken::Crashed));
    assert_eq!(verdict(Fault::FailsAll, contract()).await, Err(Broken::NotDelivered));
}

#[actix_rt::test]
async fn a_sender_that_counts_attempts_wrongly_is_found_out() {
    let contract = SenderContract { unreachable: Some("nowhere".into()), ..contract() };
    assert_eq!(verdict(Fault::CountsByItself, contract).await, Err(Broken::WrongAttempts));
}

#[actix_rt::test]
async fn a_sender_that_blocks_its_thread_holds_up_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    config.http.listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    config.sender.enabled = Vec::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let odoshi = Odoshi::builder(config)
        .sender("blocking", |context| Faulty { context, fault: Fault::Blocks })
        .sender("sound", |context| PooledSender::new(context, Sound))
        .on_outcome(move |outcomes| {
            tell.send(outcomes.len()).ok();
            block();
        });
    let mut running = odoshi.start().await.expect("it starts");
    running.ready().await.expect("the store");
    let agents = ["blocking", "sound"].map(|transport| NewAgent {
        enrollment: Enrollment { name: format!("{transport}-1"), ..Enrollment::default() },
        transport: transport.to_owned(),
        address: None,
        secret: None,
    });
    running.store().agent_insert(agents.into()).await.expect("agents");
    for (round, target) in ["TRUE", "name = 'sound-1'", "name = 'sound-1'"].into_iter().enumerate() {
        let document = json!({"name": "n", "target": target, "operations": [{"module": "ping"}]}).to_string();
        let by = Author::server("test");
        let action = actions::submit(running.node(), document.as_bytes(), None, by).await.expect("an action").id;
        until("the sound sender has delivered", async || {
            let commands = running.store().command_list(action, None, AgentNames::ALL, 10).await.expect("commands");
            commands.iter().any(|command| command.agent == "sound-1" && command.status == CommandState::Succeeded)
        })
        .await;
        // The listener is called once, and blocks from then on.
        if round == 0 {
            assert_eq!(next(&mut told).await, 1);
        }
    }
}
