//! What people ask of the whole fleet.
//!
//! A question about a million agents may take the database a minute. So it is asked in strides, one at a time on a node:
//! those who ask take turns, one who goes away leaves nothing behind, and the pipeline goes on.

use super::error::{ServiceError, ServiceResult};
use crate::context::Node;
use crate::domain::stride::Stride;
use crate::store::{AgentView, Among, Found, StoreResult};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a question may take, waiting included.
const TIME: Duration = Duration::from_secs(30);
/// After this time a list is answered with what was found.
const PAGE_TIME: Duration = Duration::from_secs(5);

/// One question.
struct Question<'a> {
    node: &'a Node,
    stride: Stride,
    /// How many were answered.
    strides: usize,
    deadline: Instant,
}

impl<'a> Question<'a> {
    fn new(node: &'a Node) -> Self {
        Self { node, stride: Stride::default(), strides: 0, deadline: Instant::now() + TIME }
    }

    /// The next stride, when it is its turn.
    async fn stride<T>(&mut self, ask: impl AsyncFnOnce(usize) -> StoreResult<T>) -> ServiceResult<T> {
        let searched = self.stride.agents();
        let asked = async {
            let _turn = self.node.questions.acquire().await.map_err(|_| late())?;
            let began = Instant::now();
            let answer = ask(searched).await?;
            Ok((answer, began.elapsed()))
        };
        let (answer, took) = timeout_at(self.deadline, asked).await.unwrap_or_else(|_| Err(late()))?;
        self.stride.took(took);
        self.strides += 1;
        Ok(answer)
    }
}

fn late() -> ServiceError {
    let within = TIME.as_secs();
    ServiceError::unavailable(format!("looking through the fleet takes longer than {within} s; ask for less, or later"))
}

/// The number of these agents.
///
/// # Errors
/// If the store is away, or it takes too long.
pub async fn count(node: &Node, among: &Among) -> ServiceResult<i64> {
    let (mut question, mut count, mut after) = (Question::new(node), 0, 0);
    loop {
        let part = question.stride(async |searched| node.store.agent_count(among, after, searched).await).await?;
        count += part.agents;
        match part.through {
            Some(through) => after = through,
            None => return Ok(count),
        }
    }
}

/// Up to `limit` of these agents by name, and the name up to which was searched, if that is not the end. There may be
/// fewer, or none, if few agents match and looking takes long.
///
/// # Errors
/// If the store is away, or it takes too long.
pub async fn list(
    node: &Node,
    among: &Among,
    after: Option<&str>,
    limit: usize,
) -> ServiceResult<Found<Vec<AgentView>, String>> {
    if among.target.is_none() && among.disabled.is_none() {
        // Nothing is searched.
        return Ok(node.store.agent_list(among, after, limit, limit).await?);
    }
    let (mut question, began) = (Question::new(node), Instant::now());
    let mut found = Found { agents: Vec::new(), through: after.map(str::to_owned) };
    loop {
        let (after, room) = (found.through.take(), limit - found.agents.len());
        let list = async |searched| node.store.agent_list(among, after.as_deref(), room, searched).await;
        let part = match question.stride(list).await {
            Ok(part) => part,
            // It was not its turn again in time: this is a page as well.
            Err(ServiceError::Refused(_)) if question.strides > 0 => {
                return Ok(Found { through: after, ..found });
            }
            Err(error) => return Err(error),
        };
        found.agents.extend(part.agents);
        found.through = part.through;
        if found.through.is_none() || found.agents.len() >= limit || began.elapsed() >= PAGE_TIME {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::target::Target;
    use crate::testing::TestNode;

    fn among(target: &str) -> Among {
        Among { target: Some(Target::parse(target).expect("a target")), disabled: None }
    }

    #[actix_rt::test]
    async fn a_fleet_of_many_strides_is_searched_to_its_end() {
        let node = TestNode::new().await;
        node.agents(9_001).await;
        assert_eq!(count(&node.node, &Among::default()).await.unwrap(), 9_001);
        assert_eq!(count(&node.node, &among("name LIKE '%7'")).await.unwrap(), 900);
        let last = among("name LIKE 'agent-0%900_'");
        let found = list(&node.node, &last, None, 5).await.unwrap();
        assert_eq!(found.agents.iter().map(|agent| agent.name.as_str()).collect::<Vec<_>>(), ["agent-09000"]);
        assert_eq!(found.through, None);
        let first = list(&node.node, &among("name LIKE '%00'"), None, 2).await.unwrap();
        assert_eq!(first.through.as_deref(), Some("agent-00100"));
        let next = list(&node.node, &among("name LIKE '%00'"), first.through.as_deref(), 2).await.unwrap();
        assert_eq!(next.agents[0].name, "agent-00200");
    }

    #[actix_rt::test]
    async fn a_question_that_waits_too_long_for_its_turn_is_refused() {
        let node = TestNode::new().await;
        let _others = node.node.questions.acquire_many(1).await.unwrap();
        let mut question = Question::new(&node.node);
        question.deadline = Instant::now();
        let refused = question.stride(async |_| Ok(())).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("takes longer than 30 s")));
    }
}
