//! What waits in a sender: a queue per group, with turns, limits and a circuit breaker for each.
//! Pure: times come from the caller.

use super::breaker::Breaker;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The wait before a command that found its group's queue full is offered again.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// How long after a job was last offered a host that is away is forgotten: longer than the longest wait of a command.
const FORGOTTEN: Duration = Duration::from_secs(90);
/// How many groups are remembered. Beyond that, those without jobs are forgotten.
const REMEMBERED: usize = 10_000;

/// Limits of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of deliveries under way.
    pub concurrency: usize,
    /// Maximum number of deliveries under way in one group.
    pub per_group: usize,
    /// Maximum number of commands that wait in one group. Others stay with the scheduler.
    pub queue: usize,
    /// Maximum time of one delivery. A delivery that takes longer is aborted and counts as a failed
    /// attempt.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: 100, per_group: 100, queue: 2_000, timeout: Duration::from_secs(30) }
    }
}

struct Group<J> {
    waiting: VecDeque<J>,
    running: usize,
    breaker: Breaker,
    /// It is in a list of turns.
    has_turn: bool,
    /// What is under way is a probe.
    is_probed: bool,
    /// When a job was last offered.
    asked: Option<Instant>,
}

impl<J> Default for Group<J> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            running: 0,
            breaker: Breaker::default(),
            has_turn: false,
            is_probed: false,
            asked: None,
        }
    }
}

/// How a delivery went, as the breaker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// The host was reached.
    Reached,
    /// It was not.
    Unreached,
}

/// See the module.
pub(super) struct Groups<J> {
    limits: Limits,
    groups: HashMap<Arc<str>, Group<J>>,
    /// Groups that have something to start, in turn.
    turns: VecDeque<Arc<str>>,
    /// The same, of hosts that may not be there: they share half of the deliveries, so that hosts that hang leave room for
    /// the others.
    probes: VecDeque<Arc<str>>,
    probing: usize,
    /// Whose turn it is.
    is_probes_turn: bool,
    running: usize,
    waiting: usize,
}

impl<J> Groups<J> {
    pub(super) fn new(limits: Limits) -> Self {
        let (turns, probes) = (VecDeque::new(), VecDeque::new());
        let (probing, is_probes_turn, running, waiting) = (0, false, 0, 0);
        Self { limits, groups: HashMap::new(), turns, probes, probing, is_probes_turn, running, waiting }
    }

    /// (waiting, running, groups that are away).
    pub(super) fn numbers(&self) -> (usize, usize, usize) {
        (self.waiting, self.running, self.groups.values().filter(|group| group.breaker.is_away()).count())
    }

    /// Takes a job, or gives it back with the wait after which it may be offered again.
    pub(super) fn add(&mut self, name: &Arc<str>, job: J, now: Instant) -> Result<(), (J, Duration)> {
        let group = self.groups.entry(name.clone()).or_default();
        group.asked = Some(now);
        if let Some(left) = group.breaker.remaining(now) {
            return Err((job, left.max(FULL_RETRY)));
        }
        if group.waiting.len() >= self.limits.queue {
            return Err((job, FULL_RETRY));
        }
        group.waiting.push_back(job);
        self.waiting += 1;
        self.give_turn(name, now);
        Ok(())
    }

    /// Whether the host of a group is away.
    pub(super) fn is_away(&self, name: &Arc<str>) -> bool {
        self.groups.get(name).is_some_and(|group| group.breaker.is_away())
    }

    /// Puts a job back that was started and not attempted. It is the next of its group.
    pub(super) fn put_back(&mut self, name: &Arc<str>, job: J) {
        self.groups.entry(name.clone()).or_default().waiting.push_front(job);
        self.waiting += 1;
    }

    fn give_turn(&mut self, name: &Arc<str>, now: Instant) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let slots = group.breaker.slots(self.limits.per_group, now);
        if !group.has_turn && !group.waiting.is_empty() && group.running < slots {
            group.has_turn = true;
            let turns = if group.breaker.is_certain() { &mut self.turns } else { &mut self.probes };
            turns.push_back(name.clone());
        }
    }

    /// The group whose turn it is. Those that are probed and the others alternate.
    fn next_turn(&mut self) -> Option<Arc<str>> {
        self.is_probes_turn = !self.is_probes_turn;
        let has_room = self.probing < self.limits.concurrency.div_ceil(2);
        let mut probe = || if has_room { self.probes.pop_front() } else { None };
        if self.is_probes_turn
            && let Some(name) = probe()
        {
            return Some(name);
        }
        self.turns.pop_front().or_else(probe)
    }

    /// The next job to start. The groups take turns.
    pub(super) fn start(&mut self, now: Instant) -> Option<(Arc<str>, J)> {
        while self.running < self.limits.concurrency {
            let name = self.next_turn()?;
            let Some(group) = self.groups.get_mut(&name) else { continue };
            group.has_turn = false;
            if group.running >= group.breaker.slots(self.limits.per_group, now) {
                continue;
            }
            let Some(job) = group.waiting.pop_front() else { continue };
            group.running += 1;
            if !group.breaker.is_certain() {
                group.is_probed = true;
                self.probing += 1;
            }
            self.running += 1;
            self.waiting -= 1;
            self.give_turn(&name, now);
            return Some((name, job));
        }
        None
    }

    /// A started job is over. `None`: it was not attempted. Answers how long its group has to wait,
    /// if its host is away.
    pub(super) fn end(&mut self, name: &Arc<str>, reach: Option<Reach>, now: Instant, jitter: f64) -> Option<Duration> {
        let group = self.groups.get_mut(name)?;
        group.running -= 1;
        self.running -= 1;
        if std::mem::take(&mut group.is_probed) {
            self.probing -= 1;
        }
        match reach {
            Some(Reach::Reached) => group.breaker.reached(),
            Some(Reach::Unreached) => group.breaker.failed(now, jitter),
            None => {}
        }
        let left = group.breaker.remaining(now);
        self.give_turn(name, now);
        self.forget_idle(name);
        left
    }

    /// The wait of a group is over: gives it its turn. Answers how long it is still to wait, or until it is forgotten if
    /// nobody needs it.
    pub(super) fn wake(&mut self, name: &Arc<str>, now: Instant) -> Option<Duration> {
        self.give_turn(name, now);
        let group = self.groups.get(name)?;
        if let Some(left) = group.breaker.remaining(now) {
            return Some(left);
        }
        let is_idle = group.waiting.is_empty() && group.running == 0;
        if !is_idle || !group.breaker.is_away() {
            self.forget_idle(name);
            return None;
        }
        // Its commands come again at least as often, if there are any.
        let unneeded = group.asked.map_or(FORGOTTEN, |asked| now.saturating_duration_since(asked));
        if unneeded < FORGOTTEN {
            return Some(FORGOTTEN);
        }
        self.groups.remove(name);
        None
    }

    /// A group without jobs is forgotten unless its host is known to be there, or away; and among many groups in any
    /// case unless it is away.
    fn forget_idle(&mut self, name: &Arc<str>) {
        let many = self.groups.len() > REMEMBERED;
        let known = |group: &Group<J>| !group.breaker.is_quiet() || (group.breaker.is_proven() && !many);
        let idle = |group: &Group<J>| group.waiting.is_empty() && group.running == 0 && !known(group);
        if self.groups.get(name).is_some_and(idle) {
            self.groups.remove(name);
        }
    }

    /// Removes all waiting jobs.
    pub(super) fn take_waiting(&mut self) -> Vec<J> {
        self.waiting = 0;
        self.turns.clear();
        self.probes.clear();
        let groups = self.groups.values_mut();
        groups
            .flat_map(|group| {
                group.has_turn = false;
                std::mem::take(&mut group.waiting)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::breaker::THRESHOLD;
    use super::*;

    fn limits(concurrency: usize, per_group: usize, queue: usize) -> Limits {
        Limits { concurrency, per_group, queue, ..Limits::default() }
    }

    fn name(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    /// The hosts of these groups are reached.
    fn reach(groups: &mut Groups<u32>, names: &[&str], now: Instant) {
        for host in names {
            groups.add(&name(host), 0, now).expect("room");
            let (host, _) = groups.start(now).expect("room");
            groups.end(&host, Some(Reach::Reached), now, 0.0);
        }
    }

    fn started(groups: &mut Groups<u32>, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| groups.start(now)).map(|(_, job)| job).collect()
    }

    #[test]
    fn groups_take_turns_within_their_limits() {
        let now = Instant::now();
        let mut groups = Groups::new(limits(5, 2, 10));
        reach(&mut groups, &["a", "b"], now);
        for job in 0..4 {
            groups.add(&name("a"), job, now).expect("room");
        }
        for job in [10, 11] {
            groups.add(&name("b"), job, now).expect("room");
        }
        assert_eq!(started(&mut groups, now), [0, 10, 1, 11]);
        groups.end(&name("a"), Some(Reach::Reached), now, 0.0);
        assert_eq!(started(&mut groups, now), [2]);
        assert_eq!(groups.numbers(), (1, 4, 0));
    }

    #[test]
    fn a_full_group_gives_back_and_others_have_room() {
        let now = Instant::now();
        let mut groups = Groups::new(limits(1, 1, 2));
        for job in 0..2 {
            groups.add(&name("slow"), job, now).expect("room");
        }
        assert_eq!(groups.add(&name("slow"), 2, now), Err((2, FULL_RETRY)));
        assert!(groups.add(&name("fast"), 3, now).is_ok());
    }

    #[test]
    fn a_host_that_is_away_is_probed_by_one_job_and_the_others_stay() {
        let mut now = Instant::now();
        let mut groups = Groups::new(limits(10, 5, 10));
        let (host, other) = (name("host"), name("other"));
        reach(&mut groups, &["host"], now);
        for job in 0..6 {
            groups.add(&host, job, now).expect("room");
        }
        let mut wait = None;
        for _ in 0..THRESHOLD {
            let (_, job) = groups.start(now).expect("it is closed");
            groups.put_back(&host, job);
            wait = groups.end(&host, Some(Reach::Unreached), now, 0.0).or(wait);
        }
        let wait = wait.expect("it opened");
        assert_eq!(started(&mut groups, now), [0; 0], "nothing goes out");
        assert!(groups.add(&host, 9, now).is_err() && groups.add(&other, 20, now).is_ok());
        assert_eq!(started(&mut groups, now), [20], "another host is not affected");
        assert_eq!(groups.wake(&host, now), Some(wait), "too early");
        now += wait;
        assert_eq!(groups.wake(&host, now), None);
        assert_eq!(started(&mut groups, now).len(), 1, "one probe");
        groups.end(&host, Some(Reach::Reached), now, 0.0);
        assert_eq!(started(&mut groups, now).len(), 5, "it is closed");
    }

    #[test]
    fn hosts_that_hang_leave_half_of_the_deliveries_to_the_others() {
        let now = Instant::now();
        let mut groups = Groups::new(limits(4, 4, 10));
        reach(&mut groups, &["live"], now);
        for host in 0..9 {
            groups.add(&name(&host.to_string()), host, now).expect("room");
        }
        assert_eq!(started(&mut groups, now).len(), 2);
        for job in 20..23 {
            groups.add(&name("live"), job, now).expect("room");
        }
        assert_eq!(started(&mut groups, now), [20, 21]);
        groups.end(&name("live"), Some(Reach::Reached), now, 0.0);
        assert_eq!(started(&mut groups, now), [22]);
        groups.end(&name("0"), Some(Reach::Unreached), now, 0.0);
        assert_eq!(started(&mut groups, now), [2], "the next one is probed");
    }

    #[test]
    fn a_host_that_is_away_and_that_nobody_needs_is_forgotten() {
        let mut now = Instant::now();
        let mut groups = Groups::new(limits(4, 4, 10));
        let host = name("host");
        groups.add(&host, 1, now).expect("room");
        assert_eq!(started(&mut groups, now), [1]);
        now += groups.end(&host, Some(Reach::Unreached), now, 0.0).expect("it opened");
        assert_eq!(groups.wake(&host, now), Some(FORGOTTEN), "it is looked at again later");
        assert_eq!(groups.numbers().2, 1);
        now += FORGOTTEN;
        assert_eq!(groups.wake(&host, now), None);
        assert_eq!(groups.numbers().2, 0);
    }

    #[test]
    fn groups_without_jobs_take_bounded_memory() {
        let now = Instant::now();
        let mut groups = Groups::new(limits(10, 5, 10));
        for host in 0..REMEMBERED + 500 {
            reach(&mut groups, &[&host.to_string()], now);
        }
        assert_eq!((groups.groups.len(), groups.turns.len()), (REMEMBERED, 0));
        let unknown = name("unknown");
        groups.add(&unknown, 1, now).expect("room");
        assert!(groups.start(now).is_some());
        groups.end(&unknown, None, now, 0.0);
        assert!(!groups.groups.contains_key(&unknown), "it was neither reached nor missed");
    }

    #[test]
    fn a_host_that_was_never_reached_costs_one_attempt() {
        let mut now = Instant::now();
        let mut groups = Groups::new(limits(10, 5, 10));
        let host = name("host");
        for job in 0..4 {
            groups.add(&host, job, now).expect("room");
        }
        assert_eq!(started(&mut groups, now), [0]);
        now += groups.end(&host, Some(Reach::Unreached), now, 0.0).expect("it opened");
        assert!(groups.is_away(&host));
        assert_eq!(groups.wake(&host, now), None);
        assert_eq!(started(&mut groups, now), [1], "one probe");
        groups.end(&host, Some(Reach::Reached), now, 0.0);
        assert!(!groups.is_away(&host));
        assert_eq!(started(&mut groups, now), [2, 3]);
    }

    #[test]
    fn what_waits_can_be_taken_out() {
        let now = Instant::now();
        let mut groups = Groups::new(limits(1, 1, 10));
        for job in 0..3 {
            groups.add(&name("a"), job, now).expect("room");
        }
        assert!(groups.start(now).is_some());
        assert_eq!(groups.take_waiting(), [1, 2]);
        groups.end(&name("a"), None, now, 0.0);
        assert_eq!((groups.start(now), groups.numbers()), (None, (0, 0, 0)));
    }
}
