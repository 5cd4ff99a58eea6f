//! The routes: one list from which the router, the methods for `405` and the OpenAPI document are
//! made.

use super::error::ApiError;
use super::openapi::{Problems, Token};
use super::{
    actions, agent_calls, agents, audit, check_in, events, health, hooks, metadata, metadata_events, nodes, openapi,
    preview, schedules, tokens,
};
use crate::domain::problem::Problem;
use actix_web::{guard, web};
use utoipa::OpenApi;

/// Defines the routes from paths with their methods and handlers.
macro_rules! routes {
    ($($path:literal { $($method:ident $module:ident::$handler:ident),+ })+) => {
        /// Adds all routes.
        pub(super) fn routes(config: &mut web::ServiceConfig) {
            $(
                let allow = [$(stringify!($method)),+].join(", ").replace("GET", "GET, HEAD");
                let refuse = move || {
                    let refused = ApiError::method_not_allowed(&allow);
                    async move { refused }
                };
                let resource = web::resource($path).default_service(web::to(refuse));
                config.service(resource$(.route(routes!(@method $method).to($module::$handler)))+);
            )+
        }

        /// The paths, each with its methods.
        #[cfg(test)]
        const ROUTES: &[(&str, &[&str])] = &[$(($path, &[$(stringify!($method)),+])),+];

        #[derive(OpenApi)]
        #[openapi(
            info(title = "Odoshi", description = "A durable dispatcher for fleets: actions in, one command per agent out, \
                exact results back. Errors are problem documents (RFC 9457) with a stable `type`."),
            paths($($($module::$handler),+),+),
            components(schemas(Problem)),
            modifiers(&Token, &Problems),
            tags(
                (name = "actions", description = "What to do, on which agents, and when"),
                (name = "schedules", description = "Recurring actions"),
                (name = "agents", description = "The fleet"),
                (name = "tokens", description = "API tokens and their roles"),
                (name = "audit", description = "The audit log"),
                (name = "agent", description = "Calls of agents, each with its own token"),
                (name = "server", description = "The server's state"),
            )
        )]
        pub(super) struct Document;
    };
    // As RFC 9110 wants it, HEAD is answered wherever GET is; the server leaves the body out.
    (@method GET) => { web::route().guard(guard::Any(guard::Get()).or(guard::Head())) };
    (@method POST) => { web::post() };
    (@method PATCH) => { web::patch() };
    (@method PUT) => { web::put() };
    (@method DELETE) => { web::delete() };
}

routes! {
    "/healthz" { GET health::healthz }
    "/readyz" { GET health::readyz }
    "/metrics" { GET health::metrics }
    "/openapi.json" { GET openapi::document }
    "/v1/actions" { GET actions::list, POST actions::create }
    "/v1/actions/{id}" { GET actions::show }
    "/v1/actions/{id}/commands" { GET actions::commands }
    "/v1/actions/{id}/events" { GET events::action }
    "/v1/actions/{id}/cancel" { POST actions::cancel }
    "/v1/actions/{id}/pause" { POST actions::pause }
    "/v1/actions/{id}/resume" { POST actions::resume }
    "/v1/actions/{id}/retry" { POST actions::retry }
    "/v1/agents" { GET agents::list, POST agents::add }
    "/v1/agents/{name}" { GET agents::show, PATCH agents::patch, DELETE agents::remove }
    "/v1/agents/{name}/metadata" { GET metadata::of_agent }
    "/v1/metadata/events" { GET metadata_events::events }
    "/v1/targets/preview" { POST preview::preview }
    "/v1/schedules" { GET schedules::list, POST schedules::create }
    "/v1/schedules/preview" { POST schedules::preview }
    "/v1/schedules/{name}" { GET schedules::show, PUT schedules::put, DELETE schedules::remove }
    "/v1/schedules/{name}/pause" { POST schedules::pause }
    "/v1/schedules/{name}/resume" { POST schedules::resume }
    "/v1/schedules/{name}/trigger" { POST schedules::trigger }
    "/v1/schedules/{name}/preview" { GET schedules::preview_stored }
    "/v1/tokens" { GET tokens::list, POST tokens::create }
    "/v1/tokens/{id}" { DELETE tokens::revoke }
    "/v1/nodes" { GET nodes::list }
    "/v1/hooks" { GET hooks::list }
    "/v1/audit" { GET audit::list }
    "/v1/agent/enroll" { POST agent_calls::enroll }
    "/v1/agent/commands" { GET check_in::commands }
    "/v1/agent/received" { POST check_in::received }
    "/v1/agent/results" { POST check_in::results }
    "/v1/agent/metadata" { POST metadata::report }
    "/v1/agent/stream" { GET agent_calls::stream }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn each_handler_documents_the_path_and_method_that_it_is_routed_by() {
        let routed = ROUTES.iter().map(|(path, methods)| ((*path).to_owned(), methods.iter().copied().collect()));
        let documented = Document::openapi().paths.paths.into_iter().map(|(path, item)| {
            let methods = [
                ("GET", item.get),
                ("POST", item.post),
                ("PUT", item.put),
                ("PATCH", item.patch),
                ("DELETE", item.delete),
            ];
            let methods = methods.into_iter().filter(|(_, operation)| operation.is_some());
            (path, methods.map(|(method, _)| method).collect())
        });
        let routed: BTreeMap<String, BTreeSet<&str>> = routed.collect();
        assert_eq!(documented.collect::<BTreeMap<_, _>>(), routed);
    }
}
