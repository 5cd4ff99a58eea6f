//! The OpenAPI document, made from the handlers: `/openapi.json`.

use super::error::{self, ApiResult};
use actix_web::{HttpResponse, web};
use utoipa::Modify;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};

/// How callers authenticate.
pub(super) struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// The problems that every call of a kind can have: with a token, with parameters, with a body.
pub(super) struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for path in document.paths.paths.values_mut() {
            let operations = [&mut path.get, &mut path.post, &mut path.put, &mut path.patch, &mut path.delete];
            for operation in operations.into_iter().flatten() {
                // The names of handlers are unique only together with their tag.
                let tag = operation.tags.as_ref().and_then(|tags| tags.first()).map_or("", String::as_str);
                operation.operation_id = operation.operation_id.take().map(|id| format!("{tag}_{id}"));
                add_problems(operation);
            }
        }
    }
}

fn add_problems(operation: &mut Operation) {
    let mut add = |status: u16| {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description(error::title_of(status));
        let response = response.content("application/problem+json", problem).build();
        operation.responses.responses.entry(status.to_string()).or_insert(response.into());
    };
    let parameters = operation.parameters.as_deref().unwrap_or_default();
    let has_path = parameters.iter().any(|parameter| parameter.parameter_in == ParameterIn::Path);
    if operation.security.is_some() {
        [401, 403, 429, 503].into_iter().for_each(&mut add);
    }
    if !parameters.is_empty() || operation.request_body.is_some() {
        add(400);
    }
    if has_path {
        add(404);
    }
    if operation.request_body.is_some() {
        [413, 422].into_iter().for_each(add);
    }
}

/// The document as JSON.
pub(super) struct OpenApiJson(pub(super) String);

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "server",
    responses((status = 200, body = Object, description = "The OpenAPI document")))]
pub(super) async fn document(document: web::Data<OpenApiJson>) -> ApiResult<HttpResponse> {
    Ok(HttpResponse::Ok().content_type("application/json").body(document.0.clone()))
}
