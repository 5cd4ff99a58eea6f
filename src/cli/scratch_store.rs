//! The store of a demo or a benchmark, apart from real data.

use crate::store::postgres::Scratch;
use crate::store::{StoreResult, sqlite_path};

/// See the module.
pub(super) enum ScratchStore {
    /// A file in the temporary folder, or one that the user named.
    File(Option<String>),
    /// A separate schema in a database.
    Schema(Box<Scratch>),
}

impl ScratchStore {
    /// A store at this URL, or in the temporary folder.
    pub(super) async fn at(url: Option<&str>) -> StoreResult<Self> {
        match url {
            Some(url) if sqlite_path(url).is_none() => Ok(Self::Schema(Box::new(Scratch::create(url).await?))),
            url => Ok(Self::File(url.map(str::to_owned))),
        }
    }

    /// The value for `store.url`, if not the default.
    pub(super) fn url(&self) -> Option<&str> {
        match self {
            Self::File(url) => url.as_deref(),
            Self::Schema(scratch) => Some(scratch.url().expose()),
        }
    }

    /// Removes the schema that was created.
    pub(super) async fn leave(self) -> StoreResult<()> {
        match self {
            Self::File(_) => Ok(()),
            Self::Schema(scratch) => scratch.remove().await,
        }
    }
}
