//! Looks for known files that no glob finds: under another name, in another directory, on a device that
//! has another number than before.
//!
//! They are recognised by inode. Where: at the path itself; where the kernel says that an open file is, or
//! where it was opened; then in the file's directory, in those that links at its path lead to, and in those
//! of the globs. A file that is in none of them is gone. It is looked for again when one of these could not
//! be read, and when its own directory is another one than it was (a disk was mounted). A file that was
//! moved to any other directory while it was closed is not found: that is said where it may have an unread
//! end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::Metadata;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use flumen_pipeline::Metric;

use super::file::{FileId, Presence, TailFile};
use super::input::Input;
use super::limits::LINKS_MAX;
use super::position::Inode;
use super::tailer::Tailer;

/// A directory, as device and inode; none if there is none now.
type Home = Option<(u64, u64)>;

/// What is looked for, each with its directory as it was before the search.
type Lost = BTreeMap<FileId, Home>;

impl Tailer<'_> {
    /// Looks for files that the walk did not find.
    pub(super) fn locate(&mut self, missing: &[FileId], directories: &BTreeSet<PathBuf>) {
        let mut lost = Lost::new();
        for id in missing {
            let Some(file) = self.files.get(id) else { continue };
            if let Some((path, meta)) = self.at_hand(file) {
                self.located(*id, path, &meta);
                continue;
            }
            let home = home(file);
            let is_gone = matches!(file.presence, Presence::Gone(_));
            if !(is_gone && file.looked_for && file.home == home) {
                lost.insert(*id, home);
            }
        }
        if lost.is_empty() {
            return;
        }
        let is_whole = self.search(&mut lost, directories);
        for (id, home) in lost {
            self.lose(id, home, is_whole);
        }
    }

    /// Where a file is, if that needs no search.
    fn at_hand(&self, file: &TailFile) -> Option<(PathBuf, Metadata)> {
        let at = |path: &Path| {
            let meta = std::fs::symlink_metadata(path).ok()?;
            let inode = Inode::of(&meta);
            let is_it = inode.may_be(&file.inode) || self.is_renumbered(file, &inode, true);
            is_it.then(|| (path.to_path_buf(), meta))
        };
        at(&file.path).or_else(|| moved_to(file)).or_else(|| at(file.real.as_deref()?))
    }

    /// Looks for inodes in the directories where they may be. False if not all of these could be read.
    fn search(&mut self, lost: &mut Lost, directories: &BTreeSet<PathBuf>) -> bool {
        let mut by_number: HashMap<u64, Vec<FileId>> = HashMap::new();
        let mut places = directories.clone();
        for (id, file) in lost.keys().filter_map(|id| Some((*id, self.files.get(id)?))) {
            by_number.entry(file.inode.ino).or_default().push(id);
            places.extend(directories_of(&file.path));
            places.extend(file.real_path().parent().map(Path::to_path_buf));
        }
        let mut is_whole = true;
        let mut renumbered = Vec::new();
        for directory in places {
            is_whole &= match self.search_in(&directory, &by_number, lost, &mut renumbered) {
                Ok(is_whole) => is_whole,
                // Nothing is in it; if it comes back, `TailFile::home` is another one. One that may not be read will not be readable
                // the next time.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound
                            | io::ErrorKind::NotADirectory
                            | io::ErrorKind::PermissionDenied
                    ) =>
                {
                    true
                }
                Err(error) => {
                    self.complaints.file(&directory, &error);
                    false
                }
            };
        }
        // Last, because a snapshot of a directory has files of the same numbers and births.
        for (id, path, meta) in renumbered {
            if self.known(&Inode::of(&meta)).is_none() && lost.remove(&id).is_some() {
                self.located(id, path, &meta);
            }
        }
        is_whole
    }

    /// The same in one directory. What may be a file whose device has another number goes to `renumbered`.
    fn search_in(
        &mut self,
        directory: &Path,
        by_number: &HashMap<u64, Vec<FileId>>,
        lost: &mut Lost,
        renumbered: &mut Vec<(FileId, PathBuf, Metadata)>,
    ) -> io::Result<bool> {
        let mut is_whole = true;
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            for id in by_number.get(&entry.ino()).into_iter().flatten() {
                let Some(file) = self.files.get(id).filter(|_| lost.contains_key(id)) else { continue };
                let path = entry.path();
                let Ok(meta) = std::fs::symlink_metadata(&path) else {
                    // It has another name by now.
                    is_whole = false;
                    continue;
                };
                let inode = Inode::of(&meta);
                if inode.may_be(&file.inode) {
                    lost.remove(id);
                    self.located(*id, path, &meta);
                } else if self.is_renumbered(file, &inode, false) {
                    renumbered.push((*id, path, meta));
                }
            }
        }
        Ok(is_whole)
    }

    fn located(&mut self, id: FileId, path: PathBuf, meta: &Metadata) {
        let inode = Inode::of(meta);
        if self.files.get(&id).is_some_and(|file| file.inode.dev != inode.dev) {
            self.renumber(id, inode);
        }
        if let Some(file) = self.files.get_mut(&id) {
            if file.presence == Presence::Matched {
                self.context.metrics.add(Metric::SourceRotations, 1);
            }
            file.presence = Presence::Renamed;
            file.looked_for = false;
            if file.path != path {
                file.path = path;
                file.real = None;
            }
            self.by_path.insert(file.path.clone().into_os_string(), id);
        }
        self.look(id, meta, Instant::now());
    }

    /// A file was found nowhere.
    fn lose(&mut self, id: FileId, home: Home, is_whole: bool) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.looked_for = is_whole;
        file.home = home;
        if !matches!(file.presence, Presence::Gone(_)) {
            file.presence = Presence::Gone(Instant::now());
        }
        file.at_end |= file.input.is_none();
        // One whose directory is away may come back with it.
        let is_home = home.is_some_and(|(device, _)| device == file.inode.dev);
        if !is_whole || !is_home || file.input.is_some() || file.kind.is_archive() {
            return;
        }
        let what = format!("read up to byte {}, and found nowhere now", file.read_offset);
        let advice = "if it was moved to another directory, let a glob match it there; if it was deleted, what was not read of it is gone";
        if file.modified.is_none() {
            // It went while the agent was down: nobody knows how long it was.
            self.complaints.mention(&file.path, &what, advice);
        } else if file.seen_bytes > file.read_offset {
            self.complaints.say(&file.path, &what, advice);
        }
    }

    /// True if this is the inode of the file, on a device that has another number now. An inode that is
    /// known is not: a file and its copy in a snapshot differ in nothing else.
    pub(super) fn is_renumbered(&self, file: &TailFile, inode: &Inode, is_same_path: bool) -> bool {
        file.input.is_none()
            && inode.may_be_renumbered(&file.inode, is_same_path)
            && self.known(inode).is_none()
    }

    /// A file is known by this inode from now on. Whether it is what was read shows when it is opened.
    pub(super) fn renumber(&mut self, id: FileId, inode: Inode) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let before = std::mem::replace(&mut file.inode, inode);
        if self.by_inode.get(&before) == Some(&id) {
            self.by_inode.remove(&before);
        }
        self.by_inode.insert(inode, id);
    }
}

impl TailFile {
    /// Where this open file is without links on the way; none if that is its path.
    pub(super) fn real_path_of(&self, input: &Input) -> Option<PathBuf> {
        path_of(input, &self.inode).map(|(path, _)| path).filter(|real| *real != self.path)
    }
}

/// The directory that a file is or was in.
pub(super) fn home(file: &TailFile) -> Home {
    let meta = std::fs::metadata(file.real_path().parent()?).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// The directory of a path, and those that links at the path lead to.
fn directories_of(path: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    let mut at = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let Some(parent) = at.parent().map(Path::to_path_buf) else { break };
        let target = std::fs::read_link(&at).map(|target| parent.join(target));
        directories.push(parent);
        let Ok(target) = target else { break };
        at = target;
    }
    directories
}

/// Where an open file is now.
fn moved_to(file: &TailFile) -> Option<(PathBuf, Metadata)> {
    path_of(file.input.as_ref()?, &file.inode)
}

/// Where an open file is, as the kernel says.
fn path_of(input: &Input, inode: &Inode) -> Option<(PathBuf, Metadata)> {
    let Input::Plain(file) = input else { return None };
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let meta = std::fs::symlink_metadata(&path).ok()?;
    Inode::of(&meta).may_be(inode).then_some((path, meta))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_their_directories_also_if_they_dangle_or_loop() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("links")).unwrap();
        std::os::unix::fs::symlink("../pods/0.log", at("links/a.log")).unwrap();
        assert_eq!(directories_of(&at("links/a.log")), [at("links"), at("links/../pods")]);
        std::os::unix::fs::symlink("b.log", at("links/b.log")).unwrap();
        assert_eq!(directories_of(&at("links/b.log")).len(), LINKS_MAX);
        assert_eq!(directories_of(&at("none")), [root.path()]);
    }
}
