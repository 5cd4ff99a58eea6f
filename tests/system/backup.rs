//! A database that is lost, and brought back as it was some time ago.

use crate::cluster;
use crate::support::{Fleet, On, Server, eventually};
use odoshi::domain::command::OpenState;
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

const AGENTS: usize = 20;

/// Hands in an action by a file, which stays in `done`; answers its id.
fn drop_action(server: &Server) -> String {
    let id = Uuid::now_v7().to_string();
    let operation = json!({ "module": "tally", "parameters": id });
    let document = json!({ "id": id, "name": "n", "target": "TRUE", "timeout": "20s", "operations": [operation] });
    server.drop_file(&format!("{id}.json"), &document.to_string());
    id
}

#[actix_rt::test]
async fn a_base_backup_is_restored_and_nothing_runs_twice() {
    let database = tokio::task::spawn_blocking(|| cluster::own(&[])).await.unwrap();
    let mut options = On::Postgres.options();
    options.cluster = Some(database);
    let mut server = Server::start(options).await;
    let folder = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(AGENTS, &server.url, &server.enroll_token().await, folder.path());
    let enrolled = "SELECT count(*) AS n FROM agents";
    eventually("all agents to be enrolled", || async { (server.sql().number(enrolled) == 20).then_some(()) }).await;

    // Some are over when the backup is taken, some begin meanwhile, and the rest is what the backup knows nothing of.
    let mut ids = Vec::new();
    let mut copy = None;
    for round in 0..30 {
        ids.push(drop_action(&server));
        if round == 10 {
            for id in &ids {
                server.until_status(id, "completed").await;
            }
            copy = Some(tokio::task::spawn_blocking(|| database.base_backup()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let copy: &'static _ = Box::leak(Box::new(copy.unwrap().await.unwrap()));
    ids.push(drop_action(&server));
    for id in &ids {
        server.until_status(id, "completed").await;
    }
    let before = fleet.tally.lock().unwrap().clone();
    assert_eq!(before.len(), ids.len() * AGENTS);

    server.kill();
    tokio::task::spawn_blocking(move || {
        database.kill();
        database.bury();
        copy.resume();
    })
    .await
    .unwrap();
    server.move_to(copy);
    // What an agent had in its hands at that moment is not delivered again: nobody can know that it wasn't run.
    let held = server
        .sql()
        .number(&format!("SELECT count(*) AS n FROM open_commands WHERE state = {}", OpenState::Sent as i16));
    server.restart().await;
    let known = server.sql().number("SELECT count(*) AS n FROM actions");
    println!("of {} actions the backup knew {known}, and {held} commands that agents had", ids.len());
    assert!((10..ids.len() as i64).contains(&known), "{known} of {}", ids.len());

    // What was handed in by files is still there, and is handed in again: each is the same action.
    for entry in std::fs::read_dir(server.spool("done")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            std::fs::rename(&path, server.spool("new").join(path.file_name().unwrap())).unwrap();
        }
    }
    let mut timed_out = 0;
    for id in &ids {
        let view = server.until_status(id, "completed").await;
        let count = |key: &str| view["counts"][key].as_i64().unwrap();
        assert_eq!(count("succeeded") + count("timed_out"), AGENTS as i64, "{view}");
        timed_out += count("timed_out");
    }
    assert!(timed_out <= held, "{timed_out} of {held}");
    let after = fleet.tally.lock().unwrap().clone();
    assert!(after == before && after.values().all(|times| *times == 1), "something ran again");
    assert_eq!(server.sql().exceptions(), []);
}
