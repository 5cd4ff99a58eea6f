//! Statements as text with their values bound, prepared once per connection.
//!
//! `diesel::sql_query` prepares its statement anew each time, which is one more round trip for every statement; the
//! texts here are constants, so that they are kept prepared. A value goes where the text has a `?`.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::Error;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, SmallInt, Text, Untyped};
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

    /// The values for the next places.
    pub(in crate::store) fn bind_each(mut self, values: &[i64]) -> Self {
        self.binds.extend(values.iter().copied().map(Bind::from));
        self
    }
}

macro_rules! binds {
    ($($variant:ident($ty:ty) as $sql:ty),+ $(,)?) => {
        /// A bound value.
        pub(in crate::store) enum Bind {
            $($variant($ty)),+
        }

        $(impl From<$ty> for Bind {
            fn from(value: $ty) -> Self {
                Self::$variant(value)
            }
        })+

        impl Bind {
            fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
                match self {
                    $(Self::$variant(value) => out.push_bind_param::<$sql, _>(value)),+
                }
            }
        }
    };
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
    BytesOrNull(Option<Vec<u8>>) as Nullable<Binary>,
    BigInts(Vec<i64>) as Array<BigInt>,
    BigIntsOrNull(Vec<Option<i64>>) as Array<Nullable<BigInt>>,
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

impl QueryFragment<Pg> for Sql {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut parts = self.text.split('?');
        out.push_sql(parts.next().unwrap_or_default());
        let mut binds = self.binds.iter();
        for part in parts {
            let bind = binds.next().ok_or_else(|| miscounted(&self.text))?;
            bind.push(&mut out)?;
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
