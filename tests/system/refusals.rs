//! One value that the store doesn't take: it gets its error, and nobody else notices. Triggers in the database play the part
//! of the value; what they say is in no language that the server knows.

use crate::support::{On, Server, WireAgent, eventually, mostly_waits, success};
use serde_json::{Value, json};

/// Makes the database fail whenever a row of a table meets a condition.
fn fails(server: &Server, on: On, table: &str, condition: &str, (code, said): (&str, &str)) {
    let trigger = match on {
        On::Sqlite => {
            format!(
                "CREATE TRIGGER poison BEFORE INSERT ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{said}'); END"
            )
        }
        On::Postgres => format!(
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             RAISE 'нельзя' USING ERRCODE = '{code}'; END $$; \
             CREATE TRIGGER poison BEFORE INSERT ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION poison()"
        ),
    };
    server.sql_write().execute(&trigger);
}

/// The database says that the value is at fault.
const REFUSED: (&str, &str) = ("22021", "no such character");
/// The same, but it looks as if that could pass.
const TROUBLED: (&str, &str) = ("58030", "disk I/O error");

fn document(target: &str) -> Value {
    json!({ "name": "n", "target": target, "operations": [{ "module": "ping" }] })
}

/// Two connected agents that each have a command; the results of the first one can't be stored.
async fn two_agents(server: &mut Server, on: On, fault: (&str, &str)) -> [(WireAgent, Value); 2] {
    let tokens = [server.enroll("poison", json!({})).await, server.enroll("good", json!({})).await];
    let no = server.sql().number("SELECT no AS n FROM agents WHERE name = 'poison'");
    fails(server, on, "outcomes", &format!("NEW.agent_no = {no}"), fault);
    let mut agents =
        [WireAgent::hello(&server.url, &tokens[0], 16).await, WireAgent::hello(&server.url, &tokens[1], 16).await];
    server.submit(document("TRUE")).await;
    let commands = [agents[0].commands().await.remove(0), agents[1].commands().await.remove(0)];
    let [poison, good] = agents;
    let [first, second] = commands;
    [(poison, first), (good, second)]
}

pub async fn a_result_that_the_store_refuses_is_rejected_and_stops_nobody(on: On) {
    let mut server = Server::start(on.options()).await;
    let [(mut poison, first), (mut good, second)] = two_agents(&mut server, on, REFUSED).await;
    poison.succeed(&first).await;
    good.succeed(&second).await;
    let stored = good.expect("stored").await;
    assert_eq!(stored["commands"][0]["action"], second["action"], "{stored}");
    let refused = poison.expect("stored").await;
    assert_eq!(refused["rejected"][0]["action"], first["action"], "{refused}");
    assert!(refused["commands"].as_array().is_none_or(Vec::is_empty), "{refused}");
}

pub async fn a_result_that_keeps_failing_stops_nobody_is_shown_and_is_rejected_in_the_end(on: On) {
    mostly_waits();
    let mut server = Server::start(on.options()).await;
    let [(mut poison, first), (mut good, second)] = two_agents(&mut server, on, TROUBLED).await;
    poison.succeed(&first).await;
    good.succeed(&second).await;
    let stored = good.expect("stored").await;
    assert_eq!(stored["commands"][0]["action"], second["action"], "{stored}");
    // Nothing else is written now, and so it may be the store that is troubled.
    let readiness = eventually("the outcomes to be shown as stalled", || async {
        let (status, readiness) = server.readyz().await?;
        let stalled = readiness["stalled"].as_array()?.iter().any(|stalled| {
            stalled["actor"] == "outcomes" && stalled["seconds"].as_u64() >= Some(10) && stalled["error"].is_string()
        });
        stalled.then_some((status, readiness))
    })
    .await;
    assert_eq!(readiness.0, 200, "actions are accepted all the same: {}", readiness.1);
    let metrics = server.metrics().await;
    let gauge = r#"odoshi_actor_stalled_seconds{actor="outcomes"} "#;
    let seconds = metrics.lines().find_map(|line| line.strip_prefix(gauge)?.parse::<f64>().ok());
    assert!(seconds.is_some_and(|seconds| seconds >= 10.0), "{metrics}");
    // Others are written, time and again, and so it is not.
    let refused = {
        let mut refused = std::pin::pin!(poison.expect("stored"));
        loop {
            let work = async {
                server.submit(document("name = 'good'")).await;
                for command in good.commands().await {
                    good.send(json!({ "type": "results", "results": [success(&command)] })).await;
                    good.expect("stored").await;
                }
            };
            tokio::select! {
                refused = &mut refused => break refused,
                () = work => {}
            }
        }
    };
    assert_eq!(refused["rejected"][0]["action"], first["action"], "{refused}");
    eventually("nothing to be stalled", || async {
        let (_, readiness) = server.readyz().await?;
        readiness["stalled"].as_array()?.is_empty().then_some(())
    })
    .await;
}

pub async fn a_file_that_cannot_be_stored_stops_no_other(on: On) {
    let server = Server::start(on.options()).await;
    fails(&server, on, "actions", "NEW.name = 'poison'", TROUBLED);
    let poison = json!({ "name": "poison", "target": "TRUE", "operations": [{ "module": "ping" }] }).to_string();
    server.drop_file("poison.json", &poison);
    let failed = server.spool("failed").join("poison.json.error");
    let mut others = 0;
    eventually("the file to fail, with its error beside it", || {
        others += 1;
        let other = format!("good-{others}.json");
        server.drop_file(&other, &document("TRUE").to_string());
        let (done, failed) = (server.spool("done").join(other), &failed);
        async move {
            eventually("another file to be stored", || async { done.exists().then_some(()) }).await;
            failed.exists().then_some(())
        }
    })
    .await;
    assert!(others >= 8, "{others} others were stored, and it was given up");
    assert_eq!(server.sql().number("SELECT count(*) AS n FROM actions WHERE name = 'poison'"), 0);
}
