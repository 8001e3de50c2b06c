//! The bridge: Kafka (or trees with done files) to files in buckets by event time, whole and once.
//!
//! A *bucket* is a span of event time of one topic; it has a directory. Its run reads each partition from its
//! *read start* to its *commit* offset ([`scan`] says what these are and why they tile the log), writes the
//! bucket's records into the work directory, publishes them ([`publish`]), and last of all writes `_SUCCESS`
//! ([`manifest`]), which holds offsets, counts and hashes. `--follow` is the same run, which waits at the end of the log,
//! for one bucket after the other: the offsets in one `_SUCCESS` say where the next bucket's reading begins, and
//! `_flumen/NAME.progress` beside the data says which that is.
//!
//! What holds: each record is in exactly one bucket, or late exactly once; a run that is repeated writes the
//! same bytes under the same names; a kill at any point leaves a bucket without `_SUCCESS`, which the next
//! run makes from the same offsets. A bucket with `_SUCCESS` changes only by `late = "append"`.
//!
//! How it fails: [`BridgeError`]; nothing that was finished is touched, and what cannot be trusted is named. A
//! topic's state is locked (`_flumen/NAME.lock`), so two bridges never write the same buckets.

mod arrange;
mod calendar;
mod durable;
mod error;
pub mod faults;
mod follow;
mod kafka;
pub mod limits;
mod manifest;
mod options;
mod partition;
mod publish;
mod reading;
mod scan;
mod spool;
mod time;
mod tree;
mod watch;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use flumen_pipeline::{BuildError, ComponentSpec, Options};

pub use calendar::Bucket;
pub use error::BridgeError;
pub use follow::Pauses;
pub use manifest::{
    Addition, ClosedBy, FileEntry, LateEntry, MARKER, Manifest, PartitionEntry, ProducerEntry,
};
pub use watch::{Watch, WatchStatus};

use durable::{empty_directory, make_directories};
use error::io_error;
use options::{KafkaInput, Settings, TreeInput};

/// The tables of a bridge's file.
pub const TABLES: [ComponentSpec; 3] = [options::BRIDGE, options::KAFKA, options::TREE];

/// The directory beside the data for locks, progress and files that are not whole yet.
const STATE_DIR: &str = "_flumen";

/// A bridge that was configured.
#[derive(Debug)]
pub struct Bridge {
    settings: Settings,
    input: Input,
}

#[derive(Debug)]
enum Input {
    Kafka(KafkaInput),
    Tree(TreeInput),
}

/// A bucket that is finished.
#[derive(Debug)]
pub struct Done {
    /// Where it is.
    pub dir: PathBuf,
    /// Its `_SUCCESS`.
    pub manifest: Manifest,
    /// Made (or mended) just now; otherwise it was there.
    pub made: bool,
}

/// The one that may work on a topic's buckets, until it is dropped.
#[derive(Debug)]
pub struct Held {
    name: String,
    state: PathBuf,
    _lock: File,
}

impl Held {
    /// The topic, or the tree's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Bridge {
    /// From checked options of the tables. An error names its table.
    pub fn build(
        bridge: &Options,
        kafka: Option<&Options>,
        tree: Option<&Options>,
    ) -> Result<Bridge, (&'static str, BuildError)> {
        let settings = Settings::from_options(bridge).map_err(|error| ("bridge", error))?;
        let input = match (kafka, tree) {
            (Some(kafka), None) => {
                Input::Kafka(KafkaInput::from_options(kafka, &settings).map_err(|error| ("kafka", error))?)
            }
            (None, Some(tree)) => {
                Input::Tree(TreeInput::from_options(tree, &settings).map_err(|error| ("tree", error))?)
            }
            (None, None) => {
                let fix = "add [kafka] with `brokers` and `topics`, or [tree]";
                return Err(("bridge", BuildError::new("", "there is nothing to read", fix)));
            }
            (Some(_), Some(_)) => {
                let fix = "make two files of it";
                return Err(("tree", BuildError::new("", "a bridge reads [kafka] or [tree], not both", fix)));
            }
        };
        Ok(Bridge { settings, input })
    }

    /// The topics, or the tree's name: each has buckets of its own.
    pub fn names(&self) -> Vec<String> {
        match &self.input {
            Input::Kafka(input) => input.topics.clone(),
            Input::Tree(input) => vec![input.name.clone()],
        }
    }

    /// An instant that a user typed; `None`: it is none.
    pub fn parse_time(&self, text: &str) -> Option<i64> {
        self.settings.calendar.parse(text)
    }

    /// The bucket of an instant.
    pub fn bucket(&self, time_ns: i64) -> Bucket {
        self.settings.calendar.bucket(time_ns)
    }

    /// The bucket after one.
    pub fn next(&self, bucket: Bucket) -> Bucket {
        self.settings.calendar.next(bucket)
    }

    /// Keeps all others from a topic's buckets.
    pub fn hold(&self, name: &str) -> Result<Held, BridgeError> {
        let state = self.settings.root.join(STATE_DIR);
        make_directories(&state)?;
        let path = state.join(format!("{name}.lock"));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(io_error("cannot open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Held { name: name.into(), state, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(BridgeError::Locked { root: self.settings.root.clone(), lock: path })
            }
            Err(TryLockError::Error(error)) => Err(io_error("cannot lock", &path)(error)),
        }
    }

    /// Makes a bucket, or finds it made.
    pub fn make(&self, held: &Held, bucket: Bucket, stop: &AtomicBool) -> Result<Done, BridgeError> {
        self.make_from(held, bucket, None, false, stop, &Watch::new(&held.name))
    }

    /// `live`: waits for records that are still to come. `known`: what the bucket before has recorded; otherwise its `_SUCCESS` is asked.
    fn make_from(
        &self,
        held: &Held,
        bucket: Bucket,
        known: Option<&kafka::Known>,
        live: bool,
        stop: &AtomicBool,
        watch: &Watch,
    ) -> Result<Done, BridgeError> {
        let name = held.name.as_str();
        let dir = self.settings.directory(name, bucket);
        let before = manifest::load(&dir, name, bucket)?;
        let before = match before {
            Some(manifest) if manifest::lacking(&dir, &manifest).is_empty() => {
                return Ok(Done { dir, manifest, made: false });
            }
            before => before,
        };
        let work = held.state.join(format!("{name}.work"));
        empty_directory(&work)?;
        let (manifest, parts) = match (&self.input, &before) {
            (Input::Kafka(input), before) => {
                let job = kafka::Job {
                    settings: &self.settings,
                    input,
                    topic: name,
                    bucket,
                    live,
                    stop,
                    watch,
                    work: &work,
                };
                match before {
                    Some(before) => (Manifest::new(name, bucket), job.read_again(before)?),
                    None => {
                        let ends = self.recorded_after(name, bucket)?;
                        match known {
                            Some(known) => job.read(known, &ends)?,
                            None => job.read(&self.recorded_before(name, bucket)?, &ends)?,
                        }
                    }
                }
            }
            (Input::Tree(input), _) => tree::read(&self.settings, input, bucket, &work, stop)?,
        };
        let manifest = publish::publish(&self.settings, &work, bucket, manifest, &parts, before)?;
        empty_directory(&work)?;
        Ok(Done { dir, manifest, made: true })
    }

    /// What the `_SUCCESS` of the bucket before says; nothing if it was not made.
    fn recorded_before(&self, name: &str, bucket: Bucket) -> Result<kafka::Known, BridgeError> {
        let before = self.bucket(bucket.start_ns.saturating_sub(1));
        let manifest = manifest::load(&self.settings.directory(name, before), name, before)?;
        Ok(manifest.map(|manifest| manifest.known()).unwrap_or_default())
    }

    /// Where a later bucket, made before, took over in each partition.
    fn recorded_after(&self, name: &str, bucket: Bucket) -> Result<kafka::Ends, BridgeError> {
        let mut later = bucket;
        for _ in 0..limits::LATER_BUCKETS {
            later = self.next(later);
            let dir = self.settings.directory(name, later);
            if let Some(manifest) = manifest::load(&dir, name, later)? {
                let is_exact = later.start_ns == bucket.end_ns;
                let end = |p: &PartitionEntry| scan::End { commit: p.late_from, is_exact };
                return Ok(manifest.partitions.iter().map(|p| (p.partition, end(p))).collect());
            }
        }
        Ok(kafka::Ends::new())
    }

    fn progress_path(&self, held: &Held) -> PathBuf {
        held.state.join(format!("{}.progress", held.name))
    }

    /// The directory above all buckets.
    pub fn root(&self) -> &Path {
        &self.settings.root
    }
}
