//! Searching a part of the fleet: where the part ends, and its agents that match.

use super::filter::{ACTION_NO, Condition};
use super::statement::{Push, Sql, sql};
use super::values::sql_limit;
use crate::domain::target::Within;
use crate::store::Part;
use crate::store::agents::Among;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Text};

/// Selects the key of the last agent of a part; nothing if the fleet ends in it. `None` if it needn't be known, because
/// the part is small.
pub(in crate::store) fn end(within: &Within, part: Part) -> Option<Sql> {
    let keys = match within {
        Within::Names(_) => return None,
        Within::Fleet => sql("SELECT no AS key FROM agents WHERE no > ?").bind(part.after),
        Within::Transport(transport) => {
            sql("SELECT no AS key FROM agents WHERE transport <> 'stream' AND transport = ? AND no > ?")
                .bind(transport.as_str())
                .bind(part.after)
        }
        Within::Action(id) => {
            sql(format!("SELECT agent_no AS key FROM commands WHERE action_no = {ACTION_NO}?) AND agent_no > ?"))
                .bind(id.to_string())
                .bind(part.after)
        }
    };
    Some(keys.and(" ORDER BY 1 LIMIT 1 OFFSET ?").bind(sql_limit(part.searched.max(1)) - 1))
}

/// Selects the name of the last one of the `searched` agents after a name; nothing if there are fewer. `None` if it
/// needn't be known: all agents are listed, or few.
pub(in crate::store) fn last_name(among: &Among, after: &str, searched: usize) -> Option<Sql> {
    let lists_all = among.target.is_none() && among.disabled.is_none();
    if lists_all || matches!(among.within(), Within::Names(_)) {
        return None;
    }
    let names = sql("SELECT name FROM agents WHERE removed_at IS NULL AND name > ? ORDER BY name LIMIT 1 OFFSET ?");
    Some(names.bind(after).bind(sql_limit(searched.max(1)) - 1))
}

/// One name.
#[derive(QueryableByName)]
pub(in crate::store) struct Name {
    #[diesel(sql_type = Text)]
    pub(in crate::store) name: String,
}

/// What a search selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Select {
    /// The agents that match, as (key, transport), up to this number.
    Matching(i64),
    /// Their number, beside an empty text.
    Count,
}

/// Selects from a part of the fleet.
pub(in crate::store) struct Search {
    head: Sql,
    condition: Condition,
    tail: Sql,
}

/// How a database is told to read what a search selects, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Database {
    Postgres,
    Sqlite,
}

impl Database {
    /// Reads `agents` by the keys `d.no` of the select before it, whatever the planner thinks of that.
    fn by_key(self) -> &'static str {
        match self {
            Self::Postgres => {
                " OFFSET 0) d CROSS JOIN LATERAL (SELECT * FROM agents y WHERE y.no = d.no OFFSET 0) agents WHERE "
            }
            Self::Sqlite => ") d CROSS JOIN agents ON agents.no = d.no WHERE ",
        }
    }

    /// The agents `x` with these names.
    fn with_names(self, head: Sql, names: &[String]) -> Sql {
        match self {
            Self::Postgres => head.and("x.name = ANY(?)").bind(names.to_vec()),
            Self::Sqlite => {
                head.and("x.name IN (SELECT value FROM json_each(?))").bind(serde_json::Value::from(names).to_string())
            }
        }
    }
}

/// Selects agents with keys in (`after`, `through`] for which the condition is true.
pub(in crate::store) fn search(
    within: &Within,
    condition: Condition,
    select: Select,
    (after, through): (i64, i64),
    database: Database,
) -> Search {
    let head = sql(match select {
        Select::Matching(_) => "SELECT agents.no, agents.transport FROM ",
        Select::Count => "SELECT count(agents.no), '' FROM ",
    });
    // By keys that come in their order, but for those of names, which are few.
    let (head, then) = match within {
        Within::Fleet => (head.and("agents WHERE agents.no > ? AND agents.no <= ? AND "), ""),
        Within::Names(names) => {
            let head =
                database.with_names(head.and("(SELECT x.no FROM agents x WHERE x.removed_at IS NULL AND "), names);
            (head.and(" AND x.no > ? AND x.no <= ?"), database.by_key())
        }
        Within::Transport(transport) => {
            let keys = "(SELECT x.no FROM agents x WHERE x.transport <> 'stream' AND x.transport = ? AND x.no > ? \
                        AND x.no <= ? ORDER BY 1";
            (head.and(keys).bind(transport.as_str()), database.by_key())
        }
        Within::Action(id) => {
            let keys = format!(
                "(SELECT c.agent_no AS no FROM commands c WHERE c.action_no = {ACTION_NO}?) AND c.agent_no > ? \
                 AND c.agent_no <= ? ORDER BY 1"
            );
            (head.and(keys).bind(id.to_string()), database.by_key())
        }
    };
    let key = if then.is_empty() { "agents.no" } else { "d.no" };
    let tail = match select {
        Select::Matching(limit) => sql(format!(" ORDER BY {key} LIMIT ?")).bind(limit),
        Select::Count => sql(""),
    };
    Search { head: head.bind(after).bind(through).and(then), condition, tail }
}

impl<DB: Push> QueryFragment<DB> for Search
where
    Condition: QueryFragment<DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.head.walk_ast(out.reborrow())?;
        self.condition.walk_ast(out.reborrow())?;
        self.tail.walk_ast(out)
    }
}

impl Query for Search {
    type SqlType = (BigInt, Text);
}

impl QueryId for Search {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Conn> diesel::query_dsl::RunQueryDsl<Conn> for Search {}
