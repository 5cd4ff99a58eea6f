//! The examples, run as programs.
#![allow(missing_docs, clippy::unwrap_used, reason = "these are tests")]

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// A safety net, not a measure.
const PATIENCE: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(5);

/// `cargo test` builds the examples, unless it is told which targets to test. Then `cargo build --examples` does.
fn example(name: &str) -> Command {
    let program = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join(name);
    assert!(program.exists(), "{} is not built: cargo build --examples", program.display());
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    client: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    path: String,
    #[diesel(sql_type = BigInt)]
    size: i64,
    #[diesel(sql_type = Text)]
    checksum: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

fn connect(file: &Path) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    diesel::sql_query("PRAGMA busy_timeout = 60000").execute(&mut connection).unwrap();
    connection
}

/// 0 if there is no such table yet.
fn count(connection: &mut SqliteConnection, from: &str) -> usize {
    let counted = diesel::sql_query(format!("SELECT count(*) AS count FROM {from}")).get_result::<Count>(connection);
    counted.map_or(0, |counted| counted.count as usize)
}

/// Objects below a folder. What a store was writing when it was killed has a `#` in its name.
fn objects_below(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let objects = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => objects_below(&entry.path()),
        _ => usize::from(!entry.file_name().to_string_lossy().contains('#')),
    });
    objects.sum()
}

/// A folder in which assets are moved.
struct Assets {
    folder: tempfile::TempDir,
    objects: usize,
}

impl Assets {
    fn new(objects: usize) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), objects }
    }

    fn bucket(&self) -> PathBuf {
        self.folder.path().join("bucket")
    }

    fn connect(&self) -> SqliteConnection {
        connect(&self.folder.path().join("assets.db"))
    }

    fn command(&self, grace: &str) -> Command {
        let mut command = example("migrate_assets");
        command.arg("--folder").arg(self.folder.path());
        command.args(["--objects", &self.objects.to_string(), "--grace", grace]);
        command
    }

    async fn finish(&self) -> Output {
        self.command("100ms").output().await.unwrap()
    }

    /// From 0 to four for each object: made, copied, recorded, original removed.
    fn progress(&self) -> usize {
        // Made after the database was opened, which fails if somebody reads it in its first moments.
        if !self.bucket().exists() {
            return 0;
        }
        let mut connection = self.connect();
        if count(&mut connection, "assets") == 0 {
            return objects_below(&self.bucket().join("uploads"));
        }
        let removed = self.objects - objects_below(&self.bucket().join("uploads"));
        let recorded = count(&mut connection, "assets WHERE path LIKE 'clients/%'");
        self.objects + removed + recorded + objects_below(&self.bucket().join("clients"))
    }

    /// Kills a run with SIGKILL when `progress` has come to `wanted`. Returns whether it had to.
    async fn kill_at(&self, grace: &str, wanted: usize) -> bool {
        let mut child = self.command(grace).stdout(Stdio::null()).spawn().unwrap();
        let (mut last, mut since) = (0, Instant::now());
        while last < wanted {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return false;
            }
            let now = self.progress();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < PATIENCE, "{last} of {wanted}, and nothing moves");
            tokio::time::sleep(POLL).await;
        }
        child.kill().await.unwrap();
        true
    }

    fn rows(&self) -> Vec<Row> {
        let mut connection = self.connect();
        if count(&mut connection, "assets") == 0 {
            return Vec::new();
        }
        diesel::sql_query("SELECT client, name, path, size, checksum FROM assets").load(&mut connection).unwrap()
    }

    fn assert_each_row_points_to_its_object(&self) {
        for row in self.rows() {
            let content = fs::read(self.bucket().join(&row.path)).unwrap_or_else(|e| panic!("{}: {e}", row.path));
            let checksum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((content.len() as i64, &checksum), (row.size, &row.checksum), "{}", row.path);
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn assets_killed_while_they_move_are_all_at_their_new_place_in_the_end() {
    let long = std::env::var_os("ODOSHI_TEST_LONG").is_some();
    let (kills, objects) = if long { (10, 10_000) } else { (3, 2_000) };
    let assets = Assets::new(objects);
    // Nearly all: after the last removal the run may end before it is looked at.
    let slice = 4 * objects * 95 / 100 / kills;
    let mut killed = Vec::new();
    for number in 0..kills {
        let wanted = slice * number + rand::rng().random_range(1..=slice);
        if assets.kill_at("100ms", wanted).await {
            killed.push(wanted);
        }
        assets.assert_each_row_points_to_its_object();
    }
    let output = assets.finish().await;
    assert!(output.status.success(), "killed at {killed:?} of {}: {}", 4 * objects, text(&output));
    eprintln!("killed at {killed:?} of {}, then: {}", 4 * objects, text(&output));
    assets.assert_each_row_points_to_its_object();
    let rows = assets.rows();
    assert_eq!(rows.len(), objects);
    for row in rows {
        assert_eq!(row.path, format!("clients/{}/assets/{}", row.client, row.name));
    }
    assert_eq!(objects_below(&assets.bucket()), objects);
    assert_eq!(count(&mut assets.connect(), "removals"), 0);
    let again = assets.finish().await;
    assert!(again.status.success() && text(&again).contains("moved 0 objects"), "{}", text(&again));
}

#[tokio::test]
async fn originals_that_a_row_points_to_stay() {
    let assets = Assets::new(20);
    // All rows are changed, and no original is removed.
    assert!(assets.kill_at("1h", 3 * assets.objects).await);
    let mut connection = assets.connect();
    for change in [
        // Noted for removal, but in use again.
        "UPDATE assets SET path = 'uploads/00000001' WHERE id = 1",
        // To be moved, but not what the row says.
        "UPDATE assets SET path = 'uploads/00000002', checksum = 'another' WHERE id = 2",
        "DELETE FROM removals WHERE asset = 2",
    ] {
        assert_eq!(diesel::sql_query(change).execute(&mut connection).unwrap(), 1, "{change}");
    }
    let output = assets.finish().await;
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("moved 19 objects") && text(&output).contains("1 failed"), "{}", text(&output));
    assert!(text(&output).contains("uploads/00000002: copy: "), "{}", text(&output));
    assert!(text(&output).contains("2 don't point to their object at its new place; 2 originals"), "{}", text(&output));
    for original in ["uploads/00000001", "uploads/00000002"] {
        assert!(assets.bucket().join(original).exists(), "{original}");
    }
    // The next run moves what the row really points to.
    assert!(text(&assets.finish().await).contains("moved 1 objects"));
    assert!(!assets.bucket().join("uploads/00000001").exists());
}

#[tokio::test]
async fn the_custom_sender_prints_the_command_of_its_documentation() {
    let source = include_str!("../examples/custom_sender.rs");
    let document = source.lines().find_map(|line| line.strip_prefix("//! {")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut child = example("custom_sender")
        .current_dir(folder.path())
        .envs([("ODOSHI__HTTP__LISTEN", "127.0.0.1:0"), ("ODOSHI__DATA_DIR", data.to_str().unwrap())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let printed = async {
        // The targets are matched once. Before the agent is there the action would reach nobody.
        let file = data.join("odoshi.db");
        // Before the WAL is there a reader would make the server's start fail.
        while !data.join("odoshi.db-wal").exists() || count(&mut connect(&file), "agents") == 0 {
            assert_eq!(child.try_wait().unwrap(), None);
            tokio::time::sleep(POLL).await;
        }
        fs::write(data.join("spool/tmp/hello.json"), format!("{{{document}")).unwrap();
        fs::rename(data.join("spool/tmp/hello.json"), data.join("spool/new/hello.json")).unwrap();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("hello: ") && line.contains("\"hello\"") {
                return;
            }
        }
        panic!("it ended before it printed the command");
    };
    tokio::time::timeout(PATIENCE, printed).await.unwrap();
    kill(Pid::from_raw(child.id().unwrap().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}
