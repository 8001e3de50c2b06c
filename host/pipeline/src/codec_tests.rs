use proptest::prelude::*;

use super::*;

/// A record is a line. Lines with several words are as many events; `!` in front makes a line bad, `#` is left out.
struct Lines;

impl Decoder for Lines {
    fn hash(&self) -> &Arc<str> {
        static HASH: std::sync::LazyLock<Arc<str>> = std::sync::LazyLock::new(|| "hash".into());
        &HASH
    }

    fn decode(&self, input: &[u8], is_last: bool) -> Decoded {
        let (mut bodies, mut ends, mut bad, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut take = |start: usize, end: usize, line: &[u8]| match line.strip_prefix(b"!") {
            Some(_) => bad.push(BadBytes { bytes: start..end, reason: "bad".into(), is_rejected: true }),
            None if line.starts_with(b"#") => {}
            None => {
                for word in line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()) {
                    bodies.push(word.to_vec());
                    ends.push(end as u32);
                }
            }
        };
        while let Some(newline) = input[start..].iter().position(|byte| *byte == b'\n') {
            take(start, start + newline + 1, &input[start..start + newline]);
            start += newline + 1;
        }
        if is_last && start < input.len() && !input[start..].starts_with(b"?") {
            take(start, input.len(), &input[start..]);
            start = input.len();
        }
        let body = bodies.iter().map(|body| Some(body.as_slice())).collect();
        Decoded { consumed: start, events: Events { body, time: None, headers: Vec::new() }, ends, bad }
    }
}

struct Place;

impl DecoderSlot for Place {
    fn name(&self) -> &str {
        "lines"
    }

    fn current(&self) -> Arc<dyn Decoder> {
        Arc::new(Lines)
    }
}

fn link(on_reject: OnReject) -> DecoderLink {
    DecoderLink::new(Arc::new(Place), on_reject)
}

type Seen = (u64, Vec<u8>);

fn seen(batch: &Batch) -> Vec<Seen> {
    (0..batch.rows()).map(|row| (batch.position().value(row), batch.body().value(row).to_vec())).collect()
}

/// What a source sees of a stream that comes in these pieces.
fn read(stream: &[u8], cuts: &[usize], bytes_max: usize) -> (Vec<Seen>, Vec<Seen>) {
    let link = link(OnReject::Quarantine);
    let (mut events, mut bad, mut done, mut arrived) = (Vec::new(), Vec::new(), 0, 0);
    let ends = cuts.iter().map(|cut| cut % (stream.len() + 1)).chain([stream.len()]);
    for (index, end) in ends.enumerate() {
        arrived = arrived.max(end);
        let is_last = index == cuts.len();
        loop {
            let origin = Origin { stream: 7, base: 100 + done as u64, time: 5 };
            let intake = link.decode(&stream[done..arrived], is_last, bytes_max, origin);
            done += intake.consumed;
            events.extend(seen(&intake.events));
            intake.quarantined.iter().for_each(|group| bad.extend(seen(&group.batch)));
            if intake.consumed == 0 || done == arrived {
                break;
            }
        }
    }
    assert_eq!(done, stream.len());
    (events, bad)
}

#[test]
fn a_position_is_where_the_bytes_end() {
    let (events, bad) = read(b"a\nb c d\n#no\n!x\ne", &[], 1_000);
    let further = |number| further_position(108, number);
    let expected = [(102, "a"), (108, "b"), (further(1), "c"), (further(2), "d"), (116, "e")]
        .map(|(at, body)| (at, body.into()));
    assert_eq!(events, expected);
    assert_eq!(bad, [(115, b"!x\n".to_vec())]);
}

#[test]
fn what_is_never_whole_goes_to_quarantine() {
    let (events, bad) = read(b"a\n?rest", &[], 1_000);
    assert_eq!((events.len(), bad), (1, vec![(107, b"?rest".to_vec())]));
    let (events, bad) = read(b"0123456789\na\n", &[4, 8], 8);
    assert_eq!(bad, [(108, b"01234567".to_vec())]);
    assert_eq!(events, [(111, b"89".to_vec()), (113, b"a".to_vec())]);
}

#[test]
fn a_message_is_an_input_of_its_own() {
    let link = link(OnReject::Quarantine);
    let intake = link.decode_message(b"a b\n!x\nc\n?", Origin { stream: 1, base: 9, time: 5 });
    let at = |number| further_position(9, number);
    assert_eq!(seen(&intake.events), [(9, b"a".to_vec()), (at(1), b"b".to_vec()), (at(2), b"c".to_vec())]);
    let bad: Vec<_> = intake.quarantined.iter().map(|group| (group.rejected, seen(&group.batch))).collect();
    assert_eq!(bad, [(true, vec![(at(3), b"!x\n".to_vec())]), (false, vec![(at(4), b"?".to_vec())])]);
    assert_eq!(intake.consumed, 10);
    assert_eq!(link.decode_message(b"", Origin { stream: 1, base: 9, time: 5 }).events.rows(), 0);
    assert_eq!(link.metrics().get(Metric::CodecEventsOut), 3);
    assert_eq!(link.metrics().get(Metric::CodecRejected), 1);
}

#[test]
fn dropped_rejections_are_counted_and_gone() {
    let link = link(OnReject::Drop);
    let intake = link.decode(b"!x\na\n", false, 100, Origin { stream: 1, base: 0, time: 5 });
    assert!(intake.quarantined.is_empty() && intake.events.rows() == 1);
    assert_eq!(link.metrics().get(Metric::CodecRejected), 1);
}

#[test]
fn a_codec_that_panics_costs_its_input_and_nothing_else() {
    struct Broken;
    impl Decoder for Broken {
        fn hash(&self) -> &Arc<str> {
            Lines.hash()
        }
        fn decode(&self, _: &[u8], _: bool) -> Decoded {
            panic!("broken")
        }
    }
    let link = link(OnReject::Quarantine);
    let decoded = link.call(&Broken, b"abc", false);
    assert_eq!((decoded.consumed, decoded.bad[0].bytes.clone()), (3, 0..3));
}

proptest! {
    #[test]
    fn events_and_positions_do_not_depend_on_how_the_stream_was_cut(
        text in proptest::collection::vec(prop_oneof![3 => Just(b'\n'), 6 => Just(b'a'), 2 => Just(b' '), 1 => Just(b'!'), 1 => Just(b'#')], 0..120),
        mut cuts in proptest::collection::vec(0..120_usize, 0..8),
    ) {
        cuts.sort_unstable();
        let whole = read(&text, &[], 1_000);
        prop_assert_eq!(&read(&text, &cuts, 1_000), &whole);
        let mut positions: Vec<u64> = whole.0.iter().chain(&whole.1).map(|(at, _)| *at).collect();
        let count = positions.len();
        positions.sort_unstable();
        positions.dedup();
        prop_assert_eq!(positions.len(), count, "each has a position of its own");
    }
}
