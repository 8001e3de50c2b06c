//! A connection for a protocol of one's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::Egress;
use crate::failure::Failure;
use crate::limits;
use crate::request::Part;
use crate::screen::Screen;
use crate::stream::Stream;

/// A connection; closed when it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    egress: Arc<Egress>,
    host: String,
    port: u16,
    screen: Screen,
    /// What the last read met behind bytes that were held.
    failed: Option<Failure>,
}

impl Connection {
    pub(crate) fn new(stream: Stream, egress: Arc<Egress>, host: String, port: u16) -> Connection {
        Connection { stream, egress, host, port, screen: Screen::default(), failed: None }
    }

    /// Writes everything.
    pub fn write(&mut self, data: Vec<Part>, deadline: Instant) -> Result<(), Failure> {
        let egress = self.egress.clone();
        egress.counted(|| {
            let deadline = egress.deadline(None, deadline);
            let mut used = Vec::new();
            let bytes = egress.joined(data, &self.host, self.port, &mut used)?;
            used.into_iter().for_each(|secret| self.screen.sent(secret));
            self.stream.until(deadline);
            self.stream.write_all(&bytes).map_err(|error| Failure::of_io(&error))
        })
    }

    /// At least one and at most `max` bytes; nothing: the other side is done. Secrets that were written here are taken out.
    pub fn read(
        &mut self,
        max: usize,
        timeout: Option<Duration>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let egress = self.egress.clone();
        egress.counted(|| {
            let limit = usize::try_from(egress.settings().response_bytes_max).unwrap_or(usize::MAX);
            let max = max.clamp(1, limit.max(1));
            let mut buffer = Vec::new();
            let deadline = egress.deadline(timeout, deadline);
            loop {
                let ready = self.screen.take(max);
                if !ready.is_empty() {
                    return Ok(ready);
                }
                if let Some(failed) = self.failed.take() {
                    return Err(failed);
                }
                buffer.resize(max, 0);
                if !self.read_more(&mut buffer, deadline)? {
                    return Ok(Vec::new());
                }
            }
        })
    }

    /// False: the other side is done, and nothing is left of what it sent.
    fn read_more(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<bool, Failure> {
        let is_holding = self.screen.is_holding();
        self.stream.until(deadline);
        let read = match is_holding {
            true => self.stream.read_within(buffer, limits::HELD_MAX),
            false => self.stream.read(buffer),
        };
        let is_end = matches!(read, Ok(0));
        match read {
            Ok(0) => self.screen.release(),
            Ok(read) => self.screen.push(buffer.get(..read).unwrap_or_default()),
            Err(error) => {
                let failed = Failure::of_io(&error);
                if !is_holding {
                    return Err(failed);
                }
                self.screen.release();
                self.failed = (failed != Failure::TimedOut).then_some(failed);
            }
        }
        Ok(is_holding || !is_end)
    }
}
