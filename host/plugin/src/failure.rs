//! Why one call of a guest failed. Its text is the reason that a quarantined event carries.

use std::time::Duration;

use thiserror::Error;

use crate::answer::AnswerError;

/// Why one call failed. Every one of them costs the instance and nothing else.
#[derive(Debug, Clone, Error)]
pub(crate) enum Failure {
    #[error("the plugin trapped: {0}")]
    Trap(String),
    #[error("the plugin took longer than {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error(
        "the plugin asked for {wanted_bytes} bytes of memory; its limit is {limit_bytes} (`limits.memory`)"
    )]
    Memory { wanted_bytes: u64, limit_bytes: u64 },
    #[error("the plugin's answer is larger than its limit of {limit_bytes} bytes (`limits.answer`)")]
    Oversized { limit_bytes: u64 },
    #[error("the plugin's answer lies: {0}")]
    Lying(#[from] AnswerError),
    #[error("the plugin's answer breaks the component ABI: {0}")]
    Abi(String),
    #[error("the plugin failed: {0}")]
    Refused(String),
    #[error("no instance of the plugin could be made: {0}")]
    Instantiate(String),
    #[error("all {0} sandboxes are in use")]
    HostFull(u32),
    #[error("the plugin did not open again: {0}")]
    Reopen(String),
}

impl Failure {
    /// Of a call whose error is about the batch.
    pub(crate) fn of_call(failure: OpenFailure) -> Failure {
        match failure {
            OpenFailure::Refused(text) => {
                Failure::Refused(printable(&text, flumen_event::limits::REASON_BYTES_MAX))
            }
            OpenFailure::Failed(failure) => failure,
        }
    }

    /// True if the rows have nothing to do with it, so that looking for guilty ones is in vain.
    pub(crate) fn is_about_instance(&self) -> bool {
        matches!(self, Failure::Instantiate(_) | Failure::HostFull(_) | Failure::Reopen(_))
    }
}

/// Why `open` failed.
#[derive(Debug, Clone)]
pub(crate) enum OpenFailure {
    /// The plugin said no, in these words.
    Refused(String),
    /// It did not come back as it should.
    Failed(Failure),
}

/// At most `bytes` of a text, cut at a character.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

/// At most `bytes` of a guest's text, without anything that a terminal would obey.
pub(crate) fn printable(text: &str, bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(bytes));
    for character in text.chars() {
        // Directional marks and line separators reorder or break what a person reads.
        let is_unsafe =
            character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let length = if is_unsafe { character.escape_default().len() } else { character.len_utf8() };
        if out.len() + length > bytes {
            break;
        }
        if is_unsafe { out.extend(character.escape_default()) } else { out.push(character) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_and_has_no_control_characters() {
        let line = printable(&format!("a\x1b[31mred\n{}", "é".repeat(1_000)), 1_000);
        assert!(line.starts_with("a\\u{1b}[31mred\\n"), "{line}");
        assert!((999..=1_000).contains(&line.len()));
        assert_eq!(printable(&"\0".repeat(1_000), 998).len(), 995);
        assert_eq!(printable("plain é", 1_000), "plain é");
    }
}
