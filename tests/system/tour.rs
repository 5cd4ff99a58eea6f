//! The documents for beginners: their command blocks are run in their order, as they stand, in one shell, and print what
//! stands below them.

use crate::cluster::free_port;
use crate::support::program;
use regex::Regex;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A block of commands, and what it prints, if that is shown.
struct Step {
    line: usize,
    commands: String,
    prints: Option<String>,
}

/// The blocks of a document. Those that build or test the project itself are left out.
fn steps(text: &str) -> Vec<Step> {
    let (mut steps, mut lines) = (Vec::<Step>::new(), text.lines().enumerate());
    while let Some((line, text)) = lines.next() {
        let Some(language) = text.trim_start().strip_prefix("```").filter(|language| !language.is_empty()) else {
            continue;
        };
        let block: Vec<&str> = lines.by_ref().map(|(_, text)| text).take_while(|text| text.trim() != "```").collect();
        let block = block.join("\n") + "\n";
        match (language, steps.last_mut()) {
            ("sh", _) if ["cargo ", "scripts/"].iter().any(|of_project| block.starts_with(of_project)) => {}
            ("sh", _) => steps.push(Step { line: line + 1, commands: block, prints: None }),
            ("text" | "json", Some(step)) if step.prints.is_none() => step.prints = Some(block),
            _ => {}
        }
    }
    steps
}

/// Without what differs from run to run: ids, times, durations, tokens; and spaces.
fn alike(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, instead) in [
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
        (r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?( [+-]\d\d:\d\d|Z)?", "TIME"),
        (r"\b\d+\.\ds\b", "DURATION"),
        (r"odoshi_[A-Za-z0-9_-]{43}", "TOKEN"),
        (r"whsec_[A-Za-z0-9+/=]{44}", "SECRET"),
        (r#""version":\s*"[^"]*""#, "VERSION"),
        (r"\s+", ""),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, instead).into_owned();
    }
    text
}

/// Runs a document's steps.
fn run(document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let steps = steps(&std::fs::read_to_string(path).unwrap());
    assert!(!steps.is_empty(), "{document} has no commands");
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let mut script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n".to_owned();
    for step in &steps {
        script += &step.commands.replace("7401", &port);
        script += "echo '@@ the end of a step'\n";
    }
    let script_path = folder.path().join("tour.sh");
    std::fs::write(&script_path, script).unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(program(), bin.join("odoshi")).unwrap();
    let errors = std::fs::File::create(folder.path().join("errors")).unwrap();
    let work = folder.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let mut shell = Command::new("timeout");
    // A safety net.
    shell.args(["--kill-after=10", "240", "bash"]).arg(&script_path).current_dir(&work);
    shell.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    shell.env("ODOSHI__HTTP__LISTEN", format!("127.0.0.1:{port}"));
    shell.env("ODOSHI_SERVER", format!("http://127.0.0.1:{port}"));
    shell.env_remove("ODOSHI_TOKEN").stdin(Stdio::null()).stderr(errors);
    let output = shell.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).replace(&port, "7401");
    let errors = std::fs::read_to_string(folder.path().join("errors")).unwrap();
    let parts: Vec<&str> = printed.split("@@ the end of a step\n").collect();
    for (step, printed) in steps.iter().zip(&parts) {
        let Some(expected) = &step.prints else { continue };
        assert_eq!(alike(printed), alike(expected), "{document}:{}: {printed}\n{errors}", step.line);
    }
    let last = steps.get(parts.len() - 1).map_or(0, |step| step.line);
    assert!(output.status.success() && parts.len() == steps.len() + 1, "{document}:{last}: {printed}\n{errors}");
}

/// Runs it on a thread of its own, since it blocks.
async fn walk(document: &'static str) {
    let walking = tokio::task::spawn_blocking(move || run(document));
    tokio::time::timeout(Duration::from_secs(600), walking).await.expect("it ends").unwrap();
}

#[actix_rt::test]
async fn the_readme_works_as_it_stands() {
    walk("README.md").await;
}

#[actix_rt::test]
async fn the_quick_start_works_as_it_stands() {
    walk("docs/QUICKSTART.md").await;
}

#[actix_rt::test]
async fn the_document_on_agents_works_as_it_stands() {
    walk("docs/AGENTS.md").await;
}

#[actix_rt::test]
async fn the_document_on_actions_works_as_it_stands() {
    walk("docs/ACTIONS.md").await;
}

#[test]
fn no_command_that_somebody_may_paste_begins_with_a_prompt() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let documents = documents.chain(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root.join(name)));
    for path in documents.filter(|path| path.extension().is_some_and(|ending| ending == "md")) {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            assert!(!line.starts_with("$ "), "{}:{}", path.display(), number + 1);
        }
    }
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let link = Regex::new(r"\]\(([^)#\s]*)(#[^)\s]*)?\)").unwrap();
    // As GitHub makes them from headings.
    let anchor = |heading: &str| -> String {
        let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
        heading.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    let documents = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let documents = documents.chain(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root.join(name)));
    for path in documents.filter(|path| path.extension().is_some_and(|ending| ending == "md")) {
        let text = std::fs::read_to_string(&path).unwrap();
        for found in link.captures_iter(&text) {
            let (to, place) = (&found[1], found.get(2).map(|place| &place.as_str()[1..]));
            if to.contains("://") {
                continue;
            }
            let target = if to.is_empty() { path.clone() } else { path.parent().unwrap().join(to) };
            assert!(target.exists(), "{}: {to}", path.display());
            if let Some(place) = place.filter(|_| target.extension().is_some_and(|ending| ending == "md")) {
                let headings = std::fs::read_to_string(&target).unwrap();
                let anchors: Vec<String> = headings.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
                // Of equal ones, all but the first have a number.
                let count = |name: &str| anchors.iter().filter(|anchor| *anchor == name).count();
                let numbered =
                    place.rsplit_once('-').and_then(|(name, number)| Some((name, number.parse::<usize>().ok()?)));
                let has = count(place) > 0 || numbered.is_some_and(|(name, number)| count(name) > number);
                assert!(has, "{}: {to}#{place}", path.display());
            }
        }
    }
}
