//! The codes of errors: stable words that tools and documentation refer to.

use serde::{Serialize, Serializer};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal;)+) => {
        /// What kind of error it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($(#[doc = $doc])+ $variant,)+ }

        impl Code {
            /// All codes, in the order of the docs.
            pub const ALL: &'static [Code] = &[$(Code::$variant),+];

            /// The word that is shown.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $word),+ }
            }

            /// One sentence for the docs.
            pub fn about(self) -> &'static str {
                match self { $(Code::$variant => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

codes! {
    /// A file or directory that was named is not there.
    FileNotFound = "file-not-found";
    /// A file cannot be read.
    FileUnreadable = "file-unreadable";
    /// A file is larger than any configuration.
    FileTooLarge = "file-too-large";
    /// A file is not UTF-8.
    NotUtf8 = "not-utf8";
    /// The text is not TOML.
    Syntax = "syntax";
    /// More errors in this file than are shown.
    TooManyErrors = "too-many-errors";
    /// A key that does not exist here.
    UnknownKey = "unknown-key";
    /// A key that must be given.
    MissingKey = "missing-key";
    /// A value of another type than the key takes.
    WrongType = "wrong-type";
    /// A number, size or duration below the smallest or above the largest.
    OutOfRange = "out-of-range";
    /// A word that is none of the choices.
    BadChoice = "bad-choice";
    /// A string that is no size.
    BadSize = "bad-size";
    /// A string that is no duration.
    BadDuration = "bad-duration";
    /// A value that must not be empty.
    EmptyValue = "empty-value";
    /// A name with characters that names do not have.
    BadName = "bad-name";
    /// A name that Flumen uses itself.
    ReservedName = "reserved-name";
    /// A name that is used twice.
    DuplicateName = "duplicate-name";
    /// No source or sink of this type exists.
    UnknownType = "unknown-type";
    /// A pipeline without a source.
    NoSource = "no-source";
    /// A pipeline without a sink.
    NoSink = "no-sink";
    /// A sink or a selector names a channel that does not exist.
    UnknownChannel = "unknown-channel";
    /// A group names a sink that does not exist.
    UnknownSink = "unknown-sink";
    /// A sink must name its channel because there are several.
    MissingChannel = "missing-channel";
    /// A channel that no sink reads: it would fill and hold the sources.
    UnreadChannel = "unread-channel";
    /// A channel that no source puts to.
    UnfedChannel = "unfed-channel";
    /// Channels of one pipeline that cannot be in one commit.
    MixedChannels = "mixed-channels";
    /// A channel and a failover that do not go together.
    FailoverPair = "failover-pair";
    /// A channel whose kind is not as reliable as the pipeline says, or is more so.
    Reliability = "reliability";
    /// A batch that does not fit into a channel.
    BatchTooLarge = "batch-too-large";
    /// More memory than the agent may have.
    MemoryMax = "memory-max";
    /// A plugin outside of the plugin directory.
    PluginOutside = "plugin-outside";
    /// A host power that does not exist.
    UnknownGrant = "unknown-grant";
    /// A plugin with state on a sink.
    StateOnSink = "state-on-sink";
    /// `${env:X}` and X is not set.
    UnsetVariable = "unset-variable";
    /// `${file:X}` and X cannot be read.
    MissingFile = "missing-file";
    /// `${…}` that is neither `env` nor `file`.
    BadSubstitution = "bad-substitution";
    /// A pattern of file names that is not understood.
    BadPattern = "bad-pattern";
    /// Nothing to run.
    NoPipeline = "no-pipeline";
    /// Two agent files were given.
    TwoAgentFiles = "two-agent-files";
    /// An option of the right type that cannot work, as its component found.
    BadOption = "bad-option";
    /// A component's own default is wrong: a mistake in Flumen.
    BadDefault = "bad-default";
    /// A time that is not RFC 3339.
    BadTime = "bad-time";
    /// A string that is not base64.
    BadBase64 = "bad-base64";
    /// A secret that is not a key of 32 bytes.
    BadKey = "bad-key";
    /// A case that contradicts itself.
    BadCase = "bad-case";
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
