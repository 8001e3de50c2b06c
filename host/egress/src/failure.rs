//! Why a call did not do what it should.

use std::io;

use thiserror::Error;

use crate::limits;

/// Why a call failed. No text has a secret in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// It is not allowed; says what would be.
    #[error("not allowed: {0}")]
    Denied(String),
    /// The request is none; says what is wrong.
    #[error("the request is wrong: {0}")]
    Invalid(String),
    /// No connection, or it broke: whether the other side took the request is not known.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time: whether the other side took the request is not known.
    #[error("no answer in time")]
    TimedOut,
    /// The answer (or, from `invalid`, the request) is larger than this many bytes.
    #[error("the answer has more than {0} bytes")]
    TooLarge(u64),
}

impl Failure {
    pub(crate) fn unreachable(text: impl AsRef<str>) -> Failure {
        let text = text.as_ref();
        let end = text.floor_char_boundary(limits::TEXT_BYTES_MAX);
        Failure::Unreachable(text.get(..end).unwrap_or_default().to_owned())
    }

    /// What an error of a connection means.
    pub(crate) fn of_io(error: &io::Error) -> Failure {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Failure>()) {
            return inner.clone();
        }
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::TimedOut,
            io::ErrorKind::InvalidData if error.to_string().contains("invalid peer certificate") => {
                Failure::unreachable(format!(
                    "TLS: {error}; if it was signed by a CA of your own, name its certificate in `ca`"
                ))
            }
            _ => Failure::unreachable(error.to_string()),
        }
    }
}
