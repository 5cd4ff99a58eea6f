//! Why a server was not reached, in words. HTTP libraries say "error sending request" and bury the cause.

use rustls::CertificateError;
use std::error::Error;
use std::io;

/// The cause of a failed call.
pub(crate) fn why(error: &(dyn Error + 'static)) -> String {
    let (mut cause, mut innermost) = (Some(error), error);
    while let Some(error) = cause {
        if let Some(known) = known(error) {
            return known;
        }
        innermost = error;
        cause = error.source();
    }
    innermost.to_string()
}

fn known(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some(of_tls(error));
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // It may hold one of TLS, which is not its source, or another of its kind.
        if let Some(known) = error.get_ref().and_then(|held| known(held)) {
            return Some(known);
        }
        let known = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused: nothing listens at this address",
            io::ErrorKind::TimedOut => "no answer in time",
            _ => return of_text(&error.to_string()),
        };
        return Some(known.to_owned());
    }
    of_text(&error.to_string())
}

fn of_tls(error: &rustls::Error) -> String {
    use CertificateError::{Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer};
    let known = match error {
        rustls::Error::InvalidCertificate(UnknownIssuer) => {
            "its certificate is not signed by an authority that is trusted here; name a file with the authority \
             (--ca-file)"
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is for another name"
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "its certificate has expired",
        rustls::Error::InvalidMessage(_) => "it does not speak TLS at this address; is it http:// instead of https://?",
        rustls::Error::InvalidCertificate(_) => {
            let known = of_text(&error.to_string());
            return known.unwrap_or_else(|| {
                "its certificate can't be verified with the authorities that are trusted here; name a file with its own \
                 (--ca-file)"
                    .to_owned()
            });
        }
        other => return of_text(&other.to_string()).unwrap_or_else(|| format!("TLS: {other}")),
    };
    known.to_owned()
}

/// What libraries say of which the type is private.
fn of_text(text: &str) -> Option<String> {
    let known = [
        ("failed to lookup address information", "its name is not known"),
        ("invalid HTTP version", "it does not speak HTTP at this address; is it https:// instead of http://?"),
        (
            "connection closed before message completed",
            "it closed the connection without an answer; is it https:// instead of http://?",
        ),
        (
            "CaUsedAsEndEntity",
            "its certificate is that of an authority, which can't be a server's own; sign one for the server with it",
        ),
        // The TLS library's words for a certificate of an early version of the format.
        ("UnsupportedCertVersion", "its certificate has an old version of the format, 1; make one of version 3"),
        ("operation timed out", "no answer in time"),
    ];
    let (_, known) = known.iter().find(|(said, _)| text.contains(said))?;
    Some((*known).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("error sending request")]
    struct Outer(#[source] io::Error);

    #[test]
    fn the_cause_is_found_wherever_it_is() {
        let of = |error: io::Error| why(&Outer(error));
        assert!(of(io::ErrorKind::ConnectionRefused.into()).contains("nothing listens"));
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(of(io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls))).contains("--ca-file"));
        let tls = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(of(io::Error::other(tls)).contains("http://"));
        assert_eq!(of(io::Error::other("failed to lookup address information: x")), "its name is not known");
        assert_eq!(of(io::Error::other("something else")), "something else");
    }
}
