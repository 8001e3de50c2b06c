//! Where a pipeline's events may be beside its journal: the failover that it was started with last is on record, so that an edit
//! before a restart does not leave events behind there. A reload knows the plan before ([`crate::reload`]); a start does not.
//!
//! The record is the file [`NAME`] in the pipeline's directory: the kind of the failover, and the directory of its journal, a line each.
//! It is written before anything can be in the failover, and removed by a start without one, which has seen that nothing is there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use flumen_journal::failover::{self, SecondaryKind};
use flumen_journal::faults::{self, Class, Point, Step, point};
use flumen_journal::inspect::Inspector;
use flumen_journal::{Disk, Keys, OsDisk};
use flumen_pipeline::BuildError;
use flumen_pipeline::plan::PipelinePlan;

use crate::agent::JOURNAL_DIR;

/// The file, in the pipeline's directory.
pub const NAME: &str = "failover";

/// Before the names of the steps of the record.
pub const PLACE: &str = "failover-record";

/// Places at which a test may kill the process, behind [`PLACE`].
pub const POINTS: &[Point] = &[
    point("directory.created", "the pipeline's directory is there and durable"),
    point("file.created", "the record that the pipeline has a failover has its unfinished name"),
    point("file.written", "it is written"),
    point("file.synced", "and durable"),
    point("file.named", "it has its name; nothing is in the failover yet"),
    point("file.name-synced", "that name is durable"),
    point("file.removed", "without a failover: the record of the one before is gone"),
    point("file.removal-synced", "and durably"),
];

/// A failover's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Secondary {
    kind: SecondaryKind,
    dir: PathBuf,
}

fn of(plan: &PipelinePlan, pipeline_dir: &Path) -> Option<Secondary> {
    // All channels have the same.
    let failover = plan.channels.iter().find_map(|channel| channel.failover.as_ref())?;
    let dir = match &failover.dir {
        Some(dir) => std::path::absolute(dir).unwrap_or_else(|_| dir.clone()).join(&plan.name),
        // That of a Kafka channel is the journal on this machine.
        None => pipeline_dir.join(JOURNAL_DIR),
    };
    Some(Secondary { kind: failover.kind, dir })
}

/// What a start with this plan would leave behind in the failover that the pipeline had before. With the name of a channel.
pub fn left_behind(plan: &PipelinePlan, pipeline_dir: &Path) -> Option<(String, BuildError)> {
    let before = read(&pipeline_dir.join(NAME)).ok()??;
    let now = of(plan, pipeline_dir);
    let goes_on = |now: &Secondary| {
        now.dir == before.dir && (now.kind == before.kind || now.kind == SecondaryKind::Memory)
    };
    if now.as_ref().is_some_and(goes_on) {
        return None;
    }
    let (dir, kind) = (before.dir.display(), before.kind.word());
    let (reason, fix) = match is_open(&before.dir, &plan.journal.keys) {
        Ok(false) => return None,
        Ok(true) => (
            format!("the failover that it had, of kind `{kind}` in {dir}, holds events and the positions of the sources"),
            "give the channel that `failover` again, and take it out when `flumen status` says that events go to the channel's own place".to_owned(),
        ),
        Err(error) => (
            format!("the failover that it had, of kind `{kind}` in {dir}, may hold events, and cannot be looked at: {error}"),
            format!(
                "bring that directory back; if it is gone for good, with what was in it, remove {}",
                pipeline_dir.join(NAME).display()
            ),
        ),
    };
    let channel = plan.channels.first().map(|channel| channel.name.clone()).unwrap_or_default();
    Some((channel, BuildError::new("failover", reason, fix)))
}

/// Puts the failover of this plan on record, or takes off that there was one.
pub fn note(plan: &PipelinePlan, pipeline_dir: &Path) -> anyhow::Result<()> {
    let path = pipeline_dir.join(NAME);
    write(&path, of(plan, pipeline_dir))
        .with_context(|| format!("the record of a failover, {}", path.display()))
}

fn write(path: &Path, now: Option<Secondary>) -> io::Result<()> {
    if read(path)? == now {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    let Some(now) = now else {
        step("file.removed", Class::Name, || fs::remove_file(path))?;
        return step("file.removal-synced", Class::Sync, || OsDisk.sync_dir(dir));
    };
    if !dir.is_dir() {
        // Nobody else makes its name durable: the journals find it there.
        step("directory.created", Class::Name, || OsDisk.create_dir(dir))?;
    }
    let fresh = path.with_extension("new");
    let text = [now.kind.word().as_bytes(), b"\n", now.dir.as_os_str().as_bytes(), b"\n"].concat();
    let mut file = step("file.created", Class::Name, || File::create(&fresh))?;
    step("file.written", Class::Write, || file.write_all(&text))?;
    step("file.synced", Class::Sync, || file.sync_all())?;
    step("file.named", Class::Name, || fs::rename(&fresh, path))?;
    step("file.name-synced", Class::Sync, || OsDisk.sync_dir(dir))
}

/// A call of the disk, which a test may refuse or kill behind.
fn step<T>(done: &str, class: Class, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let grows = matches!(done, "directory.created" | "file.created" | "file.written");
    faults::do_step(|| Step { name: format!("{PLACE}.{done}"), class, grows }, call)
}

fn read(path: &Path) -> io::Result<Option<Secondary>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let mut lines = text.splitn(2, |byte| *byte == b'\n');
    let kinds = [SecondaryKind::File, SecondaryKind::Memory];
    let kind = lines.next().and_then(|word| kinds.into_iter().find(|kind| kind.word().as_bytes() == word));
    let dir = lines.next().map(|dir| PathBuf::from(std::ffi::OsString::from_vec(dir.to_vec())));
    Ok(kind.zip(dir).map(|(kind, dir)| Secondary { kind, dir }))
}

/// Whether events go to the failover in this directory, or went when its agent ended.
fn is_open(dir: &Path, keys: &Keys) -> Result<bool, String> {
    let files = Inspector::open(Arc::new(OsDisk), dir).map(|files| files.with_keys(keys));
    let present = files.and_then(|files| files.present()).map_err(|error| error.to_string())?;
    Ok(present.positions.contains_key(failover::STATE))
}
