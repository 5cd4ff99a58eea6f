//! A transport of one's own: how it delivers one command, and one line that registers it.
//!
//! This one writes each command to stdout. A real one would call a chat, a pager or a switch. An
//! operation `{"module": "say", "parameters": TEXT}` is printed; another module fails the command;
//! and the first attempt at each agent fails, to show that it is made again.
//!
//! `cargo run --example custom_sender`, then drop this into `odoshi-data/spool/new/hello.json`:
//!
//! ```json
//! {"name": "hello", "target": "transport = 'console'", "operations": [{"module": "say", "parameters": "hello"}]}
//! ```
#![allow(clippy::print_stdout, reason = "the console is where this sender delivers to")]

use async_trait::async_trait;
use odoshi::Odoshi;
use odoshi::config::Config;
use odoshi::domain::agent::Enrollment;
use odoshi::domain::protocol::OperationResult;
use odoshi::senders::pooled::{PooledSender, Transport};
use odoshi::senders::{Delivery, Outcome};
use odoshi::store::NewAgent;

struct Console;

#[async_trait]
impl Transport for Console {
    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let name = &delivery.agent.name;
        if delivery.due.attempts == 0 {
            println!("{name} is busy");
            return Outcome::AttemptFailed { error: "it is busy".into(), retry_after: None };
        }
        let command = delivery.command();
        let operations = match command.operations.parse() {
            Ok(operations) => operations,
            Err(error) => return Outcome::Failed { error: format!("operations: {error}"), results: vec![] },
        };
        let mut results = Vec::new();
        for operation in operations {
            if operation.module != "say" {
                return Outcome::Failed { error: format!("a console can't {}", operation.module), results };
            }
            let text = operation.parameters.as_deref().map_or("nothing", |parameters| parameters.get());
            println!("{name}: {}: {text}", command.name);
            results.push(OperationResult { module: operation.module, ok: true, ..OperationResult::default() });
        }
        Outcome::Succeeded(results)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let config = Config::load(None, &[])?;
    actix_rt::System::new().block_on(async {
        let odoshi = Odoshi::builder(config).sender("console", |context| PooledSender::new(context, Console));
        let running = odoshi.start().await?;
        // An agent that does not connect by itself; a name that is there already is left as it is.
        let enrollment = Enrollment::from_json(br#"{"name": "my-terminal"}"#)?;
        let agent = NewAgent { enrollment, transport: "console".into(), address: None, secret: None };
        running.store().agent_insert(vec![agent]).await?;
        Ok(running.run().await?)
    })
}
