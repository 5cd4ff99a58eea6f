//! A server that does nothing but answer agents' frames: what the web framework costs alone.

use crate::domain::protocol::{AgentFrame, Command, Operations, RunRef, ServerFrame, Stored, Welcome};
use crate::domain::time::Timestamp;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use actix_ws::AggregatedMessage;
use std::error::Error;
use std::net::SocketAddr;
use tokio::sync::watch;
use uuid::Uuid;

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct BareArgs {
    /// The address to listen on
    listen: SocketAddr,
}

/// The command that each agent should have.
type Latest = watch::Sender<Option<Uuid>>;

/// Serves until the process is killed.
pub(in crate::cli::bench) async fn run(args: &BareArgs) -> Result<(), Box<dyn Error>> {
    crate::cli::limits::raise_open_files();
    let latest = web::Data::new(Latest::new(None));
    let app = move || {
        App::new()
            .app_data(latest.clone())
            .route("/readyz", web::get().to(HttpResponse::Ok))
            .route("/broadcast", web::post().to(broadcast))
            .route("/v1/agent/stream", web::get().to(stream))
    };
    HttpServer::new(app).workers(2).backlog(4096).tcp_nodelay(true).bind(args.listen)?.run().await?;
    Ok(())
}

async fn broadcast(latest: web::Data<Latest>) -> HttpResponse {
    latest.send_replace(Some(Uuid::now_v7()));
    HttpResponse::Ok().finish()
}

async fn stream(
    request: HttpRequest,
    payload: web::Payload,
    latest: web::Data<Latest>,
) -> actix_web::Result<HttpResponse> {
    let (response, mut socket, stream) = actix_ws::handle(&request, payload)?;
    let (mut stream, mut latest) = (stream.aggregate_continuations(), latest.subscribe());
    actix_web::rt::spawn(async move {
        loop {
            let answer = tokio::select! {
                message = stream.recv() => match message {
                    Some(Ok(AggregatedMessage::Text(text))) => answer(&text),
                    Some(Ok(_)) => None,
                    _ => return,
                },
                changed = latest.changed() => match changed {
                    Ok(()) => latest.borrow_and_update().map(command),
                    Err(_) => return,
                },
            };
            if let Some(frame) = answer
                && socket.text(frame.to_text()).await.is_err()
            {
                return;
            }
        }
    });
    Ok(response)
}

fn answer(text: &str) -> Option<ServerFrame> {
    match AgentFrame::parse(text).ok()?? {
        AgentFrame::Hello(_) => {
            let server_time = Timestamp::of_this_machine();
            Some(ServerFrame::Welcome(Welcome {
                agent: "agent".into(),
                server_time,
                clock: None,
                metadata_interval: None,
            }))
        }
        AgentFrame::Results { results } => {
            let commands = results.iter().map(|result| RunRef { action: result.action, run: result.run }).collect();
            Some(ServerFrame::Stored(Stored { commands, ..Stored::default() }))
        }
        _ => None,
    }
}

fn command(action: Uuid) -> ServerFrame {
    let operations = Operations::from_json(r#"[{"module":"ping"}]"#.into()).ok();
    let commands = operations.into_iter().map(|operations| Command {
        action,
        run: 1,
        attempt: 1,
        name: "bench".into(),
        operations,
        priority: 0,
        timeout_ms: 60_000,
        expires_at: Timestamp::of_this_machine(),
        scheduled_for: None,
    });
    ServerFrame::Commands { commands: commands.collect() }
}
