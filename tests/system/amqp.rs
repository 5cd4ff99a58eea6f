//! Agents on RabbitMQ: a real broker, real agents.

use crate::support::rabbit::Rabbit;
use crate::support::{Fleet, On, Server, by_length, eventually, mostly_waits, until_reached};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions,
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ExchangeKind};
use odoshi::agent::{Agent, AgentConfig};
use serde_json::{Value, json};
use std::time::Instant;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("a{number:03}")).collect()
}

/// A server with agents that are added.
async fn server(on: On, rabbit: &Rabbit, agents: &[String]) -> Server {
    let options = on.options().with("ODOSHI__SENDER__ENABLED", "stream,amqp");
    let server = Server::start(options.with("ODOSHI__SENDER__AMQP__URL", &rabbit.url("odoshi"))).await;
    for name in agents {
        let body = json!({ "name": name, "transport": "amqp" });
        let (status, answer) = server.call("POST", "/v1/agents", Some(body)).await;
        assert_eq!(status, 201, "{answer}");
    }
    server
}

fn fleet(rabbit: &Rabbit, server: &Server, agents: &[String]) -> Fleet {
    Fleet::at_broker(agents, server.folder.path(), |name| rabbit.url(name))
}

fn action(number: usize) -> Value {
    json!({ "name": "n", "target": "transport = 'amqp'", "operations": [{ "module": "tally", "parameters": number }] })
}

async fn state(server: &Server) -> String {
    let (_, readiness) = server.readyz().await.unwrap_or_default();
    let senders = readiness["senders"].as_array().cloned().unwrap_or_default();
    let amqp = senders.iter().find(|sender| sender["transport"] == "amqp");
    amqp.map_or_else(String::new, |amqp| amqp["state"].as_str().unwrap_or_default().to_owned())
}

/// Every command succeeded and was run once, and no attempt has failed.
async fn ran_once(server: &Server, fleet: &Fleet, actions: &[String], agents: usize) {
    for id in actions {
        let view = server.until_status(id, "completed").await;
        assert_eq!(view["counts"]["succeeded"], agents, "{view}");
        for command in server.commands(id).await {
            assert_eq!(command["attempts"], 1, "the one that worked: {command}");
        }
    }
    let tally = fleet.tally.lock().unwrap();
    assert_eq!(tally.len(), actions.len() * agents);
    assert!(tally.values().all(|runs| *runs == 1), "{tally:?}");
}

pub async fn every_command_runs_once_though_the_broker_is_killed_in_the_middle(on: On) {
    let (agents, count) = (names(10), by_length(50, 500));
    let mut rabbit = Rabbit::start(&agents).await;
    let server = server(on, &rabbit, &agents).await;
    let fleet = fleet(&rabbit, &server, &agents);
    let began = Instant::now();
    let mut actions = Vec::new();
    for number in 0..count / 2 {
        actions.push(server.submit(action(number)).await);
    }
    let tally = fleet.tally.clone();
    eventually("some runs", || async { (tally.lock().unwrap().len() > count).then_some(()) }).await;
    rabbit.kill();
    for number in count / 2..count {
        actions.push(server.submit(action(number)).await);
    }
    eventually("the sender to be away", || async { (state(&server).await == "away").then_some(()) }).await;
    rabbit.restart().await;
    until_reached("runs", count * agents.len(), || fleet.tally.lock().unwrap().len()).await;
    ran_once(&server, &fleet, &actions, agents.len()).await;
    println!("{} commands over a killed RabbitMQ: {:.1?}", count * agents.len(), began.elapsed());
    eventually("the sender to be back", || async { (state(&server).await == "ok").then_some(()) }).await;
    let (_, agent) = server.call("GET", "/v1/agents/a000", None).await;
    assert_eq!((&agent["status"], agent["facts"]["os"].is_string()), (&json!("online"), true), "{agent}");
}

pub async fn a_broker_that_comes_later_and_loses_a_queue_costs_nothing(on: On) {
    mostly_waits();
    let agents = names(2);
    let mut rabbit = Rabbit::prepare(&agents);
    let server = server(on, &rabbit, &agents).await;
    assert_eq!(state(&server).await, "away");
    let long = json!({ "name": ".".repeat(128), "transport": "amqp" });
    let (status, answer) = server.call("POST", "/v1/agents", Some(long)).await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer["detail"].as_str().unwrap().starts_with("name: too long"), "{answer}");
    let fleet = fleet(&rabbit, &server, &agents);
    let first = server.submit(action(1)).await;
    eventually("its commands", || async { (server.action(&first).await["counts"]["total"] == 2).then_some(()) }).await;
    rabbit.restart().await;
    server.until_status(&first, "completed").await;
    // The server believes that this queue is there, and its agent reads it.
    let root = rabbit.root().await;
    let channel = root.create_channel().await.unwrap();
    channel.queue_delete("odoshi.commands.a000".into(), QueueDeleteOptions::default()).await.unwrap();
    let second = server.submit(action(2)).await;
    server.until_status(&second, "completed").await;
    for queue in ["odoshi.results", "odoshi.dead"] {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    let third = server.submit(action(3)).await;
    ran_once(&server, &fleet, &[first, second, third], 2).await;
    // The queue of a removed agent goes.
    let (status, _) = server.call("DELETE", "/v1/agents/a001", None).await;
    assert_eq!(status, 204);
    eventually("its queue to be gone", || async {
        rabbit.waiting(&root, "odoshi.commands.a001").await.is_none().then_some(())
    })
    .await;
}

pub async fn an_agent_whose_queue_was_removed_gets_it_back_when_it_comes(on: On) {
    mostly_waits();
    let agents = names(1);
    let rabbit = Rabbit::start(&agents).await;
    let server = server(on, &rabbit, &agents).await;
    let (root, queue) = (rabbit.root().await, "odoshi.commands.a000");
    eventually("its queue", || rabbit.waiting(&root, queue)).await;
    let channel = root.create_channel().await.unwrap();
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    let fleet = fleet(&rabbit, &server, &agents);
    eventually("its queue again", || rabbit.waiting(&root, queue)).await;
    let id = server.submit(action(1)).await;
    ran_once(&server, &fleet, &[id], 1).await;
}

pub async fn an_agent_that_comes_later_gets_what_is_open_and_neither_what_is_cancelled_nor_what_has_expired(on: On) {
    mostly_waits();
    let agents = names(1);
    let rabbit = Rabbit::start(&agents).await;
    let server = server(on, &rabbit, &agents).await;
    let root = rabbit.root().await;
    let (kept, cancelled) = (server.submit(action(1)).await, server.submit(action(2)).await);
    let mut short = action(3);
    short["expires_after"] = json!("3s");
    let expired = server.submit(short).await;
    eventually("three messages", || async {
        (rabbit.waiting(&root, "odoshi.commands.a000").await? >= 3).then_some(())
    })
    .await;
    for id in [&kept, &cancelled] {
        assert_eq!(server.action(id).await["counts"]["pending"], 1, "the broker's confirm is not `sent`");
    }
    let (status, _) = server.call("POST", &format!("/v1/actions/{cancelled}/cancel"), None).await;
    assert_eq!(status, 200);
    server.until_status(&expired, "completed").await;
    let fleet = fleet(&rabbit, &server, &agents);
    ran_once(&server, &fleet, &[kept], 1).await;
    assert_eq!(server.until_status(&cancelled, "cancelled").await["counts"]["cancelled"], 1);
    assert_eq!(server.action(&expired).await["counts"]["expired"], 1);
    eventually("an empty queue", || async {
        (rabbit.waiting(&root, "odoshi.commands.a000").await? == 0).then_some(())
    })
    .await;

    // A cancel reaches it when it is busy: these are more than it runs at a time.
    let wait = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "wait" }] });
    let mut actions = Vec::new();
    for _ in 0..20 {
        actions.push(server.submit(wait.clone()).await);
    }
    eventually("a full agent", || async { (fleet.waiting() == 16).then_some(()) }).await;
    for id in &actions {
        server.call("POST", &format!("/v1/actions/{id}/cancel"), None).await;
    }
    eventually("all runs to be killed", || async { (fleet.waiting() == 0).then_some(()) }).await;
    for id in &actions {
        assert_eq!(server.until_status(id, "cancelled").await["counts"]["cancelled"], 1);
    }
    let last = server.submit(action(4)).await;
    assert_eq!(server.until_status(&last, "completed").await["counts"]["succeeded"], 1);
}

pub async fn a_broker_is_spoken_to_over_tls_if_its_authority_is_trusted(on: On) {
    mostly_waits();
    let rabbit = Rabbit::start_with_tls(&names(1)).await;
    let (url, authority) = rabbit.tls_url("odoshi");
    let options = on.options().with("ODOSHI__SENDER__ENABLED", "stream,amqp").with("ODOSHI__SENDER__AMQP__URL", &url);
    let mut server = Server::start(options).await;
    let body = json!({ "name": "a000", "transport": "amqp" });
    assert_eq!(server.call("POST", "/v1/agents", Some(body)).await.0, 201);
    eventually("the broker to be refused", || async {
        server.log_text().contains("RabbitMQ can't be reached or used").then_some(())
    })
    .await;
    assert_eq!(state(&server).await, "away");
    server.set("ODOSHI__SENDER__AMQP__CA_FILE", authority.to_str().unwrap());
    server.terminate().await;
    server.restart().await;
    let (url, ca_file) = rabbit.tls_url("a000");
    let config = AgentConfig {
        server: url,
        name: "a000".into(),
        state_dir: server.folder.path().join("a000"),
        ca_file: Some(ca_file),
        ..AgentConfig::default()
    };
    let agent = Agent::new(config).unwrap();
    let agent = actix_rt::spawn(async move { agent.run(std::future::pending()).await.unwrap() });
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 1);
    agent.abort();
}

/// Publishes, and waits for the broker's confirm.
async fn publish(
    connection: &Connection,
    exchange: &str,
    key: &str,
    user: Option<&str>,
    message: &[u8],
) -> Result<(), String> {
    let channel = connection.create_channel().await.map_err(|error| error.to_string())?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut properties = BasicProperties::default();
    if let Some(user) = user {
        properties = properties.with_user_id(user.into());
    }
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirm = channel.basic_publish(exchange.into(), key.into(), options, message, properties).await;
    let confirm = confirm.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())?;
    let returned = confirm.take_message();
    channel.close(200, "done".into()).await.map_err(|error| error.to_string())?;
    returned.map_or(Ok(()), |_| Err("returned".into()))
}

pub async fn messages_that_cannot_be_used_are_put_aside_with_the_reason(on: On) {
    mostly_waits();
    let mut agents = names(2);
    // Their users may publish with these names, and the server refuses them.
    let strangers = ["nobody", "streamer"].map(str::to_owned);
    agents.extend(strangers.clone());
    let rabbit = Rabbit::start(&agents).await;
    let server = server(on, &rabbit, &agents[..2]).await;
    server.enroll("streamer", json!({})).await;
    let (status, _) = server.call("PATCH", "/v1/agents/a001", Some(json!({ "disabled": true }))).await;
    assert_eq!(status, 200);
    let root = rabbit.root().await;
    eventually("the queues", || async { rabbit.waiting(&root, "odoshi.dead").await }).await;
    let heartbeat = r#"{"type":"heartbeat"}"#;
    let large = format!(r#"{{"type":"heartbeat","x":"{}"}}"#, " ".repeat(4 * 1024 * 1024));
    let strange = [
        ("a000", "a000", Some("a000"), "nonsense", "not a frame"),
        ("a000", "a000", Some("a000"), "\u{0}", "not a frame"),
        ("a000", "a000", Some("a000"), r#"{"type":"results"}"#, "not a frame"),
        ("a000", "a000", Some("a000"), large.as_str(), "bytes"),
        ("a000", "a000", None, heartbeat, "no user-id"),
        ("root", "a000", Some("root"), heartbeat, "user-id is not the agent"),
        ("root", "a.b", Some("root"), heartbeat, "no agent's name"),
        ("nobody", "nobody", Some("nobody"), heartbeat, "no such agent"),
        ("streamer", "streamer", Some("streamer"), heartbeat, "another transport"),
        ("a001", "a001", Some("a001"), heartbeat, "disabled"),
    ];
    for (by, key, user, message, reason) in strange {
        let connection = rabbit.connect(by).await.unwrap();
        publish(&connection, "odoshi.results", key, user, message.as_bytes()).await.unwrap();
        let channel = root.create_channel().await.unwrap();
        let options = BasicGetOptions { no_ack: true };
        let dead = eventually("it to be put aside", || async {
            channel.basic_get("odoshi.dead".into(), options).await.unwrap()
        })
        .await;
        let headers = dead.properties.headers().as_ref().unwrap();
        let said = headers.inner().get("Odoshi-Reason").unwrap().as_long_string().unwrap().to_string();
        assert!(said.contains(reason), "{key} {user:?}: {said}");
        assert!(message.as_bytes().starts_with(&dead.data), "{key} {user:?}");
    }
    // Unknown types are ignored, and it goes on.
    let agent = rabbit.connect("a000").await.unwrap();
    publish(&agent, "odoshi.results", "a000", Some("a000"), br#"{"type":"weather"}"#).await.unwrap();
    let fleet = fleet(&rabbit, &server, &agents[..1]);
    let id = server.submit(action(1)).await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 1);
    assert_eq!(rabbit.waiting(&root, "odoshi.dead").await, Some(0));
    drop(fleet);
}

/// What an agent does with its own credentials, beyond its own queue.
pub async fn an_agents_credentials_reach_nothing_of_another(on: On) {
    mostly_waits();
    let agents: Vec<String> = ["web.1", "victim"].map(str::to_owned).into();
    let rabbit = Rabbit::start(&agents).await;
    let server = server(on, &rabbit, &agents).await;
    let root = rabbit.root().await;
    let id = server.submit(action(1)).await;
    let victims = "odoshi.commands.victim";
    eventually("both commands", || async {
        let (own, other) =
            (rabbit.waiting(&root, "odoshi.commands.web~2E1").await?, rabbit.waiting(&root, victims).await?);
        (own == 1 && other == 1).then_some(())
    })
    .await;
    let evil = rabbit.connect("web.1").await.unwrap();
    let heartbeat = br#"{"type":"heartbeat"}"#;

    // Its own rights are enough for its own queue.
    let channel = evil.create_channel().await.unwrap();
    let own = channel.basic_get("odoshi.commands.web~2E1".into(), BasicGetOptions::default()).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&own.data).contains(&id), "{own:?}");
    publish(&evil, "odoshi.results", "web~2E1", Some("web.1"), heartbeat).await.unwrap();

    // Publishing as another, to another, and to places of the server.
    for (exchange, key, user) in [
        ("odoshi.results", "victim", Some("web.1")),
        ("odoshi.results", "web~2E1", Some("victim")),
        ("odoshi.results", "web~2E1.victim", Some("web.1")),
        ("odoshi", "victim", Some("web.1")),
        ("odoshi", "web~2E1", Some("web.1")),
        ("odoshi", "~dead", Some("web.1")),
        ("", victims, Some("web.1")),
        ("", "odoshi.results", Some("web.1")),
        ("amq.topic", "victim", Some("web.1")),
    ] {
        let refused = publish(&evil, exchange, key, user, heartbeat).await.expect_err(exchange);
        assert!(refused.contains("REFUSED") || refused.contains("PRECONDITION"), "{exchange} {key}: {refused}");
    }
    let refused = |what: &str, result: Result<(), lapin::Error>| {
        let error = result.expect_err(what).to_string();
        assert!(error.contains("REFUSED"), "{what}: {error}");
    };
    // A refusal closes the channel.
    let channel = async || -> Channel { evil.create_channel().await.unwrap() };
    let none = FieldTable::default;
    for queue in [victims, "odoshi.results", "odoshi.dead"] {
        let (get, consume) = (BasicGetOptions::default(), BasicConsumeOptions::default());
        refused("get", channel().await.basic_get(queue.into(), get).await.map(|_| ()));
        refused("consume", channel().await.basic_consume(queue.into(), "".into(), consume, none()).await.map(|_| ()));
        let purge = channel().await.queue_purge(queue.into(), QueuePurgeOptions::default()).await;
        refused("purge", purge.map(|_| ()));
        let delete = channel().await.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
        refused("delete", delete.map(|_| ()));
        for exchange in ["odoshi", "odoshi.results", "amq.topic"] {
            let bind = QueueBindOptions::default();
            let bind = channel().await.queue_bind(queue.into(), exchange.into(), "#".into(), bind, none()).await;
            refused("bind", bind);
        }
    }
    for queue in ["spy", "odoshi.commands.new", "odoshi.commands.web~2E1", ""] {
        let declare = channel().await.queue_declare(queue.into(), QueueDeclareOptions::default(), none()).await;
        refused("declare", declare.map(|_| ()));
    }
    let options = ExchangeDeclareOptions::default();
    let declare = channel().await.exchange_declare("spy".into(), ExchangeKind::Fanout, options, none()).await;
    refused("declare an exchange", declare);
    let (to, from, options) = ("odoshi".into(), "odoshi.results".into(), ExchangeBindOptions::default());
    let bind = channel().await.exchange_bind(to, from, "#".into(), options, none()).await;
    refused("bind an exchange", bind);
    for exchange in ["odoshi", "odoshi.results"] {
        let options = ExchangeDeleteOptions::default();
        refused("delete an exchange", channel().await.exchange_delete(exchange.into(), options).await);
    }

    // The victim has lost nothing.
    let fleet = fleet(&rabbit, &server, &agents[1..]);
    eventually("the victim's run", || async {
        let commands = server.commands(&id).await;
        commands.iter().find(|command| command["agent"] == "victim" && command["status"] == "succeeded").map(|_| ())
    })
    .await;
    let tally: Vec<_> = fleet.tally.lock().unwrap().keys().cloned().collect();
    assert_eq!(tally, [("victim".to_owned(), "1".to_owned())]);
    assert_eq!(server.action(&id).await["counts"]["pending"], 1);
}
