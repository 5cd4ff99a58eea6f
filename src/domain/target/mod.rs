//! Target expressions: they select the agents of an action.
//!
//! Users write a boolean SQL expression. [`Target::parse`] reads it with an SQL parser into a typed
//! tree. What the tree cannot hold is an error with its position. The text never reaches a
//! database, and the stores bind every value as a parameter. [`Target::evaluate`] defines the
//! meaning of the tree; tests compare the stores' SQL with it. `Display` writes a canonical text
//! that parses to the same tree.

mod columns;
mod convert;
mod display;
mod error;
mod eval;
mod expression;
mod number;
mod parse;
mod sql_tree;
#[cfg(test)]
mod tests;
mod within;

pub use error::TargetError;
pub use eval::{AgentRecord, like};
pub use expression::{Column, CompareOp, Moment, Target, Value};
pub use number::{MAX_NUMBER, NUMBER_PATTERN, Number};
pub use parse::MAX_TEXT;
pub use within::Within;
