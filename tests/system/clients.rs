//! Clients in other languages, written from the interface alone, and a property-based tester of the API.

use crate::support::{On, Server, by_length};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// A Python of the tests' own in `target/`, with what `tests/clients/requirements.txt` names. Made once.
fn python() -> PathBuf {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(make_python).clone()
}

fn make_python() -> PathBuf {
    let wanted = std::fs::read_to_string(format!("{CLIENTS}/requirements.txt")).unwrap();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("python");
    let (python, stamp) = (folder.join("bin/python"), folder.join("requirements.txt"));
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    run(Command::new(&python).args(pip).arg(format!("{CLIENTS}/requirements.txt")));
    std::fs::write(stamp, wanted).unwrap();
    python
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
    said
}

/// Runs it on a thread of its own, so that the test's runtime isn't held up.
async fn in_background(mut command: Command) -> String {
    tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
}

pub async fn a_python_client_finds_everything_as_described(on: On) {
    let server = Server::start(on.options()).await;
    let mut client = Command::new(tokio::task::spawn_blocking(python).await.unwrap());
    client.arg(format!("{CLIENTS}/client.py")).arg(&server.url).env("ODOSHI_TOKEN", server.admin_token());
    assert!(in_background(client).await.contains("everything was as described"));
}

pub async fn a_shell_with_curl_finds_everything_as_described(on: On) {
    let server = Server::start(on.options()).await;
    let mut client = Command::new("sh");
    client.arg(format!("{CLIENTS}/client.sh")).arg(&server.url).env("ODOSHI_TOKEN", server.admin_token());
    assert!(in_background(client).await.contains("everything was as described"));
}

/// What it tries is made from the document. What a target means is more than a schema can say, so that it isn't told that
/// whatever the schema allows must be accepted.
pub async fn a_tester_finds_no_answer_that_is_not_in_the_document(on: On) {
    let server = Server::start(on.options()).await;
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let document = server.folder.path().join("openapi.json");
    let text = reqwest::get(format!("{}/openapi.json", server.url)).await.unwrap().text().await.unwrap();
    std::fs::write(&document, text).unwrap();
    let mut validator = Command::new(&python);
    validator.args(["-m", "openapi_spec_validator"]).arg(&document);
    in_background(validator).await;

    // Something for the reading calls to find; and with something due, no check-in waits.
    let agent = server.enroll("tested", serde_json::json!({})).await;
    let found = serde_json::json!({"name": "t", "target": "TRUE", "operations": [{"module": "ping"}]});
    let id = server.submit(found).await;
    server.until_status(&id, "running").await;
    // The agent comes first, before anybody can disable it; revoking and removing last, since a tester that revokes its own
    // token finds nothing more. Events of an action go on for as long as it does: they are the other clients' to try.
    let revoking = ["--include-method", "DELETE"];
    let own = ["--include-path-regex", "^/v1/agent/", "--exclude-path", "/v1/agent/stream"];
    let rest = [
        "--exclude-path-regex",
        "^/v1/agent/(commands|received|results|stream)|/events$",
        "--exclude-method",
        "DELETE",
    ];
    let admin = server.admin_token();
    for (token, selected) in [(&agent, &own[..]), (&admin, &rest[..]), (&admin, &revoking[..])] {
        let mut tester = Command::new(&python);
        tester
            .args(["-m", "schemathesis.cli", "run"])
            .arg(&document)
            .args(["--url", &server.url, "--max-examples", by_length("20", "100"), "--no-color", "--checks", "all"])
            // The same cases each time: a change that breaks something is found by whoever makes it.
            .args(["--seed", &std::env::var("ODOSHI_TEST_SEED").unwrap_or_else(|_| "1".into())])
            .args(["--exclude-checks", "positive_data_acceptance", "--request-timeout", "240"])
            .args(selected)
            // Its configuration takes the token from the environment; arguments can be seen by everybody.
            .env("ODOSHI_TOKEN", token)
            .current_dir(CLIENTS);
        in_background(tester).await;
    }
}
