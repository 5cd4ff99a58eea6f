//! TLS at the server's own port. The certificate and its key are read again when their files
//! change, so that a renewal needs no restart. If the new pair can't be used, the old one stays in
//! place, and the error is logged.

use crate::config::Tls;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

/// How often the files are checked.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Presents the newest certificate.
#[derive(Debug)]
struct Newest(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The loaded certificate and key from the settings.
pub(super) struct Certificates {
    config: ServerConfig,
    newest: Arc<Newest>,
    cert: PathBuf,
    key: PathBuf,
    seen: Stamps,
}

impl Certificates {
    /// Loads them. `None` if TLS isn't configured.
    ///
    /// # Errors
    /// If one of them can't be used. The text names the key.
    pub(super) fn load(settings: &Tls) -> Result<Option<Self>, String> {
        let (Some(cert), Some(key)) = (settings.cert.clone(), settings.key.clone()) else { return Ok(None) };
        let seen = stamps(&cert, &key);
        let newest = Arc::new(Newest(RwLock::new(load(&cert, &key)?)));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("http.tls: {error}"))?
            .with_no_client_auth()
            .with_cert_resolver(newest.clone());
        Ok(Some(Self { config, newest, cert, key, seen }))
    }

    /// The TLS configuration of the server. Watches the files until the runtime ends.
    pub(super) fn serve(self) -> ServerConfig {
        let Self { config, newest, cert, key, seen } = self;
        actix_rt::spawn(follow(newest, cert, key, seen));
        config
    }
}

async fn follow(newest: Arc<Newest>, cert: PathBuf, key: PathBuf, mut seen: Stamps) {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let now = stamps(&cert, &key);
        if now == seen {
            continue;
        }
        seen = now;
        match load(&cert, &key) {
            Ok(loaded) => {
                *newest.0.write().unwrap_or_else(PoisonError::into_inner) = loaded;
                log::info!(cert:% = cert.display(); "the new certificate is in use");
            }
            Err(error) => log::error!(error = error.as_str();
                "the new certificate cannot be used; the one before stays in use"),
        }
    }
}

type Stamps = [Option<(SystemTime, u64)>; 2];

fn stamps(cert: &Path, key: &Path) -> Stamps {
    [cert, key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn load(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, String> {
    let of_cert = |error: &dyn std::fmt::Display| format!("http.tls.cert {}: {error}", cert.display());
    let of_key = |error: &dyn std::fmt::Display| format!("http.tls.key {}: {error}", key.display());
    // Read as files first: the parser's own errors don't say why a file can't be opened.
    let chain = std::fs::read(cert).map_err(|error| of_cert(&error))?;
    let private = std::fs::read(key).map_err(|error| of_key(&error))?;
    let chain =
        CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>().map_err(|error| of_cert(&error))?;
    let private = PrivateKeyDer::from_pem_slice(&private).map_err(|error| of_key(&error))?;
    // Also checks that the key belongs to the certificate.
    let pair = CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| of_cert(&error))?;
    Ok(Arc::new(pair))
}
