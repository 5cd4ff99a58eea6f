//! Statements as text with their values bound, prepared once per connection, for both databases.
//!
//! `diesel::sql_query` prepares its statement each time, which is one more round trip per statement
//! on PostgreSQL. The texts here are constants, and so their prepared statements are cached. A
//! value goes where the text has a `?`. Arrays are PostgreSQL's alone: on SQLite, callers bind one
//! JSON text instead.

use diesel::backend::Backend;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::Error;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, SmallInt, Text, Untyped};
use diesel::sqlite::Sqlite;
use std::borrow::Cow;

/// See the module.
pub(in crate::store) struct Sql {
    text: Cow<'static, str>,
    binds: Vec<Bind>,
}

/// A statement.
pub(in crate::store) fn sql(text: impl Into<Cow<'static, str>>) -> Sql {
    Sql { text: text.into(), binds: Vec::new() }
}

impl Sql {
    /// The value for the next `?`.
    pub(in crate::store) fn bind(mut self, value: impl Into<Bind>) -> Self {
        self.binds.push(value.into());
        self
    }

    /// The statement with this text after it.
    pub(in crate::store) fn and(mut self, text: impl AsRef<str>) -> Self {
        self.text.to_mut().push_str(text.as_ref());
        self
    }

    /// The values for the next places.
    pub(in crate::store) fn bind_each(mut self, values: &[i64]) -> Self {
        self.binds.extend(values.iter().copied().map(Bind::from));
        self
    }
}

macro_rules! binds {
    ($($variant:ident($ty:ty) as $sql:ty),+; arrays: $($array:ident($array_ty:ty) as $array_sql:ty),+ $(,)?) => {
        /// A bound value.
        pub(in crate::store) enum Bind {
            $($variant($ty),)+
            $($array($array_ty)),+
        }

        $(impl From<$ty> for Bind {
            fn from(value: $ty) -> Self {
                Self::$variant(value)
            }
        })+

        $(impl From<$array_ty> for Bind {
            fn from(value: $array_ty) -> Self {
                Self::$array(value)
            }
        })+

        impl Push for Pg {
            fn push<'b>(bind: &'b Bind, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
                match bind {
                    $(Bind::$variant(value) => out.push_bind_param::<$sql, _>(value),)+
                    $(Bind::$array(value) => out.push_bind_param::<$array_sql, _>(value)),+
                }
            }
        }

        impl Push for Sqlite {
            fn push<'b>(bind: &'b Bind, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
                match bind {
                    $(Bind::$variant(value) => out.push_bind_param::<$sql, _>(value),)+
                    $(Bind::$array(_) => Err(Error::QueryBuilderError("SQLite has no arrays".into()))),+
                }
            }
        }
    };
}

/// A database to which every value can be bound.
pub(in crate::store) trait Push: Backend {
    fn push<'b>(bind: &'b Bind, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()>;
}

binds! {
    BigInt(i64) as BigInt,
    BigIntOrNull(Option<i64>) as Nullable<BigInt>,
    Integer(i32) as Integer,
    IntegerOrNull(Option<i32>) as Nullable<Integer>,
    SmallIntOrNull(Option<i16>) as Nullable<SmallInt>,
    Bool(bool) as Bool,
    BoolOrNull(Option<bool>) as Nullable<Bool>,
    Text(String) as Text,
    TextOrNull(Option<String>) as Nullable<Text>,
    Bytes(Vec<u8>) as Binary,
    BytesOrNull(Option<Vec<u8>>) as Nullable<Binary>;
    arrays:
    BigInts(Vec<i64>) as Array<BigInt>,
    BigIntsOrNull(Vec<Option<i64>>) as Array<Nullable<BigInt>>,
    ByteStrings(Vec<Vec<u8>>) as Array<Binary>,
    Integers(Vec<i32>) as Array<Integer>,
    SmallInts(Vec<i16>) as Array<SmallInt>,
    Bools(Vec<bool>) as Array<Bool>,
    Texts(Vec<String>) as Array<Text>,
    TextsOrNull(Vec<Option<String>>) as Array<Nullable<Text>>,
}

impl From<&str> for Bind {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl<DB: Push> QueryFragment<DB> for Sql {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        let mut parts = self.text.split('?');
        out.push_sql(parts.next().unwrap_or_default());
        let mut binds = self.binds.iter();
        for part in parts {
            let bind = binds.next().ok_or_else(|| miscounted(&self.text))?;
            DB::push(bind, &mut out)?;
            out.push_sql(part);
        }
        match binds.next() {
            None => Ok(()),
            Some(_) => Err(miscounted(&self.text)),
        }
    }
}

fn miscounted(text: &str) -> Error {
    Error::QueryBuilderError(format!("not one value for each place in: {text}").into())
}

impl Query for Sql {
    type SqlType = Untyped;
}

impl QueryId for Sql {
    type QueryId = ();
    /// It is known by its text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Conn> diesel::query_dsl::RunQueryDsl<Conn> for Sql {}
