//! Prints an error with its causes. An error's own text doesn't repeat its source, so code that
//! shows or logs an error uses the chain.

use std::error::Error;
use std::fmt;

/// Implemented for every error.
pub trait ErrorChain {
    /// The error, its source, the source's source, and so on, separated by `: `.
    fn chain(&self) -> Chain<'_>;
}

/// The same for an error of unknown type.
pub fn chain_of<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl<E: Error + 'static> ErrorChain for E {
    fn chain(&self) -> Chain<'_> {
        Chain(self)
    }
}

/// See [`ErrorChain::chain`].
#[derive(Clone, Copy)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Some libraries print their source and also return it from `source()`.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("the spool can't be read")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("new/")]
    struct Inner(#[source] io::Error);

    #[test]
    fn causes_are_printed_once_each() {
        let error = Outer(Inner(io::ErrorKind::NotFound.into()));
        assert_eq!(error.chain().to_string(), "the spool can't be read: new/: entity not found");
    }
}
