//! How a call of the store becomes a transaction.
//!
//! Each call runs as a task of its own on the store's runtime: a caller that goes away can't leave a transaction half
//! done, and a call costs one hop between threads, not one per statement.
//!
//! **Fencing.** A writing transaction first locks this node's row in `nodes` FOR KEY SHARE. Who takes over from this node
//! deletes that row, and so waits for transactions in flight; later ones find nothing here and fail.
//!
//! **Unknown commits.** When the answer to a COMMIT is lost, the transaction's number says what became of it
//! (`pg_xact_status`): that is asked, on another connection, before anything is done again. A server that was started
//! anew meanwhile may have given the number to another transaction, and so its word doesn't count. Then the call is done
//! again; every call that writes finds what it wrote the first time, by an id, a key or a place in an order.

//!
//! **Again.** Deadlocks, locks that took too long and connections that broke are tried again a few times right here;
//! nothing of a failed transaction remains. What still fails then is for the caller, who waits longer.

use super::connect::Connector;
use super::error::{is_broken, may_pass, sort};
use super::sql::sql;
use super::{Inner, State};
use crate::store::{StoreError, StoreResult};
use deadpool::managed::Object;
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{Nullable, Text};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, TransactionManager};
use futures_util::future::BoxFuture;
use rand::RngExt;
use std::time::{Duration, Instant};

/// How long a whole call may take: a connection that crashed silent says nothing, not even that it is gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);
/// How often a call is tried that may well succeed the next time.
const TRIES: u32 = 4;
/// Tries begin no later than this after the first one.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the fate of a commit is looked for.
const FATE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a call does on its connection; it may be done several times.
pub(super) type Body<T> = Box<dyn for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, QueryResult<T>> + Send + Sync>;

/// A call's body from a closure, which learns its type by this.
pub(super) fn body<T>(
    work: impl for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, QueryResult<T>> + Send + Sync + 'static,
) -> Body<T> {
    Box::new(work)
}

/// Whether a call writes, in one transaction, or reads, in statements that needn't fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// How a try ended.
enum Tried<T> {
    Done(T),
    Failed(Error),
    /// The answer to the commit of this transaction was lost; the result, should it have come about.
    Unknown(Transaction, T, Error),
}

/// A transaction, and the run of the server that it was in.
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

impl Inner {
    /// Does a call, and again if that may help.
    pub(super) async fn call<T: Send>(&self, during: &'static str, access: Access, body: &Body<T>) -> StoreResult<T> {
        let started = Instant::now();
        let mut tries = 0;
        loop {
            self.gate(during)?;
            tries += 1;
            let mut conn = self
                .pool
                .get()
                .await
                .map_err(|error| StoreError::Unavailable(format!("{during}: no connection: {error}")))?;
            conn.forget_code();
            let work = async {
                match access {
                    Access::Write => self.transaction(&mut conn, during, body).await,
                    Access::Read => {
                        let done = body(&mut conn).await;
                        crate::fault_point!(during);
                        done.map_or_else(Tried::Failed, Tried::Done)
                    }
                }
            };
            let tried = match tokio::time::timeout(CALL_TIMEOUT, work).await {
                Ok(tried) => tried,
                Err(_) => {
                    self.discard(conn);
                    let within = CALL_TIMEOUT.as_secs();
                    return Err(StoreError::Unavailable(format!("{during}: no answer within {within} s")));
                }
            };
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
                    log::warn!(during, error = error.to_string().as_str(); "the answer to a commit was lost");
                    if self.is_committed(during, &transaction).await? {
                        return Ok(done);
                    }
                    error
                }
            };
            self.gate(during)?;
            if !may_pass(&error, code) || tries >= TRIES || started.elapsed() > TRY_TIMEOUT {
                return Err(sort(during, error, code));
            }
            log::debug!(during, error = error.to_string().as_str(); "a transaction is tried again");
            let wait = Duration::from_millis(5 << tries).mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::time::sleep(wait).await;
        }
    }

    async fn transaction<T: Send>(
        &self,
        conn: &mut AsyncPgConnection,
        _during: &'static str,
        body: &Body<T>,
    ) -> Tried<T> {
        if let Err(error) = AnsiTransactionManager::begin_transaction(conn).await {
            return Tried::Failed(error);
        }
        let done = async {
            let fence = "SELECT pg_current_xact_id()::text AS xid, pg_postmaster_start_time()::text AS run FROM nodes \
                         WHERE incarnation = ? FOR KEY SHARE";
            let Some(transaction) = sql(fence).bind(self.incarnation.as_str()).get_result(conn).await.optional()?
            else {
                return Ok(None);
            };
            let done = body(conn).await?;
            crate::fault_point!(_during);
            Ok(Some((transaction, done)))
        };
        match done.await {
            Ok(Some((transaction, done))) => match AnsiTransactionManager::commit_transaction(conn).await {
                Ok(()) => Tried::Done(done),
                Err(error) => Tried::Unknown(transaction, done, error),
            },
            Ok(None) => {
                self.set_state(State::Fenced);
                AnsiTransactionManager::rollback_transaction(conn).await.ok();
                Tried::Failed(Error::RollbackTransaction)
            }
            Err(error) => match AnsiTransactionManager::rollback_transaction(conn).await {
                Ok(()) => Tried::Failed(error),
                // The first error says more, unless only the second one says that the connection is gone.
                Err(second) => Tried::Failed(if is_broken(&second) { second } else { error }),
            },
        }
    }

    /// Lets go of a connection that is of no more use; those that are idle were most likely cut with it.
    fn discard(&self, conn: Object<Connector>) {
        drop(Object::take(conn));
        self.pool.retain(|_, _| false);
    }

    /// What became of a transaction whose COMMIT was sent. False if it can't be told any more.
    async fn is_committed(&self, during: &'static str, transaction: &Transaction) -> StoreResult<bool> {
        let started = Instant::now();
        loop {
            let fate = async {
                let mut conn = self.pool.get().await.map_err(|error| error.to_string())?;
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
                    let what = format!("{during}: whether a transaction was committed can't be told: {unknown:?}");
                    return Err(StoreError::Unavailable(what));
                }
            }
        }
    }
}
