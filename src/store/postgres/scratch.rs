//! A schema of its own in somebody's database, for demos and benchmarks: they leave nothing behind
//! and meet nothing.

use super::connect::Connector;
use super::error::{not_connected, sort};
use crate::config::{Config, ServiceUrl};
use crate::store::{StoreError, StoreResult};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use uuid::Uuid;

/// See the module. To be [removed](Self::remove) by whoever made it.
pub struct Scratch {
    schema: String,
    connector: Connector,
    url: ServiceUrl,
}

impl Scratch {
    /// Makes a schema in the database at `url`.
    ///
    /// # Errors
    /// When the database can't be reached, or doesn't allow it.
    pub async fn create(url: &str) -> StoreResult<Self> {
        let flags = [("store.url".to_owned(), url.to_owned())];
        let settings = Config::load_with(None, std::iter::empty(), &flags)
            .map_err(|error| StoreError::Unusable(error.to_string()))?;
        let connector = Connector::new(&settings).map_err(StoreError::Unusable)?;
        let schema = format!("odoshi_scratch_{}", Uuid::now_v7().simple());
        let separator = if url.contains('?') { '&' } else { '?' };
        let url = ServiceUrl::new(format!("{url}{separator}options=-c%20search_path%3D{schema}"));
        let scratch = Self { schema, connector, url };
        let create = format!("CREATE SCHEMA {}", scratch.schema);
        scratch.execute(&mut scratch.connect().await?, &create).await?;
        Ok(scratch)
    }

    /// The same database, in which everything is in this schema.
    pub fn url(&self) -> &ServiceUrl {
        &self.url
    }

    /// A connection beside a store's, with this schema first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn connect(&self) -> StoreResult<AsyncPgConnection> {
        let mut conn = self.connector.connect().await.map_err(not_connected)?.into_inner();
        self.execute(&mut conn, &format!("SET search_path = {}", self.schema)).await?;
        Ok(conn)
    }

    /// A connection to the database of a URL, with the schema that it names.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn connect_to(url: &str) -> StoreResult<AsyncPgConnection> {
        let flags = [("store.url".to_owned(), url.to_owned())];
        let settings = Config::load_with(None, std::iter::empty(), &flags)
            .map_err(|error| StoreError::Unusable(error.to_string()))?;
        let connector = Connector::new(&settings).map_err(StoreError::Unusable)?;
        Ok(connector.connect().await.map_err(not_connected)?.into_inner())
    }

    /// Does something on a connection.
    ///
    /// # Errors
    /// When the database refuses it or is away.
    pub async fn execute(&self, conn: &mut AsyncPgConnection, statements: &str) -> StoreResult<()> {
        conn.batch_execute(statements).await.map_err(|error| sort("scratch", error, None))
    }

    /// Deletes the schema and all that is in it.
    ///
    /// # Errors
    /// When the database is away; then it stays, under a name that says what it was.
    pub async fn remove(self) -> StoreResult<()> {
        let drop = format!("SET lock_timeout = 0; DROP SCHEMA {} CASCADE", self.schema);
        self.execute(&mut self.connect().await?, &drop).await
    }
}
