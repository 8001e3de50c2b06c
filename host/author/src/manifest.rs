//! `plugin.toml`: what a plugin's directory holds.
//!
//! ```toml
//! name = "keep"
//! lang = "python"            # rust, python, js, go, c
//! kind = "interceptor"       # aggregator, codec, sink
//! imports = ["log"]          # host powers that Python and JavaScript code calls
//! sdk = "sdk"                # where the SDK is, if it is elsewhere
//! wit = "wit"
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Name of the file.
pub const MANIFEST: &str = "plugin.toml";
/// A longer name is no file's.
const NAME_BYTES_MAX: usize = 64;

/// A language with an SDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lang {
    /// Rust.
    Rust,
    /// Python, by componentize-py.
    Python,
    /// JavaScript or TypeScript, by componentize-js.
    Js,
    /// Go, by its own toolchain.
    Go,
    /// C, by clang.
    C,
}

impl Lang {
    /// All of them.
    pub const ALL: [Lang; 5] = [Lang::Rust, Lang::Python, Lang::Js, Lang::Go, Lang::C];

    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Lang::Rust => "rust",
            Lang::Python => "python",
            Lang::Js => "js",
            Lang::Go => "go",
            Lang::C => "c",
        }
    }
}

impl fmt::Display for Lang {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

/// What a plugin is to a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A batch in, the difference out.
    #[default]
    Interceptor,
    /// An interceptor that also makes events of its own.
    Aggregator,
    /// Bytes to events and events to bytes.
    Codec,
    /// Delivers batches.
    Sink,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Interceptor, Kind::Aggregator, Kind::Codec, Kind::Sink];

    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Interceptor => "interceptor",
            Kind::Aggregator => "aggregator",
            Kind::Codec => "codec",
            Kind::Sink => "sink",
        }
    }

    /// The world that has every power.
    #[must_use]
    pub(crate) fn world(self) -> &'static str {
        self.word()
    }

    /// The interfaces that it exports besides `about`.
    pub(crate) fn exports(self) -> &'static [&'static str] {
        match self {
            Kind::Interceptor => &["guest"],
            Kind::Aggregator => &["aggregation"],
            Kind::Codec => &["decoding", "encoding"],
            Kind::Sink => &["delivery"],
        }
    }

    /// The host powers that its world can import.
    #[must_use]
    pub fn powers(self) -> &'static [&'static str] {
        match self {
            Kind::Interceptor | Kind::Aggregator => {
                &["log", "metrics", "clock", "random", "state", "http", "tcp"]
            }
            Kind::Codec => &["log", "metrics"],
            Kind::Sink => &["log", "metrics", "clock", "random", "http", "tcp"],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

/// The file, read.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The plugin's name, and its file's.
    pub name: String,
    /// What it is written in.
    pub lang: Lang,
    /// What it is.
    #[serde(default)]
    pub kind: Kind,
    /// Host powers that it imports (Python and JavaScript; the others import what they call).
    #[serde(default)]
    pub imports: Vec<String>,
    /// Where the SDK is, from the plugin's directory.
    #[serde(default = "default_sdk")]
    pub sdk: PathBuf,
    /// Where the interface is.
    #[serde(default = "default_wit")]
    pub wit: PathBuf,
}

fn default_sdk() -> PathBuf {
    "sdk".into()
}

fn default_wit() -> PathBuf {
    "wit".into()
}

impl Manifest {
    /// Reads the manifest of a directory.
    ///
    /// # Errors
    /// If there is none, or it is wrong: where and why.
    pub fn read(dir: &Path) -> Result<Manifest> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "{} cannot be read: is {} a plugin that `flumen plugin new` made?",
                path.display(),
                dir.display()
            )
        })?;
        let manifest: Manifest = toml::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{}: {}", path.display(), error.to_string().trim_end()))?;
        check_name(&manifest.name).with_context(|| format!("{}: name", path.display()))?;
        Ok(manifest)
    }

    /// Where the built component goes.
    #[must_use]
    pub fn component(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.wasm", self.name))
    }
}

/// A name has to be fit for a file, a crate and a module.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let mut letters = name.chars();
    let starts_well = letters.next().is_some_and(|first| first.is_ascii_lowercase());
    let goes_on_well =
        letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-');
    if !starts_well || !goes_on_well || name.ends_with('-') || name.len() > NAME_BYTES_MAX {
        bail!(
            "{name:?} is no name for a plugin: use lower-case letters, digits and dashes, a letter first, at most \
             {NAME_BYTES_MAX}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fit_for_files() {
        for good in ["a", "keep", "keep-503", "a1-b2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", "1a", "ä", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_manifest_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST), "name = \"a\"\nlang = \"perl\"\n").unwrap();
        let error = format!("{:#}", Manifest::read(dir.path()).unwrap_err());
        assert!(error.contains("line 2") && error.contains("`rust`, `python`"), "{error}");
    }
}
