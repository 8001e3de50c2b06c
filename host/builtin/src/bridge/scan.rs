//! What one partition says of one bucket: a pure walk over offsets and event times.
//!
//! The *watermark* of a partition before an offset is the newest event time below that offset: a fact of the log, the
//! same for whoever reads it, whenever. With bucket `[start, end)` and allowed lateness `L`:
//!
//! - *read start*: the first offset with a time of `start` or later; everything before belongs to earlier buckets.
//! - *commit*: the first offset with a time of `end + L` or later. There the watermark passes, the bucket is closed, and from
//!   there on everything belongs to later buckets or is late.
//! - A record of an earlier bucket is *late* from that bucket's commit on. The late records that a bucket's run takes care of
//!   are those between the commit of the bucket before (first time of `start + L` or later) and its own. These
//!   stretches tile the log, so each record is in time for exactly one bucket, or late in exactly one run.
//!
//! Both offsets depend on nothing but the log: a run can be repeated, and a crash costs nothing but reading again. Only a
//! partition that was closed because it was silent has a commit offset that depends on when that was; so it is
//! recorded, and the next bucket's run takes the commit offset that its predecessor recorded: from there on, everything
//! older than its bucket is late. In the same way a bucket that is made after a later one ends where that took over.

use super::calendar::Bucket;

/// What a record is to the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One of its records.
    InTime,
    /// A record of an earlier bucket that came after that was closed.
    Late,
    /// Another bucket's.
    Other,
    /// The commit offset: nothing more to read.
    Passed,
}

/// An end that is on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// The offset.
    pub commit: i64,
    /// The bucket ends there and nowhere else (it is made again, or the next one began there); otherwise there at
    /// the latest, because a later bucket took over.
    pub is_exact: bool,
}

/// The walk over one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scan {
    bucket: Bucket,
    lateness_ns: i64,
    end: Option<End>,
    first: Option<i64>,
    /// The commit offset of the bucket before.
    late_from: Option<i64>,
    next: Option<i64>,
    commit: Option<i64>,
    /// The offset after the last one seen.
    pub position: i64,
    /// The newest time seen before the commit.
    pub watermark_ns: Option<i64>,
}

/// The offsets of a partition that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offsets {
    /// Where reading for the bucket begins.
    pub read_start: i64,
    /// Where the bucket before ended.
    pub late_from: i64,
    /// Where the bucket ends.
    pub commit: i64,
    /// Where reading for the next bucket begins: at its first record, or where nothing was read yet.
    pub next_read_start: i64,
    /// The watermark passed; otherwise the partition was idle.
    pub passed: bool,
}

impl Scan {
    /// Begins at an offset before which there is nothing of the bucket and no later time. `late_from`: the commit
    /// offset of the bucket before, if that is on record.
    pub fn new(
        bucket: Bucket,
        lateness_ns: i64,
        begin: i64,
        late_from: Option<i64>,
        end: Option<End>,
    ) -> Scan {
        let (first, next, commit, watermark_ns) = (None, None, None, None);
        Scan { bucket, lateness_ns, end, first, late_from, next, commit, position: begin, watermark_ns }
    }

    /// The next record of the partition.
    pub fn take(&mut self, offset: i64, time_ns: i64) -> Verdict {
        let Bucket { start_ns, end_ns } = self.bucket;
        let has_passed = time_ns >= end_ns.saturating_add(self.lateness_ns);
        if let Some(End { commit, .. }) = self.end.filter(|end| offset >= end.commit) {
            if offset == commit && has_passed {
                self.watermark_ns = Some(time_ns);
            }
            self.commit = Some(commit);
            return Verdict::Passed;
        }
        if time_ns >= start_ns {
            self.first.get_or_insert(offset);
        }
        if time_ns >= start_ns.saturating_add(self.lateness_ns) {
            self.late_from.get_or_insert(offset);
        }
        if time_ns >= end_ns {
            self.next.get_or_insert(offset);
        }
        if has_passed && !self.end.is_some_and(|end| end.is_exact) {
            self.commit = Some(offset);
            self.watermark_ns = Some(time_ns);
            return Verdict::Passed;
        }
        self.position = offset + 1;
        self.watermark_ns = self.watermark_ns.max(Some(time_ns));
        match time_ns {
            time if time >= end_ns => Verdict::Other,
            time if time >= start_ns => Verdict::InTime,
            _ if self.late_from.is_some_and(|from| offset >= from) => Verdict::Late,
            _ => Verdict::Other,
        }
    }

    /// True when the commit offset is known.
    pub fn is_done(&self) -> bool {
        self.commit.is_some()
    }

    /// The partition has ended and stays silent: the bucket ends where reading did.
    pub fn close(&mut self) {
        self.commit = Some(self.end.map_or(self.position, |end| end.commit));
    }

    /// The offsets; `None` before it is done.
    pub fn offsets(&self) -> Option<Offsets> {
        let commit = self.commit?;
        let next = self.next.unwrap_or(commit).min(commit);
        let read_start = self.first.unwrap_or(commit).min(commit);
        let passed = self.watermark_ns >= Some(self.bucket.end_ns.saturating_add(self.lateness_ns));
        let late_from = self.late_from.unwrap_or(commit).min(commit);
        Some(Offsets { read_start, late_from, commit, next_read_start: next, passed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIT: i64 = 10;

    fn bucket(number: i64) -> Bucket {
        Bucket { start_ns: number * UNIT, end_ns: (number + 1) * UNIT }
    }

    /// Runs all buckets in turn, each from what the one before recorded. `silences`: how many records there are
    /// when a bucket's run ends, if it has not ended by itself.
    fn chain(times: &[i64], lateness: i64, silences: &[usize]) -> Vec<(i64, i64, Verdict)> {
        let mut taken = Vec::new();
        let (mut begin, mut late_from) = (0, None);
        for (number, visible) in silences.iter().enumerate() {
            let mut scan = Scan::new(bucket(number as i64), lateness, begin, late_from, None);
            let visible = (*visible).min(times.len()).max(begin as usize);
            for (offset, time) in times[..visible].iter().enumerate().skip(begin as usize) {
                match scan.take(offset as i64, *time) {
                    Verdict::Passed => break,
                    Verdict::Other => {}
                    verdict => taken.push((number as i64, offset as i64, verdict)),
                }
            }
            if !scan.is_done() {
                scan.close();
            }
            let offsets = scan.offsets().unwrap();
            (begin, late_from) = (offsets.next_read_start, Some(offsets.commit));
        }
        taken
    }

    proptest! {
        #[test]
        fn every_record_is_taken_exactly_once(
            times in prop::collection::vec(0i64..60, 0..80), lateness in 0i64..25
        ) {
            let taken = chain(&times, lateness, &[usize::MAX; 6]);
            let mut offsets: Vec<i64> = taken.iter().map(|(_, offset, _)| *offset).collect();
            offsets.sort_unstable();
            prop_assert_eq!(offsets, (0..times.len() as i64).collect::<Vec<_>>());
            let mut watermark = vec![i64::MIN; times.len()];
            for offset in 1..times.len() {
                watermark[offset] = watermark[offset - 1].max(times[offset - 1]);
            }
            for (number, offset, verdict) in taken {
                let time = times[offset as usize];
                let is_late = watermark[offset as usize] >= (time / UNIT + 1) * UNIT + lateness;
                prop_assert_eq!(verdict == Verdict::Late, is_late);
                prop_assert!(is_late || number == time / UNIT);
            }
        }

        #[test]
        fn also_when_buckets_were_closed_in_silence_and_more_came(
            times in prop::collection::vec(0i64..60, 0..80),
            lateness in 0i64..25,
            mut silences in prop::collection::vec(0usize..80, 6),
        ) {
            silences.sort_unstable();
            silences.push(usize::MAX);
            let taken = chain(&times, lateness, &silences);
            let mut offsets: Vec<i64> = taken.iter().map(|(_, offset, _)| *offset).collect();
            offsets.sort_unstable();
            prop_assert_eq!(offsets, (0..times.len() as i64).collect::<Vec<_>>());
            for (number, offset, verdict) in taken {
                let own = times[offset as usize] / UNIT;
                let is_right = if verdict == Verdict::Late { number > own } else { number == own };
                prop_assert!(is_right);
            }
        }

        #[test]
        fn also_when_buckets_are_made_in_any_order(
            times in prop::collection::vec(0i64..60, 0..80),
            lateness in 0i64..25,
            mut silences in prop::collection::vec(0usize..80, 6),
            order in Just([0i64, 1, 2, 3, 4, 5]).prop_shuffle(),
        ) {
            silences.sort_unstable();
            let mut made: std::collections::BTreeMap<i64, Offsets> = Default::default();
            let mut taken = Vec::new();
            let last = (6, usize::MAX);
            for (number, visible) in order.into_iter().zip(silences).chain([last]) {
                let times = &times[..visible.min(times.len())];
                let indexed = times.iter().position(|time| *time >= number * UNIT).unwrap_or(times.len());
                let before = made.get(&(number - 1));
                let begin = before.map_or(indexed as i64, |before| before.next_read_start);
                let fixed = made
                    .range(number + 1..)
                    .next()
                    .map(|(later, after)| End { commit: after.late_from, is_exact: *later == number + 1 });
                let mut scan =
                    Scan::new(bucket(number), lateness, begin, before.map(|before| before.commit), fixed);
                for (offset, time) in times.iter().enumerate().skip(begin as usize) {
                    match scan.take(offset as i64, *time) {
                        Verdict::Passed => break,
                        Verdict::Other => {}
                        _ => taken.push(offset),
                    }
                }
                if !scan.is_done() {
                    scan.close();
                }
                made.insert(number, scan.offsets().unwrap());
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..times.len()).collect::<Vec<_>>(), "{:?}", made);
        }

        #[test]
        fn a_run_from_any_earlier_offset_says_the_same(
            times in prop::collection::vec(0i64..60, 1..80), lateness in 0i64..25, number in 0i64..6
        ) {
            let run = |begin: usize, late_from: Option<i64>, fixed: Option<End>| {
                let mut scan = Scan::new(bucket(number), lateness, begin as i64, late_from, fixed);
                let mut taken = Vec::new();
                for (offset, time) in times.iter().enumerate().skip(begin) {
                    match scan.take(offset as i64, *time) {
                        Verdict::Passed => break,
                        Verdict::Other => {}
                        verdict => taken.push((offset, verdict)),
                    }
                }
                if !scan.is_done() {
                    scan.close();
                }
                (Offsets { passed: false, ..scan.offsets().unwrap() }, taken)
            };
            let whole = run(0, None, None);
            // As the broker's index names it: the first record with a time of the bucket or later.
            let indexed = times.iter().position(|time| *time >= number * UNIT).unwrap_or(times.len());
            prop_assert_eq!(&run(indexed, None, None), &whole);
            let Offsets { read_start, late_from, commit, .. } = whole.0;
            let again = run(read_start.min(late_from) as usize, Some(late_from), Some(End { commit, is_exact: true }));
            prop_assert_eq!(&again, &whole);
        }
    }
}
