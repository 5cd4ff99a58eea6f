//! Agents on NATS JetStream: a real broker, real agents.

use crate::support::nats::Nats;
use crate::support::{Fleet, On, PATIENCE, Server, by_length, eventually, mostly_waits, until_reached};
use async_nats::ConnectOptions;
use async_nats::jetstream::consumer::pull;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("a{number:03}")).collect()
}

/// A server with agents that are added.
async fn server(on: On, nats: &Nats, agents: &[String]) -> Server {
    let options = on.options().with("ODOSHI__SENDER__ENABLED", "stream,nats");
    let server = Server::start(options.with("ODOSHI__SENDER__NATS__URL", &nats.server_url())).await;
    add(&server, agents).await;
    server
}

async fn add(server: &Server, agents: &[String]) {
    for name in agents {
        let body = json!({ "name": name, "transport": "nats" });
        let (status, answer) = server.call("POST", "/v1/agents", Some(body)).await;
        assert_eq!(status, 201, "{answer}");
    }
}

fn action(number: usize) -> Value {
    json!({ "name": "n", "target": "transport = 'nats'", "operations": [{ "module": "tally", "parameters": number }] })
}

async fn state(server: &Server) -> String {
    let (_, readiness) = server.readyz().await.unwrap_or_default();
    let senders = readiness["senders"].as_array().cloned().unwrap_or_default();
    let nats = senders.iter().find(|sender| sender["transport"] == "nats");
    nats.map_or_else(String::new, |nats| nats["state"].as_str().unwrap_or_default().to_owned())
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
    let mut nats = Nats::start(&agents).await;
    let server = server(on, &nats, &agents).await;
    let fleet = Fleet::at_broker(&agents, server.folder.path(), |name| nats.agent_url(name));
    let began = Instant::now();
    let mut actions = Vec::new();
    for number in 0..count / 2 {
        actions.push(server.submit(action(number)).await);
    }
    let tally = fleet.tally.clone();
    eventually("some runs", || async { (tally.lock().unwrap().len() > count).then_some(()) }).await;
    nats.kill();
    for number in count / 2..count {
        actions.push(server.submit(action(number)).await);
    }
    eventually("the sender to be away", || async { (state(&server).await == "away").then_some(()) }).await;
    nats.restart().await;
    until_reached("runs", count * agents.len(), || fleet.tally.lock().unwrap().len()).await;
    ran_once(&server, &fleet, &actions, agents.len()).await;
    println!("{} commands over a killed NATS server: {:.1?}", count * agents.len(), began.elapsed());
    eventually("the sender to be back", || async { (state(&server).await == "ok").then_some(()) }).await;
    let (_, agent) = server.call("GET", "/v1/agents/a000", None).await;
    assert_eq!((&agent["status"], agent["facts"]["os"].is_string()), (&json!("online"), true), "{agent}");
}

pub async fn a_broker_that_is_away_at_the_start_holds_up_nothing(on: On) {
    mostly_waits();
    let agents = names(2);
    let mut nats = Nats::prepare(&agents);
    let server = server(on, &nats, &agents).await;
    assert_eq!(state(&server).await, "away");
    let fleet = Fleet::at_broker(&agents, server.folder.path(), |name| nats.agent_url(name));
    let id = server.submit(action(1)).await;
    eventually("its commands", || async { (server.action(&id).await["counts"]["total"] == 2).then_some(()) }).await;
    nats.restart().await;
    ran_once(&server, &fleet, &[id], 2).await;
}

pub async fn an_agent_that_comes_later_gets_what_is_open_and_neither_what_is_cancelled_nor_what_has_expired(on: On) {
    mostly_waits();
    let agents = names(1);
    let nats = Nats::start(&agents).await;
    let server = server(on, &nats, &agents).await;
    let root = nats.root().await;
    let (kept, cancelled) = (server.submit(action(1)).await, server.submit(action(2)).await);
    let mut short = action(3);
    short["expires_after"] = json!("3s");
    let expired = server.submit(short).await;
    eventually("three messages", || async {
        let mut stream = root.get_stream("ODOSHI").await.ok()?;
        (stream.info().await.ok()?.state.messages >= 3).then_some(())
    })
    .await;
    for id in [&kept, &cancelled, &expired] {
        assert_eq!(server.action(id).await["counts"]["pending"], 1, "the broker's confirmation is not `sent`");
    }
    let (status, _) = server.call("POST", &format!("/v1/actions/{cancelled}/cancel"), None).await;
    assert_eq!(status, 200);
    server.until_status(&expired, "completed").await;
    let fleet = Fleet::at_broker(&agents, server.folder.path(), |name| nats.agent_url(name));
    ran_once(&server, &fleet, &[kept], 1).await;
    assert_eq!(server.until_status(&cancelled, "cancelled").await["counts"]["cancelled"], 1);
    assert_eq!(server.action(&expired).await["counts"]["expired"], 1);
    eventually("an empty queue", || async {
        let mut stream = root.get_stream("ODOSHI").await.ok()?;
        (stream.info().await.ok()?.state.messages == 0).then_some(())
    })
    .await;
}

pub async fn a_cancel_reaches_a_busy_agent(on: On) {
    mostly_waits();
    let agents = names(1);
    let nats = Nats::start(&agents).await;
    let server = server(on, &nats, &agents).await;
    let fleet = Fleet::at_broker(&agents, server.folder.path(), |name| nats.agent_url(name));
    let wait = |module: &str| json!({ "name": "n", "target": "TRUE", "operations": [{ "module": module }] });
    let mut actions = Vec::new();
    // More than it runs at a time.
    for _ in 0..20 {
        actions.push(server.submit(wait("wait")).await);
    }
    let running = || fleet.waiting();
    eventually("a full agent", || async { (running() == 16).then_some(()) }).await;
    for id in &actions {
        server.call("POST", &format!("/v1/actions/{id}/cancel"), None).await;
    }
    eventually("all runs to be killed", || async { (running() == 0).then_some(()) }).await;
    for id in &actions {
        assert_eq!(server.until_status(id, "cancelled").await["counts"]["cancelled"], 1);
    }
    let last = server.submit(action(1)).await;
    assert_eq!(server.until_status(&last, "completed").await["counts"]["succeeded"], 1);
}

pub async fn messages_that_cannot_be_used_are_put_aside_with_the_reason(on: On) {
    mostly_waits();
    let agents = names(2);
    let nats = Nats::start(&agents).await;
    let server = server(on, &nats, &agents).await;
    server.enroll("streamer", json!({})).await;
    let (status, _) = server.call("PATCH", "/v1/agents/a001", Some(json!({ "disabled": true }))).await;
    assert_eq!(status, 200);
    let root = nats.root().await;
    eventually("the streams", || async { root.get_stream("ODOSHI_DEAD").await.ok() }).await;
    let heartbeat = r#"{"type":"heartbeat"}"#;
    let strange = [
        ("a000", "nonsense", "not a frame"),
        ("a000", "\u{0}", "not a frame"),
        ("a000", r#"{"type":"results"}"#, "not a frame"),
        ("nobody", heartbeat, "no such agent"),
        ("streamer", heartbeat, "another transport"),
        ("a001", heartbeat, "disabled"),
        ("a.b", heartbeat, "which agent"),
    ];
    for (agent, message, _) in strange {
        root.publish(format!("odoshi.results.{agent}"), message.into()).await.unwrap().await.unwrap();
    }
    // The broker itself refuses what is too large.
    let large = vec![b' '; 4 * 1024 * 1024 + 1];
    let refused = root.publish("odoshi.results.a000", large.into()).await.unwrap().await;
    assert!(refused.is_err(), "{refused:?}");
    // Unknown types are ignored.
    root.publish("odoshi.results.a000", r#"{"type":"weather"}"#.into()).await.unwrap().await.unwrap();
    let mut dead = root.get_stream("ODOSHI_DEAD").await.unwrap();
    eventually("all to be put aside", || async {
        let mut dead = root.get_stream("ODOSHI_DEAD").await.ok()?;
        (dead.info().await.ok()?.state.messages == strange.len() as u64).then_some(())
    })
    .await;
    let consumer = dead.create_consumer(pull::Config::default()).await.unwrap();
    let messages: Vec<_> = consumer.fetch().max_messages(20).messages().await.unwrap().try_collect().await.unwrap();
    for (agent, text, reason) in strange {
        let subject = format!("odoshi.dead.{}", if agent == "a.b" { "unknown" } else { agent });
        let found = messages.iter().any(|message| {
            let said = message.headers.as_ref().and_then(|headers| headers.get("Odoshi-Reason"));
            message.subject.as_str() == subject
                && message.payload == text
                && said.is_some_and(|said| said.as_str().contains(reason))
        });
        assert!(found, "{subject} {text}: {messages:#?}");
    }
    eventually("an empty queue of results", || async {
        let mut stream = root.get_stream("ODOSHI_RESULTS").await.ok()?;
        (stream.info().await.ok()?.state.messages == 0).then_some(())
    })
    .await;
    drop(dead.info().await);
    // It goes on.
    let fleet = Fleet::at_broker(&agents[..1], server.folder.path(), |name| nats.agent_url(name));
    let id = server.submit(action(1)).await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 1);
    drop(fleet);
}

/// What an agent does with its own credentials, beyond its own queue.
pub async fn an_agents_credentials_reach_nothing_of_another(on: On) {
    mostly_waits();
    let agents: Vec<String> = ["web.1", "victim"].map(str::to_owned).into();
    let nats = Nats::start(&agents).await;
    let server = server(on, &nats, &agents).await;
    let (root, (tell, mut refused)) = (nats.root().await, tokio::sync::mpsc::unbounded_channel());
    let options = ConnectOptions::with_user_and_password("web.1".into(), "secret-web.1".into())
        .custom_inbox_prefix("_INBOX_web~2E1")
        .request_timeout(Some(Duration::from_secs(3)))
        .event_callback(move |event| {
            let _ = tell.send(event.to_string());
            async {}
        });
    let evil = nats.connect_with(options).await.unwrap();
    let id = server.submit(action(1)).await;
    let state = async || root.get_stream("ODOSHI").await.unwrap().info().await.unwrap().state.messages;
    eventually("both commands", || async {
        (root.get_stream("ODOSHI").await.ok()?.info().await.ok()?.state.messages == 2).then_some(())
    })
    .await;

    // Their own rights are enough for their own queues: both read their command, and one says a word.
    let next = |agent: &str| format!("$JS.API.CONSUMER.MSG.NEXT.ODOSHI.{agent}");
    let own = pull_one(&evil, &next("web~2E1")).await;
    assert!(String::from_utf8_lossy(&own.payload).contains(&id), "{own:?}");
    let options = ConnectOptions::with_user_and_password("victim".into(), "secret-victim".into());
    let victim = nats.connect_with(options.custom_inbox_prefix("_INBOX_victim")).await.unwrap();
    let ack = pull_one(&victim, &next("victim")).await.reply.unwrap().to_string();
    assert!(ack.starts_with("$JS.ACK.ODOSHI.victim."), "{ack}");
    let stream = async_nats::jetstream::new(evil.clone());
    stream.publish("odoshi.results.web~2E1", r#"{"type":"heartbeat"}"#.into()).await.unwrap().await.unwrap();

    // Another's: each is refused with a violation of the rights.
    let heartbeat = r#"{"type":"heartbeat"}"#;
    let forged = r#"{"type":"results","results":[]}"#;
    let consumer = r#"{"stream_name":"ODOSHI","config":{"durable_name":"spy","ack_policy":"none","filter_subject":"odoshi.commands.victim"}}"#;
    let attempts = [
        (next("victim"), r#"{"batch":1,"no_wait":true}"#),
        ("odoshi.results.victim".into(), forged),
        ("odoshi.commands.victim".into(), forged),
        ("odoshi.commands.web~2E1".into(), forged),
        ("odoshi.dead.victim".into(), forged),
        ("$JS.API.CONSUMER.CREATE.ODOSHI.spy.odoshi.commands.victim".into(), consumer),
        ("$JS.API.CONSUMER.DURABLE.CREATE.ODOSHI.spy".into(), consumer),
        ("$JS.API.CONSUMER.DELETE.ODOSHI.victim".into(), ""),
        ("$JS.API.CONSUMER.INFO.ODOSHI.victim".into(), ""),
        ("$JS.API.STREAM.MSG.GET.ODOSHI".into(), r#"{"seq":1}"#),
        ("$JS.API.STREAM.PURGE.ODOSHI".into(), ""),
        ("$JS.API.STREAM.CREATE.SPY".into(), r#"{"name":"SPY","subjects":["odoshi.spy"],"retention":"limits"}"#),
        ("$JS.API.STREAM.INFO.ODOSHI".into(), ""),
        ("$JS.API.DIRECT.GET.ODOSHI".into(), r#"{"seq":1}"#),
        (ack.clone(), "+ACK"),
    ];
    for (subject, body) in attempts {
        evil.publish_with_reply(subject.clone(), evil.new_inbox(), body.into()).await.unwrap();
        evil.flush().await.unwrap();
        violation(&mut refused, &subject).await;
    }
    for subject in [
        "odoshi.commands.victim",
        "odoshi.commands.>",
        "odoshi.results.>",
        "_INBOX_victim.>",
        "_INBOX.>",
        ">",
        "$JS.ACK.>",
    ] {
        let _subscription = evil.subscribe(subject).await.unwrap();
        evil.flush().await.unwrap();
        violation(&mut refused, subject).await;
    }

    // The broker answers an agent's question, and its publishing, at a subject that the agent names. What it sends there is
    // never the agent's own words, but an acknowledgment may be empty.
    for (subject, body) in
        [(next("web~2E1"), r#"{"batch":1,"no_wait":true}"#), ("odoshi.results.web~2E1".into(), heartbeat)]
    {
        evil.publish_with_reply(subject, ack.clone(), body.into()).await.unwrap();
        evil.flush().await.unwrap();
    }
    assert_eq!(state().await, 2, "nothing is acknowledged, and nothing was added");

    // An agent may try to have the broker send its own commands into another's queue. That one does not obey.
    let own_id =
        server.submit(json!({ "name": "n", "target": "name = 'web.1'", "operations": [{ "module": "tally" }] })).await;
    eventually("its second command", || async { (state().await == 3).then_some(()) }).await;
    evil.publish_with_reply(next("web~2E1"), "odoshi.commands.victim", r#"{"batch":1,"no_wait":true}"#.into())
        .await
        .unwrap();
    evil.flush().await.unwrap();
    // What the victim had read comes again at once.
    victim.publish(ack, "-NAK".into()).await.unwrap();
    victim.flush().await.unwrap();
    let fleet = Fleet::at_broker(&agents[1..], server.folder.path(), |name| nats.agent_url(name));
    eventually("the victim's run", || async {
        let commands = server.commands(&id).await;
        commands.iter().find(|command| command["agent"] == "victim" && command["status"] == "succeeded").map(|_| ())
    })
    .await;
    eventually("the victim's queue to be empty", || async {
        let stream = root.get_stream("ODOSHI").await.ok()?;
        let subjects = stream.info_with_subjects("odoshi.commands.victim").await.ok()?;
        let subjects: Vec<(String, usize)> = subjects.try_collect().await.ok()?;
        subjects.is_empty().then_some(())
    })
    .await;
    let tally: Vec<_> = fleet.tally.lock().unwrap().keys().cloned().collect();
    assert_eq!(tally, [("victim".to_owned(), "1".to_owned())]);
    assert_eq!(server.action(&own_id).await["counts"]["pending"], 1);
}

/// Asks a consumer for a message.
async fn pull_one(client: &async_nats::Client, next: &str) -> async_nats::Message {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(next.to_owned(), inbox, r#"{"batch":1,"expires":30000000000}"#.into()).await.unwrap();
    tokio::time::timeout(PATIENCE, answers.next()).await.unwrap().unwrap()
}

/// Waits until the broker has refused something.
async fn violation(refused: &mut tokio::sync::mpsc::UnboundedReceiver<String>, what: &str) {
    loop {
        let event = tokio::time::timeout(PATIENCE, refused.recv()).await;
        let event = event.unwrap_or_else(|_| panic!("{what} was not refused")).unwrap();
        if event.to_lowercase().contains("permissions violation") {
            return;
        }
    }
}

pub async fn ten_thousand_agents_get_one_action(on: On) {
    mostly_waits();
    let count = by_length(200, 10_000);
    let nats = Nats::start(&[]).await;
    let options = on.options().with("ODOSHI__SENDER__ENABLED", "stream,nats");
    let mut server = Server::prepare(options.with("ODOSHI__SENDER__NATS__URL", &nats.server_url()));
    std::fs::create_dir_all(server.data()).unwrap();
    server.put_agents(count, "nats").await;
    let before = nats.memory("VmRSS");
    let began = Instant::now();
    server.restart().await;
    let root = nats.root().await;
    eventually("the consumers", || async {
        let mut stream = root.get_stream("ODOSHI").await.ok()?;
        (stream.info().await.ok()?.state.consumer_count == count).then_some(())
    })
    .await;
    let (made, with_consumers) = (began.elapsed(), nats.memory("VmRSS"));
    let began = Instant::now();
    let id = server.submit(action(1)).await;
    let messages = || async { Some(root.get_stream("ODOSHI").await.ok()?.info().await.ok()?.state.messages) };
    eventually("all messages", || async { (messages().await? == count as u64).then_some(()) }).await;
    let published = began.elapsed();
    println!(
        "{count} agents on NATS: consumers in {made:.1?}, messages in {published:.1?}; the broker's memory: {} MB before, \
         {} MB with consumers, {} MB with messages, {} MB at most",
        before / 1024,
        with_consumers / 1024,
        nats.memory("VmRSS") / 1024,
        nats.memory("VmHWM") / 1024,
    );
    // One message for each agent.
    let stream = root.get_stream("ODOSHI").await.unwrap();
    let subjects = stream.info_with_subjects("odoshi.commands.>").await.unwrap();
    let subjects: Vec<(String, usize)> = subjects.try_collect().await.unwrap();
    assert_eq!(subjects.len(), count);
    assert!(subjects.iter().all(|(_, messages)| *messages == 1));
    let (status, _) = server.call("POST", &format!("/v1/actions/{id}/cancel"), None).await;
    assert_eq!(status, 200);
    server.until_status(&id, "cancelled").await;
}
