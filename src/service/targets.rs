//! Previews of targets.

use super::error::{ServiceError, ServiceResult};
use super::fleet;
use crate::context::Node;
use crate::domain::target::Target;
use crate::store::Among;

/// Number of names in a preview.
const SAMPLE: usize = 20;

/// The agents that a target matches now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The number of agents.
    pub count: i64,
    /// The first of their names.
    pub sample: Vec<String>,
}

/// Parses a target expression.
///
/// # Errors
/// If it isn't valid. The text gives line and column.
pub fn parse(target: &str) -> ServiceResult<Target> {
    Target::parse(target).map_err(|error| ServiceError::invalid(format!("target: {error}")))
}

/// The number of agents that a target matches now, and the first of their names.
///
/// # Errors
/// If the expression can't be parsed, or looking through the fleet takes too long.
pub async fn preview(node: &Node, target: &str) -> ServiceResult<Preview> {
    let target = parse(target)?;
    let among = Among { target: Some(target), disabled: None };
    let count = fleet::count(node, &among).await?;
    let mut sample = Vec::new();
    let (expected, mut after) = (SAMPLE.min(usize::try_from(count).unwrap_or(0)), None);
    while sample.len() < expected {
        let found = fleet::list(node, &among, after.as_deref(), expected - sample.len()).await?;
        sample.extend(found.agents.into_iter().map(|agent| agent.name));
        after = found.through;
        if after.is_none() {
            break;
        }
    }
    Ok(Preview { count, sample })
}
