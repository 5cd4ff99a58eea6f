//! TLS as a client: which certificates are trusted.

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// The authorities in a file, or those that the system trusts. `key` is the setting that names the
/// file.
///
/// # Errors
/// If they can't be read, or there are none.
pub(crate) fn trusted(key: &str, file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    match file {
        Some(path) => {
            let unreadable = |error: &dyn std::fmt::Display| format!("{key} {}: {error}", path.display());
            let pem = crate::text_file::read_bytes(path).map_err(|error| unreadable(&error))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                store.add(certificate).map_err(|error| unreadable(&error))?;
            }
            if store.is_empty() {
                return Err(unreadable(&"holds no certificate"));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                return Err(format!("the system trusts no authorities; name some with {key}"));
            }
        }
    }
    Ok(store)
}

/// The TLS settings for calls to `server`, a URL. For a plain `http` URL, no authority is trusted.
///
/// # Errors
/// See [`trusted`].
pub(crate) fn client_config(server: &str, key: &str, file: Option<&Path>) -> Result<ClientConfig, String> {
    let is_https = server.trim_start().get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
    let roots = if is_https { trusted(key, file)? } else { RootCertStore::empty() };
    with_roots(roots)
}

/// The TLS settings for calls to any server, with the authorities that the system trusts. Without
/// any, `https` calls fail and others don't.
///
/// # Errors
/// If TLS can't be set up.
#[cfg(feature = "webhook")]
pub(crate) fn system_config() -> Result<ClientConfig, String> {
    let roots = trusted("SSL_CERT_FILE", None).unwrap_or_else(|error| {
        log::warn!(error = error.as_str(); "calls over https will fail");
        RootCertStore::empty()
    });
    with_roots(roots)
}

fn with_roots(roots: RootCertStore) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
