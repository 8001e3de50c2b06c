//! A connection for a protocol of one's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::Egress;
use crate::failure::Failure;
use crate::request::Part;
use crate::secret::mask;
use crate::stream::Stream;

/// A connection; closed when it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    egress: Arc<Egress>,
    host: String,
    port: u16,
    /// Secrets that were written here: taken out of what is read.
    sent: Vec<String>,
}

impl Connection {
    pub(crate) fn new(stream: Stream, egress: Arc<Egress>, host: String, port: u16) -> Connection {
        Connection { stream, egress, host, port, sent: Vec::new() }
    }

    /// Writes everything.
    pub fn write(&mut self, data: Vec<Part>, deadline: Instant) -> Result<(), Failure> {
        let egress = self.egress.clone();
        egress.counted(|| {
            let deadline = egress.deadline(None, deadline);
            let mut used = Vec::new();
            let bytes = egress.joined(data, &self.host, self.port, &mut used)?;
            for secret in used {
                if !self.sent.iter().any(|sent| sent == secret) {
                    self.sent.push(secret.to_owned());
                }
            }
            self.stream.until(deadline);
            self.stream.write_all(&bytes).map_err(|error| Failure::of_io(&error))
        })
    }

    /// At least one and at most `max` bytes; nothing: the other side is done.
    pub fn read(
        &mut self,
        max: usize,
        timeout: Option<Duration>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let egress = self.egress.clone();
        egress.counted(|| {
            let limit = usize::try_from(egress.settings().response_bytes_max).unwrap_or(usize::MAX);
            let mut bytes = vec![0; max.clamp(1, limit.max(1))];
            self.stream.until(egress.deadline(timeout, deadline));
            let read = self.stream.read(&mut bytes).map_err(|error| Failure::of_io(&error))?;
            bytes.truncate(read);
            let sent: Vec<&str> = self.sent.iter().map(String::as_str).collect();
            Ok(mask(bytes, &sent))
        })
    }
}
