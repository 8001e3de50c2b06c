//! `_SUCCESS`: what a finished bucket consists of; its presence says that the bucket is whole.
//!
//! ```json
//! {"content": {"format": 1, "name": "access", "start": "2026-11-21T07:00:00Z", …}, "sum": "9f86d081884c7d65…"}
//! ```
//!
//! `sum` is BLAKE3 (16 bytes, hexadecimal) of the content as serde_json writes it without spaces, so a file that
//! was touched in any value is noticed, and one that was only laid out anew is not. Nothing in it depends on
//! when or how often a bucket was made. The progress of `--follow` is sealed in the same way.
//!
//! Decoding never trusts a name: file names are one harmless part, `late/` apart.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::calendar::{Bucket, text_time};
use super::error::{BridgeError, io_error};
use super::limits::MANIFEST_BYTES_MAX;

/// The marker's name, as Hadoop's tools know it.
pub const MARKER: &str = "_SUCCESS";

/// The directory of late records inside of a bucket's.
pub(super) const LATE_DIR: &str = "late";

const FORMAT: u32 = 1;

/// A finished bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1.
    pub format: u32,
    /// The topic, or the name of the tree.
    pub name: String,
    /// The bucket's first instant.
    pub start: String,
    /// The first instant after it.
    pub end: String,
    /// 1, and one more for each time that late records were appended.
    pub generation: u64,
    /// Records in `files` and `added`.
    pub records: u64,
    /// The oldest of the partitions' watermarks: everything up to there has been seen.
    pub watermark: Option<String>,
    /// Offset ranges; empty for a tree.
    pub partitions: Vec<PartitionEntry>,
    /// What a tree's bucket was made of; empty for Kafka.
    pub producers: Vec<ProducerEntry>,
    /// The files, in the order of their records.
    pub files: Vec<FileEntry>,
    /// Records of earlier buckets that arrived while this one was open.
    pub late: LateEntry,
    /// Files of late records of earlier buckets, below `late/`.
    pub late_files: Vec<FileEntry>,
    /// Late records of this bucket that later buckets' runs have appended.
    pub added: Vec<Addition>,
}

/// One partition's part of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionEntry {
    /// Its number.
    pub partition: i32,
    /// The first offset with a time of the bucket or later: reading begins here.
    pub read_start: i64,
    /// Where the bucket before ended: records of earlier buckets are late from here on.
    pub late_from: i64,
    /// The first offset from which on all records belong to later buckets or are late.
    pub commit: i64,
    /// Where reading for the next bucket begins.
    pub next_read_start: i64,
    /// Records of the bucket.
    pub records: u64,
    /// Late records of earlier buckets between their commit and this one.
    pub late: u64,
    /// Records whose time could not be read or lay too far ahead, and was taken from the record's timestamp.
    pub time_from_record: u64,
    /// Offsets that retention had removed before they were read (`gaps = "count"`).
    pub missing: u64,
    /// The newest time seen.
    pub watermark: Option<String>,
    /// `watermark`: it passed the end and the lateness. `idle`: the partition was silent for long enough.
    pub closed_by: ClosedBy,
}

/// Why a partition's part is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClosedBy {
    /// The watermark passed.
    Watermark,
    /// Silence.
    Idle,
}

/// One producer's part of a tree's bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProducerEntry {
    /// Its directory.
    pub directory: String,
    /// Its done file, relative to it.
    pub done: String,
    /// The files that were read, relative to the directory, with their bytes on disk.
    pub files: Vec<(String, u64)>,
    /// Lines in them.
    pub records: u64,
}

/// What became of late records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateEntry {
    /// Written to `late/` here.
    pub side: u64,
    /// Appended to their own buckets.
    pub appended: u64,
    /// Dropped.
    pub dropped: u64,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name, relative to the bucket's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Records in it.
    pub records: u64,
    /// BLAKE3 of its bytes.
    pub hash: String,
    /// First and last offset of each partition in it, in its order: (partition, first, last).
    pub offsets: Vec<(i32, i64, i64)>,
}

/// Late records that were appended by the run of a later bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addition {
    /// The start of that later bucket.
    pub by: String,
    /// Its files here.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// An empty one.
    pub(super) fn new(name: &str, bucket: Bucket) -> Manifest {
        let end = super::calendar::time_text(bucket.end_ns);
        Manifest {
            format: FORMAT,
            name: name.into(),
            start: bucket.label(),
            end,
            generation: 1,
            records: 0,
            watermark: None,
            partitions: Vec::new(),
            producers: Vec::new(),
            files: Vec::new(),
            late: LateEntry::default(),
            late_files: Vec::new(),
            added: Vec::new(),
        }
    }

    /// Everything that a reader of it relies on.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("it has format {}, and this version of Flumen reads {FORMAT}", self.format));
        }
        let (start, end) = (text_time(&self.start), text_time(&self.end));
        if start.is_none() || end.is_none() || start >= end {
            return Err("its bucket is no span of time".into());
        }
        let mut seen = BTreeSet::new();
        for part in &self.partitions {
            let order = [0, part.read_start, part.next_read_start, part.commit];
            let late = [0, part.late_from, part.commit];
            if !order.is_sorted() || !late.is_sorted() || part.partition < 0 || !seen.insert(part.partition) {
                return Err(format!("the offsets of partition {} make no sense", part.partition));
            }
        }
        let mut names = BTreeSet::new();
        let added = self.added.iter().flat_map(|addition| &addition.files);
        let own = self.files.iter().chain(added).map(|file| (file.name.as_str(), &file.name));
        let late = self.late_files.iter().map(|file| {
            let inner = file.name.strip_prefix(LATE_DIR).and_then(|rest| rest.strip_prefix('/'));
            (inner.unwrap_or("/"), &file.name)
        });
        for (inner, name) in own.chain(late) {
            let harmless =
                !inner.is_empty() && !inner.starts_with(['.', '_']) && !inner.contains(['/', '\0']);
            if !harmless || !names.insert(name) {
                return Err(format!("{name:?} is not a file of it"));
            }
        }
        Ok(())
    }

    /// All files.
    pub fn all_files(&self) -> impl Iterator<Item = &FileEntry> {
        self.files
            .iter()
            .chain(&self.late_files)
            .chain(self.added.iter().flat_map(|addition| &addition.files))
    }
}

/// A value under a sum.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<T> {
    content: T,
    sum: String,
}

fn sum(content: &impl Serialize) -> Result<String, String> {
    let bytes = serde_json::to_vec(content).map_err(|error| error.to_string())?;
    Ok(blake3::hash(&bytes).to_hex().chars().take(32).collect())
}

/// The bytes of a sealed value.
pub(super) fn seal<T: Serialize>(content: &T) -> Result<Vec<u8>, String> {
    let sealed = Sealed { sum: sum(content)?, content };
    let mut bytes = serde_json::to_vec_pretty(&sealed).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A sealed value out of foreign bytes.
pub(super) fn unseal<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let sealed: Sealed<T> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if sum(&sealed.content)? != sealed.sum {
        return Err("its sum is wrong: it was changed after it was written".into());
    }
    Ok(sealed.content)
}

/// Reads a sealed file; `None`: there is none.
pub(super) fn load_sealed<T: Serialize + DeserializeOwned>(
    path: &Path,
    fix: &'static str,
) -> Result<Option<T>, BridgeError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io_error("cannot open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error("cannot read", path))?;
    let broken = |reason: String| BridgeError::Broken { path: path.to_owned(), reason, fix };
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(broken(format!("it has more than {MANIFEST_BYTES_MAX} bytes")));
    }
    unseal(&bytes).map(Some).map_err(broken)
}

const FIX: &str = "To make the bucket again from the brokers, remove the file";

/// The manifest of a bucket's directory; `None`: the bucket is not finished.
pub(super) fn load(dir: &Path, name: &str, bucket: Bucket) -> Result<Option<Manifest>, BridgeError> {
    let path = dir.join(MARKER);
    let Some(manifest) = load_sealed::<Manifest>(&path, FIX)? else { return Ok(None) };
    let broken = |reason: String, fix| BridgeError::Broken { path: path.clone(), reason, fix };
    manifest.check().map_err(|reason| broken(reason, FIX))?;
    if manifest.name != name || manifest.start != bucket.label() {
        let reason = format!(
            "it is of {} from {}, not of {name} from {}",
            manifest.name,
            manifest.start,
            bucket.label()
        );
        return Err(broken(reason, "Two bridges, or two buckets, share this directory: correct `path`"));
    }
    Ok(Some(manifest))
}

/// Files of a manifest that are not there, or not as long as they were.
pub(super) fn lacking(dir: &Path, manifest: &Manifest) -> Vec<PathBuf> {
    let is_there = |file: &FileEntry| {
        std::fs::symlink_metadata(dir.join(&file.name))
            .is_ok_and(|found| found.is_file() && found.len() == file.bytes)
    };
    manifest.all_files().filter(|file| !is_there(file)).map(|file| dir.join(&file.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Manifest {
        let bucket = Bucket { start_ns: 0, end_ns: 3_600_000_000_000 };
        let file = |name: &str| FileEntry {
            name: name.into(),
            bytes: 10,
            records: 2,
            hash: "ab".into(),
            offsets: vec![(0, 3, 9)],
        };
        let mut manifest = Manifest::new("access", bucket);
        manifest.partitions.push(PartitionEntry {
            partition: 0,
            read_start: 3,
            late_from: 4,
            commit: 12,
            next_read_start: 10,
            records: 2,
            late: 1,
            time_from_record: 0,
            missing: 0,
            watermark: Some("1970-01-01T01:00:00Z".into()),
            closed_by: ClosedBy::Watermark,
        });
        manifest.files.push(file("part-1.log"));
        manifest.late_files.push(file("late/part-1.log"));
        manifest.added.push(Addition { by: "x".into(), files: vec![file("late-x-part-1.log")] });
        manifest
    }

    fn loaded(bytes: &[u8]) -> Result<Option<Manifest>, BridgeError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MARKER), bytes).unwrap();
        load(dir.path(), "access", Bucket { start_ns: 0, end_ns: 3_600_000_000_000 })
    }

    #[test]
    fn comes_back_and_tells_what_is_lacking() {
        assert_eq!(loaded(&seal(&example()).unwrap()).unwrap(), Some(example()));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lacking(dir.path(), &example()).len(), 3);
        std::fs::write(dir.path().join("part-1.log"), "0123456789").unwrap();
        assert_eq!(lacking(dir.path(), &example()).len(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused_even_under_a_right_sum() {
        type Change = fn(&mut Manifest);
        let changes: [(Change, &str); 10] = [
            (|m| m.format = 2, "format 2"),
            (|m| m.end = "soon".into(), "span of time"),
            (|m| m.name = "other".into(), "it is of other"),
            (|m| m.start = "1970-01-01T00:30:00Z".into(), "it is of access from"),
            (|m| m.partitions[0].commit = 1, "partition 0 make no sense"),
            (|m| m.partitions[0].late_from = 13, "partition 0 make no sense"),
            (|m| m.files[0].name = "../../etc/passwd".into(), "not a file of it"),
            (|m| m.files[0].name = "_SUCCESS".into(), "not a file of it"),
            (|m| m.late_files[0].name = "late/..".into(), "not a file of it"),
            (|m| m.added[0].files[0].name = "part-1.log".into(), "not a file of it"),
        ];
        for (change, reason) in changes {
            let mut manifest = example();
            change(&mut manifest);
            let error = loaded(&seal(&manifest).unwrap()).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("Nothing was changed"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_manifest(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(loaded(&bytes).is_err());
        }

        #[test]
        fn a_changed_byte_is_noticed_or_changes_nothing(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = seal(&example()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(manifest) = loaded(&bytes) {
                prop_assert_eq!(manifest, Some(example()));
            }
        }

        #[test]
        fn a_cut_manifest_is_refused(at in any::<prop::sample::Index>()) {
            let bytes = seal(&example()).unwrap();
            // Without the newline at the end it is still whole.
            prop_assert!(loaded(&bytes[..at.index(bytes.len() - 1)]).is_err());
        }
    }
}
