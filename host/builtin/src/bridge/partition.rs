//! One partition of a run: its walk, and where its records go.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Instant;

use flumen_kafka::rdkafka::Message;
use flumen_kafka::rdkafka::message::{BorrowedMessage, Headers};

use super::error::BridgeError;
use super::limits::LATE_BUCKETS_MAX;
use super::manifest::MARKER;
use super::options::Late;
use super::reading::Run;
use super::scan::{End, Scan, Verdict};
use super::spool::{Press, Spool, Spooled};
use crate::sinks::encode::Encoding;

/// Where to read a partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub partition: i32,
    pub begin: i64,
    /// Where the bucket before ended, if that is on record.
    pub late_from: Option<i64>,
    /// Where the bucket ends, if that is on record.
    pub end: Option<End>,
    /// Offsets that are known to be gone.
    pub missing: u64,
}

/// A partition that is done.
pub(super) struct Finished {
    pub stretch: Stretch,
    pub scan: Scan,
    pub own: Option<Spooled>,
    pub side: Option<Spooled>,
    pub append: BTreeMap<i64, Spooled>,
    pub late: u64,
    pub time_from_record: u64,
}

/// A partition that is read.
pub(super) struct Reading {
    pub stretch: Stretch,
    partition_text: String,
    pub scan: Scan,
    own: Spool,
    side: Spool,
    append: BTreeMap<i64, Option<Spool>>,
    late: u64,
    time_from_record: u64,
    /// The end of the log was reached, and nothing came since.
    pub is_at_end: bool,
    /// When the broker confirmed that.
    pub confirmed: Option<Instant>,
}

impl Reading {
    pub fn new(run: &Run<'_>, stretch: Stretch) -> Reading {
        let Stretch { partition, begin, late_from, end, .. } = stretch;
        Reading {
            stretch,
            partition_text: partition.to_string(),
            scan: Scan::new(run.bucket, run.settings.lateness_ns, begin, late_from, end),
            own: Spool::new(run.work, &format!("own-{partition}"), partition),
            side: Spool::new(run.work, &format!("side-{partition}"), partition),
            append: BTreeMap::new(),
            late: 0,
            time_from_record: 0,
            is_at_end: false,
            confirmed: None,
        }
    }

    pub fn finish(self, press: &mut Press) -> Result<Finished, BridgeError> {
        let mut append = BTreeMap::new();
        for (start_ns, spool) in self.append {
            if let Some(spooled) = spool.map_or(Ok(None), |spool| spool.finish(press))? {
                append.insert(start_ns, spooled);
            }
        }
        Ok(Finished {
            stretch: self.stretch,
            scan: self.scan,
            own: self.own.finish(press)?,
            side: self.side.finish(press)?,
            append,
            late: self.late,
            time_from_record: self.time_from_record,
        })
    }

    /// Takes one record.
    pub fn take(
        &mut self,
        run: &Run<'_>,
        press: &mut Press,
        message: &BorrowedMessage<'_>,
    ) -> Result<(), BridgeError> {
        let offset = message.offset();
        let record_ns = message.timestamp().to_millis().unwrap_or(0).saturating_mul(1_000_000);
        let body = message.payload().unwrap_or_default();
        let (time_ns, replaced) = run.input.time.of(record_ns, body, |name| header(message, name));
        let verdict = self.scan.take(offset, time_ns);
        if !matches!(verdict, Verdict::InTime | Verdict::Late) {
            return Ok(());
        }
        self.time_from_record += u64::from(replaced);
        let partition = self.partition_text.as_str();
        let encode = |press: &mut Press, out: &mut Vec<u8>| {
            if press.encoding != Encoding::Json {
                out.extend_from_slice(body);
                out.push(b'\n');
                return;
            }
            let own = [("topic", Cow::Borrowed(run.topic)), ("partition", Cow::Borrowed(partition))];
            let key = message.key().map(|key| ("key", String::from_utf8_lossy(key)));
            let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            let headers = headers.map(|h| (h.key, String::from_utf8_lossy(h.value.unwrap_or_default())));
            let identity = (u64::from(message.partition().unsigned_abs()), offset.unsigned_abs());
            press.encoder.object(time_ns, body, own.into_iter().chain(key).chain(headers), identity, out);
        };
        if verdict == Verdict::InTime {
            return self.own.record(press, offset, encode);
        }
        self.late += 1;
        match run.settings.late {
            Late::Drop => Ok(()),
            Late::Side => self.side.record(press, offset, encode),
            Late::Append => match own_bucket(&mut self.append, run, self.stretch.partition, time_ns) {
                Some(spool) => spool.record(press, offset, encode),
                None => self.side.record(press, offset, encode),
            },
        }
    }
}

/// Where late records of a bucket go that is finished; `None`: to `late/`.
fn own_bucket<'s>(
    spools: &'s mut BTreeMap<i64, Option<Spool>>,
    run: &Run<'_>,
    partition: i32,
    time_ns: i64,
) -> Option<&'s mut Spool> {
    let bucket = run.settings.calendar.bucket(time_ns);
    let start_ns = bucket.start_ns;
    let count = spools.len();
    match spools.entry(start_ns) {
        Entry::Occupied(found) => found.into_mut().as_mut(),
        Entry::Vacant(_) if count >= LATE_BUCKETS_MAX => None,
        Entry::Vacant(free) => {
            let is_finished = run.settings.directory(run.topic, bucket).join(MARKER).exists();
            let name = format!("append-{partition}-{start_ns}");
            free.insert(is_finished.then(|| Spool::new(run.work, &name, partition))).as_mut()
        }
    }
}

/// The first header of that name.
pub(super) fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m [u8]> {
    message.headers()?.iter().find(|header| header.key == name)?.value
}
