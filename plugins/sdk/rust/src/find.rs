//! Substring search over a whole column at once.
//!
//! A search per row pays its set-up per row; [`find_rows`] searches the data of all rows as one text and walks the
//! offsets along with the hits. A hit that spans the border between two rows does not count.

use crate::abi::Numbers;
use crate::batch::Column;
use memchr::memmem;

/// A needle, prepared once. With `-C target-feature=+simd128` it searches 16 bytes at a time.
#[derive(Clone, Debug)]
pub struct Finder {
    inner: memmem::Finder<'static>,
}

impl Finder {
    /// Prepares the search for `needle`. An empty needle is in every text.
    pub fn new(needle: impl AsRef<[u8]>) -> Self {
        Self { inner: memmem::Finder::new(needle.as_ref()).into_owned() }
    }

    /// Where the first hit starts.
    #[inline]
    pub fn find(&self, text: &[u8]) -> Option<usize> {
        self.inner.find(text)
    }

    /// Whether there is a hit.
    #[inline]
    pub fn is_in(&self, text: &[u8]) -> bool {
        self.inner.find(text).is_some()
    }

    /// What is searched for.
    #[inline]
    pub fn needle(&self) -> &[u8] {
        self.inner.needle()
    }
}

impl Default for Finder {
    fn default() -> Self {
        Self::new("")
    }
}

/// The rows of `column` that hold the finder's needle, in order, each once.
#[inline]
pub fn find_rows<'a>(column: Column<'a>, finder: &'a Finder) -> FindRows<'a> {
    let start = column.offsets().get(0).unwrap_or(0) as usize;
    FindRows { data: column.data(), offsets: column.offsets(), finder, row: 0, start }
}

/// The iterator of [`find_rows`].
pub struct FindRows<'a> {
    data: &'a [u8],
    offsets: Numbers<'a, u32>,
    finder: &'a Finder,
    /// The row in which the next search starts, at its first byte.
    row: usize,
    start: usize,
}

impl Iterator for FindRows<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let needle_len = self.finder.needle().len();
        loop {
            if needle_len == 0 {
                // Every row holds it, also the empty ones that no position belongs to.
                let row = self.row;
                self.row += 1;
                return (self.row < self.offsets.len()).then_some(row);
            }
            let hit = self.start + self.finder.find(self.data.get(self.start..)?)?;
            let mut end = self.offsets.get(self.row + 1)? as usize;
            while end <= hit {
                self.row += 1;
                end = self.offsets.get(self.row + 1)? as usize;
            }
            // Whether it counts or spans the border: nothing more in this row can change the answer.
            let row = self.row;
            self.row += 1;
            self.start = end;
            if hit + needle_len <= end {
                return Some(row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn rows(bodies: &[&str], needle: &str) -> Vec<usize> {
        let batch = testing::bodies(bodies);
        find_rows(batch.body().unwrap(), &Finder::new(needle)).collect()
    }

    #[test]
    fn hits_are_mapped_to_rows() {
        assert_eq!(rows(&["ab", "", "xab", "ba", "abab"], "ab"), [0, 2, 4]);
        assert_eq!(rows(&["", ""], "ab"), [] as [usize; 0]);
    }

    #[test]
    fn a_hit_across_a_border_does_not_count() {
        assert_eq!(rows(&["xa", "bx", "ab"], "ab"), [2]);
        assert_eq!(rows(&["a", "", "b", "ab"], "ab"), [3]);
        // The hit that spans hides no hit that starts in the next row.
        assert_eq!(rows(&["aa", "aaa"], "aaa"), [1]);
    }

    #[test]
    fn an_empty_needle_is_in_every_row() {
        assert_eq!(rows(&["", "x", ""], ""), [0, 1, 2]);
    }

    #[test]
    fn agrees_with_a_search_per_row() {
        let mut seed = 7_u32;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        for _ in 0..2_000 {
            let bodies: Vec<String> = (0..next(12))
                .map(|_| (0..next(7)).map(|_| if next(2) == 0 { 'a' } else { 'b' }).collect())
                .collect();
            let needle: String = (0..next(4)).map(|_| if next(2) == 0 { 'a' } else { 'b' }).collect();
            let texts: Vec<&str> = bodies.iter().map(String::as_str).collect();
            let expected: Vec<usize> = texts
                .iter()
                .enumerate()
                .filter(|(_, text)| text.contains(&needle))
                .map(|(row, _)| row)
                .collect();
            assert_eq!(rows(&texts, &needle), expected, "{texts:?} {needle:?}");
        }
    }
}
