//! Splits a chunk of a file into events: lines, or groups of lines.
//!
//! The chunk begins with the first byte that no event has taken; what is not taken at its end is
//! given again in front of the next chunk. [`State`] remembers how much of it has been looked at.
//!
//! * An event is the bytes of its line (or lines) without the last newline; nothing else is changed.
//! * A line over `max_line` is taken in pieces or quarantined, before its end is known, so that
//!   memory is bounded by `max_line`, not by the line.
//! * If a line is taken before its newline came (a piece, or the idle timeout), the stream is
//!   *mid line*: the rest up to the newline is an event of its own with the header
//!   `flumen.continued`, and if the rest is only the newline, it is no event.

use std::sync::Arc;

use flumen_pipeline::{ComponentMetrics, Metric};
use memchr::{memchr, memchr_iter};
use regex::bytes::Regex;

use super::out::{Out, Place};

/// What becomes of a line over `max_line`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongLines {
    /// Pieces of `max_line` bytes, each an event.
    Split,
    /// The first `max_line` bytes go to quarantine, the rest is skipped.
    Quarantine,
}

/// Which lines belong together.
#[derive(Debug, Clone)]
pub struct Multiline {
    /// What the pattern finds.
    pub rule: MultilineRule,
    /// Lines of one event.
    pub lines_max: usize,
    /// Bytes of one event.
    pub bytes_max: usize,
}

/// The pattern of multiline events.
#[derive(Debug, Clone)]
pub enum MultilineRule {
    /// A line that matches begins an event.
    Start(Regex),
    /// A line that matches belongs to the event before.
    Continue(Regex),
}

impl MultilineRule {
    fn begins(&self, line: &[u8]) -> bool {
        match self {
            MultilineRule::Start(pattern) => pattern.is_match(line),
            MultilineRule::Continue(pattern) => !pattern.is_match(line),
        }
    }
}

/// What follows the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Perhaps more of the last line.
    Open,
    /// No more of the last line, but perhaps more lines of the last event.
    Line,
    /// Nothing: all of it is taken now.
    Event,
}

/// How far the chunk in front of the next one has been looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// See [`super::position::Record::mid_line`].
    pub mid_line: bool,
    /// See [`super::position::Record::skip_line`].
    pub skip_line: bool,
    /// Bytes without an unseen newline.
    scanned: usize,
    /// Where the last, unfinished line begins.
    line_start: usize,
    /// Whole lines of the unfinished event.
    lines: usize,
}

impl State {
    /// At a committed position.
    pub fn resumed(mid_line: bool, skip_line: bool) -> State {
        State { mid_line, skip_line, ..State::default() }
    }
}

/// Splits chunks of all files of a source.
pub struct Splitter {
    /// Bytes of one line.
    pub max_line: usize,
    /// What becomes of longer ones.
    pub long: LongLines,
    /// Groups of lines, if they are wanted.
    pub multiline: Option<Multiline>,
    /// Where over-long lines are counted.
    pub metrics: Arc<ComponentMetrics>,
}

impl Splitter {
    /// Pushes events until `out` is full or the chunk ends. Returns how many bytes are taken.
    pub fn split(&self, state: &mut State, chunk: &[u8], place: &Place, end: End, out: &mut Out) -> usize {
        let mut start = 0;
        if state.skip_line {
            match memchr(b'\n', chunk) {
                Some(newline) => start = newline + 1,
                None => return chunk.len(),
            }
            *state = State::default();
        }
        if state.mid_line && chunk.get(start) == Some(&b'\n') {
            start += 1;
            *state = State::default();
        }
        match &self.multiline {
            None => self.lines(state, chunk, start, place, end, out),
            Some(rules) => self.groups(rules, state, chunk, start, place, end, out),
        }
    }

    fn lines(
        &self,
        state: &mut State,
        chunk: &[u8],
        mut start: usize,
        place: &Place,
        end: End,
        out: &mut Out,
    ) -> usize {
        let scan = start.max(state.scanned);
        state.scanned = 0;
        for newline in memchr_iter(b'\n', tail_of(chunk, scan)) {
            let newline = scan + newline;
            while newline - start > self.max_line && !state.skip_line {
                start = self.cut(state, chunk, start, place, out);
                if out.is_full() {
                    return start;
                }
            }
            if state.skip_line {
                state.skip_line = false;
            } else {
                out.push(place, start, part(chunk, start, newline), state.mid_line);
            }
            state.mid_line = false;
            start = newline + 1;
            if out.is_full() {
                return start;
            }
        }
        start = self.rest(state, chunk, start, place, end, out);
        state.scanned = chunk.len() - start;
        start
    }

    /// The last line, whose newline has not come.
    fn rest(
        &self,
        state: &mut State,
        chunk: &[u8],
        mut start: usize,
        place: &Place,
        end: End,
        out: &mut Out,
    ) -> usize {
        while chunk.len() - start > self.max_line {
            start = self.cut(state, chunk, start, place, out);
            if state.skip_line {
                return chunk.len();
            }
            if out.is_full() {
                return start;
            }
        }
        if end == End::Event && start < chunk.len() {
            out.push(place, start, tail_of(chunk, start), state.mid_line);
            state.mid_line = true;
            start = chunk.len();
        }
        start
    }

    /// Takes `max_line` bytes of a line that is longer; returns where the rest of it begins.
    fn cut(&self, state: &mut State, chunk: &[u8], start: usize, place: &Place, out: &mut Out) -> usize {
        let piece = part(chunk, start, start + self.max_line);
        match self.long {
            LongLines::Split => {
                if !state.mid_line {
                    self.metrics.add(Metric::SourceLinesSplit, 1);
                }
                out.push(place, start, piece, state.mid_line);
                state.mid_line = true;
            }
            LongLines::Quarantine => {
                self.metrics.add(Metric::SourceLinesRejected, 1);
                let reason = format!("line over max_line ({} bytes); its rest was skipped", self.max_line);
                out.quarantine(place, start, piece, reason);
                state.skip_line = true;
            }
        }
        start + piece.len()
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one loop, called from one place")]
    fn groups(
        &self,
        rules: &Multiline,
        state: &mut State,
        chunk: &[u8],
        start: usize,
        place: &Place,
        end: End,
        out: &mut Out,
    ) -> usize {
        let mut group = Group { start, line: start.max(state.line_start), lines: state.lines };
        let mut scan = group.line.max(state.scanned);
        loop {
            let newline = memchr(b'\n', tail_of(chunk, scan)).map(|at| scan + at);
            let line_end = newline.unwrap_or(chunk.len());
            if line_end - group.line > self.max_line || state.mid_line {
                // Pieces of a line are events of their own: what is open ends before them.
                if group.close(chunk, place, state, out) && out.is_full() {
                    break;
                }
                match self.long_line(state, chunk, &mut group, newline, place, out) {
                    LongLine::Taken => {
                        scan = group.line;
                        if out.is_full() {
                            break;
                        }
                        continue;
                    }
                    LongLine::Full => break,
                    LongLine::Unfinished => {}
                }
            }
            let Some(next) = newline.map(|at| at + 1).or((end != End::Open).then_some(chunk.len())) else {
                break;
            };
            if group.line >= chunk.len() || state.skip_line {
                break;
            }
            if state.mid_line {
                if end == End::Event {
                    out.push(place, group.line, tail_of(chunk, group.line), true);
                    group.jump(chunk.len());
                }
                break;
            }
            let line = part(chunk, group.line, line_end);
            let over = group.lines >= rules.lines_max || line_end - group.start > rules.bytes_max;
            let ends = group.lines > 0 && (over || rules.rule.begins(line));
            if ends && group.close(chunk, place, state, out) && out.is_full() {
                break;
            }
            group.lines += 1;
            group.line = next;
            scan = next;
        }
        if end == End::Event && !out.is_full() && group.line >= chunk.len() && group.lines > 0 {
            let ended = chunk.last() == Some(&b'\n');
            group.close(chunk, place, state, out);
            state.mid_line = !ended;
        }
        self.remember(state, chunk, &group, out.is_full());
        group.start
    }

    /// A line in pieces: everything over `max_line`, then the rest if its newline is there.
    fn long_line(
        &self,
        state: &mut State,
        chunk: &[u8],
        group: &mut Group,
        newline: Option<usize>,
        place: &Place,
        out: &mut Out,
    ) -> LongLine {
        let line_end = newline.unwrap_or(chunk.len());
        while line_end - group.line > self.max_line {
            let next = self.cut(state, chunk, group.line, place, out);
            if state.skip_line {
                state.skip_line = newline.is_none();
                group.jump(newline.map_or(chunk.len(), |at| at + 1));
                state.mid_line = false;
                return LongLine::Taken;
            }
            group.jump(next);
            if out.is_full() {
                return LongLine::Full;
            }
        }
        match newline {
            Some(at) => {
                out.push(place, group.line, part(chunk, group.line, at), true);
                state.mid_line = false;
                group.jump(at + 1);
                LongLine::Taken
            }
            None => LongLine::Unfinished,
        }
    }

    fn remember(&self, state: &mut State, chunk: &[u8], group: &Group, full: bool) {
        state.line_start = group.line.saturating_sub(group.start);
        state.lines = group.lines;
        state.scanned = if full { state.line_start } else { chunk.len().saturating_sub(group.start) };
    }
}

enum LongLine {
    Taken,
    Full,
    Unfinished,
}

/// The event under construction: from `start`, `lines` whole lines, the next at `line`.
struct Group {
    start: usize,
    line: usize,
    lines: usize,
}

impl Group {
    /// Ends the event before the present line. False if there was none.
    fn close(&mut self, chunk: &[u8], place: &Place, state: &mut State, out: &mut Out) -> bool {
        if self.lines == 0 {
            return false;
        }
        let body = part(chunk, self.start, self.line);
        out.push(place, self.start, body.strip_suffix(b"\n").unwrap_or(body), state.mid_line);
        state.mid_line = false;
        self.jump(self.line);
        true
    }

    fn jump(&mut self, to: usize) {
        *self = Group { start: to, line: to, lines: 0 };
    }
}

fn part(bytes: &[u8], from: usize, to: usize) -> &[u8] {
    bytes.get(from..to).unwrap_or_default()
}

fn tail_of(bytes: &[u8], from: usize) -> &[u8] {
    bytes.get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use flumen_pipeline::ComponentKind;
    use flumen_pipeline::plan::BatchPlan;
    use proptest::prelude::*;

    use super::*;

    fn splitter(max_line: usize, long: LongLines, multiline: Option<&str>) -> Splitter {
        let rule = multiline.map(|pattern| Multiline {
            rule: MultilineRule::Start(Regex::new(pattern).unwrap()),
            lines_max: 3,
            bytes_max: 20,
        });
        let metrics = ComponentMetrics::new(ComponentKind::Source, "test".into());
        Splitter { max_line, long, multiline: rule, metrics }
    }

    type Event = (u64, Vec<u8>, bool);

    /// Splits a text that is read in pieces; `rows` is the size of a batch. Quarantined events are marked.
    fn events(splitter: &Splitter, text: &[u8], cuts: &[usize], rows: usize) -> Vec<Event> {
        let mut out = Out::new("test".into(), BatchPlan { rows, ..BatchPlan::default() }, false);
        let mut state = State::default();
        let mut place = Place { stream: 1, base: 0, first: None, time: 0 };
        let (mut taken, mut seen) = (0, Vec::new());
        let ends = cuts.iter().copied().filter(|cut| *cut < text.len()).map(|cut| (cut, End::Open));
        for (end, kind) in ends.chain([(text.len(), End::Open), (text.len(), End::Event)]) {
            loop {
                place.base = taken as u64;
                taken += splitter.split(&mut state, &text[taken..end.max(taken)], &place, kind, &mut out);
                let full = out.is_full();
                let emission = out.take().unwrap();
                for row in 0..emission.batch.rows() {
                    let continued = emission.batch.header(super::super::out::CONTINUED_HEADER);
                    let continued = continued.is_some_and(|column| {
                        use arrow_array::Array;
                        column.is_valid(row)
                    });
                    let position = emission.batch.position().value(row);
                    seen.push((position, emission.batch.body().value(row).to_vec(), continued));
                }
                for quarantined in emission.quarantined {
                    let body = [b"Q", quarantined.batch.body().value(0)].concat();
                    seen.push((quarantined.batch.position().value(0), body, false));
                }
                if !full {
                    break;
                }
            }
        }
        assert_eq!(taken, text.len());
        seen.sort();
        seen
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![3 => Just(b'\n'), 4 => Just(b'a'), 2 => Just(b'E'), 1 => Just(0xff)],
            0..80,
        )
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_where_reads_and_batches_end(
            text in text(),
            mut cuts in proptest::collection::vec(0..80_usize, 0..8),
            rows in 1..5_usize,
            quarantine: bool,
            multiline: bool,
        ) {
            cuts.sort_unstable();
            let long = if quarantine { LongLines::Quarantine } else { LongLines::Split };
            let splitter = splitter(8, long, multiline.then_some("^E"));
            let whole = events(&splitter, &text, &[], 1_000);
            prop_assert_eq!(&events(&splitter, &text, &cuts, rows), &whole);
            if !quarantine {
                // Every byte that is not a newline between events is in exactly one event.
                let mut next = 0;
                for (position, body, _) in &whole {
                    let start = usize::try_from(*position).unwrap();
                    prop_assert!(start == next || (start == next + 1 && text[next] == b'\n'), "{start} {next}");
                    prop_assert_eq!(&text[start..start + body.len()], body.as_slice());
                    next = start + body.len();
                }
                prop_assert!(text[next..].iter().all(|byte| *byte == b'\n') && text.len() - next <= 1);
            }
        }
    }

    #[test]
    fn long_lines_are_split_or_quarantined() {
        let text = b"12345678\n123456789\n\nx";
        let split = events(&splitter(8, LongLines::Split, None), text, &[], 100);
        let event = |position: u64, body: &str, continued| (position, body.as_bytes().to_vec(), continued);
        let expected = [
            event(0, "12345678", false),
            event(9, "12345678", false),
            event(17, "9", true),
            event(19, "", false),
            event(20, "x", false),
        ];
        assert_eq!(split, expected);
        let rejected = events(&splitter(8, LongLines::Quarantine, None), text, &[], 100);
        let expected = [
            event(0, "12345678", false),
            event(9, "Q12345678", false),
            event(19, "", false),
            event(20, "x", false),
        ];
        assert_eq!(rejected, expected);
    }
}
