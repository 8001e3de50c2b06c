//! Reading of foreign bytes: every access is checked; what does not fit is `None`.

/// Reads little-endian fields forward.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// From the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes }
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// Sixteen bytes.
    pub fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// A number of entries that each take at least `entry_bytes`: a count that cannot be true is
    /// refused before anything is allocated for it.
    pub fn count(&mut self, entry_bytes: usize) -> Option<usize> {
        let count = self.u32()? as usize;
        (count.checked_mul(entry_bytes)? <= self.rest.len()).then_some(count)
    }

    /// Bytes behind their u32 length.
    pub fn blob(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u32()? as usize;
        self.bytes(bytes)
    }

    /// UTF-8 behind its u32 length.
    pub fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.blob()?).ok()
    }

    /// True when exactly these many bytes are left, and zeros up to a multiple of 8.
    pub fn has_padded(&self, bytes: usize) -> bool {
        let padding = self.rest.get(bytes..);
        padding.is_some_and(|padding| padding.len() < 8 && padding.iter().all(|byte| *byte == 0))
    }

    /// True when all was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Appends bytes behind their u32 length.
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Appends zeros up to a multiple of 8.
pub fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
}
