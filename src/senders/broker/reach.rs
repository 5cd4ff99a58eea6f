//! Why a broker can't be reached at present.

use std::sync::{Mutex, PoisonError};

/// The last error of a connection to a broker. The log has each reason once.
pub(crate) struct Reach {
    /// Its name, for people.
    broker: &'static str,
    /// Its URL, without secrets.
    url: String,
    error: Mutex<Option<String>>,
}

impl Reach {
    /// Of a broker that was not reached yet.
    pub(crate) fn new(broker: &'static str, url: String) -> Self {
        Self { broker, url, error: Mutex::default() }
    }

    /// It is connected.
    pub(crate) fn reached(&self) {
        self.set(None);
        log::info!(url = self.url.as_str(); "connected to {}", self.broker);
    }

    /// The connection is gone.
    pub(crate) fn lost(&self) {
        log::warn!(url = self.url.as_str(); "the connection to {} is lost", self.broker);
    }

    /// An attempt to connect failed.
    pub(crate) fn failed(&self, error: String) {
        if self.set(Some(error.clone())).as_ref() != Some(&error) {
            log::warn!(url = self.url.as_str(), error; "{} can't be reached or used", self.broker);
        }
    }

    /// The reason, for people.
    pub(crate) fn why(&self) -> String {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{}: {}", self.url, error.as_deref().unwrap_or("no answer"))
    }

    /// Keeps an error, and returns the one before.
    fn set(&self, error: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.error.lock().unwrap_or_else(PoisonError::into_inner), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_is_told_until_the_broker_is_reached() {
        let reach = Reach::new("NATS", "nats://h".into());
        assert_eq!(reach.why(), "nats://h: no answer");
        reach.failed("refused".into());
        assert_eq!(reach.why(), "nats://h: refused");
        reach.reached();
        assert_eq!(reach.why(), "nats://h: no answer");
    }
}
