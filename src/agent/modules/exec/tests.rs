use super::*;
use crate::agent::config::{LimitsConfig, OutputConfig};
use crate::agent::modules::{StopReason, testing};
use crate::config::ByteSize;
use serde_json::{Value, json};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn exec(allow: &[&str]) -> Exec {
    configured(allow, &[], &[])
}

fn configured(allow: &[&str], env: &[&str], cwd: &[&Path]) -> Exec {
    let allow = allow.iter().map(ToString::to_string).collect();
    let env = env.iter().map(ToString::to_string).collect();
    let cwd = cwd.iter().map(|folder| folder.to_path_buf()).collect();
    let output = OutputConfig { stdout: 1000, stderr: 1000 };
    Exec::new(ExecConfig { allow, env, cwd }, Bounds { output, ..Bounds::default() })
}

async fn run(allow: &[&str], parameters: Value) -> Outcome {
    run_with(&exec(allow), &parameters.to_string()).await
}

async fn run_with(exec: &Exec, parameters: &str) -> Outcome {
    let (call, _tell) = testing::call(parameters, LONG);
    exec.call(call).await
}

#[tokio::test]
async fn it_gives_the_exit_code_and_both_outputs() {
    let outcome = run(&["sh"], json!({"argv": ["sh", "-c", "echo out; echo err >&2; exit 3"]})).await;
    assert!(!outcome.ok);
    assert_eq!(outcome.error.as_deref(), Some("exit code 3"));
    assert_eq!(testing::output(&outcome), json!({"exit_code": 3, "stdout": "out\n", "stderr": "err\n"}));

    let outcome = run(&["true"], json!({"argv": ["true"]})).await;
    assert!(outcome.ok && outcome.error.is_none());
    assert_eq!(testing::output(&outcome)["exit_code"], 0);
}

#[tokio::test]
async fn it_passes_environment_folder_and_input_and_no_shell_comes_between() {
    let script = "read line; echo \"$line $X $PWD $1\"";
    let parameters = json!({"argv": ["sh", "-c", script, "sh", "$HOME; *"],
        "env": {"X": "x"}, "cwd": "/", "stdin": "in\nput"});
    let outcome = run(&["*"], parameters).await;
    assert_eq!(testing::output(&outcome)["stdout"], "in x / $HOME; *\n");

    let outcome = run(&["cat"], json!({"argv": ["cat"]})).await;
    assert_eq!(testing::output(&outcome)["stdout"], "", "without stdin there is nothing to read");
}

#[tokio::test]
async fn a_program_that_is_not_allowed_does_not_run() {
    for (allow, parameters, error) in [
        (&[][..], json!({"argv": ["true"]}), "not allowed"),
        (&["true"], json!({"argv": ["/bin/true"]}), "not allowed"),
        (&["/bin/true"], json!({"argv": ["true"]}), "not allowed"),
        (&["./true"], json!({"argv": ["./true"], "cwd": "/bin"}), "absolute path"),
        (&["true"], json!({"argv": ["true"], "env": {"LD_PRELOAD": "/tmp/x.so"}}), "LD_PRELOAD"),
        (&["true"], json!({"argv": ["true"], "env": {"PATH": "/tmp"}}), "PATH"),
        (&["*"], json!({"argv": ["no-such-program-anywhere"]}), "PATH"),
        (&["*"], json!({"argv": ["/no/such/program"]}), "could not be run"),
        (&["*"], json!({"argv": []}), "argv"),
        (&["*"], json!({"argv": ["true"], "shell": true}), "shell"),
        (&["*"], json!(null), "parameters"),
    ] {
        let outcome = run(allow, parameters.clone()).await;
        let said = outcome.error.expect("an error");
        assert!(!outcome.ok && outcome.output.is_none(), "{parameters}");
        assert!(said.contains(error), "{parameters}: {said}");
    }
}

/// Each of these runs code of the action's choice in an allowed program, or changes which program
/// is found.
const HIJACKERS: [&str; 12] = [
    "BASH_ENV",
    "ENV",
    "PERL5OPT",
    "PYTHONPATH",
    "NODE_OPTIONS",
    "GIT_SSH_COMMAND",
    "GCONV_PATH",
    "LD_PRELOAD",
    "PATH",
    "HOME",
    "BASH_FUNC_true%%",
    "LD_LIBRARY_PATH",
];

#[tokio::test]
async fn an_action_sets_only_variables_that_the_agent_allows() {
    let dir = tempfile::tempdir().expect("a folder");
    let (script, proof) = (dir.path().join("allowed"), dir.path().join("proof"));
    std::fs::write(&script, "#!/bin/bash\necho \"$LESS\"\n").expect("a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let name = script.to_str().expect("UTF-8");
    let exec = configured(&[name], &["LESS"], &[]);
    for variable in HIJACKERS {
        let env = json!({ variable: format!("$(echo > {})", proof.display()) });
        let outcome = run_with(&exec, &json!({"argv": [name], "env": env}).to_string()).await;
        assert!(!proof.exists(), "{variable} ran something");
        let error = outcome.error.expect("an error");
        assert!(error.contains(variable) && error.contains("exec.env"), "{variable}: {error}");
    }
    let outcome = run_with(&exec, &json!({"argv": [name], "env": {"LESS": "more"}}).to_string()).await;
    assert_eq!(testing::output(&outcome)["stdout"], "more\n");
    // With `"*"`, these are allowed as well, except for invalid names and the agent's own variable.
    let outcome = run(&["*"], json!({"argv": [name], "env": {"BASH_ENV": "/dev/null", "LESS": "all"}})).await;
    assert_eq!(testing::output(&outcome)["stdout"], "all\n");
    let exec_all = configured(&["*"], &[], &[]);
    for (env, error) in [
        (r#"{"A=B": "x"}"#, "variable's name"),
        (r#"{"": "x"}"#, "variable's name"),
        (r#"{"A\u0000": "x"}"#, "variable's name"),
        (r#"{"A": "\u0000"}"#, "NUL"),
        (r#"{"A": "x", "A": "y"}"#, "A is there twice"),
        (r#"{"ODOSHI_RUN": "x"}"#, "set by the agent"),
        (r#"{"ODOSHI_SCHEDULED_FOR": "x"}"#, "set by the agent"),
    ] {
        let parameters = format!(r#"{{"argv": ["true"], "env": {env}}}"#);
        let outcome = run_with(&exec_all, &parameters).await;
        let said = outcome.error.expect("an error");
        assert!(said.contains(error), "{env}: {said}");
    }
}

#[tokio::test]
async fn a_program_gets_a_minimal_environment_of_the_agent() {
    let basics = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "ODOSHI_RUN"];
    for allow in [["env"], ["*"]] {
        let outcome = run(&allow, json!({"argv": ["env"]})).await;
        let text = testing::output(&outcome)["stdout"].as_str().expect("text").to_owned();
        let names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        assert!(names.contains(&"PATH") && names.contains(&"ODOSHI_RUN"), "{text}");
        let more: Vec<_> = names.iter().filter(|name| !basics.contains(name) && !name.starts_with("LC_")).collect();
        assert!(more.is_empty(), "{more:?}");
    }
    // Cargo sets this variable for tests. It is passed on if it is named.
    let exec = configured(&["env"], &["CARGO_MANIFEST_DIR"], &[]);
    let outcome = run_with(&exec, r#"{"argv": ["env"]}"#).await;
    let is_passed = testing::output(&outcome)["stdout"].as_str().expect("text").contains("CARGO_MANIFEST_DIR=");
    assert_eq!(is_passed, std::env::var_os("CARGO_MANIFEST_DIR").is_some());
}

#[tokio::test]
async fn a_program_is_started_only_in_folders_that_are_allowed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (inside, outside) = (dir.path().join("in"), dir.path().join("inside-not"));
    std::fs::create_dir_all(inside.join("sub")).expect("a folder");
    std::fs::create_dir(&outside).expect("a folder");
    std::os::unix::fs::symlink(&outside, inside.join("out")).expect("a link");
    std::os::unix::fs::symlink(inside.join("sub"), outside.join("in")).expect("a link");
    let exec = configured(&["pwd"], &[], &[&inside]);
    for (cwd, is_allowed) in [
        (inside.clone(), true),
        (inside.join("sub"), true),
        (inside.join("sub/../sub"), true),
        (outside.join("in"), true),
        (inside.join("out"), false),
        (inside.join("sub/../.."), false),
        (outside.clone(), false),
        (PathBuf::from("/"), false),
        (inside.join("missing"), false),
    ] {
        let outcome = run_with(&exec, &json!({"argv": ["pwd"], "cwd": cwd}).to_string()).await;
        assert_eq!(outcome.ok, is_allowed, "{}: {:?}", cwd.display(), outcome.error);
        if !is_allowed {
            let error = outcome.error.expect("an error");
            assert!(error.contains(cwd.to_str().expect("UTF-8")), "{error}");
        }
    }
    let outcome = run(&["pwd"], json!({"argv": ["pwd"], "cwd": inside})).await;
    assert!(outcome.error.expect("an error").contains("exec.cwd"), "none is allowed by default");
    assert!(run(&["pwd"], json!({"argv": ["pwd"]})).await.ok);
}

#[tokio::test]
async fn a_program_gets_no_more_than_its_limits() {
    let limits = LimitsConfig {
        memory: Some(ByteSize::mib(64)),
        cpu_time: Some(crate::domain::time::Span::secs(1)),
        open_files: Some(16),
        file_size: Some(ByteSize::kib(1)),
    };
    let bounds = Bounds { limits, ..Bounds::default() };
    let exec = Exec::new(ExecConfig { allow: vec!["sh".into()], ..ExecConfig::default() }, bounds);
    let run = async |script: &str| {
        let (call, _tell) = testing::call(&json!({"argv": ["sh", "-c", script]}).to_string(), LONG);
        exec.call(call).await
    };
    let outcome = run("ulimit -v; ulimit -t; ulimit -n; ulimit -f").await;
    // In kilobytes, seconds, files, and blocks of 512 bytes.
    assert_eq!(testing::output(&outcome)["stdout"], "65536\n1\n16\n2\n");
    let spinning = run("while :; do :; done").await;
    assert_eq!(spinning.error.as_deref(), Some("killed by SIGKILL"));
}

#[tokio::test]
async fn a_signal_is_named() {
    let outcome = run(&["sh"], json!({"argv": ["sh", "-c", "kill -SEGV $$"]})).await;
    assert!(!outcome.ok);
    assert_eq!(outcome.error.as_deref(), Some("killed by SIGSEGV"));
    assert_eq!(testing::output(&outcome)["exit_code"], Value::Null);
}

#[tokio::test]
async fn output_beyond_the_cap_is_read_and_dropped() {
    let outcome = run(&["sh"], json!({"argv": ["sh", "-c", "yes | head -c 1000000; echo end >&2"]})).await;
    assert!(outcome.ok && outcome.truncated);
    let output = testing::output(&outcome);
    assert_eq!(output["stdout"].as_str().map(str::len), Some(1000));
    assert_eq!(output["stderr"], "end\n");
}

/// Runs a script that starts a grandchild, waits until both live, calls `stop`, and checks that
/// both die.
async fn all_die(timeout: Duration, stop: impl FnOnce(tokio::sync::watch::Sender<Option<StopReason>>)) -> Outcome {
    let dir = tempfile::tempdir().expect("a folder");
    let fifo = dir.path().join("alive");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a named pipe");
    // Both processes hold the pipe open for writing, so it ends when both are dead.
    let script = format!("exec 3>{}; echo up >&3; echo partial; sleep 1000 & sleep 1000", fifo.display());
    let parameters = json!({"argv": ["sh", "-c", script]}).to_string();
    let (call, tell) = testing::call(&parameters, timeout);
    let exec = exec(&["sh"]);
    let running = tokio::spawn(async move { exec.call(call).await });
    let mut alive = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).expect("the named pipe");
    let mut said = Vec::new();
    let mut byte = [0; 3];
    loop {
        // Until the script opens it, the pipe has no writer and reads as ended.
        alive.readable().await.expect("readable");
        match alive.try_read(&mut byte) {
            Ok(0) => {
                assert!(!running.is_finished(), "it ended before it began");
                tokio::task::yield_now().await;
            }
            Ok(read) => {
                said.extend_from_slice(&byte[..read]);
                break;
            }
            Err(_) => {}
        }
    }
    stop(tell);
    let outcome = running.await.expect("no panic");
    tokio::io::AsyncReadExt::read_to_end(&mut alive, &mut said).await.expect("the end of both");
    assert_eq!(said, b"up\n");
    outcome
}

#[tokio::test]
async fn the_timeout_kills_grandchildren_too_and_keeps_what_was_written() {
    let mut kept = None;
    let outcome = all_die(Duration::from_secs(5), |tell| kept = Some(tell)).await;
    assert_eq!(outcome.stopped, Some(StopReason::TimedOut));
    assert_eq!(outcome.error.as_deref(), Some("timed out"));
    assert_eq!(testing::output(&outcome), json!({"exit_code": null, "stdout": "partial\n", "stderr": ""}));
}

#[tokio::test]
async fn a_cancel_kills_the_group_at_once() {
    let outcome = all_die(LONG, |tell| {
        tell.send_replace(Some(StopReason::Cancelled));
    })
    .await;
    assert_eq!(outcome.error.as_deref(), Some("cancelled"));
}

fn is_alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains(['Z', 'X']))
}

fn end(pid: &str) {
    let pid = nix::unistd::Pid::from_raw(pid.parse().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it lives");
}

#[tokio::test]
async fn what_a_program_left_in_the_background_lives_and_does_not_hold_up_its_run() {
    // One in its group and with its pipes, and one in its own session, like a daemon.
    for script in ["sleep 1000 & echo $!", "setsid sleep 1000 >/dev/null 2>&1 & echo $!; exit 3"] {
        let outcome = run(&["sh"], json!({"argv": ["sh", "-c", script]})).await;
        let output = testing::output(&outcome);
        let pid = output["stdout"].as_str().expect("text").trim();
        assert!(is_alive(pid), "{script}: {output}");
        end(pid);
    }
}

#[tokio::test]
async fn what_a_program_left_dies_when_a_signal_killed_it() {
    let outcome = run(&["sh"], json!({"argv": ["sh", "-c", "setsid sleep 1000 & echo $!; kill -9 $$"]})).await;
    assert_eq!(outcome.error.as_deref(), Some("killed by SIGKILL"));
    assert!(!is_alive(testing::output(&outcome)["stdout"].as_str().expect("text").trim()));
}
