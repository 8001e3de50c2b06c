//! Which partition a record with a key goes to: the choice that Java's producer makes, so that records of one key
//! meet in one partition whoever wrote them.
//!
//! Source: `org.apache.kafka.common.utils.Utils.murmur2` (Austin Appleby's MurmurHash2 with the seed
//! `0x9747b28c`) and `BuiltInPartitioner.partitionForKey`: the hash without its sign, modulo the partitions.

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;
const R: u32 = 24;

/// The hash of a key.
pub fn murmur2(key: &[u8]) -> u32 {
    // Java's length is an int; a key is never that long.
    let mut hash = SEED ^ (key.len() as u32);
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of a key among `partitions` (at least 1).
pub fn of_key(key: &[u8], partitions: i32) -> i32 {
    let positive = (murmur2(key) & 0x7fff_ffff) as i32;
    positive % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by Java's own class: `tests/murmur2/Murmur2.java` says how.
    #[test]
    fn ten_thousand_keys_fall_where_java_puts_them() {
        let mut lines = 0;
        for line in include_str!("../tests/murmur2/java.txt").lines() {
            let mut fields = line.split(' ');
            let (key, hash) = (fields.next().unwrap(), fields.next().unwrap().parse::<i32>().unwrap());
            let key: Vec<u8> = (0..key.len() / 2)
                .map(|at| u8::from_str_radix(&key[at * 2..at * 2 + 2], 16).unwrap())
                .collect();
            assert_eq!(murmur2(&key) as i32, hash, "{line}");
            for (count, expected) in [1, 3, 72].into_iter().zip(fields) {
                assert_eq!(of_key(&key, count), expected.parse::<i32>().unwrap(), "{line}");
            }
            lines += 1;
        }
        assert_eq!(lines, 10_000);
    }
}
