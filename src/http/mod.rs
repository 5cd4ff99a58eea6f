//! The HTTP API: one file per resource. Handlers only extract and translate; the work is done in
//! `service/`.

mod actions;
mod agent_calls;
mod agents;
mod api;
mod audit;
mod auth;
mod body;
mod body_room;
mod check_in;
mod connections;
mod error;
mod events;
mod extract;
mod health;
mod hooks;
mod known_tokens;
mod limits;
mod lines;
mod metadata;
mod metadata_events;
mod nodes;
mod openapi;
mod pages;
mod preview;
mod query;
mod routes;
mod schedules;
mod server;
mod tls;
mod tokens;
mod unserved;

pub use api::Api;
pub use connections::Connections;
pub use error::{ApiError, ApiResult};
pub use server::{Listening, serve};
