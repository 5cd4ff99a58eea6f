//! Calls to a server's API for the subcommands.

use super::output::Item;
use crate::domain::json::readable;
use crate::domain::problem::Problem;
use crate::error_chain::chain_of;
use crate::text_file;
use crate::unreached::why;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// The server's address, and the caller's token.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ServerArgs {
    /// The server's URL
    #[arg(long, value_name = "URL", env = "ODOSHI_SERVER", default_value = "http://127.0.0.1:7401")]
    server: String,
    /// A file with the token; without it, ODOSHI_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// For an https server: a file with the authorities to trust (PEM), instead of the system's
    #[arg(long, value_name = "FILE", env = "ODOSHI_CA_FILE")]
    ca_file: Option<PathBuf>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The server can't be reached.
    #[error("the server {server} cannot be reached: {cause}")]
    Unreachable {
        /// The URL.
        server: String,
        /// The cause, in words.
        cause: String,
    },
    /// The server's URL can't be used.
    #[error("--server: {0:?} is no URL such as http://127.0.0.1:7401 or https://odoshi.example.com")]
    NoUrl(String),
    /// A document that is wrong whatever server it is sent to.
    #[error("{file}: {problem}")]
    Document {
        /// Where it was read from.
        file: String,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// The server answered with an error.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The answer isn't from an Odoshi server.
    #[error("the server answered {status}, and not as Odoshi does")]
    Strange {
        /// The HTTP status.
        status: StatusCode,
    },
    /// The output can't be printed.
    #[error("the output cannot be written")]
    Output(#[source] std::io::Error),
    /// TLS can't be set up.
    #[error("{0}")]
    Tls(String),
    /// No token looks like this one.
    #[error("the token holds a space, a line end or another character that no token has")]
    NoSuchToken,
    /// There is no token.
    #[error("no token: give --token-file, or set ODOSHI_TOKEN")]
    NoToken,
    /// The token file can't be read.
    #[error("--token-file {path}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// A client with a token.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    server: String,
    token: String,
}

impl Client {
    /// A client with the token from the arguments or the environment.
    pub(super) fn new(args: &ServerArgs) -> Result<Self, ClientError> {
        let token = match (&args.token_file, std::env::var("ODOSHI_TOKEN")) {
            (Some(path), _) => read_token(path)?,
            (None, Ok(token)) if !token.trim().is_empty() => token,
            (None, _) => return Err(ClientError::NoToken),
        };
        Self::with(&args.server, token, args.ca_file.as_deref())
    }

    /// A client with this token.
    pub(super) fn with(server: &str, token: String, ca_file: Option<&Path>) -> Result<Self, ClientError> {
        if !token.trim().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ClientError::NoSuchToken);
        }
        let is_url = Url::parse(server).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if !is_url {
            return Err(ClientError::NoUrl(shown(server)));
        }
        let server = server.trim_end_matches('/').to_owned();
        let tls = crate::tls::client_config(&server, "--ca-file", ca_file).map_err(ClientError::Tls)?;
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30))
            // As the agents do, which keep connections open that few proxies let through.
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|error| ClientError::Tls(chain_of(&error).to_string()))?;
        Ok(Self { http, server, token })
    }

    /// Calls the API and returns the JSON of a success.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, ClientError> {
        self.send(method, path, body.map(|body| body.to_string()), None).await
    }

    /// Sends a document to the letter, with a key that makes it harmless to send it twice.
    pub(super) async fn submit(
        &self,
        method: Method,
        path: &str,
        document: String,
        key: Option<Uuid>,
    ) -> Result<Value, ClientError> {
        self.send(method, path, Some(document), key).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        key: Option<Uuid>,
    ) -> Result<Value, ClientError> {
        let mut request: RequestBuilder =
            self.http.request(method, format!("{}{path}", self.server)).bearer_auth(self.token.trim());
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key.to_string());
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            if text.is_empty() {
                return Ok(Value::Null);
            }
            return readable(&text).ok_or(ClientError::Strange { status });
        }
        Err(refusal(status, &text))
    }

    /// Copies a list that the server streams to `out` as it arrives.
    pub(super) async fn copy(
        &self,
        path: &str,
        accept: &str,
        out: &mut impl std::io::Write,
    ) -> Result<(), ClientError> {
        let request = self.http.get(format!("{}{path}", self.server)).bearer_auth(self.token.trim());
        let unreachable = |error: reqwest::Error| self.unreachable(&error);
        let mut response = request.header("Accept", accept).send().await.map_err(unreachable)?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.map_err(unreachable)?;
            return Err(refusal(status, &text));
        }
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            out.write_all(&chunk).map_err(ClientError::Output)?;
        }
        out.flush().map_err(ClientError::Output)
    }

    /// The text of an answer, to the letter.
    pub(super) async fn text(&self, path: &str) -> Result<String, ClientError> {
        let mut text = Vec::new();
        self.copy(path, "application/json", &mut text).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// A list as lines of JSON.
    pub(super) async fn lines(&self, path: &str) -> Result<String, ClientError> {
        let mut text = Vec::new();
        self.copy(path, "application/x-ndjson", &mut text).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Opens a stream of server-sent events, after the event with this id.
    pub(super) async fn events(&self, path: &str, last_id: Option<&str>) -> Result<reqwest::Response, ClientError> {
        let mut request = self.http.get(format!("{}{path}", self.server)).bearer_auth(self.token.trim());
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.map_err(|error| self.unreachable(&error))?;
        Err(refusal(status, &text))
    }

    /// The connection to the server is lost.
    pub(super) fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        ClientError::Unreachable { server: shown(&self.server), cause: why(error) }
    }

    /// Reads all pages of a list; the items are under `key`.
    pub(super) async fn all(&self, path: &str, query: &str, key: &str) -> Result<Vec<Item>, ClientError> {
        let (mut items, mut after) = (Vec::new(), String::new());
        loop {
            let (more, next) = self.page(&format!("{path}?limit=1000&{query}{after}"), key).await?;
            items.extend(more);
            match next {
                Some(next) => after = format!("&after={}", encoded(&next)),
                None => return Ok(items),
            }
        }
    }

    /// A page of a list, and where the next one begins.
    pub(super) async fn page(&self, path: &str, key: &str) -> Result<(Vec<Item>, Option<String>), ClientError> {
        let text = self.text(path).await?;
        let strange = |_| ClientError::Strange { status: StatusCode::OK };
        let mut page: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text).map_err(strange)?;
        let next = page.remove("next").map(|next| serde_json::from_str(next.get())).transpose().map_err(strange)?;
        let items = page.remove(key).map(|items| serde_json::from_str::<Vec<Box<RawValue>>>(items.get()));
        let items = items.transpose().map_err(strange)?.unwrap_or_default();
        Ok((items.iter().map(|item| Item::new(item.get())).collect(), next))
    }

    /// A `GET` call.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::GET, path, None).await
    }
}

/// A URL without the password that it may hold.
fn shown(server: &str) -> String {
    let Ok(mut url) = Url::parse(server) else { return server.to_owned() };
    match url.password().is_some() && url.set_password(Some("***")).is_ok() {
        true => url.to_string(),
        false => server.to_owned(),
    }
}

/// Escapes a text for use in a URL.
pub(super) fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn refusal(status: StatusCode, text: &str) -> ClientError {
    match serde_json::from_str::<Problem>(text) {
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(_) => ClientError::Strange { status },
    }
}

/// Reads a token from a file.
pub(super) fn read_token(path: &Path) -> Result<String, ClientError> {
    let read = text_file::read(path).and_then(|text| match text.trim() {
        "" => Err(std::io::Error::other("the file holds no token")),
        token => Ok(token.to_owned()),
    });
    read.map_err(|source| ClientError::TokenFile { path: path.to_owned(), source })
}
