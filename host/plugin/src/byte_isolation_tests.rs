use std::collections::VecDeque;

use arrow_array::BinaryArray;
use flumen_pipeline::codec::Events;
use proptest::prelude::*;

use super::*;

/// Ten of them are what failed calls may take together: a busy machine takes long for them, too.
const LIMIT: Duration = Duration::from_secs(60);

/// Lines are events; it traps on one that holds a `T` once it is whole, and on a last one with an `E`. With `slow` a trap takes all the
/// time that there is for it.
#[derive(Default)]
struct Lines {
    slow: bool,
    calls: u32,
    /// Calls with less time than the limit fail on this many bytes or more.
    slow_from: Option<usize>,
    /// What the next calls fail with, whatever they are given.
    fails: VecDeque<Failure>,
}

impl DecodeAttempt for Lines {
    fn attempt(&mut self, input: &[u8], is_last: bool, time: Duration, _: bool) -> Result<Decoded, Failure> {
        self.calls += 1;
        if let Some(failure) = self.fails.pop_front() {
            return Err(failure);
        }
        if time < LIMIT && self.slow_from.is_some_and(|bytes| input.len() >= bytes) {
            return Err(Failure::Timeout(time));
        }
        let (mut bodies, mut ends, mut start) = (Vec::new(), Vec::new(), 0);
        let mut lines: Vec<usize> =
            input.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        if is_last && lines.last() != Some(&input.len()) && !input.is_empty() {
            lines.push(input.len());
        }
        for end in lines {
            let line = &input[start..end];
            let is_end = is_last && !line.ends_with(b"\n") && line.contains(&b'E');
            if line.contains(&b'T') || is_end {
                if self.slow {
                    std::thread::sleep(time);
                }
                return Err(Failure::Trap("a T".into()));
            }
            bodies.push(line.to_vec());
            ends.push(end as u32);
            start = end;
        }
        let body: BinaryArray = bodies.iter().map(|body| Some(body.as_slice())).collect();
        let events = Events { body, time: None, headers: Vec::new() };
        Ok(Decoded { consumed: start, events, ends, bad: Vec::new() })
    }
}

/// Events and bad bytes of an input that comes again until all of it is consumed.
/// Bodies, bad bytes with their reasons, and what is left.
type All = (Vec<Vec<u8>>, Vec<(Vec<u8>, String)>, Vec<u8>);

fn all(decoder: &mut Lines, input: &[u8], is_last: bool) -> All {
    all_within(decoder, input, is_last, LIMIT)
}

fn all_within(decoder: &mut Lines, input: &[u8], is_last: bool, limit: Duration) -> All {
    let (mut events, mut bad, mut at, mut spent) = (Vec::new(), Vec::new(), 0, Spent::default());
    loop {
        let rest = &input[at..];
        let Decoded { consumed, events: found, bad: wrong, .. } =
            isolate(decoder, rest, is_last, limit, &mut spent).decoded;
        events.extend(found.body.iter().flatten().map(<[u8]>::to_vec));
        bad.extend(wrong.into_iter().map(|bad| (rest[bad.bytes].to_vec(), bad.reason)));
        at += consumed;
        if consumed == 0 || at == input.len() {
            return (events, bad, input[at..].to_vec());
        }
    }
}

#[test]
fn only_the_guilty_record_leaves() {
    let mut decoder = Lines::default();
    let (events, bad, rest) = all(&mut decoder, b"one\ntwo T\nthree\nT\nfour\nfi", false);
    assert_eq!(events, [b"one\n".to_vec(), b"three\n".to_vec(), b"four\n".to_vec()]);
    let trap = "the plugin trapped: a T".to_owned();
    assert_eq!(bad, [(b"two T\n".to_vec(), trap.clone()), (b"T\n".to_vec(), trap)]);
    assert_eq!(rest, b"fi");
}

#[test]
fn a_failure_at_the_end_of_the_stream_costs_what_is_not_whole() {
    let (events, bad, rest) = all(&mut Lines::default(), b"one\ntwo\nE", true);
    assert_eq!((events.len(), rest.len()), (2, 0));
    assert_eq!(bad, [(b"E".to_vec(), "the plugin trapped: a T".to_owned())]);
}

#[test]
fn what_is_only_slow_is_not_guilty() {
    let mut decoder = Lines { slow_from: Some(9), ..Lines::default() };
    let (events, bad, _) = all(&mut decoder, b"one\ntwo\nthree\nT\nfour\n", false);
    assert_eq!((events.len(), bad.len()), (4, 1), "{bad:?}");
}

#[test]
fn a_failure_that_does_not_come_again_costs_nothing() {
    let mut decoder = Lines { fails: [Failure::Trap("once".into())].into(), ..Lines::default() };
    let (events, bad, _) = all(&mut decoder, b"one\ntwo\n", false);
    assert_eq!((events.len(), bad.len(), decoder.calls), (2, 0, 2));
}

#[test]
fn without_an_instance_nothing_is_looked_for() {
    let mut decoder = Lines { fails: [Failure::HostFull(1)].into(), ..Lines::default() };
    let (events, bad, _) = all(&mut decoder, b"one\ntwo\n", false);
    assert_eq!((events.len(), bad.len(), decoder.calls), (0, 1, 1));
}

#[test]
fn a_decoder_that_fails_on_everything_has_an_end() {
    let text = b"T\n".repeat(5_000);
    let mut decoder = Lines::default();
    let (events, bad, rest) = all(&mut decoder, &text, false);
    assert!(events.is_empty() && rest.is_empty());
    assert_eq!(bad.len(), limits::GUILTY_RANGES_MAX as usize + 1);
    assert!(bad.last().unwrap().1.contains("64 failures in a row"), "{:?}", bad.last());
    assert_eq!(bad.concat_bytes(), text);
    let mut decoder = Lines { slow: true, ..Lines::default() };
    let (_, bad, _) = all_within(&mut decoder, &text, false, Duration::from_millis(40));
    assert!(bad.len() < 10 && bad.last().unwrap().1.contains("times the time limit"), "{}", bad.len());
    assert!(decoder.calls < 60, "{}", decoder.calls);
    assert_eq!(bad.concat_bytes(), text);
}

trait ConcatBytes {
    fn concat_bytes(&self) -> Vec<u8>;
}

impl ConcatBytes for Vec<(Vec<u8>, String)> {
    fn concat_bytes(&self) -> Vec<u8> {
        self.iter().flat_map(|(bytes, _)| bytes.clone()).collect()
    }
}

proptest! {
    #[test]
    fn no_byte_is_lost_or_doubled_and_no_good_record_leaves(
        lines in proptest::collection::vec(prop_oneof![3 => "[a-z]{0,8}", 1 => "[a-z]{0,4}T[a-z]{0,4}"], 0..40),
        is_last: bool,
    ) {
        let text: Vec<u8> = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
        let (events, bad, rest) = all(&mut Lines::default(), &text, is_last);
        let with = |guilty: bool| lines.iter().filter(move |line| line.contains('T') == guilty)
            .map(|line| format!("{line}\n").into_bytes()).collect::<Vec<_>>();
        prop_assert_eq!(events, with(false));
        prop_assert_eq!(bad.into_iter().map(|(bytes, _)| bytes).collect::<Vec<_>>(), with(true));
        prop_assert!(rest.is_empty());
    }
}
