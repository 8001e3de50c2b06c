//! HTTP and HTTPS, through the host: `grant = ["http"]` and `egress = { allow = ["host:port"] }`.
//!
//! The host owns the connections, speaks TLS, keeps to its list and to its limits. Redirects are not followed. A secret is a
//! name: the host puts the value where the name stands.

use crate::abi::bindings::flumen::plugin::{egress, http as wire};

pub use egress::{Failure, Part};
pub use wire::Response;

/// A request that is being put together.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Request(wire::Request);

/// A `GET`.
pub fn get(url: &str) -> Request {
    Request::new("GET", url)
}

/// A `POST`.
pub fn post(url: &str) -> Request {
    Request::new("POST", url)
}

/// A `PUT`.
pub fn put(url: &str) -> Request {
    Request::new("PUT", url)
}

impl Request {
    /// Any method.
    pub fn new(method: &str, url: &str) -> Self {
        Self(wire::Request {
            method: method.to_owned(),
            url: url.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout_ms: None,
        })
    }

    /// Adds a header.
    pub fn header(self, name: &str, value: impl Into<String>) -> Self {
        self.header_parts(name, vec![Part::Text(value.into())])
    }

    /// Adds a header whose value ends with a secret: `("authorization", "Bearer ", "token")`.
    pub fn secret_header(self, name: &str, before: &str, secret: &str) -> Self {
        self.header_parts(name, vec![Part::Text(before.to_owned()), Part::Secret(secret.to_owned())])
    }

    /// Adds a header of several parts.
    pub fn header_parts(mut self, name: &str, value: Vec<Part>) -> Self {
        self.0.headers.push(wire::Header { name: name.to_owned(), value });
        self
    }

    /// Adds bytes to the body.
    pub fn body(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.part(Part::Bytes(bytes.into()))
    }

    /// Adds a part to the body.
    pub fn part(mut self, part: Part) -> Self {
        self.0.body.push(part);
        self
    }

    /// Less time than the pipeline allows.
    pub fn timeout_ms(mut self, ms: u32) -> Self {
        self.0.timeout_ms = Some(ms);
        self
    }

    /// Sends it and waits for the whole answer. An answer with any status is no failure.
    pub fn send(self) -> Result<Response, Failure> {
        wire::send(&self.0)
    }
}

impl Response {
    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }

    /// Milliseconds until the server wants to be asked again, if it says so in seconds.
    pub fn retry_after_ms(&self) -> Option<u32> {
        let seconds: u32 = self.header("retry-after")?.trim().parse().ok()?;
        seconds.checked_mul(1_000)
    }

    /// The beginning of the body, for an error.
    pub fn excerpt(&self) -> String {
        let end = self.body.len().min(200);
        String::from_utf8_lossy(self.body.get(..end).unwrap_or_default()).into_owned()
    }
}

/// A failure in words.
pub fn explain(failure: &Failure) -> String {
    match failure {
        Failure::Denied(text) => format!("not allowed: {text}"),
        Failure::Invalid(text) => format!("the request is wrong: {text}"),
        Failure::Unreachable(text) => text.clone(),
        Failure::TimedOut => "no answer in time".to_owned(),
        Failure::TooLarge(bytes) => format!("the answer has more than {bytes} bytes"),
    }
}
