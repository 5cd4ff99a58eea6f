//! Hints between nodes, by LISTEN and NOTIFY.
//!
//! A NOTIFY takes a database-wide lock at its commit, so it is sent outside other transactions. The
//! channel's name contains the schema, so that two installations in one database don't hear each
//! other. The listener has a connection of its own, which is always read from and holds no
//! snapshot. After a lost connection it emits [`Hint::Everything`], because hints may have been
//! lost.

use super::inner::{HINTS_WAITING, Inner, State};
use super::link::Connected;
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::hint::{Hint, split_agents};
use crate::error_chain::ErrorChain;
use crate::store::sql::sql;
use crate::store::{Hints, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// PostgreSQL takes payloads of less than 8,000 bytes.
const LONGEST: usize = 7_900;
/// Notifications with agents that reported metadata, at most. Beyond them, there are many.
const METADATA_AT_A_TIME: usize = 4;
/// The pause before the listener connects again.
const AGAIN: Duration = Duration::from_secs(1);

#[async_trait]
impl Hints for PostgresStore {
    async fn hint_send(&self, hints: &[Hint]) -> StoreResult<bool> {
        if !self.inner.notify || !self.inner.has_others() {
            return Ok(false);
        }
        let (me, hints) = (self.inner.incarnation.clone(), Arc::new(hints.to_vec()));
        self.read(Caller::Pipeline, "hint_send", body!([me, hints] conn => send(conn, &me, &hints))).await?;
        Ok(true)
    }

    async fn hint_next(&self) -> Vec<Hint> {
        let mut heard = self.heard.lock().await;
        let mut hints = Vec::new();
        if heard.recv_many(&mut hints, HINTS_WAITING).await == 0 {
            // Nobody listens any more: the store is being closed.
            std::future::pending::<()>().await;
        }
        hints
    }
}

#[derive(QueryableByName)]
struct Channel {
    #[diesel(sql_type = Text)]
    channel: String,
}

/// The channel of this schema. PostgreSQL's names have at most 63 bytes.
const CHANNEL: &str = "left('odoshi_' || current_schema(), 63)";

/// Sends hints in one notification, as [`Hint::Everything`] if they don't fit into one; and with it a few more with the
/// agents that reported metadata.
pub(super) async fn send(conn: &mut AsyncPgConnection, from: &str, hints: &[Hint]) -> QueryResult<()> {
    sql(format!("SELECT count(pg_notify({CHANNEL}, p.p)) FROM UNNEST(?) AS p (p)"))
        .bind(payloads(from, hints))
        .execute(conn)
        .await
        .map(|_| ())
}

fn payloads(from: &str, hints: &[Hint]) -> Vec<String> {
    let (metadata, others): (Vec<_>, Vec<_>) =
        hints.iter().cloned().partition(|hint| matches!(hint, Hint::Metadata(Some(_))));
    let room = LONGEST.saturating_sub(from.len() + 1);
    let mut parts = Vec::new();
    for hint in metadata {
        if let Hint::Metadata(Some(agents)) = hint {
            parts.extend(split_agents(&agents, room));
        }
    }
    if parts.len() > METADATA_AT_A_TIME {
        parts = vec![Hint::Metadata(None)];
    }
    let others = (!others.is_empty()).then(|| payload(from, &others));
    others.into_iter().chain(parts.into_iter().map(|part| payload(from, &[part]))).collect()
}

fn payload(from: &str, hints: &[Hint]) -> String {
    let mut text = from.to_owned();
    for hint in hints {
        text.push(' ');
        text.push_str(&hint.encode());
    }
    match text.len() {
        ..=LONGEST => text,
        _ => format!("{from} {}", Hint::Everything.encode()),
    }
}

/// The hints of another node. None if the notification is this node's own.
fn heard(me: &str, payload: &str) -> Vec<Hint> {
    let mut words = payload.split(' ');
    match words.next() {
        Some(from) if from != me => words.filter_map(Hint::decode).collect(),
        _ => Vec::new(),
    }
}

/// Listens until nobody else holds `inner`.
pub(super) async fn listen(inner: Weak<Inner>) {
    loop {
        let Some(held) = inner.upgrade() else { return };
        let (me, connector, hints) = (held.incarnation.clone(), held.connector.clone(), held.hints.clone());
        if matches!(*held.state.borrow(), State::Fenced | State::Gone) {
            return;
        }
        drop(held);
        match connector.connect().await {
            Ok(conn) => {
                if let Err(error) = follow(conn, &me, &inner, &hints).await {
                    log::info!(error:% = error.chain(); "the listener for other nodes connects again");
                }
            }
            Err(error) => log::debug!(error:% = error.chain(); "the listener for other nodes waits"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn follow(mut conn: Connected, me: &str, inner: &Weak<Inner>, hints: &mpsc::Sender<Hint>) -> QueryResult<()> {
    let channel: Channel = sql(format!("SELECT {CHANNEL} AS channel")).get_result(&mut conn).await?;
    conn.batch_execute(&format!("LISTEN \"{}\"", channel.channel.replace('"', "\"\""))).await?;
    // What was said before this connection listened is lost.
    tell(hints, Hint::Everything);
    while let Some(payload) = conn.notification().await {
        let heard = heard(me, &payload);
        if let (false, Some(inner)) = (heard.is_empty(), inner.upgrade()) {
            inner.met_others();
        }
        heard.into_iter().for_each(|hint| tell(hints, hint));
    }
    Ok(())
}

/// Queues a hint. Never waits: unread notifications would pile up for all listeners of the
/// database.
pub(super) fn tell(hints: &mpsc::Sender<Hint>, hint: Hint) {
    // The last place is for saying that there were more.
    match hints.capacity() {
        0 => {}
        1 => drop(hints.try_reserve().map(|room| room.send(Hint::Everything))),
        _ => drop(hints.try_reserve().map(|room| room.send(hint))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_short_enough_and_heard_by_others_alone() {
        let few = [Hint::Action(1), Hint::Commands { action_no: 2, after: 3 }];
        assert_eq!(heard("b", &payload("a", &few)), few);
        assert!(heard("a", &payload("a", &few)).is_empty());
        let many: Vec<Hint> = (0..2_000).map(Hint::Action).collect();
        let text = payload("a", &many);
        assert!(text.len() < 8_000);
        assert_eq!(heard("b", &text), [Hint::Everything]);
    }

    #[test]
    fn agents_that_reported_are_told_in_a_few_notifications_or_as_many() {
        let list = |agents: std::ops::Range<i64>| Hint::Metadata(Some(agents.step_by(2).collect()));
        let texts = payloads("a", &[Hint::Open, list(1..20_001)]);
        assert!(texts.len() == 3 && texts.iter().all(|text| text.len() < 8_000), "{}", texts.len());
        let told: Vec<Hint> = texts.iter().flat_map(|text| heard("b", text)).collect();
        assert_eq!(told[0], Hint::Open);
        let agents = told[1..].iter().map(|hint| match hint {
            Hint::Metadata(Some(agents)) => agents.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(agents.sum::<usize>(), 10_000);
        let texts = payloads("a", &[list(1..100_001)]);
        assert_eq!(heard("b", &texts.concat()), [Hint::Metadata(None)]);
    }

    #[test]
    fn what_finds_no_room_is_told_as_everything() {
        let (sender, mut receiver) = mpsc::channel(3);
        (1..=5).for_each(|no| tell(&sender, Hint::Action(no)));
        let told: Vec<Hint> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        assert_eq!(told, [Hint::Action(1), Hint::Action(2), Hint::Everything]);
    }
}
