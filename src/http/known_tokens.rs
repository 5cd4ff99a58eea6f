//! What callers with unknown tokens can do: little.
//!
//! A token that the store didn't know is refused for a while without asking it again: thousands of removed agents may call
//! every few seconds. An address from which many unknown tokens come, each of them new, has its other unknown tokens looked
//! up one at a time. Tokens that were valid a while ago are always looked up at once, also behind a proxy, where all
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
/// How long a valid token is remembered after its last use, at least.
const REMEMBERED: Duration = Duration::from_secs(3_600);
/// Tokens of each kind that are remembered, about.
const TOKENS: usize = 200_000;
/// Unknown tokens a second from one address that are looked up at once, and how many more in a burst.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("it is not zero");
const BURST: NonZeroU32 = NonZeroU32::new(200).expect("it is not zero");
/// How long an address that sent more stays suspect.
const SUSPECT: Duration = Duration::from_secs(10);
/// Calls from suspect addresses that wait for their turn.
const WAITING: usize = 256;
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
}

impl<T: Eq + Hash> Lately<T> {
    fn new(time: Duration) -> Self {
        Self { young: HashSet::new(), old: HashSet::new(), since: Instant::now(), time }
    }

    fn turn_over(&mut self) {
        if self.since.elapsed() >= self.time || self.young.len() >= TOKENS / 2 {
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
    /// Tokens that it did.
    valid: Lately<TokenHash>,
    /// Addresses that sent too many unknown ones, and until when they are suspect.
    suspect: HashMap<IpAddr, Instant>,
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub(super) struct KnownTokens(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    unknown: DefaultKeyedRateLimiter<IpAddr>,
    /// One permit to look up a token from a suspect address.
    turn: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// The right to look up a token.
pub(super) struct Lookup {
    _turn: Option<OwnedSemaphorePermit>,
}

impl Default for KnownTokens {
    fn default() -> Self {
        let state = State { unknown: Lately::new(REFUSED), valid: Lately::new(REMEMBERED), suspect: HashMap::new() };
        let unknown = RateLimiter::keyed(Quota::per_second(PER_SECOND).allow_burst(BURST));
        let (turn, waiting) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(WAITING)));
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
            let until = address.and_then(|address| state.suspect.get(&address).copied());
            until.is_some_and(|until| until > Instant::now()) && !state.valid.contains(hash)
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
        if !state.valid.young.contains(&hash) {
            state.valid.add(hash);
        }
    }

    /// The store doesn't know this token, which came from this address.
    pub(super) fn is_unknown(&self, hash: TokenHash, address: Option<IpAddr>) {
        let mut state = self.state();
        state.unknown.add(hash);
        let Some(address) = address else { return };
        if self.0.unknown.check_key(&address).is_err() {
            if state.suspect.len() >= ADDRESSES {
                state.suspect.clear();
                self.0.unknown.retain_recent();
            }
            state.suspect.insert(address, Instant::now() + SUSPECT);
        }
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
    async fn from_an_address_with_many_unknown_tokens_they_are_looked_up_one_at_a_time() {
        let tokens = KnownTokens::default();
        tokens.is_valid(hash(0));
        for token in 1..10_000 {
            tokens.is_unknown(hash(token), HERE);
        }
        let first = tokens.look_up(&hash(10_000), HERE).await.expect("it is looked up");
        let next = hash(10_001);
        let second = tokens.look_up(&next, HERE);
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending(), "it waits for the first");
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
        drop((first, waiting));
        assert!(second.await.is_ok_and(|lookup| lookup.is_some()));
    }

    #[test]
    fn what_is_remembered_is_forgotten_after_two_generations() {
        let mut lately = Lately::new(Duration::from_secs(3_600));
        lately.add(0);
        for number in 1..=TOKENS {
            lately.add(number);
        }
        assert!(!lately.contains(&0) && lately.contains(&TOKENS));
        assert!(lately.young.len() + lately.old.len() <= TOKENS);
    }
}
