//! The journal itself: producers that commit and wait, and what its parts take.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flumen_event::{Batch, layout};
use flumen_journal::{
    Ack, ChannelId, ChannelSpec, Commit, Compression, FileConfig, FileJournal, Journal, JournalStatus, Key,
    KeyId, OsClock, OsDisk, Put, Reader, ReaderId,
};

use crate::Outcome;
use crate::lines;
use crate::series::Series;

/// Who commits.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub producers: usize,
    /// Bytes of the bodies of a commit.
    pub bytes: usize,
    /// Commits that a producer has on their way.
    pub in_flight: usize,
    pub limit: Duration,
    pub bytes_max: usize,
    /// A sink keeps up: it acknowledges all [`ACK_BYTES`], after a while in which segments came and went.
    pub has_sink: bool,
}

/// Bytes of events that are acknowledged together.
const ACK_BYTES: usize = 8 << 20;

/// Batches of 1 MiB that are put and acknowledged before anything is measured: some segments.
const WARM_BATCHES: usize = 256;

/// How batches are stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Form {
    pub compression: Compression,
    pub is_sealed: bool,
}

/// What came of it.
pub struct Run {
    /// Each commit, from the call to the acknowledgement; bytes as they are laid out.
    pub commits: Series,
    pub status: JournalStatus,
    pub events: usize,
    /// To read everything back, the page cache as it was left, and emptied.
    pub read: Option<[Duration; 2]>,
}

impl Run {
    /// Bytes on disk for each group.
    pub fn group_bytes(&self) -> usize {
        (self.status.bytes_written / self.status.syncs.max(1)) as usize
    }

    /// What went to the disk.
    pub fn written_mb_s(&self) -> f64 {
        self.status.bytes_written as f64 / 1e6 / self.commits.took.as_secs_f64()
    }

    pub fn ns_per_event(&self, total_ns: u64) -> f64 {
        total_ns as f64 / self.events as f64
    }
}

fn open(dir: PathBuf, form: Form) -> Outcome<Arc<FileJournal>> {
    let id = KeyId::new("bench").ok_or("no id")?;
    let keys = form.is_sealed.then(|| Key::new(id, [7; 32])).into_iter().collect();
    let config = FileConfig { dir, compression: form.compression, keys, ..FileConfig::default() };
    let spec = ChannelSpec {
        name: "main".into(),
        readers: vec!["sink".into()],
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    };
    Ok(FileJournal::open(config, vec![spec], Arc::new(OsDisk), Arc::new(OsClock))?)
}

/// Commits until the time or the bytes are over.
pub fn run(dir: &Path, load: Load, form: Form, reads: bool) -> Outcome<Run> {
    let dir = dir.join("journal");
    let journal = open(dir.clone(), form)?;
    let batches = (0..load.producers as u64).map(|seed| lines::batch(load.bytes, seed + 1));
    let batches: Vec<Batch> = batches.collect::<Result<_, _>>()?;
    let mut sink = load.has_sink.then(|| Sink::new(&journal));
    if let Some(sink) = &mut sink {
        warm(&journal, sink)?;
    }
    let before = journal.status();
    let is_over = AtomicBool::new(false);
    let mut took = Duration::ZERO;
    let started = Instant::now();
    let producers = std::thread::scope(|scope| -> io::Result<Vec<io::Result<(Series, usize)>>> {
        let is_over = &is_over;
        let sink = sink.map(|mut sink| scope.spawn(move || sink.run(is_over)));
        let share = load.bytes_max / load.producers;
        let start = |batch: &Batch| {
            let (journal, batch) = (journal.clone(), batch.clone());
            scope.spawn(move || produce(journal.as_ref(), &batch, load, share))
        };
        let threads: Vec<_> = batches.iter().map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, io::Result<(Series, usize)>>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a producer panicked")))
        };
        let joined = threads.into_iter().map(join).collect();
        took = started.elapsed();
        is_over.store(true, Ordering::Relaxed);
        let failed =
            sink.map(|sink| sink.join().unwrap_or_else(|_| Err(io::Error::other("the sink panicked"))));
        failed.transpose().map(|_| joined)
    })?;
    let (mut commits, mut events) = (Series::default(), 0);
    for producer in producers {
        let (series, count) = producer?;
        commits.append(series);
        events += count;
    }
    commits.took = took;
    let mut status = journal.status();
    status.syncs -= before.syncs;
    status.bytes_written -= before.bytes_written;
    status.encode_ns -= before.encode_ns;
    status.write_ns -= before.write_ns;
    status.sync_ns -= before.sync_ns;
    journal.close()?;
    drop(journal);
    let read =
        if reads { Some([read_all(&dir, form, events)?, read_cold(&dir, form, events)?]) } else { None };
    std::fs::remove_dir_all(dir)?;
    Ok(Run { commits, status, events, read })
}

fn produce(journal: &FileJournal, batch: &Batch, load: Load, share: usize) -> io::Result<(Series, usize)> {
    let (started, bytes) = (Instant::now(), layout::encode(batch).len());
    let (mut series, mut tickets, mut handed_in) = (Series::default(), VecDeque::new(), 0);
    while handed_in == 0 || (started.elapsed() < load.limit && (handed_in + 1) * bytes <= share) {
        let before = Instant::now();
        let put = Put { channels: vec![ChannelId(0)], batch: batch.clone() };
        let commit = Commit { puts: vec![put], ..Commit::default() };
        handed_in += 1;
        if load.in_flight == 1 {
            journal.commit_and_wait(commit, None).map_err(io::Error::other)?;
            series.add(before.elapsed(), bytes);
            continue;
        }
        tickets.push_back((before, journal.commit(commit, None).map_err(io::Error::other)?));
        while tickets.len() >= load.in_flight
            && let Some((before, ticket)) = tickets.pop_front()
        {
            ticket.wait(None).transpose().map_err(io::Error::other)?;
            series.add(before.elapsed(), bytes);
        }
    }
    for (before, ticket) in tickets {
        ticket.wait(None).transpose().map_err(io::Error::other)?;
        series.add(before.elapsed(), bytes);
    }
    Ok((series, handed_in * batch.rows()))
}

/// Reads and acknowledges.
struct Sink<'a> {
    journal: &'a FileJournal,
    reader: Box<dyn Reader>,
    not_acknowledged: usize,
    cursor: u64,
}

impl<'a> Sink<'a> {
    fn new(journal: &'a FileJournal) -> Sink<'a> {
        let reader = journal.open_reader(ChannelId(0), ReaderId(0));
        Sink { journal, reader, not_acknowledged: 0, cursor: 0 }
    }

    fn run(&mut self, is_over: &AtomicBool) -> io::Result<()> {
        while !is_over.load(Ordering::Relaxed) {
            self.take(Duration::from_millis(20))?;
        }
        Ok(())
    }

    fn take(&mut self, wait: Duration) -> io::Result<bool> {
        let delivery = self.reader.next(wait).map_err(io::Error::other)?;
        if let Some(delivery) = &delivery {
            self.not_acknowledged += delivery.batch.bytes();
            self.cursor = delivery.next;
        }
        if self.not_acknowledged >= ACK_BYTES {
            self.not_acknowledged = 0;
            let ack = Ack { channel: ChannelId(0), reader: ReaderId(0), cursor: self.cursor };
            let commit = Commit { acks: vec![ack], ..Commit::default() };
            self.journal.commit(commit, None).map_err(io::Error::other)?;
        }
        Ok(delivery.is_some())
    }
}

fn warm(journal: &FileJournal, sink: &mut Sink<'_>) -> Outcome<()> {
    let batch = lines::batch(1 << 20, 99)?;
    for _ in 0..WARM_BATCHES {
        let put = Put { channels: vec![ChannelId(0)], batch: batch.clone() };
        journal.commit(Commit { puts: vec![put], ..Commit::default() }, None)?.wait(None).transpose()?;
        while sink.take(Duration::ZERO)? {}
    }
    Ok(())
}

fn read_all(dir: &Path, form: Form, events: usize) -> Outcome<Duration> {
    let journal = open(dir.to_path_buf(), form)?;
    let mut reader = journal.open_reader(ChannelId(0), ReaderId(0));
    let started = Instant::now();
    let mut seen = 0;
    while let Some(delivery) = reader.next(Duration::ZERO)? {
        seen += delivery.batch.rows();
    }
    match seen == events {
        true => Ok(started.elapsed()),
        false => Err(format!("{seen} events of {events} were read back").into()),
    }
}

/// After the page cache has let go of the files.
fn read_cold(dir: &Path, form: Form, events: usize) -> Outcome<Duration> {
    for entry in std::fs::read_dir(dir)? {
        let file = std::fs::File::open(entry?.path())?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    read_all(dir, form, events)
}
