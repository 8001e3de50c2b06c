//! The sink `console`: events on the standard output.
//!
//! Promise: at-least-once. What was printed cannot be taken back, so events that were printed but
//! not yet acknowledged when the agent died are printed again.
//!
//! How it fails: when nobody reads the output any more (a closed pipe) every flush fails with a
//! message that says so; the events stay in the journal and the pipeline tries again.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use flumen_journal::Delivery;
use flumen_pipeline::sink::{Cursors, Sink, SinkContext, Stored};
use flumen_pipeline::{
    BuildError, ComponentSpec, EncoderLink, FlushPolicy, OptionKind, OptionSpec, Options, SinkError,
};

use super::SinkCodec;
use super::encode::{Encoder, Encoding};
use super::limits::WRITE_BYTES;

/// What `flumen check` and the docs know about it.
pub const SPEC: ComponentSpec = ComponentSpec {
    kind: "console",
    about: "Prints events to the standard output.",
    options: &[OptionSpec {
        name: "encoding",
        kind: OptionKind::Choice(&["text", "pretty", "json"]),
        required: false,
        default: Some("\"text\""),
        about: "`text`: the body and a newline; `pretty`: time, body and headers for people; `json`: one object per line.",
    }],
};

/// Makes one.
pub fn build(options: &Options) -> Result<Box<dyn Sink>, BuildError> {
    let encoding = match options.text("encoding")? {
        "json" => Encoding::Json,
        "pretty" => Encoding::Pretty,
        _ => Encoding::Text,
    };
    Ok(Box::new(Console::new(encoding, std::io::stdout())))
}

/// What a codec does here: one payload after the other, without a beginning and an end.
pub const CODEC: SinkCodec = SinkCodec {
    instead_of: &["encoding"],
    build: |_, codec| {
        let plain = Console::new(Encoding::Text, std::io::stdout());
        Ok(Box::new(Console { codec: Some(codec), ..plain }))
    },
};

/// The output is like a file that has begun long ago.
const CONSOLE_SEED: u64 = 0;

struct Console<W> {
    codec: Option<EncoderLink>,
    encoder: Encoder,
    buffer: Vec<u8>,
    out: W,
}

impl<W: Write + Send> Console<W> {
    fn new(encoding: Encoding, out: W) -> Self {
        Console { codec: None, encoder: Encoder::new(encoding), buffer: Vec::new(), out }
    }

    fn print(&mut self) -> Result<(), SinkError> {
        let printed = self.out.write_all(&self.buffer).and_then(|()| self.out.flush());
        self.buffer.clear();
        printed.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => SinkError::Retry(
                "nobody reads the standard output any more (closed pipe); events stay in the journal".into(),
            ),
            _ => SinkError::Retry(format!("writing to the standard output: {error}")),
        })
    }
}

impl<W: Write + Send> Sink for Console<W> {
    fn recover(
        &mut self,
        _: &mut SinkContext,
        _: Option<&[u8]>,
        _: &mut Cursors<'_>,
    ) -> Result<Option<Stored>, SinkError> {
        self.buffer.clear();
        Ok(None)
    }

    fn deliver(&mut self, context: &mut SinkContext, delivery: &Delivery) -> Result<(), SinkError> {
        if let Some(codec) = &self.codec {
            let encoded = codec.encode(codec.current().as_ref(), &delivery.batch, Some(CONSOLE_SEED));
            self.buffer.extend_from_slice(encoded.bytes());
            context.quarantine_groups(encoded.quarantined);
            return if self.buffer.len() >= WRITE_BYTES { self.print() } else { Ok(()) };
        }
        let rows = delivery.batch.rows();
        let mut first = 0;
        while first < rows {
            first += self.encoder.encode(&delivery.batch, first..rows, &mut self.buffer, WRITE_BYTES);
            if self.buffer.len() >= WRITE_BYTES {
                self.print()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, _: &mut SinkContext, _: &[u8]) -> Result<Vec<u8>, SinkError> {
        self.print()?;
        Ok(Vec::new())
    }

    fn committed(&mut self, _: &mut SinkContext, _: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    /// What was printed before an error nobody can tell, so a group's events go on at once, to another sink.
    fn forgets(&self) -> bool {
        true
    }

    fn flush_policy(&self) -> FlushPolicy {
        // A person is watching: what is there is shown at once.
        FlushPolicy { bytes: 1 << 20, linger: Duration::from_millis(50) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::file::testing::{context, delivery};

    struct ClosedPipe;

    impl Write for ClosedPipe {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn prints_at_a_flush() {
        let mut out = Vec::new();
        let mut console = Console::new(Encoding::Text, &mut out);
        let mut context = context();
        console.deliver(&mut context, &delivery(0, &["one", "two"])).unwrap();
        console.flush(&mut context, b"").unwrap();
        drop(console);
        assert_eq!(out, b"one\ntwo\n");
    }

    #[test]
    fn a_closed_pipe_is_reported_in_words_and_nothing_is_acknowledged() {
        let mut console = Console::new(Encoding::Text, ClosedPipe);
        let mut context = context();
        console.deliver(&mut context, &delivery(0, &["one"])).unwrap();
        let error = console.flush(&mut context, b"").unwrap_err();
        assert!(error.to_string().contains("nobody reads"), "{error}");
        assert!(console.forgets(), "a group's other sinks would wait for what was printed");
    }
}
