//! Who an agent is: its labels, its end and its return, and machines that are clones of each other.

use crate::support::{AgentProcess, Operator, Server, ServerOptions, eventually, program};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Fixture {
    server: Server,
    operator: Operator,
    folder: PathBuf,
    token: String,
}

impl Fixture {
    async fn new() -> Self {
        let server = Server::start(ServerOptions::default()).await;
        let (operator, folder) = (Operator::of(&server), server.folder.path().join("agents"));
        let token = server.enroll_token().await;
        Self { server, operator, folder, token }
    }

    fn agent(&self, labels: &[(&str, &str)]) -> AgentProcess {
        AgentProcess::start(&self.server.url, "a", labels, &self.folder, &self.token)
    }

    async fn view(&self) -> Value {
        self.server.call("GET", "/v1/agents/a", None).await.1
    }

    async fn online(&self) {
        eventually("the agent to be online", || async { (self.view().await["status"] == "online").then_some(()) })
            .await;
    }

    fn log(&self, folder: &Path) -> String {
        std::fs::read_to_string(folder.join("a/agent.log")).unwrap_or_default()
    }

    /// Waits until the agent's log has this so many times.
    async fn says(&self, folder: &Path, what: &str, times: usize) {
        eventually(&format!("{what:?} in the agent's log"), || async {
            (self.log(folder).matches(what).count() >= times).then_some(())
        })
        .await;
    }

    /// Checks in once, without labels.
    async fn check_in(&self) {
        let mut command = Command::new(program());
        let state = self.folder.join("a/state");
        command.args(["agent", "--once", "--server", &self.server.url, "--name", "a", "--state-dir"]).arg(state);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[actix_rt::test]
async fn labels_that_an_operator_set_outlive_the_agents_own_and_its_check_ins() {
    let fixture = Fixture::new().await;
    let mut agent = fixture.agent(&[("role", "web"), ("site", "a")]);
    fixture.online().await;
    fixture.operator.prints(&["agents", "label", "a", "role=db", "tier=1"]).await;
    let labels = json!({ "role": "db", "site": "a", "tier": "1" });
    agent.kill();
    agent.restart();
    fixture.says(&fixture.folder, " connected ", 2).await;
    assert_eq!(fixture.view().await["labels"], labels, "it has reported role=web again");
    agent.kill();
    fixture.check_in().await;
    let view = fixture.view().await;
    assert_eq!(view["labels"], labels, "it has reported no labels");
    assert!(view["facts"]["os"].is_string(), "{view}");
    // Plain calls: what is missing stays, what is empty goes, but for the operator's.
    let own = std::fs::read_to_string(fixture.folder.join("a/state/token")).unwrap();
    for (body, labels, has_facts) in [
        (json!({ "name": "a", "version": "2" }), labels.clone(), true),
        (json!({ "name": "a", "labels": {}, "facts": {} }), json!({ "role": "db", "tier": "1" }), false),
    ] {
        let (status, _) = fixture.server.call_as(own.trim(), "POST", "/v1/agent/enroll", Some(body)).await;
        let view = fixture.view().await;
        assert_eq!((status, &view["labels"], view["facts"]["os"].is_string()), (200, &labels, has_facts), "{view}");
    }
}

#[actix_rt::test]
async fn a_removed_agent_comes_back_with_an_enroll_token_and_is_told_so() {
    let fixture = Fixture::new().await;
    let mut agent = fixture.agent(&[]);
    fixture.online().await;
    fixture.operator.prints(&["agents", "remove", "a"]).await;
    // It stays away as long as it runs: an operator has removed it.
    fixture.says(&fixture.folder, "start it again with an enroll token", 1).await;
    assert_eq!(fixture.server.call("GET", "/v1/agents/a", None).await.0, 404);
    agent.kill();
    agent.restart();
    fixture.online().await;
    fixture.operator.prints(&["run", "--target", "name = 'a'", "--", "true"]).await;
}

#[actix_rt::test]
async fn a_disabled_agent_is_listed_as_such_and_back_soon_after_it_is_enabled() {
    let fixture = Fixture::new().await;
    let _agent = fixture.agent(&[("role", "web")]);
    fixture.online().await;
    fixture.operator.prints(&["agents", "disable", "a"]).await;
    fixture.says(&fixture.folder, "does not want this connection", 2).await;
    assert!(!fixture.operator.prints(&["agents", "list", "--target", "TRUE"]).await.contains("web"));
    for arguments in [&["--disabled"][..], &["--disabled", "--target", "labels.role = 'web'"]] {
        let list = fixture.operator.prints(&[&["agents", "list"], arguments].concat()).await;
        assert!(list.contains("web") && list.contains("true"), "{list}");
    }
    fixture.operator.prints(&["agents", "disable", "a", "--undo"]).await;
    fixture.online().await;
}

#[actix_rt::test]
async fn of_a_machine_and_its_clone_one_works_and_the_operator_is_told() {
    let fixture = Fixture::new().await;
    let first = fixture.agent(&[]);
    fixture.online().await;
    let clones = fixture.server.folder.path().join("clones");
    let state = clones.join("a/state");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::copy(fixture.folder.join("a/state/token"), state.join("token")).unwrap();
    let mut clone = AgentProcess::start(&fixture.server.url, "a", &[], &clones, &fixture.token);
    fixture.says(&fixture.folder, "another process uses this agent's token", 3).await;
    // The later one stays: they don't replace each other for ever.
    assert_eq!(fixture.log(&clones).matches(" connected ").count(), 1, "{}", fixture.log(&clones));
    assert!(!fixture.log(&clones).contains("does not want"), "{}", fixture.log(&clones));
    let view = fixture.view().await;
    assert!(view["duplicate_at"].is_string() && view["status"] == "online", "{view}");
    assert!(fixture.operator.prints(&["agents", "list"]).await.contains("DUPLICATE_AT"));
    let refused = fixture.server.metrics().await;
    let refused = refused.lines().find_map(|line| line.strip_prefix("odoshi_agent_duplicates_total ")).unwrap();
    assert!(refused.parse::<f64>().unwrap() >= 3.0, "{refused}");
    assert!(fixture.server.log_text().contains("is a machine cloned?"));
    fixture.operator.prints(&["run", "--target", "TRUE", "--", "true"]).await;
    // When the clone has gone, the first one works.
    clone.kill();
    fixture.operator.prints(&["run", "--target", "TRUE", "--", "true"]).await;
    drop(first);
}

#[actix_rt::test]
async fn a_retry_names_the_action_that_it_runs_again() {
    let fixture = Fixture::new().await;
    let _agent = fixture.agent(&[]);
    fixture.online().await;
    let (code, _, _) = fixture.operator.call(&["run", "--target", "TRUE", "--", "false"]).await;
    assert_eq!(code, 1);
    let list = fixture.server.call("GET", "/v1/actions", None).await.1;
    let first = list["actions"][0]["id"].as_str().unwrap();
    let (code, _, _) = fixture.operator.call(&["actions", "retry", first]).await;
    assert_eq!(code, 1);
    let list = fixture.server.call("GET", "/v1/actions", None).await.1;
    let retry = fixture.server.action(list["actions"][0]["id"].as_str().unwrap()).await;
    assert_eq!((&retry["retry_of"], &retry["created_by"]), (&json!(first), &json!("the first admin")));
    assert!(fixture.server.action(first).await.get("retry_of").is_none());
}
