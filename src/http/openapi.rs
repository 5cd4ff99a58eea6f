//! The OpenAPI document, made from the handlers: `/openapi.json`.

use super::{ApiResult, actions, agent_calls, agents, audit, check_in, error, events, health, nodes, preview, tokens};
use crate::domain::problem::Problem;
use actix_web::HttpResponse;
use std::sync::OnceLock;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(title = "Odoshi", description = "A durable dispatcher for fleets: actions in, one command per agent out, exact \
        results back. Errors are problem documents (RFC 9457) with a stable `type`."),
    paths(
        actions::create, actions::list, actions::show, actions::commands, actions::cancel, actions::pause,
        actions::resume, actions::retry, events::action,
        preview::preview, agents::list, agents::add, agents::show, agents::patch, agents::remove,
        tokens::list, tokens::create, tokens::revoke, audit::list,
        agent_calls::enroll, agent_calls::stream, check_in::commands, check_in::received, check_in::results,
        health::healthz, health::readyz, health::metrics, nodes::list, openapi,
    ),
    components(schemas(Problem)),
    modifiers(&Token, &Problems),
    tags(
        (name = "actions", description = "What is to be done"),
        (name = "agents", description = "By whom"),
        (name = "tokens", description = "Who may say so"),
        (name = "audit", description = "Who said so"),
        (name = "agent", description = "What agents call, each with its own token"),
        (name = "server", description = "How the server is"),
    )
)]
struct Document;

/// How callers show who they are.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// The problems that any call of a kind can have: with a token, with parameters, with a body.
struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for path in document.paths.paths.values_mut() {
            let operations = [&mut path.get, &mut path.post, &mut path.patch, &mut path.delete];
            for operation in operations.into_iter().flatten() {
                // The names of handlers are unique beside their tag alone.
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

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "server",
    responses((status = 200, body = Object, description = "The OpenAPI document")))]
pub(super) async fn openapi() -> ApiResult<HttpResponse> {
    static JSON: OnceLock<String> = OnceLock::new();
    let json = JSON.get_or_init(|| Document::openapi().to_json().unwrap_or_default());
    Ok(HttpResponse::Ok().content_type("application/json").body(json.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn every_route_is_in_the_document_with_its_methods() {
        // `on("PATH", "METHODS")…`
        let routes = include_str!("mod.rs").split("on(\"").skip(1).map(|rest| {
            let mut quoted = rest.split('"').step_by(2);
            let (path, methods) = (quoted.next().expect("a path"), quoted.next().expect("methods"));
            (path.to_owned(), methods.split(", ").map(str::to_owned).collect())
        });
        let routes: BTreeMap<String, BTreeSet<String>> = routes.collect();
        let documented = Document::openapi().paths.paths.into_iter().map(|(path, item)| {
            let methods = [("GET", item.get), ("POST", item.post), ("PATCH", item.patch), ("DELETE", item.delete)];
            let methods = methods.into_iter().filter(|(_, operation)| operation.is_some());
            (path, methods.map(|(method, _)| method.to_owned()).collect())
        });
        assert_eq!(documented.collect::<BTreeMap<_, _>>(), routes);
    }
}
