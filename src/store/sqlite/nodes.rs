//! This process, the only node.

use super::store::{SqliteStore, json};
use crate::domain::time::Timestamp;
use crate::store::sql::nodes::{NODES, NodeRow};
use crate::store::sql::schema::nodes;
use crate::store::{NodeView, Nodes, Store, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;

#[async_trait]
impl Nodes for SqliteStore {
    async fn node_start(&self, name: &str, transports: &[String]) -> StoreResult<()> {
        let (name, incarnation, now) = (name.to_owned(), self.incarnation.clone(), self.now());
        let transports = transports.to_vec();
        self.write("node_start", move |conn| start(conn, &name, &incarnation, &transports, now)).await
    }

    async fn node_stop(&self) -> StoreResult<()> {
        self.write("node_stop", stop).await
    }

    async fn node_lost(&self) {
        std::future::pending().await
    }

    async fn node_list(&self) -> StoreResult<Vec<NodeView>> {
        // It lives as long as it answers.
        let now = self.now();
        let nodes = move |conn: &mut SqliteConnection| sql_query(NODES).load::<NodeRow>(conn);
        let nodes = self.read("node_list", nodes).await?.into_iter();
        Ok(nodes.map(|row| NodeView { heartbeat: now, ..row.view(true) }).collect())
    }
}

fn start(
    conn: &mut SqliteConnection,
    name: &str,
    incarnation: &str,
    transports: &[String],
    now: Timestamp,
) -> QueryResult<()> {
    // The database file is locked by one process: whatever else is in here is dead.
    diesel::delete(nodes::table).execute(conn)?;
    sql_query("DELETE FROM agent_sessions").execute(conn)?;
    diesel::insert_into(nodes::table)
        .values((
            nodes::incarnation.eq(incarnation),
            nodes::name.eq(name),
            nodes::started_at.eq(now.0),
            nodes::heartbeat.eq(now.0),
            nodes::transports.eq(json(&transports)?),
        ))
        .execute(conn)?;
    sql_query("UPDATE actions SET owner = ? WHERE ended_at IS NULL").bind::<Text, _>(incarnation).execute(conn)?;
    Ok(())
}

fn stop(conn: &mut SqliteConnection) -> QueryResult<()> {
    sql_query("DELETE FROM agent_sessions").execute(conn)?;
    diesel::delete(nodes::table).execute(conn)?;
    Ok(())
}
