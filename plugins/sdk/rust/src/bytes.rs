//! Questions about byte strings that log filters ask.

/// Extends `[u8]`.
pub trait BytesExt {
    /// Whether `needle` occurs. For a needle that stays the same over many events a [`Finder`](crate::find::Finder) is
    /// faster.
    fn contains_bytes(&self, needle: &[u8]) -> bool;

    /// What stands before and after the first `needle`, or `None` if it does not occur.
    fn split_at_bytes(&self, needle: &[u8]) -> Option<(&[u8], &[u8])>;
}

impl BytesExt for [u8] {
    #[inline]
    fn contains_bytes(&self, needle: &[u8]) -> bool {
        memchr::memmem::find(self, needle).is_some()
    }

    #[inline]
    fn split_at_bytes(&self, needle: &[u8]) -> Option<(&[u8], &[u8])> {
        let start = memchr::memmem::find(self, needle)?;
        Some((self.get(..start)?, self.get(start + needle.len()..)?))
    }
}
