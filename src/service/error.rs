//! How use cases fail.

use crate::domain::problem::{Problem, ProblemKind};
use crate::store::StoreError;

/// The result of a use case.
pub type ServiceResult<T> = Result<T, ServiceError>;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The caller's fault, or a conflict.
    #[error(transparent)]
    Refused(#[from] Problem),
    /// A failure of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ServiceError {
    /// An invalid document or parameter; `detail` names the place.
    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Problem::new(ProblemKind::InvalidDocument, detail).into()
    }

    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Problem::new(ProblemKind::Conflict, detail).into()
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Problem::new(ProblemKind::NotFound, detail).into()
    }

    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Problem::new(ProblemKind::Forbidden, detail).into()
    }

    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Problem::new(ProblemKind::Unavailable, detail).into()
    }
}
