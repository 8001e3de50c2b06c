//! How many files a bucket gets, and which blocks go into which.
//!
//! One file for each partition, cut at `file_size`; or with `files_per_bucket` the partitions one after the other in
//! that many files of about the same size (fewer if there are fewer blocks: a block is never cut). Names and
//! contents depend only on the blocks.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::error::{BridgeError, io_error};
use super::faults::About;
use super::manifest::FileEntry;
use super::options::Output;
use super::spool::{Block, Spooled};

/// Bytes that are copied at once.
const COPY_BYTES: usize = 256 << 10;

/// A file that is whole and durable, but not in its place yet.
#[derive(Debug)]
pub(super) struct Made {
    pub path: PathBuf,
    pub entry: FileEntry,
}

/// Blocks of one file: spool and block numbers.
type Group = Vec<(usize, usize)>;

/// Makes the files of some spools. `prefix` begins their names.
pub(super) fn arrange(
    spools: &[Spooled],
    output: &Output,
    work: &Path,
    prefix: &str,
) -> Result<Vec<Made>, BridgeError> {
    let blocks: Vec<&[Block]> = spools.iter().map(|spool| spool.blocks.as_slice()).collect();
    let groups = match output.files_per_bucket {
        Some(files) => evenly(&blocks, files),
        None => per_partition(&blocks, output.file_bytes.unwrap_or(u64::MAX)),
    };
    let count = groups.len();
    let mut made = Vec::with_capacity(count);
    for (number, group) in groups.iter().enumerate() {
        let ranges = ranges(spools, group);
        let stem = match (output.files_per_bucket, ranges.first()) {
            (None, Some((partition, first, last))) => format!("p{partition:05}-{first:020}-{last:020}"),
            _ => format!("{number:05}-of-{count:05}"),
        };
        let name = format!("{prefix}{stem}{}", output.suffix());
        let of = |sum: fn(&Block) -> u64| -> u64 {
            group.iter().filter_map(|(spool, block)| blocks.get(*spool)?.get(*block)).map(sum).sum()
        };
        let whole = match group.first().and_then(|(spool, _)| Some((*spool, spools.get(*spool)?))) {
            Some((at, spool)) if group.len() == spool.blocks.len() && group.iter().all(|(s, _)| *s == at) => {
                Some(spool)
            }
            _ => None,
        };
        let (path, hash) = match whole {
            Some(spool) => (spool.path.clone(), spool.hash.clone()),
            None => {
                let path = work.join(&name);
                let hash = copy(spools, group, &path)?;
                (path, hash)
            }
        };
        let entry = FileEntry {
            name,
            bytes: of(|block| block.bytes),
            records: of(|block| block.records),
            hash,
            offsets: ranges,
        };
        made.push(Made { path, entry });
    }
    Ok(made)
}

fn per_partition(spools: &[&[Block]], file_bytes: u64) -> Vec<Group> {
    let mut groups = Vec::new();
    for (spool, blocks) in spools.iter().enumerate() {
        let (mut group, mut bytes) = (Group::new(), 0);
        for (number, block) in blocks.iter().enumerate() {
            group.push((spool, number));
            bytes += block.bytes;
            if bytes >= file_bytes {
                groups.push(std::mem::take(&mut group));
                bytes = 0;
            }
        }
        if !group.is_empty() {
            groups.push(group);
        }
    }
    groups
}

fn evenly(spools: &[&[Block]], files: u64) -> Vec<Group> {
    let total: u64 = spools.iter().flat_map(|blocks| blocks.iter()).map(|block| block.bytes).sum();
    let (mut groups, mut group, mut bytes) = (Vec::new(), Group::new(), 0u64);
    for (spool, blocks) in spools.iter().enumerate() {
        for (number, block) in blocks.iter().enumerate() {
            group.push((spool, number));
            bytes += block.bytes;
            let due = u128::from(total) * (groups.len() as u128 + 1);
            if u128::from(bytes) * u128::from(files) >= due {
                groups.push(std::mem::take(&mut group));
            }
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// The offsets of a file, one range for each partition that follows another.
fn ranges(spools: &[Spooled], group: &Group) -> Vec<(i32, i64, i64)> {
    let mut ranges: Vec<(i32, i64, i64)> = Vec::new();
    for (spool, block) in group {
        let Some((spool, block)) = spools.get(*spool).and_then(|s| Some((s, s.blocks.get(*block)?))) else {
            continue;
        };
        match ranges.last_mut() {
            Some((partition, _, last)) if *partition == spool.partition => *last = block.last,
            _ => ranges.push((spool.partition, block.first, block.last)),
        }
    }
    ranges
}

/// Blocks of a group into a new file, durably. Gives its BLAKE3.
fn copy(spools: &[Spooled], group: &Group, path: &Path) -> Result<String, BridgeError> {
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    let mut out = About::File.step("created", create).map_err(io_error("cannot make", path))?;
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0; COPY_BYTES];
    for run in group.chunk_by(|a, b| a.0 == b.0) {
        let Some((first, _)) = run.first().map(|(spool, block)| (*block, spool)) else { continue };
        let Some(spool) = run.first().and_then(|(spool, _)| spools.get(*spool)) else { continue };
        let length = |blocks: &[Block]| -> u64 { blocks.iter().map(|block| block.bytes).sum() };
        let skip = length(spool.blocks.get(..first).unwrap_or_default());
        let take = length(spool.blocks.get(first..first + run.len()).unwrap_or_default());
        let reading = io_error("cannot read", &spool.path);
        let mut copy = || -> std::io::Result<()> {
            let mut file = File::open(&spool.path)?;
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(skip))?;
            let mut file = file.take(take);
            loop {
                let count = file.read(&mut buffer)?;
                let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                    return Ok(());
                };
                hash.update(bytes);
                About::File.step("written", || out.write_all(bytes))?;
            }
        };
        copy().map_err(reading)?;
    }
    About::File.step("synced", || out.sync_all()).map_err(io_error("cannot sync", path))?;
    Ok(hash.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks(sizes: &[u64]) -> Vec<Block> {
        sizes.iter().map(|bytes| Block { bytes: *bytes, records: 1, first: 0, last: 0 }).collect()
    }

    #[test]
    fn files_of_a_partition_are_cut_at_their_size() {
        let (a, b) = (blocks(&[5, 5, 5]), blocks(&[20, 1]));
        assert_eq!(per_partition(&[&a, &b], u64::MAX), [vec![(0, 0), (0, 1), (0, 2)], vec![(1, 0), (1, 1)]]);
        assert_eq!(
            per_partition(&[&a, &b], 10),
            [vec![(0, 0), (0, 1)], vec![(0, 2)], vec![(1, 0)], vec![(1, 1)]]
        );
        assert_eq!(evenly(&[&a, &b], 1).len(), 1);
        assert_eq!(evenly(&[&a, &[], &b], 2), [vec![(0, 0), (0, 1), (0, 2), (2, 0)], vec![(2, 1)]]);
        assert_eq!(evenly(&[&[], &[]], 3), [] as [Group; 0]);
    }

    proptest! {
        #[test]
        fn every_block_is_in_one_file_in_order(
            sizes in prop::collection::vec(prop::collection::vec(1u64..50, 0..6), 0..5), files in 1u64..7
        ) {
            let spools: Vec<Vec<Block>> = sizes.iter().map(|sizes| blocks(sizes)).collect();
            let views: Vec<&[Block]> = spools.iter().map(Vec::as_slice).collect();
            let all: Group = views.iter().enumerate().flat_map(|(s, blocks)| (0..blocks.len()).map(move |b| (s, b))).collect();
            let groups = evenly(&views, files);
            prop_assert!(groups.len() as u64 <= files && groups.len() as u64 <= all.len() as u64);
            prop_assert_eq!(groups.concat(), all.clone());
            prop_assert_eq!(per_partition(&views, files * 10).concat(), all);
        }
    }
}
