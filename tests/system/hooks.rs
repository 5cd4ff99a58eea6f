//! Hooks, with a receiver in this process.

use crate::support::{On, Server, eventually, mostly_waits};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use odoshi::domain::agent::SigningSecret;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use std::net::SocketAddr;
use std::sync::Mutex;

/// What came: the message's id, and its body if the signature is right.
#[derive(Default)]
struct Seen {
    secret: String,
    events: Mutex<Vec<(String, Value)>>,
    /// How many of the next requests are answered 503.
    refuse: Mutex<u32>,
}

async fn receive(request: HttpRequest, body: web::Bytes, seen: web::Data<Seen>) -> HttpResponse {
    let headers: reqwest::header::HeaderMap = request
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("webhook-"))
        .map(|(name, value)| {
            let name: reqwest::header::HeaderName = name.as_str().parse().unwrap();
            (name, value.to_str().unwrap().parse().unwrap())
        })
        .collect();
    assert!(Webhook::new(&seen.secret).unwrap().verify(&body, &headers).is_ok(), "the signature is right");
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    let mut refuse = seen.refuse.lock().unwrap();
    if *refuse > 0 {
        *refuse -= 1;
        return HttpResponse::ServiceUnavailable().finish();
    }
    seen.events.lock().unwrap().push((id, serde_json::from_slice(&body).unwrap()));
    HttpResponse::Ok().finish()
}

fn receiver(seen: &web::Data<Seen>) -> SocketAddr {
    let seen = seen.clone();
    let app = move || App::new().app_data(seen.clone()).default_service(web::to(receive));
    let server = HttpServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
    let address = server.addrs()[0];
    actix_rt::spawn(server.run());
    address
}

/// An action that ends at once, since it matches no agent.
async fn ends(server: &Server) -> String {
    let document = json!({ "name": "n", "target": "name = 'nobody'", "operations": [{ "module": "ping" }] });
    let id = server.submit(document).await;
    server.until_status(&id, "completed").await;
    id
}

pub async fn an_event_is_delivered_across_a_kill_between_its_commit_and_its_sending(on: On) {
    mostly_waits();
    let secret = SigningSecret::random();
    let seen = web::Data::new(Seen { secret: secret.reveal().to_owned(), ..Seen::default() });
    let mut options = on.options().with("ODOSHI__SENDER__WEBHOOK__ALLOW", "127.0.0.0/8");
    let folder = tempfile::tempdir().unwrap();
    let secret_file = folder.path().join("secret");
    std::fs::write(&secret_file, secret.reveal()).unwrap();
    // It would be sent from here on, and is not.
    if cfg!(feature = "failpoints") {
        options = options.with("FAILPOINTS", "hooks.send=sleep(600000)");
    }
    let mut server = Server::prepare(options);
    let address = receiver(&seen);
    server.configure(&format!(
        "[[hook]]\nname = 'ops'\nurl = 'http://{address}/x'\nsecret_file = '{}'\non = ['action.ended']\n",
        secret_file.display()
    ));
    server.restart().await;
    let first = ends(&server).await;
    server.kill();
    server.unset("FAILPOINTS");
    *seen.refuse.lock().unwrap() = 2;
    server.restart().await;
    let second = ends(&server).await;
    // Each at least once; the id is the same for every attempt.
    eventually("both events to come", || async {
        let events = seen.events.lock().unwrap();
        let has = |id: &str| events.iter().any(|(_, body)| body["data"]["id"] == id);
        (has(&first) && has(&second)).then_some(())
    })
    .await;
    {
        let events = seen.events.lock().unwrap();
        for (id, body) in events.iter() {
            assert!(id.starts_with("msg_"), "{id}");
            assert_eq!((&body["type"], &body["data"]["status"]), (&json!("action.ended"), &json!("completed")));
            let same = events.iter().filter(|(_, other)| other["data"]["id"] == body["data"]["id"]);
            assert!(same.clone().all(|(other, _)| other == id), "one event, one id");
        }
    }
    let ops = eventually("the list to show that nothing waits", || async {
        let (status, list) = server.call("GET", "/v1/hooks", None).await;
        assert_eq!(status, 200, "{list}");
        let ops = list["hooks"].as_array().unwrap().iter().find(|hook| hook["name"] == "ops").cloned();
        ops.filter(|ops| ops["pending"] == 0)
    })
    .await;
    assert_eq!(ops["given_up"], 0, "{ops}");
}
