//! `/v1/hooks`: the hooks and the state of their events.

use super::api::Api;
use super::error::ApiResult;
use super::extract::Viewer;
use crate::store::HookView;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct HookState {
    /// Where its events go: scheme and host. The path is not shown, since it may be a secret. Absent
    /// for a hook that the answering node does not have in its settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// The events that are sent to it; absent like `url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    on: Option<Vec<String>>,
    #[serde(flatten)]
    state: HookView,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Hooks {
    hooks: Vec<HookState>,
}

/// The hooks in the answering node's settings, and others with events that wait or were given up.
/// Each hook gets a `POST` with `{"type", "timestamp", "data"}` for each event, signed as Standard
/// Webhooks describes.
#[utoipa::path(get, path = "/v1/hooks", tag = "hooks",
    responses((status = 200, body = Hooks, description = "The hooks")), security(("token" = ["viewer"])))]
pub(super) async fn list(_: Viewer, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let configured = &api.node.config.hook;
    let hooks = api.node.store.hook_list().await?.into_iter().map(|state| {
        let found = configured.iter().enumerate().find(|(index, hook)| hook.name_at(*index) == state.name);
        let hook = found.map(|(_, hook)| hook);
        let url = hook.and_then(|hook| hook.url.as_ref()).map(ToString::to_string);
        HookState { url, on: hook.map(|hook| hook.on.clone()), state }
    });
    Ok(HttpResponse::Ok().json(Hooks { hooks: hooks.collect() }))
}
