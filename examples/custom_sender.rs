//! A transport of one's own: an actor that handles `Deliver`, `Cancelled` and `Drain`, and one line that registers it.
//!
//! This one writes each command to stdout and calls it a success. A real one would call a chat, a pager or a switch.
//! `cargo run --example custom_sender`, then drop this into `odoshi-data/spool/new/hello.json`:
//!
//! ```json
//! {"name": "hello", "target": "transport = 'console'", "operations": [{"module": "say", "parameters": "hello"}]}
//! ```
#![allow(clippy::print_stdout, reason = "the console is where this sender delivers to")]

use actix::prelude::*;
use odoshi::Odoshi;
use odoshi::config::Config;
use odoshi::domain::agent::Enrollment;
use odoshi::domain::command::{CommandState, Event, RunEnd};
use odoshi::senders::{Cancelled, Deliver, Delivery, Drain, SenderContext, report, run_end};
use odoshi::store::NewAgent;

struct ConsoleSender {
    context: SenderContext,
}

impl Actor for ConsoleSender {
    type Context = Context<Self>;
}

// After a panic there is nothing to rebuild: what was in hand is still in the store.
impl Supervised for ConsoleSender {}

impl Handler<Deliver> for ConsoleSender {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Deliver(deliveries): Deliver, _: &mut Self::Context) -> Self::Result {
        let context = self.context.clone();
        Box::pin(async move {
            let mut reports = Vec::with_capacity(deliveries.len());
            for delivery in &deliveries {
                println!("{}: {}", delivery.action.name, delivery.action.operations.get());
                reports.push(report(delivery, succeeded(delivery, &context)));
            }
            // Durable when this is answered. What could not be recorded is found again, and delivered again.
            if let Err(error) = context.record(reports).await {
                log::warn!(error = error.to_string().as_str(), commands = deliveries.len(); "commands are delivered again");
            }
        })
    }
}

impl Handler<Cancelled> for ConsoleSender {
    type Result = ();

    // A console can't take a line back.
    fn handle(&mut self, _: Cancelled, _: &mut Self::Context) {}
}

impl Handler<Drain> for ConsoleSender {
    type Result = ();

    // Nothing is in flight when a `Deliver` has been answered.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
}

fn succeeded(delivery: &Delivery, context: &SenderContext) -> Event {
    let end = run_end(delivery, CommandState::Succeeded, context.store.now());
    Event::Result(Box::new(RunEnd { results: Some(r#"[{"module":"say","ok":true}]"#.into()), ..end }))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let config = Config::load(None, &[])?;
    actix_rt::System::new().block_on(async {
        let odoshi = Odoshi::builder(config).sender("console", |context| ConsoleSender { context });
        let running = odoshi.start().await?;
        // An agent that does not connect by itself; a name that is there already is left as it is.
        let enrollment = Enrollment::from_json(br#"{"name": "my-terminal"}"#)?;
        let agent = NewAgent { enrollment, transport: "console".into(), address: None, secret: None };
        running.store().agent_insert(vec![agent]).await?;
        Ok(running.run().await?)
    })
}
