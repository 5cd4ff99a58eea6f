//! Mail, against aiosmtpd (`tests/mail/server.py`).

use crate::cluster::free_port;
use crate::support::{On, Server, ServerOptions, WireAgent, by_length, eventually, mostly_waits};
use actix_web::{App, HttpResponse, HttpServer, web};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The mail server in a process of its own. It keeps its port and its folder over restarts.
struct MailServer {
    port: u16,
    folder: TempDir,
    child: Option<Child>,
}

impl MailServer {
    fn prepare() -> Self {
        Self { port: free_port(), folder: tempfile::tempdir().unwrap(), child: None }
    }

    async fn start(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mail/server.py");
        // Debian's Python: the package is not in any other.
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(self.port.to_string()).arg(self.folder.path()).stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let address = ("127.0.0.1", self.port);
        eventually("the mail server", || async { tokio::net::TcpStream::connect(address).await.ok() }).await;
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn policy(&self, answer: Option<&str>) {
        let file = self.folder.path().join("policy");
        match answer {
            Some(answer) => std::fs::write(file, answer).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
    }

    /// What came, in order.
    fn mails(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("mails")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn options(&self, on: On) -> ServerOptions {
        on.options()
            .with("ODOSHI__SENDER__ENABLED", "stream,smtp")
            .with("ODOSHI__SENDER__SMTP__URL", &format!("smtp://127.0.0.1:{}", self.port))
            .with("ODOSHI__SENDER__SMTP__FROM", "Ödoshi <odoshi@example.com>")
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn add(server: &Server, name: &str, address: &str) {
    let agent = json!({ "name": name, "transport": "smtp", "address": address });
    let (status, answer) = server.call("POST", "/v1/agents", Some(agent)).await;
    assert_eq!(status, 201, "{answer}");
}

fn message(subject: &str, text: &str) -> Value {
    json!({ "module": "message", "parameters": { "subject": subject, "text": text } })
}

fn of<'a>(commands: &'a [Value], agent: &str) -> &'a Value {
    commands.iter().find(|command| command["agent"] == agent).unwrap()
}

pub async fn messages_become_mails_and_the_mail_server_decides_what_becomes_of_them(on: On) {
    mostly_waits();
    let mut mail = MailServer::prepare();
    mail.start().await;
    let server = Server::start(mail.options(on)).await;
    for (name, address) in [("fine", "fine@a.test"), ("refused", "refused@a.test"), ("later", "later@a.test")] {
        add(&server, name, address).await;
    }
    let subject = "Größe\r\nBcc: victim@a.test";
    let operations = [message(subject, "Zeile 1\n.\nZeile ü"), message("second", "x")];
    let id = server.submit(json!({ "name": "m", "target": "TRUE", "operations": operations })).await;
    let view = server.until_status(&id, "completed").await;
    assert_eq!((&view["counts"]["succeeded"], &view["counts"]["failed"]), (&json!(2), &json!(1)), "{view}");
    let commands = server.commands(&id).await;
    let fine = of(&commands, "fine");
    assert_eq!((&fine["status"], &fine["attempts"]), (&json!("succeeded"), &json!(1)), "{fine}");
    assert_eq!(fine["results"].as_array().unwrap().len(), 2, "{fine}");
    let refused = of(&commands, "refused");
    assert!(refused["error"].as_str().unwrap().contains("550"), "{refused}");
    let later = of(&commands, "later");
    assert_eq!((&later["status"], &later["attempts"]), (&json!("succeeded"), &json!(2)), "{later}");

    let mails = mail.mails();
    let to = |name: &str| mails.iter().filter(|mail| mail["to"] == name).cloned().collect::<Vec<Value>>();
    let (fine, later) = (to("fine@a.test"), to("later@a.test"));
    assert_eq!(fine[0]["subject"], "Größe  Bcc: victim@a.test");
    assert_eq!(fine[0]["text"].as_str().unwrap().replace("\r\n", "\n").trim_end(), "Zeile 1\n.\nZeile ü");
    assert!(!fine[0]["headers"].as_array().unwrap().contains(&json!("Bcc")), "{}", fine[0]);
    assert_eq!((fine.len(), &fine[0]["from"]), (2, &json!("odoshi@example.com")));
    assert_eq!(fine[0]["id"], of(&commands, "fine")["results"][0]["output"]["message_id"]);
    assert_ne!(fine[0]["id"], fine[1]["id"]);
    assert_eq!((later.len(), &later[0]["accepted"]), (3, &json!(false)));
    assert_eq!(later[0]["id"], later[1]["id"], "an attempt repeats the Message-ID");

    let mixed = json!([message("s", "t"), { "module": "exec", "parameters": { "argv": ["true"] } }]);
    let id = server.submit(json!({ "name": "x", "target": "name = 'fine'", "operations": mixed })).await;
    server.until_status(&id, "completed").await;
    let command = &server.commands(&id).await[0];
    assert!(command["status"] == "failed" && command["error"].as_str().unwrap().contains("\"exec\""), "{command}");
    assert_eq!(mail.mails().len(), mails.len(), "nothing was sent of it");

    // All of them are refused for now, and then for good.
    mail.policy(Some("451 4.3.0 not now"));
    let again = |name: &str| json!({ "name": name, "target": "name = 'fine'", "operations": [message("s", "t")] });
    let id = server.submit(again("now")).await;
    eventually("a failed attempt", || async {
        (server.commands(&id).await.first()?["attempts"].as_i64()? > 0).then_some(())
    })
    .await;
    mail.policy(None);
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 1);
    mail.policy(Some("554 5.7.1 never"));
    let id = server.submit(again("never")).await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["failed"], 1);
}

pub async fn while_the_mail_server_is_away_commands_stay_pending_and_no_attempt_is_counted(on: On) {
    mostly_waits();
    let number = by_length(1_000, 5_000);
    let mut mail = MailServer::prepare();
    let mut server = Server::prepare(mail.options(on));
    let store = server.store().await;
    let agent = |n: usize| odoshi::store::NewAgent {
        enrollment: odoshi::domain::agent::Enrollment::from_json(format!(r#"{{"name":"a{n:04}"}}"#).as_bytes())
            .unwrap(),
        transport: "smtp".into(),
        address: Some(format!("a{n:04}@a.test")),
        secret: None,
    };
    store.agent_insert((0..number).map(agent).collect()).await.unwrap();
    store.node_stop().await.unwrap();
    drop(store);
    server.restart().await;
    let id = server.submit(json!({ "name": "m", "target": "TRUE", "operations": [message("s", "t")] })).await;
    eventually("the server to notice", || async {
        let metrics = server.readyz().await?.1;
        let senders = metrics["senders"].as_array()?.clone();
        senders.iter().any(|sender| sender["transport"] == "smtp" && sender["hosts_away"] == 1).then_some(())
    })
    .await;
    let commands = server.commands(&id).await;
    let untouched = |command: &Value| command["status"] == "pending" && command["attempts"] == 0;
    assert!(commands.len() == number && commands.iter().all(untouched));

    mail.start().await;
    eventually("the first third", || async { (mail.mails().len() > number / 3).then_some(()) }).await;
    mail.kill();
    let so_far = mail.mails().len();
    mail.start().await;
    eventually("more mails", || async { (mail.mails().len() > so_far).then_some(()) }).await;
    server.kill();
    server.restart().await;
    let view = server.until_status(&id, "completed").await;
    assert_eq!(view["counts"]["succeeded"], number, "{view}");
    let mails = mail.mails();
    let ids: std::collections::HashSet<_> =
        mails.iter().map(|mail| (mail["to"].clone(), mail["id"].clone())).map(|(a, b)| format!("{a}{b}")).collect();
    assert_eq!(ids.len(), number, "each has one Message-ID, however often it was sent");
    println!("{} mails for {number} commands over two kills", mails.len());
}

/// One schedule, whose agents are a mailbox, a web service, one that is down, and a program.
pub async fn a_schedule_reaches_agents_of_every_transport_each_by_its_own_sender(on: On) {
    mostly_waits();
    let mut mail = MailServer::prepare();
    mail.start().await;
    let (sender, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let receive = move |body: web::Bytes| {
        sender.send(serde_json::from_slice::<Value>(&body).unwrap()).ok();
        async { HttpResponse::Ok().json(json!({ "seen": true })) }
    };
    let app = move || App::new().default_service(web::to(receive.clone()));
    let receiver = HttpServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
    let address = receiver.addrs()[0];
    actix_rt::spawn(receiver.run());

    let options = mail.options(on).with("ODOSHI__SENDER__ENABLED", "stream,smtp,webhook");
    let server = Server::start(options.with("ODOSHI__SENDER__WEBHOOK__ALLOW", "127.0.0.0/8")).await;
    add(&server, "ann", "ann@example.com").await;
    for (name, url) in [("chat", format!("http://{address}/")), ("down", "http://127.0.0.1:9/".into())] {
        let agent = json!({ "name": name, "transport": "webhook", "address": url });
        assert_eq!(server.call("POST", "/v1/agents", Some(agent)).await.0, 201);
    }
    let token = server.enroll("desk", json!({})).await;
    let mut desk = WireAgent::hello(&server.url, &token, 16).await;
    let action = json!({ "name": "n", "target": "TRUE", "operations": [message("Stand-up", "In five minutes.")],
        "expires_after": "1h" });
    let schedule = json!({ "name": "stand-up", "every": "2s", "overlap": "allow", "action": action });
    assert_eq!(server.call("POST", "/v1/schedules", Some(schedule)).await.0, 201);

    let command = desk.commands().await.remove(0);
    let id = command["action"].as_str().unwrap().to_owned();
    assert_eq!(server.call("POST", "/v1/schedules/stand-up/pause", None).await.0, 200);
    let called = loop {
        let call = calls.recv().await.unwrap();
        if call["action"] == id.as_str() {
            break call;
        }
    };
    assert_eq!((&called["agent"], &called["scheduled_for"]), (&json!("chat"), &command["scheduled_for"]));
    eventually("mail and webhook to have succeeded", || async {
        let commands = server.commands(&id).await;
        ["ann", "chat"].iter().all(|name| of(&commands, name)["status"] == "succeeded").then_some(())
    })
    .await;
    let commands = server.commands(&id).await;
    for name in ["desk", "down"] {
        let status = of(&commands, name)["status"].as_str().unwrap();
        assert!(["pending", "sent"].contains(&status), "{name}: nobody else's result is its own: {status}");
    }
    desk.succeed(&command).await;
    eventually("the program's own result", || async {
        (of(&server.commands(&id).await, "desk")["status"] == "succeeded").then_some(())
    })
    .await;
    assert_eq!(of(&server.commands(&id).await, "down")["status"], "pending", "it is tried until it expires");
    assert!(mail.mails().iter().any(|mail| mail.to_string().contains("Stand-up")));
}
