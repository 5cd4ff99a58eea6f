//! How server and agents connect to NATS: addresses, credentials, TLS.

use async_nats::{ConnectOptions, ServerAddr};
use std::path::Path;
use std::time::Duration;

/// How long connecting to one host of a cluster may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent connection is tested. Two pings without an answer end it.
const PING_EVERY: Duration = Duration::from_secs(15);

/// Where a cluster is, and who connects. `Debug` shows no secret.
#[derive(Clone)]
pub(crate) struct NatsAccess {
    addresses: Vec<ServerAddr>,
    login: Login,
    tls: bool,
}

#[derive(Clone)]
enum Login {
    Nobody,
    Token(String),
    Password {
        user: String,
        password: String,
    },
    /// The content of a credentials file (a JWT and the seed of its key).
    Credentials(String),
}

impl std::fmt::Debug for NatsAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts: Vec<_> = self.addresses.iter().map(|address| (address.host(), address.port())).collect();
        f.debug_struct("NatsAccess").field("hosts", &hosts).finish_non_exhaustive()
    }
}

impl NatsAccess {
    /// From a URL, `nats://[USER:PASSWORD@]HOST[:PORT]` or `tls://…`, which may name several hosts
    /// separated by commas. Special characters in a password are percent-encoded. The first login
    /// holds for all hosts.
    ///
    /// # Errors
    /// Says what is wrong, without secrets.
    pub(crate) fn new(url: &str) -> Result<Self, String> {
        let mut access = Self { addresses: Vec::new(), login: Login::Nobody, tls: false };
        let scheme = url.split_once("://").map_or("nats", |(scheme, _)| scheme);
        for part in url.split(',').map(str::trim) {
            let whole = if part.contains("://") { part.to_owned() } else { format!("{scheme}://{part}") };
            let number = access.addresses.len() + 1;
            let mut parsed = reqwest::Url::parse(&whole).map_err(|error| format!("host {number}: {error}"))?;
            if !matches!(parsed.scheme(), "nats" | "tls") || parsed.host_str().is_none_or(str::is_empty) {
                return Err(format!("host {number}: not nats://HOST:PORT or tls://HOST:PORT"));
            }
            access.tls |= parsed.scheme() == "tls";
            if matches!(access.login, Login::Nobody) && !parsed.username().is_empty() {
                let text = |text: &str| {
                    let text = percent_encoding::percent_decode_str(text).decode_utf8();
                    text.map(|text| text.into_owned()).map_err(|_| format!("host {number}: the login is not UTF-8"))
                };
                access.login = match parsed.password() {
                    Some(password) => Login::Password { user: text(parsed.username())?, password: text(password)? },
                    None => Login::Token(text(parsed.username())?),
                };
            }
            // The address is for connecting, and shows in errors.
            let cleared = parsed.set_username("").and_then(|()| parsed.set_password(None));
            cleared.map_err(|()| format!("host {number}: can't hold a login"))?;
            let address = parsed.as_str().parse().map_err(|error| format!("host {number}: {error}"))?;
            access.addresses.push(address);
        }
        Ok(access)
    }

    /// Uses a credentials file instead of what the URL says. Blocks.
    ///
    /// # Errors
    /// If it can't be read or is none.
    pub(crate) fn with_credentials(mut self, path: &Path) -> Result<Self, String> {
        let text = crate::text_file::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        ConnectOptions::with_credentials(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        self.login = Login::Credentials(text);
        Ok(self)
    }

    /// Uses the first line of a file as password, for the URL's user, or for `user`. Blocks.
    ///
    /// # Errors
    /// If it can't be read or is empty.
    pub(crate) fn with_password_file(mut self, path: &Path, user: &str) -> Result<Self, String> {
        let text = crate::text_file::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let password = text.lines().next().unwrap_or_default().trim_end().to_owned();
        if password.is_empty() {
            return Err(format!("{}: holds no password", path.display()));
        }
        let user = match self.login {
            Login::Password { user, .. } | Login::Token(user) => user,
            Login::Nobody | Login::Credentials(_) => user.to_owned(),
        };
        self.login = Login::Password { user, password };
        Ok(self)
    }

    /// The cluster's addresses.
    pub(crate) fn addresses(&self) -> Vec<ServerAddr> {
        self.addresses.clone()
    }

    /// Options with the login. `ca_file` replaces the system's authorities.
    ///
    /// # Errors
    /// If the credentials are none.
    pub(crate) fn options(&self, ca_file: Option<&Path>) -> Result<ConnectOptions, String> {
        let options = match &self.login {
            Login::Nobody => ConnectOptions::new(),
            Login::Token(token) => ConnectOptions::with_token(token.clone()),
            Login::Password { user, password } => {
                ConnectOptions::with_user_and_password(user.clone(), password.clone())
            }
            Login::Credentials(text) => ConnectOptions::with_credentials(text).map_err(|error| error.to_string())?,
        };
        let options = options.connection_timeout(CONNECT_TIMEOUT).ping_interval(PING_EVERY).require_tls(self.tls);
        Ok(match ca_file {
            Some(path) => options.add_root_certificates(path.to_owned()),
            None => options,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(url: &str) -> Login {
        NatsAccess::new(url).expect("a valid URL").login
    }

    #[test]
    fn a_url_names_hosts_and_a_login_that_is_never_shown() {
        let access = NatsAccess::new("nats://me:p%40ss,nats://h2:7777").expect_err("no host");
        assert!(!access.contains("p%40ss"), "{access}");
        let access = NatsAccess::new("nats://me:p%40s%2Cs@h1,h2:7777,nats://h3").expect("a valid URL");
        let hosts: Vec<_> = access.addresses().iter().map(|it| (it.host().to_owned(), it.port())).collect();
        assert_eq!(hosts, [("h1".to_owned(), 4222), ("h2".to_owned(), 7777), ("h3".to_owned(), 4222)]);
        assert!(matches!(&access.login, Login::Password { user, password } if user == "me" && password == "p@s,s"));
        assert!(!format!("{access:?} {:?}", access.addresses()).contains("p@s"), "{access:?}");
        assert!(matches!(login("tls://secret@h"), Login::Token(token) if token == "secret"));
        assert!(matches!(login("nats://[::1]:4222"), Login::Nobody));
        assert!(NatsAccess::new("tls://h").is_ok_and(|access| access.tls));
        for wrong in ["http://h", "nats://", "", "nats://h,amqp://h"] {
            assert!(NatsAccess::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_password_file_is_for_the_user_of_the_url_or_the_given_one() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let access = |url: &str| NatsAccess::new(url).expect("valid").with_password_file(file.path(), "agent");
        assert!(access("nats://h").is_err(), "it is empty");
        std::fs::write(file.path(), "hunter2\n").expect("written");
        for (url, named) in [("nats://h", "agent"), ("nats://u@h", "u"), ("nats://u:other@h", "u")] {
            let access = access(url).expect("a password");
            assert!(
                matches!(&access.login, Login::Password { user, password } if user == named && password == "hunter2")
            );
        }
    }
}
