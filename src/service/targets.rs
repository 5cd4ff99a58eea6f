//! What targets match.

use super::error::{ServiceError, ServiceResult};
use crate::context::Node;
use crate::domain::target::Target;

/// Names that a preview shows.
const SAMPLE: usize = 20;

/// What a target matches now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// How many agents.
    pub count: i64,
    /// The first of their names.
    pub sample: Vec<String>,
}

/// Reads a target expression.
///
/// # Errors
/// When it isn't one; the text gives line and column.
pub fn parse(target: &str) -> ServiceResult<Target> {
    Target::parse(target).map_err(|error| ServiceError::invalid(format!("target: {error}")))
}

/// How many agents a target matches now, and the first of their names.
///
/// # Errors
/// When the expression can't be read.
pub async fn preview(node: &Node, target: &str) -> ServiceResult<Preview> {
    let target = parse(target)?;
    let count = node.store.agent_count(&target).await?;
    let sample = node.store.agent_list(Some(&target), None, SAMPLE).await?;
    Ok(Preview { count, sample: sample.into_iter().map(|agent| agent.name).collect() })
}
