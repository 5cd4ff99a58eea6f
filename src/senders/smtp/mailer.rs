//! The mail server, and a few connections to it.
//!
//! `lettre` has a pool of its own, which isn't used: it takes the connection of an aborted send back
//! in the middle of a mail, and the next mail would be judged by the answer to that one. Here an
//! aborted send drops its connection.

use crate::config::{self, ServiceUrl};
use crate::error_chain::ErrorChain;
use lettre::Message;
use lettre::message::Mailbox;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Servers close connections that are idle for minutes (RFC 5321, 4.5.3.2: 5 min). One that is
/// older is not used again.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a connection may take to answer that it is still there.
const NOOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How a connection is encrypted.
enum Encryption {
    None,
    IfOffered(TlsParameters),
    Required(TlsParameters),
    FromTheStart(TlsParameters),
}

/// See the module.
pub(crate) struct Mailer {
    host: String,
    port: u16,
    hello: ClientId,
    encryption: Encryption,
    credentials: Option<Credentials>,
    pub(super) from: Mailbox,
    /// Of one mail.
    pub(super) timeout: Duration,
    /// Maximum number of connections.
    pub(super) concurrency: usize,
    idle: Mutex<Vec<(AsyncSmtpConnection, Instant)>>,
}

/// Why a mail was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SendError {
    /// There is no connection to the server. Nothing was tried.
    Away(String),
    /// The connection broke, or the server fell silent.
    Broken(String),
    /// The server refuses the mail for now (4xx).
    NotNow(String),
    /// The server refuses the mail for good (5xx).
    Refused(String),
}

impl Mailer {
    /// Reads the settings, and the file with the password.
    ///
    /// # Errors
    /// If something can't be used. The error names the key.
    pub(crate) fn open(settings: &config::Smtp) -> Result<Self, String> {
        Self::with(settings, settings.password_file.as_deref().map(read_password).transpose()?)
    }

    /// Whether the settings can be used, apart from the file with the password.
    ///
    /// # Errors
    /// If something can't be used. The error names the key.
    pub(crate) fn check(settings: &config::Smtp) -> Result<(), String> {
        Self::with(settings, settings.password_file.is_some().then(String::new)).map(|_| ())
    }

    fn with(settings: &config::Smtp, password: Option<String>) -> Result<Self, String> {
        let from = settings.from.as_deref().ok_or("sender.smtp.from is needed")?;
        let from: Mailbox = from.parse().map_err(|_| {
            format!("sender.smtp.from: {from:?} is no mail address such as Odoshi <odoshi@example.com>")
        })?;
        let url = settings.url.as_ref().ok_or("sender.smtp.url is needed")?;
        Self::at(url, password, from, settings).map_err(|error| format!("sender.smtp.url: {error}"))
    }

    fn at(url: &ServiceUrl, password: Option<String>, from: Mailbox, settings: &config::Smtp) -> Result<Self, String> {
        let url = Url::parse(url.expose()).map_err(|error| error.to_string())?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("names no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let mut tls = None;
        for (name, value) in url.query_pairs() {
            if name != "tls" {
                return Err(format!("has the unknown parameter {name:?}"));
            }
            tls = Some(value.into_owned());
        }
        let parameters = || TlsParameters::new(host.clone()).map_err(|error| error.chain().to_string());
        let (encryption, port) = match (url.scheme(), tls.as_deref()) {
            ("smtp", None | Some("none")) => (Encryption::None, 25),
            ("smtp", Some("opportunistic")) => (Encryption::IfOffered(parameters()?), 587),
            ("smtp", Some("required")) => (Encryption::Required(parameters()?), 587),
            ("smtps", None) => (Encryption::FromTheStart(parameters()?), 465),
            _ => return Err("tls must be none, opportunistic or required, and only with smtp://".to_owned()),
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let password = password.or_else(|| url.password().map(decoded));
        let credentials = match (url.username(), password) {
            ("", None) => None,
            ("", Some(_)) => return Err("names no user for the password".to_owned()),
            (user, Some(password)) => Some(Credentials::new(decoded(user), password)),
            (_, None) => return Err("names a user, and there is no sender.smtp.password_file".to_owned()),
        };
        let name = url.path().trim_matches('/');
        let hello = if name.is_empty() { ClientId::default() } else { ClientId::Domain(name.to_owned()) };
        Ok(Self {
            port: url.port().unwrap_or(port),
            hello,
            encryption,
            credentials,
            from,
            timeout: settings.timeout.0,
            concurrency: settings.concurrency,
            idle: Mutex::new(Vec::new()),
            host,
        })
    }

    /// Sends a mail, and returns what the server answered. May be aborted at any await.
    pub(super) async fn send(&self, mail: &Message) -> Result<String, SendError> {
        let began = Instant::now();
        let mut connection = match self.reused().await {
            Some(connection) => connection,
            None => match timeout(self.timeout, self.connect()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return Err(SendError::Away(self.described(&error))),
                Err(_) => return Err(SendError::Away(self.silent())),
            },
        };
        let left = self.timeout.saturating_sub(began.elapsed());
        let formatted = mail.formatted();
        match timeout(left, connection.send(mail.envelope(), &formatted)).await {
            Ok(Ok(answer)) => {
                let lines: Vec<&str> = answer.message().collect();
                let text = one_line(&format!("{} {}", answer.code(), lines.join(" ")));
                self.keep(connection);
                Ok(text)
            }
            Ok(Err(error)) => Err(match () {
                () if error.is_transient() => SendError::NotNow(self.described(&error)),
                // A client's error: the server doesn't know an extension that the mail needs.
                () if error.is_permanent() || error.is_client() => SendError::Refused(self.described(&error)),
                () => SendError::Broken(self.described(&error)),
            }),
            Err(_) => Err(SendError::Broken(self.silent())),
        }
    }

    fn silent(&self) -> String {
        let Self { host, port, timeout, .. } = self;
        format!("the mail server {host}:{port} did not answer within {}", humantime::format_duration(*timeout))
    }

    fn described(&self, error: &Error) -> String {
        one_line(&format!("the mail server {}:{}: {}", self.host, self.port, error.chain()))
    }

    /// Connects, encrypts and logs in.
    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let from_the_start = match &self.encryption {
            Encryption::FromTheStart(parameters) => Some(parameters.clone()),
            _ => None,
        };
        let server = (self.host.as_str(), self.port);
        let wait = Some(self.timeout);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(server, wait, &self.hello, from_the_start, None).await?;
        match &self.encryption {
            Encryption::IfOffered(parameters) if connection.can_starttls() => {
                connection.starttls(parameters.clone(), &self.hello).await?;
            }
            Encryption::Required(parameters) => connection.starttls(parameters.clone(), &self.hello).await?,
            _ => {}
        }
        if let Some(credentials) = &self.credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(AsyncSmtpConnection, Instant)>> {
        // The list is consistent after every step.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle connection that still answers.
    async fn reused(&self) -> Option<AsyncSmtpConnection> {
        loop {
            let (mut connection, since) = self.idle().pop()?;
            let is_young = since.elapsed() < IDLE_MAX;
            if is_young && timeout(NOOP_TIMEOUT, connection.test_connected()).await.is_ok_and(|answered| answered) {
                return Some(connection);
            }
        }
    }

    fn keep(&self, connection: AsyncSmtpConnection) {
        let mut idle = self.idle();
        idle.retain(|(_, since)| since.elapsed() < IDLE_MAX);
        if idle.len() < self.concurrency && !connection.has_broken() {
            idle.push((connection, Instant::now()));
        }
    }
}

fn read_password(path: &Path) -> Result<String, String> {
    let text = crate::text_file::read(path)
        .map_err(|error| format!("sender.smtp.password_file {}: {error}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// At most 512 characters, without control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(url: &str, password: Option<&str>) -> Result<Mailer, String> {
        let file = password.map(|password| {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), password).expect("written");
            file
        });
        Mailer::open(&config::Smtp {
            url: Some(ServiceUrl::new(url)),
            password_file: file.as_ref().map(|file| file.path().to_owned()),
            from: Some("Odoshi <odoshi@example.com>".into()),
            ..config::Smtp::default()
        })
    }

    #[test]
    fn the_url_says_host_port_and_encryption() {
        let of = |url: &str| open(url, None).map(|mailer| (mailer.host, mailer.port));
        assert_eq!(of("smtp://mail.example"), Ok(("mail.example".into(), 25)));
        assert_eq!(of("smtp://[::1]:2525?tls=none"), Ok(("::1".into(), 2525)));
        assert!(of("smtp://mail?tls=maybe").is_err() && of("smtps://mail?tls=none").is_err());
        assert!(of("smtp://mail?tsl=required").is_err_and(|error| error.contains("tsl")));
        let encrypted = open("smtp://mail?tls=required", None).expect("opened");
        assert!(matches!(encrypted.encryption, Encryption::Required(_)) && encrypted.port == 587);
        let encrypted = open("smtps://mail", None).expect("opened");
        assert!(matches!(encrypted.encryption, Encryption::FromTheStart(_)) && encrypted.port == 465);
    }

    #[test]
    fn a_user_needs_a_password_from_the_url_or_the_file() {
        let credentials = |url: &str, password| open(url, password).expect("opened").credentials;
        let expected = Some(Credentials::new("me@x".into(), "s:e/c".into()));
        assert_eq!(credentials("smtp://me%40x:s%3Ae%2Fc@mail", None), expected);
        assert_eq!(credentials("smtp://me%40x@mail", Some("s:e/c\n")), expected);
        for (url, password) in [("smtp://me@mail", None), ("smtp://mail", Some("x"))] {
            let error = open(url, password).map(|_| ()).expect_err("refused");
            assert!(error.starts_with("sender.smtp.url"), "{error}");
        }
        let unread = config::Smtp {
            url: Some(ServiceUrl::new("smtp://me@mail")),
            password_file: Some("/nowhere/x".into()),
            from: Some("a@b".into()),
            ..config::Smtp::default()
        };
        assert_eq!(Mailer::check(&unread), Ok(()), "the file is not read");
        let error = Mailer::check(&config::Smtp { from: Some("nobody".into()), ..unread }).expect_err("no address");
        assert!(error.starts_with("sender.smtp.from"), "{error}");
        let missing = config::Smtp { password_file: Some("/nowhere/x".into()), ..config::Smtp::default() };
        let settings = config::Smtp { url: Some(ServiceUrl::new("smtp://u@m")), from: Some("a@b".into()), ..missing };
        let error = Mailer::open(&settings).map(|_| ()).expect_err("no file");
        assert!(error.starts_with("sender.smtp.password_file /nowhere/x"), "{error}");
    }
}
