//! How a connection to the database comes about: its URL, its password, its TLS, and how its
//! session is set up.

use super::link::{self, Connected, NotConnected};
use super::tls::{Check, client_config};
use crate::config::Config;
use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::{AnsiTransactionManager, SimpleAsyncConnection, TransactionManager};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one statement may take. Counting a million agents takes a few seconds.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one waits for a row that somebody else has locked.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens connections. Shows no password.
#[derive(Clone)]
pub(super) struct Connector {
    config: tokio_postgres::Config,
    tls: Option<MakeRustlsConnect>,
    setup: String,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("hosts", &self.config.get_hosts()).finish_non_exhaustive()
    }
}

impl Connector {
    /// For the database that the settings name.
    ///
    /// # Errors
    /// What is wrong with which key of the settings.
    pub(super) fn new(settings: &Config) -> Result<Self, String> {
        let url = settings.store_url();
        let Url { plain, mode, roots } = Url::take_apart(url.expose())?;
        let mut config = tokio_postgres::Config::from_str(&plain).map_err(|error| {
            // The text of the cause names the option; the URL itself may hold a password.
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("store.url: {error}{cause}")
        })?;
        if let Some(password) = password(settings)? {
            config.password(password);
        }
        let check = match mode {
            Mode::Disable => None,
            Mode::Prefer | Mode::Require if roots.is_none() => Some(Check::Nothing),
            Mode::Prefer => Some(Check::Nothing),
            Mode::Require | Mode::VerifyCa => Some(Check::Authority),
            Mode::VerifyFull => Some(Check::AuthorityAndName),
        };
        let tls = check
            .map(|check| client_config(check, roots.as_deref()).map(MakeRustlsConnect::new))
            .transpose()
            .map_err(|error| format!("store.url: {error}"))?;
        config.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        let dead_after = settings.node.dead_after.0;
        config
            .application_name(config.get_application_name().unwrap_or("odoshi").to_owned())
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(4)
            .tcp_user_timeout(dead_after * 4 / 5);
        Ok(Self { config, tls, setup: setup(dead_after) })
    }

    /// The same with another time limit for each statement.
    pub(super) fn with_statement_timeout(mut self, limit: Duration) -> Self {
        self.setup.push_str(&format!("; SET statement_timeout = {}", limit.as_millis()));
        self
    }

    /// Opens a connection, whose driver runs on the runtime of the caller.
    pub(super) async fn connect(&self) -> ConnectionResult<Connected> {
        // A handshake takes much room, and every call of the store may have to connect.
        let connected = Box::pin(link::connect(&self.config, self.tls.as_ref())).await;
        let mut conn = connected.map_err(|error| match error {
            NotConnected::Diesel(error) => error,
            error if error.is_hopeless() => ConnectionError::InvalidConnectionUrl(error.to_string()),
            error => ConnectionError::BadConnection(error.to_string()),
        })?;
        conn.batch_execute(&self.setup).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(conn)
    }
}

impl Manager for Connector {
    type Type = Connected;
    type Error = ConnectionError;

    async fn create(&self) -> ConnectionResult<Connected> {
        self.connect().await
    }

    /// One that breaks later is found by the call that meets it, which tries again on another one.
    async fn recycle(&self, conn: &mut Connected, _: &Metrics) -> RecycleResult<ConnectionError> {
        if conn.is_closed()
            || conn.is_in_transaction()
            || AnsiTransactionManager::is_broken_transaction_manager(&mut **conn)
        {
            return Err(RecycleError::message("the connection broke"));
        }
        Ok(())
    }
}

/// How a session is set up.
///
/// Every statement of this store is made to walk an index, in its order, from the row in hand. The
/// tables grow by a million rows between two looks of the statistics, and then a planner that
/// trusts them reads whole tables: so it isn't asked. Where it still had a choice, of which side of
/// a join to begin with, or of a scan by half a key, the inner side is a subquery with `OFFSET 0`,
/// which is run for each row of the outer one as it stands. A process that stops in the middle of a
/// transaction is cut off before others count it dead, or it would hold them up.
fn setup(dead_after: Duration) -> String {
    format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
         SET default_transaction_isolation = 'read committed'; \
         SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off; SET enable_bitmapscan = off; \
         SET enable_sort = off; SET jit = off; \
         SET max_parallel_workers_per_gather = 0; \
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
        STATEMENT_TIMEOUT.as_millis(),
        LOCK_TIMEOUT.as_millis(),
        (dead_after * 4 / 5).as_millis(),
    )
}

/// `store.password_file`, else PGPASSWORD; one in the URL is the URL's.
fn password(settings: &Config) -> Result<Option<String>, String> {
    if let Some(path) = &settings.store.password_file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("store.password_file {}: {error}", path.display()))?;
        return Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    let in_url = settings.store_url().expose().contains("password=")
        || settings.store_url().rest().rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    Ok(if in_url { None } else { std::env::var("PGPASSWORD").ok() })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// A URL without what tokio-postgres doesn't know of.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    plain: String,
    mode: Mode,
    roots: Option<PathBuf>,
}

impl Url {
    fn take_apart(url: &str) -> Result<Self, String> {
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut roots, mut rest) = (Mode::Prefer, None, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", value)) => {
                    mode = match value {
                        "disable" => Mode::Disable,
                        "prefer" | "allow" => Mode::Prefer,
                        "require" => Mode::Require,
                        "verify-ca" => Mode::VerifyCa,
                        "verify-full" => Mode::VerifyFull,
                        other => {
                            return Err(format!(
                                "store.url: sslmode is disable, prefer, require, verify-ca or verify-full, not {other:?}"
                            ));
                        }
                    };
                }
                Some(("sslrootcert", "system")) => {}
                Some(("sslrootcert", path)) => roots = Some(decoded(path)),
                _ => rest.push(parameter),
            }
        }
        let plain = if rest.is_empty() { place.to_owned() } else { format!("{place}?{}", rest.join("&")) };
        Ok(Self { plain, mode, roots })
    }
}

fn decoded(path: &str) -> PathBuf {
    PathBuf::from(percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_its_tls_away_and_keeps_the_rest() {
        let url =
            Url::take_apart("postgres://o@db:5433/x?sslmode=verify-full&connect_timeout=3&sslrootcert=/a%20b.pem");
        let roots = Some(PathBuf::from("/a b.pem"));
        let plain = "postgres://o@db:5433/x?connect_timeout=3".to_owned();
        assert_eq!(url, Ok(Url { plain, mode: Mode::VerifyFull, roots }));
        let plain = "postgres:///x".to_owned();
        assert_eq!(Url::take_apart("postgres:///x"), Ok(Url { plain, mode: Mode::Prefer, roots: None }));
        assert!(Url::take_apart("postgres://db/x?sslmode=maybe").is_err_and(|error| error.contains("sslmode")));
    }

    #[test]
    fn a_connector_never_shows_its_password() {
        let flags = [("store.url".to_owned(), "postgres://odoshi:hunter2@127.0.0.1/odoshi".to_owned())];
        let settings = Config::load_with(None, std::iter::empty(), &flags).expect("valid");
        assert!(!format!("{:?}", Connector::new(&settings).expect("valid")).contains("hunter2"));
        let flags = [("store.url".to_owned(), "postgres://odoshi:hunter2@127.0.0.1:x/odoshi".to_owned())];
        let settings = Config::load_with(None, std::iter::empty(), &flags).expect("valid");
        let error = Connector::new(&settings).expect_err("no port");
        assert!(error.contains("store.url") && !error.contains("hunter2"), "{error}");
    }
}
