//! The sink `null`: takes everything, keeps nothing. For benchmarks and for trying out sources.
//!
//! The pipeline counts events and bytes, so there is nothing to do here. It cannot fail.

use flumen_journal::Delivery;
use flumen_pipeline::sink::{Cursors, Sink, SinkContext, Stored};
use flumen_pipeline::{BuildError, ComponentSpec, FlushPolicy, Options, SinkError};
use std::time::Duration;

/// What `flumen check` and the docs know about it.
pub const SPEC: ComponentSpec =
    ComponentSpec { kind: "null", about: "Counts events and throws them away.", options: &[] };

/// Makes one.
pub fn build(_options: &Options) -> Result<Box<dyn Sink>, BuildError> {
    Ok(Box::new(Null))
}

struct Null;

impl Sink for Null {
    fn recover(
        &mut self,
        _: &mut SinkContext,
        _: Option<&[u8]>,
        _: &mut Cursors<'_>,
    ) -> Result<Option<Stored>, SinkError> {
        Ok(None)
    }

    fn deliver(&mut self, _: &mut SinkContext, _: &Delivery) -> Result<(), SinkError> {
        Ok(())
    }

    fn flush(&mut self, _: &mut SinkContext, _: &[u8]) -> Result<Vec<u8>, SinkError> {
        Ok(Vec::new())
    }

    fn committed(&mut self, _: &mut SinkContext, _: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes: 8 << 20, linger: Duration::from_secs(1) }
    }
}
