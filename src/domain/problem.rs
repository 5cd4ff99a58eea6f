//! Problems as users see them: RFC 9457 documents, over HTTP and beside failed spool files.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable URI that programs can compare, `urn:odoshi:problem:…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words, always the same for one `type`.
    pub title: String,
    /// The matching HTTP status.
    pub status: u16,
    /// What went wrong here, and where.
    pub detail: String,
}

/// The kinds of problem, each with its stable name, title and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// The body isn't JSON.
    MalformedJson,
    /// The body is JSON, but not a valid document.
    InvalidDocument,
    /// A header or a query parameter is invalid.
    BadRequest,
    /// The body is encoded in a way that isn't supported.
    UnsupportedEncoding,
    /// The body is larger than allowed.
    TooLarge,
    /// There is no token, or it isn't valid.
    Unauthorized,
    /// The token's role doesn't allow this call.
    Forbidden,
    /// The resource doesn't exist.
    NotFound,
    /// The path exists, but not with this method.
    MethodNotAllowed,
    /// The id or name is already in use.
    Conflict,
    /// The resource is not what the caller takes it to be.
    PreconditionFailed,
    /// An `Idempotency-Key` was used for another document.
    IdempotencyMismatch,
    /// The token calls too often, or has too many open streams.
    TooManyRequests,
    /// There is no room, or the store is away: try again later.
    Unavailable,
    /// The server failed; its log says more.
    Internal,
    /// A spool entry can't be read as a file.
    Unreadable,
}

impl ProblemKind {
    const fn parts(self) -> (&'static str, &'static str, u16) {
        match self {
            Self::MalformedJson => ("malformed-json", "Malformed JSON", 400),
            Self::InvalidDocument => ("invalid-document", "Invalid document", 422),
            Self::BadRequest => ("bad-request", "Bad request", 400),
            Self::UnsupportedEncoding => ("unsupported-encoding", "Unsupported content encoding", 415),
            Self::TooLarge => ("too-large", "Body too large", 413),
            Self::Unauthorized => ("unauthorized", "Authentication required", 401),
            Self::Forbidden => ("forbidden", "Insufficient role", 403),
            Self::NotFound => ("not-found", "Not found", 404),
            Self::MethodNotAllowed => ("method-not-allowed", "Method not allowed", 405),
            Self::Conflict => ("conflict", "Name or id already in use", 409),
            Self::PreconditionFailed => ("precondition-failed", "Precondition failed", 412),
            Self::IdempotencyMismatch => ("idempotency-mismatch", "Idempotency-Key already used", 422),
            Self::TooManyRequests => ("too-many-requests", "Too many requests", 429),
            Self::Unavailable => ("unavailable", "Service unavailable", 503),
            Self::Internal => ("internal", "Internal server error", 500),
            Self::Unreadable => ("unreadable", "Unreadable file", 422),
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        self.parts().2
    }
}

impl Problem {
    /// A problem of this kind. `detail` says what is wrong and where.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        let (name, title, status) = kind.parts();
        Self { kind: format!("urn:odoshi:problem:{name}"), title: title.into(), status, detail: detail.into() }
    }
}

/// Rejects a document that is a list. A derived reader would read its items as the values of an
/// object, in order.
///
/// # Errors
/// A problem with that message.
pub fn check_is_object(json: &[u8]) -> Result<(), Problem> {
    let Some(first) = json.iter().position(|byte| !byte.is_ascii_whitespace()).filter(|first| json[*first] == b'[')
    else {
        return Ok(());
    };
    let line = 1 + json[..first].iter().filter(|byte| **byte == b'\n').count();
    let column = 1 + json[..first].iter().rev().take_while(|byte| **byte != b'\n').count();
    let detail = format!("a JSON object is expected, not a list, at line {line} column {column}");
    Err(Problem::new(ProblemKind::InvalidDocument, detail))
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.title, self.detail)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_refused_with_its_place_and_everything_else_is_left_to_the_reader() {
        let refused = check_is_object(b" \n  [1]").expect_err("a list");
        assert!(refused.detail.ends_with("at line 2 column 3"), "{refused}");
        for other in [&b"{}"[..], b"  ", b"", b"5", b"\"[\""] {
            assert!(check_is_object(other).is_ok());
        }
    }
}
