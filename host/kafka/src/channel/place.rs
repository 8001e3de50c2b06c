//! Which data directory a position in Kafka belongs to.
//!
//! What a sink has on record describes a destination of this machine: names and lengths of files. Under the agent's name
//! alone, a second agent of the same name would be handed the first one's, and cut its own files to their lengths. So
//! the keys of such positions end with `@` and the id of the data directory, which is drawn once and stands in the file
//! journal beside.

use std::hash::{BuildHasher, Hasher, RandomState};

use flumen_journal::{Commit, CommitError, Journal};

/// The id's key in the file journal.
const KEY: &[u8] = b"kafka/place";
/// Positions of sinks, and what they are about to quarantine.
const LOCAL: [&[u8]; 2] = [b"sink/", b"pending/"];

/// `@` and the id.
pub(super) struct Place(Vec<u8>);

impl Place {
    /// The id of this data directory; drawn if it has none.
    pub fn of(local: &dyn Journal) -> Result<Place, CommitError> {
        let id = match local.position(KEY).filter(|id| !id.is_empty()) {
            Some(id) => id,
            None => {
                let random = || RandomState::new().build_hasher().finish();
                let id = format!("{:016x}{:016x}", random(), random()).into_bytes();
                let commit = Commit { positions: vec![(KEY.to_vec(), id.clone())], ..Commit::default() };
                local.commit(commit, None)?.wait(None).unwrap_or(Err(CommitError::Closing))?;
                id
            }
        };
        Ok(Place([b"@", id.as_slice()].concat()))
    }

    /// A key as it stands in Kafka.
    pub fn mark(&self, key: &mut Vec<u8>) {
        if is_local(key) {
            key.extend(&self.0);
        }
    }

    /// The key of one that stands in Kafka; `None`: of another data directory.
    pub fn unmark(&self, key: &[u8]) -> Option<Vec<u8>> {
        if !is_local(key) {
            return Some(key.to_vec());
        }
        key.strip_suffix(self.0.as_slice()).map(<[u8]>::to_vec)
    }
}

fn is_local(key: &[u8]) -> bool {
    LOCAL.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_sinks_are_of_their_place_and_others_of_the_agent() {
        let (own, other) = (Place(b"@1".to_vec()), Place(b"@2".to_vec()));
        let marked = |key: &[u8]| {
            let mut key = key.to_vec();
            own.mark(&mut key);
            key
        };
        for key in [b"sink/a".as_slice(), b"pending/a"] {
            assert_eq!(own.unmark(&marked(key)).as_deref(), Some(key));
            assert_eq!(other.unmark(&marked(key)), None);
        }
        assert_eq!(marked(b"source/a"), b"source/a");
        assert_eq!(other.unmark(b"source/a").as_deref(), Some(b"source/a".as_slice()));
    }
}
