//! For the tests of those who extend Odoshi: [`sender_contract`] runs a sender through what it must
//! promise.

#[cfg(test)]
mod fixture;
mod sender_contract;
mod tap;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use fixture::*;
pub use sender_contract::{Broken, SenderContract, sender_contract};
