//! Disks that a test can fill, freeze and cut off: a small tmpfs, and an ext4 that loses its page cache.
//!
//! # The power cut
//! ```text
//! tmpfs   outer.img ── loop ── ext4 "outer" ── disk.img ── loop ── ext4 "disk" (-o commit=300): journal, output
//! ```
//! A power cut leaves what had reached the device, in the order in which it reached it. A copy of a disk
//! image that is being written is no such state: a late block can be in it and an early one not. So the
//! image lies on an outer file system, and the *outer* one is frozen for the copy (`fsfreeze`): every
//! write of the loop device stops at the next request, in the middle of an `fdatasync` too, while the inner
//! file system and the agent know nothing. The copy is what the device held at that instant; pages
//! that the inner system had not written yet are not in it. Freezing the inner system would flush it, and
//! stopping the agent would only ever cut between its system calls.
//!
//! `commit=300` keeps ext4 from writing on its own every five seconds: what was not synced is lost.
//! `discard` gives deleted blocks back, so that the image stays small to copy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::agent::Agent;
use crate::{limits, poll, scene};

/// mount, umount, mkfs: seconds at most on memory.
const TOOL_LIMIT: Duration = Duration::from_secs(60);
/// Where images lie: memory, so that a copy takes milliseconds.
const MEMORY_DIR: &str = "/dev/shm";

/// True if this process may mount (it is root).
#[must_use]
pub fn may_mount() -> bool {
    rustix::process::geteuid().is_root()
}

/// Fails with what to do if this process may not mount.
///
/// # Errors
/// If it is not root.
pub fn require_root(what: &str) -> Result<()> {
    if !may_mount() {
        bail!("{what} mounts file systems of its own: run it as root (or in a container with CAP_SYS_ADMIN)");
    }
    Ok(())
}

fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    let answer = scene::run(command, TOOL_LIMIT)?;
    if !answer.status.success() {
        bail!("{program} {}: {} {}", arguments.join(" "), answer.status, answer.stderr.trim());
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// A mounted file system. Unmounted at the end, on every way out.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
}

impl Mount {
    /// A tmpfs of a size.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn tmpfs(dir: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(dir)?;
        tool("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", text(dir)?])?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn image(image: &Path, dir: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        tool("mount", &["-o", options, text(image)?, text(dir)?])?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a tmpfs larger (or smaller).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        tool("mount", &["-o", &format!("remount,size={bytes}"), text(&self.dir)?])
    }

    /// Makes it read-only, or writable again. The kernel refuses the first while something is open for writing.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_read_only(&self, is_read_only: bool) -> Result<()> {
        tool("mount", &["-o", if is_read_only { "remount,ro" } else { "remount,rw" }, text(&self.dir)?])
    }

    /// Unmounts; waits while something still holds it.
    fn unmount(&self) -> Result<()> {
        let mut last = String::new();
        let done = poll::until("umount", TOOL_LIMIT, || {
            let result = tool("umount", &[text(&self.dir)?]);
            last = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            Ok(result.is_ok())
        });
        done.with_context(|| last)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{} stays mounted: {error:#}", self.dir.display());
        }
    }
}

/// A disk whose power can be cut. See the module's text.
#[derive(Debug)]
pub struct CuttableDisk {
    // In the order in which they have to be given back.
    inner: Option<Mount>,
    outer: Mount,
    _memory: tempfile::TempDir,
    memory_dir: PathBuf,
}

impl CuttableDisk {
    /// Makes and mounts the disk.
    ///
    /// # Errors
    /// If this process may not mount, or tools are missing.
    pub fn new() -> Result<Self> {
        require_root("a power cut")?;
        let memory = tempfile::Builder::new().prefix("flumen-disk-").tempdir_in(MEMORY_DIR)?;
        let memory_dir = memory.path().to_owned();
        let outer_image = memory_dir.join("outer.img");
        // Room for the image and its file system's own blocks.
        File::create(&outer_image)?.set_len(limits::DISK_IMAGE_BYTES + limits::DISK_IMAGE_BYTES / 8)?;
        tool("mkfs.ext4", &["-q", "-m", "0", "-O", "^has_journal", text(&outer_image)?])?;
        let outer = Mount::image(&outer_image, &memory_dir.join("outer"), "loop")?;
        let image = outer.dir().join("disk.img");
        File::create(&image)?.set_len(limits::DISK_IMAGE_BYTES)?;
        tool("mkfs.ext4", &["-q", "-m", "0", text(&image)?])?;
        let mut disk = Self { inner: None, outer, _memory: memory, memory_dir };
        disk.mount()?;
        Ok(disk)
    }

    /// Where the disk is mounted.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.memory_dir.join("disk")
    }

    fn image(&self) -> PathBuf {
        self.outer.dir().join("disk.img")
    }

    fn cut_image(&self) -> PathBuf {
        self.memory_dir.join("cut.img")
    }

    fn mount(&mut self) -> Result<()> {
        self.inner = Some(Mount::image(&self.image(), &self.dir(), "loop,commit=300,discard")?);
        Ok(())
    }

    /// Takes the state of the disk at this instant, while everything runs. The agent has to be ended then,
    /// and [`CuttableDisk::power_up`] called.
    ///
    /// # Errors
    /// If a tool fails.
    pub fn cut(&self) -> Result<()> {
        let outer = text(self.outer.dir())?;
        tool("fsfreeze", &["--freeze", outer])?;
        let copied = copy_sparse(&self.image(), &self.cut_image());
        let thawed = tool("fsfreeze", &["--unfreeze", outer]);
        copied.and(thawed)
    }

    /// Comes back with what [`CuttableDisk::cut`] took. Nothing may have a file of the disk open.
    ///
    /// # Errors
    /// If a tool fails.
    pub fn power_up(&mut self) -> Result<()> {
        if let Some(inner) = self.inner.take() {
            inner.unmount()?;
            std::mem::forget(inner);
        }
        fs::remove_file(self.image())?;
        copy_sparse(&self.cut_image(), &self.image())?;
        fs::remove_file(self.cut_image())?;
        self.mount()
    }
}

/// A disk whose file system finds itself damaged and becomes read-only, as ext4 does.
///
/// While a sync is under way when that happens, ext4 may say that it succeeded and lose what it was to keep (seen with a plain
/// program, in one of seven runs). No journal stands that, so whoever writes is to stand still meanwhile.
#[derive(Debug)]
pub struct FailingDisk {
    inner: Option<Mount>,
    image: tempfile::TempDir,
    dir: PathBuf,
}

/// What the disk holds.
const FAILING_BYTES: u64 = 128 << 20;

impl FailingDisk {
    /// Makes the disk and mounts it at `dir`.
    ///
    /// # Errors
    /// If this process may not mount, or tools are missing.
    pub fn new(dir: &Path) -> Result<Self> {
        require_root("a disk that fails")?;
        let image = tempfile::Builder::new().prefix("flumen-disk-").tempdir_in(MEMORY_DIR)?;
        let mut disk = Self { inner: None, image, dir: dir.to_owned() };
        File::create(disk.image())?.set_len(FAILING_BYTES)?;
        tool("mkfs.ext4", &["-q", "-m", "0", "-e", "remount-ro", text(&disk.image())?])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn image(&self) -> PathBuf {
        self.image.path().join("disk.img")
    }

    fn mount(&mut self) -> Result<()> {
        self.inner = Some(Mount::image(&self.image(), &self.dir, "loop")?);
        Ok(())
    }

    /// It fails under an agent that stands still meanwhile: no sync is under way.
    ///
    /// # Errors
    /// As [`FailingDisk::fail`], or if the agent is gone.
    pub fn fail_under(&self, agent: &Agent) -> Result<()> {
        agent.stand_still()?;
        self.fail()?;
        agent.signal(Signal::CONT)
    }

    /// It fails now: everything that is written or synced from here on is refused.
    ///
    /// # Errors
    /// If a tool fails, or the kernel cannot be told to.
    pub fn fail(&self) -> Result<()> {
        let dir = text(&self.dir)?;
        tool("sync", &["--file-system", dir])?;
        let mounts = fs::read_to_string("/proc/mounts")?;
        let mounted = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let device =
            mounted.filter(|words| words.get(1) == Some(&dir)).find_map(|words| words.first().copied());
        let device = device.and_then(|device| Path::new(device).file_name()).context("no such mount")?;
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(&trigger, "a test's disk fails").with_context(|| trigger.display().to_string())
    }

    /// Repairs the file system; nothing may have a file of it open.
    ///
    /// # Errors
    /// If a tool fails.
    pub fn repair(&mut self) -> Result<()> {
        if let Some(inner) = self.inner.take() {
            inner.unmount()?;
            std::mem::forget(inner);
        }
        mend(&self.image())?;
        self.mount()
    }
}

/// Mends the file system of an image that nobody has mounted.
fn mend(image: &Path) -> Result<()> {
    let mut check = Command::new("e2fsck");
    check.args(["-p", text(image)?]);
    let answer = scene::run(check, TOOL_LIMIT)?;
    // 1: errors were corrected.
    if !matches!(answer.status.code(), Some(0 | 1)) {
        bail!("e2fsck: {} {}{}", answer.status, answer.stdout.trim(), answer.stderr.trim());
    }
    Ok(())
}

fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    tool("cp", &["--sparse=always", text(from)?, text(to)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// The premise of this way of cutting, verified at every run.
    #[test]
    fn what_was_synced_is_there_after_a_cut_and_nothing_else() {
        if !may_mount() {
            eprintln!("not run: it has to mount, and this is not root");
            return;
        }
        let mut disk = CuttableDisk::new().unwrap();
        let write = |name: &str, text: &[u8], is_synced: bool| {
            let mut file =
                fs::OpenOptions::new().create(true).append(true).open(disk.dir().join(name)).unwrap();
            file.write_all(text).unwrap();
            if is_synced {
                file.sync_all().unwrap();
            }
        };
        write("synced", b"whole", true);
        File::open(disk.dir()).unwrap().sync_all().unwrap();
        write("synced", b" and more", false);
        write("never", b"gone", false);
        disk.cut().unwrap();
        write("synced", b" after the cut", true);
        disk.power_up().unwrap();
        assert_eq!(fs::read(disk.dir().join("synced")).unwrap(), b"whole");
        assert!(!disk.dir().join("never").exists());
    }
}
