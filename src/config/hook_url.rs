//! URLs of hooks. Their paths are never shown.

use reqwest::Url;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// A URL whose path and query may be a secret, as those of chat services are.
///
/// `Debug`, `Display` and serialization (which only serves to show settings) show scheme, host and
/// port. [`expose`](Self::expose) returns the whole URL.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct HookUrl(String);

impl HookUrl {
    /// Wraps a URL as it is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The whole URL, with its secrets.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The host, if it is a URL with one.
    pub fn host(&self) -> Option<String> {
        Url::parse(&self.0).ok()?.host_str().map(str::to_owned)
    }

    /// Whether requests can be sent to it.
    pub fn is_usable(&self) -> bool {
        Url::parse(&self.0).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
    }
}

impl fmt::Display for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(url) = Url::parse(&self.0) else { return f.write_str("***") };
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        let has_more = !url.username().is_empty() || url.password().is_some();
        if has_more || !matches!(url.path(), "" | "/") || url.query().is_some() { f.write_str("/***") } else { Ok(()) }
    }
}

impl fmt::Debug for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for HookUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_in_a_url_is_never_shown() {
        for (url, shown) in [
            ("https://hooks.slack.com/services/T1/hunter2", "https://hooks.slack.com/***"),
            ("https://u:hunter2@h.example:8443/", "https://h.example:8443/***"),
            ("http://[::1]:80/x?token=hunter2", "http://[::1]/***"),
            ("https://h.example", "https://h.example"),
            ("hunter2", "***"),
        ] {
            let url = HookUrl::new(url);
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("hunter2"));
        }
    }

    #[test]
    fn urls_of_other_schemes_or_without_a_host_are_not_usable() {
        for (url, usable) in
            [("https://h", true), ("http://127.0.0.1:1/x", true), ("ftp://h", false), ("h", false), ("https://", false)]
        {
            assert_eq!(HookUrl::new(url).is_usable(), usable, "{url}");
        }
    }
}
