//! `ping`: returns its parameters unchanged.

use super::{Call, Module, Outcome};
use async_trait::async_trait;

/// Returns its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Ping;

#[async_trait]
impl Module for Ping {
    async fn call(&self, call: Call) -> Outcome {
        Outcome::done(call.parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::modules::testing;

    #[tokio::test]
    async fn it_answers_its_parameters_to_the_letter() {
        let (call, _tell) = testing::call(r#"{"n": 12345678901234567890123}"#, std::time::Duration::from_secs(60));
        let outcome = Ping.call(call).await;
        assert!(outcome.ok);
        assert_eq!(outcome.output.expect("an output").get(), r#"{"n": 12345678901234567890123}"#);
    }
}
