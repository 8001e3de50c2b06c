//! `--follow`: one bucket after the other, for ever.
//!
//! The progress is sealed like a manifest: the next bucket, and where its reading begins in each partition. It is written
//! after the bucket's `_SUCCESS`; a crash between the two finds the bucket finished, and goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::calendar::{Bucket, text_time};
use super::durable::replace;
use super::error::{BridgeError, io_error};
use super::kafka::{Before, Known};
use super::limits::{PAUSE, POLL};
use super::manifest::{load_sealed, seal};
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

const FIX: &str =
    "To begin anew, remove the file and say `--from` which bucket; finished ones are not made twice";

impl Bridge {
    /// Makes all buckets as they close, until `stop`. `from`: the first one, if the bridge never ran here.
    pub fn follow(
        &self,
        held: &Held,
        from: Option<i64>,
        stop: &AtomicBool,
        report: &(dyn Fn(&Done) + Sync),
    ) -> Result<(), BridgeError> {
        let Some((mut bucket, mut known)) = self.begin(held, from, stop)? else { return Ok(()) };
        tracing::info!(topic = held.name, bucket = bucket.label(), "following");
        loop {
            match self.make_from(held, bucket, known.as_ref(), true, stop) {
                Ok(done) => {
                    bucket = self.next(bucket);
                    self.save(held, bucket, known.insert(done.manifest.known()))?;
                    report(&done);
                }
                Err(BridgeError::Stopped) if stop.load(Ordering::Relaxed) => return Ok(()),
                // A tree's done files are still to come.
                Err(BridgeError::Incomplete { .. }) => pause(stop),
                // What a person mends on the brokers or the disk (a right, a topic, space) needs no restart here.
                Err(
                    error @ (BridgeError::Kafka(_)
                    | BridgeError::Refused(_)
                    | BridgeError::Io { .. }
                    | BridgeError::Input { .. }),
                ) => {
                    tracing::warn!(topic = held.name, bucket = bucket.label(), "{error}; trying again");
                    pause(stop);
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
        replace(&path, &bytes)
    }

    /// The first bucket, and where to read; `None`: asked to stop before there was any record.
    fn begin(
        &self,
        held: &Held,
        from: Option<i64>,
        stop: &AtomicBool,
    ) -> Result<Option<(Bucket, Option<Known>)>, BridgeError> {
        // A wrong name is said at once; brokers that are down are waited for.
        if let Input::Kafka(input) = &self.input {
            match kafka::check(input, &held.name) {
                Err(error @ BridgeError::Refused(_)) => return Err(error),
                Err(error) => tracing::warn!(topic = held.name, "{error}"),
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
            return Err(BridgeError::Refused("a tree has no first bucket by itself: say `--from`".into()));
        };
        while !stop.load(Ordering::Relaxed) {
            match kafka::first_bucket(input, &self.settings, &held.name) {
                Ok(Some(bucket)) => return Ok(Some((bucket, None))),
                Ok(None) => {}
                Err(BridgeError::Kafka(reason)) => {
                    tracing::warn!(topic = held.name, "{reason}; trying again")
                }
                Err(error) => return Err(error),
            }
            pause(stop);
        }
        Ok(None)
    }
}

fn pause(stop: &AtomicBool) {
    let begun = Instant::now();
    while begun.elapsed() < PAUSE && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(POLL);
    }
}
