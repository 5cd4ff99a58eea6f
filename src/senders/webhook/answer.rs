//! What an answer means for the command. Pure.

use super::client::{Answer, PostError, PostErrorKind};
use crate::domain::fit::{cut, cut_text};
use crate::domain::json::{repaired, tidy};
use crate::domain::protocol::OperationResult;
use crate::domain::text::text_of;
use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::value::{RawValue, to_raw_value};
use std::time::Duration;

/// The longest wait that a receiver can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);
/// Maximum size of a result's output, in bytes. As large as what is read of an answer, so that only
/// the growth by escaping is cut.
const MAX_OUTPUT: usize = super::client::MAX_BODY;
/// Maximum number of bytes of a body that an error quotes.
const MAX_QUOTE: usize = 512;

/// What an answer means.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// The agent has done it.
    Done(OperationResult),
    /// The agent has it. Its result comes later.
    Received,
    /// The agent refuses it for good.
    Refused(String),
    /// The agent is gone for good.
    Gone(String),
    /// Another attempt may succeed.
    Again {
        /// Why.
        error: String,
        /// The wait that the receiver asked for.
        retry_after: Option<Duration>,
    },
    /// Its host can't be reached.
    Unreachable(String),
}

/// Judges the answer to a command whose result is that of `module`.
pub(super) fn judge(answer: Result<Answer, PostError>, module: &str, now: DateTime<Utc>) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(PostError { kind, text }) => {
            return match kind {
                PostErrorKind::Refused => Verdict::Refused(text),
                PostErrorKind::Connect | PostErrorKind::Timeout => Verdict::Unreachable(text),
                // The name's addresses may be corrected.
                PostErrorKind::RefusedName | PostErrorKind::Protocol => {
                    Verdict::Again { error: text, retry_after: None }
                }
            };
        }
    };
    match answer.status.as_u16() {
        202 => Verdict::Received,
        200..=299 => Verdict::Done(result(answer, module)),
        410 => Verdict::Gone(described(&answer)),
        408 | 425 | 429 | 500..=599 => {
            let retry_after = answer.retry_after.as_deref().and_then(|text| retry_after(text, now));
            Verdict::Again { error: described(&answer), retry_after }
        }
        // 3xx and other 4xx, and what isn't a status of HTTP.
        _ => Verdict::Refused(described(&answer)),
    }
}

/// The body as JSON if it is JSON, else as text.
fn result(answer: Answer, module: &str) -> OperationResult {
    let Answer { body, truncated, .. } = answer;
    let (output, lossy) = output(&body, truncated);
    let (output, was_cut) = match output {
        Some(output) => cut(output, MAX_OUTPUT),
        None => (None, false),
    };
    let truncated = truncated || was_cut;
    OperationResult { module: module.to_owned(), ok: true, output, error: None, truncated, lossy }
}

/// The output, and whether bytes of it were no text.
fn output(body: &[u8], truncated: bool) -> (Option<Box<RawValue>>, bool) {
    if body.iter().all(u8::is_ascii_whitespace) {
        return (None, false);
    }
    let (text, lossy) = text_of(body, truncated);
    match serde_json::from_str::<Box<RawValue>>(&repaired(&text)) {
        Ok(json) if !truncated && !lossy => (Some(tidy(json)), false),
        _ => (to_raw_value(&text).ok(), lossy),
    }
}

/// The status and the beginning of the body, in one line.
fn described(answer: &Answer) -> String {
    let reason = answer.status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default();
    let head = format!("the agent answered {}{reason}", answer.status.as_u16());
    // A character is at most four bytes. One that the cut splits is left out below.
    let start = &answer.body[..answer.body.len().min(MAX_QUOTE + 4)];
    let body = cut_text(String::from_utf8_lossy(start).into_owned(), MAX_QUOTE);
    let body = body.trim();
    if body.is_empty() {
        return head;
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let escaped = cut_text(body.chars().map(escape).collect(), MAX_QUOTE);
    let more = if answer.truncated || answer.body.len() > MAX_QUOTE { "…" } else { "" };
    format!("{head}: {escaped}{more}")
}

/// The header `Retry-After`: seconds, or a date in one of HTTP's three formats (RFC 9110, 5.6.7).
pub(super) fn retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are more than the maximum.
        let wait = text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs);
        return Some(wait.min(MAX_RETRY_AFTER));
    }
    let obsolete = |format| NaiveDateTime::parse_from_str(text, format).ok().map(|time| time.and_utc());
    let at = DateTime::parse_from_rfc2822(text)
        .ok()
        .map(|time| time.to_utc())
        .or_else(|| obsolete("%A, %d-%b-%y %H:%M:%S GMT"))
        .or_else(|| obsolete("%a %b %e %H:%M:%S %Y"))?;
    Some((at - now).to_std().unwrap_or(Duration::ZERO).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reqwest::StatusCode;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("1994-11-06T08:49:07Z").expect("a time").to_utc()
    }

    fn answer(status: u16, body: &[u8]) -> Answer {
        let status = StatusCode::from_u16(status).expect("a status");
        Answer { status, retry_after: None, body: body.to_vec(), truncated: false }
    }

    fn judged(status: u16, body: &[u8]) -> Verdict {
        judge(Ok(answer(status, body)), "deploy", now())
    }

    #[test]
    fn the_body_of_a_2xx_is_the_result_as_json_or_text() {
        for (body, output) in [
            (&br#"{"a": 1.10}"#[..], Some(r#"{"a": 1.10}"#)),
            (b" 7\n", Some("7")),
            (b"fine, thanks", Some(r#""fine, thanks""#)),
            (b"{\"a\": 1", Some(r#""{\"a\": 1""#)),
            (b"", None),
            (b" \r\n", None),
            (b"\xff\xfe\x00", Some("\"\u{FFFD}\u{FFFD}\\u0000\"")),
        ] {
            for status in [200, 201, 204, 299] {
                let Verdict::Done(result) = judged(status, body) else { panic!("{status}") };
                assert_eq!(result.output.as_deref().map(RawValue::get), output);
                assert!(result.ok && !result.truncated && result.module == "deploy");
            }
        }
        assert!(matches!(judged(202, b"later"), Verdict::Received));
    }

    #[test]
    fn a_truncated_body_is_text_and_says_so() {
        let long = Answer { truncated: true, ..answer(200, b"[1]") };
        let Verdict::Done(result) = judge(Ok(long), "m", now()) else { panic!("not done") };
        assert_eq!((result.output.as_deref().map(RawValue::get), result.truncated), (Some("\"[1]\""), true));
    }

    #[test]
    fn statuses_decide_what_happens_next() {
        for status in [408, 425, 429, 500, 502, 503, 599] {
            assert!(matches!(judged(status, b"busy"), Verdict::Again { retry_after: None, .. }), "{status}");
        }
        for status in [300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 409, 413, 422, 426, 451, 600, 999] {
            assert!(matches!(judged(status, b"no"), Verdict::Refused(_)), "{status}");
        }
        assert!(matches!(judged(410, b"bye"), Verdict::Gone(_)));
    }

    #[test]
    fn kinds_of_errors_decide_what_happens_next() {
        let of = |kind| judge(Err(PostError { kind, text: "x".into() }), "m", now());
        assert!(matches!(of(PostErrorKind::Refused), Verdict::Refused(_)));
        assert!(matches!(of(PostErrorKind::RefusedName), Verdict::Again { .. }));
        assert!(matches!(of(PostErrorKind::Protocol), Verdict::Again { .. }));
        assert!(matches!(of(PostErrorKind::Connect), Verdict::Unreachable(_)));
        assert!(matches!(of(PostErrorKind::Timeout), Verdict::Unreachable(_)));
    }

    #[test]
    fn errors_quote_the_start_of_the_body_in_one_line() {
        let Verdict::Refused(error) = judged(404, b"no such\r\n\x1b[31mthing\0 ") else { panic!("not refused") };
        assert_eq!(error, "the agent answered 404 Not Found: no such\\r\\n\\u{1b}[31mthing\\u{0}");
        let Verdict::Refused(error) = judged(400, "ä".repeat(5_000).as_bytes()) else { panic!("not refused") };
        assert!(error.len() < 600 && error.ends_with("ä…"), "{error}");
        let Verdict::Refused(error) = judged(302, b"") else { panic!("not refused") };
        assert_eq!(error, "the agent answered 302 Found");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_an_hour() {
        for (text, wait) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("86400", Some(3_600)),
            ("99999999999999999999999", Some(3_600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(30)),
            ("Sun Nov  6 08:49:37 1994", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("Sun, 07 Nov 2094 08:49:37 GMT", Some(3_600)),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now()), wait.map(Duration::from_secs), "{text}");
        }
        let busy = Answer { retry_after: Some("7".into()), ..answer(429, b"") };
        let Verdict::Again { retry_after, .. } = judge(Ok(busy), "m", now()) else { panic!("not again") };
        assert_eq!(retry_after, Some(Duration::from_secs(7)));
    }

    proptest! {
        #[test]
        fn any_answer_has_a_verdict_of_bounded_size(
            status in 100_u16..1000, body in prop::collection::vec(any::<u8>(), 0..2_000), header in ".{0,40}",
        ) {
            let answer = Answer { retry_after: Some(header), ..answer(status, &body) };
            match judge(Ok(answer), "m", now()) {
                Verdict::Refused(error) | Verdict::Gone(error) | Verdict::Again { error, .. } => {
                    prop_assert!(error.len() < 700 && !error.contains(char::is_control));
                }
                _ => {}
            }
        }
    }
}
