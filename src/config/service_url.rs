//! URLs of other services. Their passwords are never shown.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// A URL that may hold a password or a token.
///
/// `Debug`, `Display` and serialization (which only serves to show settings) mask them.
/// [`expose`](Self::expose) returns the whole URL.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ServiceUrl(String);

/// Replaces a secret.
const MASK: &str = "***";
/// Query parameters with secret values.
const SECRET_PARAMETERS: [&str; 6] = ["password", "passwd", "pass", "sslpassword", "token", "secret"];

impl ServiceUrl {
    /// Wraps a URL as it is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The whole URL, with its secrets.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The text before `://`, or nothing.
    pub fn scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    /// The text after `://`, or nothing.
    pub fn rest(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, rest)| rest)
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", masked(&self.0))
    }
}

impl Serialize for ServiceUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Masks up to the *last* `@` of each URL. That may be too much, but never too little: passwords
/// that should have been percent-encoded may contain `@`, `/`, `?` and commas.
fn masked(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("://");
        let hosts = match part.rsplit_once('@') {
            Some((user, hosts)) => {
                // A user name alone may be a token (NATS). It is certainly a name only if a
                // password follows.
                let name = user.split_once(':').map_or("", |(name, _)| name);
                let separator = if name.is_empty() { "" } else { ":" };
                shown.push_str(&format!("{name}{separator}{MASK}@"));
                hosts
            }
            None => part,
        };
        let (place, query) = hosts.split_once('?').unwrap_or((hosts, ""));
        shown.push_str(place);
        for (index, parameter) in query.split('&').filter(|p| !p.is_empty()).enumerate() {
            shown.push(if index == 0 { '?' } else { '&' });
            match parameter.split_once('=') {
                Some((name, _)) if SECRET_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) => {
                    shown.push_str(&format!("{name}={MASK}"));
                }
                _ => shown.push_str(parameter),
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_urls_are_never_shown() {
        for (url, shown) in [
            (
                "postgres://odoshi:hunter2@db:5432/odoshi?sslmode=require",
                "postgres://odoshi:***@db:5432/odoshi?sslmode=require",
            ),
            ("postgres://odoshi:hun@t/er?2@db/odoshi", "postgres://odoshi:***@db/odoshi"),
            ("postgres://db/odoshi?user=o&password=hunter2", "postgres://db/odoshi?user=o&password=***"),
            ("nats://hunter2@n1:4222", "nats://***@n1:4222"),
            ("nats://u:hun,ter2@n1,nats://u:hunter2@n2", "nats://u:***@n1,nats://u:***@n2"),
            ("smtp://:hunter2@mail", "smtp://***@mail"),
            ("sqlite://odoshi-data/odoshi.db", "sqlite://odoshi-data/odoshi.db"),
        ] {
            let url = ServiceUrl::new(url);
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("hunter2"));
            assert!(!serde_json::to_string(&url).expect("a string").contains("hunter2"));
        }
    }
}
