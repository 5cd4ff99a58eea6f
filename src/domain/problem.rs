//! Problems as users see them: RFC 9457 documents, over HTTP and beside failed spool files.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable URI that programs can compare, `urn:odoshi:problem:…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What kind of problem it is, always the same for one `type`.
    pub title: String,
    /// The HTTP status that goes with it.
    pub status: u16,
    /// What went wrong here, naming the place.
    pub detail: String,
}

/// The kinds of problem, each with its stable name, title and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// The body isn't JSON.
    MalformedJson,
    /// It is JSON, but not a valid document.
    InvalidDocument,
    /// A header or a query parameter that can't be used.
    BadRequest,
    /// Larger than allowed.
    TooLarge,
    /// No token, or not a valid one.
    Unauthorized,
    /// The token's role doesn't allow this.
    Forbidden,
    /// No such thing.
    NotFound,
    /// The path exists, but not with this method.
    MethodNotAllowed,
    /// The id or name is taken by something else.
    Conflict,
    /// An `Idempotency-Key` that was used for another document.
    IdempotencyMismatch,
    /// The token calls too often, or has too many streams open: slow down.
    TooManyRequests,
    /// No room or no store at the moment: try again later.
    Unavailable,
    /// A fault of the server's own; its log says more.
    Internal,
    /// A spool entry that can't be read as a file.
    Unreadable,
}

impl ProblemKind {
    const fn parts(self) -> (&'static str, &'static str, u16) {
        match self {
            Self::MalformedJson => ("malformed-json", "Malformed JSON", 400),
            Self::InvalidDocument => ("invalid-document", "Invalid document", 422),
            Self::BadRequest => ("bad-request", "Bad request", 400),
            Self::TooLarge => ("too-large", "Body too large", 413),
            Self::Unauthorized => ("unauthorized", "Authentication required", 401),
            Self::Forbidden => ("forbidden", "Insufficient role", 403),
            Self::NotFound => ("not-found", "Not found", 404),
            Self::MethodNotAllowed => ("method-not-allowed", "Method not allowed", 405),
            Self::Conflict => ("conflict", "Name or id already in use", 409),
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
    /// A problem of this kind; `detail` says what and where.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        let (name, title, status) = kind.parts();
        Self { kind: format!("urn:odoshi:problem:{name}"), title: title.into(), status, detail: detail.into() }
    }
}

/// Refuses a document that is a list. A derived reader would take it for the values of an object, in order.
///
/// # Errors
/// A problem that says so.
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
