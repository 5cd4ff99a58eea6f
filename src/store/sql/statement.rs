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

/// See the module. Its texts may be borrowed.
pub(in crate::store) struct Statement<'a> {
    text: Cow<'static, str>,
    binds: Vec<Bind<'a>>,
}

/// A statement that borrows nothing.
pub(in crate::store) type Sql = Statement<'static>;

/// A statement.
pub(in crate::store) fn sql<'a>(text: impl Into<Cow<'static, str>>) -> Statement<'a> {
    Statement { text: text.into(), binds: Vec::new() }
}

impl<'a> Statement<'a> {
    /// The value for the next `?`.
    pub(in crate::store) fn bind(mut self, value: impl Into<Bind<'a>>) -> Self {
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
        pub(in crate::store) enum Bind<'a> {
            $($variant($ty),)+
            $($array($array_ty)),+
        }

        $(impl<'a> From<$ty> for Bind<'a> {
            fn from(value: $ty) -> Self {
                Self::$variant(value)
            }
        })+

        $(impl<'a> From<$array_ty> for Bind<'a> {
            fn from(value: $array_ty) -> Self {
                Self::$array(value)
            }
        })+

        impl Push for Pg {
            fn push<'b>(bind: &'b Bind<'_>, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
                match bind {
                    $(Bind::$variant(value) => out.push_bind_param::<$sql, _>(value),)+
                    $(Bind::$array(value) => out.push_bind_param::<$array_sql, _>(value)),+
                }
            }
        }

        impl Push for Sqlite {
            fn push<'b>(bind: &'b Bind<'_>, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
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
    fn push<'b>(bind: &'b Bind<'_>, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()>;
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
    StrOrNull(Option<&'a str>) as Nullable<Text>,
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
    Strs(Vec<&'a str>) as Array<Text>,
    StrsOrNull(Vec<Option<&'a str>>) as Array<Nullable<Text>>,
}

impl From<&str> for Bind<'_> {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl<DB: Push> QueryFragment<DB> for Statement<'_> {
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

impl Query for Statement<'_> {
    type SqlType = Untyped;
}

impl QueryId for Statement<'_> {
    type QueryId = ();
    /// It is known by its text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Conn> diesel::query_dsl::RunQueryDsl<Conn> for Statement<'_> {}
