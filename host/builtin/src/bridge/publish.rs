//! From spools to a finished bucket. The order makes every crash harmless:
//!
//! 1. All files are whole and synced in the work directory.
//! 2. What a run that did not live to finish left in the bucket's directory is removed.
//! 3. Files get their names; directories are synced.
//! 4. Late records are appended to their own buckets: files first, then that bucket's `_SUCCESS` of the next generation,
//!    which names the bucket by whose run it was done. A run that is repeated finds its own addition and leaves it, or
//!    replaces it while its own `_SUCCESS` is not there.
//! 5. `_SUCCESS`, last. Before it the bucket is not finished and the run is repeated from the same offsets; after it
//!    nothing is done again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use super::arrange::{Made, arrange};
use super::calendar::Bucket;
use super::durable::{make_directories, remove, rename, replace, sync_directory};
use super::error::{BridgeError, io_error};
use super::faults::About;
use super::manifest::{self, Addition, FileEntry, LATE_DIR, MARKER, Manifest};
use super::options::Settings;
use super::spool::Spooled;

/// How the names of a bucket's own files begin.
const PART: &str = "part-";

/// What a run has read.
#[derive(Default)]
pub(super) struct Parts {
    /// Records of the bucket, by partition.
    pub own: Vec<Spooled>,
    /// Late records for `late/`, by partition.
    pub side: Vec<Spooled>,
    /// Late records for their own buckets, by their start, by partition.
    pub append: BTreeMap<i64, Vec<Spooled>>,
}

/// Publishes a bucket. `again`: it was finished before, and files of it are missing.
pub(super) fn publish(
    settings: &Settings,
    work: &Path,
    bucket: Bucket,
    mut manifest: Manifest,
    parts: &Parts,
    again: Option<Manifest>,
) -> Result<Manifest, BridgeError> {
    let dir = settings.directory(&manifest.name, bucket);
    let side_work = work.join("side");
    make_directories(&side_work)?;
    let own = arrange(&parts.own, &settings.output, work, PART)?;
    let side = arrange(&parts.side, &settings.output, &side_work, PART)?;
    let entries = |made: &[Made]| -> Vec<FileEntry> { made.iter().map(|made| made.entry.clone()).collect() };
    manifest.files = entries(&own);
    manifest.late_files = entries(&side);
    for file in &mut manifest.late_files {
        file.name = format!("{LATE_DIR}/{}", file.name);
    }
    if let Some(before) = again {
        check_same(&dir, &before, &manifest)?;
        place(&own, &dir, About::File)?;
        place(&side, &dir.join(LATE_DIR), About::Late)?;
        return Ok(before);
    }
    let additions = additions(settings, work, bucket, &manifest.name, parts)?;
    clean(&dir, PART, &own, About::Stale)?;
    clean(&dir.join(LATE_DIR), PART, &side, About::Stale)?;
    make_directories(&dir)?;
    place(&own, &dir, About::File)?;
    place(&side, &dir.join(LATE_DIR), About::Late)?;
    for (other, made, target) in additions {
        append(settings, other, &made, target, bucket)?;
    }
    manifest.records = manifest.files.iter().map(|file| file.records).sum();
    write(&dir, &manifest, About::Success)?;
    Ok(manifest)
}

fn write(dir: &Path, manifest: &Manifest, about: About) -> Result<(), BridgeError> {
    let path = dir.join(MARKER);
    let bytes = manifest::seal(manifest)
        .map_err(|reason| io_error("cannot write", &path)(std::io::Error::other(reason)))?;
    replace(&path, &bytes, about)
}

/// What was read again must be what the bucket had: anything else is for a person to decide.
fn check_same(dir: &Path, before: &Manifest, now: &Manifest) -> Result<(), BridgeError> {
    let lacking = manifest::lacking(dir, before);
    let mut added = before.added.iter().flat_map(|addition| &addition.files).map(|file| dir.join(&file.name));
    if let Some(path) = added.find(|path| lacking.contains(path)) {
        return Err(BridgeError::Differs(format!(
            "{} is missing or cut: late records that the run of a later bucket appended, which that run alone can make again. Nothing was \
             changed. Put the file back, or remove it from {}",
            path.display(),
            dir.join(MARKER).display()
        )));
    }
    if before.files != now.files || before.late_files != now.late_files {
        return Err(BridgeError::Differs(format!(
            "files of {} are missing, and what was read again is not what they held: the settings of files have changed, or records \
             are gone from the brokers. Nothing was changed. To make the bucket anew, remove {}",
            dir.display(),
            dir.join(MARKER).display()
        )));
    }
    Ok(())
}

/// Removes files of ours that no `_SUCCESS` vouches for: those whose names begin with `prefix`. Says whether there were some.
fn clean(dir: &Path, prefix: &str, keep: &[Made], about: About) -> Result<bool, BridgeError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(io_error("cannot list", dir))?,
    };
    let mut has_removed = false;
    for entry in entries {
        let name = entry.map_err(io_error("cannot list", dir))?.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(prefix));
        if is_ours && !keep.iter().any(|made| OsStr::new(&made.entry.name) == name) {
            remove(&dir.join(name), about)?;
            has_removed = true;
        }
    }
    Ok(has_removed)
}

fn place(files: &[Made], dir: &Path, about: About) -> Result<(), BridgeError> {
    if files.is_empty() {
        return Ok(());
    }
    make_directories(dir)?;
    for made in files {
        rename(&made.path, &dir.join(&made.entry.name), about, "placed")?;
    }
    sync_directory(dir, about, "place-synced")
}

type Target = (Bucket, Vec<Made>, Manifest);

/// The files to append to other buckets. All is checked before anything is placed.
fn additions(
    settings: &Settings,
    work: &Path,
    bucket: Bucket,
    name: &str,
    parts: &Parts,
) -> Result<Vec<Target>, BridgeError> {
    let mut targets = Vec::new();
    for (start_ns, spools) in &parts.append {
        let other = settings.calendar.bucket(*start_ns);
        let dir = settings.directory(name, other);
        let Some(target) = manifest::load(&dir, name, other)? else { continue };
        let work = work.join(format!("append-{start_ns}"));
        make_directories(&work)?;
        targets.push((other, arrange(spools, &settings.output, &work, &late_prefix(bucket))?, target));
    }
    Ok(targets)
}

/// How the names of late records' files begin in their own bucket: of those that came in the run of this one.
fn late_prefix(by: Bucket) -> String {
    let by: String = by.label().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    format!("late-{by}-")
}

fn append(
    settings: &Settings,
    other: Bucket,
    made: &[Made],
    mut target: Manifest,
    by: Bucket,
) -> Result<(), BridgeError> {
    let dir = settings.directory(&target.name, other);
    let addition = Addition { by: by.label(), files: made.iter().map(|made| made.entry.clone()).collect() };
    let earlier = target.added.iter().position(|earlier| earlier.by == addition.by);
    let earlier = earlier.map(|at| target.added.remove(at));
    // If an earlier attempt came this far its files may have been removed since: they are the same.
    place(made, &dir, About::Addition)?;
    if earlier.as_ref() != Some(&addition) {
        target.added.push(addition);
        target.added.sort_by(|a, b| a.by.cmp(&b.by));
        target.generation += 1;
        let added = target.added.iter().flat_map(|addition| &addition.files);
        target.records = target.files.iter().chain(added).map(|file| file.records).sum();
        write(&dir, &target, About::Addition)?;
    }
    // Behind the `_SUCCESS` that no longer names them; an attempt that ended between the two left them here.
    if clean(&dir, &late_prefix(by), made, About::Addition)? {
        sync_directory(&dir, About::Addition, "removal-synced")?;
    }
    Ok(())
}
