//! What the agent reports of itself again and again: values that programs of its own settings print.
//!
//! A task per `[[metadata]]` entry runs the program ([`collector`]) and puts what it prints into
//! [`Reports`]. The session sends what has changed, and everything now and then, no more often than the
//! server asks. A value counts as reported when the server has stored it.

mod collector;
mod reports;

pub(super) use collector::{Collectors, collect_once};
pub(super) use reports::{Frame, Reports};
