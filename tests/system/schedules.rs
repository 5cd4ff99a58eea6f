//! Recurring actions, on the server as it runs.

use crate::cluster;
use crate::nodes::Cluster;
use crate::support::{
    AgentProcess, On, Server, ServerOptions, WireAgent, by_length, eventually, mostly_waits, until_reached,
};
use futures_util::StreamExt;
use odoshi::domain::time::Timestamp;
use rand::RngExt;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

/// A schedule document with these keys changed; null ones are left out.
fn document(name: &str, changes: Value) -> Value {
    let action = json!({"name": "n", "target": "TRUE", "operations": [{"module": "ping"}]});
    let mut document = json!({"name": name, "every": "1s", "action": action});
    for (key, value) in changes.as_object().unwrap() {
        document[key] = value.clone();
    }
    document.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    document
}

async fn add(server: &Server, document: Value) -> Value {
    let (status, schedule) = server.call("POST", "/v1/schedules", Some(document)).await;
    assert_eq!(status, 201, "{schedule}");
    schedule
}

async fn show(server: &Server, name: &str) -> Value {
    let (status, schedule) = server.call("GET", &format!("/v1/schedules/{name}"), None).await;
    assert_eq!(status, 200, "{schedule}");
    schedule
}

/// A call with a header, whose answer's headers matter.
async fn call_with(server: &Server, method: Method, path: &str, header: (&str, &str), body: Value) -> Response {
    let request = reqwest::Client::new().request(method, format!("{}{path}", server.url));
    request.bearer_auth(server.admin_token()).header(header.0, header.1).json(&body).send().await.unwrap()
}

pub async fn a_schedule_is_kept_changed_previewed_and_removed(on: On) {
    let server = Server::start(on.options()).await;
    let nightly = document("nightly", json!({"every": null, "cron": "0 2 * * *", "timezone": "Europe/Stockholm"}));
    let added = add(&server, nightly.clone()).await;
    assert_eq!((added["name"].as_str(), added["cron"].as_str()), (Some("nightly"), Some("0 2 * * *")));
    assert_eq!((added["created_by"].as_str(), added["paused"].as_bool()), (Some("the first admin"), Some(false)));
    assert_eq!((added["occurrences"].clone(), added["missed"].clone()), (json!([]), json!([])));
    assert!(added["next_at"].is_string() && added.get("last_at").is_none());
    assert_eq!(server.call("POST", "/v1/schedules", Some(nightly.clone())).await.0, 409);
    for (changes, place) in [
        (json!({"cron": "0 2 * * *"}), "every: cron is given too"),
        (json!({"timezone": "Europe/Nowhere", "every": null, "cron": "0 2 * * *"}), "timezone: "),
        (json!({"every": null, "cron": "0 0 31 2 *"}), "cron: "),
        (json!({"more": 1}), "more"),
    ] {
        let (status, problem) = server.call("POST", "/v1/schedules", Some(document("bad", changes))).await;
        assert_eq!(status, 422, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(place), "{problem}");
    }

    // The shown document can be put back.
    let path = "/v1/schedules/nightly";
    let get = call_with(&server, Method::GET, path, ("Accept", "*/*"), Value::Null).await;
    let tag = get.headers()["ETag"].to_str().unwrap().to_owned();
    let mut shown = get.json::<Value>().await.unwrap()["schedule"].clone();
    let put = call_with(&server, Method::PUT, path, ("If-Match", &tag), shown.clone()).await;
    assert_eq!(put.status(), 200);
    let second = put.headers()["ETag"].to_str().unwrap().to_owned();
    shown["cron"] = "0 3 * * *".into();
    if second != tag {
        assert_eq!(call_with(&server, Method::PUT, path, ("If-Match", &tag), shown.clone()).await.status(), 412);
    }
    assert_eq!(call_with(&server, Method::PUT, path, ("If-Match", &second), shown.clone()).await.status(), 200);
    for wrong in [second.as_str(), "\"x\"", "nothing"] {
        shown["cron"] = "0 4 * * *".into();
        let put = call_with(&server, Method::PUT, path, ("If-Match", wrong), shown.clone()).await;
        assert_eq!(put.status(), 412, "{wrong}");
        assert_eq!(put.json::<Value>().await.unwrap()["type"], "urn:odoshi:problem:precondition-failed");
    }
    assert_eq!(show(&server, "nightly").await["cron"], "0 3 * * *");
    let absent = ("If-None-Match", "*");
    assert_eq!(call_with(&server, Method::PUT, path, absent, shown.clone()).await.status(), 412);
    let pause = format!("{path}/pause");
    assert_eq!(call_with(&server, Method::POST, &pause, ("If-Match", "\"0-0\""), Value::Null).await.status(), 412);
    assert_eq!(call_with(&server, Method::DELETE, path, ("If-Match", "\"0-0\""), Value::Null).await.status(), 412);
    // A pause lasts over a document that doesn't speak of it.
    assert_eq!(server.call("POST", &pause, None).await.0, 200);
    shown.as_object_mut().unwrap().remove("paused");
    assert_eq!(server.call("PUT", path, Some(shown.clone())).await.1["paused"], true);
    shown["paused"] = false.into();
    assert_eq!(server.call("PUT", path, Some(shown.clone())).await.1["paused"], false);
    let (status, problem) = server.call("PUT", "/v1/schedules/other", Some(shown.clone())).await;
    assert_eq!(status, 422, "{problem}");
    let (status, _) = server.call("PUT", "/v1/schedules/other", Some(document("other", json!({"every": "1d"})))).await;
    assert_eq!(status, 201);
    // One that is over may be stored again as it is.
    let soon = Timestamp::of_this_machine().plus(Duration::from_secs(2));
    let once = document("once", json!({"every": null, "at": soon}));
    assert_eq!(server.call("PUT", "/v1/schedules/once", Some(once.clone())).await.0, 201);
    eventually("it to be made", || async { show(&server, "once").await["last_at"].as_str().map(|_| ()) }).await;
    assert_eq!(server.call("PUT", "/v1/schedules/once", Some(once.clone())).await.0, 200);
    assert_eq!(server.call("DELETE", "/v1/schedules/once", None).await.0, 204);
    assert_eq!(server.call("PUT", "/v1/schedules/once", Some(once)).await.0, 422);

    // Clocks go forward on 29 March 2026 and back on 25 October.
    let preview = async |name: &str, after: &str| {
        let path = format!("/v1/schedules/{name}/preview?count=2&after={after}");
        let (status, preview) = server.call("GET", &path, None).await;
        assert_eq!(status, 200, "{preview}");
        preview
    };
    let spring = document("spring", json!({"every": null, "cron": "30 2 * * *", "timezone": "Europe/Stockholm"}));
    add(&server, spring.clone()).await;
    let shifted = preview("spring", "2027-03-27T12:00:00Z").await;
    let lines = json!([
        {"at": "2027-03-28T01:00:00.000Z", "local": "2027-03-28T03:00:00+02:00", "note": "shifted"},
        {"at": "2027-03-29T00:30:00.000Z", "local": "2027-03-29T02:30:00+02:00"},
    ]);
    assert_eq!(shifted["occurrences"], lines);
    assert!(shifted["tzdata"]["version"].as_str().unwrap() >= "2026a", "{shifted}");
    assert_eq!(server.readyz().await.unwrap().1["tzdata"], shifted["tzdata"]);
    let (status, unstored) =
        server.call("POST", "/v1/schedules/preview?count=2&after=2027-03-27T12:00:00Z", Some(spring)).await;
    assert_eq!((status, unstored["occurrences"].clone()), (200, lines));
    assert_eq!(server.call("GET", "/v1/schedules/spring/preview?count=0", None).await.0, 400);
    assert_eq!(server.call("GET", "/v1/schedules/spring/preview?after=never", None).await.0, 400);

    let (_, page) = server.call("GET", "/v1/schedules?limit=2", None).await;
    let names: Vec<&str> =
        page["schedules"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!((names, page["next"].as_str()), (vec!["nightly", "other"], Some("other")));
    assert_eq!(server.call("DELETE", "/v1/schedules/other", None).await.0, 204);
    assert_eq!(server.call("DELETE", "/v1/schedules/other", None).await.0, 404);
    assert_eq!(server.call("GET", "/v1/schedules/other", None).await.0, 404);
    let (_, viewer) = server.call("POST", "/v1/tokens", Some(json!({"role": "viewer"}))).await;
    let viewer = viewer["token"].as_str().unwrap();
    assert_eq!(server.call_as(viewer, "GET", "/v1/schedules/spring/preview", None).await.0, 200);
    assert_eq!(server.call_as(viewer, "POST", "/v1/schedules/spring/trigger", None).await.0, 403);
}

pub async fn agents_get_each_occurrence_with_its_time(on: On) {
    mostly_waits();
    let server = Server::start(on.options()).await;
    let token = server.enroll_token().await;
    let _agent = AgentProcess::start(&server.url, "a", &[], server.folder.path(), &token);
    let argv = ["sh", "-c", "echo $ODOSHI_SCHEDULED_FOR"];
    let action = json!({"name": "n", "target": "TRUE", "expires_after": "1h",
        "operations": [{"module": "exec", "parameters": {"argv": argv}}]});
    add(&server, document("s", json!({"action": action, "overlap": "allow"}))).await;
    let occurrences = eventually("three occurrences that are completed", || async {
        let shown = show(&server, "s").await["occurrences"].as_array().unwrap().clone();
        let ended = shown.into_iter().filter(|one| one["status"] == "completed").collect::<Vec<_>>();
        (ended.len() >= 3).then_some(ended)
    })
    .await;
    for occurrence in occurrences {
        let id = occurrence["action"].as_str().unwrap();
        let view = server.action(id).await;
        assert_eq!((&view["scheduled_for"], &view["created_by"]), (&occurrence["at"], &json!("schedule:s")));
        let commands = server.commands(id).await;
        if let [command] = commands.as_slice() {
            let said = command["results"][0]["output"]["stdout"].as_str().unwrap().trim();
            assert_eq!(Some(said), occurrence["at"].as_str());
        }
    }
    // The frame says it too. A trigger works while it is paused, and its repetition is the same one.
    assert_eq!(server.call("POST", "/v1/schedules/s/pause", None).await.1["paused"], true);
    let wire = server.enroll("wire", json!({})).await;
    let mut wire = WireAgent::hello(&server.url, &wire, 16).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let trigger = call_with(&server, Method::POST, "/v1/schedules/s/trigger", ("Idempotency-Key", "k"), json!({}));
        let answer = trigger.await;
        assert_eq!(answer.status(), 202);
        ids.push(answer.json::<Value>().await.unwrap()["action"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids[0], ids[1]);
    // The key is that schedule's alone.
    add(&server, document("other", json!({"every": "1d", "action": action}))).await;
    let other = call_with(&server, Method::POST, "/v1/schedules/other/trigger", ("Idempotency-Key", "k"), json!({}));
    assert_eq!(other.await.status(), 422);
    let command = loop {
        let commands = wire.commands().await;
        if let Some(command) = commands.iter().find(|command| command["action"] == ids[0].as_str()) {
            break command.clone();
        }
    };
    let shown = show(&server, "s").await;
    let triggered: Vec<&Value> =
        shown["occurrences"].as_array().unwrap().iter().filter(|one| one["triggered"] == true).collect();
    assert_eq!(triggered.len(), 1);
    assert_eq!((&triggered[0]["at"], &triggered[0]["action"]), (&command["scheduled_for"], &json!(ids[0])));
    assert!(shown.get("next_at").is_none());
    assert!(server.call("POST", "/v1/schedules/s/resume", None).await.1["next_at"].is_string());
}

pub async fn an_agent_that_is_away_holds_up_no_other(on: On) {
    mostly_waits();
    let server = Server::start(on.options()).await;
    let here = server.enroll("here", json!({})).await;
    server.enroll("away", json!({})).await;
    let mut here = WireAgent::hello(&server.url, &here, 16).await;
    let action = json!({"name": "n", "target": "TRUE", "operations": [{"module": "ping"}], "expires_after": "1h"});
    add(&server, document("s", json!({"every": "5s", "overlap": "skip", "action": action}))).await;
    let mut times = Vec::new();
    while times.len() < 3 {
        for command in here.commands().await {
            times.push(command["scheduled_for"].as_str().unwrap().to_owned());
            here.succeed(&command).await;
        }
    }
    let shown = show(&server, "s").await;
    let left: Vec<i64> = times.windows(2).map(|pair| seconds(&pair[1]) - seconds(&pair[0])).collect();
    // A machine that is too busy may take longer than five seconds to write down that the other one is away.
    if shown["missed"] == json!([]) {
        assert_eq!(left, [5, 5]);
    }
    assert!(left.iter().all(|seconds| seconds % 5 == 0), "{left:?}");
}

fn seconds(time: &str) -> i64 {
    Timestamp::parse(time).unwrap().0 / 1_000
}

/// Adds schedules of every second that begin together, whose occurrences have no agents and are all made, late or not.
async fn add_many(server: &Server, number: usize) {
    let starts_at = Timestamp::of_this_machine().plus(Duration::from_secs(2 + number as u64 / 100));
    let action = json!({"name": "n", "target": "name = 'nobody'", "operations": [{"module": "ping"}]});
    let misfire = json!({"policy": "all", "max_age": "1h", "limit": 1000});
    let changes = json!({"starts_at": starts_at, "overlap": "allow", "misfire": misfire, "action": action});
    futures_util::stream::iter(0..number)
        .for_each_concurrent(8, |n| {
            let document = document(&format!("s{n:04}"), changes.clone());
            async move { drop(add(server, document).await) }
        })
        .await;
}

/// Waits until the schedules have made occurrences up to so many seconds after the first.
async fn until_made(server: &Server, schedules: usize, seconds: i64) {
    let query = format!(
        "SELECT count(*) AS n FROM schedules s WHERE s.last_at >= (SELECT min(occurs_at) FROM occurrences) + {seconds}000"
    );
    until_reached("schedules to be at their time", schedules, || server.sql().number(&query) as usize).await;
}

/// Occurrences are made at the beginning of each second: what comes after them would never meet them.
async fn at_any_moment() {
    let millis = rand::rng().random_range(500..1_200);
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Pauses all schedules, and checks that each second of each has exactly one occurrence with an action of its own. Says how
/// late these were, the first seconds apart, when nothing had happened yet.
async fn check_made(server: &Server, schedules: usize, undisturbed: i64) {
    for n in 0..schedules {
        let (status, _) = server.call("POST", &format!("/v1/schedules/s{n:04}/pause"), None).await;
        assert_eq!(status, 200);
    }
    let mut sql = server.sql();
    let made = sql.number("SELECT count(*) AS n FROM occurrences");
    assert_eq!(sql.number("SELECT count(DISTINCT action_no) AS n FROM occurrences"), made);
    assert_eq!(sql.number("SELECT count(*) AS n FROM actions WHERE scheduled_for IS NOT NULL"), made);
    assert_eq!(sql.number("SELECT count(*) AS n FROM dropped_occurrences"), 0);
    let gaps = "SELECT count(*) AS n FROM (SELECT schedule_no FROM occurrences GROUP BY schedule_no \
                HAVING (max(occurs_at) - min(occurs_at)) / 1000 + 1 <> count(*)) x";
    assert_eq!(sql.number(gaps), 0, "some second of a schedule has no occurrence");
    // One that was added after the common start begins at the next second.
    let late = "SELECT count(*) AS n FROM schedules s WHERE (SELECT min(occurs_at) FROM occurrences o \
                WHERE o.schedule_no = s.no AND o.occurs_at > s.created_at + 1000) = (SELECT min(occurs_at) \
                FROM occurrences o WHERE o.schedule_no = s.no) AND (SELECT min(occurs_at) FROM occurrences o \
                WHERE o.schedule_no = s.no) > (SELECT min(occurs_at) FROM occurrences)";
    assert_eq!(sql.number(late), 0, "a schedule has begun late");
    assert_eq!(sql.number("SELECT count(DISTINCT schedule_no) AS n FROM occurrences"), schedules as i64);
    let strangers = "SELECT count(*) AS n FROM occurrences o JOIN actions a ON a.no = o.action_no \
                     WHERE a.scheduled_for <> o.occurs_at";
    assert_eq!(sql.number(strangers), 0);
    let begin = sql.number("SELECT min(occurs_at) AS n FROM occurrences");
    for (what, until) in [("before anything happened", begin + undisturbed * 1_000), ("in all", i64::MAX)] {
        let made = sql.number(&format!("SELECT count(*) AS n FROM occurrences WHERE occurs_at < {until}"));
        let late = [50, 99, 100].map(|part| {
            let offset = (made * part / 100).min(made - 1);
            sql.number(&format!(
                "SELECT made_at - occurs_at AS n FROM occurrences WHERE occurs_at < {until} \
                 ORDER BY made_at - occurs_at LIMIT 1 OFFSET {offset}"
            ))
        });
        println!("{made} occurrences of {schedules} schedules {what}: late by {late:?} ms (median, 99 %, all)");
    }
}

pub async fn a_kill_in_the_middle_makes_no_occurrence_twice_and_loses_none(on: On) {
    mostly_waits();
    let schedules = by_length(20, 1_000);
    let mut server = Server::start(on.options()).await;
    add_many(&server, schedules).await;
    for seconds in by_length(vec![1, 3, 5], (1..20).map(|n| 3 * n).collect()) {
        until_made(&server, schedules, seconds).await;
        at_any_moment().await;
        server.kill();
        server.restart().await;
    }
    until_made(&server, schedules, by_length(8, 62)).await;
    check_made(&server, schedules, 1).await;
}

#[actix_rt::test]
async fn nodes_make_each_occurrence_once_though_one_dies_one_freezes_and_the_database_restarts() {
    mostly_waits();
    let schedules = by_length(50, 1_000);
    let database = tokio::task::spawn_blocking(|| cluster::own(&[])).await.unwrap();
    let options = ServerOptions { cluster: Some(database), ..ServerOptions::default() };
    // A node that is merely slow isn't silent for so long.
    let options = options.with("ODOSHI__NODE__HEARTBEAT", "500ms").with("ODOSHI__NODE__DEAD_AFTER", "20s");
    let mut cluster = Cluster::start(options).await;
    add_many(&cluster.servers[0], schedules).await;
    until_made(&cluster.servers[0], schedules, by_length(2, 20)).await;
    at_any_moment().await;
    cluster.servers[1].kill();
    let frozen = nix::unistd::Pid::from_raw(cluster.servers[2].pid());
    nix::sys::signal::kill(frozen, nix::sys::signal::Signal::SIGSTOP).unwrap();
    until_made(&cluster.servers[0], schedules, by_length(28, 50)).await;
    nix::sys::signal::kill(frozen, nix::sys::signal::Signal::SIGCONT).unwrap();
    let restarting = tokio::task::spawn_blocking(move || {
        database.kill();
        database.resume();
    });
    restarting.await.unwrap();
    // A node that was away for too long has ended.
    for server in &mut cluster.servers {
        if !server.is_running() {
            server.restart().await;
        }
    }
    until_made(&cluster.servers[0], schedules, by_length(32, 62)).await;
    check_made(&cluster.servers[0], schedules, by_length(2, 20)).await;
}

pub async fn new_zone_data_are_used_while_the_server_runs(on: On) {
    mostly_waits();
    let folder = tempfile::tempdir().unwrap();
    let zone = folder.path().join("Europe");
    std::fs::create_dir(&zone).unwrap();
    let system = Path::new("/usr/share/zoneinfo");
    symlink(system.join("Europe/Stockholm"), zone.join("Stockholm")).unwrap();
    std::fs::write(folder.path().join("tzdata.zi"), "# version 2098a\n").unwrap();
    let server = Server::start(on.options().with("TZDIR", folder.path().to_str().unwrap())).await;
    let times = json!({"every": null, "cron": "0 12 1 7 *", "timezone": "Europe/Stockholm"});
    let before = add(&server, document("s", times)).await;
    assert!(before["next_at"].as_str().unwrap().ends_with("T10:00:00.000Z"), "{before}");
    assert_eq!(server.readyz().await.unwrap().1["tzdata"], json!({"version": "2098a", "source": "system"}));
    // From now on, Stockholm has Tokyo's time.
    std::fs::remove_file(zone.join("Stockholm")).unwrap();
    symlink(system.join("Asia/Tokyo"), zone.join("Stockholm")).unwrap();
    std::fs::write(folder.path().join("tzdata.zi"), "# version 2098b\n").unwrap();
    eventually("the next time to come from the new data", || async {
        show(&server, "s").await["next_at"].as_str().unwrap().ends_with("T03:00:00.000Z").then_some(())
    })
    .await;
    let (_, preview) = server.call("GET", "/v1/schedules/s/preview?count=1", None).await;
    assert_eq!(preview["tzdata"], json!({"version": "2098b", "source": "system"}));
}
