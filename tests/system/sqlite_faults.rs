//! What happens to SQLite's file: somebody else locks it, it can't be written, its disk is full. And to the spool's disk.

use crate::store_faults::survives;
use crate::support::{On, Server, ServerOptions, SmallDisk, WireAgent, eventually, mostly_waits};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// Nobody: what root may do regardless, the server may not.
const NOBODY: u32 = 65_534;

#[actix_rt::test]
async fn a_file_that_somebody_locks_for_a_while_costs_nothing() {
    mostly_waits();
    let server = Server::start(ServerOptions::default()).await;
    survives("locked", &server, async {
        let file = server.data().join("odoshi.db").display().to_string();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let lock = tokio::task::spawn_blocking(move || {
            let mut other = SqliteConnection::establish(&file).unwrap();
            other.batch_execute("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE").unwrap();
            released.recv().ok();
            other.batch_execute("ROLLBACK").unwrap();
        });
        // Longer than a call waits for it.
        tokio::time::sleep(Duration::from_secs(8)).await;
        eventually("somebody to notice", || async { server.log_text().contains("database is locked").then_some(()) })
            .await;
        drop(release);
        lock.await.unwrap();
    })
    .await;
}

#[actix_rt::test]
async fn a_file_that_cannot_be_written_ends_the_start_with_its_name() {
    let options = if nix::unistd::geteuid().is_root() {
        ServerOptions::default().run_as(NOBODY)
    } else {
        ServerOptions::default()
    };
    let mut server = Server::start(options).await;
    assert!(server.terminate().await.success());
    let file = server.data().join("odoshi.db");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
    server.spawn();
    assert_eq!(server.wait().await.code(), Some(1));
    assert!(server.log_text().contains("odoshi.db"), "{}", server.log_text());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    server.restart().await;
}

/// Leaves no room on the disk of this folder.
fn fill(folder: &Path) {
    use std::io::Write;
    let mut filler = fs::File::create(folder.join("filler")).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}
}

#[actix_rt::test]
async fn a_full_disk_under_the_store_costs_nothing() {
    let disk = SmallDisk { folder: "store", size: "48m" };
    let server = Server::start(ServerOptions { disk: Some(disk), ..On::Sqlite.options() }).await;
    survives("disk full", &server, async {
        let folder = server.small_disk();
        fill(&folder);
        eventually("a call to be refused", || async {
            let document = json!({ "name": "n", "target": "name = 'nobody'", "operations": [{ "module": "ping" }],
                "description": { "long": "x".repeat(100_000) } });
            let (status, _) = server.call_once(&server.admin_token(), "POST", "/v1/actions", Some(document)).await;
            assert!(matches!(status, 202 | 503), "{status}");
            (status == 503).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        fs::remove_file(folder.join("filler")).unwrap();
    })
    .await;
    assert!(server.log_text().contains("full"), "nobody noticed: {}", server.log_text());
}

#[actix_rt::test]
async fn a_full_disk_under_the_spool_loses_no_file() {
    let disk = SmallDisk { folder: "spool", size: "1m" };
    let server = Server::start(ServerOptions { disk: Some(disk), ..On::Sqlite.options() }).await;
    let token = server.enroll("wire", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let spool = server.small_disk();
    let good = json!({ "id": "018f0000-0000-7000-8000-000000000001", "name": "n", "target": "TRUE",
        "operations": [{ "module": "ping" }] });
    for (name, content) in [("good.json", good.to_string()), ("bad.json", "{".repeat(9_000))] {
        fs::write(spool.join("tmp").join(name), content).unwrap();
    }
    fill(&spool);
    for name in ["good.json", "bad.json"] {
        fs::rename(spool.join("tmp").join(name), spool.join("new").join(name)).unwrap();
    }
    // What is an action needs no room.
    let commands = agent.commands().await;
    agent.succeed(&commands[0]).await;
    eventually("the good file to be done", || async { spool.join("done/good.json").exists().then_some(()) }).await;
    // What isn't waits for room for the word on why.
    eventually("the server to say so", || async { server.log_text().contains("cannot be put away now").then_some(()) })
        .await;
    assert!(!spool.join("failed/bad.json").exists());
    fs::remove_file(spool.join("filler")).unwrap();
    eventually("the bad file to fail", || async {
        let problem = fs::read(spool.join("failed/bad.json.error")).ok()?;
        let problem: serde_json::Value = serde_json::from_slice(&problem).ok()?;
        (problem["status"] == 400 && spool.join("failed/bad.json").exists()).then_some(())
    })
    .await;
    for folder in ["new", "cur"] {
        assert_eq!(fs::read_dir(spool.join(folder)).unwrap().count(), 0, "{folder}/");
    }
}
