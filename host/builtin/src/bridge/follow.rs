//! `--follow`: one bucket after the other, for ever.
//!
//! The progress is sealed like a manifest: the next bucket, and where its reading begins in each partition. It is written
//! after the bucket's `_SUCCESS`; a crash between the two finds the bucket finished, and goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flumen_pipeline::limits::{RETRY_FIRST, RETRY_MAX};
use serde::{Deserialize, Serialize};

use super::calendar::{Bucket, text_time};
use super::durable::replace;
use super::error::{BridgeError, io_error};
use super::faults::About;
use super::kafka::{Before, Known};
use super::limits::{PAUSE, POLL};
use super::manifest::{load_sealed, seal};
use super::watch::Watch;
use super::{Bridge, Done, Held, Input, kafka};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Progress {
    name: String,
    /// The start of the next bucket.
    next: String,
    /// Where its reading begins, and where the bucket before ended: partition and both offsets.
    partitions: Vec<(i32, i64, i64)>,
}

const FIX: &str = "To begin anew, remove the file and say `--from` (or `from` in [bridge]) which bucket; finished ones are not made twice";

impl Bridge {
    /// Makes all buckets as they close, until `stop`. `from`: the first one, if the bridge never ran here; without it
    /// that of the file. An error is one that only a person mends.
    pub fn follow(
        &self,
        held: &Held,
        from: Option<i64>,
        stop: &AtomicBool,
        watch: &Watch,
        report: &(dyn Fn(&Done) + Sync),
    ) -> Result<(), BridgeError> {
        let Some((mut bucket, mut known)) = self.begin(held, from.or(self.settings.from_ns), stop, watch)?
        else {
            return Ok(());
        };
        tracing::info!(topic = held.name, bucket = bucket.label(), "following");
        let mut pauses = Pauses::default();
        loop {
            watch.opens(bucket);
            let begun = Instant::now();
            match self.make_from(held, bucket, known.as_ref(), true, stop, watch) {
                Ok(done) => {
                    bucket = self.next(bucket);
                    self.save(held, bucket, known.insert(done.manifest.known()))?;
                    watch.closes(&done);
                    report(&done);
                    pauses = Pauses::default();
                }
                Err(BridgeError::Stopped) if stop.load(Ordering::Relaxed) => return Ok(()),
                // A tree's done files are still to come.
                Err(BridgeError::Incomplete { .. }) => {
                    watch.works();
                    pause(PAUSE, stop);
                }
                // What a person mends on the brokers or the disk (a right, a topic, space) needs no restart here.
                Err(
                    error @ (BridgeError::Kafka(_)
                    | BridgeError::Refused(_)
                    | BridgeError::Io { .. }
                    | BridgeError::Input { .. }),
                ) => {
                    tracing::warn!(topic = held.name, bucket = bucket.label(), "{error}; trying again");
                    watch.retries(&error);
                    // What got on for a while between its errors is tried again soon.
                    if begun.elapsed() > RETRY_MAX {
                        pauses = Pauses::default();
                    }
                    pauses.pause(stop);
                }
                Err(error) => return Err(error),
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    fn save(&self, held: &Held, next: Bucket, known: &Known) -> Result<(), BridgeError> {
        let path = self.progress_path(held);
        let partitions = known.iter().map(|(partition, at)| (*partition, at.read_start, at.commit)).collect();
        let progress = Progress { name: held.name.clone(), next: next.label(), partitions };
        let bytes = seal(&progress)
            .map_err(|reason| io_error("cannot write", &path)(std::io::Error::other(reason)))?;
        replace(&path, &bytes, About::Progress)
    }

    /// The first bucket, and where to read; `None`: asked to stop before there was any record.
    fn begin(
        &self,
        held: &Held,
        from: Option<i64>,
        stop: &AtomicBool,
        watch: &Watch,
    ) -> Result<Option<(Bucket, Option<Known>)>, BridgeError> {
        // A wrong name is said at once; brokers that are down are waited for.
        if let Input::Kafka(input) = &self.input {
            match kafka::check(input, &held.name) {
                Err(error @ BridgeError::Refused(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(topic = held.name, "{error}");
                    watch.retries(&error);
                }
                Ok(()) => {}
            }
        }
        let path = self.progress_path(held);
        if let Some(progress) = load_sealed::<Progress>(&path, FIX)? {
            let broken =
                |reason: &str| BridgeError::Broken { path: path.clone(), reason: reason.into(), fix: FIX };
            let start = text_time(&progress.next).ok_or_else(|| broken("it names no time"))?;
            let bucket = self.bucket(start);
            if bucket.start_ns != start || progress.name != held.name {
                return Err(broken("it is of another topic, or of buckets of another length"));
            }
            if from.is_some_and(|from| from != start) {
                tracing::info!(
                    topic = held.name,
                    next = progress.next,
                    "going on where it ended; `--from` is for a first start"
                );
            }
            let before = |(partition, read_start, commit)| (partition, Before { read_start, commit });
            return Ok(Some((bucket, Some(progress.partitions.into_iter().map(before).collect()))));
        }
        if let Some(from) = from {
            return Ok(Some((self.bucket(from), None)));
        }
        let Input::Kafka(input) = &self.input else {
            return Err(BridgeError::NoBegin);
        };
        let mut pauses = Pauses::default();
        while !stop.load(Ordering::Relaxed) {
            match kafka::first_bucket(input, &self.settings, &held.name) {
                Ok(Some(bucket)) => return Ok(Some((bucket, None))),
                Ok(None) => {
                    watch.works();
                    pause(PAUSE, stop);
                }
                Err(error @ BridgeError::Kafka(_)) => {
                    tracing::warn!(topic = held.name, "{error}; trying again");
                    watch.retries(&error);
                    pauses.pause(stop);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// The pauses between tries, each longer than the one before.
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Pauses(RETRY_FIRST)
    }
}

impl Pauses {
    /// Waits; not longer than until `stop`.
    pub fn pause(&mut self, stop: &AtomicBool) {
        pause(self.0, stop);
        self.0 = (self.0 * 2).min(RETRY_MAX);
    }
}

fn pause(length: Duration, stop: &AtomicBool) {
    let begun = Instant::now();
    while begun.elapsed() < length && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(POLL);
    }
}
