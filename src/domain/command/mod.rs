//! The life of a command: its states, and the one function that decides what an event changes.
//!
//! Both stores call [`decide()`] while they hold the rows of a command. So they cannot differ in
//! the effect of a late result, a second run or a cancel. The function is pure: it takes what the
//! store [knows](Known) and what [happened](Event), and returns what to [write](Change).

mod change;
mod decide;
mod event;
mod known;
mod state;
#[cfg(test)]
mod tests;

pub use change::{Answer, Change, OpenChange, Outcome};
pub use decide::{backoff, decide};
pub use event::{Event, RunEnd};
pub use known::{Known, Open};
pub use state::{CommandState, OpenState};
