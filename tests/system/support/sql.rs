//! A look past the server: the database file itself, read-only.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use std::path::Path;

pub struct Sql(SqliteConnection);

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

#[derive(QueryableByName)]
struct Group {
    #[diesel(sql_type = Text)]
    key: String,
    #[diesel(sql_type = BigInt)]
    kind: i64,
    #[diesel(sql_type = BigInt)]
    n: i64,
}

impl Sql {
    /// Opens the database in a server's data folder.
    pub fn open(data: &Path) -> Self {
        let file = format!("file:{}?mode=ro", data.join("odoshi.db").display());
        Self(SqliteConnection::establish(&file).unwrap())
    }

    /// The one number `n` that a query answers.
    pub fn number(&mut self, query: &str) -> i64 {
        sql_query(query).get_result::<Number>(&mut self.0).unwrap().n
    }

    /// All rows (`key`, `kind`, `n`) of a query.
    pub fn groups(&mut self, query: &str) -> Vec<(String, i64, i64)> {
        let rows = sql_query(query).load::<Group>(&mut self.0).unwrap();
        rows.into_iter().map(|row| (row.key, row.kind, row.n)).collect()
    }

    /// What must hold of every command at every moment: rows and outcomes fit together. Each is a number of exceptions.
    pub fn exceptions(&mut self) -> Vec<(&'static str, i64)> {
        let checks = [
            (
                "commands with more than one final outcome",
                "SELECT count(*) AS n FROM (SELECT 1 FROM outcomes \
              WHERE is_final GROUP BY action_no, agent_no HAVING count(*) > 1)",
            ),
            (
                "outcomes without a command",
                "SELECT count(*) AS n FROM outcomes o WHERE NOT EXISTS (SELECT 1 \
              FROM commands c WHERE c.action_no = o.action_no AND c.agent_no = o.agent_no)",
            ),
            (
                "open rows without a command",
                "SELECT count(*) AS n FROM open_commands o WHERE NOT EXISTS (SELECT 1 \
              FROM commands c WHERE c.action_no = o.action_no AND c.agent_no = o.agent_no)",
            ),
            (
                "open rows of commands that are final",
                "SELECT count(*) AS n FROM open_commands p WHERE EXISTS (SELECT 1 \
              FROM outcomes o WHERE o.is_final AND o.action_no = p.action_no AND o.agent_no = p.agent_no)",
            ),
        ];
        checks.into_iter().map(|(what, query)| (what, self.number(query))).filter(|(_, n)| *n > 0).collect()
    }
}
