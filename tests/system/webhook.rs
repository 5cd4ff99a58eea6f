//! Webhooks, against a receiver in this process.

use crate::support::{On, Server, ServerOptions, by_length, eventually, mostly_waits};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use odoshi::domain::agent::{Enrollment, SigningSecret};
use odoshi::store::NewAgent;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A request that came.
#[derive(Clone)]
struct Call {
    path: String,
    id: String,
    body: Value,
    verified: bool,
}

/// What the receiver has got and knows.
#[derive(Default)]
struct Seen {
    calls: Mutex<Vec<Call>>,
    /// The secrets of the agents that called, by path.
    secrets: Mutex<HashMap<String, String>>,
    /// The server's URL and the token of the agent `later`, which it reports with.
    report: Mutex<Option<(String, String)>>,
}

impl Seen {
    fn of(&self, path: &str) -> Vec<Call> {
        self.calls.lock().unwrap().iter().filter(|call| call.path == path).cloned().collect()
    }

    fn number(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

async fn receive(request: HttpRequest, body: web::Bytes, seen: web::Data<Seen>) -> HttpResponse {
    let path = request.path().trim_start_matches('/').to_owned();
    let headers: reqwest::header::HeaderMap = request
        .headers()
        .iter()
        .filter_map(|(name, value)| {
            Some((name.as_str().parse::<reqwest::header::HeaderName>().ok()?, value.to_str().ok()?.parse().ok()?))
        })
        .collect();
    let secret = seen.secrets.lock().unwrap().get(&path).cloned();
    let verified = secret.is_some_and(|secret| Webhook::new(&secret).unwrap().verify(&body, &headers).is_ok());
    let id = headers.get("webhook-id").map(|id| id.to_str().unwrap().to_owned()).unwrap_or_default();
    let command: Value = serde_json::from_slice(&body).unwrap_or_default();
    seen.calls.lock().unwrap().push(Call { path: path.clone(), id, body: command.clone(), verified });
    let calls = seen.of(&path).len();
    match path.as_str() {
        "text" => HttpResponse::Ok().body("done\n"),
        "empty" => HttpResponse::NoContent().finish(),
        "gone" => HttpResponse::Gone().body("bye"),
        "busy" if calls == 1 => HttpResponse::TooManyRequests().insert_header(("Retry-After", "1")).body("slow down"),
        "broken" if calls == 1 => HttpResponse::InternalServerError().finish(),
        "redirect" => HttpResponse::Found().insert_header(("Location", "/secret")).finish(),
        "forbidden" => HttpResponse::Forbidden().body("no\r\nway"),
        // The result comes before the answer to the request.
        "early" => {
            let Some((url, token)) = seen.report.lock().unwrap().clone() else { return HttpResponse::Ok().finish() };
            let result = json!({ "results": [crate::support::success(&command)] });
            let call = reqwest::Client::new().post(format!("{url}/v1/agent/results")).bearer_auth(token).json(&result);
            assert_eq!(call.send().await.unwrap().status(), 200);
            HttpResponse::Accepted().finish()
        }
        "later" => HttpResponse::Accepted().finish(),
        _ => HttpResponse::Ok().json(json!({ "path": path })),
    }
}

/// Listens on loopback; answers its address.
fn receiver(seen: &web::Data<Seen>) -> SocketAddr {
    // The test's own client is made without saying how it would speak TLS.
    rustls::crypto::ring::default_provider().install_default().ok();
    let seen = seen.clone();
    let app = move || App::new().app_data(seen.clone()).default_service(web::to(receive));
    let server = HttpServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
    let address = server.addrs()[0];
    actix_rt::spawn(server.run());
    address
}

/// Adds an agent; answers its token and its secret.
async fn add(server: &Server, name: &str, address: &str) -> (String, String) {
    let agent = json!({ "name": name, "transport": "webhook", "address": address });
    let (status, answer) = server.call("POST", "/v1/agents", Some(agent)).await;
    assert_eq!(status, 201, "{answer}");
    (answer["token"].as_str().unwrap().to_owned(), answer["secret"].as_str().unwrap().to_owned())
}

fn allowed(on: On) -> ServerOptions {
    on.options().with("ODOSHI__SENDER__WEBHOOK__ALLOW", "127.0.0.0/8, ::1")
}

fn of<'a>(commands: &'a [Value], agent: &str) -> &'a Value {
    commands.iter().find(|command| command["agent"] == agent).unwrap()
}

pub async fn what_a_receiver_answers_decides_what_becomes_of_a_command(on: On) {
    mostly_waits();
    let seen = web::Data::new(Seen::default());
    let address = receiver(&seen);
    let server = Server::start(allowed(on)).await;
    let names = ["json", "text", "empty", "gone", "busy", "broken", "redirect", "forbidden", "early", "later"];
    let mut tokens = HashMap::new();
    for name in names {
        let (token, secret) = add(&server, name, &format!("http://user:hunter2@{address}/{name}")).await;
        seen.secrets.lock().unwrap().insert(name.to_owned(), secret);
        tokens.insert(name, token);
    }
    *seen.report.lock().unwrap() = Some((server.url.clone(), tokens["early"].clone()));
    let operations = json!([{ "module": "deploy", "parameters": { "version": 7 } }]);
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": operations })).await;
    eventually("all but one to be final", || async {
        let action = server.action(&id).await;
        let counts = &action["counts"];
        (counts["sent"] == 1 && counts["succeeded"] == 6 && counts["failed"] == 3).then_some(())
    })
    .await;
    let commands = server.commands(&id).await;
    assert_eq!(of(&commands, "later")["status"], "sent");
    let later = seen.of("later")[0].body.clone();
    let result = json!({ "results": [crate::support::success(&later)] });
    assert_eq!(server.call_as(&tokens["later"], "POST", "/v1/agent/results", Some(result)).await.0, 200);
    let view = server.until_status(&id, "completed").await;
    assert_eq!((&view["counts"]["succeeded"], &view["counts"]["failed"]), (&json!(7), &json!(3)), "{view}");

    let commands = server.commands(&id).await;
    let output = |name: &str| of(&commands, name)["results"][0]["output"].clone();
    assert_eq!(output("json"), json!({ "path": "json" }));
    assert_eq!((output("text"), output("empty")), (json!("done\n"), Value::Null));
    assert_eq!(of(&commands, "json")["results"][0]["module"], "deploy");
    for (name, attempts) in [("busy", 2), ("broken", 2), ("json", 1)] {
        assert_eq!(of(&commands, name)["attempts"], attempts, "{name}: {}", of(&commands, name));
    }
    let error = |name: &str| of(&commands, name)["error"].as_str().unwrap().to_owned();
    assert_eq!(error("redirect"), "the agent answered 302 Found");
    assert_eq!(error("forbidden"), "the agent answered 403 Forbidden: no\\r\\nway");
    assert!(error("gone").contains("410"), "{}", error("gone"));
    assert!(seen.of("secret").is_empty(), "a redirect is not followed");
    assert_eq!(server.call("GET", "/v1/agents/gone", None).await.1["disabled"], true);
    assert_eq!(server.call("GET", "/v1/agents/json", None).await.1["disabled"], false);

    let calls = seen.calls.lock().unwrap().clone();
    assert!(calls.iter().all(|call| call.verified && call.id.starts_with("msg_") && call.id.len() == 36));
    assert!(calls.iter().all(|call| call.body["agent"] == call.path.as_str() && call.body["action"] == id.as_str()));
    let busy = seen.of("busy");
    assert_eq!((busy.len(), &busy[0].body["attempt"], &busy[1].body["attempt"]), (2, &json!(1), &json!(2)));
    assert_eq!(busy[0].id, busy[1].id, "attempts of a run have the same id");
    assert!(!server.log_text().contains("hunter2"), "passwords are not logged");
}

/// A listener that counts its connections and does something with each.
async fn listener<F: Future<Output = ()> + 'static>(
    each: impl Fn(tokio::net::TcpStream) -> F + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    actix_rt::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            actix_rt::spawn(each(stream));
        }
    });
    (address, count)
}

pub async fn special_addresses_are_not_called_whatever_the_proxy_unless_they_are_allowed(on: On) {
    mostly_waits();
    let seen = web::Data::new(Seen::default());
    let address = receiver(&seen);
    let (proxy, proxied) = listener(|stream| async { drop(stream) }).await;
    let mut options = on.options();
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"] {
        options = options.with(name, &format!("http://{proxy}"));
    }
    let mut server = Server::start(options).await;
    let port = address.port();
    let literals = ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "127.0.0.2"];
    let refused = ["0", "[::ffff:127.0.0.1]", "[::1]", "[::]", "169.254.169.254", "10.0.0.1", "[64:ff9b::7f00:1]"];
    for (at, host) in literals.iter().chain(&refused).enumerate() {
        add(&server, &format!("literal-{at}"), &format!("http://{host}:{port}/literal-{at}")).await;
    }
    add(&server, "name", &format!("http://localhost:{port}/name")).await;
    let document =
        |target: &str| json!({ "name": "n", "target": target, "operations": [{ "module": "m" }], "max_deliveries": 1 });
    let id = server.submit(document("TRUE")).await;
    let counts = server.until_status(&id, "completed").await["counts"].clone();
    assert_eq!(counts["failed"], literals.len() + refused.len(), "{counts}");
    assert_eq!(counts["undeliverable"], 1, "the name may have another address tomorrow: {counts}");
    let commands = server.commands(&id).await;
    for command in &commands {
        let error = command["error"].as_str().unwrap();
        assert!(error.contains("sender.webhook.allow does not include"), "{command}");
    }
    assert_eq!((seen.number(), proxied.load(Ordering::SeqCst)), (0, 0));

    server.terminate().await;
    server.set("ODOSHI__SENDER__WEBHOOK__ALLOW", "127.0.0.0/8");
    server.restart().await;
    let id = server
        .submit(document("name = 'literal-0' OR name = 'literal-1' OR name = 'literal-2' OR name = 'name'"))
        .await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 4);
    assert_eq!((seen.number(), proxied.load(Ordering::SeqCst)), (4, 0));
}

pub async fn hosts_that_hang_drip_or_close_hold_up_no_other(on: On) {
    mostly_waits();
    let seen = web::Data::new(Seen::default());
    let address = receiver(&seen);
    let (hanging, hung) = listener(|stream| async {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let (dripping, _) = listener(|mut stream| async move {
        let mut request = [0; 4096];
        if stream.read(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await.ok();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let (closing, _) = listener(|stream| async { drop(stream) }).await;
    let options = allowed(on).with("ODOSHI__SENDER__WEBHOOK__TIMEOUT", "2s");
    let server = Server::start(options).await;
    for n in 0..12 {
        add(&server, &format!("slow-{n}"), &format!("http://{hanging}/x")).await;
    }
    add(&server, "dripping", &format!("http://{dripping}/x")).await;
    add(&server, "closing", &format!("http://{closing}/x")).await;
    for n in 0..20 {
        add(&server, &format!("fine-{n}"), &format!("http://{address}/fine-{n}")).await;
    }
    let action = |target| json!({ "name": "n", "target": target, "operations": [{ "module": "m" }] });
    let mut document = action("NOT name LIKE 'fine-%'");
    document["max_deliveries"] = json!(1);
    let id = server.submit(document).await;
    eventually("the hanging host to be called", || async { (hung.load(Ordering::SeqCst) > 0).then_some(()) }).await;
    // On a busy machine a call of these may take longer than the timeout, and is made again.
    let fine = server.submit(action("name LIKE 'fine-%'")).await;
    let view = server.until_status(&fine, "completed").await;
    assert_eq!(view["counts"]["succeeded"], 20, "{view}");
    let view = server.until_status(&id, "completed").await;
    assert_eq!(view["counts"]["undeliverable"], 14, "{view}");
    let commands = server.commands(&id).await;
    for name in ["dripping", "slow-0"] {
        let command = of(&commands, name);
        assert!(command["error"].as_str().unwrap().contains("within 2s"), "{command}");
    }
}

pub async fn a_kill_in_the_middle_loses_no_webhook(on: On) {
    let number = by_length(1_000, 5_000);
    let seen = web::Data::new(Seen::default());
    let address = receiver(&seen);
    let mut server = Server::prepare(allowed(on).with("ODOSHI__SENDER__WEBHOOK__PER_HOST", "50"));
    let store = server.store().await;
    let agents = (0..number).map(|n| {
        let name = format!("a{n:04}");
        let secret = SigningSecret::random().reveal().to_owned();
        seen.secrets.lock().unwrap().insert(name.clone(), secret.clone());
        NewAgent {
            enrollment: Enrollment::from_json(json!({ "name": name }).to_string().as_bytes()).unwrap(),
            transport: "webhook".into(),
            address: Some(format!("http://{address}/{name}")),
            secret: Some(secret),
        }
    });
    store.agent_insert(agents.collect()).await.unwrap();
    store.node_stop().await.unwrap();
    drop(store);
    server.restart().await;
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "m" }] })).await;
    eventually("a third of them", || async { (seen.number() > number / 3).then_some(()) }).await;
    server.kill();
    let before = seen.number();
    server.restart().await;
    let view = server.until_status(&id, "completed").await;
    assert_eq!(view["counts"]["succeeded"], number, "{view}");
    let calls = seen.calls.lock().unwrap().clone();
    let mut ids: HashMap<String, &str> = HashMap::new();
    for call in &calls {
        assert!(call.verified, "{}", call.path);
        let known = ids.entry(call.path.clone()).or_insert(&call.id);
        assert_eq!(*known, call.id, "a repeat has the same id");
    }
    assert_eq!(ids.len(), number);
    println!("{} calls for {number} commands, killed after {before}", calls.len());
}
