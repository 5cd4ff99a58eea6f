//! What is kept no longer.

use crate::support::{On, Server, WireAgent, eventually};
use serde_json::json;

pub async fn actions_go_when_they_have_been_over_for_long_enough(on: On) {
    let mut server = Server::start(on.options()).await;
    let token = server.enroll("wire", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    let over = server.submit(document.clone()).await;
    let commands = agent.commands().await;
    agent.succeed(&commands[0]).await;
    server.until_status(&over, "completed").await;
    let open = server.submit(document).await;
    let commands = agent.commands().await;
    assert_eq!(commands[0]["action"], open.as_str());
    // It looks at its start, and then once a minute.
    assert!(server.terminate().await.success());
    server.set("ODOSHI__RETENTION__ACTIONS", "1ms");
    server.restart().await;
    eventually("the action to be gone", || async {
        (server.call("GET", &format!("/v1/actions/{over}"), None).await.0 == 404).then_some(())
    })
    .await;
    eventually("its rows to be gone", || async {
        let rows = "SELECT (SELECT count(*) FROM commands) + (SELECT count(*) FROM outcomes) AS n";
        (server.sql().number(rows) == 1).then_some(())
    })
    .await;
    // What isn't over goes on.
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let again = agent.commands().await;
    assert_eq!(again[0]["action"], open.as_str());
    agent.succeed(&again[0]).await;
    server.until_status(&open, "completed").await;
}
