//! What answers a plugin's requests in place of the network: in its cases, trials and benchmarks.

use std::fmt;
use std::sync::Arc;

use flumen_egress::{Failure, Part, Request, Response};

type Answer = dyn Fn(&Request) -> Result<Response, Failure> + Send + Sync;

/// See the module.
#[derive(Clone)]
pub struct Outside(Arc<Answer>);

impl Outside {
    /// Requests are answered by this function.
    pub fn new(answer: impl Fn(&Request) -> Result<Response, Failure> + Send + Sync + 'static) -> Outside {
        Outside(Arc::new(answer))
    }

    pub(crate) fn answer(&self, request: &Request) -> Result<Response, Failure> {
        (self.0)(request)
    }
}

impl fmt::Debug for Outside {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Outside")
    }
}

/// What parts come to; a secret is `<secret NAME>`.
pub(crate) fn joined(parts: &[Part]) -> Vec<u8> {
    let bytes = |part: &Part| match part {
        Part::Text(text) => text.clone().into_bytes(),
        Part::Bytes(bytes) => bytes.clone(),
        Part::Secret(name) => format!("<secret {name}>").into_bytes(),
    };
    parts.iter().flat_map(bytes).collect()
}
