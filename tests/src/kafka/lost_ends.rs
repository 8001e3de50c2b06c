//! Takes the end of the last transaction out of a partition, as a broker does that dies at the wrong moment
//! (KAFKA-20734): the coordinator takes it for done, the partition has never heard of it.
//!
//! The broker has to be killed before: it makes its indexes anew from the shorter log. Format of a batch of records:
//! `org.apache.kafka.common.record.DefaultRecordBatch`, version 2.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::client::TxnEnd;

/// The bit of a batch's attributes that says: this is the end of a transaction.
const CONTROL: u16 = 1 << 5;
/// Bytes of a batch before its first record.
const BATCH_HEAD: usize = 61;

/// Cuts the last batch of a partition's log off if it is the end of a transaction, and says which. `None`: it is none, or
/// there is no such partition.
///
/// # Errors
/// If the files cannot be read or changed.
pub fn cut(broker_dir: &Path, topic: &str, partition: i32) -> Result<Option<TxnEnd>> {
    let dir = broker_dir.join("data").join(format!("{topic}-{partition}"));
    if !dir.is_dir() {
        return Ok(None);
    }
    let files: Vec<PathBuf> = fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let has =
        |path: &&PathBuf, ends: &[&str]| ends.iter().any(|end| path.extension().is_some_and(|e| e == *end));
    let log = files.iter().filter(|path| has(path, &["log"])).max().context("a partition without a log")?;
    let bytes = fs::read(log)?;
    let (mut at, mut last) = (0, None);
    while let Some(batch) = batch(&bytes, at) {
        (last, at) = (Some(at), at + batch.len());
    }
    let Some((last, batch)) = last.and_then(|last| Some((last, batch(&bytes, last)?))) else {
        return Ok(None);
    };
    let Some(end) = end(batch)? else { return Ok(None) };
    OpenOptions::new().write(true).open(log)?.set_len(last as u64)?;
    for stale in files.iter().filter(|path| has(path, &["index", "timeindex", "txnindex", "snapshot"])) {
        fs::remove_file(stale)?;
    }
    Ok(Some(end))
}

/// The batch that begins here; `None`: nothing, or what is preallocated.
fn batch(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = bytes.get(at + 8..at + 12)?.try_into().ok().map(i32::from_be_bytes)?;
    let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
    bytes.get(at..at + 12 + length)
}

/// Which end a batch is. A control record: length, attributes, two deltas and the key's length in one byte each, then version
/// and type in two.
fn end(batch: &[u8]) -> Result<Option<TxnEnd>> {
    let attributes = batch.get(21..23).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes);
    if attributes.context("a batch without attributes")? & CONTROL == 0 {
        return Ok(None);
    }
    match batch.get(BATCH_HEAD + 7..BATCH_HEAD + 9) {
        Some([0, 0]) => Ok(Some(TxnEnd::Abort)),
        Some([0, 1]) => Ok(Some(TxnEnd::Commit)),
        other => bail!("a control record of type {other:?}"),
    }
}

/// Cuts the end of the last transaction out of all partitions of these topics; how many of each end.
///
/// # Errors
/// As [`cut`].
pub fn cut_all(broker_dir: &Path, topics: &[&str]) -> Result<(usize, usize)> {
    let mut count = (0, 0);
    for topic in topics {
        for partition in 0..64 {
            match cut(broker_dir, topic, partition)? {
                Some(TxnEnd::Commit) => count.0 += 1,
                Some(_) => count.1 += 1,
                None => {}
            }
        }
    }
    Ok(count)
}
