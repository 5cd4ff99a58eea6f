//! Agents.

use super::audit;
use super::store::{SqliteStore, json};
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
use crate::store::sql::{Key, filter, sql_limit};
use crate::store::{
    AgentPatch, AgentView, Agents, Among, Enrolled, Found, Matching, NewAgent, Part, Said, Store, StoreResult,
};
use async_trait::async_trait;
use diesel::dsl::not;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text};

#[async_trait]
impl Agents for SqliteStore {
    async fn agent_enroll_once(
        &self,
        agent: &NewAgent,
        token: Vec<u8>,
        nonce: Option<Vec<u8>>,
        by: &Author,
    ) -> StoreResult<Enrolled> {
        let (agent, by, now) = (agent.clone(), by.clone(), self.now());
        self.write("agent_enroll", move |conn| enroll(conn, &agent, token, nonce, &by, now)).await
    }

    async fn agent_refresh(&self, agent_no: i64, said: Said) -> StoreResult<bool> {
        let (write, now, what) = ("agent_refresh", self.now(), said.clone());
        // After a restart every agent says what it said before: that is no reason to write.
        if self.read(write, move |conn| says_the_same(conn, agent_no, &what)).await? {
            return Ok(false);
        }
        self.write(write, move |conn| refresh(conn, agent_no, &said, now)).await
    }

    async fn agent_insert(&self, agents: Vec<NewAgent>) -> StoreResult<()> {
        let now = self.now();
        self.write("agent_insert", move |conn| insert(conn, &agents, now)).await
    }

    async fn agent_get(&self, agent_no: i64) -> StoreResult<Option<AgentRef>> {
        self.read("agent_get", move |conn| get_many(conn, &[agent_no])).await.map(|mut agents| agents.pop())
    }

    async fn agent_contacts(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentContact>> {
        let agent_nos = agent_nos.to_vec();
        self.read("agent_contacts", move |conn| contacts(conn, &agent_nos)).await
    }

    async fn agent_get_many(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentRef>> {
        let agent_nos = agent_nos.to_vec();
        self.read("agent_get_many", move |conn| get_many(conn, &agent_nos)).await
    }

    async fn agent_search(&self, target: &Target, part: Part) -> StoreResult<Found<Matching>> {
        let (target, now) = (target.clone(), self.now());
        self.read("agent_search", move |conn| matching(conn, &target, now, part)).await
    }

    async fn agent_count(&self, among: &Among, after: i64, searched: usize) -> StoreResult<Found<i64>> {
        let (among, now) = (among.clone(), self.now());
        let part = Part { after, limit: searched, searched };
        self.read("agent_count", move |conn| count(conn, &among, now, part)).await
    }

    async fn agent_list(
        &self,
        among: &Among,
        after: Option<&str>,
        limit: usize,
        searched: usize,
    ) -> StoreResult<Found<Vec<AgentView>, String>> {
        let (among, after, now) = (among.clone(), after.unwrap_or_default().to_owned(), self.now());
        self.read("agent_list", move |conn| list(conn, &among, &after, now, (limit, searched))).await
    }

    async fn agent_view(&self, name: &str) -> StoreResult<Option<AgentView>> {
        let (name, now) = (name.to_owned(), self.now());
        self.read("agent_view", move |conn| view(conn, &name, now)).await
    }

    async fn agent_update(&self, name: &str, patch: &AgentPatch, by: &Author) -> StoreResult<Option<(i64, AgentView)>> {
        let (name, patch, by, now) = (name.to_owned(), patch.clone(), by.clone(), self.now());
        self.write("agent_update", move |conn| update(conn, &name, &patch, &by, now)).await
    }

    async fn agent_remove(&self, name: &str, by: &Author) -> StoreResult<Option<i64>> {
        let (name, by, now) = (name.to_owned(), by.clone(), self.now());
        self.write("agent_remove", move |conn| remove(conn, &name, &by, now)).await
    }

    async fn agent_list_leaving(&self, after: i64, limit: usize) -> StoreResult<Vec<i64>> {
        let here = self.incarnation.clone();
        self.read("agent_list_leaving", move |conn| list_leaving(conn, &here, after, limit)).await
    }

    async fn agent_left(&self, agent_no: i64, before: Timestamp) -> StoreResult<()> {
        self.write("agent_left", move |conn| left(conn, agent_no, before)).await
    }
}

fn insert_one(conn: &mut SqliteConnection, agent: &NewAgent, now: Timestamp) -> QueryResult<Option<i64>> {
    let said = &agent.enrollment;
    let (labels, reported, set) = written_labels(&Labels::new(agent))?;
    // The unique index leaves removed agents out: their names can be used again.
    sql_query(
        "INSERT INTO agents (name, transport, address, labels, reported_labels, set_labels, facts, version, enrolled_at, \
         secret) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) WHERE removed_at IS NULL DO NOTHING RETURNING no AS key",
    )
    .bind::<Text, _>(&said.name)
    .bind::<Text, _>(&agent.transport)
    .bind::<diesel::sql_types::Nullable<Text>, _>(&agent.address)
    .bind::<Text, _>(labels)
    .bind::<Text, _>(reported)
    .bind::<Text, _>(set)
    .bind::<Text, _>(said.facts.clone().unwrap_or_default().as_str())
    .bind::<Text, _>(&said.version)
    .bind::<BigInt, _>(now.0)
    .bind::<diesel::sql_types::Nullable<Text>, _>(&agent.secret)
    .get_result::<Key>(conn)
    .optional()
    .map(|row| row.map(|row| row.key))
}

fn enroll(
    conn: &mut SqliteConnection,
    agent: &NewAgent,
    token_hash: Vec<u8>,
    nonce_hash: Option<Vec<u8>>,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Enrolled> {
    let new = insert_one(conn, agent, now)?;
    let no = match (new, &nonce_hash) {
        (Some(no), _) => Some(no),
        (None, Some(nonce)) => give_up_unused(conn, &agent.enrollment, nonce, now)?,
        (None, None) => None,
    };
    let Some(no) = no else { return Ok(Enrolled::Taken) };
    let token = TokenRow::of_agent(no, &agent.enrollment.name, token_hash, nonce_hash, now);
    tokens::insert(token).execute(conn)?;
    let did = if new.is_some() { "agent.create" } else { "agent.enroll_again" };
    let event = AuditEvent { did, subject: &agent.enrollment.name, detail: &agent.transport, what: None };
    audit::insert(conn, by, event, now)?;
    Ok(Enrolled::New(AgentRef {
        no,
        name: agent.enrollment.name.clone(),
        transport: agent.transport.clone(),
        address: agent.address.clone(),
        disabled: false,
        version: agent.enrollment.version.clone(),
    }))
}

/// Revokes the unused token of the agent that enrolled under this nonce. Returns the agent's key.
fn give_up_unused(
    conn: &mut SqliteConnection,
    said: &Enrollment,
    nonce_hash: &[u8],
    now: Timestamp,
) -> QueryResult<Option<i64>> {
    let known = agents::table.filter(agents::name.eq(&said.name)).filter(agents::removed_at.is_null());
    let Some(no) = known.select(agents::no).first::<i64>(conn).optional()? else { return Ok(None) };
    let revoked = tokens::revoke_unused(no, nonce_hash, now).execute(conn)?;
    if revoked == 0 {
        return Ok(None);
    }
    refresh(conn, no, &said.into(), now)?;
    Ok(Some(no))
}

fn insert(conn: &mut SqliteConnection, agents: &[NewAgent], now: Timestamp) -> QueryResult<()> {
    for agent in agents {
        insert_one(conn, agent, now)?;
    }
    Ok(())
}

/// What is stored of what an agent has said. Nothing if there is no such agent.
fn known(conn: &mut SqliteConnection, agent_no: i64) -> QueryResult<Option<Known>> {
    let row: Option<KnownRow> = statements::known(agent_no, "").get_result(conn).optional()?;
    row.map(KnownRow::known).transpose()
}

/// Whether this is stored already.
fn says_the_same(conn: &mut SqliteConnection, agent_no: i64, said: &Said) -> QueryResult<bool> {
    Ok(known(conn, agent_no)?.is_some_and(|known| known.clone().after(said) == known))
}

/// Stores what an agent says. False if there is no such agent.
fn refresh(conn: &mut SqliteConnection, agent_no: i64, said: &Said, now: Timestamp) -> QueryResult<bool> {
    let Some(known) = known(conn, agent_no)? else { return Ok(false) };
    let known = known.after(said);
    let (labels, reported, set) = written_labels(&known.labels)?;
    diesel::update(agents::table.find(agent_no))
        .set((
            agents::labels.eq(labels),
            agents::reported_labels.eq(reported),
            agents::set_labels.eq(set),
            agents::facts.eq(known.facts),
            agents::version.eq(known.version),
            agents::last_seen.eq(now.0),
        ))
        .execute(conn)
        .map(|_| true)
}

fn get_many(conn: &mut SqliteConnection, nos: &[i64]) -> QueryResult<Vec<AgentRef>> {
    // One bound list: SQLite allows only so many parameters.
    let among = diesel::dsl::sql::<diesel::sql_types::Bool>("agents.no IN (SELECT value FROM json_each(")
        .bind::<Text, _>(json(nos)?)
        .sql("))");
    let rows = agents::table
        .filter(among)
        .filter(agents::removed_at.is_null())
        .order(agents::no)
        .select((agents::no, agents::name, agents::transport, agents::address, agents::disabled, agents::version))
        .load::<(i64, String, String, Option<String>, bool, String)>(conn)?;
    let agent = |(no, name, transport, address, disabled, version)| AgentRef {
        no,
        name,
        transport,
        address,
        disabled,
        version,
    };
    Ok(rows.into_iter().map(agent).collect())
}

fn contacts(conn: &mut SqliteConnection, nos: &[i64]) -> QueryResult<Vec<AgentContact>> {
    let contacts = agents::table.filter(agents::removed_at.is_null()).filter(not(agents::disabled)).order(agents::no);
    let contacts = contacts.select((agents::no, agents::name, agents::address, agents::secret));
    let rows: Vec<ContactRow> = match dense(nos) {
        Some((first, last)) => contacts.filter(agents::no.between(first, last)).load(conn)?,
        None => {
            let listed = diesel::dsl::sql::<Bool>("no IN (SELECT value FROM json_each(").bind::<Text, _>(json(nos)?);
            contacts.filter(listed.sql("))")).load(conn)?
        }
    };
    Ok(contacts_of(rows, nos))
}

/// The key of the last agent of a part; `None` if the fleet ends in it.
pub(super) fn end(conn: &mut SqliteConnection, within: &Within, part: Part) -> QueryResult<Option<i64>> {
    let Some(end) = search::end(within, part) else { return Ok(None) };
    Ok(end.get_result::<Key>(conn).optional()?.map(|row| row.key))
}

fn count(conn: &mut SqliteConnection, among: &Among, now: Timestamp, part: Part) -> QueryResult<Found<i64>> {
    let within = among.within();
    let through = end(conn, &within, part)?;
    let (condition, keys) = (filter::listed(among, now), (part.after, through.unwrap_or(i64::MAX)));
    let count = search::search(&within, condition, Select::Count, keys, Database::Sqlite);
    let (agents, _) = count.get_result::<(i64, String)>(conn)?;
    Ok(Found { agents, through })
}

fn matching(conn: &mut SqliteConnection, target: &Target, now: Timestamp, part: Part) -> QueryResult<Found<Matching>> {
    let within = target.within();
    let through = end(conn, &within, part)?;
    let (condition, keys) = (filter::members(target, now), (part.after, through.unwrap_or(i64::MAX)));
    let select = Select::Matching(sql_limit(part.limit));
    let matching = search::search(&within, condition, select, keys, Database::Sqlite);
    let rows = matching.load::<(i64, String)>(conn)?;
    Ok(found(rows, through, part.limit))
}

/// The columns of an [`AgentViewRow`].
macro_rules! seen_by_users {
    ($now:expr) => {
        (
            agents::name,
            agents::transport,
            agents::address,
            diesel::dsl::sql::<Text>("agents.labels"),
            agents::set_labels,
            diesel::dsl::sql::<Text>("agents.facts"),
            agents::version,
            agents::enrolled_at,
            agents::last_seen,
            agents::disabled,
            agents::duplicate_at,
            filter::online($now).assume_not_null(),
        )
    };
}

fn list(
    conn: &mut SqliteConnection,
    among: &Among,
    after: &str,
    now: Timestamp,
    (limit, searched): (usize, usize),
) -> QueryResult<Found<Vec<AgentView>, String>> {
    let through = match search::last_name(among, after, searched) {
        Some(last) => last.get_result::<Name>(conn).optional()?.map(|row| row.name),
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
    let rows: Vec<AgentViewRow> = query.load(conn)?;
    listed(rows, through, limit)
}

fn view(conn: &mut SqliteConnection, name: &str, now: Timestamp) -> QueryResult<Option<AgentView>> {
    let row: Option<AgentViewRow> = agents::table
        .filter(filter::listed(&Among::default(), now))
        .filter(agents::name.eq(name))
        .select(seen_by_users!(now))
        .first(conn)
        .optional()?;
    row.map(agent_view).transpose()
}

fn update(
    conn: &mut SqliteConnection,
    name: &str,
    patch: &AgentPatch,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<(i64, AgentView)>> {
    let found = agents::table
        .filter(filter::listed(&Among::default(), now))
        .filter(agents::name.eq(name))
        .select((agents::no, agents::reported_labels, agents::set_labels, agents::address, agents::disabled))
        .first::<(i64, String, String, Option<String>, bool)>(conn)
        .optional()?;
    let Some((no, reported, set, address, disabled)) = found else { return Ok(None) };
    let before = read_labels(&reported, &set)?;
    let after = patch.labels_after(before.clone());
    if after == before && !patch.changes(address.as_deref(), disabled) {
        return Ok(view(conn, name, now)?.map(|view| (no, view)));
    }
    let (labels, _, set) = written_labels(&after)?;
    diesel::update(agents::table.find(no))
        .set((agents::labels.eq(labels), agents::set_labels.eq(set)))
        .execute(conn)?;
    if let Some(address) = &patch.address {
        diesel::update(agents::table.find(no)).set(agents::address.eq(address)).execute(conn)?;
    }
    if let Some(disabled) = patch.disabled {
        diesel::update(agents::table.find(no)).set(agents::disabled.eq(disabled)).execute(conn)?;
    }
    audit::insert(conn, by, AuditEvent { did: "agent.change", subject: name, detail: &patch.told(), what: None }, now)?;
    Ok(view(conn, name, now)?.map(|view| (no, view)))
}

fn remove(conn: &mut SqliteConnection, name: &str, by: &Author, now: Timestamp) -> QueryResult<Option<i64>> {
    let removed = statements::remove(name, now).get_result(conn).optional()?;
    let Some(Key { key: no }) = removed else { return Ok(None) };
    audit::insert(conn, by, AuditEvent { did: "agent.remove", subject: name, ..AuditEvent::default() }, now)?;
    tokens::revoke_of_agent(no, now).execute(conn)?;
    statements::end_session(no).execute(conn)?;
    statements::leaves(no).execute(conn)?;
    metadata::delete_of(no).execute(conn)?;
    Ok(Some(no))
}

fn list_leaving(conn: &mut SqliteConnection, here: &str, after: i64, limit: usize) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = statements::list_leaving(here, after, limit).load(conn)?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

fn left(conn: &mut SqliteConnection, no: i64, before: Timestamp) -> QueryResult<()> {
    if statements::left(no, before).execute(conn)? > 0 {
        // A report may have been on its way when the agent was removed.
        metadata::delete_of(no).execute(conn)?;
    }
    Ok(())
}
