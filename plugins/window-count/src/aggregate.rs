//! What is counted for one key in one window, and its bytes.
//!
//! ```text
//! u64 count, u16 sums, per sum f64, u16 values of the top list, per value: u16 length, bytes, u64 count
//! ```
//! The top list is the Space-Saving sketch (Metwally, Agrawal, El Abbadi 2005): when it is full, a new value takes the place
//! of the rarest one, and its count. So counts are exact up to as many values as are kept, and never too small.

use flumen_sdk::prelude::*;

use crate::settings::Settings;

/// Bytes of a value in the top list that are kept.
const VALUE_BYTES_MAX: usize = 256;

/// See the module.
#[derive(Default, Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// Events.
    pub count: u64,
    /// Sums, in the order of the configuration.
    pub sums: Vec<f64>,
    values: Vec<(Vec<u8>, u64)>,
}

impl Aggregate {
    /// Counts a row.
    pub fn add(&mut self, settings: &Settings, batch: &BatchView, row: usize) {
        self.count += 1;
        self.add_sums(settings.numbers(batch, row));
        if let Some(value) = settings.top_value(batch, row) {
            let value = value.get(..value.len().min(VALUE_BYTES_MAX)).unwrap_or_default();
            self.add_value(value, 1, settings.top_kept());
        }
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Aggregate, kept: usize) {
        self.count += other.count;
        self.add_sums(other.sums.iter().copied());
        for (value, count) in &other.values {
            self.add_value(value, *count, kept);
        }
    }

    fn add_sums(&mut self, numbers: impl Iterator<Item = f64>) {
        for (index, number) in numbers.enumerate() {
            match self.sums.get_mut(index) {
                Some(sum) => *sum += number,
                None => self.sums.push(number),
            }
        }
    }

    fn add_value(&mut self, value: &[u8], count: u64, kept: usize) {
        if let Some((_, known)) = self.values.iter_mut().find(|(known, _)| known == value) {
            *known += count;
        } else if self.values.len() < kept {
            self.values.push((value.to_vec(), count));
        } else if let Some(rarest) = self.values.iter_mut().min_by_key(|(_, count)| *count) {
            *rarest = (value.to_vec(), rarest.1 + count);
        }
    }

    /// The most frequent values; of equal counts the smaller value first.
    pub fn top(&self, count: usize) -> Vec<(&[u8], u64)> {
        let mut all: Vec<(&[u8], u64)> =
            self.values.iter().map(|(value, count)| (value.as_slice(), *count)).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        all.truncate(count);
        all
    }

    /// Appends its bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&(self.sums.len() as u16).to_le_bytes());
        self.sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        out.extend_from_slice(&(self.values.len() as u16).to_le_bytes());
        for (value, count) in &self.values {
            out.extend_from_slice(&(value.len() as u16).to_le_bytes());
            out.extend_from_slice(value);
            out.extend_from_slice(&count.to_le_bytes());
        }
    }

    /// The aggregate of these bytes; `None` if they are none.
    pub fn read(bytes: &[u8]) -> Option<Aggregate> {
        let (count, rest) = bytes.split_first_chunk::<8>()?;
        let (sums, rest) = rest.split_first_chunk::<2>()?;
        let (sums, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*sums)) * 8)?;
        let sums = sums.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let (length, mut rest) = rest.split_first_chunk::<2>()?;
        let mut values = Vec::new();
        for _ in 0..u16::from_le_bytes(*length) {
            let (length, behind) = rest.split_first_chunk::<2>()?;
            let (value, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            let (count, behind) = behind.split_first_chunk::<8>()?;
            values.push((value.to_vec(), u64::from_le_bytes(*count)));
            rest = behind;
        }
        rest.is_empty().then_some(Aggregate { count: u64::from_le_bytes(*count), sums, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_nothing_else_is_read() {
        let values = vec![(b"/a".to_vec(), 3), (Vec::new(), 1)];
        let aggregate = Aggregate { count: 4, sums: vec![1.5, -2.0], values };
        let mut bytes = Vec::new();
        aggregate.write(&mut bytes);
        assert_eq!(Aggregate::read(&bytes), Some(aggregate));
        assert!((0..bytes.len()).all(|end| Aggregate::read(&bytes[..end]).is_none()));
    }

    #[test]
    fn the_top_list_never_counts_too_little() {
        let mut aggregate = Aggregate::default();
        for number in 0..1_000_u32 {
            aggregate.add_value(b"often", 1, 20);
            aggregate.add_value(&number.to_le_bytes(), 1, 20);
        }
        assert_eq!(aggregate.values.len(), 20);
        let (value, count) = aggregate.top(1)[0];
        assert_eq!(value, b"often");
        assert!(count >= 1_000, "{count}");
    }
}
