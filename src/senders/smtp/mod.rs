//! Mail: each `message` operation becomes a mail to the agent's address.

mod mail;
mod mailer;
mod transport;

pub(crate) use mailer::Mailer;
pub(crate) use transport::Smtp;
