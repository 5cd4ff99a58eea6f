//! Agents.

use super::audit;
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::agent::{AgentContact, AgentRef, Enrollment};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::target::{Target, Within};
use crate::domain::time::Timestamp;
use crate::store::agents::{Known, Labels};
use crate::store::sql::agents::{
    self as statements, AgentViewRow, ContactRow, KnownRow, agent_view, contacts_of, dense, found, listed, read_labels,
    written_labels,
};
use crate::store::sql::metadata;
use crate::store::sql::schema::agents;
use crate::store::sql::search::{self, Database, Name, Select};
use crate::store::sql::tokens::{self, TokenRow};
use crate::store::sql::{Key, filter, sql, sql_limit};
use crate::store::{
    AgentPatch, AgentView, Agents, Among, Enrolled, Found, Matching, NewAgent, Part, Said, Store, StoreResult,
};
use async_trait::async_trait;
use diesel::dsl::not;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Arc;

#[async_trait]
impl Agents for PostgresStore {
    async fn agent_enroll_once(
        &self,
        agent: &NewAgent,
        token: Vec<u8>,
        nonce: Option<Vec<u8>>,
        by: &Author,
    ) -> StoreResult<Enrolled> {
        let (agent, by, now) = (Arc::new(agent.clone()), Arc::new(by.clone()), self.now());
        let enroll = body!([agent, token, nonce, by] conn => enroll(conn, &agent, token, nonce, &by, now));
        self.write(Caller::Pipeline, "agent_enroll", enroll).await
    }

    async fn agent_refresh(&self, agent_no: i64, said: Said) -> StoreResult<bool> {
        let write = "agent_refresh";
        let (said, now) = (Arc::new(said), self.now());
        // After a restart every agent says what it said before: that is no reason to write.
        if self.read(Caller::Sessions, write, body!([said] conn => says_the_same(conn, agent_no, &said))).await? {
            return Ok(false);
        }
        self.write(Caller::Sessions, write, body!([said] conn => refresh(conn, agent_no, &said, now))).await
    }

    async fn agent_insert(&self, agents: Vec<NewAgent>) -> StoreResult<()> {
        let (agents, now) = (Arc::new(agents), self.now());
        self.write(Caller::Pipeline, "agent_insert", body!([agents] conn => insert(conn, &agents, now))).await
    }

    async fn agent_get(&self, agent_no: i64) -> StoreResult<Option<AgentRef>> {
        self.agent_get_many(&[agent_no]).await.map(|mut agents| agents.pop())
    }

    async fn agent_contacts(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentContact>> {
        let agent_nos = Arc::new(agent_nos.to_vec());
        self.read(Caller::Pipeline, "agent_contacts", body!([agent_nos] conn => contacts(conn, &agent_nos))).await
    }

    async fn agent_get_many(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentRef>> {
        let agent_nos = Arc::new(agent_nos.to_vec());
        self.read(Caller::Pipeline, "agent_get_many", body!([agent_nos] conn => get_many(conn, &agent_nos))).await
    }

    async fn agent_search(&self, target: &Target, part: Part) -> StoreResult<Found<Matching>> {
        let (target, now) = (Arc::new(target.clone()), self.now());
        self.read(Caller::Pipeline, "agent_search", body!([target] conn => matching(conn, &target, now, part))).await
    }

    async fn agent_count(&self, among: &Among, after: i64, searched: usize) -> StoreResult<Found<i64>> {
        let (among, now) = (Arc::new(among.clone()), self.now());
        let part = Part { after, limit: searched, searched };
        self.read(Caller::Pipeline, "agent_count", body!([among] conn => count(conn, &among, now, part))).await
    }

    async fn agent_list(
        &self,
        among: &Among,
        after: Option<&str>,
        limit: usize,
        searched: usize,
    ) -> StoreResult<Found<Vec<AgentView>, String>> {
        let (among, after, now) = (Arc::new(among.clone()), after.unwrap_or_default().to_owned(), self.now());
        let list = body!([among, after] conn => list(conn, &among, &after, now, (limit, searched)));
        self.read(Caller::People, "agent_list", list).await
    }

    async fn agent_view(&self, name: &str) -> StoreResult<Option<AgentView>> {
        let (name, now) = (name.to_owned(), self.now());
        self.read(Caller::People, "agent_view", body!([name] conn => view(conn, &name, now))).await
    }

    async fn agent_update(&self, name: &str, patch: &AgentPatch, by: &Author) -> StoreResult<Option<(i64, AgentView)>> {
        let (name, patch, by, now) = (name.to_owned(), Arc::new(patch.clone()), Arc::new(by.clone()), self.now());
        let update = body!([name, patch, by] conn => update(conn, &name, &patch, &by, now));
        self.write(Caller::Pipeline, "agent_update", update).await
    }

    async fn agent_remove(&self, name: &str, by: &Author) -> StoreResult<Option<i64>> {
        let (name, by, now) = (name.to_owned(), Arc::new(by.clone()), self.now());
        self.write(Caller::Pipeline, "agent_remove", body!([name, by] conn => remove(conn, &name, &by, now))).await
    }

    async fn agent_list_leaving(&self, after: i64, limit: usize) -> StoreResult<Vec<i64>> {
        let here = self.inner.incarnation.clone();
        self.read(Caller::Pipeline, "agent_list_leaving", body!([here] conn => list_leaving(conn, &here, after, limit)))
            .await
    }

    async fn agent_left(&self, agent_no: i64, before: Timestamp) -> StoreResult<()> {
        self.write(Caller::Pipeline, "agent_left", body!([] conn => left(conn, agent_no, before))).await
    }
}

/// Inserts agents, except those whose names are taken. Returns the keys of the new ones.
async fn insert_new(conn: &mut AsyncPgConnection, new: &[NewAgent], now: Timestamp) -> QueryResult<Vec<i64>> {
    let said = || new.iter().map(|agent| &agent.enrollment);
    let labels: Vec<_> = new.iter().map(|agent| written_labels(&Labels::new(agent))).collect::<QueryResult<_>>()?;
    // The unique index leaves removed agents out: their names can be used again.
    let rows: Vec<Key> =
        sql("INSERT INTO agents (name, transport, address, labels, reported_labels, set_labels, facts, version, secret, \
         enrolled_at) SELECT n.name, n.transport, n.address, n.labels::json, n.reported::json, n.set::json, n.facts::json, \
         n.version, n.secret, ? FROM UNNEST(?, ?, ?, ?, ?, ?, ?, ?, ?) \
         AS n (name, transport, address, labels, reported, set, facts, version, secret) \
         ON CONFLICT (name) WHERE removed_at IS NULL DO NOTHING RETURNING no AS key")
        .bind(now.0)
        .bind(said().map(|said| said.name.clone()).collect::<Vec<_>>())
        .bind(new.iter().map(|agent| agent.transport.clone()).collect::<Vec<_>>())
        .bind(new.iter().map(|agent| agent.address.clone()).collect::<Vec<_>>())
        .bind(labels.iter().map(|(all, ..)| all.clone()).collect::<Vec<_>>())
        .bind(labels.iter().map(|(_, reported, _)| reported.clone()).collect::<Vec<_>>())
        .bind(labels.into_iter().map(|(.., set)| set).collect::<Vec<_>>())
        .bind(said().map(|said| said.facts.clone().unwrap_or_default().as_str().to_owned()).collect::<Vec<_>>())
        .bind(said().map(|said| said.version.clone()).collect::<Vec<_>>())
        .bind(new.iter().map(|agent| agent.secret.clone()).collect::<Vec<_>>())
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

async fn insert(conn: &mut AsyncPgConnection, new: &[NewAgent], now: Timestamp) -> QueryResult<()> {
    insert_new(conn, new, now).await.map(|_| ())
}

async fn enroll(
    conn: &mut AsyncPgConnection,
    agent: &NewAgent,
    token_hash: Vec<u8>,
    nonce_hash: Option<Vec<u8>>,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Enrolled> {
    let new = insert_new(conn, std::slice::from_ref(agent), now).await?.pop();
    let no = match (new, &nonce_hash) {
        (Some(no), _) => Some(no),
        (None, Some(nonce)) => give_up_unused(conn, &agent.enrollment, nonce, now).await?,
        (None, None) => None,
    };
    let Some(no) = no else { return Ok(Enrolled::Taken) };
    let name = agent.enrollment.name.clone();
    tokens::insert(TokenRow::of_agent(no, &name, token_hash, nonce_hash, now)).execute(conn).await?;
    let did = if new.is_some() { "agent.create" } else { "agent.enroll_again" };
    let event = AuditEvent { did, subject: &name, detail: &agent.transport, what: None };
    audit::insert(conn, by, event, now).await?;
    let (transport, address) = (agent.transport.clone(), agent.address.clone());
    Ok(Enrolled::New(AgentRef {
        no,
        name,
        transport,
        address,
        disabled: false,
        version: agent.enrollment.version.clone(),
    }))
}

/// Revokes the unused token of the agent that enrolled under this nonce. Returns the agent's key.
async fn give_up_unused(
    conn: &mut AsyncPgConnection,
    said: &Enrollment,
    nonce_hash: &[u8],
    now: Timestamp,
) -> QueryResult<Option<i64>> {
    // Those that repeat a call at the same time take turns: the next one has to see the token that
    // this one writes.
    let known = sql("SELECT no AS key FROM agents WHERE name = ? AND removed_at IS NULL FOR UPDATE");
    let known = known.bind(said.name.as_str()).get_result::<Key>(conn).await.optional()?;
    let Some(Key { key: no }) = known else { return Ok(None) };
    let revoked = tokens::revoke_unused(no, nonce_hash, now).execute(conn).await?;
    if revoked == 0 {
        return Ok(None);
    }
    refresh(conn, no, &said.into(), now).await?;
    Ok(Some(no))
}

/// What is stored of what an agent has said. Nothing if there is no such agent.
async fn known(conn: &mut AsyncPgConnection, agent_no: i64, lock: &'static str) -> QueryResult<Option<Known>> {
    let row: Option<KnownRow> = statements::known(agent_no, lock).get_result(conn).await.optional()?;
    row.map(KnownRow::known).transpose()
}

/// Whether this is stored already.
async fn says_the_same(conn: &mut AsyncPgConnection, agent_no: i64, said: &Said) -> QueryResult<bool> {
    Ok(known(conn, agent_no, "").await?.is_some_and(|known| known.clone().after(said) == known))
}

/// Stores what an agent says. False if there is no such agent.
async fn refresh(conn: &mut AsyncPgConnection, agent_no: i64, said: &Said, now: Timestamp) -> QueryResult<bool> {
    let Some(known) = known(conn, agent_no, " FOR UPDATE").await? else { return Ok(false) };
    let known = known.after(said);
    let (labels, reported, set) = written_labels(&known.labels)?;
    sql("UPDATE agents SET labels = ?::text::json, reported_labels = ?::text::json, set_labels = ?::text::json, \
         facts = ?::text::json, version = ?, last_seen = ? WHERE no = ?")
    .bind(labels)
    .bind(reported)
    .bind(set)
    .bind(known.facts)
    .bind(known.version)
    .bind(now.0)
    .bind(agent_no)
    .execute(conn)
    .await
    .map(|_| true)
}

async fn get_many(conn: &mut AsyncPgConnection, nos: &[i64]) -> QueryResult<Vec<AgentRef>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        no: i64,
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = Text)]
        transport: String,
        #[diesel(sql_type = Nullable<Text>)]
        address: Option<String>,
        #[diesel(sql_type = Bool)]
        disabled: bool,
        #[diesel(sql_type = Text)]
        version: String,
    }
    let rows: Vec<Row> = sql(
        "SELECT no, name, transport, address, disabled, version FROM agents WHERE no = ANY(?) AND removed_at IS NULL ORDER BY no",
    )
    .bind(nos.to_vec())
    .load(conn)
    .await?;
    let agent = |Row { no, name, transport, address, disabled, version }| AgentRef {
        no,
        name,
        transport,
        address,
        disabled,
        version,
    };
    Ok(rows.into_iter().map(agent).collect())
}

async fn contacts(conn: &mut AsyncPgConnection, nos: &[i64]) -> QueryResult<Vec<AgentContact>> {
    let contacts = agents::table.filter(agents::removed_at.is_null()).filter(not(agents::disabled)).order(agents::no);
    let contacts = contacts.select((agents::no, agents::name, agents::address, agents::secret));
    let rows: Vec<ContactRow> = match dense(nos) {
        Some((first, last)) => contacts.filter(agents::no.between(first, last)).load(conn).await?,
        None => contacts.filter(agents::no.eq_any(nos)).load(conn).await?,
    };
    Ok(contacts_of(rows, nos))
}

/// The key of the last agent of a part; `None` if the fleet ends in it.
pub(super) async fn end(conn: &mut AsyncPgConnection, within: &Within, part: Part) -> QueryResult<Option<i64>> {
    let Some(end) = search::end(within, part) else { return Ok(None) };
    Ok(end.get_result::<Key>(conn).await.optional()?.map(|row| row.key))
}

async fn count(conn: &mut AsyncPgConnection, among: &Among, now: Timestamp, part: Part) -> QueryResult<Found<i64>> {
    let within = among.within();
    let through = end(conn, &within, part).await?;
    let (condition, keys) = (filter::listed(among, now), (part.after, through.unwrap_or(i64::MAX)));
    let count = search::search(&within, condition, Select::Count, keys, Database::Postgres);
    let (agents, _) = count.get_result::<(i64, String)>(conn).await?;
    Ok(Found { agents, through })
}

async fn matching(
    conn: &mut AsyncPgConnection,
    target: &Target,
    now: Timestamp,
    part: Part,
) -> QueryResult<Found<Matching>> {
    let within = target.within();
    let through = end(conn, &within, part).await?;
    let (condition, keys) = (filter::members(target, now), (part.after, through.unwrap_or(i64::MAX)));
    let select = Select::Matching(sql_limit(part.limit));
    let matching = search::search(&within, condition, select, keys, Database::Postgres);
    let rows = matching.load::<(i64, String)>(conn).await?;
    Ok(found(rows, through, part.limit))
}

/// The columns of an [`AgentViewRow`].
macro_rules! seen_by_users {
    ($now:expr) => {
        (
            agents::name,
            agents::transport,
            agents::address,
            diesel::dsl::sql::<Text>("agents.labels::text"),
            diesel::dsl::sql::<Text>("agents.set_labels::text"),
            diesel::dsl::sql::<Text>("agents.facts::text"),
            agents::version,
            agents::enrolled_at,
            agents::last_seen,
            agents::disabled,
            agents::duplicate_at,
            filter::online($now).assume_not_null(),
        )
    };
}

async fn list(
    conn: &mut AsyncPgConnection,
    among: &Among,
    after: &str,
    now: Timestamp,
    (limit, searched): (usize, usize),
) -> QueryResult<Found<Vec<AgentView>, String>> {
    let through = match search::last_name(among, after, searched) {
        Some(last) => last.get_result::<Name>(conn).await.optional()?.map(|row| row.name),
        None => None,
    };
    let mut query = agents::table
        .filter(filter::listed(among, now))
        // Every name is greater than no name.
        .filter(agents::name.gt(after))
        .select(seen_by_users!(now))
        .into_boxed();
    // A few names are looked up, and put in order here.
    if !matches!(among.within(), Within::Names(_)) {
        query = query.order(agents::name).limit(sql_limit(limit));
    }
    if let Some(through) = &through {
        query = query.filter(agents::name.le(through));
    }
    let rows: Vec<AgentViewRow> = query.load(conn).await?;
    listed(rows, through, limit)
}

async fn view(conn: &mut AsyncPgConnection, name: &str, now: Timestamp) -> QueryResult<Option<AgentView>> {
    let row: Option<AgentViewRow> = agents::table
        .filter(filter::listed(&Among::default(), now))
        .filter(agents::name.eq(name))
        .select(seen_by_users!(now))
        .first(conn)
        .await
        .optional()?;
    row.map(agent_view).transpose()
}

async fn update(
    conn: &mut AsyncPgConnection,
    name: &str,
    patch: &AgentPatch,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<(i64, AgentView)>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        no: i64,
        #[diesel(sql_type = Text)]
        reported: String,
        #[diesel(sql_type = Text)]
        set: String,
        #[diesel(sql_type = Nullable<Text>)]
        address: Option<String>,
        #[diesel(sql_type = Bool)]
        disabled: bool,
    }
    let found =
        sql("SELECT no, reported_labels::text AS reported, set_labels::text AS set, address, disabled FROM agents \
         WHERE name = ? AND removed_at IS NULL FOR UPDATE")
        .bind(name)
        .get_result::<Row>(conn)
        .await
        .optional()?;
    let Some(Row { no, reported, set, address, disabled }) = found else { return Ok(None) };
    let before = read_labels(&reported, &set)?;
    let after = patch.labels_after(before.clone());
    if after == before && !patch.changes(address.as_deref(), disabled) {
        return Ok(view(conn, name, now).await?.map(|view| (no, view)));
    }
    let (labels, _, set) = written_labels(&after)?;
    sql("UPDATE agents SET labels = ?::text::json, set_labels = ?::text::json, address = CASE WHEN ? THEN ? ELSE address END, \
         disabled = coalesce(?, disabled) WHERE no = ?")
    .bind(labels)
    .bind(set)
    .bind(patch.address.is_some())
    .bind(patch.address.clone().flatten())
    .bind(patch.disabled)
    .bind(no)
    .execute(conn)
    .await?;
    audit::insert(conn, by, AuditEvent { did: "agent.change", subject: name, detail: &patch.told(), what: None }, now)
        .await?;
    Ok(view(conn, name, now).await?.map(|view| (no, view)))
}

async fn remove(conn: &mut AsyncPgConnection, name: &str, by: &Author, now: Timestamp) -> QueryResult<Option<i64>> {
    let removed = statements::remove(name, now).get_result(conn).await.optional()?;
    let Some(Key { key: no }) = removed else { return Ok(None) };
    audit::insert(conn, by, AuditEvent { did: "agent.remove", subject: name, ..AuditEvent::default() }, now).await?;
    tokens::revoke_of_agent(no, now).execute(conn).await?;
    statements::end_session(no).execute(conn).await?;
    statements::leaves(no).execute(conn).await?;
    metadata::delete_of(no).execute(conn).await?;
    Ok(Some(no))
}

async fn list_leaving(conn: &mut AsyncPgConnection, here: &str, after: i64, limit: usize) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = statements::list_leaving(here, after, limit).load(conn).await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

async fn left(conn: &mut AsyncPgConnection, no: i64, before: Timestamp) -> QueryResult<()> {
    if statements::left(no, before).execute(conn).await? > 0 {
        // A report may have been on its way when the agent was removed.
        metadata::delete_of(no).execute(conn).await?;
    }
    Ok(())
}
