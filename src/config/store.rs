//! `[store]`

use super::ServiceUrl;
use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;
use std::path::PathBuf;

section! {
    /// The database.
    pub struct Store {
        /// The URL: sqlite://PATH for one node, postgres://… for many. Default: odoshi.db in
        /// data_dir.
        url: Option<ServiceUrl> = None, example "sqlite://odoshi-data/odoshi.db";
        /// A file with the PostgreSQL password and nothing else. Without it, the password comes
        /// from the URL or PGPASSWORD.
        password_file: Option<PathBuf> = None, example "/etc/odoshi/postgres.password";
        /// Maximum number of connections for the pipeline. On PostgreSQL, agents' sessions get
        /// another pool of this size, and users one of a quarter of it, at least 2, so that users'
        /// requests can't take a connection from delivery.
        pool_size: usize = 8;
        /// A PostgreSQL transaction of any client that stays open longer is reported in the log,
        /// because vacuum waits for it.
        warn_transaction: Span = Span::secs(300);
        /// When collected rows are written.
        batch: Batch = Batch::default();
    }
}

section! {
    /// When collected rows are written: at whichever comes first.
    pub struct Batch {
        /// This many items are waiting.
        max_items: usize = 5000;
        /// The oldest item has waited this long.
        max_wait: Span = Span::millis(20);
        /// No item came for this long.
        idle: Span = Span::millis(2);
    }
}

impl Store {
    pub(super) fn validate(&self, checks: &mut Checks) {
        if let Some(url) = &self.url {
            let known = matches!(url.scheme(), "sqlite" | "postgres" | "postgresql");
            checks.that("store.url", known, "must begin with sqlite:// or postgres://");
            checks.that("store.url", !known || !url.rest().is_empty(), "names no database after ://");
            checks.that(
                "store.url",
                !(url.scheme() == "sqlite" && url.rest().contains(":memory:")),
                "must be a file: each connection would have a database in memory of its own",
            );
        }
        checks.count("store.pool_size", self.pool_size, 1_000);
        checks.duration("store.warn_transaction", self.warn_transaction, Span::days(365));
        checks.count("store.batch.max_items", self.batch.max_items, 100_000);
        checks.duration("store.batch.max_wait", self.batch.max_wait, Span::secs(60));
        let idle = self.batch.idle;
        checks.that(
            "store.batch.idle",
            idle <= self.batch.max_wait,
            format!("must not be longer than store.batch.max_wait ({}), and is {idle}", self.batch.max_wait),
        );
    }
}
