//! What happens to the processes of a run: when the run ends, and when its agent is stopped or killed.

use crate::support::{AgentProcess, On, Server, ServerOptions, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Whether this process does anything: a zombie doesn't.
fn is_alive(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains(['Z', 'X']))
}

fn alive(pids: &[i32]) -> Vec<i32> {
    pids.iter().copied().filter(|pid| is_alive(*pid)).collect()
}

/// Kills these at the end of a test, however it ends.
struct Cleanup(Vec<i32>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for pid in alive(&self.0) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// The numbers in a file, once there are so many; each is on a line of its own.
async fn pids(file: &Path, number: usize) -> Vec<i32> {
    eventually("the pids of the programs", || async {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let complete = text.ends_with('\n') && text.lines().count() == number;
        complete.then(|| text.lines().map(|line| line.parse().unwrap()).collect())
    })
    .await
}

struct Rig {
    server: Server,
    agent: AgentProcess,
    /// What the scripts write into.
    folder: PathBuf,
}

impl Rig {
    async fn start(on: On) -> Self {
        let server = Server::start(on.options()).await;
        let token = server.enroll_token().await;
        let folder = server.folder.path().join("runs");
        let agent = AgentProcess::start(&server.url, "runs", &[], server.folder.path(), &token);
        eventually("the agent to connect", || async {
            (server.sql().number("SELECT count(*) AS n FROM agent_sessions") == 1).then_some(())
        })
        .await;
        Self { server, agent, folder }
    }

    async fn submit(&self, scripts: &[&str], more: Value) -> String {
        let operation = |script: &&str| json!({ "module": "exec", "parameters": { "argv": ["sh", "-c", script] } });
        let operations: Vec<Value> = scripts.iter().map(operation).collect();
        let mut document = json!({ "name": "n", "target": "TRUE", "operations": operations });
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.server.submit(document).await
    }

    async fn command(&self, id: &str) -> Value {
        self.server.until_status(id, "completed").await;
        self.server.commands(id).await.remove(0)
    }
}

/// Leaves processes in every way there is: in the group, in the group without the agent's environment, in a session of its
/// own, and there without a parent. Notes the pid of each, and its own.
const TREE: &str = "f=$AGENT_FOLDER/pids; sleep 1000 & a=$!; env -i sleep 1000 & b=$!; setsid sleep 1000 & c=$!; \
    d=$(setsid sh -c 'sleep 1000 >/dev/null 2>&1 & echo $!'); printf '%s\\n' $a $b $c $d $$ > $f.new; mv $f.new $f; wait";

pub async fn what_a_killed_agent_ran_is_gone_before_the_next_run_starts(on: On) {
    let mut rig = Rig::start(on).await;
    // The second run writes down what it finds of the first.
    let script = format!(
        "f=$AGENT_FOLDER/pids; if [ -e $f ]; then for p in $(cat $f); do grep -s ^State: /proc/$p/status; done \
         > $AGENT_FOLDER/found; exit 0; fi; {TREE}"
    );
    let id = rig.submit(&[&script], json!({ "max_runs": 2, "timeout": "1h" })).await;
    let first = pids(&rig.folder.join("pids"), 5).await;
    let _cleanup = Cleanup(first.clone());
    assert_eq!(alive(&first), first);
    rig.agent.kill();
    // The kernel kills the program that the agent itself started.
    eventually("the program to die with its agent", || async { (!is_alive(first[4])).then_some(()) }).await;
    rig.agent.restart();
    let command = rig.command(&id).await;
    assert_eq!((&command["status"], &command["runs"]), (&json!("succeeded"), &json!(2)), "{command}");
    let found = std::fs::read_to_string(rig.folder.join("found")).unwrap();
    assert!(found.lines().all(|line| line.contains(['Z', 'X'])), "run 2 found of run 1: {found}");
    assert!(alive(&first).is_empty(), "{:?} of {first:?} live", alive(&first));
}

pub async fn a_stopped_run_leaves_no_process(on: On) {
    let rig = Rig::start(on).await;
    let file = rig.folder.join("pids");
    for how in ["timeout", "cancel"] {
        let timeout = if how == "timeout" { "20s" } else { "1h" };
        let id = rig.submit(&[TREE], json!({ "timeout": timeout })).await;
        let pids = pids(&file, 5).await;
        let _cleanup = Cleanup(pids.clone());
        if how == "cancel" {
            let (status, answer) = rig.server.call("POST", &format!("/v1/actions/{id}/cancel"), None).await;
            assert!((200..300).contains(&status), "{answer}");
        }
        eventually("all of the tree to die", || async { alive(&pids).is_empty().then_some(()) }).await;
        std::fs::remove_file(&file).unwrap();
    }
}

pub async fn what_a_run_detached_lives_after_its_end(on: On) {
    let mut rig = Rig::start(on).await;
    // The parent ends at once, most likely before its child has a session of its own.
    let script = "setsid sleep 1000 >/dev/null 2>&1 & echo $!";
    let id = rig.submit(&[script; 20], json!({})).await;
    let command = rig.command(&id).await;
    assert_eq!(command["status"], "succeeded", "{command}");
    let results = command["results"].as_array().unwrap();
    let pid = |result: &Value| result["output"]["stdout"].as_str().unwrap().trim().parse().unwrap();
    let daemons: Vec<i32> = results.iter().map(pid).collect();
    let _cleanup = Cleanup(daemons.clone());
    assert_eq!((daemons.len(), alive(&daemons).len()), (20, 20), "daemons that live");
    rig.agent.kill();
    rig.agent.restart();
    let id = rig.submit(&["exit 3"], json!({})).await;
    assert_eq!(rig.command(&id).await["results"][0]["output"]["exit_code"], 3);
    assert_eq!(alive(&daemons).len(), 20, "daemons that live after the death of their agent");
}

pub async fn a_hang_up_stops_an_agent_and_its_programs(on: On) {
    let mut rig = Rig::start(on).await;
    let id = rig.submit(&[TREE], json!({ "timeout": "1h" })).await;
    let pids = pids(&rig.folder.join("pids"), 5).await;
    let _cleanup = Cleanup(pids.clone());
    kill(Pid::from_raw(rig.agent.pid()), Signal::SIGHUP).unwrap();
    let status = rig.agent.wait().await;
    assert!(status.success(), "{status}");
    assert!(alive(&pids).is_empty(), "{:?} of {pids:?} live", alive(&pids));
    rig.agent.restart();
    let command = rig.command(&id).await;
    assert_eq!(command["results"][0]["error"], "interrupted", "{command}");
}

#[actix_rt::test]
async fn an_agent_that_inherits_orphans_leaves_no_zombies() {
    let server = Server::start(ServerOptions::default()).await;
    let token = server.enroll_token().await;
    let mut agent = AgentProcess::start(&server.url, "init", &[], server.folder.path(), &token);
    eventually("the agent to enroll", || async {
        (server.sql().number("SELECT count(*) AS n FROM agent_sessions") == 1).then_some(())
    })
    .await;
    agent.restart_as_subreaper();
    let rig = Rig { folder: server.folder.path().join("init"), agent, server };
    // When it ends, its parent is the agent, or becomes that with the zombie.
    let script = "f=$AGENT_FOLDER/orphan; sh -c 'echo $$ > $0.new; mv $0.new $0' $f >/dev/null 2>&1 & exit 3";
    let id = rig.submit(&[script], json!({})).await;
    assert_eq!(rig.command(&id).await["results"][0]["output"]["exit_code"], 3);
    let orphan = pids(&rig.folder.join("orphan"), 1).await[0];
    eventually("the orphan to be reaped", || async { (!Path::new(&format!("/proc/{orphan}")).exists()).then_some(()) })
        .await;
    // Its own programs are still waited for.
    let id = rig.submit(&["exit 4", "exit 5"], json!({})).await;
    assert_eq!(rig.command(&id).await["results"][0]["output"]["exit_code"], 4);
}
