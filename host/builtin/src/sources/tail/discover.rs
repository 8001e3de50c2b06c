//! Finds files by globs.
//!
//! A pattern is matched name by name, so only directories that can hold a match are read; `**` stands
//! for any number of directories (it does not follow links to directories). `*`, `?`, `[a-z]` and
//! `{a,b}` match within a name. An exclude pattern without `/` is compared with the file's name alone.
//!
//! What cannot be read is reported and looked at again at the next walk; it never ends the walk.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use super::limits::{DEPTH_MAX, FILES_MAX};

/// One name of a pattern.
#[derive(Debug, Clone)]
enum Step {
    Literal(OsString),
    Glob(GlobMatcher),
    Recursive,
}

/// The patterns of a source.
#[derive(Debug, Clone)]
pub struct Globs {
    patterns: Vec<Vec<Step>>,
    exclude: Vec<(bool, GlobMatcher)>,
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct Found {
    /// Regular files by their paths: as bytes, since a comparison of paths name by name was half of what a walk cost.
    pub files: BTreeMap<OsString, Metadata>,
    /// Directories that were looked into: where new matches would appear.
    pub directories: BTreeSet<PathBuf>,
    /// What could not be looked at.
    pub problems: Vec<(PathBuf, io::Error)>,
}

impl Globs {
    /// Understands patterns. The error is the pattern and what is wrong with it.
    pub fn new(paths: &[String], exclude: &[String]) -> Result<Globs, (String, String)> {
        let patterns = paths.iter().map(|path| steps(path)).collect::<Result<Vec<_>, (String, String)>>()?;
        let exclude = exclude
            .iter()
            .map(|text| Ok((text.contains('/'), matcher(text).map_err(|error| (text.clone(), error))?)))
            .collect::<Result<Vec<_>, (String, String)>>()?;
        Ok(Globs { patterns, exclude })
    }

    /// Looks at the file system.
    pub fn walk(&self) -> Found {
        let mut found = Found::default();
        for steps in &self.patterns {
            self.descend(PathBuf::from("/"), steps, 0, &mut found);
        }
        found
    }

    fn excluded(&self, path: &Path) -> bool {
        self.exclude.iter().any(|(whole, glob)| match (whole, path.file_name()) {
            (false, Some(name)) => glob.is_match(name),
            _ => glob.is_match(path),
        })
    }

    fn descend(&self, directory: PathBuf, steps: &[Step], depth: usize, found: &mut Found) {
        let Some((step, rest)) = steps.split_first() else { return };
        match step {
            Step::Literal(name) => {
                if matches!(rest.first(), None | Some(Step::Glob(_) | Step::Recursive)) {
                    found.directories.insert(directory.clone());
                }
                let path = directory.join(name);
                if rest.is_empty() {
                    self.candidate(path, true, found)
                } else {
                    self.descend(path, rest, depth, found)
                }
            }
            Step::Glob(glob) => self.each(directory, found, |path, is_dir, found| {
                let matches = path.file_name().is_some_and(|name| glob.is_match(name));
                match (matches, rest.is_empty()) {
                    (false, _) => {}
                    (true, true) if is_dir != Some(true) => self.candidate(path, false, found),
                    (true, false) if is_dir != Some(false) => self.descend(path, rest, depth, found),
                    (true, _) => {}
                }
            }),
            Step::Recursive => {
                self.descend(directory.clone(), rest, depth, found);
                if depth < DEPTH_MAX {
                    self.each(directory, found, |path, is_dir, found| {
                        if is_dir == Some(true) {
                            self.descend(path, steps, depth + 1, found);
                        }
                    });
                }
            }
        }
    }

    /// Every entry of a directory, and whether it is a directory (`None`: a link).
    fn each(
        &self,
        directory: PathBuf,
        found: &mut Found,
        mut visit: impl FnMut(PathBuf, Option<bool>, &mut Found),
    ) {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return;
            }
            Err(error) => return found.problems.push((directory, error)),
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
                Ok((path, kind)) => visit(path, (!kind.is_symlink()).then_some(kind.is_dir()), found),
                Err(error) => found.problems.push((directory.clone(), error)),
            }
        }
        found.directories.insert(directory);
    }

    fn candidate(&self, path: PathBuf, named: bool, found: &mut Found) {
        if found.files.contains_key(path.as_os_str()) || self.excluded(&path) {
            return;
        }
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {
                if found.files.len() >= FILES_MAX {
                    let error =
                        io::Error::other(format!("more than {FILES_MAX} files match; this one waits"));
                    return found.problems.push((path, error));
                }
                found.files.insert(path.into_os_string(), meta);
            }
            Ok(meta) if meta.is_dir() && named => {
                found.problems.push((path, io::ErrorKind::IsADirectory.into()));
            }
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
                found.problems.push((path, error));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => found.problems.push((path, error)),
        }
    }
}

fn steps(pattern: &str) -> Result<Vec<Step>, (String, String)> {
    let fail = |reason: String| (pattern.to_owned(), reason);
    let absolute = std::path::absolute(pattern).map_err(|error| fail(error.to_string()))?;
    let mut steps = Vec::new();
    for component in absolute.components() {
        let name = match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            Component::ParentDir => "..".to_owned(),
            Component::Normal(name) => name.to_str().ok_or_else(|| fail("is not UTF-8".into()))?.to_owned(),
        };
        steps.push(if name == "**" {
            Step::Recursive
        } else if name.contains(['*', '?', '[', ']', '{', '}', '\\']) {
            Step::Glob(matcher(&name).map_err(|error| fail(format!("{error} (a group cannot span '/')")))?)
        } else {
            Step::Literal(name.into())
        });
    }
    if let Some(Step::Recursive) = steps.last() {
        steps.push(Step::Glob(matcher("*").map_err(fail)?));
    }
    Ok(steps)
}

fn matcher(glob: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(glob).literal_separator(true).build().map_err(|error| error.to_string())?;
    Ok(glob.compile_matcher())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_only_what_can_match() {
        let root = tempfile::tempdir().unwrap();
        for file in ["a/x.log", "a/b/y.log", "a/b/c/z.log", "a/b/c/z.txt", "d/skip.log", "a/b/.w.log"] {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let found = |patterns: &[&str], exclude: &[&str]| -> Vec<String> {
            let patterns: Vec<String> =
                patterns.iter().map(|p| format!("{}/{p}", root.path().display())).collect();
            let exclude: Vec<String> = exclude.iter().map(|p| (*p).to_owned()).collect();
            let walk = Globs::new(&patterns, &exclude).unwrap().walk();
            assert!(walk.problems.is_empty());
            walk.files
                .keys()
                .map(|path| Path::new(path).strip_prefix(root.path()).unwrap().display().to_string())
                .collect()
        };
        assert_eq!(found(&["a/*.log"], &[]), ["a/x.log"]);
        assert_eq!(found(&["**/*.log"], &["skip.*"]), ["a/b/.w.log", "a/b/c/z.log", "a/b/y.log", "a/x.log"]);
        assert_eq!(found(&["a/**"], &["**/*.log"]), ["a/b/c/z.txt"]);
        assert_eq!(found(&["a/**/c/*.{log,txt}"], &[]), ["a/b/c/z.log", "a/b/c/z.txt"]);
        assert_eq!(found(&["[ad]/*.log", "a/x.log"], &[]), ["a/x.log", "d/skip.log"]);
        assert_eq!(found(&["missing/*.log", "a/x.log/y"], &[]), Vec::<String>::new());
    }

    #[test]
    fn a_directory_where_a_file_was_is_reported() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.log");
        std::fs::create_dir(&path).unwrap();
        let found = Globs::new(&[path.display().to_string()], &[]).unwrap().walk();
        assert_eq!(found.problems[0].1.kind(), io::ErrorKind::IsADirectory);
    }
}
