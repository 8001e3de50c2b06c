//! What this crate may ask of the outside: variables and files. Injected, so that tests need neither.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Environment variables and a file reader.
pub trait Env {
    /// The variable's value; `None` if it is not set or not UTF-8.
    fn var(&self, name: &str) -> Option<String>;
    /// The whole file, but at most `limit + 1` bytes of it: one more tells that it is too large.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// The files (not directories) of a directory, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Is there a directory of this name?
    fn is_dir(&self, path: &Path) -> bool;
}

/// The process's environment and the real file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEnv;

impl Env for SystemEnv {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        // The parent of a bare file name is the empty path, which the system does not know.
        let here = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        for entry in std::fs::read_dir(here)? {
            let entry = entry?;
            if entry.path().is_file() {
                files.push(dir.join(entry.file_name()));
            }
        }
        Ok(files)
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }
}

/// Variables and files held in memory: for tests.
#[derive(Debug, Clone, Default)]
pub struct MemoryEnv {
    /// The variables.
    pub vars: BTreeMap<String, String>,
    /// The files; directories are what their paths imply.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Env for MemoryEnv {
    fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).cloned()
    }

    fn read(&self, path: &Path, _limit: u64) -> io::Result<Vec<u8>> {
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.files.keys().filter(|file| file.parent() == Some(dir)).cloned().collect())
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.files.keys().any(|file| file != path && file.starts_with(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_lists_files_of_the_current_directory() {
        let files = SystemEnv.list(Path::new("")).unwrap();
        assert!(files.contains(&PathBuf::from("Cargo.toml")), "{files:?}");
        assert!(!files.contains(&PathBuf::from("src")), "{files:?}");
        assert_eq!(SystemEnv.read(Path::new("Cargo.toml"), 3).unwrap(), b"[pac");
    }
}
