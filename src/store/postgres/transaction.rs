//! Calls: connection, transaction, fencing, retries and cancelling.
//!
//! Each call runs as a task of its own on the store's runtime. So a caller that goes away can't
//! leave a transaction half done, and a call costs one hop between threads, not one per statement.
//!
//! **Fencing.** A writing transaction first locks this node's row in `nodes` FOR KEY SHARE. A
//! takeover deletes that row: it waits for transactions in flight, and later ones don't find the
//! row and fail.
//!
//! **Unknown commits.** When the answer to a COMMIT is lost, the transaction's id tells whether it
//! was committed (`pg_xact_status`). The store asks on another connection before it retries. A
//! server that was restarted meanwhile may have given the id to another transaction, so its answer
//! doesn't count. Then the call is retried, which is safe: every call that writes finds what it
//! wrote the first time, by an id, a key or a position in an order.
//!
//! **Abandoned calls.** When the future of a call for people is dropped, the store sends cancel
//! requests to the server until the statement has ended, and then closes the connection: a late
//! request can't hit the next statement on it. The connection keeps its place in the pool until
//! then, so abandoned calls can't pile up on the server. Their statements are also bounded by the
//! time limit of the people's pool.
//!
//! **Retries.** Deadlocks, lock timeouts and broken connections are retried a few times here.
//! Nothing remains of a failed transaction. What still fails is left to the caller, which waits
//! longer.

use super::connect::Connector;
use super::error::{is_broken, may_pass, sort};
use super::inner::{Inner, State};
use super::link::Connected;
use super::pools::Caller;
use crate::error_chain::ErrorChain;
use crate::store::sql::sql;
use crate::store::{StoreError, StoreResult};
use deadpool::managed::Object;
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::future::BoxFuture;
use rand::RngExt;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time limit of a whole call. A connection whose peer is gone may stay silent for ever.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);
/// Maximum number of tries of a call that fails with a passing error.
const TRIES: u32 = 4;
/// No retry begins later than this after the first try.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the store asks whether a transaction was committed.
const FATE_TIMEOUT: Duration = Duration::from_secs(10);

/// The work of a call on its connection. It may run several times.
pub(super) type Body<T> = Box<dyn for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, QueryResult<T>> + Send + Sync>;

/// A call's body from a closure, whose type is inferred from the argument here.
pub(super) fn boxed<T>(
    work: impl for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, QueryResult<T>> + Send + Sync + 'static,
) -> Body<T> {
    Box::new(work)
}

/// A call's body from an expression, which may be evaluated several times: what it needs is cloned
/// for each.
macro_rules! body {
    ([$($needed:ident),*] $conn:ident => $work:expr) => {{
        $(let $needed = $needed.clone();)*
        $crate::store::postgres::transaction::boxed(move |$conn| {
            $(let $needed = $needed.clone();)*
            Box::pin(async move { $work.await })
        })
    }};
}

pub(super) use body;

/// Whether a call writes, in one transaction, or reads, in statements that need no common snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Period of the cancel requests for an abandoned call. A request that arrives between two
/// statements has no effect.
const CANCEL_EVERY: Duration = Duration::from_secs(1);

/// A call, apart from its body.
#[derive(Clone)]
pub(super) struct Call {
    /// Its name, for errors and logs.
    pub(super) during: &'static str,
    pub(super) caller: Caller,
    pub(super) access: Access,
    /// Cancelled when nobody waits for the answer of a call that may be aborted.
    pub(super) abandoned: CancellationToken,
}

/// The result of one try.
enum Tried<T> {
    Done(T),
    Failed(Error),
    /// The answer to the commit of this transaction was lost. With the result of the call, if it
    /// was committed.
    Unknown(Transaction, T, Error),
}

/// The id of a transaction, and the start time of the server that ran it.
#[derive(Debug, QueryableByName)]
struct Transaction {
    #[diesel(sql_type = Text)]
    xid: String,
    #[diesel(sql_type = Text)]
    run: String,
}

#[derive(QueryableByName)]
struct Fate {
    #[diesel(sql_type = Nullable<Text>)]
    fate: Option<String>,
}

fn abandoned(during: &str) -> StoreError {
    StoreError::Unavailable(format!("{during}: nobody waits for the answer"))
}

impl Inner {
    /// Runs a call, with retries.
    pub(super) async fn call<T: Send>(&self, call: Call, body: &Body<T>) -> StoreResult<T> {
        let during = call.during;
        let started = Instant::now();
        let mut tries = 0;
        loop {
            self.gate(during)?;
            tries += 1;
            let mut conn = self
                .pools
                .get(call.caller)
                .await
                .map_err(|error| StoreError::Unavailable(format!("{during}: no connection: {error}")))?;
            if call.abandoned.is_cancelled() {
                return Err(abandoned(during));
            }
            conn.forget_code();
            let tried = match tokio::time::timeout(CALL_TIMEOUT, self.attempt(&mut conn, &call, body)).await {
                Ok(tried) => tried,
                Err(_) => {
                    self.discard(conn);
                    let within = CALL_TIMEOUT.as_secs();
                    return Err(StoreError::Unavailable(format!("{during}: no answer within {within} s")));
                }
            };
            if call.abandoned.is_cancelled() {
                drop(Object::take(conn));
                return Err(abandoned(during));
            }
            let code = conn.code();
            let error = match tried {
                Tried::Done(done) => return Ok(done),
                Tried::Failed(error) => {
                    if is_broken(&error) {
                        self.discard(conn);
                    }
                    error
                }
                Tried::Unknown(transaction, done, error) => {
                    self.discard(conn);
                    log::warn!(during, error:% = error.chain(); "the answer to a commit was lost");
                    if self.is_committed(&call, &transaction).await? {
                        return Ok(done);
                    }
                    error
                }
            };
            self.gate(during)?;
            if !may_pass(&error, code) || tries >= TRIES || started.elapsed() > TRY_TIMEOUT {
                return Err(sort(during, error, code));
            }
            log::debug!(during, error:% = error.chain(); "a transaction is tried again");
            let wait = Duration::from_millis(5 << tries).mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::time::sleep(wait).await;
        }
    }

    /// Runs a call once. Cancels its statements when it is abandoned.
    async fn attempt<T: Send>(&self, conn: &mut Connected, call: &Call, body: &Body<T>) -> Tried<T> {
        let canceller = conn.canceller();
        let work = async {
            match call.access {
                Access::Write => self.transaction(conn, call.during, body).await,
                Access::Read => {
                    let done = body(conn).await;
                    crate::fault_point!(call.during);
                    done.map_or_else(Tried::Failed, Tried::Done)
                }
            }
        };
        let cancelling = async {
            call.abandoned.cancelled().await;
            loop {
                if let Err(error) = canceller.cancel().await {
                    log::debug!(during = call.during, error:% = error.chain(); "a statement is not cancelled");
                }
                tokio::time::sleep(CANCEL_EVERY).await;
            }
        };
        tokio::select! {
            tried = work => tried,
            () = cancelling => unreachable!("it never ends"),
        }
    }

    async fn transaction<T: Send>(&self, conn: &mut Connected, _during: &'static str, body: &Body<T>) -> Tried<T> {
        conn.set_in_transaction(true);
        // Both are sent at once, which saves a round trip.
        let mut first = &**conn;
        let begun = first.batch_execute("BEGIN");
        let fence = "SELECT pg_current_xact_id()::text AS xid, pg_postmaster_start_time()::text AS run FROM nodes \
                     WHERE incarnation = ? FOR KEY SHARE";
        let mut second = &**conn;
        let fenced = sql(fence).bind(self.incarnation.as_str()).get_result::<Transaction>(&mut second);
        let (begun, fenced) = futures_util::join!(begun, fenced);
        if let Err(error) = begun {
            return Tried::Failed(error);
        }
        let done = async {
            let Some(transaction) = fenced.optional()? else { return Ok(None) };
            let done = body(conn).await?;
            crate::fault_point!(_during);
            Ok(Some((transaction, done)))
        };
        match done.await {
            Ok(Some((transaction, done))) => match conn.batch_execute("COMMIT").await {
                Ok(()) => {
                    conn.set_in_transaction(false);
                    Tried::Done(done)
                }
                Err(error) => Tried::Unknown(transaction, done, error),
            },
            Ok(None) => {
                self.set_state(State::Fenced);
                Self::roll_back(conn).await.ok();
                Tried::Failed(Error::RollbackTransaction)
            }
            Err(error) => match Self::roll_back(conn).await {
                Ok(()) => Tried::Failed(error),
                // The first error says more, unless only the second one says that the connection is
                // gone.
                Err(second) => Tried::Failed(if is_broken(&second) { second } else { error }),
            },
        }
    }

    async fn roll_back(conn: &mut Connected) -> QueryResult<()> {
        conn.batch_execute("ROLLBACK").await?;
        conn.set_in_transaction(false);
        Ok(())
    }

    /// Closes a broken connection, and the idle ones, which most likely broke with it.
    fn discard(&self, conn: Object<Connector>) {
        drop(Object::take(conn));
        self.pools.close_idle();
    }

    /// Whether a transaction whose COMMIT was sent is committed. False if the server has been
    /// restarted since.
    async fn is_committed(&self, call: &Call, transaction: &Transaction) -> StoreResult<bool> {
        let started = Instant::now();
        loop {
            let fate = async {
                let mut conn = self.pools.get(call.caller).await.map_err(|error| error.to_string())?;
                let asked =
                    sql("SELECT CASE WHEN pg_postmaster_start_time()::text = ? THEN pg_xact_status(?::text::xid8) \
                                 ELSE 'another run' END AS fate")
                    .bind(transaction.run.as_str())
                    .bind(transaction.xid.as_str());
                let answer = asked.get_result::<Fate>(&mut **conn).await;
                if answer.as_ref().is_err_and(is_broken) {
                    self.discard(conn);
                }
                answer.map(|row| row.fate).map_err(|error| error.to_string())
            };
            let fate = tokio::time::timeout(FATE_TIMEOUT, fate).await.unwrap_or_else(|_| Err("no answer".into()));
            match fate.as_ref().map(Option::as_deref) {
                Ok(Some("committed")) => return Ok(true),
                Ok(Some("aborted" | "another run")) => return Ok(false),
                // The server hasn't noticed yet that its client is gone.
                _ if started.elapsed() < FATE_TIMEOUT => tokio::time::sleep(Duration::from_millis(50)).await,
                unknown => {
                    let during = call.during;
                    let what = format!("{during}: whether a transaction was committed can't be told: {unknown:?}");
                    return Err(StoreError::Unavailable(what));
                }
            }
        }
    }
}
