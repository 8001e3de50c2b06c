//! Keys of encryption at rest: the first of a list writes, all of them read.
//!
//! A key is 32 bytes with a name, its id. On disk stands, beside what was encrypted, the id and a fingerprint of the key: so a key
//! that is missing, and one that is not the key that this id meant then, are told from each other and from damage before
//! anything is decrypted.

use std::fmt;
use std::sync::Arc;

use ring::hmac;
use thiserror::Error;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// Bytes of an id on disk.
pub const KEY_ID_BYTES: usize = 16;

/// The name of a key: 1 to 16 letters, digits, `.`, `_` and `-`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl KeyId {
    /// The id of a text; `None`: it cannot be one.
    pub fn new(text: &str) -> Option<KeyId> {
        let mut bytes = [0; KEY_ID_BYTES];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        KeyId::of_bytes(bytes)
    }

    pub(crate) fn of_bytes(bytes: [u8; KEY_ID_BYTES]) -> Option<KeyId> {
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(KEY_ID_BYTES);
        let (text, zeros) = bytes.split_at_checked(length)?;
        let may_be = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let is_id = !text.is_empty() && text.iter().all(may_be) && zeros.iter().all(|byte| *byte == 0);
        is_id.then_some(KeyId(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_ID_BYTES] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        out.write_str(&String::from_utf8_lossy(text))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// What stands on disk of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName {
    /// Its id.
    pub id: KeyId,
    /// Half of a hash of the key: tells another key of the same id.
    pub fingerprint: u64,
}

/// A key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    name: KeyName,
    secret: [u8; KEY_BYTES],
}

impl Key {
    /// A key of an id.
    pub fn new(id: KeyId, secret: [u8; KEY_BYTES]) -> Key {
        let hash = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), b"flumen journal key");
        let fingerprint = hash.as_ref().first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Key { name: KeyName { id, fingerprint: fingerprint.unwrap_or_default() }, secret }
    }

    /// A key that is written as 64 hexadecimal digits, with white space around them or not; `None`: it is not.
    pub fn from_hex(id: KeyId, text: &str) -> Option<Key> {
        let digits: Vec<u8> = text
            .trim()
            .chars()
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()?;
        let bytes = digits.chunks(2).map(|pair| match pair {
            [high, low] => Some(high << 4 | low),
            _ => None,
        });
        let secret: Vec<u8> = bytes.collect::<Option<_>>()?;
        Some(Key::new(id, secret.try_into().ok()?))
    }

    /// What stands of it on disk.
    pub fn name(&self) -> KeyName {
        self.name
    }

    pub(crate) fn secret(&self) -> &[u8; KEY_BYTES] {
        &self.secret
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Key({})", self.name.id)
    }
}

/// Keys of a journal: the first writes, all of them read. None: it is written as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys(Arc<[Key]>);

impl Keys {
    /// The key that writes.
    pub fn writing(&self) -> Option<&Key> {
        self.0.first()
    }

    /// The key of a name.
    ///
    /// # Errors
    /// If there is none of its id, or another one.
    pub fn find(&self, name: KeyName) -> Result<&Key, KeyError> {
        let key = self.0.iter().find(|key| key.name.id == name.id).ok_or(KeyError::Missing(name.id))?;
        if key.name == name { Ok(key) } else { Err(KeyError::Wrong(name.id)) }
    }
}

impl FromIterator<Key> for Keys {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Keys {
        Keys(keys.into_iter().collect())
    }
}

/// What is there cannot be read with the keys that were given. It is not damaged, and stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// No key of this id was given.
    #[error(
        "encrypted with the key `{0}`, which is not given: add it to the journal's keys, behind the one that writes \
         ([[journal.key]] with id = \"{0}\")"
    )]
    Missing(KeyId),
    /// The key of this id is another one.
    #[error(
        "encrypted with another key `{0}` than the one that is given under this id: give the key that it was written \
         with (each new key needs an id of its own)"
    )]
    Wrong(KeyId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_keys_as_texts() {
        for right in ["a", "2026-11", "A.b_c-1", "0123456789abcdef"] {
            assert_eq!(KeyId::new(right).unwrap().to_string(), right);
        }
        for wrong in ["", "0123456789abcdef0", "a b", "ä", "a\0b", "a/b"] {
            assert!(KeyId::new(wrong).is_none(), "{wrong}");
        }
        let id = KeyId::new("a").unwrap();
        let hex = "00ff".repeat(16);
        let key = Key::from_hex(id, &format!(" {}\n", hex.to_uppercase())).unwrap();
        assert_eq!(key.secret()[..2], [0, 255]);
        assert_eq!(format!("{key:?} {:?}", Keys::from_iter([key.clone()])), "Key(a) Keys([Key(a)])");
        for wrong in ["", &hex[1..], &hex[2..], &format!("{hex}00"), &hex.replace('f', "g")] {
            assert!(Key::from_hex(id, wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_found_by_id_and_fingerprint() {
        let id = |text| KeyId::new(text).unwrap();
        let [a, b, other_a] = [(id("a"), [1; 32]), (id("b"), [1; 32]), (id("a"), [2; 32])]
            .map(|(id, secret)| Key::new(id, secret));
        let keys = Keys::from_iter([a.clone(), b.clone()]);
        assert_eq!((keys.writing(), keys.find(b.name())), (Some(&a), Ok(&b)));
        assert_eq!(keys.find(other_a.name()), Err(KeyError::Wrong(id("a"))));
        assert_eq!(Keys::default().find(a.name()), Err(KeyError::Missing(id("a"))));
    }
}
