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
//! Both offsets depend on nothing but the log: a run can be repeated, and a crash costs nothing but reading again.

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

/// The walk over one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scan {
    bucket: Bucket,
    lateness_ns: i64,
    /// A bucket that is made again ends where it ended.
    fixed_commit: Option<i64>,
    first: Option<i64>,
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
    /// Where the bucket ends.
    pub commit: i64,
    /// Where reading for the next bucket begins: at its first record, or where nothing was read yet.
    pub next_read_start: i64,
    /// The watermark passed; otherwise the partition was idle.
    pub passed: bool,
}

impl Scan {
    /// Begins at an offset before which there is nothing of the bucket and no later time.
    pub fn new(bucket: Bucket, lateness_ns: i64, begin: i64, fixed_commit: Option<i64>) -> Scan {
        let (first, late_from, next, commit, watermark_ns) = (None, None, None, None, None);
        Scan {
            bucket,
            lateness_ns,
            fixed_commit,
            first,
            late_from,
            next,
            commit,
            position: begin,
            watermark_ns,
        }
    }

    /// The next record of the partition.
    pub fn take(&mut self, offset: i64, time_ns: i64) -> Verdict {
        let Bucket { start_ns, end_ns } = self.bucket;
        if self.fixed_commit.is_some_and(|commit| offset >= commit) {
            self.commit = self.fixed_commit;
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
        if time_ns >= end_ns.saturating_add(self.lateness_ns) && self.fixed_commit.is_none() {
            self.commit = Some(offset);
            self.watermark_ns = Some(time_ns);
            return Verdict::Passed;
        }
        self.position = offset + 1;
        self.watermark_ns = self.watermark_ns.max(Some(time_ns));
        match time_ns {
            time if time >= end_ns => Verdict::Other,
            time if time >= start_ns => Verdict::InTime,
            _ if self.late_from.is_some() => Verdict::Late,
            _ => Verdict::Other,
        }
    }

    /// True when the commit offset is known.
    pub fn is_done(&self) -> bool {
        self.commit.is_some()
    }

    /// The partition has ended and stays silent: the bucket ends where reading did.
    pub fn close(&mut self) {
        self.commit = Some(self.fixed_commit.unwrap_or(self.position));
    }

    /// True if a bucket that is made again has reached its end.
    pub fn reached_fixed(&self) -> bool {
        self.fixed_commit.is_some_and(|commit| self.position >= commit)
    }

    /// The offsets; `None` before it is done.
    pub fn offsets(&self) -> Option<Offsets> {
        let commit = self.commit?;
        let next = self.next.unwrap_or(commit).min(commit);
        let read_start = self.first.unwrap_or(commit).min(commit);
        let passed = self.watermark_ns >= Some(self.bucket.end_ns.saturating_add(self.lateness_ns));
        Some(Offsets { read_start, commit, next_read_start: next, passed })
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

    /// Runs all buckets in turn, each from the read start that the one before named.
    fn chain(times: &[i64], lateness: i64, buckets: i64) -> Vec<(i64, i64, Verdict)> {
        let mut taken = Vec::new();
        let mut begin = 0;
        for number in 0..buckets {
            let mut scan = Scan::new(bucket(number), lateness, begin, None);
            for (offset, time) in times.iter().enumerate().skip(begin as usize) {
                match scan.take(offset as i64, *time) {
                    Verdict::Passed => break,
                    Verdict::Other => {}
                    verdict => taken.push((number, offset as i64, verdict)),
                }
            }
            if !scan.is_done() {
                scan.close();
            }
            begin = scan.offsets().unwrap().next_read_start;
        }
        taken
    }

    proptest! {
        #[test]
        fn every_record_is_taken_exactly_once(
            times in prop::collection::vec(0i64..60, 0..80), lateness in 0i64..25
        ) {
            let taken = chain(&times, lateness, 6);
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
        fn a_run_from_any_earlier_offset_says_the_same(
            times in prop::collection::vec(0i64..60, 1..80), lateness in 0i64..25, number in 0i64..6
        ) {
            let run = |begin: usize, fixed: Option<i64>| {
                let mut scan = Scan::new(bucket(number), lateness, begin as i64, fixed);
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
                (scan.offsets().unwrap(), taken)
            };
            let whole = run(0, None);
            // As the broker's index names it: the first record with a time of the bucket or later.
            let indexed = times.iter().position(|time| *time >= number * UNIT).unwrap_or(times.len());
            prop_assert_eq!(&run(indexed, None), &whole);
            let again = run(whole.0.read_start as usize, Some(whole.0.commit));
            prop_assert_eq!((again.0.read_start, again.0.commit, again.0.next_read_start, again.1),
                (whole.0.read_start, whole.0.commit, whole.0.next_read_start, whole.1));
        }
    }
}
