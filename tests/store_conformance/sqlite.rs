//! SQLite under the conformance suite: a file in a folder of its own.

use crate::Backend;
use crate::mutations::Mutation;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, SmallInt};
use odoshi::domain::command::CommandState;
use odoshi::domain::counts::Counts;
use odoshi::store::Store;
use odoshi::store::sqlite::SqliteStore;
use std::path::PathBuf;
use tempfile::TempDir;

/// See [`Backend`].
pub struct Sqlite {
    store: Option<SqliteStore>,
    folder: TempDir,
}

#[derive(QueryableByName)]
struct Group {
    #[diesel(sql_type = SmallInt)]
    status: i16,
    #[diesel(sql_type = BigInt)]
    commands: i64,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

impl Sqlite {
    fn file(&self) -> PathBuf {
        self.folder.path().join("odoshi.db")
    }

    /// A connection beside the store's own.
    fn aside(&self) -> SqliteConnection {
        SqliteConnection::establish(self.file().to_str().unwrap()).unwrap()
    }
}

impl Backend for Sqlite {
    async fn fresh() -> Self {
        let mut fresh = Self { store: None, folder: tempfile::tempdir().unwrap() };
        fresh.reopen().await;
        fresh
    }

    fn store(&self) -> &dyn Store {
        self.store.as_ref().unwrap()
    }

    async fn reopen(&mut self) {
        self.store = None;
        self.store = Some(SqliteStore::open(&self.file(), 2).await.unwrap());
    }

    fn set_offset(&self, millis: i64) {
        self.store.as_ref().unwrap().set_offset(millis);
    }

    async fn group_by(&self, action_no: i64) -> Counts {
        let groups: Vec<Group> = sql_query(
            "SELECT CAST(coalesce((SELECT status FROM outcomes o WHERE o.action_no = c.action_no \
               AND o.agent_no = c.agent_no AND o.is_final ORDER BY run DESC LIMIT 1), \
               (SELECT 1 FROM open_commands p WHERE p.action_no = c.action_no AND p.agent_no = c.agent_no \
               AND p.state = 2), 0) AS INTEGER) AS status, count(*) AS commands \
             FROM commands c WHERE c.action_no = ? GROUP BY 1",
        )
        .bind::<BigInt, _>(action_no)
        .load(&mut self.aside())
        .unwrap();
        let mut counts = Counts::default();
        for Group { status, commands } in groups {
            counts.add_new(commands);
            for _ in 0..commands {
                counts.move_one(CommandState::Pending, CommandState::from_code(status).unwrap());
            }
        }
        counts
    }

    async fn late_runs(&self, action_no: i64, agent_no: i64) -> Vec<i64> {
        let rows: Vec<Number> = sql_query(
            "SELECT CAST(run AS BIGINT) AS number FROM late_results WHERE action_no = ? AND agent_no = ? ORDER BY run",
        )
        .bind::<BigInt, _>(action_no)
        .bind::<BigInt, _>(agent_no)
        .load(&mut self.aside())
        .unwrap();
        rows.into_iter().map(|row| row.number).collect()
    }

    async fn open_rows(&self, action_no: i64) -> Vec<i64> {
        let rows: Vec<Number> =
            sql_query("SELECT agent_no AS number FROM open_commands WHERE action_no = ? ORDER BY agent_no")
                .bind::<BigInt, _>(action_no)
                .load(&mut self.aside())
                .unwrap();
        rows.into_iter().map(|row| row.number).collect()
    }

    async fn change_audit(&self) -> diesel::QueryResult<()> {
        sql_query("UPDATE audit SET name = 'nobody'").execute(&mut self.aside()).map(|_| ())
    }

    async fn refuse_hook_events(&self, refused: bool) {
        let statement = if refused {
            "CREATE TRIGGER refused BEFORE INSERT ON hook_events BEGIN SELECT RAISE(ABORT, 'refused'); END"
        } else {
            "DROP TRIGGER refused"
        };
        sql_query(statement).execute(&mut self.aside()).unwrap();
    }

    async fn keeps(&self, bytes: &[u8]) -> bool {
        std::fs::read_dir(self.folder.path()).unwrap().any(|entry| {
            let content = std::fs::read(entry.unwrap().path()).unwrap();
            content.windows(bytes.len()).any(|window| window == bytes)
        })
    }

    async fn rows_of(&self, action_no: i64) -> i64 {
        let tables = ["commands", "outcomes", "open_commands", "late_results", "action_counts", "purges"];
        let counts = tables.map(|table| format!("(SELECT count(*) FROM {table} WHERE action_no = {action_no})"));
        let query = format!("SELECT {} AS number", counts.join(" + "));
        sql_query(query).get_result::<Number>(&mut self.aside()).unwrap().number
    }

    async fn orphan(&self, action_no: i64) {
        sql_query("DELETE FROM actions WHERE no = ?").bind::<BigInt, _>(action_no).execute(&mut self.aside()).unwrap();
    }

    async fn sabotage(&self, mutation: Mutation) {
        let trigger = match mutation {
            Mutation::LostRow => {
                "CREATE TRIGGER sabotage BEFORE INSERT ON commands WHEN NEW.agent_no % 3 = 2 \
                 BEGIN SELECT RAISE(IGNORE); END"
            }
            Mutation::LateOverwrite => {
                "CREATE TRIGGER sabotage AFTER INSERT ON late_results BEGIN \
                 UPDATE outcomes SET results = NEW.results, status = NEW.status WHERE action_no = NEW.action_no \
                 AND agent_no = NEW.agent_no AND run = NEW.run; END"
            }
            Mutation::DoubleCount => {
                "CREATE TRIGGER sabotage AFTER UPDATE ON action_counts BEGIN UPDATE action_counts \
                 SET succeeded = NEW.succeeded + (NEW.succeeded - OLD.succeeded) \
                 WHERE action_no = NEW.action_no AND lane = NEW.lane; END"
            }
        };
        sql_query(trigger).execute(&mut self.aside()).unwrap();
    }
}
