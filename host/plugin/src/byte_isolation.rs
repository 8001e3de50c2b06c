//! Finds the bytes that a decoder fails on, so that everything around them is decoded.
//!
//! An input that fails is tried once more by a fresh instance. If that fails too, the shortest beginning of it that fails is
//! looked for by halving: a decoder decodes what is whole, so it does not fail before it has all of the record that
//! it cannot work with. That record begins where the longest beginning that does not fail was consumed to. It goes
//! to quarantine, what is before it is kept, and what is behind it comes again as an input of its own.
//!
//! The search is bounded ([`limits::GUILTY_RANGES_MAX`], [`limits::ISOLATION_TIME_FACTOR`], both counted since an input was
//! decoded well): past that, an input that fails goes to quarantine as a whole. So every byte has an end in bounded time.

use std::time::{Duration, Instant};

use flumen_pipeline::codec::{BadBytes, Decoded};

use crate::failure::Failure;
use crate::isolation::counted;
use crate::limits;

/// Calls the decoder. A failed call costs the instance; `is_fresh` asks for one that has decoded nothing yet.
pub(crate) trait DecodeAttempt {
    fn attempt(
        &mut self,
        input: &[u8],
        is_last: bool,
        time: Duration,
        is_fresh: bool,
    ) -> Result<Decoded, Failure>;
}

/// What became of the input, up to the first bytes that are guilty.
#[derive(Debug)]
pub(crate) struct IsolatedBytes {
    pub(crate) decoded: Decoded,
    pub(crate) was_retried: bool,
    pub(crate) was_bisected: bool,
    pub(crate) was_exhausted: bool,
}

/// What failures cost since an input was decoded well.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    /// Time of failed calls.
    time: Duration,
    /// Guilty ranges.
    guilty: u32,
}

/// Decodes an input.
pub(crate) fn isolate(
    decoder: &mut impl DecodeAttempt,
    input: &[u8],
    is_last: bool,
    limit: Duration,
    spent: &mut Spent,
) -> IsolatedBytes {
    let mut search = Search { limit, spent };
    let (was_retried, was_bisected, was_exhausted) = (false, false, false);
    let mut out = IsolatedBytes { decoded: Decoded::nothing(), was_retried, was_bisected, was_exhausted };
    let failure = match search.twice(decoder, input, is_last, &mut out.was_retried) {
        Ok(decoded) => {
            *search.spent = Spent::default();
            out.decoded = decoded;
            return out;
        }
        Err(failure) => failure,
    };
    if input.is_empty() {
        return out;
    }
    if failure.is_about_instance() {
        out.decoded = bad(input.len(), failure.to_string());
    } else if let Some(why) = search.is_over() {
        out.was_exhausted = true;
        *search.spent = Spent::default();
        out.decoded = bad(input.len(), format!("{failure}; not looked at record by record: {why}"));
    } else {
        out.was_bisected = true;
        search.spent.guilty += 1;
        let (mut decoded, end) = search.narrow(decoder, input, is_last);
        let bytes = decoded.consumed..end;
        decoded.bad.push(BadBytes { bytes, reason: failure.to_string(), is_rejected: false });
        decoded.consumed = end;
        out.decoded = decoded;
    }
    out
}

/// An input of this many bytes that is no event.
fn bad(bytes: usize, reason: String) -> Decoded {
    let bad = BadBytes { bytes: 0..bytes, reason, is_rejected: false };
    Decoded { consumed: bytes, bad: vec![bad], ..Decoded::nothing() }
}

fn beginning(input: &[u8], bytes: usize) -> &[u8] {
    input.get(..bytes).unwrap_or_default()
}

struct Search<'a> {
    limit: Duration,
    spent: &'a mut Spent,
}

impl Search<'_> {
    /// Tries, and once more in a fresh instance.
    fn twice(
        &mut self,
        decoder: &mut impl DecodeAttempt,
        input: &[u8],
        is_last: bool,
        was_retried: &mut bool,
    ) -> Result<Decoded, Failure> {
        match self.attempt(decoder, input, is_last, self.limit, false) {
            Err(failure) if !failure.is_about_instance() => {
                *was_retried = true;
                self.attempt(decoder, input, is_last, self.limit, true)
            }
            outcome => outcome,
        }
    }

    /// The longest beginning that does not fail, as it was decoded, and where the shortest one ends that does.
    fn narrow(&mut self, decoder: &mut impl DecodeAttempt, input: &[u8], is_last: bool) -> (Decoded, usize) {
        let (mut whole, mut fails) = (0, input.len());
        let mut best = Decoded::nothing();
        let suspect =
            (self.limit / limits::SUSPECT_TIME_DIVISOR).max(limits::SUSPECT_TIME_MIN).min(self.limit);
        if is_last && let Ok(decoded) = self.attempt(decoder, input, false, self.limit, false) {
            // What it cannot work with is that the input ends here.
            return (decoded, fails);
        }
        for time in [suspect, self.limit] {
            while fails - whole > 1 && !self.is_out_of_time() {
                let middle = whole + (fails - whole) / 2;
                match self.attempt(decoder, beginning(input, middle), false, time, false) {
                    Ok(decoded) => (whole, best) = (middle, decoded),
                    Err(_) => fails = middle,
                }
            }
            // Guilty is only what fails with the whole time: it may just have been slow.
            if fails == input.len() || time == self.limit {
                break;
            }
            match self.attempt(decoder, beginning(input, fails), false, self.limit, true) {
                Ok(decoded) => (whole, best, fails) = (fails, decoded, input.len()),
                Err(_) => break,
            }
        }
        (best, fails)
    }

    fn attempt(
        &mut self,
        decoder: &mut impl DecodeAttempt,
        input: &[u8],
        is_last: bool,
        time: Duration,
        is_fresh: bool,
    ) -> Result<Decoded, Failure> {
        let started = Instant::now();
        let outcome = decoder.attempt(input, is_last, time, is_fresh);
        if outcome.is_err() {
            self.spent.time += counted(started, time);
        }
        outcome
    }

    fn is_out_of_time(&self) -> bool {
        self.spent.time >= self.limit * limits::ISOLATION_TIME_FACTOR
    }

    /// Which limit of the search is reached.
    fn is_over(&self) -> Option<String> {
        if self.spent.guilty >= limits::GUILTY_RANGES_MAX {
            return Some(format!("budget of {} failures in a row reached", limits::GUILTY_RANGES_MAX));
        }
        let factor = limits::ISOLATION_TIME_FACTOR;
        self.is_out_of_time().then(|| format!("failed calls took {factor} times the time limit"))
    }
}

#[cfg(test)]
#[path = "byte_isolation_tests.rs"]
mod tests;
