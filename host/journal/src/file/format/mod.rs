//! What lies on disk, and every way in which it can be broken.
//!
//! A segment file `%016x.seg` is a [`segment::SegmentHeader`] and then frames, each a multiple of 8 bytes
//! long; what follows the last frame is preallocated zeros or the rest of an earlier, failed write.
//! The first frame is a checkpoint; all others are commits. All numbers are little-endian.
//!
//! | broken | noticed by | then |
//! |---|---|---|
//! | a flipped bit anywhere in a frame | CRC of header, head or data | damage, or torn tail |
//! | a frame of another segment, or of this name's former file | segment id, journal id | as above |
//! | a frame of an earlier write at this place | CRC chain, commit number | as above |
//! | commits of an abandoned segment that were written again | first commit number of the next segment | void |
//! | a snapshot slot | its CRC | the other slot, then the newest checkpoint |
//! | a block of a file of the state | its CRCs | its keys are lost, named and counted; the others are taken |
//! | a compressed batch under a valid CRC | its sizes, or the decompressor | as damage: its program had a fault |
//! | a key that is not given, or another one of its id | id and fingerprint, under a valid CRC | refused by name; nothing is damaged |
//! | an encrypted piece under a valid CRC and key | its tag | as damage |
//! | a newer format | version, under a valid CRC | refused by name |
//!
//! Version 1 had no compressed batches, nothing encrypted, and no keys in a snapshot's list of segments; its files are read as they are.
//!
//! Files: [`wire`] checked reading; [`segment`] header; [`frame`] the envelope; [`commit`] and [`registers`] the two payloads; [`packed`] a
//! compressed batch; [`sealed`] an encrypted piece; [`snapshot`] the slots; [`state`] what plugins remember.

pub mod commit;
pub mod frame;
pub mod packed;
pub mod registers;
pub mod sealed;
pub mod segment;
pub mod snapshot;
pub mod state;
pub mod wire;

/// The version that this code writes and the newest that it reads; it reads all before it.
pub const VERSION: u8 = 2;
