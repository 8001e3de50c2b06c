//! Our connections under ureq's HTTP. ureq may change these traits in a minor release: this file is all that follows.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::allow::normal;
use crate::failure::Failure;
use crate::limits;
use crate::stream::{Opener, Stream};

/// Makes connections for ureq.
#[derive(Debug)]
pub(crate) struct Connect(pub(crate) Arc<Opener>);

/// [`Connect`] resolves: only a new connection needs an address, and it has to be the one that was checked.
#[derive(Debug)]
pub(crate) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

impl Connector for Connect {
    type Out = Wire;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Wire>, Error> {
        let (host, port) = target(details.uri).map_err(other)?;
        let stream = self.0.open(&host, port, details.needs_tls(), deadline(details.timeout));
        let buffers = LazyBuffers::new(limits::BUFFER_BYTES, limits::BUFFER_BYTES);
        Ok(Some(Wire { stream: stream.map_err(other)?, buffers }))
    }
}

/// Host and port of a URL.
pub(crate) fn target(uri: &Uri) -> Result<(String, u16), Failure> {
    let wrong = |why: &str| Err(Failure::Invalid(format!("the URL {why}")));
    let default_port = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return wrong("does not begin with http:// or https://"),
    };
    let Some(authority) = uri.authority() else { return wrong("has no host") };
    if authority.as_str().contains('@') {
        return wrong("has a user or password in it; send them as a header, from a secret");
    }
    let host = normal(authority.host());
    if host.is_empty() {
        return wrong("has no host");
    }
    let has_port = authority.as_str().len() > authority.host().len();
    match (authority.port_u16(), has_port) {
        (Some(0), _) | (None, true) => wrong("has a port that is none"),
        (port, _) => Ok((host, port.unwrap_or(default_port))),
    }
}

/// An error of ours, through ureq and back.
pub(crate) fn other(failure: Failure) -> Error {
    Error::Io(io::Error::other(failure))
}

fn deadline(timeout: NextTimeout) -> Instant {
    let now = Instant::now();
    now.checked_add(*timeout.after).unwrap_or(now)
}

/// A connection with the buffers that ureq works on.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Stream,
    buffers: LazyBuffers,
}

impl Transport for Wire {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.until(deadline(timeout));
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.stream.write_all(output).map_err(Error::Io)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.until(deadline(timeout));
        let read = self.stream.read(self.buffers.input_append_buf()).map_err(Error::Io)?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.is_quiet()
    }

    fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }
}
