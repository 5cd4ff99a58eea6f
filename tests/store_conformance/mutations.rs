//! The suite is tested too: on a store that was broken on purpose, some case must fail.

use crate::{Backend, cases};
use odoshi::domain::counts::Counts;
use odoshi::store::Store;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is broken.
#[derive(Clone, Copy, Debug)]
pub enum Mutation {
    /// Some commands are never written.
    LostRow,
    /// A late result takes the place of the one that decided.
    LateOverwrite,
    /// What succeeded is counted twice.
    DoubleCount,
}

/// A backend with something broken in it.
trait Sabotage {
    const MUTATION: Mutation;
}

macro_rules! sabotages {
    ($($name:ident),*) => {
        $(struct $name;
        impl Sabotage for $name {
            const MUTATION: Mutation = Mutation::$name;
        })*
    };
}

sabotages!(LostRow, LateOverwrite, DoubleCount);

struct Broken<B, S>(B, PhantomData<S>);

impl<B: Backend, S: Sabotage> Backend for Broken<B, S> {
    async fn fresh() -> Self {
        let fresh = B::fresh().await;
        fresh.sabotage(S::MUTATION).await;
        Self(fresh, PhantomData)
    }

    fn store(&self) -> &dyn Store {
        self.0.store()
    }

    async fn reopen(&mut self) {
        self.0.reopen().await;
    }

    fn set_offset(&self, millis: i64) {
        self.0.set_offset(millis);
    }

    async fn group_by(&self, action_no: i64) -> Counts {
        self.0.group_by(action_no).await
    }

    async fn late_runs(&self, action_no: i64, agent_no: i64) -> Vec<i64> {
        self.0.late_runs(action_no, agent_no).await
    }

    async fn open_rows(&self, action_no: i64) -> Vec<i64> {
        self.0.open_rows(action_no).await
    }

    async fn rows_of(&self, action_no: i64) -> i64 {
        self.0.rows_of(action_no).await
    }

    async fn orphan(&self, action_no: i64) {
        self.0.orphan(action_no).await;
    }

    async fn change_audit(&self) -> diesel::QueryResult<()> {
        self.0.change_audit().await
    }

    async fn refuse_hook_events(&self, refused: bool) {
        self.0.refuse_hook_events(refused).await;
    }

    async fn keeps(&self, bytes: &[u8]) -> bool {
        self.0.keeps(bytes).await
    }

    async fn sabotage(&self, mutation: Mutation) {
        self.0.sabotage(mutation).await;
    }
}

/// The first case that fails on a backend. Without the property tests: what fails there is made smaller first.
fn failing<B: Backend>() -> Option<&'static str> {
    macro_rules! run_all {
        (; $($topic:ident { $($case:ident)* })*) => {
            $($(if !matches!(stringify!($topic), "model" | "targets") {
                let run = || crate::block_on(async { crate::$topic::$case(&mut B::fresh().await).await });
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    return Some(stringify!($case));
                }
            })*)*
        };
    }
    cases!(run_all!);
    None
}

fn finds<B: Backend, S: Sabotage>() {
    let failed = failing::<Broken<B, S>>();
    assert!(failed.is_some(), "no case finds {:?}", S::MUTATION);
    eprintln!("{:?} is found by {failed:?}", S::MUTATION);
}

macro_rules! found {
    ($($name:ident, $backend:ty;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn lost_rows_are_found() {
                finds::<$backend, LostRow>();
            }

            #[test]
            fn late_overwrites_are_found() {
                finds::<$backend, LateOverwrite>();
            }

            #[test]
            fn double_counts_are_found() {
                finds::<$backend, DoubleCount>();
            }
        })*
    };
}

found! {
    on_sqlite, crate::sqlite::Sqlite;
    on_postgres, crate::postgres::Postgres;
}
