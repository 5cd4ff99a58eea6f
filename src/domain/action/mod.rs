//! Actions: the document that a user writes, and the validated form that the pipeline works with.

mod document;
mod new_action;
mod policy;
mod state;
mod stored;
#[cfg(test)]
mod tests;

pub(crate) use document::Document;
pub use document::{MAX_NAME, MAX_OPERATIONS, MAX_OPERATIONS_JSON};
pub use new_action::NewAction;
pub use policy::{GRACE, Policy};
pub use state::{ActionState, Membership};
pub use stored::Action;
