//! What a file sink left: sequences of files in the order in which they were written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Files of one bucket, in the order of their running numbers.
pub type Sequences = BTreeMap<String, Vec<PathBuf>>;

/// The suffix of a file that is still written to.
const OPEN_SUFFIX: &str = ".open";

/// Whether a file is still written to.
#[must_use]
pub fn is_open(path: &Path) -> bool {
    path.to_string_lossy().ends_with(OPEN_SUFFIX)
}

/// All files below a directory, by bucket. Files may come and go while this looks.
///
/// # Errors
/// If the directory cannot be read.
pub fn sequences(dir: &Path) -> Result<Sequences> {
    let mut numbered: BTreeMap<String, Vec<(u64, PathBuf)>> = BTreeMap::new();
    for path in files(dir)? {
        let relative = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
        let (bucket, number) = bucket_and_number(&relative);
        numbered.entry(bucket).or_default().push((number, path));
    }
    let sorted = numbered.into_iter().map(|(bucket, mut files)| {
        files.sort();
        (bucket, files.into_iter().map(|(_, path)| path).collect())
    });
    Ok(sorted.collect())
}

/// `200-000012.log.open` is file 12 of bucket `200*.log`: the running number is the last group of digits
/// of the stem that follows a `-` or a `.`; a name without one is the only file of its bucket.
fn bucket_and_number(relative: &str) -> (String, u64) {
    let name = relative.strip_suffix(OPEN_SUFFIX).unwrap_or(relative);
    let name_start = name.rfind('/').map_or(0, |at| at + 1);
    let stem_end = name.get(name_start..).and_then(|file| file.find(".log").or_else(|| file.rfind('.')));
    let stem_end = stem_end.map_or(name.len(), |at| at + name_start);
    let (stem, extension) = name.split_at_checked(stem_end).unwrap_or((name, ""));
    let digits = stem.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (prefix, number) = stem.split_at_checked(stem.len() - digits).unwrap_or((stem, ""));
    match (prefix.ends_with(['-', '.']), number.parse()) {
        (true, Ok(number)) => (format!("{prefix}*{extension}"), number),
        _ => (name.to_owned(), 0),
    }
}

/// All plain files below a directory.
///
/// # Errors
/// If the directory cannot be read.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("cannot read {}", dir.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != "lost+found" {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Sum of the sizes of all files below a directory.
///
/// # Errors
/// If the directory cannot be read.
pub fn bytes(dir: &Path) -> Result<u64> {
    Ok(files(dir)?.iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum())
}

/// All lines of all buckets, bucket by bucket in order, without their newlines. The agent may be writing: of a line that is partly there
/// nothing is told.
///
/// # Errors
/// If a file cannot be read.
pub fn lines(dir: &Path) -> Result<Vec<Vec<u8>>> {
    // A file gets its final name just now: another look finds it.
    loop {
        if let Some(lines) = lines_now(dir)? {
            return Ok(lines);
        }
    }
}

/// `None`: a file is not there any more.
fn lines_now(dir: &Path) -> Result<Option<Vec<Vec<u8>>>> {
    let mut all = Vec::new();
    for path in sequences(dir)?.into_values().flatten() {
        let Some(text) = whole_lines(&path)? else { return Ok(None) };
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        all.extend(lines.map(|line| line.strip_suffix(b"\n").unwrap_or(line).to_vec()));
    }
    Ok(Some(all))
}

/// The last line of all, without its newline, of a directory with one bucket; `None`: there is none, or its file gets another name just
/// now. Only the end is read: an output that is looked at again and again may be long.
///
/// # Errors
/// If a file cannot be read.
pub fn last_line(dir: &Path) -> Result<Option<Vec<u8>>> {
    const END_BYTES: u64 = 64 << 10;
    let Some(path) = sequences(dir)?.into_values().flatten().next_back() else { return Ok(None) };
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let begin = file.metadata()?.len().saturating_sub(END_BYTES);
    file.seek(SeekFrom::Start(begin))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let mut lines = end.rsplit(|byte| *byte == b'\n').skip(1);
    Ok(lines.next().map(<[u8]>::to_vec))
}

/// The lines of a file that are wholly there, with their newlines; `None`: there is no such file.
///
/// # Errors
/// If it cannot be read.
pub fn whole_lines(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(mut text) => {
            text.truncate(memchr::memrchr(b'\n', &text).map_or(0, |end| end + 1));
            Ok(Some(text))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Counts lines of a growing output again and again, cheaply: what has its final name is counted once.
#[derive(Debug, Default)]
pub struct LineCounter {
    finals: BTreeMap<PathBuf, u64>,
}

impl LineCounter {
    /// Lines below a directory now.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn count(&mut self, dir: &Path) -> Result<u64> {
        let mut sum = 0;
        for path in files(dir)? {
            let is_open = is_open(&path);
            sum += match self.finals.get(&path) {
                Some(lines) => *lines,
                // It may get its final name between the listing and the look: counted next time.
                None => match count_lines(&path) {
                    Ok(lines) => {
                        if !is_open {
                            self.finals.insert(path, lines);
                        }
                        lines
                    }
                    Err(_) => 0,
                },
            };
        }
        Ok(sum)
    }
}

fn count_lines(path: &Path) -> Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut lines = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(lines);
        }
        let part = buffer.get(..count).unwrap_or_default();
        lines += memchr::memchr_iter(b'\n', part).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_line_that_is_being_written_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("all-1.log"), "one\n\n").unwrap();
        fs::write(dir.path().join("all-2.log.open"), "two\nthr").unwrap();
        fs::write(dir.path().join("all-3.log.open"), "fo").unwrap();
        assert_eq!(lines(dir.path()).unwrap(), [&b"one"[..], b"", b"two"]);
        assert_eq!(whole_lines(&dir.path().join("all-4.log")).unwrap(), None);
        assert_eq!(last_line(dir.path()).unwrap(), None);
        fs::write(dir.path().join("all-3.log.open"), "four\nfive\nsi").unwrap();
        assert_eq!(last_line(dir.path()).unwrap().unwrap(), b"five");
    }

    #[test]
    fn running_numbers() {
        let check = |name: &str, bucket: &str, number: u64| {
            assert_eq!(bucket_and_number(name), (bucket.to_owned(), number), "{name}");
        };
        check("all-000012.log.open", "all-*.log", 12);
        check("2026-11-21/04/200-7.log", "2026-11-21/04/200-*.log", 7);
        check("2026-11-21/04/200.7.log.zst", "2026-11-21/04/200.*.log.zst", 7);
        check("200.log", "200.log", 0);
        check("all.log.open", "all.log", 0);
    }
}
