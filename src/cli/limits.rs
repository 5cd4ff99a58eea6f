//! What the operating system allows this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Allows as many open files as the system lets an ordinary process have: each connection is one.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        log::warn!(error = error.to_string().as_str(); "the limit of open files stays as it is");
    }
}
