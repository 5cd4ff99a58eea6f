//! The macro that turns one list into a section's struct, its defaults, and its keys.

use super::{ByteSize, HookUrl, ServiceUrl};
use crate::domain::time::Span;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The type of a key's value. It decides how the text of an environment variable or a flag is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A table with more keys.
    Section,
    /// Text; also durations, addresses and paths.
    Text,
    /// A size: text with a unit, or a number of bytes.
    Size,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Bool,
    /// A list of texts, separated by commas in the environment and in flags.
    List,
    /// A list of tables, in a file only. Its keys follow with `[]` in their paths.
    Tables,
}

/// One key of the settings.
#[derive(Clone, Debug)]
pub struct Key {
    /// The path from the root: `store.batch.max_items`, `hook[].url`.
    pub path: String,
    /// The type of its value.
    pub kind: Kind,
    /// The lines of its documentation.
    pub docs: &'static [&'static str],
    /// An example for the sample if there is no default.
    pub example: Option<&'static str>,
    /// The defaults of one table of a list of tables.
    pub table: Option<toml::Value>,
}

/// A type that a key can have.
pub(super) trait Setting {
    /// The type of the value in a file.
    const KIND: Kind;

    /// The keys inside it, if it is a section.
    fn inner_keys(_path: &str, _keys: &mut Vec<Key>) {}

    /// The defaults of one table, if it is a list of tables.
    fn table() -> Option<toml::Value> {
        None
    }
}

macro_rules! kinds {
    ($($ty:ty => $kind:ident),+ $(,)?) => { $(impl Setting for $ty { const KIND: Kind = Kind::$kind; })+ };
}

kinds! {
    String => Text, PathBuf => Text, SocketAddr => Text, Span => Text, ServiceUrl => Text, HookUrl => Text, ByteSize => Size,
    u32 => Integer, usize => Integer, bool => Bool, Vec<String> => List,
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = T::KIND;
}

/// Defines a section: the struct with its docs, `Default`, and the list of its keys in the order of
/// the sample. A field in `skip` is no key.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $ty:ty = $default:expr $(, example $example:literal)?;)+
            $(skip { $(#[doc = $skipped_doc:literal])+ $skipped:ident: $skipped_ty:ty; })?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $ty,)+
            $($(#[doc = $skipped_doc])+ #[serde(skip)] pub $skipped: $skipped_ty,)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ $($skipped: Default::default(),)? }
            }
        }

        impl $crate::config::setting::Setting for $name {
            const KIND: $crate::config::Kind = $crate::config::Kind::Section;

            fn inner_keys(path: &str, keys: &mut Vec<$crate::config::Key>) {
                $(
                    let name = stringify!($field);
                    let field = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    keys.push($crate::config::Key {
                        path: field.clone(),
                        kind: <$ty as $crate::config::setting::Setting>::KIND,
                        docs: &[$($doc),+],
                        example: [$($example,)?].first().copied(),
                        table: <$ty as $crate::config::setting::Setting>::table(),
                    });
                    <$ty as $crate::config::setting::Setting>::inner_keys(&field, keys);
                )+
            }
        }

        impl $name {
            /// The section's description, for the head of the sample.
            #[allow(dead_code, reason = "only the root's is shown")]
            pub(super) const ABOUT: &'static [&'static str] = &[$($about),+];
        }
    };
}
pub(super) use section;
