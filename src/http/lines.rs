//! Long lists as lines, streamed page by page: a million of them take no more memory than one page.

use super::api::Api;
use super::error::{ApiError, ApiResult};
use super::limits::StreamRoom;
use crate::domain::command::CommandState;
use crate::domain::json::on_one_line;
use crate::domain::problem::ProblemKind;
use crate::domain::text::{csv_cell, escaped_json};
use crate::store::{AgentNames, CommandView, StoreResult};
use actix_web::http::header::ACCEPT;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream::unfold;
use serde::Serialize;
use std::time::Duration;
use uuid::Uuid;

/// Commands per page.
const PAGE: usize = 1_000;
/// How often a page is tried while the store is away. Then the stream breaks off, which the client
/// sees.
const TRIES: u32 = 5;

/// The format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A JSON object per line.
    NdJson,
    /// A header row, then one row per item.
    Csv,
}

impl Format {
    /// The format that the request's `Accept` header names, if any.
    pub(super) fn asked_for(request: &HttpRequest) -> Option<Self> {
        let accept = request.headers().get(ACCEPT)?.to_str().ok()?;
        accept.split(',').find_map(|part| match part.split(';').next()?.trim() {
            "application/x-ndjson" => Some(Self::NdJson),
            "text/csv" => Some(Self::Csv),
            _ => None,
        })
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::NdJson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    fn write(self, commands: &[CommandView], first: bool) -> Result<Vec<u8>, ApiError> {
        let failed = |error: &dyn std::fmt::Display| ApiError::new(ProblemKind::Internal, error.to_string());
        match self {
            Self::NdJson => {
                let mut lines = String::new();
                for command in commands {
                    let line = serde_json::to_string(command).map_err(|error| failed(&error))?;
                    // Rows of early versions may hold line ends.
                    lines.push_str(&escaped_json(&on_one_line(&line)));
                    lines.push('\n');
                }
                Ok(lines.into_bytes())
            }
            Self::Csv => {
                let mut rows = csv::Writer::from_writer(Vec::new());
                if first {
                    rows.write_record(COLUMNS).map_err(|error| failed(&error))?;
                }
                for command in commands {
                    let row = row(command);
                    rows.write_record(row.iter().map(|cell| csv_cell(cell).into_owned()))
                        .map_err(|error| failed(&error))?;
                }
                rows.into_inner().map_err(|error| failed(&error))
            }
        }
    }
}

const COLUMNS: [&str; 10] =
    ["agent", "status", "attempts", "runs", "due_at", "sent_at", "started_at", "finished_at", "results", "error"];

fn row(command: &CommandView) -> [String; 10] {
    let text = |value: &Option<crate::domain::time::Timestamp>| value.map(|time| time.to_string()).unwrap_or_default();
    [
        command.agent.clone(),
        command.status.as_str().into(),
        command.attempts.to_string(),
        command.runs.to_string(),
        command.due_at.to_string(),
        text(&command.sent_at),
        text(&command.started_at),
        text(&command.finished_at),
        command.results.as_ref().map(json).unwrap_or_default(),
        command.error.clone().unwrap_or_default(),
    ]
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Which commands.
pub(super) struct Wanted {
    pub(super) id: Uuid,
    pub(super) status: Option<CommandState>,
    pub(super) agent: Option<String>,
}

/// The commands of an action, by agent name after `after`.
pub(super) fn commands(
    api: web::Data<Api>,
    room: StreamRoom,
    wanted: Wanted,
    after: Option<String>,
    format: Format,
) -> ApiResult<HttpResponse> {
    // After the last page there is nothing to continue with.
    let begin = Some((after, true));
    let pages = unfold((begin, api, room, wanted), move |(place, api, room, wanted)| async move {
        let (after, first) = place?;
        let page = match page(&api, &wanted, after.as_deref()).await {
            Ok(page) => page,
            Err(error) => return Some((Err(ApiError::from(error)), (None, api, room, wanted))),
        };
        let next =
            (page.len() == PAGE).then(|| page.last().map(|command| (Some(command.agent.clone()), false))).flatten();
        Some((format.write(&page, first).map(web::Bytes::from), (next, api, room, wanted)))
    });
    Ok(HttpResponse::Ok().content_type(format.content_type()).streaming(pages))
}

async fn page(api: &Api, wanted: &Wanted, after: Option<&str>) -> StoreResult<Vec<CommandView>> {
    let Wanted { id, status, agent } = wanted;
    let agents = agent.as_deref().map_or(AgentNames::After(after.unwrap_or_default()), AgentNames::Only);
    let mut tries = 0;
    loop {
        tries += 1;
        match api.node.store.command_list(*id, *status, agents, PAGE).await {
            Err(error) if error.is_transient() && tries < TRIES => tokio::time::sleep(Duration::from_millis(200)).await,
            done => return done,
        }
    }
}
