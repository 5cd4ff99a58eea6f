//! From an action's operations to mails. Pure, but for the date.

use lettre::Message;
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use serde::Deserialize;
use std::error::Error;
use uuid::Uuid;

use crate::domain::protocol::Operations;

/// The module whose operations become mails.
pub(super) const MODULE: &str = "message";
/// Maximum number of mails of one command.
pub(super) const MAX_MAILS: usize = 20;

/// The parameters of a `message` operation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    pub(super) subject: String,
    pub(super) text: String,
}

/// The parameters of all operations.
///
/// # Errors
/// If one can't be a mail. So nothing is sent of an action that can't be sent as a whole.
pub(super) fn parameters(operations: &Operations) -> Result<Vec<Parameters>, String> {
    let operations = operations.parse().map_err(|error| format!("the operations can't be read: {error}"))?;
    if operations.len() > MAX_MAILS {
        return Err(format!("{} mails are more than {MAX_MAILS}", operations.len()));
    }
    let read = |(at, operation): (usize, &crate::domain::protocol::Operation)| {
        if operation.module != MODULE {
            let module = &operation.module;
            return Err(format!(
                "operation {at} is of the module {module:?}; an agent with a mail address only takes {MODULE:?}"
            ));
        }
        let json = operation.parameters.as_ref().map_or("null", |json| json.get());
        crate::domain::json::parameters(json).map_err(|error| format!("the parameters of operation {at}: {error}"))
    };
    operations.iter().enumerate().map(|(at, operation)| read((at + 1, operation))).collect()
}

/// Tells mail programs not to answer (RFC 3834, 5).
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

/// The `Message-ID` of a mail: the same for every attempt of a run.
pub(super) fn message_id(run: Uuid, at: usize, from: &Mailbox) -> String {
    format!("<{}.{at}@{}>", run.simple(), from.email.domain())
}

/// A mail.
///
/// # Errors
/// If it can't be built.
pub(super) fn mail(from: &Mailbox, to: &Mailbox, id: String, parameters: Parameters) -> Result<Message, String> {
    let Parameters { subject, text } = parameters;
    // A subject is one line. The builder encodes what isn't plain ASCII.
    let subject: String = subject.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Message::builder()
        .from(from.clone())
        .to(to.clone())
        .subject(subject)
        .message_id(Some(id))
        .date_now()
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN)
        .body(text)
        .map_err(|error| format!("the mail can't be built: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn formatted(subject: &str, text: &str) -> String {
        let from: Mailbox = "Ödoshi <odoshi@example.com>".parse().expect("an address");
        let to: Mailbox = "ops@example.com".parse().expect("an address");
        let id = message_id(Uuid::from_u128(1), 0, &from);
        let parameters = Parameters { subject: subject.into(), text: text.into() };
        String::from_utf8(mail(&from, &to, id, parameters).expect("a mail").formatted()).expect("ASCII")
    }

    fn header_names(mail: &str) -> Vec<&str> {
        let (head, _) = mail.split_once("\r\n\r\n").expect("head and body");
        let lines = head.split("\r\n").filter(|line| !line.starts_with([' ', '\t']));
        lines.map(|line| line.split_once(':').expect("a header").0).collect()
    }

    const NAMES: [&str; 8] =
        ["From", "To", "Subject", "Message-ID", "Date", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding"];

    #[test]
    fn a_mail_has_its_headers_and_no_others() {
        let mail = formatted("Disk full", "on db-1\n.\nbye");
        assert_eq!(header_names(&mail), NAMES);
        assert!(mail.contains("Message-ID: <00000000000000000000000000000001.0@example.com>\r\n"), "{mail}");
        assert!(mail.contains("Subject: Disk full\r\n") && mail.contains("To: ops@example.com\r\n"), "{mail}");
    }

    #[test]
    fn a_subject_can_add_no_header() {
        for subject in
            ["a\r\nBcc: x@example.com", "a\nBcc: x", "a\rBcc: x", "a\r\n\r\nbody", "ü\r\nBcc: x", "a\0b", "\r\n"]
        {
            let mail = formatted(subject, "text");
            assert_eq!(header_names(&mail), NAMES, "{mail}");
        }
    }

    #[test]
    fn operations_that_are_no_mail_are_refused_with_their_place() {
        let refused = |json: &str| parameters(&Operations::from_json(json.into()).expect("JSON")).expect_err("refused");
        let good = r#"{"module":"message","parameters":{"subject":"s","text":"t"}}"#;
        let all = parameters(&Operations::from_json(format!("[{good},{good}]")).expect("JSON")).expect("mails");
        assert_eq!(all.len(), 2);
        assert!(refused(&format!(r#"[{good},{{"module":"exec"}}]"#)).contains("operation 2 is of the module \"exec\""));
        assert!(refused(r#"[{"module":"message"}]"#).starts_with("the parameters of operation 1"));
        assert!(refused(r#"[{"module":"message","parameters":{"subject":"s"}}]"#).contains("text"));
        assert!(refused(r#"[{"module":"message","parameters":{"subject":"s","text":"t","bcc":"x"}}]"#).contains("bcc"));
        assert!(refused(&format!("[{}]", vec![good; 21].join(","))).contains("more than 20"));
    }

    proptest! {
        #[test]
        fn no_text_adds_a_header_or_leaves_ascii(subject in "\\PC{0,200}|(?s).{0,50}", text in "(?s).{0,500}") {
            let mail = formatted(&subject, &text);
            prop_assert!(mail.is_ascii());
            prop_assert_eq!(header_names(&mail), NAMES);
        }
    }
}
