//! An agent that says exactly what a test wants it to say.

use super::wait::PATIENCE;
use futures_util::{SinkExt, StreamExt};
use rand::RngExt;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

pub struct WireAgent {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl WireAgent {
    /// Connects, without saying anything.
    pub async fn connect(url: &str, token: &str) -> Self {
        Self::try_connect(url, token).await.unwrap()
    }

    /// The same, where it may be refused.
    async fn try_connect(url: &str, token: &str) -> Result<Self, Error> {
        let url = format!("{}/v1/agent/stream", url.replace("http://", "ws://"));
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("Authorization", format!("Bearer {token}").parse().unwrap());
        Ok(Self { socket: connect_async(request).await?.0 })
    }

    /// Connects, again and again as agents do, and says `hello`; answers when it is welcome.
    pub async fn persistently(url: &str, token: &str, capacity: u32) -> Self {
        loop {
            if let Ok(mut agent) = Self::try_connect(url, token).await
                && agent.send_hello(capacity).await.is_ok()
                && agent.next().await.is_ok_and(|frame| frame["type"] == "welcome")
            {
                return agent;
            }
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(50..1_000))).await;
        }
    }

    /// Connects, says `hello` and waits for `welcome`.
    pub async fn hello(url: &str, token: &str, capacity: u32) -> Self {
        let mut agent = Self::connect(url, token).await;
        agent.send_hello(capacity).await.unwrap();
        agent.expect("welcome").await;
        agent
    }

    /// The same, where the server may have no room: the status that it refused with.
    pub async fn try_hello(url: &str, token: &str, capacity: u32) -> Result<Self, u16> {
        let mut agent = match Self::try_connect(url, token).await {
            Ok(agent) => agent,
            Err(Error::Http(answer)) => return Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        };
        agent.send_hello(capacity).await.unwrap();
        agent.expect("welcome").await;
        Ok(agent)
    }

    async fn send_hello(&mut self, capacity: u32) -> Result<(), Error> {
        let hello = json!({ "type": "hello", "version": "wire", "facts": {}, "capacity": capacity, "running": [] });
        self.socket.send(Message::text(hello.to_string())).await
    }

    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next frame that isn't a ping; `Err` with the close code (0: none) when the connection is closed.
    pub async fn next(&mut self) -> Result<Value, u16> {
        // Over all of them: pings come whatever else is missing.
        tokio::time::timeout(PATIENCE, self.next_of_any()).await.expect("a frame or a close")
    }

    async fn next_of_any(&mut self) -> Result<Value, u16> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(0, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(0),
            }
        }
    }

    /// The next frame of this type; others are passed over.
    pub async fn expect(&mut self, kind: &str) -> Value {
        loop {
            match self.next().await {
                Ok(frame) if frame["type"] == kind => return frame,
                Ok(_) => {}
                Err(code) => panic!("closed with {code} instead of {kind}"),
            }
        }
    }

    /// The code of the close that must come now; frames before it are passed over.
    pub async fn expect_close(&mut self) -> u16 {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }

    /// The commands of the next `commands` frame.
    pub async fn commands(&mut self) -> Vec<Value> {
        self.expect("commands").await["commands"].as_array().unwrap().clone()
    }

    /// Says that a command ended well.
    pub async fn succeed(&mut self, command: &Value) {
        self.send(json!({ "type": "results", "results": [success(command)] })).await;
    }
}

/// A result that says that the command went well.
pub fn success(command: &Value) -> Value {
    json!({ "action": command["action"], "run": command["run"], "status": "succeeded",
        "results": [{ "module": "ping", "ok": true, "output": {} }],
        "started_at": "2026-01-01T00:00:00.000Z", "finished_at": "2026-01-01T00:00:00.000Z" })
}
