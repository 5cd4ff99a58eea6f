//! The command line, through the built binary.

use crate::cluster;
use crate::support::{Server, ServerOptions, program};
use std::process::{Command, Output};

fn odoshi(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_odoshi"));
    command.args(arguments).current_dir(folder.path()).env_remove("ODOSHI_TOKEN").env_remove("ODOSHI_SERVER");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_demo_runs_real_actions_and_exits_with_0() {
    let output = odoshi(&["demo", "--agents", "20"]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    let row = |name: &str| {
        let line = out.lines().find(|line| line.trim().starts_with(name)).unwrap_or_else(|| panic!("no {name}: {out}"));
        line.split_whitespace().filter_map(|word| word.parse::<u32>().ok()).collect::<Vec<_>>()
    };
    assert_eq!(row("total"), [20, 15]);
    assert_eq!(row("succeeded"), [20, 15]);
    assert!(!err.contains("ERROR") && !err.contains("panicked"), "{err}");
}

#[test]
fn a_demo_and_benchmarks_on_postgresql_leave_nothing_behind() {
    let cluster = cluster::shared();
    let database = cluster.database();
    let url = cluster.url(&database);
    let demo = odoshi(&["demo", "--agents", "20", "--store", &url]);
    let (out, err) = (text(&demo.stdout), text(&demo.stderr));
    assert_eq!(demo.status.code(), Some(0), "{out}\n{err}");
    assert!(out.contains("succeeded") && !err.contains("ERROR") && !err.contains("panicked"), "{out}\n{err}");
    for bench in ["create", "life"] {
        let arguments = ["bench", bench, "--agents", "2000", "--rounds", "1", "--held-transaction", "--store", &url];
        let output = odoshi(&arguments);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
        assert!(out.contains("odoshi/bare = ") && out.contains("held transaction/without = "), "{out}");
        assert!(!err.contains("ERROR") && !err.contains("panicked"), "{err}");
        // Warnings of a database that is slow for a while, or of a round that the end overtakes, are no failure.
    }
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'odoshi%'";
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!((cluster.psql(&database, schemas).as_str(), cluster.psql(&database, tables).as_str()), ("0", "0"));
}

#[test]
fn the_benchmarks_print_their_figures_beside_bare_ones() {
    for bench in ["create", "life"] {
        let output = odoshi(&["bench", bench, "--agents", "2000", "--rounds", "1"]);
        let out = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{out}{}", text(&output.stderr));
        assert!(out.contains("odoshi/bare = ") && out.contains("bare:"), "{out}");
    }
}

#[test]
fn the_latency_of_an_idle_server_is_measured_beside_bare_commits() {
    let output = odoshi(&["bench", "latency", "--samples", "20"]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}{}", text(&output.stderr));
    assert!(out.contains("POST → the agent has the command") && out.contains("arrived/bare = "), "{out}");
}

#[test]
fn shells_get_their_completions_and_mistakes_their_hints() {
    for (shell, holds) in [("bash", "_odoshi()"), ("zsh", "#compdef odoshi"), ("fish", "complete -c odoshi")] {
        let output = odoshi(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains(holds), "{shell}");
    }
    for (wrong, hint) in [
        (&["action", "list"][..], "'actions'"),
        (&["actions", "lst"], "'list'"),
        (&["run", "--tarhet", "TRUE"], "'--target'"),
        (&["completions", "bsh"], "'bash'"),
    ] {
        let output = odoshi(wrong);
        let err = text(&output.stderr);
        assert!(output.status.code() == Some(2) && err.contains("similar") && err.contains(hint), "{wrong:?}: {err}");
    }
    assert!(text(&odoshi(&["--version"]).stdout).starts_with("odoshi "));
}

#[test]
fn settings_are_shown_as_they_are_in_force_and_tables_are_made_by_migrate() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("odoshi.toml");
    std::fs::write(&file, format!("data_dir = \"{}\"\n[http]\ntoken_rate = 7\n", folder.path().display())).unwrap();
    let with = |arguments: &[&str]| {
        let mut command = Command::new(program());
        command.args(arguments).arg("--config").arg(&file).env("ODOSHI__HTTP__TOKEN_STREAMS", "9");
        command.output().unwrap()
    };
    let shown = with(&["config", "show"]);
    let out = text(&shown.stdout);
    assert!(shown.status.success() && out.contains("token_rate = 7") && out.contains("token_streams = 9"), "{out}");
    for _ in 0..2 {
        let migrated = with(&["migrate"]);
        assert_eq!(migrated.status.code(), Some(0), "{}", text(&migrated.stderr));
    }
    assert!(folder.path().join("odoshi.db").exists());
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_program_quietly() {
    let mut child = Command::new(program());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = child.args(["completions", "bash"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), ""));
}

#[test]
fn wrong_settings_name_their_key_and_wrong_usage_is_2() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[http]\nlisten = \"127.0.0.1:0\"\ncolour = 3\n").unwrap();
    let path = file.path().display().to_string();
    let output = odoshi(&["config", "check", "--config", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("http.colour"), "{}", text(&output.stderr));
    assert_eq!(odoshi(&["serve", "--colour"]).status.code(), Some(2));
    assert_eq!(odoshi(&["demo", "--agents", "0"]).status.code(), Some(2));
    // What needs neither files nor the address is checked without them.
    for (settings, key) in [
        (
            "[sender]\nenabled = [\"smtp\"]\n[sender.smtp]\nurl = \"smtp://localhost\"\nfrom = \"nobody\"\n",
            "sender.smtp.from",
        ),
        ("[[hook]]\nurl = \"http://[::1]:7/x\"\non = [\"action.ended\"]\n", "hook[0].url"),
        ("[sender]\nenabled = [\"nats\"]\n[sender.nats]\nurl = \"nats://a b\"\n", "sender.nats.url"),
    ] {
        std::fs::write(file.path(), settings).unwrap();
        let output = odoshi(&["config", "check", "--settings-only", "--config", &path]);
        let err = text(&output.stderr);
        assert!(output.status.code() == Some(1) && err.contains(key), "{key}: {err}");
    }
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/config/odoshi.toml");
    assert_eq!(odoshi(&["config", "check", "--config", sample]).status.code(), Some(0));
}

#[test]
fn a_server_that_is_not_there_is_3_and_no_token_is_said() {
    let output = odoshi(&["token", "create", "--role", "viewer"]);
    assert!(text(&output.stderr).contains("ODOSHI_TOKEN"), "{}", text(&output.stderr));
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "x").unwrap();
    let token = token.path().display().to_string();
    let nowhere = ["token", "list", "--server", "http://127.0.0.1:1", "--token-file", &token];
    assert_eq!(odoshi(&nowhere).status.code(), Some(3));
}

#[actix_rt::test]
async fn tokens_are_made_listed_and_revoked() {
    let server = Server::start(ServerOptions::default()).await;
    let admin = server.data().join("admin.token").display().to_string();
    let with = |arguments: &[&str]| {
        let arguments = [arguments, &["--server", &server.url, "--token-file", &admin]].concat();
        odoshi(&arguments)
    };
    let made = text(&with(&["token", "create", "--role", "viewer", "--name", "probe"]).stdout);
    let token = made.trim();
    assert_eq!(made, format!("{token}\n"), "the token alone");
    assert_eq!(server.call_as(token, "GET", "/v1/actions", None).await.0, 200);
    let list = text(&with(&["token", "list"]).stdout);
    assert!(!list.contains(token) && list.contains("probe"), "{list}");
    let id = list.lines().find(|line| line.contains("probe")).unwrap().split_whitespace().next().unwrap();
    assert_eq!(with(&["token", "revoke", id]).status.code(), Some(0));
    assert_eq!(server.call_as(token, "GET", "/v1/actions", None).await.0, 401);
}

#[actix_rt::test]
async fn a_second_server_on_the_same_store_is_refused() {
    let server = Server::start(ServerOptions::default()).await;
    let mut second = Command::new(env!("CARGO_BIN_EXE_odoshi"));
    second.arg("serve").env("ODOSHI__DATA_DIR", server.data()).env("ODOSHI__HTTP__LISTEN", "127.0.0.1:0");
    let output = tokio::task::spawn_blocking(move || second.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("in use by another process"), "{}", text(&output.stderr));
}

#[actix_rt::test]
async fn a_service_manager_is_told_that_the_server_is_ready_alive_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    // A manager reads all the time: what it leaves lying holds up who tells it something.
    let (told, manager) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length) = socket.recv(&mut buffer) {
            if told.send(text(&buffer[..length]).trim().to_owned()).is_err() {
                return;
            }
        }
    });
    let hear = || manager.recv_timeout(crate::support::PATIENCE).expect("to be told something");
    let options =
        ServerOptions::default().with("NOTIFY_SOCKET", path.to_str().unwrap()).with("WATCHDOG_USEC", "200000");
    let mut server = Server::start(options).await;
    let heard: Vec<String> = (0..6).map(|_| hear()).collect();
    assert!(heard.iter().any(|told| told == "READY=1"), "{heard:?}");
    assert!(heard.iter().filter(|told| *told == "WATCHDOG=1").count() >= 4, "{heard:?}");
    assert_eq!(server.terminate().await.code(), Some(0));
    while hear() != "STOPPING=1" {}
}

#[test]
fn ctrl_c_ends_a_demo_cleanly() {
    // A demo may be over before the signal reaches it.
    assert!((0..10).any(|_| is_ended_by_ctrl_c()), "each demo went on to its end");
}

fn is_ended_by_ctrl_c() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_odoshi"));
    command.args(["demo", "--agents", "10"]).env("TMPDIR", folder.path()).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let mut demo = command.spawn().unwrap();
    // It says so when the agents are connected: then the fleet is there to be taken down.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(demo.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("agents enrolled and connected")));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(demo.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    let output = demo.wait_with_output().unwrap();
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 130)), "{code:?}: {}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the temporary folder is removed");
    code == Some(130)
}
