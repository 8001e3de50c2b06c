//! What is sent and what comes back.

use std::time::Duration;

/// A piece of what is sent. Pieces are joined without anything between them.
#[derive(Clone, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// The secret of this name.
    Secret(String),
}

/// A request.
#[derive(Clone)]
pub struct Request {
    /// `GET`, `POST`, ...
    pub method: String,
    /// Absolute, `http` or `https`.
    pub url: String,
    /// Names and values.
    pub headers: Vec<(String, Vec<Part>)>,
    /// May be empty.
    pub body: Vec<Part>,
    /// Less than the limit of the settings.
    pub timeout: Option<Duration>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Any, redirects too.
    pub status: u16,
    /// Names in lower case. Values that are not UTF-8 are made it.
    pub headers: Vec<(String, String)>,
    /// As it was sent: nothing is decompressed.
    pub body: Vec<u8>,
}
