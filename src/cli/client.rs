//! Calls to a server's API, for the subcommands that need one.

use crate::domain::problem::Problem;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the server is, and who calls.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ServerArgs {
    /// The server
    #[arg(long, value_name = "URL", env = "ODOSHI_SERVER", default_value = "http://127.0.0.1:7401")]
    server: String,
    /// A file with the token; without it, ODOSHI_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// There is no answer.
    #[error("the server {server} cannot be reached: {source}")]
    Unreachable {
        /// Which.
        server: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The answer is an error.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The answer isn't one of Odoshi's.
    #[error("the server answered {status}, and not as Odoshi does")]
    Strange {
        /// The HTTP status.
        status: StatusCode,
    },
    /// There is no token.
    #[error("no token: give --token-file, or set ODOSHI_TOKEN")]
    NoToken,
    /// The token file can't be read.
    #[error("{path}: {source}")]
    TokenFile {
        /// Which.
        path: PathBuf,
        /// Why.
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
    /// With the token that the arguments or the environment name.
    pub(super) fn new(args: &ServerArgs) -> Result<Self, ClientError> {
        let token = match (&args.token_file, std::env::var("ODOSHI_TOKEN")) {
            (Some(path), _) => read_token(path)?,
            (None, Ok(token)) => token,
            (None, Err(_)) => return Err(ClientError::NoToken),
        };
        Self::with(&args.server, token)
    }

    /// With this token.
    pub(super) fn with(server: &str, token: String) -> Result<Self, ClientError> {
        let server = server.trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(|source| ClientError::Unreachable { server: server.clone(), source })?;
        Ok(Self { http, server, token })
    }

    /// Calls; answers the JSON of a success.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, ClientError> {
        let mut request: RequestBuilder =
            self.http.request(method, format!("{}{path}", self.server)).bearer_auth(self.token.trim());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let unreachable = |source| ClientError::Unreachable { server: self.server.clone(), source };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        if status.is_success() {
            if text.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_str(&text).map_err(|_| ClientError::Strange { status });
        }
        Err(match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => ClientError::Refused(Box::new(problem)),
            Err(_) => ClientError::Strange { status },
        })
    }

    /// Reads.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::GET, path, None).await
    }
}

/// Reads a token from a file.
pub(super) fn read_token(path: &Path) -> Result<String, ClientError> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| ClientError::TokenFile { path: path.to_owned(), source })
}
