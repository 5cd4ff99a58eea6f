//! A balancer in front of several servers: each connection goes to one of those that take it.

use rand::seq::SliceRandom;
use std::net::SocketAddr;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// See the module. It runs on a thread of its own, until it is dropped.
pub struct Balancer {
    pub url: String,
    runtime: Option<Runtime>,
}

impl Balancer {
    /// Over these ports of loopback.
    pub fn over(ports: Vec<u16>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                let mut ports = ports.clone();
                ports.shuffle(&mut rand::rng());
                tokio::spawn(pass(client, ports));
            }
        });
        Self { url, runtime: Some(runtime) }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn pass(mut client: TcpStream, ports: Vec<u16>) {
    client.set_nodelay(true).ok();
    for port in ports {
        if let Ok(mut server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await {
            server.set_nodelay(true).ok();
            copy_bidirectional(&mut client, &mut server).await.ok();
            return;
        }
    }
}
