//! How a source or sink describes its options, and how it receives them.
//!
//! A component declares its options as data ([`ComponentSpec`]); `host/config` reads the user's text
//! against that, reports every error with its place, and hands over checked [`Options`]. So a new
//! component is one file, and its options, errors, docs and JSON Schema come from one place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// Where a component stands: with its own name, what tells it apart from all others of a destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The agent's name.
    pub agent: Arc<str>,
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// The channel that a sink reads; empty for a source.
    pub channel: Arc<str>,
}

/// What a component is and which options it takes.
#[derive(Debug, Clone, Copy)]
pub struct ComponentSpec {
    /// The value of `type = "…"`.
    pub kind: &'static str,
    /// One sentence for the docs.
    pub about: &'static str,
    /// Its options, in the order of the docs.
    pub options: &'static [OptionSpec],
}

/// One option of a component.
#[derive(Debug, Clone, Copy)]
pub struct OptionSpec {
    /// The key in the TOML table.
    pub name: &'static str,
    /// What values it takes.
    pub kind: OptionKind,
    /// Must be given.
    pub required: bool,
    /// The default, written as in TOML (`"64 MiB"` with its quotes, `true`, `[]`); `None`: absent.
    pub default: Option<&'static str>,
    /// One sentence, with the unit, for docs and errors.
    pub about: &'static str,
}

/// An option that may be left out.
pub const fn option(
    name: &'static str,
    kind: OptionKind,
    default: Option<&'static str>,
    about: &'static str,
) -> OptionSpec {
    OptionSpec { name, kind, required: false, default, about }
}

/// The type of an option's value.
#[derive(Debug, Clone, Copy)]
pub enum OptionKind {
    /// A string.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Bool,
    /// A whole number in a range.
    Integer {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// Bytes: a whole number, or a string such as `"64 KiB"`, `"8 GiB"`, `"10 MB"`.
    Size {
        /// Smallest, in bytes.
        min: u64,
        /// Largest, in bytes.
        max: u64,
    },
    /// A string such as `"250ms"`, `"10s"`, `"5m"`, `"1h"`.
    Duration {
        /// Smallest.
        min: Duration,
        /// Largest.
        max: Duration,
    },
    /// A list of strings, not empty if required.
    TextList,
    /// A table of strings.
    TextMap,
}

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// [`OptionKind::Text`] and [`OptionKind::Choice`].
    Text(String),
    /// [`OptionKind::Bool`].
    Bool(bool),
    /// [`OptionKind::Integer`].
    Integer(i64),
    /// [`OptionKind::Size`], in bytes.
    Size(u64),
    /// [`OptionKind::Duration`].
    Duration(Duration),
    /// [`OptionKind::TextList`].
    TextList(Vec<String>),
    /// [`OptionKind::TextMap`].
    TextMap(BTreeMap<String, String>),
}

/// The options of one component: checked against its spec, defaults filled in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options(pub BTreeMap<String, Value>);

/// An option that has the right type but cannot work. `host/config` adds file, line and caret.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("{option}: {reason}")]
pub struct BuildError {
    /// The option's name; empty if it is the component as a whole.
    pub option: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

impl BuildError {
    /// An error at an option.
    pub fn new(option: &str, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        BuildError { option: option.into(), reason: reason.into(), fix: fix.into() }
    }
}

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident, $optional:ident, $variant:ident, $type:ty, $pattern:pat => $value:expr) => {
        $(#[$doc])*
        ///
        /// An error means that the spec has neither a default nor `required` for it.
        pub fn $name(&self, option: &str) -> Result<$type, BuildError> {
            self.$optional(option).ok_or_else(|| BuildError::new(option, "is missing", "add it"))
        }
        $(#[$doc])*
        pub fn $optional(&self, option: &str) -> Option<$type> {
            match self.0.get(option) {
                Some($pattern) => Some($value),
                _ => None,
            }
        }
    };
}

impl Options {
    getter!(/// A text or choice.
        text, text_opt, Text, &str, Value::Text(v) => v.as_str());
    getter!(/// A switch.
        flag, flag_opt, Bool, bool, Value::Bool(v) => *v);
    getter!(/// A whole number.
        integer, integer_opt, Integer, i64, Value::Integer(v) => *v);
    getter!(/// A number of bytes.
        size, size_opt, Size, u64, Value::Size(v) => *v);
    getter!(/// A span of time.
        duration, duration_opt, Duration, Duration, Value::Duration(v) => *v);
    getter!(/// A list of strings.
        list, list_opt, TextList, &[String], Value::TextList(v) => v.as_slice());
    getter!(/// A table of strings.
        map, map_opt, TextMap, &BTreeMap<String, String>, Value::TextMap(v) => v);
}
