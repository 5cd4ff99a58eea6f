//! How server and agents connect to RabbitMQ: address, login, TLS.

use crate::domain::broker::MAX_QUEUE_NAME;
use crate::error_chain::ErrorChain;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use std::path::Path;

/// How often a silent connection is tested, in seconds. Two tests without an answer end it.
const HEARTBEAT_SECONDS: u16 = 20;
/// Timeout of the connection itself, in milliseconds.
const CONNECT_MILLISECONDS: u64 = 10_000;

/// Where the broker is, and who connects. `Debug` shows no secret.
#[derive(Clone)]
pub(crate) struct AmqpAccess {
    uri: AMQPUri,
    /// The URL names a user.
    has_user: bool,
    /// Authorities to trust beside the system's, as PEM.
    authorities: Option<String>,
}

impl std::fmt::Debug for AmqpAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (authority, vhost) = (&self.uri.authority, &self.uri.vhost);
        let mut debug = f.debug_struct("AmqpAccess");
        debug.field("host", &authority.host).field("port", &authority.port).field("vhost", vhost);
        debug.finish_non_exhaustive()
    }
}

impl AmqpAccess {
    /// From a URL, `amqp://[USER:PASSWORD@]HOST[:PORT][/VHOST]` or `amqps://…`. Special characters are
    /// percent-encoded; without a virtual host, it is `/`.
    ///
    /// # Errors
    /// Says what is wrong, without secrets.
    pub(crate) fn new(url: &str) -> Result<Self, String> {
        let parsed = reqwest::Url::parse(url).map_err(|error| error.to_string())?;
        if !matches!(parsed.scheme(), "amqp" | "amqps") || parsed.host_str().is_none_or(str::is_empty) {
            return Err("not amqp://HOST:PORT or amqps://HOST:PORT".into());
        }
        // Its errors don't repeat the URL.
        let mut uri: AMQPUri = url.parse().map_err(|_| "not amqp://USER:PASSWORD@HOST:PORT/VHOST".to_owned())?;
        if matches!(parsed.path(), "" | "/") {
            uri.vhost = "/".into();
        }
        if parsed.query().is_some() {
            return Err("holds parameters after \"?\", which are not used".into());
        }
        uri.query.heartbeat = Some(HEARTBEAT_SECONDS);
        uri.query.connection_timeout = Some(CONNECT_MILLISECONDS);
        Ok(Self { uri, has_user: !parsed.username().is_empty(), authorities: None })
    }

    /// Uses the first line of a file as password, for the URL's user, or for `user` if it names none.
    /// Blocks.
    ///
    /// # Errors
    /// If it can't be read or is empty.
    pub(crate) fn with_password_file(mut self, path: &Path, user: &str) -> Result<Self, String> {
        let text = crate::text_file::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let password = text.lines().next().unwrap_or_default().trim_end().to_owned();
        if password.is_empty() {
            return Err(format!("{}: holds no password", path.display()));
        }
        let login = &mut self.uri.authority.userinfo;
        if !self.has_user {
            user.clone_into(&mut login.username);
            self.has_user = true;
        }
        login.password = password;
        Ok(self)
    }

    /// Trusts the authorities in a file (PEM) beside the system's. Blocks.
    ///
    /// # Errors
    /// If it can't be read, or the URL is not one with TLS.
    pub(crate) fn with_authorities(mut self, path: &Path) -> Result<Self, String> {
        if self.uri.scheme != AMQPScheme::AMQPS {
            return Err("is for amqps:// alone".into());
        }
        let text = crate::text_file::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        self.authorities = Some(text);
        Ok(self)
    }

    /// Connects. `name` is shown in the broker's list of connections.
    ///
    /// # Errors
    /// Why not, without secrets.
    pub(crate) async fn connect(&self, name: String) -> Result<Connection, String> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig { identity: None, cert_chain: self.authorities.clone() };
        let runtime = lapin::runtime::default_runtime().map_err(|error| error.chain().to_string())?;
        let connecting = Connection::connect_uri_with_config(self.uri.clone(), properties, tls, runtime);
        connecting.await.map_err(|error| error.chain().to_string())
    }
}

/// A name in AMQP's own form. `None` if it is too long: at most 255 bytes are allowed.
pub(crate) fn short(name: &str) -> Option<ShortString> {
    (name.len() <= MAX_QUEUE_NAME).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_virtual_host_and_a_login_that_is_never_shown() {
        let access = AmqpAccess::new("amqp://me:p%40ss@h:5673/a%2Fb").expect("a valid URL");
        let login = &access.uri.authority.userinfo;
        assert_eq!((login.username.as_str(), login.password.as_str()), ("me", "p@ss"));
        assert_eq!((access.uri.authority.port, access.uri.vhost.as_str()), (5673, "a/b"));
        assert!(!format!("{access:?}").contains("p@ss"), "{access:?}");
        for url in ["amqp://h", "amqp://h/", "amqps://h/%2f"] {
            assert_eq!(AmqpAccess::new(url).expect("a valid URL").uri.vhost, "/", "{url}");
        }
        for wrong in ["http://h", "amqp://", "", "nats://h", "amqp://me:secret@h?heartbeat=1", "amqp://me:secret@h:x"] {
            let error = AmqpAccess::new(wrong).expect_err("it is wrong");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_password_file_is_for_the_user_of_the_url_or_the_given_one() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let access = |url: &str| AmqpAccess::new(url).expect("valid").with_password_file(file.path(), "agent");
        assert!(access("amqp://h").is_err(), "it is empty");
        std::fs::write(file.path(), "hunter2\n").expect("written");
        for (url, named) in [("amqp://h", "agent"), ("amqp://u@h", "u"), ("amqp://u:other@h", "u")] {
            let login = access(url).expect("a password").uri.authority.userinfo;
            assert_eq!((login.username.as_str(), login.password.as_str()), (named, "hunter2"));
        }
        let plain = AmqpAccess::new("amqp://h").expect("valid").with_authorities(file.path());
        assert!(plain.is_err(), "there is no TLS");
    }

    #[test]
    fn names_that_are_too_long_are_none() {
        assert!(short(&"x".repeat(255)).is_some());
        assert!(short(&"x".repeat(256)).is_none());
    }
}
