//! The parameters of a URL.

use super::error::ApiError;
use crate::domain::json::plainly;
use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use serde::de::DeserializeOwned;
use std::future::{Ready, ready};
use std::ops::Deref;

/// The parameters after a path's `?`. An error names the parameter.
pub(super) struct Query<T>(T);

impl<T> Deref for Query<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(read(request.query_string()).map(Self).map_err(ApiError::bad_request))
    }
}

fn read<T: DeserializeOwned>(query: &str) -> Result<T, String> {
    let reader = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
    serde_path_to_error::deserialize(reader).map_err(|error| {
        let name = error.path().to_string();
        let place = if name == "." { String::new() } else { format!("{name}: ") };
        format!("{place}{}", plainly(&error.into_inner().to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Span;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        limit: Option<usize>,
        disabled: Option<bool>,
        wait: Option<Span>,
        target: Option<String>,
    }

    #[test]
    fn an_error_names_the_parameter_and_no_type() {
        for (query, plain) in [
            ("limit=abc", "limit: not a whole number"),
            ("limit=", "limit: empty, expected a whole number"),
            ("disabled=yes", "disabled: neither true nor false"),
            ("limit=1&limit=2", "duplicate field `limit`"),
            ("colour=1", "unknown field `colour`"),
        ] {
            assert!(read::<Asked>(query).expect_err("refused").ends_with(plain), "{:?}", read::<Asked>(query));
        }
        assert!(read::<Asked>("wait=long").expect_err("refused").starts_with("wait: "));
        let asked = read::<Asked>("limit=7&disabled=true&wait=5s&target=a%20%3D+1").expect("parameters");
        assert_eq!((asked.limit, asked.disabled, asked.target.as_deref()), (Some(7), Some(true), Some("a = 1")));
        assert_eq!(asked.wait.map(|span| span.0.as_secs()), Some(5));
    }
}
