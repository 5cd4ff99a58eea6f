//! `[http]`

use super::ByteSize;
use super::error::Checks;
use super::setting::section;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

section! {
    /// The HTTP API, and the agents' connections.
    pub struct Http {
        /// The IP address and port to listen on.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7401));
        /// The largest request body, and the largest spool file.
        max_body: ByteSize = ByteSize::mib(4);
        /// Whether /metrics is shown without a token.
        public_metrics: bool = false;
        /// Maximum requests a second per token; more are answered with 429.
        token_rate: u32 = 5_000;
        /// Maximum number of open streams (events, long lists, waiting check-ins) per token.
        token_streams: usize = 100;
        /// Maximum number of connections, those of agents included; more are refused. The limit of
        /// open files may lower it.
        max_connections: usize = 200_000;
        /// TLS at the server's own port. New files are loaded without a restart.
        tls: Tls = Tls::default();
    }
}

section! {
    /// TLS at the server's own port.
    pub struct Tls {
        /// The certificate chain (PEM file).
        cert: Option<PathBuf> = None, example "/etc/odoshi/tls.crt";
        /// Its private key (PEM file).
        key: Option<PathBuf> = None, example "/etc/odoshi/tls.key";
    }
}

impl Http {
    pub(super) fn validate(&self, checks: &mut Checks) {
        checks.size("http.max_body", self.max_body, ByteSize::kib(1), ByteSize::mib(1024));
        checks.count("http.token_rate", self.token_rate as usize, 1_000_000);
        checks.count("http.token_streams", self.token_streams, 100_000);
        checks.count("http.max_connections", self.max_connections, 10_000_000);
        let Tls { cert, key } = &self.tls;
        checks.that("http.tls.cert", cert.is_none() || key.is_some(), "needs http.tls.key beside it");
        checks.that("http.tls.key", key.is_none() || cert.is_some(), "needs http.tls.cert beside it");
    }
}
