//! The simulated log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::{Clock, OsClock};
use crate::log::{GiveUp, Log, LogError, LogReader, Readers, Take};

/// What stands in it, and what goes wrong.
pub struct Image {
    /// With their places.
    pub records: Vec<(u64, Vec<u8>)>,
    next: u64,
    /// Which opening may write.
    pub opened: u64,
    pub record_bytes_max: usize,
    /// Nobody answers.
    pub is_away: bool,
    /// So many appends do not count, and nobody says so.
    pub lost_appends: u32,
    /// So many appends count, and nobody says so.
    pub lost_answers: u32,
    /// So many reads find nothing.
    pub empty_reads: u32,
    /// So many reads fail.
    pub read_errors: u32,
    pub refuses_trims: bool,
    /// So long a read takes, of a time that passes with reads alone.
    pub read_takes: Duration,
    pub passed: Duration,
}

impl Image {
    pub fn append(&mut self, records: Vec<Vec<u8>>) {
        for record in records {
            self.records.push((self.next, record));
            self.next += 1;
        }
        // As a marker of a transaction.
        self.next += 1;
    }

    pub fn bytes(&self) -> usize {
        self.records.iter().map(|(_, record)| record.len()).sum()
    }

    fn check(&self) -> Result<(), LogError> {
        if self.is_away { Err(LogError::Unknown("nobody answers".into())) } else { Ok(()) }
    }
}

/// A log that outlives its writers.
#[derive(Clone)]
pub struct SimLog(Arc<Mutex<Image>>);

impl Default for SimLog {
    fn default() -> Self {
        SimLog(Arc::new(Mutex::new(Image {
            records: Vec::new(),
            next: 0,
            opened: 0,
            record_bytes_max: 1_000,
            is_away: false,
            lost_appends: 0,
            lost_answers: 0,
            empty_reads: 0,
            read_errors: 0,
            refuses_trims: false,
            read_takes: Duration::ZERO,
            passed: Duration::ZERO,
        })))
    }
}

impl SimLog {
    pub fn with<T>(&self, then: impl FnOnce(&mut Image) -> T) -> T {
        then(&mut self.0.lock())
    }

    /// A writer.
    pub fn handle(&self) -> SimHandle {
        SimHandle { image: self.0.clone(), own: None }
    }
}

/// The system's clocks, and what reads took.
pub struct SimClock(pub SimLog);

impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant::now() + self.0.with(|image| image.passed)
    }

    fn wall_ns(&self) -> i64 {
        OsClock.wall_ns()
    }
}

/// A writer of it.
pub struct SimHandle {
    image: Arc<Mutex<Image>>,
    own: Option<u64>,
}

impl Log for SimHandle {
    fn open(&mut self, from: u64, give_up: GiveUp<'_>, take: Take<'_>) -> Result<u64, LogError> {
        if give_up() {
            return Err(LogError::Unknown("given up".into()));
        }
        let (records, next) = {
            let mut image = self.image.lock();
            image.check()?;
            image.opened += 1;
            self.own = Some(image.opened);
            (image.records.clone(), image.next)
        };
        records
            .iter()
            .filter(|(place, _)| *place >= from)
            .try_for_each(|(place, record)| take(*place, record))?;
        Ok(next)
    }

    fn append(&mut self, records: &[Vec<u8>], _: GiveUp<'_>) -> Result<u64, LogError> {
        let mut image = self.image.lock();
        image.check()?;
        if self.own != Some(image.opened) {
            return Err(LogError::Unknown("somebody else writes".into()));
        }
        assert!(records.iter().all(|record| record.len() <= image.record_bytes_max));
        // An error ends what this writer may do until it is opened again.
        if image.lost_appends > 0 {
            (image.lost_appends, self.own) = (image.lost_appends - 1, None);
            return Err(LogError::Unknown("no answer".into()));
        }
        image.append(records.to_vec());
        if image.lost_answers > 0 {
            (image.lost_answers, self.own) = (image.lost_answers - 1, None);
            return Err(LogError::Unknown("no answer".into()));
        }
        // The marker may come later: any place that is not behind what comes next.
        Ok(image.next - 1)
    }

    fn trim(&mut self, before: u64) -> Result<(), LogError> {
        let mut image = self.image.lock();
        image.check()?;
        if image.refuses_trims {
            return Err(LogError::Unknown("not allowed".into()));
        }
        image.records.retain(|(place, _)| *place >= before);
        Ok(())
    }

    fn record_bytes_max(&self) -> usize {
        self.image.lock().record_bytes_max
    }

    fn readers(&self) -> Readers {
        let image = self.image.clone();
        Arc::new(move || -> Box<dyn LogReader> { Box::new(SimReader { image: image.clone(), at: 0 }) })
    }
}

struct SimReader {
    image: Arc<Mutex<Image>>,
    at: u64,
}

impl LogReader for SimReader {
    fn seek(&mut self, place: u64) {
        self.at = place;
    }

    fn next(&mut self, _: Duration) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let mut image = self.image.lock();
        let takes = image.read_takes;
        image.passed += takes;
        if image.read_errors > 0 {
            image.read_errors -= 1;
            return Err(LogError::Unknown("no answer".into()));
        }
        if image.empty_reads > 0 {
            image.empty_reads -= 1;
            return Ok(None);
        }
        let found = image.records.iter().find(|(place, _)| *place >= self.at).cloned();
        if let Some((place, _)) = &found {
            self.at = place + 1;
        }
        Ok(found)
    }
}
