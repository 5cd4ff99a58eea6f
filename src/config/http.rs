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
        /// The largest request body, and the largest file in the spool.
        max_body: ByteSize = ByteSize::mib(4);
        /// Whether /metrics is shown without a token.
        public_metrics: bool = false;
        /// TLS of the server's own. Not supported by this build yet: put a proxy in front.
        tls: Tls = Tls::default();
    }
}

section! {
    /// TLS of the server's own.
    pub struct Tls {
        /// The certificate chain, a PEM file.
        cert: Option<PathBuf> = None, example "/etc/odoshi/tls.crt";
        /// Its private key, a PEM file.
        key: Option<PathBuf> = None, example "/etc/odoshi/tls.key";
    }
}

impl Http {
    pub(super) fn validate(&self, checks: &mut Checks) {
        checks.size("http.max_body", self.max_body, ByteSize::kib(1), ByteSize::mib(1024));
        for (key, value) in [("http.tls.cert", &self.tls.cert), ("http.tls.key", &self.tls.key)] {
            checks.that(
                key,
                value.is_none(),
                "is not supported by this build yet; put a proxy that speaks TLS in front",
            );
        }
    }
}
