//! The command line on a terminal, behind a proxy, and without its server.

use crate::support::{Operator, Server, ServerOptions, WireAgent, eventually, mostly_waits};
use serde_json::json;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// Erases a line.
const CLEAR: &str = "\u{1b}[2K";

#[actix_rt::test]
async fn progress_is_drawn_with_the_time_that_is_left_and_nothing_of_it_stays_though_the_terminal_shrinks() {
    let server = Server::start(ServerOptions::default()).await;
    let operator = Operator::of(&server);
    let mut agents = Vec::new();
    for name in ["one", "two"] {
        let token = server.enroll(name, json!({})).await;
        agents.push(WireAgent::hello(&server.url, &token, 16).await);
    }
    // `script` gives the program a terminal of its own, whose name it prints first.
    let program = operator.command(&[]).get_program().to_str().unwrap().to_owned();
    let line =
        format!("tty; stty cols 100 rows 24; exec {program} run --target TRUE --name {} -- true", "long".repeat(15));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    script.env("ODOSHI_SERVER", &operator.server).env("ODOSHI_TOKEN", &operator.token);
    let mut script = script.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let reader = std::thread::spawn({
        let (mut out, shown) = (script.stdout.take().unwrap(), shown.clone());
        move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut bytes) {
                shown.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        }
    });
    let text = || String::from_utf8_lossy(&shown.lock().unwrap()).into_owned();
    let until = async |what: &str| eventually(what, || async { text().contains(what).then_some(()) }).await;
    until("0/2").await;
    let first = agents[0].commands().await;
    agents[0].succeed(&first[0]).await;
    until("1/2").await;
    until(" left, ").await;
    let terminal = text().lines().next().unwrap().trim().to_owned();
    let resized = Command::new("stty").args(["-F", &terminal, "cols", "40"]).status().unwrap();
    assert!(resized.success(), "{terminal}");
    let before = text().len();
    eventually("it is drawn again", || async { text()[before..].contains("1/2").then_some(()) }).await;
    let second = agents[1].commands().await;
    agents[1].succeed(&second[0]).await;
    let ended = tokio::task::spawn_blocking(move || script.wait().unwrap()).await.unwrap();
    reader.join().unwrap();
    let text = text();
    assert_eq!(ended.code(), Some(0), "{text}");
    let (_, rest) = text.rsplit_once(CLEAR).unwrap();
    assert!(rest.contains("AGENT") && rest.contains("one") && rest.contains("2 succeeded"), "{rest:?}");
    assert!(!rest.contains("1/2") && !rest.contains(" left, "), "{rest:?}");
}

#[actix_rt::test]
async fn who_follows_an_action_is_told_how_to_follow_it_again_when_the_server_stays_away() {
    mostly_waits();
    let mut server = Server::start(ServerOptions::default()).await;
    server.enroll("absent", json!({})).await;
    let operator = Operator::of(&server);
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    let child = operator.command(&["actions", "follow", &id]).spawn().unwrap();
    server.kill();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(err.contains(&format!("odoshi actions follow {id}")), "{err}");
}

#[actix_rt::test]
async fn proxies_that_the_environment_names_are_left_alone() {
    let server = Server::start(ServerOptions::default()).await;
    let operator = Operator::of(&server);
    let token = server.folder.path().join("enroll.token");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&token).unwrap();
    std::io::Write::write_all(&mut file, server.enroll_token().await.as_bytes()).unwrap();
    let state = server.folder.path().join("state");
    let (token, state) = (token.display().to_string(), state.display().to_string());
    let agent =
        ["agent", "--once", "--name", "a", "--server", &server.url, "--token-file", &token, "--state-dir", &state];
    for arguments in [&agent[..], &["agents", "list"]] {
        let mut command = operator.command(arguments);
        // Nobody listens there.
        for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"] {
            command.env(name, "http://127.0.0.1:1");
        }
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
