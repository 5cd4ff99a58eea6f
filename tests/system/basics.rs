//! The main way: from a file, or a call, to exact results.

use crate::support::{AgentProcess, On, Server, WireAgent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

pub async fn a_file_in_the_spool_becomes_results_of_real_agents(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll_token().await;
    let agents: Vec<AgentProcess> = (0..3)
        .map(|n| {
            let role = if n == 0 { "db" } else { "web" };
            AgentProcess::start(&server.url, &format!("a{n}"), &[("role", role)], server.folder.path(), &token)
        })
        .collect();
    crate::support::eventually("three agents", || async {
        let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
        (server.until_status(&id, "completed").await["counts"]["total"] == 3).then_some(())
    })
    .await;
    let id = "018f0000-0000-7000-8000-000000000001";
    let document = json!({ "id": id, "name": "echo", "target": "labels.role = 'web'",
        "operations": [{ "module": "exec", "parameters": { "argv": ["sh", "-c", "echo $((6*7))"] } }] });
    server.drop_file("echo.json", &document.to_string());
    let view = server.until_status(id, "completed").await;
    assert_eq!(
        view["counts"],
        json!({ "total": 2, "resolved": true, "pending": 0, "sent": 0, "succeeded": 2, "failed": 0,
        "timed_out": 0, "undeliverable": 0, "expired": 0, "cancelled": 0 })
    );
    crate::support::eventually("the file to be done", || async {
        server.spool("done").join("echo.json").exists().then_some(())
    })
    .await;
    for (command, name) in server.commands(id).await.iter().zip(["a1", "a2"]) {
        assert_eq!((&command["agent"], &command["status"]), (&json!(name), &json!("succeeded")));
        assert_eq!(command["results"][0]["output"]["stdout"], "42\n");
        // On a busy machine an agent may be too slow for the first attempt; it runs it once all the same.
        assert_eq!(command["runs"], 1, "{command}");
    }
    drop(agents);
}

pub async fn a_result_is_stored_before_it_is_acknowledged_and_survives_kill_9(on: On) {
    let mut server = Server::start(on.options()).await;
    let token = server.enroll("wire", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let id =
        server.submit(json!({ "name": "n", "target": "name = 'wire'", "operations": [{ "module": "ping" }] })).await;
    let commands = agent.commands().await;
    agent.send(json!({ "type": "received", "commands": [{ "action": id, "run": 1 }] })).await;
    agent.succeed(&commands[0]).await;
    let stored = agent.expect("stored").await;
    server.kill();
    assert_eq!(stored["commands"], json!([{ "action": id, "run": 1 }]));
    server.restart().await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 1);
}

pub async fn sigterm_drains_and_sends_agents_elsewhere(on: On) {
    let mut server = Server::start(on.options()).await;
    let token = server.enroll("wire", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let status = tokio::join!(server.terminate(), async { assert_eq!(agent.expect_close().await, 1012) }).0;
    assert!(status.success(), "{status}");
}

pub async fn sighup_drains_like_sigterm(on: On) {
    let mut server = Server::start(on.options()).await;
    let token = server.enroll("wire", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    // Twice, as from a shell and from the kernel: only another signal hurries it.
    for _ in 0..2 {
        kill(Pid::from_raw(server.pid()), Signal::SIGHUP).unwrap();
    }
    let status = tokio::join!(server.wait(), async { assert_eq!(agent.expect_close().await, 1012) }).0;
    assert!(status.success(), "{status}");
}

/// How often the process went to sleep so far, over all its threads.
fn sleeps(pid: i32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |path: std::path::PathBuf| {
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    threads.map(|thread| of(thread.unwrap().path())).sum()
}

pub async fn an_idle_server_sleeps(on: On) {
    let server = Server::start(on.options()).await;
    server.drop_file("bad.json", "{");
    crate::support::eventually("the file to fail", || async {
        server.spool("failed").join("bad.json").exists().then_some(())
    })
    .await;
    let (begun, before) = (std::time::Instant::now(), sleeps(server.pid()));
    // Time itself is what is tested here: what happens while nothing does.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    // A thread that ends takes its number with it.
    let woken = sleeps(server.pid()).saturating_sub(before) as f64;
    let seconds = begun.elapsed().as_secs_f64();
    assert!(woken < 1_000.0 * seconds, "woken {woken} times in {seconds} seconds with nothing to do");
}

pub async fn one_idempotency_key_is_one_action(on: On) {
    let server = Server::start(on.options()).await;
    let post = async |name: &str, key: &str| {
        let document = json!({ "name": name, "target": "TRUE", "operations": [{ "module": "ping" }] });
        let request = reqwest::Client::new().post(format!("{}/v1/actions", server.url));
        let answer = request.bearer_auth(server.admin_token()).header("Idempotency-Key", key).json(&document).send();
        let answer = answer.await.unwrap();
        (answer.status().as_u16(), answer.json::<serde_json::Value>().await.unwrap())
    };
    let (first, again, other) = (post("a", "k1").await, post("a", "k1").await, post("a", "k2").await);
    assert_eq!((first.0, again.0, other.0), (202, 202, 202));
    assert_eq!(first.1["id"], again.1["id"]);
    assert_ne!(first.1["id"], other.1["id"]);
    let (status, problem) = post("b", "k1").await;
    assert_eq!((status, &problem["type"]), (422, &json!("urn:odoshi:problem:idempotency-mismatch")));
    assert_eq!(post("a", &"k".repeat(256)).await.0, 400);
    let (_, tokens) = server.call("GET", "/v1/tokens", None).await;
    let view = server.action(first.1["id"].as_str().unwrap()).await;
    assert_eq!(view["created_by"], tokens["tokens"][0]["name"], "{view} {tokens}");
    let (_, list) = server.call("GET", "/v1/actions", None).await;
    assert_eq!(list["actions"].as_array().unwrap().len(), 2);
}
