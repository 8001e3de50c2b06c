//! Hashes of files that nobody touched since they were hashed, so that a start need not hash them again: a plugin in Python
//! has 19 MB, its compiled form 40 MB.
//!
//! A file is taken for the one that was hashed if device, inode, size and both of its times are the same, and the machine
//! has not been started anew. The time of the last change (ctime) is set by the kernel at every write and by nobody else: who
//! gets around it, as root or with the clock, could as well write this program's own file, which the kernel does not hash
//! either. Two things are left out:
//!
//! - times have a grain, so what changed less than [`limits::HASH_SETTLES`] before it was hashed is not remembered;
//! - after a power cut a file can hold other bytes at the same times, so what was remembered before a start of the machine
//!   is void.
//!
//! They are kept in a file of the compile cache, which is private to this user, and read once:
//!
//! ```text
//! 8 bytes       "FLUMENH1"
//! 32 bytes      BLAKE3 of the id of this start of the machine
//! 88 bytes each device, inode, size, seconds and nanoseconds of both times, as little-endian i64; BLAKE3
//! 32 bytes      BLAKE3 of all before
//! ```
//!
//! How it fails: a file that is damaged, of another start or of another user is one that remembers nothing; what two processes
//! write at the same time is what one of them knows. Either costs time. A machine that does not tell its starts apart
//! remembers nothing from one process to the next.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::cache::{open_private, write_private};
use crate::file::Fingerprint;
use crate::limits;

const NAME: &str = "hashes";
const MAGIC: &[u8; 8] = b"FLUMENH1";
const HEAD_BYTES: usize = 8 + 32;
const RECORD_BYTES: usize = 7 * 8 + 32;
const READ_BYTES: usize = 1 << 20;
/// Linux names each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is known of files, the newest last.
#[derive(Debug)]
pub(crate) struct Hashes {
    path: PathBuf,
    boot: Option<blake3::Hash>,
    settles: Duration,
    known: Mutex<Vec<(Fingerprint, blake3::Hash)>>,
    /// Files that were hashed.
    made: AtomicU64,
}

impl Hashes {
    /// Those that are kept in a directory that is private to this user.
    pub(crate) fn open(dir: &Path) -> Hashes {
        let boot = fs::read(BOOT_ID).ok().map(|id| blake3::hash(&id));
        Hashes::open_with(dir, boot, limits::HASH_SETTLES)
    }

    fn open_with(dir: &Path, boot: Option<blake3::Hash>, settles: Duration) -> Hashes {
        let path = dir.join(NAME);
        let kept = boot.and_then(|boot| parse(&read(&path)?, &boot)).unwrap_or_default();
        Hashes { path, boot, settles, known: Mutex::new(kept), made: AtomicU64::new(0) }
    }

    /// The hash of an open file, if it was hashed as it is now.
    pub(crate) fn known(&self, file: &File) -> Option<blake3::Hash> {
        let now = Fingerprint::from(&file.metadata().ok()?);
        self.known.lock().iter().find(|(known, _)| *known == now).map(|(_, hash)| *hash)
    }

    /// Hashes an open file, from its beginning and this many bytes, and remembers it.
    pub(crate) fn hash(&self, file: &mut File, bytes: u64) -> io::Result<blake3::Hash> {
        let seen = self.look(file);
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut rest = file.take(bytes);
        loop {
            let read = rest.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(buffer.get(..read).unwrap_or_default());
        }
        let hash = hasher.finalize();
        self.remember(seen, file, hash);
        Ok(hash)
    }

    /// Files that were hashed so far, because they were not known.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Knows nothing any more: for measuring.
    pub(crate) fn forget(&self) {
        self.known.lock().clear();
    }

    /// What a file is before it is read, if that may be remembered.
    pub(crate) fn look(&self, file: &File) -> Option<Fingerprint> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let seen = Fingerprint::from(&file.metadata().ok()?);
        let settled = i64::try_from(now.checked_sub(self.settles)?.as_secs()).ok()?;
        seen.is_older_than(settled).then_some(seen)
    }

    /// Remembers the hash of what was read since [`Self::look`], unless the file changed meanwhile.
    pub(crate) fn remember(&self, seen: Option<Fingerprint>, file: &File, hash: blake3::Hash) {
        self.made.fetch_add(1, Ordering::Relaxed);
        let now = file.metadata().ok().map(|metadata| Fingerprint::from(&metadata));
        let Some(seen) = seen.filter(|seen| now == Some(*seen)) else { return };
        let mut known = self.known.lock();
        known.retain(|(file, _)| !file.is_same_file(&seen));
        known.push((seen, hash));
        let surplus = known.len().saturating_sub(limits::HASHES_MAX);
        known.drain(..surplus);
        if let Some(boot) = &self.boot {
            // What cannot be kept is hashed again by the next process.
            write_private(&self.path, &[&bytes_of(&known, boot)]).ok();
        }
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = HEAD_BYTES + limits::HASHES_MAX * RECORD_BYTES + 32;
    open_private(path).ok()?.take(most as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn bytes_of(known: &[(Fingerprint, blake3::Hash)], boot: &blake3::Hash) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(boot.as_bytes());
    for (fingerprint, hash) in known {
        fingerprint.numbers().iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out.extend_from_slice(hash.as_bytes());
    }
    let check = blake3::hash(&out);
    out.extend_from_slice(check.as_bytes());
    out
}

fn parse(bytes: &[u8], boot: &blake3::Hash) -> Option<Vec<(Fingerprint, blake3::Hash)>> {
    let (rest, check) = bytes.split_last_chunk::<32>()?;
    let (head, records) = rest.split_at_checked(HEAD_BYTES)?;
    let is_ours = head.get(..8)? == MAGIC && head.get(8..)? == boot.as_bytes();
    if !is_ours || blake3::hash(rest) != *check || !records.len().is_multiple_of(RECORD_BYTES) {
        return None;
    }
    records.chunks_exact(RECORD_BYTES).map(record).collect()
}

fn record(bytes: &[u8]) -> Option<(Fingerprint, blake3::Hash)> {
    let (numbers, hash) = bytes.split_last_chunk::<32>()?;
    let mut out = [0; 7];
    for (number, bytes) in out.iter_mut().zip(numbers.chunks_exact(8)) {
        *number = i64::from_le_bytes(bytes.try_into().ok()?);
    }
    Some((Fingerprint::from_numbers(out), (*hash).into()))
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn of(hashes: &Hashes, path: &Path) -> (Option<blake3::Hash>, blake3::Hash) {
        let mut file = File::open(path).unwrap();
        let known = hashes.known(&file);
        file.rewind().unwrap();
        (known, hashes.hash(&mut file, u64::MAX).unwrap())
    }

    #[test]
    fn a_file_is_known_until_it_is_touched_or_the_machine_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"first").unwrap();
        let boot = |name: &str| Some(blake3::hash(name.as_bytes()));
        let open = |name: &str| Hashes::open_with(dir.path(), boot(name), Duration::ZERO);
        // What changed within this second is not settled, whatever the number.
        std::thread::sleep(Duration::from_secs(1));

        let hashes = open("one");
        assert_eq!(of(&hashes, &path), (None, blake3::hash(b"first")));
        for hashes in [&hashes, &open("one")] {
            assert_eq!(of(hashes, &path).0, Some(blake3::hash(b"first")));
        }
        assert_eq!(of(&open("another"), &path).0, None);
        fs::remove_file(dir.path().join(NAME)).unwrap();
        of(&open("one"), &path);
        let unnamed = Hashes::open_with(dir.path(), None, Duration::ZERO);
        assert_eq!(of(&unnamed, &path).0, None, "of no known start of the machine");

        // The same size, and the same time of modification.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, b"other").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert_eq!(of(&open("one"), &path), (None, blake3::hash(b"other")));
    }

    #[test]
    fn what_changed_a_moment_ago_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"first").unwrap();
        // A moment that is longer than this thread may stand still.
        let boot = Some(blake3::hash(b"one"));
        let hashes = Hashes::open_with(dir.path(), boot, Duration::from_secs(3_600));
        of(&hashes, &path);
        assert_eq!(of(&hashes, &path).0, None);
    }

    #[test]
    fn a_damaged_file_remembers_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"first").unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let boot = blake3::hash(b"one");
        of(&Hashes::open_with(dir.path(), Some(boot), Duration::ZERO), &path);
        let good = fs::read(dir.path().join(NAME)).unwrap();
        assert_eq!(parse(&good, &boot).unwrap().len(), 1);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bad, &boot), None);
        }
        (0..good.len()).for_each(|bytes| assert_eq!(parse(&good[..bytes], &boot), None));
    }
}
