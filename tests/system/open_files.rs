//! A process that may open few files: connections don't take those that store and spool need.

use crate::support::{On, Server, WireAgent, eventually, mostly_waits, program};
use serde_json::json;
use std::net::TcpStream;
use std::process::Command;

/// What the server may open. Connections get about a third of it.
const LIMIT: u64 = 200;
/// Agents that try to connect, and connections that say nothing. Together more than the limit.
const AGENTS: usize = 80;
const SILENT: usize = 150;

pub async fn connections_leave_files_to_the_store_and_the_spool(on: On) {
    mostly_waits();
    let mut options = on.options();
    options.open_files = Some(LIMIT);
    let server = Server::start(options).await;
    let mut tokens = Vec::new();
    for n in 0..AGENTS {
        tokens.push(server.enroll(&format!("a{n:03}"), json!({})).await);
    }
    let mut agents = Vec::new();
    let mut refused = 0;
    for token in &tokens {
        match WireAgent::try_hello(&server.url, token, 16).await {
            Ok(agent) => agents.push(agent),
            Err(status) => {
                assert_eq!(status, 503, "refused for lack of room");
                refused += 1;
            }
        }
    }
    println!("{} agents were connected, {refused} were refused", agents.len());
    assert!(agents.len() >= 32 && refused > 0);

    let address = server.url.strip_prefix("http://").unwrap();
    let silent: Vec<TcpStream> = (0..SILENT).filter_map(|_| TcpStream::connect(address).ok()).collect();
    let id = uuid::Uuid::now_v7().to_string();
    let document = json!({ "id": id, "name": "n", "target": "name = 'a000'", "operations": [{ "module": "ping" }] });
    server.drop_file("a.json", &document.to_string());
    let done = server.spool("done").join("a.json");
    eventually("the spool file to be stored", || async { done.exists().then_some(()) }).await;
    let commands = agents[0].commands().await;
    assert_eq!(commands[0]["action"], id.as_str());
    agents[0].succeed(&commands[0]).await;
    // A call may have to wait until silent connections are closed.
    let http = reqwest::Client::new();
    eventually("the action to be completed", || async {
        let call = http.get(format!("{}/v1/actions/{id}", server.url)).bearer_auth(server.admin_token());
        let view: serde_json::Value = call.send().await.ok()?.json().await.ok()?;
        (view["status"] == "completed").then_some(())
    })
    .await;
    drop(silent);
    assert!(!server.log_text().contains("Too many open files"), "{}", server.log_text());
}

#[actix_rt::test]
async fn a_demo_with_more_agents_than_files_is_refused_with_a_sentence() {
    let demo = |agents: &str| {
        let mut demo = Command::new("sh");
        demo.args(["-c", r#"ulimit -n 400 && exec "$@""#, "sh"]).arg(program()).args(["demo", "--agents", agents]);
        tokio::task::spawn_blocking(move || demo.output().unwrap())
    };
    let refused = demo("200").await.unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("400 files") && said.contains("at most 63"), "{said}");
    let accepted = demo("63").await.unwrap();
    assert_eq!(accepted.status.code(), Some(0), "{}", String::from_utf8_lossy(&accepted.stderr));
}
