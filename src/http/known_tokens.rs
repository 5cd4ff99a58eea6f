//! What callers with unknown tokens can do: little.
//!
//! A token that the store didn't know is refused for a while without asking it again: thousands of removed agents may call
//! every few seconds. An address from which many unknown tokens come, each of them new, has its other unknown tokens looked
//! up a few at a time. Tokens that were valid a while ago are always looked up at once, also behind a proxy, where all
//! callers have one address.

use super::error::{ApiError, ApiResult};
use crate::domain::problem::ProblemKind;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a token is refused without looking, at least.
const REFUSED: Duration = Duration::from_secs(30);
/// How long a valid token is remembered after it was looked up, at least. Connections last for days.
const REMEMBERED: Duration = Duration::from_secs(7 * 86_400);
/// Unknown and valid tokens that are remembered, about.
const UNKNOWN: usize = 100_000;
const VALID: usize = 2_000_000;
/// Unknown tokens a second from one address that are looked up at once, and how many more in a burst.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("it is not zero");
const BURST: NonZeroU32 = NonZeroU32::new(200).expect("it is not zero");
/// How long an address that sent more stays suspect.
const SUSPECT: Duration = Duration::from_secs(10);
/// Tokens from suspect addresses that are looked up at the same time, and calls that wait for that.
const TURNS: usize = 4;
const WAITING: usize = 10_000;
/// After so many unknown tokens, addresses that were quiet are forgotten.
const FORGET_EVERY: u64 = 10_000;
/// Suspect addresses that are remembered. With more, all are forgotten.
const ADDRESSES: usize = 10_000;

/// A token's hash.
type TokenHash = Vec<u8>;

/// Things that are remembered for a time, in two generations.
struct Lately<T> {
    young: HashSet<T>,
    old: HashSet<T>,
    since: Instant,
    time: Duration,
    most: usize,
}

impl<T: Eq + Hash> Lately<T> {
    fn new(time: Duration, most: usize) -> Self {
        Self { young: HashSet::new(), old: HashSet::new(), since: Instant::now(), time, most }
    }

    fn turn_over(&mut self) {
        if self.since.elapsed() >= self.time || self.young.len() >= self.most / 2 {
            self.since = Instant::now();
            self.old = std::mem::take(&mut self.young);
        }
    }

    fn contains(&mut self, what: &T) -> bool {
        self.turn_over();
        self.young.contains(what) || self.old.contains(what)
    }

    fn add(&mut self, what: T) {
        self.turn_over();
        self.young.insert(what);
    }
}

struct State {
    /// Tokens that the store didn't know.
    unknown: Lately<TokenHash>,
    /// Tokens that it did: the beginnings of their hashes.
    valid: Lately<u64>,
    /// Unknown tokens so far.
    seen: u64,
    /// Addresses that sent too many unknown ones, and until when they are suspect.
    suspect: HashMap<IpAddr, Instant>,
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub(super) struct KnownTokens(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    unknown: DefaultKeyedRateLimiter<IpAddr>,
    /// Permits to look up tokens from suspect addresses.
    turn: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// The right to look up a token.
pub(super) struct Lookup {
    _turn: Option<OwnedSemaphorePermit>,
}

impl Default for KnownTokens {
    fn default() -> Self {
        let (unknown, valid) = (Lately::new(REFUSED, UNKNOWN), Lately::new(REMEMBERED, VALID));
        let state = State { unknown, valid, seen: 0, suspect: HashMap::new() };
        let unknown = RateLimiter::keyed(Quota::per_second(PER_SECOND).allow_burst(BURST));
        let (turn, waiting) = (Arc::new(Semaphore::new(TURNS)), Arc::new(Semaphore::new(WAITING)));
        Self(Arc::new(Inner { state: Mutex::new(state), unknown, turn, waiting }))
    }
}

impl KnownTokens {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to ask the store for a token from this address. `None`: it didn't know the token a moment ago.
    ///
    /// # Errors
    /// If too many unknown tokens come from there.
    pub(super) async fn look_up(&self, hash: &TokenHash, address: Option<IpAddr>) -> ApiResult<Option<Lookup>> {
        let is_suspect = {
            let mut state = self.state();
            if state.unknown.contains(hash) {
                return Ok(None);
            }
            let until = address.and_then(|address| state.suspect.get(&network(address)).copied());
            until.is_some_and(|until| until > Instant::now()) && !state.valid.contains(&beginning(hash))
        };
        if !is_suspect {
            return Ok(Some(Lookup { _turn: None }));
        }
        let too_many = |_| {
            let detail = "too many calls with unknown tokens come from this address; slow down";
            ApiError::new(ProblemKind::TooManyRequests, detail)
        };
        let _waiting = self.0.waiting.clone().try_acquire_owned().map_err(too_many)?;
        // It is never closed.
        let turn = self.0.turn.clone().acquire_owned().await.ok();
        Ok(Some(Lookup { _turn: turn }))
    }

    /// The store knows this token.
    pub(super) fn is_valid(&self, hash: TokenHash) {
        let mut state = self.state();
        state.valid.add(beginning(&hash));
    }

    /// The store doesn't know this token, which came from this address.
    pub(super) fn is_unknown(&self, hash: TokenHash, address: Option<IpAddr>) {
        let mut state = self.state();
        state.unknown.add(hash);
        state.seen += 1;
        if state.seen.is_multiple_of(FORGET_EVERY) {
            self.0.unknown.retain_recent();
        }
        let Some(address) = address.map(network) else { return };
        if self.0.unknown.check_key(&address).is_err() {
            if state.suspect.len() >= ADDRESSES {
                state.suspect.clear();
            }
            state.suspect.insert(address, Instant::now() + SUSPECT);
        }
    }
}

/// The beginning of a hash.
fn beginning(hash: &TokenHash) -> u64 {
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The address, or the network of a caller that has a whole one.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    const THERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)));

    fn hash(number: usize) -> TokenHash {
        number.to_le_bytes().to_vec()
    }

    async fn is_asked(tokens: &KnownTokens, token: usize, address: Option<IpAddr>) -> bool {
        tokens.look_up(&hash(token), address).await.is_ok_and(|lookup| lookup.is_some())
    }

    #[tokio::test]
    async fn an_unknown_token_is_looked_up_once() {
        let tokens = KnownTokens::default();
        assert!(is_asked(&tokens, 1, HERE).await);
        tokens.is_unknown(hash(1), HERE);
        assert!(!is_asked(&tokens, 1, HERE).await && !is_asked(&tokens, 1, THERE).await);
        assert!(is_asked(&tokens, 2, HERE).await);
    }

    #[tokio::test]
    async fn from_an_address_with_many_unknown_tokens_they_are_looked_up_a_few_at_a_time() {
        let tokens = KnownTokens::default();
        tokens.is_valid(hash(0));
        for token in 1..10_000 {
            tokens.is_unknown(hash(token), HERE);
        }
        let mut turns = Vec::new();
        for token in 0..TURNS {
            turns.push(tokens.look_up(&hash(30_000 + token), HERE).await.expect("it is looked up"));
        }
        let next = hash(10_001);
        let second = tokens.look_up(&next, HERE);
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending(), "it waits for the others");
        assert!(is_asked(&tokens, 0, HERE).await, "one that was valid doesn't");
        assert!(is_asked(&tokens, 10_002, THERE).await, "nor does one from elsewhere");
        let hashes: Vec<TokenHash> = (0..WAITING).map(|n| hash(20_000 + n)).collect();
        let mut waiting: Vec<_> = hashes.iter().map(|hash| Box::pin(tokens.look_up(hash, HERE))).collect();
        let mut refused = 0;
        for call in &mut waiting {
            if let std::task::Poll::Ready(answer) = futures_util::poll!(call) {
                refused += usize::from(answer.is_err());
            }
        }
        assert_eq!(refused, 1, "only so many wait");
        drop((turns, waiting));
        assert!(second.await.is_ok_and(|lookup| lookup.is_some()));
    }

    #[test]
    fn what_is_remembered_is_forgotten_after_two_generations() {
        let mut lately = Lately::new(Duration::from_secs(3_600), 1_000);
        lately.add(0);
        for number in 1..=1_000 {
            lately.add(number);
        }
        assert!(!lately.contains(&0) && lately.contains(&1_000));
        assert!(lately.young.len() + lately.old.len() <= 1_000);
    }

    #[test]
    fn a_caller_with_a_whole_network_counts_as_one() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
