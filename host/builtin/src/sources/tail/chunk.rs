//! A chunk of a file on its way into events, by lines or by a codec: what the file holds, and what was read behind it.
//!
//! Constraint: whoever hands events over does so between two calls of [`Chunk::fills`]. Then the offset is behind the events that are
//! in [`Out`] and before all others, and [`Out`] has both. What no event has taken at the end is held by the file.

use flumen_pipeline::DecoderLink;
use flumen_pipeline::codec::{Intake, Origin};

use super::file::{Pass, TailFile};
use super::lines::{End, Splitter};
use super::out::{Out, Place};
use crate::sources::now_ns;

/// How events are found.
pub struct Cutter<'a> {
    /// As lines.
    pub splitter: Splitter,
    /// By a codec, in place of lines; its input is bounded by the splitter's `max_line`.
    pub codec: Option<&'a DecoderLink>,
}

/// See the module.
pub struct Chunk {
    pass: Pass,
    place: Place,
    /// Where it ends in the buffer.
    until: usize,
    end: End,
    /// Decoded, and for the next batch.
    waiting: Option<Intake>,
}

impl Chunk {
    /// Of what the file holds and `new` bytes behind it, as [`TailFile::read`] left them in the buffer (0: the held bytes alone, which
    /// the buffer need not have).
    pub fn new(file: &TailFile, buffer: &mut Vec<u8>, new: usize, end: End, out: &mut Out) -> Chunk {
        if new == 0 {
            buffer.clear();
            buffer.extend_from_slice(&file.held);
        }
        let place = Place {
            stream: file.stream.unwrap_or_default(),
            base: 0,
            first: file.prefix.as_ref().map(|prefix| (prefix.stream, prefix.position)),
            time: now_ns(),
        };
        out.begin(&file.label);
        Chunk { pass: file.pass(), place, until: file.held.len() + new, end, waiting: None }
    }

    /// Pushes events. True: what is in `out` has to be handed over, and then this goes on; false: the chunk is done.
    pub fn fills(&mut self, cutter: &Cutter<'_>, file: &mut TailFile, buffer: &[u8], out: &mut Out) -> bool {
        loop {
            let Pass { tail, prefix, taken, offset } = self.pass;
            let bytes = buffer.get(tail + taken..self.until).unwrap_or_default();
            self.place.base = offset.wrapping_add(taken as u64).wrapping_sub(prefix as u64);
            let (taken, is_done) = match cutter.codec {
                None => (cutter.splitter.split(&mut file.state, bytes, &self.place, self.end, out), true),
                Some(codec) => {
                    let intake = match self.waiting.take() {
                        Some(intake) => intake,
                        None => self.decode(codec, bytes, cutter.splitter.max_line),
                    };
                    if !out.fits(&intake) {
                        self.waiting = Some(intake);
                        return true;
                    }
                    let taken = intake.consumed;
                    out.push_decoded(intake);
                    (taken, taken == 0 || taken == bytes.len())
                }
            };
            self.pass.taken += taken;
            if taken > 0 {
                self.place.first = None;
                file.settle(&self.pass, buffer, out);
            }
            if out.is_full() {
                return true;
            }
            if is_done {
                file.hold(&self.pass, buffer, self.until);
                return false;
            }
        }
    }

    fn decode(&self, codec: &DecoderLink, bytes: &[u8], max_line: usize) -> Intake {
        let Place { stream, base, time, .. } = self.place;
        codec.decode(bytes, self.end == End::Event, max_line, Origin { stream, base, time })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use arrow_array::{BinaryArray, StringArray};
    use flumen_event::HeaderColumn;
    use flumen_pipeline::codec::Decoded;
    use flumen_pipeline::plan::{BatchPlan, OnReject};
    use flumen_pipeline::{ComponentKind, ComponentMetrics, Decoder, DecoderSlot};

    use super::super::lines::LongLines;
    use super::super::position::{Inode, Record};
    use super::*;

    /// One event of two bytes at a time, with names of headers that no other has: two calls do not fit into one batch.
    struct Pairs {
        hash: Arc<str>,
        calls: Arc<AtomicU64>,
    }

    impl Decoder for Pairs {
        fn hash(&self) -> &Arc<str> {
            &self.hash
        }

        fn decode(&self, input: &[u8], _: bool) -> Decoded {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            let mut decoded = Decoded::nothing();
            decoded.consumed = 2;
            decoded.ends = vec![2];
            decoded.events.body = BinaryArray::from(vec![&input[..2]]);
            let header = |number: u64| HeaderColumn {
                name: format!("{call}-{number}").into(),
                values: StringArray::from(vec!["x"]),
            };
            decoded.events.headers = (0..100).map(header).collect();
            decoded
        }
    }

    struct Slot(Arc<AtomicU64>);

    impl DecoderSlot for Slot {
        fn name(&self) -> &str {
            "pairs"
        }

        fn current(&self) -> Arc<dyn Decoder> {
            Arc::new(Pairs { hash: "abc".into(), calls: self.0.clone() })
        }
    }

    /// The body and the position of the one event, and the offset that is committed with it.
    fn taken(out: &mut Out) -> (Vec<u8>, u64, u64) {
        let emission = out.take().unwrap();
        assert_eq!((emission.batch.rows(), emission.positions.len()), (1, 1));
        let offset = Record::decode(&emission.positions[0].1).unwrap().offset;
        (emission.batch.body().value(0).to_vec(), emission.batch.position().value(0), offset)
    }

    #[test]
    fn what_does_not_fit_into_a_batch_is_decoded_once_and_goes_with_the_next() {
        let calls = Arc::new(AtomicU64::new(0));
        let codec = DecoderLink::new(Arc::new(Slot(calls.clone())), OnReject::Quarantine);
        let splitter = Splitter {
            max_line: 64,
            long: LongLines::Split,
            multiline: None,
            metrics: ComponentMetrics::new(ComponentKind::Source, "test".into()),
        };
        let cutter = Cutter { splitter, codec: Some(&codec) };
        let mut out = Out::new("test".into(), BatchPlan::default(), false);
        let mut file = TailFile::new("/a".into(), Inode { dev: 1, ino: 2, birth: None });
        file.stream = Some(7);
        let mut buffer = b"aabb".to_vec();
        let mut chunk = Chunk::new(&file, &mut buffer, 4, End::Open, &mut out);
        assert!(chunk.fills(&cutter, &mut file, &buffer, &mut out));
        assert_eq!(taken(&mut out), (b"aa".to_vec(), 2, 2));
        assert!(!chunk.fills(&cutter, &mut file, &buffer, &mut out));
        assert_eq!(taken(&mut out), (b"bb".to_vec(), 4, 4));
        assert_eq!((calls.load(Ordering::Relaxed), file.pending(), file.offset), (2, 0, 4));
    }
}
