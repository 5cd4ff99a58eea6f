//! The operating system's limits for this process.

use crate::error_chain::ErrorChain;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files (each connection is one) as far as an ordinary process may, and
/// returns it.
pub fn raise_open_files() -> u64 {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            log::warn!(error:% = error.chain(); "the limit of open files is not known");
            return u64::MAX;
        }
    };
    if soft >= hard {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            log::warn!(error:% = error.chain(), limit = soft; "the limit of open files could not be raised");
            soft
        }
    }
}
