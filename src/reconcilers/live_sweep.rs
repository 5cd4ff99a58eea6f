//! Looks through the fleet for agents that may join live actions, in case that nobody heard of a change.
//!
//! It goes through the live actions that this node owns, a stride of each at a time, and rests between: in a large fleet
//! with many live actions a sweep takes longer, and not more of the store. When more has changed at this node than
//! [`live_join`](super::live_join) remembers, it looks through all live actions at once.

use super::support::{join, target_of};
use crate::context::Node;
use crate::domain::stride::Stride;
use crate::error_chain::ErrorChain;
use crate::runtime::isolation::MISSES;
use crate::runtime::{Backoffs, Pace, Reconcile, RoundFailed};
use crate::signals::Dirty;
use crate::store::{Part, StoreResult};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks for live actions.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// The shortest time between the beginnings of two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How long a round may take, about.
const ROUND: Duration = Duration::from_millis(200);
/// It rests this many times as long as a round took.
const REST: u32 = 4;
/// Maximum number of agents that join in one transaction.
const PAGE: usize = 1_000;

/// An action that is being swept.
struct Place {
    no: i64,
    /// The agent key up to which the fleet was looked through.
    after: i64,
    stride: Stride,
    /// Something changed behind the place: the fleet is looked through once more.
    again: bool,
}

/// See the module.
pub struct LiveSweep {
    node: Arc<Node>,
    /// The actions to sweep, the next one first.
    places: VecDeque<Place>,
    /// When the last sweep of each action began.
    swept: HashMap<i64, Instant>,
    backoffs: Backoffs,
}

impl LiveSweep {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, places: VecDeque::new(), swept: HashMap::new(), backoffs: Backoffs::default() }
    }

    /// Decides what is swept: what was asked for, and each own action once a minute, whatever becomes of others.
    fn plan(&mut self, live: &[i64], asked: Dirty) {
        let is_live: HashSet<i64> = live.iter().copied().collect();
        self.places.retain(|place| is_live.contains(&place.no));
        self.swept.retain(|no, _| is_live.contains(no));
        self.backoffs.retain(|no| is_live.contains(&no));
        let asked: Vec<i64> = match asked {
            Dirty::Keys(nos) => nos.into_iter().filter(|no| is_live.contains(no)).collect(),
            Dirty::Everything => live.to_vec(),
        };
        for no in asked {
            match self.places.iter_mut().find(|place| place.no == no) {
                Some(place) => place.again = true,
                None => self.begin(no),
            }
        }
        let open = self.node.signals.open_actions().last();
        let others: HashSet<i64> = open.actions.iter().filter(|action| !action.owned).map(|action| action.no).collect();
        let under_way: HashSet<i64> = self.places.iter().map(|place| place.no).collect();
        for no in live.iter().filter(|no| !others.contains(no) && !under_way.contains(no)) {
            if self.swept.get(no).is_none_or(|swept| swept.elapsed() >= SWEEP_INTERVAL) {
                self.begin(*no);
            }
        }
    }

    fn begin(&mut self, no: i64) {
        self.swept.insert(no, Instant::now());
        self.places.push_back(Place { no, after: 0, stride: Stride::default(), again: false });
    }

    /// Lets the agents of the next stride join. False if there are no more.
    async fn join(&self, place: &mut Place) -> StoreResult<bool> {
        let Some(target) = target_of(&self.node, place.no).await? else { return Ok(false) };
        let part = Part { after: place.after, limit: PAGE, searched: place.stride.agents() };
        let began = Instant::now();
        let through = join(&self.node, place.no, &target, None, part).await;
        place.stride.took(began.elapsed());
        let through = through?;
        place.after = through.unwrap_or_default();
        // At the end, perhaps from the beginning.
        Ok(through.is_some() || std::mem::take(&mut place.again))
    }
}

impl Reconcile for LiveSweep {
    const NAME: &'static str = "live_sweep";
    const DEBOUNCE: Duration = Duration::from_millis(20);

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        // Asked for before the list is read: what was asked for is in it.
        let asked = self.node.signals.live_sweeps().take();
        let live = match self.node.store.action_list_live().await {
            Ok(live) => live,
            Err(error) => {
                match asked {
                    Dirty::Keys(nos) => self.node.signals.live_sweeps().add(nos),
                    Dirty::Everything => self.node.signals.live_sweeps().add_everything(),
                }
                return Err(error.into());
            }
        };
        self.plan(&live, asked);
        let (began, mut misses) = (Instant::now(), 0);
        // Each place once around, at most: those that pause stay where they are.
        let mut passed_over = 0;
        while passed_over < self.places.len() && began.elapsed() < ROUND {
            let Some(mut place) = self.places.pop_front() else { break };
            if !self.backoffs.is_due(place.no, Instant::now()) {
                passed_over += 1;
                self.places.push_back(place);
                continue;
            }
            passed_over = 0;
            match self.join(&mut place).await {
                Ok(goes_on) => {
                    self.backoffs.done(place.no);
                    misses = 0;
                    self.places.extend(goes_on.then_some(place));
                }
                Err(error) => {
                    let (action, text) = (self.node.actions.shown(place.no), error.chain().to_string());
                    self.backoffs.failed(place.no, &text, Instant::now());
                    log::warn!(action, error = text; "a sweep for a live action waits");
                    self.places.push_back(place);
                    misses += usize::from(error.is_transient());
                    if misses >= MISSES {
                        return Err(error.into());
                    }
                }
            }
        }
        if self.places.is_empty() {
            return Ok(Pace::Wait);
        }
        let all_pause = passed_over >= self.places.len();
        let least = if all_pause { Duration::from_secs(1) } else { Duration::from_millis(100) };
        Ok(Pace::After((began.elapsed() * REST).max(least)))
    }

    fn trouble(&self) -> Option<String> {
        self.backoffs.trouble(|no| self.node.actions.shown(no))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{AWAY, TestNode};

    /// Rounds until nothing is left to sweep.
    async fn run(sweep: &mut LiveSweep) {
        while sweep.run_once().await.unwrap() != Pace::Wait {}
    }

    #[actix_rt::test]
    async fn an_agent_of_which_nobody_heard_joins_by_the_sweep_which_is_due_once_a_minute() {
        let node = TestNode::new().await;
        let action = node.live_action().await;
        let mut sweep = LiveSweep::new(node.node.clone());
        node.agents(1).await;
        run(&mut sweep).await;
        assert_eq!(node.states(&action).await.len(), 2);
        // The third one does not match.
        node.agents(2).await;
        run(&mut sweep).await;
        assert_eq!(node.states(&action).await.len(), 2, "it has swept just now");
        node.node.signals.sweep_live([action.no]);
        run(&mut sweep).await;
        assert_eq!(node.states(&action).await.len(), 3, "unless it is asked for");
        node.agents(1).await;
        sweep.swept.clear();
        run(&mut sweep).await;
        assert_eq!(node.states(&action).await.len(), 4);
    }

    #[actix_rt::test]
    async fn a_sweep_goes_beyond_the_first_stride_and_the_first_page() {
        let node = TestNode::new().await;
        let action = node.live_action().await;
        let more = Stride::default().agents() + 2;
        node.agents(more).await;
        run(&mut LiveSweep::new(node.node.clone())).await;
        assert_eq!(node.states(&action).await.len(), more);
    }

    #[actix_rt::test]
    async fn another_nodes_action_is_swept_only_if_more_has_changed_here_than_is_remembered() {
        let node = TestNode::new().await;
        let action = node.live_action().await;
        node.agents(1).await;
        node.read_open_actions().await;
        node.pretend(action.no, |open| open.owned = false);
        let mut sweep = LiveSweep::new(node.node.clone());
        run(&mut sweep).await;
        assert_eq!(node.states(&action).await.len(), 1);
        node.node.signals.live_sweeps().add_everything();
        run(&mut sweep).await;
        assert_eq!(node.states(&action).await.len(), 2);
    }

    #[actix_rt::test]
    async fn a_sweep_that_failed_goes_on_where_it_was_and_is_in_no_others_way() {
        let node = TestNode::new().await;
        let (bad, good) = (node.live_action().await, node.live_action().await);
        node.agents(1).await;
        let mut sweep = LiveSweep::new(node.node.clone());
        node.break_inserts("commands", &format!("NEW.action_no = {}", bad.no), AWAY);
        assert!(matches!(sweep.run_once().await.unwrap(), Pace::After(_)));
        assert_eq!((node.states(&bad).await.len(), node.states(&good).await.len()), (1, 2));
        assert!(sweep.trouble().is_some());
        node.mend_inserts("commands");
        sweep.backoffs = Backoffs::default();
        run(&mut sweep).await;
        assert_eq!(node.states(&bad).await.len(), 2);
        assert!(sweep.trouble().is_none());
    }

    #[actix_rt::test]
    async fn what_is_asked_for_during_a_sweep_is_swept_once_more() {
        let node = TestNode::new().await;
        let action = node.live_action().await;
        let mut sweep = LiveSweep::new(node.node.clone());
        sweep.plan(&[action.no], Dirty::Keys([action.no].into()));
        sweep.plan(&[action.no], Dirty::Everything);
        let mut place = sweep.places.pop_front().expect("it is to be swept");
        assert!(place.again && sweep.places.is_empty());
        assert!(sweep.join(&mut place).await.unwrap() && place.after == 0, "from the beginning");
        assert!(!sweep.join(&mut place).await.unwrap(), "and then no more");
        assert!(!sweep.swept.is_empty());
        sweep.plan(&[], Dirty::Keys([action.no].into()));
        assert!(sweep.places.is_empty() && sweep.swept.is_empty(), "it has ended");
    }

    #[actix_rt::test]
    async fn while_the_store_is_away_the_round_fails() {
        let node = TestNode::new().await;
        for _ in 0..3 {
            node.live_action().await;
        }
        node.agents(1).await;
        let mut sweep = LiveSweep::new(node.node.clone());
        node.break_inserts("commands", "TRUE", AWAY);
        assert!(sweep.run_once().await.is_err());
    }

    #[actix_rt::test]
    async fn nobody_joins_an_action_that_has_expired() {
        let node = TestNode::new().await;
        let action = node.live_action().await;
        node.agents(1).await;
        node.pass(Duration::from_secs(3_601));
        run(&mut LiveSweep::new(node.node.clone())).await;
        assert_eq!(node.states(&action).await.len(), 1);
    }
}
