//! Named limits of user text, each with the reason for its number.

/// Bytes of one configuration or case file. A pipeline has tens of lines; a case may hold large bodies.
pub const FILE_BYTES_MAX: u64 = 4 << 20;

/// Bytes of a file that `${file:…}` puts into a value: a password, a certificate, a word list.
pub const VALUE_FILE_BYTES_MAX: u64 = 1 << 20;

/// Errors of one file that are kept. More help nobody, and a binary file would give thousands.
pub const DIAGNOSTICS_PER_FILE_MAX: usize = 100;

/// Characters of a source line that an error shows.
pub const SHOWN_LINE_CHARS_MAX: usize = 160;

/// Characters of a wrong value that an error quotes.
pub const QUOTED_CHARS_MAX: usize = 60;

/// Characters of a name: it becomes a file name and a metric's label.
pub const NAME_CHARS_MAX: usize = 64;

/// Secrets shorter than this are not searched for in a component's words: they would match everywhere.
pub const REDACTED_CHARS_MIN: usize = 3;
