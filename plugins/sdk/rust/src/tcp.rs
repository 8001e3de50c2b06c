//! TCP, with or without TLS, through the host: `grant = ["tcp"]` and `egress = { allow = ["host:port"] }`.

use crate::abi::bindings::flumen::plugin::tcp as wire;

pub use crate::http::{Failure, Part};

/// A connection; closed when it is dropped.
#[derive(Debug)]
pub struct Connection(wire::Connection);

impl Connection {
    /// Connects. With `tls`, the host name has to be the certificate's.
    pub fn connect(host: &str, port: u16, tls: bool) -> Result<Self, Failure> {
        wire::Connection::connect(host, port, tls).map(Self)
    }

    /// Writes everything.
    pub fn write(&self, bytes: impl Into<Vec<u8>>) -> Result<(), Failure> {
        self.write_parts(&[Part::Bytes(bytes.into())])
    }

    /// Writes everything, secrets in their places.
    pub fn write_parts(&self, parts: &[Part]) -> Result<(), Failure> {
        self.0.write(parts)
    }

    /// At least one and at most `max` bytes; nothing: the other side is done.
    pub fn read(&self, max: u32, timeout_ms: Option<u32>) -> Result<Vec<u8>, Failure> {
        self.0.read(max, timeout_ms)
    }
}
