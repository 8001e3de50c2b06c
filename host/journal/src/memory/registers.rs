//! The numbers of a memory channel, and the bytes in which they stand in the file journal's positions.
//!
//! ```text
//! memory/id            u128                       names this journal in marks
//! memory/c/CHANNEL     u8 1, u64 head, then per region: u8 store, u64 first, u64 rows, u64 file_first
//! memory/r/CHANNEL/READER   u64 cursor
//! ```

use crate::api::ReaderId;
use crate::file::format::wire::Fields;

/// What begins the keys of everything here.
pub const OWN: &[u8] = b"memory/";
/// The journal's id.
pub const ID_KEY: &[u8] = b"memory/id";

const VERSION: u8 = 1;

/// One of the two file channels behind a memory channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Of the same name: what the memory had no room for.
    Overflow,
    /// What a clean close saved.
    Saved,
}

impl Store {
    /// One of two.
    pub fn of<T: Copy>(self, [overflow, saved]: [T; 2]) -> T {
        match self {
            Store::Overflow => overflow,
            Store::Saved => saved,
        }
    }

    /// One of two, to change it.
    pub fn of_mut<T>(self, [overflow, saved]: &mut [T; 2]) -> &mut T {
        match self {
            Store::Overflow => overflow,
            Store::Saved => saved,
        }
    }
}

/// A run of events that are in a file: `file_first` there is `first` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub store: Store,
    pub first: u64,
    pub rows: u64,
    pub file_first: u64,
}

impl Region {
    pub fn end(&self) -> u64 {
        self.first + self.rows
    }

    /// The file's cursor for one of ours, as far as this region goes.
    pub fn file_cursor(&self, cursor: u64) -> u64 {
        self.file_first + cursor.clamp(self.first, self.end()) - self.first
    }
}

/// A reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderRegister {
    pub name: String,
    /// Events before this are acknowledged.
    pub cursor: u64,
    pub live: bool,
    /// The same reader of the file channels, by [`Store`].
    pub file: [ReaderId; 2],
}

/// A channel's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registers {
    /// Events ever put.
    pub head: u64,
    /// In order, without an overlap; behind them, or between them and the head, is what is in memory.
    pub regions: Vec<Region>,
    pub readers: Vec<ReaderRegister>,
}

impl Registers {
    /// Events from here on are owed to somebody; `None`: nobody reads.
    pub fn needed(&self) -> Option<u64> {
        self.readers.iter().filter(|reader| reader.live).map(|reader| reader.cursor).min()
    }

    /// Events at the head that go to a file: behind the last region if that ends here, else into a new one.
    pub fn append(&mut self, store: Store, rows: u64, file_head: u64) -> Store {
        let first = self.head;
        self.head += rows;
        match self.regions.last_mut() {
            Some(region) if region.end() == first => {
                region.rows += rows;
                region.store
            }
            _ => {
                self.regions.push(Region { store, first, rows, file_first: file_head });
                store
            }
        }
    }

    /// Regions that nobody needs any more are forgotten. True if there were any.
    pub fn forget_done(&mut self) -> bool {
        let (needed, before) = (self.needed().unwrap_or(u64::MAX), self.regions.len());
        self.regions.retain(|region| region.end() > needed);
        self.regions.len() < before
    }

    /// Events from `from` on that are in no file.
    pub fn not_in_files(&self, from: u64) -> u64 {
        let in_files: u64 =
            self.regions.iter().map(|region| region.end().saturating_sub(region.first.max(from))).sum();
        self.head.saturating_sub(from).saturating_sub(in_files)
    }

    /// The first event at or after `from` that is in a file.
    pub fn next_in_files(&self, from: u64) -> Option<u64> {
        self.regions.iter().find(|region| region.end() > from).map(|region| region.first.max(from))
    }

    /// Everything but the readers.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.head.to_le_bytes());
        for region in &self.regions {
            out.push(u8::from(region.store == Store::Saved));
            for number in [region.first, region.rows, region.file_first] {
                out.extend(number.to_le_bytes());
            }
        }
        out
    }

    /// Head and regions; `None`: not readable.
    pub fn decode(bytes: &[u8]) -> Option<(u64, Vec<Region>)> {
        let mut fields = Fields::new(bytes);
        if fields.u8()? != VERSION {
            return None;
        }
        let head = fields.u64()?;
        let mut regions: Vec<Region> = Vec::new();
        while !fields.is_empty() {
            let store = if fields.u8()? == 0 { Store::Overflow } else { Store::Saved };
            let region =
                Region { store, first: fields.u64()?, rows: fields.u64()?, file_first: fields.u64()? };
            let end = region.first.checked_add(region.rows)?;
            let behind = regions.last().map_or(0, Region::end);
            if end > head || region.first < behind || region.file_first.checked_add(region.rows).is_none() {
                return None;
            }
            regions.push(region);
        }
        Some((head, regions))
    }
}

/// The key of a channel's numbers.
pub fn channel_key(channel: &str) -> Vec<u8> {
    [OWN, b"c/", channel.as_bytes()].concat()
}

/// The key of a reader's cursor.
pub fn reader_key(channel: &str, reader: &str) -> Vec<u8> {
    [OWN, b"r/", channel.as_bytes(), b"/", reader.as_bytes()].concat()
}

/// A cursor or an id of a position.
pub fn number<const N: usize>(value: Option<Vec<u8>>) -> Option<[u8; N]> {
    value.and_then(|value| value.as_slice().try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_is_refused() {
        let region = |store, first, rows, file_first| Region { store, first, rows, file_first };
        let registers = Registers {
            head: 100,
            regions: vec![region(Store::Saved, 10, 20, 3), region(Store::Overflow, 40, 60, 1_000)],
            readers: Vec::new(),
        };
        let bytes = registers.encode();
        assert_eq!(Registers::decode(&bytes), Some((100, registers.regions.clone())));
        assert_eq!(registers.not_in_files(0), 20);
        assert_eq!(registers.not_in_files(25), 10);
        assert_eq!(registers.next_in_files(30), Some(40));
        assert_eq!(registers.next_in_files(50), Some(50));
        for length in 0..bytes.len() {
            let cut = Registers::decode(&bytes[..length]);
            assert!(cut.is_none() || (length - 9).is_multiple_of(25), "{length}");
        }
        let overlapping =
            Registers { regions: vec![registers.regions[1], registers.regions[0]], ..registers.clone() };
        assert_eq!(Registers::decode(&overlapping.encode()), None);
        assert_eq!(Registers::decode(&Registers { head: 90, ..registers }.encode()), None);
    }
}
