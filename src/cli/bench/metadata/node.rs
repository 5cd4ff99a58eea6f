//! A server with agents that report, some of them over connections of their own.

use crate::Odoshi;
use crate::config::Config;
use crate::domain::agent::{Enrollment, STREAM, Secret};
use crate::domain::audit::Author;
use crate::domain::protocol::MetadataItem;
use crate::domain::target::Target;
use crate::node::Running;
use crate::service::check_in;
use crate::store::NewAgent;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use serde_json::value::to_raw_value;
use std::error::Error;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

/// The longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a server on this database.
pub(super) async fn start(url: &str, folder: &Path, name: &str) -> Result<Running, Box<dyn Error>> {
    let flags = [
        ("data_dir".to_owned(), folder.join(name).display().to_string()),
        ("http.listen".to_owned(), "127.0.0.1:0".to_owned()),
        ("store.url".to_owned(), url.to_owned()),
        ("node.name".to_owned(), name.to_owned()),
    ];
    let mut running = Odoshi::builder(Config::load_with(None, std::iter::empty(), &flags)?).start().await?;
    running.ready().await?;
    Ok(running)
}

/// Puts agents into the store; answers their keys.
pub(super) async fn agents(running: &Running, prefix: &str, count: u32) -> Result<Vec<i64>, Box<dyn Error>> {
    let store = running.store();
    for start in (0..count).step_by(10_000) {
        let agent = |number| NewAgent {
            enrollment: Enrollment { name: format!("{prefix}{number:07}"), ..Enrollment::default() },
            transport: STREAM.into(),
            address: None,
            secret: None,
        };
        store.agent_insert((start..count.min(start + 10_000)).map(agent).collect()).await?;
    }
    let target = Target::parse(&format!("name LIKE '{prefix}%'"))?;
    let matching = store.agent_match(&target, 0, usize::MAX).await?;
    Ok(matching.into_iter().map(|(agent_no, _)| agent_no).collect())
}

/// A report of so many keys with this value.
pub(super) fn items(keys: u32, value: u64) -> Vec<MetadataItem> {
    let item = |key| MetadataItem {
        key: format!("key-{key:02}"),
        value: to_raw_value(&value).ok(),
        error: None,
        collected_at: None,
    };
    (0..keys).map(item).collect()
}

/// Reports through the code of an intake without a connection. Returns when the values are durable.
pub(super) async fn report(running: &Running, agent_no: i64, keys: u32, value: u64) -> Result<(), Box<dyn Error>> {
    check_in::metadata(running.node(), agent_no, 0, items(keys, value)).await?;
    Ok(())
}

/// An agent with a connection of its own.
pub(super) struct Connected(WebSocketStream<TcpStream>);

impl Connected {
    pub(super) async fn open(running: &Running, name: &str) -> Result<Self, Box<dyn Error>> {
        let token = Secret::random();
        let enrollment = Enrollment { name: name.to_owned(), ..Enrollment::default() };
        let agent = NewAgent { enrollment, transport: STREAM.into(), address: None, secret: None };
        running.store().agent_enroll(&agent, token.hash(), &Author::server("bench")).await?;
        let address = running.address();
        let mut request = format!("ws://{address}/v1/agent/stream").into_client_request()?;
        request.headers_mut().insert("Authorization", format!("Bearer {}", token.reveal()).parse()?);
        let mut socket = client_async(request, TcpStream::connect(address).await?).await?.0;
        let hello = json!({ "type": "hello", "version": "bench", "facts": {}, "capacity": 16, "running": [] });
        socket.send(Message::text(hello.to_string())).await?;
        let mut connected = Self(socket);
        connected.until("welcome").await?;
        Ok(connected)
    }

    /// Reports, and waits until the values are durable.
    pub(super) async fn report(&mut self, keys: u32, value: u64) -> Result<(), Box<dyn Error>> {
        let frame = json!({ "type": "metadata", "seq": value, "items": items(keys, value) });
        self.0.send(Message::text(frame.to_string())).await?;
        self.until("metadata_stored").await
    }

    async fn until(&mut self, kind: &str) -> Result<(), Box<dyn Error>> {
        loop {
            match tokio::time::timeout(PATIENCE, self.0.next()).await? {
                Some(Ok(Message::Text(text))) => {
                    let frame: serde_json::Value = serde_json::from_str(&text)?;
                    if frame["type"] == kind {
                        return Ok(());
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err("the server closed the connection".into()),
            }
        }
    }
}
