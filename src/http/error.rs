//! How calls fail: every error is a problem document with a status. A store failure becomes `503`
//! (try again) or a plain `500`, whose cause is logged here, once, and not shown to the caller.

use crate::domain::problem::{Problem, ProblemKind};
use crate::error_chain::ErrorChain;
use crate::service::ServiceError;
use crate::store::StoreError;
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, Responder, ResponseError};
use std::fmt;

/// A failed call.
#[derive(Debug)]
pub struct ApiError {
    problem: Problem,
    /// The methods of the path.
    allow: Option<String>,
}

/// The general meaning of a status.
pub(super) fn title_of(status: u16) -> &'static str {
    match status {
        400 => "Bad request: a parameter, a header or the JSON can't be read",
        401 => "Authentication required",
        403 => "Insufficient role",
        404 => "Not found",
        413 => "Body too large",
        415 => "Unsupported content encoding; gzip is supported",
        422 => "Invalid document; the detail names the place",
        429 => "Too many requests for one token; see Retry-After",
        503 => "Service unavailable; see Retry-After",
        _ => "Error",
    }
}

/// The result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(super) fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { problem: Problem::new(kind, detail), allow: None }
    }

    pub(super) fn bad_request(error: impl fmt::Display) -> Self {
        Self::new(ProblemKind::BadRequest, error.to_string())
    }

    pub(super) fn not_found(what: impl Into<String>) -> Self {
        Self::new(ProblemKind::NotFound, what)
    }

    pub(super) fn too_large(max: usize) -> Self {
        Self::new(ProblemKind::TooLarge, format!("the body is larger than {max} bytes"))
    }

    pub(super) fn method_not_allowed(allow: &str) -> Self {
        let problem = Problem::new(ProblemKind::MethodNotAllowed, format!("this path has {allow}"));
        Self { problem, allow: Some(allow.to_owned()) }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for ApiError {}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self { problem, allow: None }
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Refused(problem) => problem.into(),
            ServiceError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_transient() {
            log::warn!(error:% = error.chain(); "a call is refused since the store is away");
            Self::new(ProblemKind::Unavailable, "the store is not available; try again")
        } else {
            log::error!(error:% = error.chain(); "a call failed");
            Self::new(ProblemKind::Internal, "the server failed; its log says why")
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        match self.problem.status {
            429 | 503 => {
                response.insert_header(("Retry-After", "1"));
            }
            401 => {
                response.insert_header(("WWW-Authenticate", "Bearer"));
            }
            _ => {}
        }
        if let Some(allow) = &self.allow {
            response.insert_header(("Allow", allow.as_str()));
        }
        let body = serde_json::to_string(&self.problem).unwrap_or_default();
        response.content_type("application/problem+json").body(body)
    }
}

impl Responder for ApiError {
    type Body = actix_web::body::BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        self.error_response()
    }
}
