//! What producers may drop into the spool: each file that is no action lies in `failed/` and says why, and the next one
//! is taken as if nothing had been.

use crate::support::{On, Server, by_length, eventually, until_reached};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Nobody: what root may do regardless, the server may not.
const NOBODY: u32 = 65_534;

async fn start(on: On) -> Server {
    let options = on.options().with("ODOSHI__HTTP__MAX_BODY", "4KiB");
    let root = nix::unistd::geteuid().is_root();
    Server::start(if root { options.run_as(NOBODY) } else { options }).await
}

fn document(extra: Value) -> String {
    let mut document = json!({ "name": "n", "target": "name = 'nobody'", "operations": [{ "module": "ping" }] });
    for (key, value) in extra.as_object().unwrap() {
        document[key] = value.clone();
    }
    document.to_string()
}

/// The problem beside a file in `failed/`, once it is there.
async fn problem(server: &Server, name: &str) -> Value {
    let path = server.spool("failed").join(format!("{name}.error"));
    let problem =
        eventually(&path.display().to_string(), || async { serde_json::from_slice(&fs::read(&path).ok()?).ok() }).await;
    // The `.error` is there first, so that no file lies in there without one.
    there(server.spool("failed").join(name)).await;
    problem
}

/// Waits until this is in that folder.
async fn there(path: PathBuf) {
    eventually(&path.display().to_string(), || async { fs::symlink_metadata(&path).ok().map(|_| ()) }).await;
}

/// A good file is taken now, and its action is done.
async fn goes_on(server: &Server, name: &str, id: &str) {
    server.drop_file(name, &document(json!({ "id": id })));
    server.until_status(id, "completed").await;
    there(server.spool("done").join(name)).await;
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// Puts something into `new/` that isn't a plain file, in one step.
fn appear(server: &Server, name: &str, make: impl FnOnce(&Path)) {
    let tmp = server.spool("tmp").join(name);
    make(&tmp);
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::lchown(&tmp, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::rename(tmp, server.spool("new").join(name)).unwrap();
}

pub async fn a_file_that_is_no_action_fails_with_a_problem_that_names_the_place(on: On) {
    let server = start(on).await;
    let bad_target = document(json!({ "target": "labels.role = 'web'\n  AND AND name = 'x'" }));
    let large = document(json!({ "name": "x".repeat(1_900), "description": { "d": "y".repeat(3_000) } }));
    let rows: Vec<(&str, String, &str, u64, Vec<&str>)> = vec![
        ("text", "hello".into(), "malformed-json", 400, vec!["line 1", "column 1"]),
        ("truncated", document(json!({}))[..40].into(), "malformed-json", 400, vec!["line 1", "column 40", "EOF"]),
        ("two-lines", "{\"name\":\n  oops}".into(), "malformed-json", 400, vec!["line 2", "column 3"]),
        ("empty", String::new(), "malformed-json", 400, vec!["empty.json is empty"]),
        ("array", "[]".into(), "invalid-document", 422, vec!["line 1", "column"]),
        ("unknown-key", document(json!({ "tarqet": 1 })), "invalid-document", 422, vec!["tarqet", "line 1"]),
        ("no-name", "{\"target\": \"TRUE\", \"operations\": []}".into(), "invalid-document", 422, vec!["name"]),
        ("long-name", document(json!({ "name": "" })), "invalid-document", 422, vec!["name", "0 characters"]),
        ("bad-target", bad_target, "invalid-document", 422, vec!["target", "line 2", "column 11"]),
        ("bad-column", document(json!({ "target": "nmae = 'x'" })), "invalid-document", 422, vec!["nmae", "line 1"]),
        (
            "both-times",
            document(json!({ "delay": "1s", "valid_from": "2030-01-01T00:00:00Z" })),
            "invalid-document",
            422,
            vec!["delay", "valid_from"],
        ),
        ("too-large", large, "too-large", 413, vec!["too-large.json", "http.max_body", "4096"]),
    ];
    for (name, content, ..) in &rows {
        server.drop_file(&format!("{name}.json"), content);
    }
    for (name, content, kind, status, places) in &rows {
        let name = format!("{name}.json");
        let problem = problem(&server, &name).await;
        assert_eq!(problem["type"], format!("urn:odoshi:problem:{kind}"), "{name}: {problem}");
        assert_eq!(problem["status"], *status, "{name}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        for place in places {
            assert!(detail.contains(place), "{name}: {place:?} is missing in {detail:?}");
        }
        assert_eq!(fs::read_to_string(server.spool("failed").join(&name)).unwrap(), *content, "kept to the letter");
    }
    goes_on(&server, "good.json", "00000000-0000-7000-8000-000000000001").await;
    let counts = ["new", "cur", "done", "failed"].map(|folder| count(&server.spool(folder)));
    assert_eq!(counts, [0, 0, 1, 2 * rows.len()]);
}

pub async fn what_is_not_a_regular_readable_file_fails_and_no_link_is_followed(on: On) {
    let server = start(on).await;
    let id = "00000000-0000-7000-8000-000000000666";
    let outside = server.folder.path().join("outside.json");
    fs::write(&outside, document(json!({ "id": id }))).unwrap();
    appear(&server, "folder.json", |path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("inside.json"), document(json!({ "id": id }))).unwrap();
    });
    appear(&server, "link.json", |path| symlink(&outside, path).unwrap());
    appear(&server, "dangling.json", |path| symlink("/nowhere", path).unwrap());
    appear(&server, "fifo.json", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap());
    appear(&server, "socket.json", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()));
    appear(&server, "secret.json", |path| {
        fs::write(path, document(json!({ "id": id }))).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    });
    let rows = [
        ("folder", "a directory"),
        ("link", "a symbolic link"),
        ("dangling", "a symbolic link"),
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
        ("secret", "cannot be opened"),
    ];
    for (name, what) in rows {
        let problem = problem(&server, &format!("{name}.json")).await;
        assert_eq!(problem["type"], "urn:odoshi:problem:unreadable", "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(what) && detail.contains(&format!("{name}.json")), "{detail}");
        fs::symlink_metadata(server.spool("failed").join(format!("{name}.json"))).unwrap();
    }
    assert!(server.spool("failed/folder.json/inside.json").exists());
    assert!(outside.exists());
    goes_on(&server, "good.json", "00000000-0000-7000-8000-000000000001").await;
    assert_eq!(server.call("GET", &format!("/v1/actions/{id}"), None).await.0, 404, "nothing of it became an action");
    assert_eq!((count(&server.spool("new")), count(&server.spool("cur"))), (0, 0));
}

pub async fn one_id_is_one_action_whatever_files_carry_it(on: On) {
    let server = start(on).await;
    let id = "00000000-0000-7000-8000-000000000001";
    for name in ["one.json", "two.json"] {
        goes_on(&server, name, id).await;
    }
    server.drop_file("other.json", &document(json!({ "id": id, "name": "something else" })));
    let conflict = problem(&server, "other.json").await;
    assert_eq!((&conflict["type"], &conflict["status"]), (&json!("urn:odoshi:problem:conflict"), &json!(409)));
    assert!(conflict["detail"].as_str().unwrap().contains(id), "{conflict}");
    let view = server.action(id).await;
    assert_eq!(view["name"], "n", "the first one stays as it was");
    let (_, list) = server.call("GET", "/v1/actions", None).await;
    assert_eq!(list["actions"].as_array().unwrap().len(), 1);
}

pub async fn a_name_that_is_taken_gets_a_suffix_and_nothing_is_overwritten(on: On) {
    let server = start(on).await;
    for n in 1..=3 {
        let id = format!("00000000-0000-7000-8000-{n:012}");
        server.drop_file("same.json", &document(json!({ "id": id })));
        let suffixed = if n == 1 { "same.json".to_owned() } else { format!("same.{}.json", n - 1) };
        let done = server.spool("done").join(suffixed);
        there(done.clone()).await;
        assert!(fs::read_to_string(done).unwrap().contains(&id));
        server.drop_file("bad.json", &format!("bad number {n}"));
        let suffixed = if n == 1 { "bad.json".to_owned() } else { format!("bad.{}.json", n - 1) };
        problem(&server, &suffixed).await;
        assert_eq!(fs::read_to_string(server.spool("failed").join(suffixed)).unwrap(), format!("bad number {n}"));
    }
    // A name that isn't UTF-8 is a name.
    let name = OsStr::from_bytes(b"caf\xe9.json");
    let tmp = server.spool("tmp").join("tmp");
    fs::write(&tmp, document(json!({ "name": "not UTF-8" }))).unwrap();
    fs::rename(tmp, server.spool("new").join(name)).unwrap();
    there(server.spool("done").join(name)).await;
    let tmp = server.spool("tmp").join("tmp");
    fs::write(&tmp, "{").unwrap();
    let bad = OsStr::from_bytes(b"na\xefve.json");
    fs::rename(tmp, server.spool("new").join(bad)).unwrap();
    there(server.spool("failed").join(OsStr::from_bytes(b"na\xefve.json.error"))).await;
}

pub async fn files_that_a_crash_left_in_cur_are_taken_again_and_are_the_same_actions(on: On) {
    let mut server = start(on).await;
    // Without an id: it is made of name, content and time.
    server.drop_file("same.json", &document(json!({})));
    there(server.spool("done").join("same.json")).await;
    server.kill();
    // As if it had died after the commit and before the move; and one that it had just taken.
    fs::rename(server.spool("done").join("same.json"), server.spool("cur").join("same.json")).unwrap();
    let id = "00000000-0000-7000-8000-000000000001";
    fs::write(server.spool("cur").join("taken.json"), document(json!({ "id": id }))).unwrap();
    server.restart().await;
    for name in ["same.json", "taken.json"] {
        there(server.spool("done").join(name)).await;
    }
    server.until_status(id, "completed").await;
    let (_, list) = server.call("GET", "/v1/actions", None).await;
    assert_eq!(list["actions"].as_array().unwrap().len(), 2, "{list}");
}

pub async fn thousands_of_files_at_once_become_as_many_actions(on: On) {
    let files = by_length(2_000, 10_000);
    let server = start(on).await;
    let started = Instant::now();
    for n in 0..files {
        let id = format!("00000000-0000-7000-8000-{n:012}");
        server.drop_file(&format!("{n}.json"), &document(json!({ "id": id })));
    }
    let written = started.elapsed();
    until_reached("files in done/", files, || count(&server.spool("done"))).await;
    let stored = started.elapsed();
    let mut after = String::new();
    let mut completed = 0;
    let ended = "SELECT count(*) AS n FROM actions WHERE ended_at IS NOT NULL";
    until_reached("completed actions", files, || server.sql().number(ended) as usize).await;
    let done = started.elapsed();
    loop {
        let path = format!("/v1/actions?status=completed&limit=1000{after}");
        let (_, page) = server.call("GET", &path, None).await;
        completed += page["actions"].as_array().unwrap().len();
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(completed, files);
    assert_eq!(["new", "cur", "failed"].map(|folder| count(&server.spool(folder))), [0, 0, 0]);
    println!("{files} files took {written:.1?} to write, {stored:.1?} to be stored, {done:.1?} to be completed");
}
