//! TLS of the server's own. The certificate and its key are read again when their files change, so that renewing them
//! takes no restart; a pair that can't be used leaves the one before in place, and is told of in the log.

use crate::config::Tls;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What presents the newest certificate.
#[derive(Debug)]
struct Newest(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// How the server speaks TLS, if it does. Goes on looking at the files until the runtime ends.
///
/// # Errors
/// When the certificate or its key can't be used.
pub(super) fn server_config(settings: &Tls) -> std::io::Result<Option<ServerConfig>> {
    let (Some(cert), Some(key)) = (settings.cert.clone(), settings.key.clone()) else { return Ok(None) };
    let seen = stamps(&cert, &key);
    let newest = Arc::new(Newest(RwLock::new(load(&cert, &key)?)));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(newest.clone());
    actix_rt::spawn(follow(newest, cert, key, seen));
    Ok(Some(config))
}

async fn follow(newest: Arc<Newest>, cert: PathBuf, key: PathBuf, mut seen: Stamps) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = stamps(&cert, &key);
        if now == seen {
            continue;
        }
        seen = now;
        match load(&cert, &key) {
            Ok(loaded) => {
                *newest.0.write().unwrap_or_else(PoisonError::into_inner) = loaded;
                log::info!(cert:? = cert; "the new certificate is in use");
            }
            Err(error) => log::error!(error = error.to_string().as_str();
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

fn load(cert: &Path, key: &Path) -> std::io::Result<Arc<CertifiedKey>> {
    let bad = |path: &Path, error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidData, format!("{}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(cert).map_err(|error| bad(cert, &error))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| bad(cert, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, &error))?;
    // Also finds out when the key isn't that of the certificate.
    let pair = CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| bad(cert, &error))?;
    Ok(Arc::new(pair))
}
