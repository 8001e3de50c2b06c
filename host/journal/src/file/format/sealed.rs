//! An encrypted piece: the data of a frame, the payload of a snapshot or of a block of the state.
//!
//! ```text
//!  0 16  id of the key, zeros behind it
//! 16  8  fingerprint of the key
//! 24 16  salt of the session
//! 40  8  number of the piece in its session
//! 48  4  bytes that were encrypted
//! 52  4  zero
//! 56  .  AES-256-GCM: as many bytes, and a tag of 16; padding to 8
//! ```
//! **No nonce is used twice with a key.** Each opening of a journal is a session: a salt of 16 bytes from the system's random
//! source, and from it and the key, by HKDF-SHA256, a key of its own. A session's nonces are a counter in memory, which is
//! raised before each use. Nothing of it is read back from a disk that may have lost it: after a crash, on an older copy of the
//! directory and beside an abandoned segment the next session has another key. A group that is written again to another
//! segment is the same piece, byte for byte. (A copy of the *running* process, as of a virtual machine that is resumed twice, would
//! repeat them.)
//!
//! What a piece is (frame, snapshot, state) and the journal are authenticated with it. Not hidden are the frames' headers and heads: numbers
//! and sizes of commits and events, times, cursors. CRCs are over what is on disk, so damage is found without a key, and by name:
//! a key that is missing or wrong is never taken for damage. What is sound by its CRC and its key's name, and not by its tag, counts as
//! damage: somebody changed it, or a program had a fault.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_buffer::{Buffer, MutableBuffer};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::error::Unspecified;
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};

use super::wire::{Fields, pad};
use crate::keys::{Key, KeyError, KeyId, KeyName, Keys};

/// Bytes before what is encrypted.
const ENVELOPE_BYTES: usize = 56;

/// Bytes of the tag behind it.
const TAG_BYTES: usize = 16;

/// Bytes of a session's salt.
const SALT_BYTES: usize = 16;

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// The data of a frame.
    Frame,
    /// The payload of a snapshot.
    Snapshot,
    /// The payload of a block of the state.
    State,
}

impl Piece {
    /// What is authenticated with it. `journal`: the low half of its id.
    fn context(self, journal: u64) -> Aad<[u8; 16]> {
        let word = match self {
            Piece::Frame => *b"flm/fram",
            Piece::Snapshot => *b"flm/snap",
            Piece::State => *b"flm/stat",
        };
        let both = u128::from(u64::from_le_bytes(word)) | u128::from(journal) << 64;
        Aad::from(both.to_le_bytes())
    }
}

fn session_key(key: &Key, salt: &[u8; SALT_BYTES]) -> Result<LessSafeKey, Unspecified> {
    let derived = Salt::new(HKDF_SHA256, salt).extract(key.secret());
    let derived = derived.expand(&[b"flumen journal session"], &AES_256_GCM)?;
    Ok(LessSafeKey::new(UnboundKey::from(derived)))
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
    Nonce::assume_unique_for_key(nonce)
}

/// Encrypts; one for each opening of a journal, for all threads.
pub struct Sealer {
    name: KeyName,
    salt: [u8; SALT_BYTES],
    key: LessSafeKey,
    journal: u64,
    next: AtomicU64,
}

impl Sealer {
    /// A session of a journal.
    pub fn new(key: &Key, journal: u128) -> io::Result<Sealer> {
        let mut salt = [0; SALT_BYTES];
        let failed = |_: Unspecified| io::Error::other("the system gives no random bytes");
        SystemRandom::new().fill(&mut salt).map_err(failed)?;
        let session = session_key(key, &salt).map_err(failed)?;
        Ok(Sealer { name: key.name(), salt, key: session, journal: journal as u64, next: AtomicU64::new(0) })
    }

    /// The key that it writes with.
    pub fn name(&self) -> KeyName {
        self.name
    }

    /// Encrypts parts that follow each other, `bytes` together. The length is a multiple of 8.
    pub fn seal<'a>(
        &self,
        piece: Piece,
        bytes: usize,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<Vec<u8>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut out = Vec::with_capacity(ENVELOPE_BYTES + bytes + TAG_BYTES + 8);
        out.extend_from_slice(self.name.id.bytes());
        out.extend_from_slice(&self.name.fingerprint.to_le_bytes());
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(bytes as u64).to_le_bytes());
        parts.into_iter().for_each(|part| out.extend_from_slice(part));
        let plain = out.get_mut(ENVELOPE_BYTES..).unwrap_or_default();
        let context = piece.context(self.journal);
        let sealed = self.key.seal_in_place_separate_tag(nonce(number), context, plain);
        let tag = sealed.map_err(|_: Unspecified| io::Error::other("it is too large to be encrypted"))?;
        out.extend_from_slice(tag.as_ref());
        pad(&mut out);
        Ok(out)
    }
}

/// What stands before an encrypted piece.
struct Envelope {
    name: KeyName,
    salt: [u8; SALT_BYTES],
    number: u64,
    bytes: usize,
}

impl Envelope {
    /// The envelope, and what is encrypted with its tag; `None`: it is none.
    fn read(sealed: &[u8]) -> Option<(Envelope, &[u8])> {
        let mut fields = Fields::new(sealed);
        let id = KeyId::of_bytes(fields.bytes(16)?.try_into().ok()?)?;
        let fingerprint = fields.u64()?;
        let salt = fields.bytes(SALT_BYTES)?.try_into().ok()?;
        let (number, bytes, zero) = (fields.u64()?, fields.u32()? as usize, fields.u32()?);
        let with_tag = bytes.checked_add(TAG_BYTES)?;
        let fits = zero == 0 && fields.has_padded(with_tag);
        let name = KeyName { id, fingerprint };
        fits.then_some((Envelope { name, salt, number, bytes }, fields.bytes(with_tag)?))
    }
}

/// Decrypts; keeps the key of the last session that it saw.
pub struct Opener {
    keys: Keys,
    session: Option<(KeyName, [u8; SALT_BYTES], LessSafeKey)>,
}

impl Opener {
    /// With these keys.
    pub fn new(keys: &Keys) -> Opener {
        Opener { keys: keys.clone(), session: None }
    }

    /// The key that the last piece was encrypted with.
    pub fn name(&self) -> Option<KeyName> {
        self.session.as_ref().map(|(name, ..)| *name)
    }

    /// What was encrypted, at an address that is a multiple of 8; `None`: it is not what was written. `journal`: the low half of its id.
    ///
    /// # Errors
    /// If its key is not given, or another one under its id.
    pub fn open(&mut self, piece: Piece, journal: u64, sealed: &[u8]) -> Result<Option<Buffer>, KeyError> {
        let Some((envelope, encrypted)) = Envelope::read(sealed) else { return Ok(None) };
        let key = self.keys.find(envelope.name)?;
        let known = |(name, salt, _): &(KeyName, [u8; SALT_BYTES], LessSafeKey)| {
            *name == envelope.name && *salt == envelope.salt
        };
        let session = match self.session.take_if(|session| known(session)) {
            Some(session) => Some(session),
            None => session_key(key, &envelope.salt).ok().map(|key| (envelope.name, envelope.salt, key)),
        };
        let Some(session) = session else { return Ok(None) };
        let (_, _, key) = self.session.insert(session);
        let mut memory = MutableBuffer::with_capacity(encrypted.len());
        memory.extend_from_slice(encrypted);
        let opened =
            key.open_in_place(nonce(envelope.number), piece.context(journal), memory.as_slice_mut()).is_ok();
        memory.truncate(envelope.bytes);
        Ok(opened.then(|| memory.into()))
    }
}
