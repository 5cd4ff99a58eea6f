//! A look past the server, at the database itself: SQLite's file, read-only, or what PostgreSQL's own client says.

use crate::cluster::Cluster;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use nix::sched::{CloneFlags, setns, unshare};
use std::path::Path;

pub enum Sql {
    File(SqliteConnection),
    Database(&'static Cluster, String),
}

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
    /// Opens a SQLite file.
    pub fn open(file: &Path) -> Self {
        Self::File(SqliteConnection::establish(&format!("file:{}?mode=ro", file.display())).unwrap())
    }

    /// Opens a SQLite file as a process sees it that has a view of the file systems of its own. SQLite follows no way
    /// through `/proc`, and so a thread goes there to open it; what is open stays open.
    pub fn open_within(pid: i32, file: &Path) -> Self {
        let file = file.to_owned();
        let there = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(std::fs::File::open(format!("/proc/{pid}/ns/mnt")).unwrap(), CloneFlags::CLONE_NEWNS).unwrap();
            let mut sql = Self::open(&file);
            sql.number("SELECT count(*) AS n FROM sqlite_schema");
            sql
        });
        there.join().unwrap()
    }

    /// Opens a SQLite file to change it.
    pub fn open_to_write(file: &Path) -> Self {
        let mut connection = SqliteConnection::establish(&file.display().to_string()).unwrap();
        diesel::connection::SimpleConnection::batch_execute(&mut connection, "PRAGMA busy_timeout = 60000").unwrap();
        Self::File(connection)
    }

    /// Changes something.
    pub fn execute(&mut self, statements: &str) {
        match self {
            Self::File(connection) => {
                diesel::connection::SimpleConnection::batch_execute(connection, statements).unwrap();
            }
            Self::Database(cluster, database) => drop(cluster.psql(database, statements)),
        }
    }

    /// The one number `n` that a query answers.
    pub fn number(&mut self, query: &str) -> i64 {
        match self {
            Self::File(connection) => sql_query(query).get_result::<Number>(connection).unwrap().n,
            Self::Database(cluster, database) => cluster.psql(database, query).parse().unwrap(),
        }
    }

    /// All rows (`key`, `kind`, `n`) of a query.
    pub fn groups(&mut self, query: &str) -> Vec<(String, i64, i64)> {
        match self {
            Self::File(connection) => {
                let rows = sql_query(query).load::<Group>(connection).unwrap();
                rows.into_iter().map(|row| (row.key, row.kind, row.n)).collect()
            }
            Self::Database(cluster, database) => {
                let rows = cluster.psql(database, query);
                let row = |line: &str| {
                    let mut columns = line.rsplitn(3, '|');
                    let mut number = || columns.next().unwrap().parse().unwrap();
                    let (n, kind) = (number(), number());
                    (columns.next().unwrap().to_owned(), kind, n)
                };
                rows.lines().map(row).collect()
            }
        }
    }

    /// What must hold of every command at every moment: rows and outcomes fit together. Each is a number of exceptions.
    pub fn exceptions(&mut self) -> Vec<(&'static str, i64)> {
        let checks = [
            (
                "commands with more than one final outcome",
                "SELECT count(*) AS n FROM (SELECT 1 FROM outcomes \
              WHERE is_final GROUP BY action_no, agent_no HAVING count(*) > 1) twice",
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
